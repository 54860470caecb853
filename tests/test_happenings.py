"""Happenings: the three faults of a shared Deferred are gone, the pleasure is not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from awesomeproxy.happenings import Happenings, Once, Waiters
from awesomeproxy.model import Outcome

RELEASED, TIMED_OUT, REFUSED, GONE = (
    Outcome.RELEASED,
    Outcome.TIMED_OUT,
    Outcome.REFUSED,
    Outcome.GONE,
)


class Told:
    """What each waiter was told, in the order in which they were."""

    def __init__(self) -> None:
        self.log: list[tuple[object, Outcome]] = []

    def __call__(self, name: object, deferred: Deferred[Outcome]) -> Deferred[Outcome]:
        return deferred.addCallback(self._note, name)

    def _note(self, outcome: Outcome, name: object) -> Outcome:
        self.log.append((name, outcome))
        return outcome


def when_told(deferred: Deferred[Outcome], act: Callable[[], object]) -> Deferred[None]:
    """Have a waiter do something in the very moment in which it is told."""

    def told(_: Outcome) -> None:
        act()

    return deferred.addCallback(told)


def error_of(deferred: Deferred[Any]) -> type[BaseException]:
    """The type of the error with which ``deferred`` has failed."""
    caught: list[type[BaseException]] = []

    def failed(failure: Failure) -> None:
        assert failure.value is not None
        caught.append(type(failure.value))

    deferred.addErrback(failed)
    (error,) = caught
    return error


class StrictClock(Clock):
    """Refuses what the reactor refuses."""

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> IDelayedCall:
        assert delay >= 0
        return super().callLater(delay, callable, *args, **kw)


@pytest.fixture
def clock() -> Clock:
    return StrictClock()


@pytest.fixture
def on_mount(clock: Clock) -> Happenings[str]:
    return Happenings(clock)


@pytest.fixture
def told() -> Told:
    return Told()


class TestFaultsOfTheNaiveIdiom:
    """What ``defaultdict(Deferred)`` does, and what is done here instead."""

    def test_each_waiter_gets_its_own_outcome(self, on_mount: Happenings[str], told: Told) -> None:
        """What one waiter makes of its outcome is nothing to the next waiter."""
        naive: defaultdict[str, Deferred[Outcome | None]] = defaultdict(Deferred)
        seen: list[Outcome | None] = []
        for _ in range(2):
            naive["blog"].addCallback(seen.append)
        naive.pop("blog").callback(RELEASED)
        assert seen == [RELEASED, None]

        for name in "abc":
            told(name, on_mount.wait("blog")).addCallback(lambda _: None)
        on_mount.fire("blog")
        assert told.log == [("a", RELEASED), ("b", RELEASED), ("c", RELEASED)]

    def test_a_waiter_that_fails_is_alone(self, on_mount: Happenings[str], told: Told) -> None:
        """An error in what one waiter does next reaches no other waiter."""
        first = when_told(on_mount.wait("blog"), lambda: 1 // 0)
        told("second", on_mount.wait("blog"))
        on_mount.fire("blog")
        assert told.log == [("second", RELEASED)]
        assert error_of(first) is ZeroDivisionError

    def test_cancelling_one_leaves_the_others(self, on_mount: Happenings[str], told: Told) -> None:
        """Who leaves is told ``GONE``; the others wait on until it happens."""
        naive: defaultdict[str, Deferred[Outcome]] = defaultdict(Deferred)
        naive["blog"].cancel()
        assert error_of(naive["blog"]) is CancelledError

        waits = [told(name, on_mount.wait("blog")) for name in "abc"]
        waits[1].cancel()
        assert told.log == [("b", GONE)]
        assert on_mount.fire("blog") == 2
        assert told.log == [("b", GONE), ("a", RELEASED), ("c", RELEASED)]

    def test_waiting_leaves_no_key_behind(self, on_mount: Happenings[str], clock: Clock) -> None:
        """A key is there only while somebody waits for it, however the wait ends."""
        naive: defaultdict[str, Deferred[Outcome]] = defaultdict(Deferred)
        assert naive["stranger"] is not None
        assert list(naive) == ["stranger"]

        on_mount.wait("fired")
        on_mount.wait("timed out", timeout=5)
        left = on_mount.wait("left", timeout=50)
        assert len(on_mount) == 3
        on_mount.fire("fired")
        assert len(on_mount) == 2
        clock.advance(5)
        assert len(on_mount) == 1
        left.cancel()
        assert len(on_mount) == 0

    def test_firing_creates_no_key(self, on_mount: Happenings[str]) -> None:
        """What nobody waits for may happen at any time, and leaves no trace."""
        assert on_mount.fire("stranger") == 0
        assert len(on_mount) == 0

    def test_a_key_stays_while_another_waits(self, on_mount: Happenings[str], told: Told) -> None:
        """One waiter's leaving does not take the key from the others."""
        first = on_mount.wait("blog")
        told("second", on_mount.wait("blog"))
        first.cancel()
        assert len(on_mount) == 1
        on_mount.fire("blog")
        assert told.log == [("second", RELEASED)]


