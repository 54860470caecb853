"""The gate: who passes, who waits, how a wait ends, and how wide the door is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from awesomeproxy.gate import UNBOUNDED, Gate, HeldTotal
from awesomeproxy.model import HoldLimits, Outcome, Ramp

RELEASED, TIMED_OUT, REFUSED, GONE = (
    Outcome.RELEASED,
    Outcome.TIMED_OUT,
    Outcome.REFUSED,
    Outcome.GONE,
)
NO_RAMP = Ramp(start=0)


class StrictClock(Clock):
    """Refuses what the reactor refuses."""

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> IDelayedCall:
        assert delay >= 0
        return super().callLater(delay, callable, *args, **kw)


class Site:
    """A gate, the clock it looks at, and what its requests were told, in order."""

    def __init__(
        self,
        limits: HoldLimits = HoldLimits(),
        *,
        ramp: Ramp = NO_RAMP,
        max_in_flight: int = 0,
        budget: float = 15.0,
        total: HeldTotal | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or StrictClock()
        self.told: list[tuple[object, Outcome]] = []
        self.idle = 0
        self.gate = Gate(
            self.clock,
            limits,
            ramp=ramp,
            max_in_flight=max_in_flight,
            budget=budget,
            total=total,
            on_idle=self._on_idle,
        )

    def _on_idle(self) -> None:
        self.idle += 1

    def wait(
        self,
        name: object,
        *,
        size: int = 0,
        since: float | None = None,
        then: Callable[[], object] = lambda: None,
    ) -> Deferred[Outcome]:
        """Wait in line; on being told do what ``then`` does, at once."""

        def told(outcome: Outcome) -> Outcome:
            self.told.append((name, outcome))
            then()
            return outcome

        return self.gate.wait(size, since).addCallback(told)

    def enter(self, count: int) -> None:
        for _ in range(count):
            assert self.gate.enter()

    @property
    def names(self) -> list[object]:
        """Who was released, in order."""
        return [name for name, outcome in self.told if outcome is RELEASED]


class TestPassing:
    def test_an_open_gate_lets_pass_and_counts(self) -> None:
        """The check and the count are one call."""
        gate = Site().gate
        assert gate.enter()
        assert gate.enter()
        assert gate.in_flight == 2
        gate.leave()
        assert gate.in_flight == 1

    def test_who_may_not_pass_is_not_counted(self) -> None:
        """A request that was not let in is not in flight, however often it asks."""
        gate = Site().gate
        gate.hold()
        assert not gate.enter()
        assert not gate.enter()
        assert gate.in_flight == 0

    def test_the_usual_way_touches_no_clock(self) -> None:
        """A request that passes costs no timer and no look at the time."""

        class NoClock(Clock):
            def seconds(self) -> float:
                raise AssertionError("asked for the time")

        site = Site(max_in_flight=10, clock=NoClock())
        site.enter(10)
        for _ in range(10):
            site.gate.leave()
        assert site.clock.calls == []

    def test_passing_is_not_waiting(self) -> None:
        """Only those who had to wait are counted as held and released."""
        gate = Site().gate
        assert gate.enter()
        gate.leave()
        assert (gate.held, gate.released, gate.departed, gate.refused) == (0, 0, 0, 0)


class TestHolding:
    def test_nothing_passes_a_holding_gate(self) -> None:
        """A hold is in force from the moment it is called; time alone does not end it."""
        site = Site()
        site.gate.hold()
        site.wait("a")
        assert not site.gate.enter()
        site.clock.advance(59)
        assert not site.gate.enter()
        assert site.told == []
        assert site.gate.waiting == 1

    def test_in_flight_is_left_to_finish(self) -> None:
        """A hold cuts nothing: what had passed is counted until it leaves."""
        site = Site()
        site.enter(2)
        site.gate.hold()
        assert site.gate.in_flight == 2
        site.gate.leave()
        assert (site.gate.in_flight, site.idle) == (1, 0)
        site.gate.leave()
        assert (site.gate.in_flight, site.idle) == (0, 1)

    def test_drained_while_others_wait(self) -> None:
        """``on_idle`` is called too when requests are held, and none of them passes."""
        site = Site()
        site.enter(1)
        site.gate.hold()
        site.wait("a")
        site.gate.leave()
        assert site.idle == 1
        assert site.told == []

    def test_an_open_gate_is_never_drained(self) -> None:
        """``on_idle`` is for a holding gate: an idle site that is open is no event."""
        site = Site()
        site.enter(1)
        site.gate.leave()
        site.gate.unreachable("no")
        assert site.idle == 0

    def test_opening_before_drained_cancels_the_drain(self) -> None:
        """A resume while requests are still in flight: no ``on_idle`` comes later."""
        site = Site()
        site.enter(1)
        site.gate.hold()
        site.gate.open()
        site.gate.leave()
        assert site.idle == 0

    def test_each_hold_is_drained_once(self) -> None:
        """A second hold reports its own drain."""
        site = Site()
        for drained in (1, 2):
            site.enter(1)
            site.gate.hold()
            site.gate.leave()
            assert site.idle == drained
            site.gate.open()

    def test_drained_within_a_release_is_told_once(self) -> None:
        """One who is released, holds the gate and finishes, all at once, is one drain."""
        site = Site()

        def hold_and_finish() -> None:
            site.gate.hold()
            site.gate.leave()

        site.gate.hold()
        site.wait("a", then=hold_and_finish)
        site.gate.open()
        assert site.idle == 1

    def test_holding_an_idle_gate_is_not_told(self) -> None:
        """Who holds when nothing is in flight sees that; ``on_idle`` is for a leave."""
        site = Site()

        def finish_and_hold() -> None:
            site.gate.leave()
            site.gate.hold()

        site.gate.hold()
        site.wait("a", then=finish_and_hold)
        site.gate.open()
        assert site.idle == 0

    def test_opening_from_on_idle(self) -> None:
        """Whoever is told that the gate is drained may open it there and then."""
        clock = StrictClock()
        told: list[Outcome] = []
        gate = Gate(clock, ramp=NO_RAMP, on_idle=lambda: gate.open())
        assert gate.enter()
        gate.hold()
        gate.wait(0).addCallback(told.append)
        gate.leave()
        assert told == [RELEASED]
        assert gate.in_flight == 1

    def test_hold_and_open_may_be_repeated(self) -> None:
        """Level, not edge: a second hold or open changes nothing."""
        site = Site(ramp=Ramp(start=1))
        site.gate.open()
        assert site.gate.window == UNBOUNDED
        site.gate.hold()
        site.wait("a")
        site.gate.hold()
        site.wait("b")
        site.gate.open()
        site.gate.open()
        assert site.names == ["a"]
        assert site.gate.in_flight == 1


class TestReleasing:
    def test_release_is_in_order_of_arrival(self) -> None:
        """Each of those held is released once, first come first."""
        site = Site()
        site.gate.hold()
        for name in range(100):
            site.wait(name)
            site.clock.advance(0.001)
        site.gate.open()
        assert site.told == [(name, RELEASED) for name in range(100)]
        assert (site.gate.in_flight, site.gate.waiting) == (100, 0)

    def test_who_is_released_is_in_flight_already(self) -> None:
        """Released and counted are one step too: a hold right then finds it in flight."""
        site = Site()
        seen: list[int] = []
        site.gate.hold()
        site.wait("a", then=lambda: seen.append(site.gate.in_flight))
        site.gate.open()
        assert seen == [1]

    def test_a_hold_during_the_release_stops_it(self) -> None:
        """From the hold on nobody passes, be it in the midst of a release."""
        site = Site()
        site.gate.hold()
        site.wait("a", then=site.gate.hold)
        site.wait("b")
        site.gate.open()
        assert site.names == ["a"]
        assert (site.gate.in_flight, site.gate.waiting) == (1, 1)
        site.gate.leave()
        assert (site.names, site.idle) == (["a"], 1)

    def test_a_newcomer_never_overtakes(self) -> None:
        """While anybody waits, who comes now waits behind, even if there were room."""
        site = Site(max_in_flight=1)
        entered: list[bool] = []

        def finish_and_come_anew() -> None:
            site.gate.leave()
            entered.append(site.gate.enter())

        site.gate.hold()
        site.wait("a", then=finish_and_come_anew)
        site.wait("b", then=finish_and_come_anew)
        site.gate.open()
        assert site.names == ["a", "b"]
        assert entered == [False, True]

    def test_who_finishes_at_once_makes_room_at_once(self) -> None:
        """Thousands that finish within the call that releases them need no deep stack."""
        site = Site(max_in_flight=1)
        site.gate.hold()
        for name in range(5000):
            site.wait(name, then=site.gate.leave)
        site.gate.open()
        assert site.names == list(range(5000))
        assert site.gate.in_flight == 0

    def test_who_comes_back_keeps_its_place(self) -> None:
        """A request that no server took is again before those who came after it."""
        site = Site(max_in_flight=1)
        site.gate.hold()
        site.wait("a")
        for name in "bc":
            site.clock.advance(1)
            site.wait(name)
        site.gate.open()
        assert site.names == ["a"]
        site.gate.unreachable("connection refused")
        site.gate.leave()
        site.wait("a again", since=0.0)
        site.gate.reachable()
        site.gate.leave()
        site.gate.leave()
        assert site.names == ["a", "a again", "b", "c"]

    def test_who_comes_back_into_room_is_released_at_once(self) -> None:
        """A wait at a gate that has room, as when another server is up, is no wait."""
        site = Site()
        site.wait("a", since=0.0)
        assert site.told == [("a", RELEASED)]
        assert site.gate.in_flight == 1
        assert site.clock.calls == []

    def test_the_longest_wait_is_of_this_hold(self) -> None:
        """It is the longest of those released, and a new hold begins anew."""
        site = Site()
        site.gate.hold()
        site.wait("a")
        site.clock.advance(2)
        site.wait("b")
        leaving = site.wait("c", since=-10.0)
        site.clock.advance(1)
        leaving.cancel()
        site.gate.open()
        assert site.gate.longest_wait == 3.0
        site.gate.hold()
        assert site.gate.longest_wait == 0.0
        site.clock.advance(5)
        site.wait("d")
        site.clock.advance(1)
        site.gate.hold()
        site.gate.open()
        assert site.gate.longest_wait == 1.0


class TestRamp:
    def held(self, count: int, ramp: Ramp, max_in_flight: int = 0) -> Site:
        """A site that holds ``count`` requests, named by number, and is being released."""
        site = Site(ramp=ramp, max_in_flight=max_in_flight)
        site.gate.hold()
        for name in range(count):
            site.wait(name)
        site.gate.open()
        return site

    def test_a_release_begins_small(self) -> None:
        """A cold backend gets ``start`` requests and no more."""
        site = self.held(1000, Ramp(start=8, double_every=0.5))
        assert site.names == list(range(8))
        assert site.gate.window == 8
        assert site.gate.state == "releasing"

    def test_it_grows_by_one_with_each_answer(self) -> None:
        """An answer makes room for itself and for one more."""
        site = self.held(1000, Ramp(start=8, double_every=0.5))
        for answers in range(1, 5):
            site.gate.leave()
            assert site.gate.window == 8 + answers
            assert site.gate.in_flight == 8 + answers
        assert site.names == list(range(16))

    def test_it_doubles_with_time(self) -> None:
        """A backend that is slow but not broken is not starved by its slowness."""
        site = self.held(1000, Ramp(start=8, double_every=0.5))
        for window in (16, 32, 64):
            site.clock.advance(0.5)
            assert (site.gate.window, site.gate.in_flight) == (window, window)
        assert site.names == list(range(64))

    def test_it_ends_at_max_in_flight(self) -> None:
        """The last doubling reaches the bound and not more; then no timer is left."""
        site = self.held(1000, Ramp(start=8, double_every=0.5), max_in_flight=20)
        site.clock.advance(0.5)
        assert site.gate.window == 16
        site.clock.advance(0.5)
        assert (site.gate.window, site.gate.in_flight) == (20, 20)
        site.gate.leave()
        assert (site.gate.window, site.gate.in_flight) == (20, 20)
        for waiting in range(site.gate.waiting + 20):
            assert site.gate.in_flight <= 20, waiting
            site.gate.leave()
        assert site.names == list(range(1000))
        assert site.clock.calls == []

    def test_answers_do_not_lead_beyond_max_in_flight(self) -> None:
        """A fast backend widens the ramp up to the bound, not over it."""
        site = self.held(1000, Ramp(start=8, double_every=0.5), max_in_flight=10)
        for _ in range(100):
            site.gate.leave()
        assert (site.gate.window, site.gate.in_flight) == (10, 10)

    def test_a_bound_lowered_meanwhile_holds_at_once(self) -> None:
        """``max_in_flight`` is the bound of a ramp that has begun, too."""
        site = self.held(1000, Ramp(start=8, double_every=0.5))
        site.gate.configure(HoldLimits(), ramp=Ramp(start=8), max_in_flight=6, budget=15)
        assert site.gate.window == 6
        for _ in range(3):
            site.gate.leave()
        assert (site.gate.window, site.gate.in_flight) == (6, 6)

    def test_it_ends_when_the_backend_keeps_up(self) -> None:
        """With nobody waiting and little in flight it is over, without doubling to the end."""
        site = self.held(8, Ramp(start=8, double_every=0.5))
        for _ in range(5):
            site.gate.leave()
        assert site.clock.calls != []
        site.clock.advance(0.5)
        assert site.gate.window == UNBOUNDED
        assert site.clock.calls == []

    def test_newcomers_are_bound_by_it_too(self) -> None:
        """Who comes during the ramp passes only where there is room."""
        site = self.held(2, Ramp(start=4, double_every=0.5))
        site.enter(2)
        assert not site.gate.enter()

    @pytest.mark.parametrize("start", [0, 20, 30])
    def test_there_may_be_none(self, start: int) -> None:
        """With ``start`` 0, or no smaller than the bound, all the room is there at once."""
        site = self.held(30, Ramp(start=start), max_in_flight=20)
        assert site.gate.window == 20
        assert site.names == list(range(20))

    def test_a_hold_ends_it(self) -> None:
        """No timer of the ramp opens a gate that holds again."""
        site = self.held(100, Ramp(start=8, double_every=0.5))
        site.gate.hold()
        for _ in range(8):
            site.gate.leave()
        site.clock.advance(30)
        assert site.gate.window == 0
        assert site.names == list(range(8))
        site.gate.open()
        assert site.names == list(range(16))

    def test_trouble_ends_it_and_begins_it_anew(self) -> None:
        """A backend that went away is cold when it comes back."""
        site = self.held(100, Ramp(start=8, double_every=0.5))
        site.clock.advance(0.5)
        site.gate.unreachable("connection refused")
        site.clock.advance(5)
        for _ in range(16):
            site.gate.leave()
        assert site.names == list(range(16))
        site.gate.reachable()
        assert site.gate.window == 8
        assert site.names == list(range(24))


class TestMaxInFlight:
    def test_more_wait_and_go_one_by_one(self) -> None:
        """At the bound a request waits, and each that leaves lets on the next."""
        site = Site(max_in_flight=2)
        site.enter(2)
        assert not site.gate.enter()
        site.wait("a")
        site.wait("b")
        site.gate.leave()
        assert site.names == ["a"]
        assert site.gate.in_flight == 2
        site.gate.leave()
        assert site.names == ["a", "b"]

    def test_a_departure_makes_no_room(self) -> None:
        """One who leaves the line was not in flight."""
        site = Site(max_in_flight=1)
        site.enter(1)
        leaving = site.wait("a")
        site.wait("b")
        leaving.cancel()
        assert site.names == []
        site.gate.leave()
        assert site.names == ["b"]

    def test_zero_is_any_number(self) -> None:
        """Without a bound there is always room."""
        site = Site(max_in_flight=0)
        site.enter(5000)
        assert site.gate.in_flight == 5000


class TestBounds:
    def test_by_count(self) -> None:
        """One more than ``max_requests`` is refused at once; the others stay."""
        site = Site(HoldLimits(max_requests=2))
        site.gate.hold()
        for name in "abc":
            site.wait(name)
        assert site.told == [("c", REFUSED)]
        assert (site.gate.waiting, site.gate.held, site.gate.refused) == (2, 2, 1)

    def test_by_bytes(self) -> None:
        """A request that does not fit is refused; a smaller one after it may fit."""
        site = Site(HoldLimits(max_bytes=100))
        site.gate.hold()
        site.wait("a", size=60)
        site.wait("b", size=41)
        site.wait("c", size=40)
        assert site.told == [("b", REFUSED)]
        assert (site.gate.waiting, site.gate.waiting_bytes) == (2, 100)

    def test_room_is_given_back(self) -> None:
        """Whoever leaves, passes or times out makes room for another."""
        site = Site(HoldLimits(max_requests=1, max_bytes=10, max_time=5))
        site.gate.hold()
        site.wait("left", size=10).cancel()
        site.wait("timed out", size=10)
        site.clock.advance(5)
        site.wait("passed", size=10)
        site.gate.open()
        site.gate.hold()
        site.wait("waits", size=10)
        assert site.told == [("left", GONE), ("timed out", TIMED_OUT), ("passed", RELEASED)]
        assert site.gate.waiting == 1

    def test_by_age(self) -> None:
        """After ``max_time`` a wait is over: timed out, and never forwarded."""
        site = Site(HoldLimits(max_time=60))
        site.gate.hold()
        site.wait("a")
        site.clock.advance(59)
        site.wait("b")
        assert site.told == []
        site.clock.advance(1)
        assert site.told == [("a", TIMED_OUT)]
        site.clock.advance(58)
        assert len(site.told) == 1
        site.clock.advance(1)
        assert site.told == [("a", TIMED_OUT), ("b", TIMED_OUT)]
        site.gate.open()
        assert site.names == []
        assert (site.gate.refused, site.gate.released, site.gate.in_flight) == (2, 0, 0)

    def test_by_age_at_the_bound_of_an_open_gate(self) -> None:
        """Waiting for room is bounded by age as waiting for a release is."""
        site = Site(HoldLimits(max_time=5), max_in_flight=1)
        site.enter(1)
        site.wait("a")
        site.clock.advance(5)
        assert site.told == [("a", TIMED_OUT)]

    def test_who_comes_back_is_as_old_as_before(self) -> None:
        """Coming back does not begin the wait anew, and may make it the next to expire."""
        site = Site(HoldLimits(max_time=60))
        site.gate.hold()
        site.clock.advance(50)
        site.wait("b")
        site.wait("a again", since=0.0)
        site.clock.advance(10)
        assert site.told == [("a again", TIMED_OUT)]

    def test_the_process_is_bounded(self) -> None:
        """All gates of a process together hold no more requests and bytes than they may."""
        clock = StrictClock()
        total = HeldTotal(max_requests=3, max_bytes=100)
        blog, shop = (Site(total=total, clock=clock) for _ in range(2))
        blog.gate.hold()
        shop.gate.hold()
        blog.wait("a", size=50)
        shop.wait("b", size=51)
        shop.wait("c", size=50)
        assert shop.told == [("b", REFUSED)]
        assert (total.requests, total.bytes) == (2, 100)
        leaving = shop.wait("d")
        blog.wait("e")
        assert blog.told == [("e", REFUSED)]
        leaving.cancel()
        blog.wait("f")
        assert len(blog.told) == 1
        assert (total.requests, total.bytes) == (3, 100)

    def test_totals_come_back_to_nothing(self) -> None:
        """However the waits end: released, timed out, refused or departed."""
        total = HeldTotal(max_requests=100, max_bytes=1000)
        site = Site(HoldLimits(max_requests=4, max_time=5), total=total)
        site.gate.hold()
        site.wait("a", size=1)
        site.clock.advance(5)
        site.wait("b", size=2)
        site.gate.open()
        site.gate.hold()
        site.wait("c", size=3).cancel()
        for name in "defgh":
            site.wait(name, size=4)
        assert (total.requests, total.bytes) == (4, 16)
        site.gate.refuse("over")
        assert (total.requests, total.bytes) == (0, 0)
        assert site.gate.waiting_bytes == 0


class TestDeparting:
    def test_who_leaves_is_never_forwarded(self) -> None:
        """A client that is gone is counted as departed, and its place is closed up."""
        site = Site()
        site.gate.hold()
        waits = [site.wait(name) for name in "abc"]
        waits[1].cancel()
        waits[1].cancel()
        site.gate.open()
        assert site.told == [("b", GONE), ("a", RELEASED), ("c", RELEASED)]
        gate = site.gate
        assert (gate.held, gate.released, gate.departed, gate.refused) == (3, 2, 1, 0)

    def test_leaving_after_release_is_not_departing(self) -> None:
        """Who has been released has to be told off by ``leave``, not by cancelling."""
        site = Site()
        site.gate.hold()
        wait = site.wait("a")
        site.gate.open()
        wait.cancel()
        assert (site.gate.departed, site.gate.in_flight) == (0, 1)

    def test_the_last_to_leave_stops_the_clock(self) -> None:
        """With nobody left there is nothing to expire."""
        site = Site()
        site.gate.hold()
        for wait in [site.wait(name) for name in "abc"]:
            assert len(site.clock.calls) == 1
            wait.cancel()
        assert site.clock.calls == []


class TestRefusing:
    def test_those_held_are_refused_and_those_who_come(self) -> None:
        """A hold that has outlived its deadline answers instead of keeping."""
        site = Site()
        site.gate.hold()
        site.wait("a")
        site.wait("b")
        site.gate.refuse("the pause has expired")
        site.wait("c")
        assert site.told == [("a", REFUSED), ("b", REFUSED), ("c", REFUSED)]
        assert not site.gate.enter()
        assert (site.gate.refused, site.gate.held, site.gate.waiting) == (3, 2, 0)
        assert site.gate.refusing == "the pause has expired"

    def test_refusing_is_holding(self) -> None:
        """Nothing passes, and what is in flight is drained as in a hold."""
        site = Site()
        site.enter(1)
        site.gate.refuse("over")
        assert site.gate.holding
        site.gate.leave()
        assert site.idle == 1

    def test_opening_ends_it(self) -> None:
        """A resume works in every state."""
        site = Site()
        site.gate.refuse("over")
        site.gate.open()
        assert site.gate.enter()
        assert site.gate.refusing == ""

    def test_holding_ends_it(self) -> None:
        """A new pause holds again instead of refusing."""
        site = Site()
        site.gate.refuse("over")
        site.gate.hold()
        site.wait("a")
        assert site.told == []

    def test_opening_from_within(self) -> None:
        """The first to be refused may open the gate: nobody is counted who is not there."""
        site = Site(max_in_flight=9)
        site.gate.hold()
        site.wait("a", then=site.gate.open)
        site.wait("b")
        site.gate.refuse("over")
        assert site.told == [("a", REFUSED), ("b", REFUSED)]
        assert (site.gate.in_flight, site.gate.waiting) == (0, 0)

    def test_closing(self) -> None:
        """A gate that is closed refuses all, and leaves no timer."""
        site = Site(ramp=Ramp(start=1))
        site.gate.hold()
        site.wait("a")
        site.wait("b")
        site.gate.open()
        site.gate.close()
        site.wait("c")
        assert site.told == [("a", RELEASED), ("b", REFUSED), ("c", REFUSED)]
        assert site.clock.calls == []


class TestTrouble:
    def test_requests_wait_for_a_server(self) -> None:
        """While no server can be reached nothing passes; then all go on, in order."""
        site = Site()
        site.gate.unreachable("connection refused")
        assert not site.gate.enter()
        site.wait("a")
        site.wait("b")
        site.clock.advance(10)
        site.gate.reachable()
        assert site.told == [("a", RELEASED), ("b", RELEASED)]
        assert site.gate.trouble == ""
        assert site.clock.calls == []

    def test_they_wait_no_longer_than_the_budget(self) -> None:
        """Each has the budget from its coming on."""
        site = Site(budget=15)
        site.gate.unreachable("connection refused")
        site.wait("a")
        site.clock.advance(5)
        site.wait("b")
        site.clock.advance(10)
        assert site.told == [("a", TIMED_OUT)]
        site.clock.advance(5)
        assert site.told == [("a", TIMED_OUT), ("b", TIMED_OUT)]

    def test_those_who_waited_before_have_it_from_the_trouble_on(self) -> None:
        """A request that waited for room is not charged for that time."""
        site = Site(max_in_flight=1, budget=15)
        site.enter(1)
        site.wait("a")
        site.clock.advance(20)
        site.gate.unreachable("connection refused")
        site.clock.advance(14)
        assert site.told == []
        site.clock.advance(1)
        assert site.told == [("a", TIMED_OUT)]

    def test_saying_it_again_gives_no_more_time(self) -> None:
        """Each refused connection is reported; the budget runs from the first."""
        site = Site(budget=15)
        site.gate.unreachable("connection refused")
        site.wait("a")
        for _ in range(3):
            site.clock.advance(5)
            site.gate.unreachable("connection refused again")
        assert site.told == [("a", TIMED_OUT)]
        assert site.gate.trouble == "connection refused again"

    def test_a_server_that_comes_and_goes_does_not_renew_the_budget_for_ever(self) -> None:
        """Each return is tried, but no wait outlasts max_time and the budget."""
        site = Site(HoldLimits(max_time=60), budget=15)
        site.gate.unreachable("refused")
        site.wait("a", since=0)
        for _ in range(8):
            site.clock.advance(9)
            site.gate.reachable()
            assert site.told.pop() == ("a", RELEASED)
            site.gate.unreachable("refused")
            site.gate.leave()
            site.wait("a", since=0)
        site.clock.advance(3)
        assert site.told == [("a", TIMED_OUT)]

    def test_the_budget_is_no_longer_than_max_time(self) -> None:
        """A site whose requests may wait 5 s does not keep them 15 s for a server."""
        site = Site(HoldLimits(max_time=5), budget=15)
        site.gate.unreachable("connection refused")
        site.wait("a")
        site.clock.advance(5)
        assert site.told == [("a", TIMED_OUT)]

    def test_a_hold_takes_the_budget_off(self) -> None:
        """While an operator holds, the hold's time counts and not the budget."""
        site = Site(HoldLimits(max_time=60), budget=15)
        site.gate.unreachable("connection refused")
        site.wait("a")
        site.gate.hold()
        site.clock.advance(59)
        assert site.told == []
        site.clock.advance(1)
        assert site.told == [("a", TIMED_OUT)]

    def test_a_server_that_comes_back_does_not_open_a_hold(self) -> None:
        """Reachable is not released."""
        site = Site()
        site.gate.unreachable("connection refused")
        site.gate.hold()
        site.wait("a")
        site.gate.reachable()
        assert not site.gate.enter()
        assert site.told == []
        site.gate.open()
        assert site.told == [("a", RELEASED)]

    def test_opening_does_not_reach_a_server(self) -> None:
        """Released is not reachable: they wait on until a server is there."""
        site = Site()
        site.gate.hold()
        site.gate.unreachable("connection refused")
        site.wait("a")
        site.gate.open()
        assert not site.gate.enter()
        assert site.told == []
        assert site.gate.state == "unreachable"
        site.gate.reachable()
        assert site.told == [("a", RELEASED)]

    def test_time_held_is_not_taken_off_the_budget(self) -> None:
        """A pause undone while the source restarts costs those it held a wait, not a 503."""
        site = Site(HoldLimits(max_time=60), budget=15)
        site.gate.hold()
        site.wait("a")
        site.gate.unreachable("connection refused")
        site.clock.advance(20)
        site.gate.open()
        site.clock.advance(14)
        assert site.told == []
        site.gate.reachable()
        assert site.told == [("a", RELEASED)]

    def test_trouble_without_a_reason_ends_too(self) -> None:
        """An error with nothing to say does not shut the gate for ever."""
        site = Site()
        site.gate.unreachable(str(ConnectionRefusedError()))
        site.wait("a")
        assert site.gate.state == "unreachable"
        site.gate.reachable()
        assert site.told == [("a", RELEASED)]

    def test_refusing_without_a_reason_is_refusing(self) -> None:
        """Nobody is kept by a gate that was told to refuse."""
        site = Site()
        site.gate.refuse("")
        site.wait("a")
        assert site.told == [("a", REFUSED)]

    def test_reachable_without_trouble_is_no_event(self) -> None:
        """A health check that succeeds again and again begins no ramp."""
        site = Site(ramp=Ramp(start=1))
        site.gate.reachable()
        assert site.gate.window == UNBOUNDED
        assert site.clock.calls == []


