"""The gate against a model, whatever happens, in whatever order.

Hypothesis makes up runs: requests arrive, finish, leave the line, come back because
no server took them; the gate is held, opened, told to refuse, loses its backend and
finds it again, is reconfigured; time passes.  Some requests act in the very moment
in which they are told: they finish, come back, bring another, hold or open the gate.

:class:`Model` does the same in the plainest way, with a sorted list and no timers.
After each step both must have told the same requests the same things in the same
order, and agree in every number.  What the promises say is then checked once more
on the gate alone, by the ``@invariant`` methods.

All times are sums of powers of two, hence exact, and each step has a tick of its
own, so that no two deadlines of different steps coincide.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from awesomeproxy.gate import UNBOUNDED, Gate, HeldTotal
from awesomeproxy.model import HoldLimits, Outcome, Ramp

RELEASED, TIMED_OUT, REFUSED, GONE = (
    Outcome.RELEASED,
    Outcome.TIMED_OUT,
    Outcome.REFUSED,
    Outcome.GONE,
)
TICK = 1 / 1024
TOTAL = HeldTotal(max_requests=20, max_bytes=100)


@dataclass(frozen=True)
class Request:
    """What a request is called, how large it is, and what it does when it is told.

    Released, it may ``finish``, ``return`` (the first time), ``bring`` another or
    ``hold`` the gate, all at once; sent away, it may ``open`` the gate.
    """

    name: str
    size: int
    reaction: str

    @property
    def brought(self) -> Request:
        return Request(self.name + "'", self.size, "stay")


@dataclass(frozen=True)
class Bounds:
    """A configuration of the gate."""

    limits: HoldLimits
    ramp: Ramp
    max_in_flight: int
    budget: float


@dataclass
class Model:
    """What a gate does, in the plainest way."""

    bounds: Bounds
    now: float = 0.0
    holding: bool = False
    refusing: bool = False
    trouble_since: float | None = None
    window: int = 0
    grow_at: float | None = None
    in_flight: int = 0
    line: list[tuple[float, int, Request]] = field(default_factory=list)
    told: list[tuple[str, Outcome]] = field(default_factory=list)
    came: dict[str, float] = field(default_factory=dict)
    returned: set[str] = field(default_factory=set)
    waits: int = 0
    held: int = 0
    longest_wait: float = 0.0
    idle: int = 0
    releasing: bool = False

    def __post_init__(self) -> None:
        self.window = self.limit

    @property
    def limit(self) -> int:
        return self.bounds.max_in_flight or UNBOUNDED

    @property
    def bytes(self) -> int:
        return sum(request.size for _, _, request in self.line)

    def arrive(self, request: Request) -> None:
        self.came[request.name] = self.now
        if self.in_flight < self.window and not self.line:
            self.in_flight += 1
        else:
            self.wait(request)

    def wait(self, request: Request) -> None:
        limits, line = self.bounds.limits, self.line
        if (
            self.refusing
            or len(line) >= min(limits.max_requests, TOTAL.max_requests)
            or self.bytes + request.size > min(limits.max_bytes, TOTAL.max_bytes)
        ):
            self.tell(request, REFUSED)
            return
        self.waits += 1
        self.held += 1
        line.append((self.came[request.name], self.waits, request))
        line.sort(key=lambda entry: entry[:2])
        self.release()

    def finish(self) -> None:
        self.in_flight -= 1
        if self.grow_at is not None:
            self.window = max(self.window, min(self.window + 1, self.limit))
        if self.holding and not self.in_flight:
            self.idle += 1
        self.release()

    def depart(self, request: Request) -> None:
        self.line = [entry for entry in self.line if entry[2] != request]
        self.tell(request, GONE)

    def release(self) -> None:
        if self.releasing:
            return
        self.releasing = True
        while self.line and self.in_flight < self.window:
            since, _, request = self.line.pop(0)
            self.in_flight += 1
            self.longest_wait = max(self.longest_wait, self.now - since)
            self.tell(request, RELEASED)
        self.releasing = False

    def tell(self, request: Request, outcome: Outcome) -> None:
        self.told.append((request.name, outcome))
        match outcome, request.reaction:
            case Outcome.RELEASED, "finish":
                self.finish()
            case Outcome.RELEASED, "return" if request.name not in self.returned:
                self.returned.add(request.name)
                self.finish()
                self.wait(request)
            case Outcome.RELEASED, "bring" if request.brought.name not in self.came:
                self.arrive(request.brought)
            case Outcome.RELEASED, "hold":
                self.hold()
            case ((Outcome.REFUSED | Outcome.TIMED_OUT), "open"):
                self.open()

    def hold(self) -> None:
        if not self.holding:
            self.longest_wait = 0.0
        self.holding, self.refusing = True, False
        self.window, self.grow_at = 0, None

    def refuse(self) -> None:
        self.hold()
        self.refusing = True
        line, self.line = self.line, []
        for _, _, request in line:
            self.tell(request, REFUSED)

    def open(self) -> None:
        if self.holding:
            self.holding = self.refusing = False
            if self.trouble_since is not None:
                self.trouble_since = self.now
            self.reopen()

    def unreachable(self) -> None:
        if self.trouble_since is None:
            self.trouble_since = self.now
        self.window, self.grow_at = 0, None

    def reachable(self) -> None:
        if self.trouble_since is not None:
            self.trouble_since = None
            self.reopen()

    def reopen(self) -> None:
        if self.holding or self.trouble_since is not None:
            return
        start = self.bounds.ramp.start
        if 0 < start < self.limit:
            self.window, self.grow_at = start, self.now + self.bounds.ramp.double_every
        else:
            self.window = self.limit
        self.release()

    def reconfigure(self, bounds: Bounds) -> None:
        self.bounds = bounds
        if self.grow_at is not None:
            self.window = min(self.window, self.limit)
        elif self.window:
            self.window = self.limit
        self.release()

    def advance(self, until: float) -> None:
        while True:
            grows = until + 1 if self.grow_at is None else self.grow_at
            expires = max(self.now, self.expires(self.line[0][0])) if self.line else until + 1
            if min(grows, expires) > until:
                break
            self.now = min(grows, expires)
            if grows <= expires:
                self.grow()
            else:
                _, _, request = self.line.pop(0)
                self.tell(request, TIMED_OUT)
        self.now = until

    def expires(self, since: float) -> float:
        limits, budget = self.bounds.limits, self.bounds.budget
        longest = since + limits.max_time
        if self.trouble_since is None or self.holding:
            return longest
        began = max(since, self.trouble_since)
        return min(began + min(budget, limits.max_time), longest + budget)

    def grow(self) -> None:
        keeps_up = not self.line and self.in_flight < self.window // 2
        if keeps_up or 2 * self.window >= self.limit:
            self.window, self.grow_at = self.limit, None
        else:
            self.window, self.grow_at = 2 * self.window, self.now + self.bounds.ramp.double_every
        self.release()


any_bounds = st.builds(
    Bounds,
    st.builds(
        HoldLimits,
        max_requests=st.sampled_from([3, 100, 100]),
        max_bytes=st.sampled_from([30, 1000, 1000]),
        max_time=st.sampled_from([4.0, 10.0, 40.0]),
    ),
    st.builds(Ramp, start=st.integers(0, 3), double_every=st.just(0.25)),
    max_in_flight=st.sampled_from([0, 1, 2, 3, 8]),
    budget=st.sampled_from([2.0, 8.0]),
)
any_reaction = st.sampled_from(["stay"] * 6 + ["finish", "return", "bring", "hold"] + ["open"] * 2)
which = st.integers(0, 99)


class GateMachine(RuleBasedStateMachine):
    """Drives a gate and the model side by side."""

    @initialize(bounds=any_bounds)
    def build(self, bounds: Bounds) -> None:
        self.clock = Clock()
        self.total = HeldTotal(TOTAL.max_requests, TOTAL.max_bytes)
        self.model = Model(bounds)
        self.told: list[tuple[str, Outcome]] = []
        self.came: dict[str, float] = {}
        self.returned: set[str] = set()
        self.waits: Counter[str] = Counter()
        self.line: dict[str, tuple[Request, Deferred[None]]] = {}
        self.flying: list[Request] = []
        self.idle = 0
        self.gate = Gate(
            self.clock,
            bounds.limits,
            ramp=bounds.ramp,
            max_in_flight=bounds.max_in_flight,
            budget=bounds.budget,
            total=self.total,
            on_idle=self._on_idle,
        )

    # What a request does at the gate

    def _arrive(self, request: Request) -> None:
        self.came[request.name] = self.clock.seconds()
        if self.gate.enter():
            self._passed(request)
        else:
            self._wait(request)

    def _wait(self, request: Request, since: float | None = None) -> None:
        def told(outcome: Outcome) -> None:
            waiting.discard(request.name)
            self.line.pop(request.name, None)
            self._told(request, outcome)

        waiting = {request.name}
        self.waits[request.name] += 1
        deferred = self.gate.wait(request.size, since).addCallback(told)
        if waiting:
            self.line[request.name] = (request, deferred)

    def _passed(self, request: Request) -> None:
        assert not self.gate.holding, "passed a holding gate"
        assert not self.gate.trouble, "passed without a server"
        assert self.gate.in_flight <= self.gate.window, "more in flight than the window"
        mine = self.came[request.name]
        assert all(self.came[name] >= mine for name in self.line), "overtook one who waits"
        self.flying.append(request)
        assert self.gate.in_flight == len(self.flying), "released, but not counted"

    def _finish(self, request: Request) -> None:
        self.flying.remove(request)
        self.gate.leave()

    def _told(self, request: Request, outcome: Outcome) -> None:
        self.told.append((request.name, outcome))
        if outcome is RELEASED:
            self._passed(request)
            if request.reaction == "finish":
                self._finish(request)
            elif request.reaction == "return" and request.name not in self.returned:
                self.returned.add(request.name)
                self._finish(request)
                self._wait(request, self.came[request.name])
            elif request.reaction == "bring" and request.brought.name not in self.came:
                self._arrive(request.brought)
            elif request.reaction == "hold":
                self.gate.hold()
        elif outcome is not GONE and request.reaction == "open":
            self.gate.open()

    def _on_idle(self) -> None:
        assert self.gate.holding
        assert not self.gate.in_flight
        self.idle += 1

    def _advance(self, seconds: float) -> None:
        """Let time pass, one delayed call at a time, as in a reactor that is not late."""
        until = self.clock.seconds() + seconds
        while self.clock.calls and self.clock.calls[0].getTime() <= until:
            self.clock.advance(self.clock.calls[0].getTime() - self.clock.seconds())
        self.clock.advance(until - self.clock.seconds())
        self.model.advance(until)

    # What happens

    @rule(requests=st.lists(st.tuples(st.integers(0, 12), any_reaction), min_size=1, max_size=6))
    def arrive(self, requests: list[tuple[int, str]]) -> None:
        for size, reaction in requests:
            self._advance(TICK)
            request = Request(f"r{len(self.came)}", size, reaction)
            self.model.arrive(request)
            self._arrive(request)

    @rule(seconds=st.sampled_from([0.25, 0.5, 2.0, 5.0, 32.0]))
    def expire(self, seconds: float) -> None:
        self._advance(seconds)

    @precondition(lambda self: self.flying)
    @rule(some=st.lists(which, min_size=1, max_size=6))
    def finish(self, some: list[int]) -> None:
        for number in some:
            self._advance(TICK)
            if self.flying:
                self._finish(self.flying[number % len(self.flying)])
                self.model.finish()

    @precondition(lambda self: self.flying)
    @rule(number=which)
    def come_back(self, number: int) -> None:
        self._advance(TICK)
        if self.flying:
            request = self.flying[number % len(self.flying)]
            self._finish(request)
            self._wait(request, self.came[request.name])
            self.model.finish()
            self.model.wait(request)

    @precondition(lambda self: self.line)
    @rule(number=which)
    def depart(self, number: int) -> None:
        self._advance(TICK)
        if self.line:
            request, deferred = list(self.line.values())[number % len(self.line)]
            deferred.cancel()
            self.model.depart(request)

    @rule(refuse=st.sampled_from([False, False, True]))
    def hold(self, refuse: bool) -> None:
        self._advance(TICK)
        if refuse:
            self.gate.refuse("over")
            self.model.refuse()
        else:
            self.gate.hold()
            self.model.hold()

    @rule()
    def open(self) -> None:
        self._advance(TICK)
        self.gate.open()
        self.model.open()

    @rule()
    def unreachable(self) -> None:
        self._advance(TICK)
        self.gate.unreachable("connection refused")
        self.model.unreachable()

    @rule()
    def reachable(self) -> None:
        self._advance(TICK)
        self.gate.reachable()
        self.model.reachable()

    @rule(bounds=any_bounds)
    def reconfigure(self, bounds: Bounds) -> None:
        self._advance(TICK)
        self.gate.configure(
            bounds.limits,
            ramp=bounds.ramp,
            max_in_flight=bounds.max_in_flight,
            budget=bounds.budget,
        )
        self.model.reconfigure(bounds)

    # What holds after each step

    @invariant()
    def the_same_were_told_the_same_in_the_same_order(self) -> None:
        assert self.told == self.model.told

    @invariant()
    def numbers_agree(self) -> None:
        gate, model = self.gate, self.model
        outcomes = Counter(outcome for _, outcome in model.told)
        assert gate.in_flight == model.in_flight == len(self.flying)
        assert gate.waiting == len(model.line) == self.total.requests == len(self.line)
        assert gate.waiting_bytes == model.bytes == self.total.bytes
        assert gate.held == model.held
        assert gate.released == outcomes[RELEASED]
        assert gate.departed == outcomes[GONE]
        assert gate.refused == outcomes[REFUSED] + outcomes[TIMED_OUT]
        assert gate.longest_wait == model.longest_wait
        assert gate.window == model.window
        assert (gate.holding, bool(gate.refusing)) == (model.holding, model.refusing)
        assert bool(gate.trouble) == (model.trouble_since is not None)
        assert self.idle == model.idle

    @invariant()
    def each_wait_has_one_end(self) -> None:
        ends = Counter(name for name, _ in self.told)
        ends.update(self.line.keys())
        assert ends == self.waits

    @invariant()
    def the_window_is_shut_or_within_its_bound(self) -> None:
        shut = self.gate.holding or bool(self.gate.trouble)
        assert (self.gate.window == 0) == shut
        assert self.gate.window <= self.model.limit

    @invariant()
    def nobody_is_stranded(self) -> None:
        assert not (self.gate.window > self.gate.in_flight and self.gate.waiting)

    @invariant()
    def timers_are_for_those_who_wait_and_for_the_ramp(self) -> None:
        line, calls = self.model.line, self.clock.calls
        assert len(calls) == bool(line) + (self.model.grow_at is not None)
        if line:
            due = max(self.model.now, self.model.expires(line[0][0]))
            assert min(call.getTime() for call in calls) <= due

    def teardown(self) -> None:
        if not hasattr(self, "gate"):
            return
        while self.gate.waiting or self.flying:
            self.gate.close()
            for request in list(self.flying):
                self._finish(request)
        self.gate.close()
        assert Counter(name for name, _ in self.told) == self.waits
        assert (self.gate.in_flight, self.total.requests, self.total.bytes) == (0, 0, 0)
        assert self.clock.calls == []


def test_the_gate_agrees_with_its_model() -> None:
    """Whatever happens in whatever order, the gate does what the model does."""
    run_state_machine_as_test(
        GateMachine,
        settings=settings(
            max_examples=500,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