class TestHappenings:
    def test_firing_is_in_the_order_of_waiting(self, on_mount: Happenings[str], told: Told) -> None:
        """First come, first told."""
        for number in range(100):
            told(number, on_mount.wait("blog"))
        assert on_mount.fire("blog") == 100
        assert told.log == [(number, RELEASED) for number in range(100)]

    def test_firing_one_key_is_nothing_to_another(
        self, on_mount: Happenings[str], told: Told
    ) -> None:
        """Keys are apart."""
        told("blog", on_mount.wait("blog"))
        told("shop", on_mount.wait("shop"))
        on_mount.fire("shop", REFUSED)
        assert told.log == [("shop", REFUSED)]

    def test_it_may_happen_again(self, on_mount: Happenings[str], told: Told) -> None:
        """Who waits after it has happened waits for the next time."""
        on_mount.fire("blog")
        told("next", on_mount.wait("blog"))
        assert told.log == []
        on_mount.fire("blog")
        assert told.log == [("next", RELEASED)]

    def test_fire_all_ends_every_wait(self, on_mount: Happenings[str], told: Told) -> None:
        """A shutdown tells all waiters of all keys, and stops their clocks."""
        told("blog", on_mount.wait("blog", timeout=9))
        told("shop", on_mount.wait("shop"))
        on_mount.fire_all(REFUSED)
        assert told.log == [("blog", REFUSED), ("shop", REFUSED)]
        assert len(on_mount) == 0

    def test_a_wait_ends_at_its_timeout(
        self, on_mount: Happenings[str], clock: Clock, told: Told
    ) -> None:
        """The outcome is then ``TIMED_OUT``, of that waiter alone."""
        told("short", on_mount.wait("blog", timeout=5))
        told("long", on_mount.wait("blog", timeout=6))
        told("patient", on_mount.wait("blog"))
        clock.advance(4.9)
        assert told.log == []
        clock.advance(0.1)
        assert told.log == [("short", TIMED_OUT)]
        clock.advance(1)
        on_mount.fire("blog")
        assert told.log[1:] == [("long", TIMED_OUT), ("patient", RELEASED)]

    @pytest.mark.parametrize("timeout", [0, -0.5])
    def test_a_deadline_that_has_passed_ends_the_wait(
        self, on_mount: Happenings[str], clock: Clock, told: Told, timeout: float
    ) -> None:
        """Time left that is none, or less, is a timeout and not an error."""
        told("late", on_mount.wait("blog", timeout=timeout))
        clock.advance(0)
        assert told.log == [("late", TIMED_OUT)]
        assert len(on_mount) == 0

    @pytest.mark.parametrize("end", ["fire", "cancel"])
    def test_no_timer_outlives_its_wait(
        self, on_mount: Happenings[str], clock: Clock, told: Told, end: str
    ) -> None:
        """A wait that has ended in time is not told again, and keeps no delayed call."""
        wait = told("a", on_mount.wait("blog", timeout=5))
        if end == "fire":
            on_mount.fire("blog")
        else:
            wait.cancel()
        assert clock.getDelayedCalls() == []
        clock.advance(10)
        assert told.log == [("a", RELEASED if end == "fire" else GONE)]

    def test_cancelling_a_coroutine_leaves(self, on_mount: Happenings[str]) -> None:
        """Who awaits in a coroutine that is cancelled has left the line."""
        seen: list[Outcome] = []

        async def mount() -> None:
            seen.append(await on_mount.wait("blog", timeout=5))

        running = Deferred.fromCoroutine(mount())
        running.cancel()
        assert seen == [GONE]
        assert len(on_mount) == 0

    def test_all_at_once(self, on_mount: Happenings[str]) -> None:
        """Waits can be gathered like any Deferred."""
        seen: list[list[Outcome]] = []
        gatherResults([on_mount.wait(key) for key in "abc"]).addCallback(seen.append)
        for key in "cab":
            on_mount.fire(key)
        assert seen == [[RELEASED] * 3]


