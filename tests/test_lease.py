"""For how long a node serves without a word of the registry, by a clock of the test's own."""

from __future__ import annotations

import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from awesomeproxy.cluster.lease import SILENT, STEPS, Lease
from awesomeproxy.cluster.members import Members
from awesomeproxy.proxy.permit import Permit
from awesomeproxy.registry.clock import RegistryClock
from awesomeproxy.registry.interface import Unreachable

LEASE = 10.0
JOINED = 1000.0
WHY = "the registry is away"


class Holder:
    """A node with a lease, and a registry that answers or does not."""

    def __init__(self, loss: str) -> None:
        self.reactor = Clock()
        self.reactor.advance(JOINED)
        self.permit = Permit()
        self.did: list[str] = []
        self.withheld = ""
        self.answer: bool | None = True  # None: it cannot be reached
        self.asked: list[Deferred[bool]] = []  # what it has not answered
        self.slow = False
        kind = "hold" if loss == "hold" else "serve"
        self.why = WHY
        why, clock = (lambda: self.why), self.reactor.seconds
        self.lease = Lease(self, LEASE, kind, self._beat, why, clock)  # type: ignore[arg-type]
        self.lease.begin(JOINED)

    def _beat(self) -> Deferred[bool]:
        self.did.append("beat")
        answer: Deferred[bool] = Deferred()
        if self.slow:
            self.asked.append(answer)
        elif self.answer is None:
            return fail(Unreachable("it is away"))
        else:
            answer.callback(self.answer)
        return answer

    def withhold(self, why: str) -> None:
        if why != self.withheld:
            self.did.append("withhold" if why else "release")
            assert why in ("", self.why or SILENT)
        self.withheld = why

    def cut_all(self) -> int:
        self.did.append("cut")
        return 0

    def resume_serving(self) -> None:
        self.did.append("resume")

    def lapse(self) -> None:
        self.did.append("lapse")

    def go_on(self, leases: float) -> list[str]:
        """What it does, but for its beats, while time goes on step by step."""
        self.did.clear()
        self.reactor.pump([LEASE / STEPS] * round(leases * STEPS))
        return [each for each in self.did if each != "beat"]

    def freeze(self, leases: float) -> list[str]:
        """The same, after a time in which it could do nothing."""
        self.did.clear()
        self.reactor.rightNow += leases * LEASE
        self.reactor.advance(0)
        return [each for each in self.did if each != "beat"]

    @property
    def left(self) -> float:
        """For how many leases it is permitted to serve."""
        return (self.permit.until - self.reactor.seconds()) / LEASE


@pytest.fixture(params=["serve", "hold"])
def each_kind(request: pytest.FixtureRequest) -> Holder:
    """One that serves on when the registry is lost, and one that holds."""
    return Holder(request.param)


def test_a_node_beats_five_times_a_lease(each_kind: Holder) -> None:
    """And nothing else happens as long as it is answered."""
    assert each_kind.go_on(4.0) == []
    assert each_kind.did.count("beat") == 20
    assert each_kind.left > 0.5


def test_one_that_holds_holds_and_cuts_before_others_go_on_without_it() -> None:
    """What it stops to move lets nothing go on; and when the registry is back all of that ends."""
    holder = Holder("hold")
    holder.answer = None
    assert holder.go_on(0.55) == []
    assert holder.go_on(0.1) == ["withhold", "lapse"]
    assert holder.go_on(0.15) == []
    assert holder.permit.until == pytest.approx(JOINED + 0.9 * LEASE)
    assert holder.go_on(0.1) == ["cut"]
    assert holder.permit.until == inf  # for those that wait at its gates
    assert holder.go_on(3.0) == []
    holder.answer = True
    assert holder.go_on(0.25) == ["release"]
    assert 0.5 < holder.left <= 0.9


def test_one_that_holds_does_so_although_nobody_knows_why() -> None:
    """The connection is there, and nothing comes of it."""
    holder = Holder("hold")
    holder.slow, holder.why = True, ""
    assert holder.go_on(0.7) == ["withhold", "lapse"]
    assert holder.withheld == SILENT