class TestReconfiguring:
    def configure(
        self,
        site: Site,
        limits: HoldLimits = HoldLimits(),
        *,
        ramp: Ramp = NO_RAMP,
        max_in_flight: int = 0,
        budget: float = 15.0,
    ) -> None:
        site.gate.configure(limits, ramp=ramp, max_in_flight=max_in_flight, budget=budget)

    def test_those_who_wait_stay(self) -> None:
        """Smaller bounds are for those who come; nobody is sent away by them."""
        site = Site()
        site.gate.hold()
        site.wait("a", size=10)
        site.wait("b", size=10)
        self.configure(site, HoldLimits(max_requests=2, max_bytes=30))
        site.wait("c")
        assert site.told == [("c", REFUSED)]
        site.gate.open()
        assert site.names == ["a", "b"]

    def test_a_smaller_max_in_flight(self) -> None:
        """What is in flight stays; nobody passes until there is room under the new bound."""
        site = Site(max_in_flight=4)
        site.enter(4)
        self.configure(site, max_in_flight=2)
        site.wait("a")
        for _ in range(2):
            site.gate.leave()
            assert site.names == []
        site.gate.leave()
        assert site.names == ["a"]
        assert site.gate.in_flight == 2

    def test_a_larger_max_in_flight(self) -> None:
        """Those who wait have the new room at once, and so has who comes after them."""
        site = Site(max_in_flight=1)
        site.enter(1)
        site.wait("a")
        site.wait("b")
        self.configure(site, max_in_flight=4)
        assert site.names == ["a", "b"]
        assert site.gate.enter()

    def test_it_opens_nothing(self) -> None:
        """A holding gate, and one without a server, stay as they are."""
        site = Site(max_in_flight=1)
        site.gate.hold()
        self.configure(site, max_in_flight=9)
        assert (site.gate.window, site.gate.enter()) == (0, False)
        site.gate.unreachable("connection refused")
        site.gate.open()
        self.configure(site, max_in_flight=9)
        assert (site.gate.window, site.gate.enter()) == (0, False)
        site.gate.reachable()
        assert site.gate.window == 9

    def test_a_ramp_goes_on(self) -> None:
        """A change of bounds does not throw a cold backend open."""
        site = Site(ramp=Ramp(start=2, double_every=0.5))
        site.gate.hold()
        site.gate.open()
        self.configure(site, ramp=Ramp(start=2, double_every=0.5), max_in_flight=100)
        assert site.gate.window == 2

    def test_a_shorter_max_time(self) -> None:
        """It counts for those who wait already, and for who comes behind them."""
        site = Site(HoldLimits(max_time=60))
        site.gate.hold()
        site.wait("a")
        site.clock.advance(10)
        site.wait("b")
        self.configure(site, HoldLimits(max_time=15))
        site.clock.advance(5)
        assert site.told == [("a", TIMED_OUT)]
        site.clock.advance(10)
        assert site.told == [("a", TIMED_OUT), ("b", TIMED_OUT)]

    def test_a_shorter_budget(self) -> None:
        """The budget of those who wait for a server changes with the configuration."""
        site = Site(budget=15)
        site.gate.unreachable("connection refused")
        site.wait("a")
        self.configure(site, budget=5)
        site.clock.advance(5)
        assert site.told == [("a", TIMED_OUT)]

    def test_a_longer_max_time(self) -> None:
        """Those who wait already have the longer time too."""
        site = Site(HoldLimits(max_time=5))
        site.gate.hold()
        site.wait("a")
        self.configure(site, HoldLimits(max_time=20))
        site.clock.advance(19)
        assert site.told == []
        site.clock.advance(1)
        assert site.told == [("a", TIMED_OUT)]