class TestReentrancy:
    """Whatever a waiter does when it is told meets a consistent table."""

    def test_waiting_again_waits_for_the_next_time(
        self, on_mount: Happenings[str], told: Told
    ) -> None:
        """A waiter that waits again at once is not told twice by one firing."""
        when_told(on_mount.wait("blog"), lambda: told("again", on_mount.wait("blog")))
        told("other", on_mount.wait("blog"))
        assert on_mount.fire("blog") == 2
        assert told.log == [("other", RELEASED)]
        assert on_mount.fire("blog") == 1
        assert told.log[1:] == [("again", RELEASED)]
        assert len(on_mount) == 0

    def test_firing_again_tells_nobody_twice(self, on_mount: Happenings[str], told: Told) -> None:
        """A waiter that fires the same key changes nothing for the others."""
        nested: list[int] = []
        when_told(on_mount.wait("blog"), lambda: nested.append(on_mount.fire("blog", REFUSED)))
        told("other", on_mount.wait("blog"))
        on_mount.fire("blog")
        assert nested == [0]
        assert told.log == [("other", RELEASED)]

    def test_cancelling_one_that_is_about_to_be_told(
        self, on_mount: Happenings[str], told: Told
    ) -> None:
        """A waiter may send the next one away: that one is told ``GONE``, once."""
        first = on_mount.wait("blog")
        second = told("second", on_mount.wait("blog"))
        when_told(first, second.cancel)
        told("third", on_mount.wait("blog"))
        on_mount.fire("blog")
        assert told.log == [("second", GONE), ("third", RELEASED)]

    def test_nobody_is_in_line_while_all_are_told(self) -> None:
        """A firing takes the waiters out first, and their count and bytes with them."""
        line = Waiters()
        counts: list[tuple[int, int, object]] = []
        for size in (1, 2, 3):
            when_told(
                line.wait(size=size),
                lambda: counts.append((len(line), line.bytes, line.first())),
            )
        line.fire(RELEASED)
        assert counts == [(0, 0, None)] * 3

    def test_who_comes_while_all_are_told_is_counted(self, told: Told) -> None:
        """The line is exact when one comes, and one leaves, in the midst of a firing."""
        line = Waiters()
        when_told(line.wait(size=1), lambda: told("new", line.wait(size=8)))
        second, third = line.wait(size=2), line.wait(size=4)
        when_told(second, third.cancel)
        assert line.fire(RELEASED) == 3
        assert (line.count, line.bytes) == (1, 8)
        line.fire_first(TIMED_OUT)
        assert told.log == [("new", TIMED_OUT)]
        assert (line.count, line.bytes) == (0, 0)