def test_a_beat_that_fails_for_whatever_reason_is_told_of(logged_failures: Any) -> None:
    """A fault of ours, or an answer that is none, looks like a registry that is away else."""
    holder = Holder("serve")
    holder.lease._beat = lambda: fail(ValueError("what is this?"))
    holder.go_on(0.25)
    assert logged_failures.flush(ValueError)


def test_one_that_serves_serves_on() -> None:
    """It only stops what it moves, once."""
    holder = Holder("serve")
    holder.answer = None
    assert holder.go_on(0.55) == []
    assert holder.go_on(5.0) == ["lapse"]
    assert holder.left > 0.5
    holder.answer = True
    assert holder.go_on(0.25) == []
    holder.answer = None
    assert holder.go_on(1.0) == ["lapse"]


def test_a_lease_counts_from_when_a_beat_was_begun() -> None:
    """An answer that comes late says nothing of the time that it took."""
    holder = Holder("hold")
    holder.go_on(0.1)
    holder.slow = True
    holder.go_on(0.3)
    begun = JOINED + 0.2 * LEASE
    (answer,) = holder.asked  # the next is not begun before it is there
    answer.callback(True)
    assert holder.permit.until == pytest.approx(begun + 0.9 * LEASE)


def test_a_frozen_node_asks_before_it_serves(each_kind: Holder) -> None:
    """The registry counts it as there: it goes on, and nothing is lost."""
    each_kind.slow = True
    assert each_kind.freeze(2.0) == []
    assert each_kind.left < 0
    each_kind.asked[-1].callback(True)
    assert each_kind.did[-1] == "resume"
    assert "cut" not in each_kind.did
    assert each_kind.left > 0
    assert each_kind.lease.counters["lapses"] == 1


def test_an_answer_from_before_a_freeze_renews_nothing() -> None:
    """It is asked again."""
    holder = Holder("hold")
    holder.slow = True
    holder.go_on(0.2)
    holder.freeze(2.0)
    (old,) = holder.asked
    old.callback(True)
    assert holder.left < 0
    holder.go_on(0.05)
    assert len(holder.asked) == 2
    holder.asked[-1].callback(True)
    assert holder.left > 0


def test_the_hub_wakes_a_lease_that_has_not_looked_yet(each_kind: Holder) -> None:
    """Whichever of them runs first after a freeze, the registry is asked once."""
    each_kind.slow = True
    each_kind.reactor.rightNow += 2 * LEASE
    each_kind.did.clear()
    each_kind.permit.on_lapse()
    each_kind.permit.on_lapse()
    assert each_kind.did == ["beat"]
    each_kind.reactor.advance(0)
    assert each_kind.did == ["beat"]


def test_a_frozen_node_without_a_registry_goes_on_by_what_it_knows() -> None:
    """One that serves does; one that holds lets nothing on, and cuts."""
    serving, holding = Holder("serve"), Holder("hold")
    for holder in (serving, holding):
        holder.answer = None
        assert holder.freeze(2.0) == []
        assert holder.left < 0
    assert serving.go_on(0.25) == ["lapse", "resume"]
    assert holding.go_on(0.25) == ["withhold", "lapse", "cut", "resume"]
    assert serving.left > 0
    assert holding.permit.until == inf


def test_a_node_that_leaves_beats_no_more(each_kind: Holder) -> None:
    """And needs no permit for what it still has to do."""
    each_kind.lease.end()
    each_kind.go_on(2.0)
    assert each_kind.did == []
    assert each_kind.permit.until == inf


def record(loss: str = "hold", life: int = 1, state: str = "live") -> dict[str, object]:
    """What is written of a node."""
    return {
        "life": life,
        "state": state,
        "loss": loss,
        "lease": LEASE,
        "version": "1",
        "digest": "",
        "began": 0.0,
    }


def states(members: Members) -> dict[str, str]:
    """Of all of them."""
    return {each.name: each.state for each in members.all()}


