"""The migrations of a node: planned, begun, and taken up where a dead daemon has left them.

While a migration runs, nothing else moves or pauses any of its members; who tries is told
which migration that is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from awesomeproxy.identity import identity
from awesomeproxy.migrate.engine import Migration
from awesomeproxy.migrate.hooks import Hooks
from awesomeproxy.migrate.host import Host as MigrationHost
from awesomeproxy.migrate.loading import Loading
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.migrate.planning import Unmovable, World, read
from awesomeproxy.migrate.recovery import recover
from awesomeproxy.migrate.waiting import LeftUnfinished, RolledBack
from awesomeproxy.model import Ledger, Placement, Reach, Settings, Site
from awesomeproxy.movers.interface import Estimate
from awesomeproxy.movers.shell import Shell
from awesomeproxy.poolers import Poolers
from awesomeproxy.registry.interface import Entry

log = Logger()


class Host(MigrationHost, Protocol):
    """What the migrations ask of their node."""

    settings: Settings
    sites: dict[str, Site]
    placements: dict[str, Placement]

    @property
    def poolers(self) -> Poolers:
        """Those in front of databases."""

    def moved(self, plan: Plan) -> None:
        """A migration has ended, one way or the other."""

    def emit(self, **event: Any) -> None:
        """Tell everybody who watches."""


class Moves:
    """Those that run, by the names of all their members."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._running: dict[str, Migration] = {}
        self.stuck: set[str] = set()  # what a dead daemon has left in pieces, for now
        self._shells: dict[Reach, Shell] = {}
        self._sockets = ""  # a directory for those of ssh

    def __repr__(self) -> str:
        return f"<Moves: {', '.join(map(repr, self._all())) or 'none'}>"

    def of(self, name: str) -> Migration | None:
        """The migration that has to do with ``name`` now."""
        return self._running.get(name)

    @property
    def count(self) -> int:
        """How many of them run."""
        return len(self._all())

    def _all(self) -> list[Migration]:
        return list(dict.fromkeys(self._running.values()))

    # Beginning

    def loader(self, plan: Plan) -> Callable[[int], Any] | None:
        """What makes the carriage of ``plan``; None if there is nothing to carry.

        :raise Unmovable: something is not configured that would have to be carried.
        """
        return self._loader(self.world(), plan)

    def _loader(self, world: World, plan: Plan) -> Callable[[int], Any] | None:
        scratch = Path(self._host.settings.state_dir) / "movers"
        scratch.mkdir(mode=0o700, exist_ok=True)
        # In a cluster another node may have to undo what this one has begun.
        named = self._host.cluster.identity or self._identity
        loading = Loading(self._host.reactor, world, self.shell, str(scratch), named)
        return loading.loader(plan)

    @cached_property
    def _identity(self) -> str:
        return identity(Path(self._host.settings.state_dir))

    def world(self, sites: Mapping[str, Site] | None = None) -> World:
        """All that a plan is made from; ``sites``: these instead of those that are served."""
        host = self._host
        served = host.sites if sites is None else sites
        return World(served, host.settings.databases, host.settings.filesystems, host.placements)

    def begin(
        self,
        plan: Plan,
        *,
        max_pause: float,
        force: bool,
        by: str,
        progress: Callable[..., None],
    ) -> Deferred[Ledger]:
        """Begin a migration; see :class:`.engine.Migration`.

        :return: as :meth:`Migration.run`.
        :raise Unmovable: as :meth:`loader`.
        """
        migration = Migration(
            self._host,
            plan,
            max_pause=max_pause,
            force=force,
            by=by,
            progress=progress,
            carriage=self.loader(plan),
            hooks=self._hooks(plan),
        )
        return self._run(migration)

    def _run(self, migration: Migration) -> Deferred[Ledger]:
        for member in migration.plan.members:
            self._running[member.name] = migration
        return Deferred.fromCoroutine(self._until_ended(migration))

    async def _until_ended(self, migration: Migration) -> Ledger:
        try:
            return await migration.run()
        finally:
            for member in migration.plan.members:
                del self._running[member.name]
            self._host.moved(migration.plan)

    async def foresee(self, plan: Plan) -> Estimate | None:
        """How much ``plan`` would carry; None if nothing.

        :raise MoverError: it cannot be done, and why.
        """
        loader = self.loader(plan)
        if loader is None:
            return None
        carriage = loader(0)
        await carriage.check()
        estimate: Estimate = await carriage.estimate()
        return estimate

    def _hooks(self, plan: Plan) -> Hooks | None:
        hooks = self._host.settings.hooks
        return Hooks(hooks, self.shell(self._host.settings.name), plan) if hooks else None

    # Recovery

    async def recover(self, sites: Mapping[str, Site]) -> list[Entry]:
        """Take what this node has left to its end, but for what carries something.

        :param sites: those that are going to be served.
        :return: what carries something, for :meth:`take_up`.
        :raise RegistryError: what has become of the rest could not be recorded.
        """
        left: list[Entry] = []
        me = (self._host.settings.name, "")
        ended = await recover(
            self._host.registry,
            lambda entry: entry.owner in me,
            lambda entry: self._carries(sites, entry),
            left.append,
        )
        for entry, state in ended:
            log.warn(
                "{site}: the migration from {source} to {target} was cut off: {state}",
                site=entry.site,
                source=entry.source,
                target=entry.target,
                state=state,
            )
        return left

    def _carries(self, sites: Mapping[str, Site], entry: Entry) -> bool:
        """Whether an entry of a dead daemon has more to it than placements."""
        try:
            plan = read(entry)
            pooled = any(
                self._host.poolers.has(member.name) for member in plan.members if member.is_database
            )
            return pooled or self._loader(self.world(sites), plan) is not None
        except Unmovable:  # then nobody knows what has to be undone
            return True

    def take_up(self, entries: Iterable[Entry]) -> None:
        """Take migrations of a dead daemon, which carry something, to their ends.

        Everything of them is held until then, unless it was in use all the time.
        """
        for entry in entries:
            plan = read(entry)
            try:
                loader = self.loader(plan)
            except Unmovable as problem:
                log.error(
                    "{site}: migration {id} was cut off in the step {step!r} and cannot be taken"
                    " to its end: {problem}; correct that and start the daemon again",
                    site=entry.site,
                    id=entry.id,
                    step=entry.step,
                    problem=problem,
                )
                self.stuck.update(member.name for member in plan.members)
                continue
            migration = Migration(
                self._host,
                plan,
                max_pause=0.0,
                force=False,
                by="recovery after a crash",
                progress=self._teller(plan),
                carriage=loader,
                hooks=self._hooks(plan),
                entry=entry,
            )
            self._run(migration).addCallbacks(self._taken_up, self._left, errbackArgs=(entry,))

    def _teller(self, plan: Plan) -> Callable[..., None]:
        site, more = plan.main.name, {"command": "recovery", "along": plan.companions}

        def tell(step: str, message: str, **numbers: Any) -> None:
            self._host.emit(event="step", site=site, step=step, message=message, **more, **numbers)

        return tell

    def _taken_up(self, ledger: Ledger) -> None:
        log.warn(
            "{site}: the migration from {source} to {target} was cut off: done",
            site=ledger.site,
            source=ledger.source,
            target=ledger.target,
        )

    def _left(self, failure: Failure, entry: Entry) -> None:
        if isinstance(failure.value, RolledBack | LeftUnfinished):
            log.warn(
                "{site}: the migration from {source} to {target} was cut off: {why}",
                site=entry.site,
                source=entry.source,
                target=entry.target,
                why=failure.getErrorMessage(),
            )
        else:
            log.failure("{site}: recovery has failed", failure, site=entry.site)

    # Nodes

    def shell(self, node: str) -> Shell:
        """What runs commands on a node; one that has no table is this one.

        So is the one that is called as this one is, whatever its table says: all nodes of a
        cluster may have the same file.
        """
        settings = self._host.settings
        reach = settings.nodes.get(node, Reach(node))
        if settings.cluster is not None and node == settings.name:
            reach = Reach(node)
        if reach not in self._shells:
            if reach.ssh and not self._sockets:
                self._sockets = _directory(self._identity)
            self._shells[reach] = Shell(self._host.reactor, reach, self._sockets)
        return self._shells[reach]

    def lapse(self, reason: str) -> None:
        """Roll back what can be rolled back: another node may take it over."""
        for migration in self._all():
            migration.stop(reason)

    async def stop(self, reason: str) -> None:
        """Roll back what runs and let go of all nodes."""
        running = self._all()
        for migration in running:
            migration.stop(reason, leave=True)
        for migration in running:
            await migration.ended.wait()
        for shell in self._shells.values():
            await shell.close()
        if self._sockets:
            shutil.rmtree(self._sockets, ignore_errors=True)


def _directory(called: str) -> str:
    """A directory for sockets: their paths have to be short, which that of the state is not.

    It is the same for the next daemon, so that one that is killed leaves nothing behind.
    """
    path = Path(tempfile.gettempdir()) / f"awesomeproxy-ssh-{called}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if path.lstat().st_uid == os.geteuid() and path.is_dir():
        return str(path)
    return tempfile.mkdtemp(prefix="awesomeproxy-ssh-")  # somebody else has taken it