class TestWaiters:
    def test_the_earliest_is_first(self, told: Told) -> None:
        """The line is ordered by when a wait began, and by arrival where that is the same."""
        line = Waiters()
        for name, since in [("b", 2.0), ("c", 2.0), ("d", 3.0), ("a", 1.0)]:
            told(name, line.wait(since=since))
        line.fire_first(TIMED_OUT)
        line.fire(RELEASED)
        assert told.log == [("a", TIMED_OUT), ("b", RELEASED), ("c", RELEASED), ("d", RELEASED)]

    def test_count_and_bytes_are_of_those_in_line(self) -> None:
        """Each of the ways out takes a waiter's bytes with it."""
        line = Waiters()
        waits = [line.wait(since=float(n), size=10**n) for n in range(4)]
        assert (len(line), line.bytes) == (4, 1111)
        waits[1].cancel()
        assert (len(line), line.bytes) == (3, 1101)
        line.fire_first(RELEASED)
        assert (len(line), line.bytes) == (2, 1100)
        line.fire(RELEASED)
        assert (len(line), line.bytes) == (0, 0)

    def test_the_first_is_one_who_still_waits(self) -> None:
        """Those who have left are passed over."""
        line = Waiters()
        waits = [line.wait(since=float(n)) for n in range(3)]
        waits[0].cancel()
        waits[1].cancel()
        first = line.first()
        assert first is not None
        assert first.since == 2.0
        waits[2].cancel()
        assert line.first() is None

    def test_an_empty_line_may_be_fired(self) -> None:
        """Nobody is told, nothing is counted."""
        line = Waiters()
        line.fire_first(RELEASED)
        assert line.fire(RELEASED) == 0
        assert (line.count, line.bytes) == (0, 0)

    def test_10_000_departures_leave_no_places(self, told: Told) -> None:
        """Wherever in the line they stood, those who left take no room, and order is kept."""
        line = Waiters()
        staying = range(0, 10_100, 101)
        waits = {
            number: told(number, line.wait(since=float(number), size=1)) for number in range(10_100)
        }
        for number in sorted(waits.keys() - set(staying), key=lambda n: n * 7919 % 10_007):
            waits[number].cancel()
        assert len(told.log) == 10_000
        assert (line.count, line.bytes) == (100, 100)
        assert len(line._line) <= 2 * 100 + 1
        del told.log[:]
        assert line.fire(RELEASED) == 100
        assert told.log == [(number, RELEASED) for number in staying]

    def test_a_line_that_never_moves_does_not_grow(self) -> None:
        """One who stays at the head does not keep the places of those behind who left."""
        line = Waiters()
        line.wait()
        for number in range(10_000):
            line.wait(since=float(number)).cancel()
        assert len(line._line) <= 33


class TestOnce:
    def test_those_who_wait_are_told(self, told: Told) -> None:
        """All who waited are told, in order."""
        once = Once()
        told("a", once.wait())
        told("b", once.wait())
        assert not once.happened
        once.fire()
        assert once.happened
        assert told.log == [("a", RELEASED), ("b", RELEASED)]

    def test_late_waiters_are_told_at_once(self, told: Told) -> None:
        """Each of them gets the outcome, as its own."""
        once = Once()
        once.fire(REFUSED)
        told("late", once.wait()).addCallback(lambda _: None)
        told("later", once.wait())
        assert told.log == [("late", REFUSED), ("later", REFUSED)]

    def test_only_the_first_time_counts(self, told: Told) -> None:
        """What has happened does not happen differently afterwards."""
        once = Once()
        once.fire(REFUSED)
        once.fire(RELEASED)
        told("late", once.wait())
        assert told.log == [("late", REFUSED)]

    def test_cancelling_one_leaves_the_others(self, told: Told) -> None:
        """Here too a waiter owns its Deferred."""
        once = Once()
        first = told("first", once.wait())
        told("second", once.wait())
        first.cancel()
        once.fire()
        assert told.log == [("first", GONE), ("second", RELEASED)]

    def test_waiting_again_from_a_callback(self, told: Told) -> None:
        """One who is told and waits again is told again at once, and the others once."""
        once = Once()
        when_told(once.wait(), lambda: told("again", once.wait()))
        told("other", once.wait())
        once.fire()
        assert told.log == [("again", RELEASED), ("other", RELEASED)]