def test_a_silent_node_is_late_and_then_gone() -> None:
    """Two and a half beats, and one and a quarter leases, since its number was seen first."""
    clock = Clock()
    members = Members(clock.seconds)
    assert members.take_records({"a": record(), "b": record()}) == ["a", "b"]
    assert members.take_beats({"a": 1, "b": 7}, clock.seconds()) == []
    for now, beat, state, news in (
        (0.5, 8, "live", []),
        (0.51, 9, "late", ["a"]),
        (1.25, 10, "late", []),
        (1.26, 11, "gone", ["a"]),
    ):
        clock.rightNow = now * LEASE
        assert members.take_beats({"a": 1, "b": beat}, clock.seconds()) == news
        assert states(members) == {"a": state, "b": "live"}
    assert members.take_beats({"a": 2, "b": 11}, clock.seconds()) == ["a"]
    assert states(members)["a"] == "live"


def test_a_look_that_was_begun_early_shows_nobody_as_gone() -> None:
    """Who asks was frozen meanwhile; what it is answered is old."""
    clock = Clock()
    members = Members(clock.seconds)
    members.take_records({"a": record()})
    members.take_beats({"a": 1}, 0.0)
    clock.rightNow = 2 * LEASE
    members.take_beats({"a": 1}, 0.4 * LEASE)
    assert states(members) == {"a": "live"}


def test_nobody_was_silent_while_the_registry_was_away() -> None:
    """A whole lease has to pass since it is back."""
    clock = Clock()
    members = Members(clock.seconds)
    members.take_records({"a": record()})
    members.take_beats({"a": 1}, 0.0)
    clock.rightNow = 9 * LEASE
    members.begin_anew()
    members.take_beats({"a": 1}, clock.seconds())
    assert states(members) == {"a": "live"}
    clock.rightNow += 1.3 * LEASE
    members.take_beats({"a": 1}, clock.seconds())
    assert states(members) == {"a": "gone"}


def test_a_new_life_is_another_member() -> None:
    """Its silence begins anew; and one that is none any more has none."""
    clock = Clock()
    members = Members(clock.seconds)
    members.take_records({"a": record()})
    members.take_beats({"a": 0}, 0.0)
    clock.rightNow = 2 * LEASE
    members.take_beats({"a": 0}, clock.seconds())
    assert states(members) == {"a": "gone"}
    assert members.take_records({"a": record(life=2)}) == ["a"]
    assert states(members) == {"a": "live"}
    assert members.take_records({"a": record(life=2, state="left")}) == ["a"]
    assert states(members) == {"a": "left"}
    assert members.take_records({}) == ["a"]
    assert members.all() == []


def test_the_time_of_the_registry_is_taken_from_its_quickest_answer() -> None:
    """One that took long says less; but after a while it says more than an old one."""
    clock = Clock()
    clock.rightNow = 50.0
    time = RegistryClock(clock.seconds)
    time.take(49.0, 50.0, 1000.0)
    assert time.now() == pytest.approx(1000.5)
    time.take(49.99, 50.0, 2000.0)
    assert time.now() == pytest.approx(2000.005)
    time.take(40.0, 50.0, 3000.0)
    assert time.now() == pytest.approx(2000.005)
    clock.rightNow += 1e6
    time.take(clock.rightNow - 1.0, clock.rightNow, 5000.0)
    assert time.now() == pytest.approx(5000.5)


SET_BACK = """
import sys, time
true, back = time.time, [0.0]
time.time = lambda: true() - back[0]
from twisted.internet import reactor
from awesomeproxy.tap import Options, makeService
options = Options()
options.parseOptions(["--config", sys.argv[1]])
makeService(options)
reactor.callLater(0.01, reactor.stop)
back[0] = 3600.0
reactor.run()
"""


def test_no_timer_of_a_daemon_waits_longer_when_the_clock_is_set_back(tmp_path: Path) -> None:
    """Or its beats would not be sent, and others would take it for gone."""
    file = tmp_path / "awesomeproxy.toml"
    file.write_text(f'[node]\nstate_dir = "{tmp_path}"\n[[listen]]\nendpoint = "tcp:0"\n')
    subprocess.run([sys.executable, "-c", SET_BACK, str(file)], check=True, timeout=60.0)