class TestTellingPeople:
    def test_every_state_has_its_word(self) -> None:
        """The word and the numbers are those of the moment."""
        site = Site(max_in_flight=2)
        gate = site.gate
        assert repr(gate) == "<Gate open: 0 in flight of 2, 0 held>"
        site.enter(2)
        assert repr(gate) == "<Gate open: 2 in flight of 2, 0 held>"
        site.wait("a")
        assert repr(gate) == "<Gate releasing: 2 in flight of 2, 1 held>"
        gate.hold()
        assert repr(gate) == "<Gate draining: 2 in flight of 0, 1 held>"
        gate.leave()
        gate.leave()
        assert repr(gate) == "<Gate holding: 0 in flight of 0, 1 held>"
        gate.unreachable("connection refused")
        assert gate.state == "holding"
        gate.open()
        assert repr(gate) == "<Gate unreachable: 0 in flight of 0, 1 held>"
        gate.refuse("over")
        assert repr(gate) == "<Gate refusing: 0 in flight of 0, 0 held>"
        gate.reachable()
        gate.open()
        assert repr(gate) == "<Gate open: 0 in flight of 2, 0 held>"


class TestTimers:
    def test_one_for_ten_thousand(self) -> None:
        """The age of all who wait is watched by one delayed call."""
        site = Site(HoldLimits(max_requests=10_000))
        site.gate.hold()
        for name in range(10_000):
            site.wait(name)
        assert len(site.clock.calls) == 1

    def test_an_idle_gate_keeps_none(self) -> None:
        """After a hold, a release and its ramp, and after trouble, no delayed call is left."""
        site = Site(HoldLimits(max_time=5), ramp=Ramp(start=2, double_every=0.5))
        site.gate.hold()
        for name in range(10):
            site.wait(name)
        site.gate.open()
        site.gate.unreachable("connection refused")
        site.gate.reachable()
        for _ in range(10):
            site.gate.leave()
        site.clock.pump([0.5] * 4)
        assert (site.gate.in_flight, site.gate.waiting) == (0, 0)
        assert site.clock.calls == []

    def test_waiting_again_when_timed_out(self) -> None:
        """One who is told that it has timed out and waits again is watched as well."""
        site = Site(HoldLimits(max_time=5))
        site.gate.hold()
        site.wait("a", then=lambda: site.wait("again"))
        site.wait("b")
        site.clock.advance(5)
        assert site.told == [("a", TIMED_OUT), ("b", TIMED_OUT)]
        site.clock.advance(5)
        assert site.told[2:] == [("again", TIMED_OUT)]
        assert site.clock.calls == []
