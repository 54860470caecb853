"""A node, movers and services that do what a test says, and write down what they are told.

What happens is one transcript, ``said``: steps of movers and services, and each change of
what may be used where, in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock

from awesomeproxy.cluster.alone import Alone
from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.happenings import Happenings
from awesomeproxy.migrate.carriage import Carriage
from awesomeproxy.migrate.engine import Migration
from awesomeproxy.migrate.host import Counted, Poolers, Trials
from awesomeproxy.migrate.plan import Member, Plan
from awesomeproxy.model import Observed, Outcome, Placement
from awesomeproxy.movers.interface import Estimate
from awesomeproxy.movers.warrant import Warrant
from awesomeproxy.registry.interface import Entry, IRegistry, RegistryError
from awesomeproxy.registry.memory import MemoryRegistry

DATA = "filesystem:data"
PLAN = Plan(Member("blog", "one", "two"), (Member(DATA, "n1", "n2"),))
MAX_PAUSE = 10.0


class Broken:
    """A registry whose methods fail when their time has come."""

    def __init__(self, registry: IRegistry) -> None:
        self._registry = registry
        self.broken: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            if name in self.broken:
                return fail(RegistryError("the disk is full"))
            return getattr(self._registry, name)(*args)

        return call


@dataclass
class Script:
    """What becomes of each step: of all who take part in it, or (``start blog@two``) of one."""

    said: list[str] = field(default_factory=list)
    faults: dict[str, list[Exception]] = field(default_factory=dict)  # one after the other
    hangs: set[str] = field(default_factory=set)  # until it is cancelled ...
    ending: Deferred[None] | None = None  # ... and what it has started has ended
    sizes: list[int] = field(default_factory=list)  # that estimates say; the last one stays
    takes: float = 0.0  # seconds of each round
    reactor: Clock = field(default_factory=Clock)

    async def do(self, step: str, who: str) -> None:
        line = f"{step} {who}"
        self.said.append(line)
        if faults := self.faults.get(step) or self.faults.get(line):
            raise faults.pop(0)
        if {step, line} & self.hangs:
            try:
                await Deferred()
            except CancelledError:
                self.said.append(f"end {line}")
                if self.ending is not None:
                    await self.ending
                raise

    def steps(self) -> list[str]:
        """What has been said but for the estimates."""
        return [line for line in self.said if not line.startswith("estimate")]


class Mover:
    """Carries one thing, as the script says."""

    def __init__(self, name: str, script: Script) -> None:
        self._name = name
        self._script = script

    async def estimate(self) -> Estimate:
        await self._script.do("estimate", self._name)
        sizes = self._script.sizes
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0] if sizes else 0
        return Estimate(1000, size)

    async def presync(self, progress: Callable[[int], None]) -> int:
        await self._script.do("presync", self._name)
        self._script.reactor.advance(self._script.takes)
        progress(100)
        return 100

    async def sync(self, progress: Callable[[int], None]) -> int:
        await self._script.do("sync", self._name)
        progress(10)
        return 10

    def __getattr__(self, step: str) -> Any:
        if step not in {
            *("check", "fence", "unfence", "attach", "detach", "verify", "clean", "abandon")
        }:
            raise AttributeError(step)
        return lambda: self._script.do(step, self._name)


class Service:
    """Is started and stopped, as the script says."""

    def __init__(self, name: str, script: Script) -> None:
        self._name = name
        self._script = script

    async def start(self) -> None:
        await self._script.do("start", self._name)

    async def stop(self) -> None:
        await self._script.do("stop", self._name)


class House:
    """The node."""

    def __init__(self, script: Script) -> None:
        self.reactor: Any = script.reactor
        self.registry: Any = Broken(MemoryRegistry())
        self.script = script
        self.placements: dict[str, Placement] = {}
        self.unserved: set[str] = set()
        self.busy: set[str] = set()  # has something in flight
        self.ill: set[str] = set()  # backends
        self.gone: set[str] = set()  # nodes on which nothing is mounted
        self.admitted: list[str] = []
        self._changes: Happenings[str] = Happenings(script.reactor)
        self.cluster: ICluster = Alone(self, "n1")

    async def place(self, *placements: Placement) -> None:
        for each in placements:
            self.placements[each.site] = await self.registry.place(each, 0)

    def placement(self, name: str) -> Placement:
        return self.placements[name]

    def adopt(self, placement: Placement) -> None:
        known = self.placements[placement.site]
        if known.generation > placement.generation:
            return
        self.placements[placement.site] = placement
        if (known.mode, known.backend) != (placement.mode, placement.backend):
            self.script.said.append(f"{placement.site} {placement.mode} {placement.backend}")

    def observed(self, name: str) -> Observed:
        if name in self.unserved:
            raise KeyError(name)
        now = self.placements[name]
        return Observed(
            name, now.generation, now.backend, now.mode, in_flight=int(name in self.busy)
        )

    def changed(self, name: str, timeout: float | None = None) -> Deferred[Outcome]:
        return self._changes.wait(name, timeout)

    def counted(self, names: Sequence[str]) -> Deferred[Counted]:
        served = [self.observed(name) for name in names if name not in self.unserved]
        return succeed({"n1": {each.site: (each.counters, each.longest_wait) for each in served}})

    def leave(self, name: str) -> None:
        """What was in flight has ended."""
        self.busy.discard(name)
        self._changes.fire(name)

    def check(self, site: str, backend: str) -> Deferred[None]:
        return fail(ValueError(f"{backend} is ill")) if backend in self.ill else succeed(None)

    def mounted(self, filesystem: str, node: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self.script.do("mount", node))

    def usable(self, filesystem: str, node: str) -> Deferred[None]:
        return fail(ValueError(f"{node} has lost it")) if node in self.gone else succeed(None)

    @property
    def poolers(self) -> Poolers:
        return self

    def quieten(self, database: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self.script.do("quieten", database))

    def awaken(self, database: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self.script.do("awaken", database))

    @property
    def trials(self) -> Trials:
        return self

    def admit(self, plan: Plan) -> Deferred[None]:
        self.admitted = [member.name for member in plan.members if member.is_database]
        return succeed(None)

    def dismiss(self, plan: Plan) -> None:
        self.admitted = []

    def cut(self, site: str) -> Deferred[int]:
        return succeed(0)

    def is_at(self, *names: str) -> list[str]:
        """Where each is, and whether it is held."""
        return [f"{self.placements[n].mode} {self.placements[n].backend}" for n in names]

    async def entry(self) -> Entry:
        """The newest in the journal."""
        (entry,) = await self.registry.history(None, 1)
        found: Entry = entry
        return found


@dataclass
class Told:
    """What a migration has told of its progress."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    at: dict[str, Callable[[], object]] = field(default_factory=dict)  # done when a step begins

    def __call__(self, step: str, message: str, **more: Any) -> None:
        self.lines.append((step, message))
        if step in self.at:
            self.at.pop(step)()

    @property
    def text(self) -> str:
        return "\n".join(message for _, message in self.lines)


async def a_house(*more: Placement) -> House:
    """The site ``blog`` on ``one``, its filesystem on ``n1``, and what else there is."""
    house = House(Script())
    await house.place(Placement("blog", "one"), Placement(DATA, "n1"), *more)
    return house


def migration(
    house: House,
    told: Told | None = None,
    *,
    plan: Plan = PLAN,
    entry: Entry | None = None,
    movers: Sequence[str] = ("data",),
    max_pause: float = MAX_PAUSE,
) -> Migration:
    """A migration of the blog with a mover and a service on either side."""

    def load(number: int) -> Carriage:
        leaving: Any = [Service("blog@one", house.script)]
        arriving: Any = [Service("blog@two", house.script)]
        return Carriage(
            [Mover(name, house.script) for name in movers], leaving, arriving, Warrant("test")
        )

    return Migration(
        house,
        plan,
        max_pause=max_pause,
        force=False,
        by="migrate",
        progress=told or Told(),
        carriage=load,
        entry=entry,
    )
