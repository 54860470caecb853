"""Emptying a node: all that stands on it is moved away, one migration after another.

Or a bounded number at once.  The first that fails ends it: what runs then comes to its end,
and none is begun any more, since what is wrong with one is often wrong with the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from awesomeproxy.migrate import planning
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.migrate.planning import Unmovable, World
from awesomeproxy.model import DATABASE, Ledger

log = Logger()

Migrate = Callable[[Plan], Awaitable[Ledger]]


class Undecided(Exception):
    """It is not known where all of it should go; ``problems`` has a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Failure:
    """The migration that was the first to fail, and why."""

    name: str
    reason: str


@dataclass
class Draining:
    """What is to be moved from a node, and how far that is."""

    plans: list[Plan]
    moved: list[tuple[Plan, Ledger]] = field(default_factory=list)
    failed: Failure | None = None

    @property
    def left(self) -> list[str]:
        """What is on the node still."""
        gone = {member.name for plan, _ in self.moved for member in plan.moving}
        return [name for plan in self.plans for name in _movers(plan) if name not in gone]

    async def run(
        self,
        migrate: Migrate,
        at_once: int = 1,
        moved: Callable[[Plan, Ledger], None] = lambda plan, ledger: None,
    ) -> None:
        """Move everything; at the end ``failed`` says whether that was possible.

        :param migrate: carries out one plan; what it raises is why that has failed.
        :param at_once: how many migrations may run at a time.
        :param moved: is told of each that is done.
        """
        waiting = deque(self.plans)

        async def work() -> None:
            while waiting and self.failed is None:
                plan = waiting.popleft()
                try:
                    ledger = await migrate(plan)
                except Exception as problem:  # whatever it is, the others come to their ends
                    log.warn("{site}: {problem}", site=plan.main.name, problem=problem)
                    if self.failed is None:
                        self.failed = Failure(plan.main.name, str(problem))
                else:
                    self.moved.append((plan, ledger))
                    moved(plan, ledger)

        await gatherResults([Deferred.fromCoroutine(work()) for _ in range(at_once)])


def plan(world: World, node: str, to: str = "") -> Draining:
    """What has to be moved so that nothing that is served stands on ``node``.

    Each site and database goes to its only backend on another node, or to the one on ``to``.
    Those of one filesystem go together.

    :raise Undecided: for some there is no such backend, or more than one.
    """
    plans: list[Plan] = []
    problems: list[str] = []
    gone: set[str] = set()
    for name in _standing(world, node):
        if name in gone:
            continue
        try:
            made = planning.make(world, name, _target(world, name, node, to), {})
        except Unmovable as problem:
            problems.append(f"{name}: {problem}")
            continue
        plans.append(made)
        gone.update(member.name for member in made.moving)
    if problems:
        raise Undecided(problems)
    return Draining(plans)


def _standing(world: World, node: str) -> Iterator[str]:
    """The sites, then the databases, whose present backends stand on a node."""
    for name in (*sorted(world.sites), *(DATABASE + name for name in sorted(world.databases))):
        backend = world.definition(name).backends.get(world.placements[name].backend)
        if backend is not None and backend.node == node:
            yield name


def _target(world: World, name: str, node: str, to: str) -> str:
    backends = world.definition(name).backends.values()
    if to:
        there = [backend.name for backend in backends if backend.node == to]
        where = f"on {to}"
    else:
        there = [backend.name for backend in backends if backend.node not in ("", node)]
        where = "on another node"
    if not there:
        raise Unmovable(f"it has no backend {where}; add one, or remove it")
    if len(there) > 1:
        way_out = "migrate it by hand first" if to else "name a node with --to"
        raise Unmovable(f"it has the backends {', '.join(there)} {where}; {way_out}")
    (target,) = there
    return str(target)


def _movers(plan: Plan) -> list[str]:
    """What of a plan is served from somewhere else afterwards."""
    return [member.name for member in plan.moving if member.has_gate]
