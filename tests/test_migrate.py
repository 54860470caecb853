"""A migration as a transaction: every way in which a step can fail, on a scripted node.

The registry is a real one, in memory or in its file, whose methods can be made to fail; the
node does nothing but keep what it is told, and says what it is told to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from daemon_stage import Stage, a_stage, reactor, site, twisted_fixture, twisted_test
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater

from awesomeproxy.cluster.alone import Alone
from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.happenings import Happenings
from awesomeproxy.migrate.engine import Migration
from awesomeproxy.migrate.host import Counted, Poolers, Trials
from awesomeproxy.migrate.plan import Member, Plan
from awesomeproxy.migrate.recovery import recover
from awesomeproxy.migrate.waiting import RolledBack
from awesomeproxy.model import Counters, Ledger, Mode, Observed, Outcome, Placement
from awesomeproxy.registry.interface import Conflict, IRegistry, RegistryError
from awesomeproxy.registry.local import LocalRegistry
from awesomeproxy.registry.memory import MemoryRegistry

stage = twisted_fixture(a_stage)

PLAN = Plan(Member("blog", "one", "two"))
OPENED = Placement("blog", "one")
PAUSED = Placement("blog", "one", Mode.HOLDING, by="pause", expires=9e9, then="resume")


class Broken:
    """A registry whose methods fail when their time has come."""

    def __init__(self, registry: IRegistry) -> None:
        self._registry = registry
        self.broken: set[str] = set()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls.append(name)
            if name in self.broken:
                return fail(RegistryError("the disk is full"))
            return getattr(self._registry, name)(*args)

        return call


@dataclass
class Node:
    """A node that does what the test says."""

    registry: Any
    reactor: Any = field(default_factory=Clock)
    checks: list[Deferred[None]] = field(default_factory=list)
    in_flight: int = 0
    held: int = 0
    cuts: int = 0
    placed: list[Placement] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self._changes: Happenings[str] = Happenings(self.reactor)
        self.cluster: ICluster = Alone(self, "n1")

    def placement(self, name: str) -> Placement:
        return self.placed[-1]

    def adopt(self, placement: Placement) -> None:
        self.placed.append(placement)

    def observed(self, name: str) -> Observed:
        now = self.placed[-1]
        return Observed(
            name,
            now.generation,
            now.backend,
            now.mode,
            in_flight=self.in_flight,
            held=self.held,
            counters=self.counters,
        )

    def changed(self, name: str, timeout: float | None = None) -> Deferred[Outcome]:
        return self._changes.wait(name, timeout)

    def counted(self, names: Sequence[str]) -> Deferred[Counted]:
        seen = self.observed("blog")
        return succeed({"n1": {"blog": (seen.counters, seen.longest_wait)}})

    def leave(self) -> None:
        self.in_flight = 0
        self._changes.fire("blog")

    def usable(self, filesystem: str, node: str) -> Deferred[None]:
        return succeed(None)

    def mounted(self, filesystem: str, node: str) -> Deferred[None]:
        return succeed(None)

    @property
    def poolers(self) -> Poolers:
        return self

    def quieten(self, database: str) -> Deferred[None]:
        return succeed(None)

    def awaken(self, database: str) -> Deferred[None]:
        return succeed(None)

    @property
    def trials(self) -> Trials:
        return self

    def admit(self, plan: Plan) -> Deferred[None]:
        return succeed(None)

    def dismiss(self, plan: Plan) -> None:
        """Nobody was admitted."""

    def check(self, site: str, backend: str) -> Deferred[None]:
        return self.checks.pop(0) if self.checks else succeed(None)

    def cut(self, site: str) -> Deferred[int]:
        self.cuts += 1
        return succeed(0)


async def _node(placement: Placement = OPENED) -> Node:
    node = Node(Broken(MemoryRegistry()))
    node.placed.append(await node.registry.place(placement, 0))
    return node


def _migration(node: Node, progress: Callable[[str, str], None] = lambda *_: None) -> Migration:
    return Migration(node, PLAN, max_pause=10.0, force=False, by="migrate", progress=progress)


async def _entry(node: Node) -> tuple[str, str]:
    (entry,) = await node.registry.history("blog", 10)
    return entry.state, entry.reason


@twisted_test
async def test_a_migration_holds_moves_and_opens() -> None:
    """Each placement has a larger generation in the registry than the one before."""
    node = await _node()
    steps: list[str] = []
    ledger = await _migration(node, lambda step, message: steps.append(step)).run()
    assert (ledger.outcome, ledger.source, ledger.target) == ("done", "one", "two")
    assert steps == [*ledger.steps]
    (stored,) = (await node.registry.placements()).values()
    assert (stored.backend, stored.mode, stored.by) == ("two", Mode.OPEN, "migrate")
    assert stored == node.placed[-1]
    generations = [placement.generation for placement in node.placed]
    assert generations == sorted(generations)
    assert await _entry(node) == ("done", "")


@pytest.mark.parametrize("placement", [OPENED, PAUSED])
@pytest.mark.parametrize("method", ["begin", "step", "commit", "place", "finish"])
@twisted_test
async def test_a_registry_that_fails_leaves_the_site_whole(
    placement: Placement, method: str
) -> None:
    """Before the commit the site is back as it was; after it, it has moved, written down later."""
    node = await _node(placement)
    node.registry.broken = {method}
    before = node.placed[-1]
    try:
        outcome: Ledger | RolledBack = await _migration(node).run()
    except RegistryError:
        assert method == "begin"
        assert node.placed == [before]
        return
    except RolledBack as undone:
        outcome = undone
    now = node.placed[-1]
    assert now.mode is before.mode
    if method == "commit":
        assert isinstance(outcome, RolledBack)
        assert (now.backend, now.expires, now.then) == ("one", before.expires, before.then)
    else:
        assert isinstance(outcome, Ledger)
        assert (now.backend, now.expires, now.then) == ("two", before.expires, before.then)
    node.registry.broken = set()
    node.reactor.advance(2)
    assert (await _entry(node))[0] == ("rolled back" if method == "commit" else "done")
    (stored,) = (await node.registry.placements()).values()
    assert (stored.backend, stored.mode) == (now.backend, now.mode)


@twisted_test
async def test_a_disk_that_is_full_from_the_commit_on_keeps_nobody_waiting() -> None:
    """The site opens on the source at once, and the end is written when there is room."""
    node = await _node()
    node.registry.broken = {"commit", "place", "finish"}
    with pytest.raises(RolledBack, match="the disk is full"):
        await _migration(node).run()
    assert (node.placed[-1].backend, node.placed[-1].mode) == ("one", Mode.OPEN)
    node.reactor.advance(1)
    node.registry.broken = set()
    node.reactor.advance(1)
    assert (await _entry(node))[0] == "rolled back"
    (stored,) = (await node.registry.placements()).values()
    assert (stored.backend, stored.mode) == ("one", Mode.OPEN)


@pytest.mark.parametrize("placement", [OPENED, PAUSED])
@pytest.mark.parametrize(("check", "step"), [(0, "check"), (1, "verify")])
@twisted_test
async def test_a_target_that_is_not_well_leads_back(
    placement: Placement, check: int, step: str
) -> None:
    """Before the hold nothing has been begun; after it the source has the site again."""
    node = await _node(placement)
    ill: Deferred[None] = fail(ValueError("it is ill"))
    node.checks = [*[succeed(None)] * check, ill]
    with pytest.raises(RolledBack, match="it is ill") as failure:
        await _migration(node).run()
    assert failure.value.step == step
    last = node.placed[-1]
    assert (last.backend, last.mode, last.expires, last.then) == (
        *("one", placement.mode),
        *(placement.expires, placement.then),
    )


@twisted_test
async def test_a_migration_that_takes_too_long_leads_back() -> None:
    """The time is that from the hold on, whatever step it is in."""
    node = await _node()
    node.in_flight = 1
    running = Deferred.fromCoroutine(_migration(node).run())
    node.reactor.advance(9)
    assert not running.called
    node.reactor.advance(1)
    with pytest.raises(RolledBack, match="longer than 10 s"):
        await running
    assert not node.reactor.getDelayedCalls()


@twisted_test
async def test_a_migration_with_force_cuts_at_half_time_and_never_after_the_drain() -> None:
    """Those who try the target past the gate are not what it is to cut."""
    node = await _node()
    node.in_flight = 1
    verifying: Deferred[None] = Deferred()
    node.checks = [succeed(None), verifying]
    migration = Migration(node, PLAN, max_pause=10.0, force=True, by="x", progress=lambda *_: None)
    running = Deferred.fromCoroutine(migration.run())
    node.reactor.advance(4.9)
    assert node.cuts == 0
    node.reactor.advance(0.1)
    assert node.cuts == 1
    node.leave()
    node.reactor.advance(4.9)
    assert (migration.step, node.cuts) == ("verify", 1)
    verifying.callback(None)
    assert (await running).outcome == "done"


@twisted_test
async def test_a_stop_leads_back_until_the_commit_and_not_after_it() -> None:
    """From then on it only hurries."""
    node = await _node()
    node.in_flight = 1
    migration = _migration(node)
    running = Deferred.fromCoroutine(migration.run())
    assert migration.stop("enough")
    with pytest.raises(RolledBack, match="enough"):
        await running
    assert not migration.stop("again")

    node = await _node()
    node.held = 1  # and stays: nobody takes it
    migration = _migration(node)
    running = Deferred.fromCoroutine(migration.run())
    assert migration.step == "clean"
    assert not migration.stop("too late")
    node.reactor.advance(0.01)
    assert (await running).outcome == "done"


@twisted_test
async def test_a_fault_of_ours_leads_back_as_well(logged_failures: Any) -> None:
    """A site must not stay held because of a bug."""
    node = await _node()

    def stumble(step: str, message: str) -> None:
        if step == "verify":
            raise ZeroDivisionError("a bug")

    with pytest.raises(RolledBack, match=r"inside the daemon: ZeroDivisionError\('a bug'\)"):
        await _migration(node, stumble).run()
    assert (node.placed[-1].backend, node.placed[-1].mode) == ("one", Mode.OPEN)
    assert logged_failures.flush(ZeroDivisionError)


@twisted_test
async def test_a_change_by_somebody_else_is_left_standing() -> None:
    """The migration is rolled back around it."""
    node = await _node()
    node.in_flight = 1
    running = Deferred.fromCoroutine(_migration(node).run())
    hold = node.placed[-1]
    other = await node.registry.place(replace(hold, by="other", expires=7e9), hold.generation)
    node.adopt(other)
    node.leave()
    with pytest.raises(RolledBack, match="changed by 'other' meanwhile"):
        await running
    last = node.placed[-1]
    assert (last.mode, last.expires, last.backend) == (Mode.HOLDING, 7e9, "one")


@twisted_test
async def test_who_has_lost_the_race_has_begun_nothing() -> None:
    """A placement that changed during the check is a conflict that names the winner."""
    node = await _node()
    seen = node.placed[-1]
    await node.registry.place(replace(seen, by="other"), seen.generation)
    with pytest.raises(Conflict, match='changed by "other"'):
        await _migration(node).run()
    assert node.placed == [seen]
    assert await node.registry.history(None, 10) == []


# What a crash leaves, and what is made of it


async def _crashed(registry: IRegistry, before: Placement, committed: bool) -> Placement:
    """Leave a migration in the journal as a daemon does that dies on the way."""
    paused = before.mode is Mode.HOLDING
    seen = await registry.place(before, 0)
    hold = replace(seen, mode=Mode.HOLDING, by="migrate", then=seen.then if paused else "resume")
    entry = await registry.begin("blog", "one", "two", hold, seen.generation)
    await registry.step(entry.id, "commit" if committed else "drain")
    if committed:
        moved = replace(hold, backend="two")
        return (await registry.commit(entry.id, moved, entry.generation))[hold.site]
    return replace(hold, generation=entry.generation)


@pytest.mark.parametrize("before", [OPENED, PAUSED])
@pytest.mark.parametrize("committed", [False, True])
@twisted_test
async def test_recovery_goes_the_way_that_the_journal_says(
    before: Placement, committed: bool
) -> None:
    """Back before the commit, forward after it; what was paused stays so, until its end."""
    registry = MemoryRegistry()
    left = await _crashed(registry, before, committed)
    ((_, state),) = await recover(registry)
    assert state == ("done" if committed else "rolled back")
    (stored,) = (await registry.placements()).values()
    assert (stored.backend, stored.mode) == ("two" if committed else "one", before.mode)
    assert (stored.expires, stored.then) == (before.expires, before.then)
    assert stored.generation > left.generation
    assert await recover(registry) == []


@twisted_test
async def test_recovery_leaves_a_resume_standing() -> None:
    """A site that was opened before the crash is not held again, nor a held one opened."""
    for mode in Mode:
        registry = MemoryRegistry()
        left = await _crashed(registry, OPENED, committed=True)
        await registry.place(replace(left, mode=mode, by="resume"), left.generation)
        await recover(registry)
        (stored,) = (await registry.placements()).values()
        assert (stored.backend, stored.mode) == ("two", mode)


@pytest.mark.parametrize("committed", [False, True])
@twisted_test
async def test_a_daemon_ends_what_it_finds_in_the_journal(stage: Stage, committed: bool) -> None:
    """Before it serves a single request."""
    one, two = stage.two()
    daemon = stage.daemon()
    daemon.configure(site("blog", one, two))
    registry = await LocalRegistry.open(reactor, Path(daemon.directory) / "state/registry.sqlite")
    await _crashed(registry, OPENED, committed)
    await registry.close()
    await daemon.start()
    place = "two" if committed else "one"
    assert (await daemon.get("/")).text == f"{place} /"
    assert (await daemon.site())["by"] == "recovery after a crash"
    assert "migration from one to two was cut off" in daemon.log


@twisted_test
async def test_a_target_that_was_not_well_serves_as_soon_as_it_is(stage: Stage) -> None:
    """A service that only the migration starts was found wanting until then; nobody waits on."""
    one, two = stage.two()
    two.healthy = False
    daemon = stage.daemon()
    often = '"100ms", rise = 1'
    tables = site("blog", one, two, health=True)
    assert tables.count(often) == 2
    daemon.configure(tables.replace(often, '"3s", rise = 9'))
    await daemon.start()
    while (await daemon.site())["backends"]["two"][two.url] == "up":
        await deferLater(reactor, 0.05)
    two.healthy = True
    await daemon.ask("migrate", site="blog", to="two")
    assert (await daemon.get("/")).text == "two /"
