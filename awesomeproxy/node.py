"""One node: the registry says what should be, the workers are told, and report what is.

This is where the parts meet.  A placement changes in one way only: the registry is
asked, with the generation that was seen; what it answers is *adopted*, which means that
the data plane is told and everybody who watches hears of it.  So nothing takes effect
that is not written down, and whoever loses a race is told who has won it.
"""

from __future__ import annotations

import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from awesomeproxy import joining
from awesomeproxy.acme.keeper import Keeper
from awesomeproxy.answering import Answering
from awesomeproxy.certifying import Certifying
from awesomeproxy.checking import unverified
from awesomeproxy.cluster.alone import Alone
from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.composing import compose, misplaced
from awesomeproxy.files import RESERVED, affordable, open_files
from awesomeproxy.happenings import Happenings
from awesomeproxy.membership import Enter, Membership
from awesomeproxy.metrics.listening import Listening
from awesomeproxy.migrate.host import Counted
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.migrating import Migrating
from awesomeproxy.model import (
    DATABASE,
    FILESYSTEM,
    Database,
    Desired,
    DesiredDatabase,
    Filesystem,
    Mode,
    Observed,
    Outcome,
    Placement,
    Settings,
    Site,
)
from awesomeproxy.movers.shell import Shell
from awesomeproxy.moving import Moves
from awesomeproxy.pausing import Pauses
from awesomeproxy.poolers import Poolers
from awesomeproxy.proxy.plane import Plane
from awesomeproxy.proxy.wellness import check_backend
from awesomeproxy.registry.interface import Conflict, Entry, IRegistry
from awesomeproxy.residence import MOUNTED_ON, Residence
from awesomeproxy.trials import Trials
from awesomeproxy.watching import Watching

log = Logger()


class Stopping(Exception):
    """The daemon is stopping."""

    def __init__(self) -> None:
        super().__init__("the daemon is stopping; ask the one that is started next")


class Node:
    """The daemon: registry, data plane, and what goes on between them."""

    registry: IRegistry
    plane: Plane
    keeper: Keeper
    certifying: Certifying

    def __init__(
        self, reactor: Any, path: str, settings: Settings, enter: Enter = joining.enter
    ) -> None:
        """
        :param path: the configuration file, to be read again at a reload.
        :param settings: what it says now.
        :param enter: finds the cluster, if it says that there is one.
        """
        self.reactor = reactor
        self.path = path
        self.settings = settings
        self.sites: dict[str, Site] = {}
        self.databases: dict[str, Database] = {}
        self.added: MutableMapping[str, dict[str, Any]] = {}  # tables of what was added by command
        self.placements: dict[str, Placement] = {}
        self.began = time.time()
        self.answering = Answering(self)
        self.misfits: dict[str, str] = {}  # sites whose definitions do not fit here, and why
        self._on_change: Happenings[str] = Happenings(reactor)
        self.watching = Watching(lambda: [self.observed(name) for name in self.served()])
        self._control: IListeningPort | None = None
        self._definitions = DeferredLock()
        self.cluster: ICluster = Alone(self, settings.name)
        self.answering.begin()
        self.pauses = Pauses(self)
        self.poolers = Poolers(self)
        self.moves = Moves(self)
        self.membership = Membership(self, enter)
        self.migrating = Migrating(self)
        self.trials = Trials(self)
        self.residence = Residence(self)
        self.metrics = Listening(reactor, self._families)
        self.stopping = False

    def __repr__(self) -> str:
        return f"<Node {self.settings.name}: {len(self.sites)} sites>"

    # Life

    async def start(self, listen_control: Callable[[str], Deferred[IListeningPort]]) -> None:
        """Take up where the registry says things were left, then serve.

        :param listen_control: opens the control socket at a path.
        :raise RegistryError, OSError, CannotListenError, ControlSocketError, ConfigError:
            it cannot be started; the message says why.
        """
        async with self.changing():
            try:
                await self._start(listen_control)
            except CancelledError:
                raise Stopping from None

    async def _start(self, listen_control: Callable[[str], Deferred[IListeningPort]]) -> None:
        settings = self.settings
        sites: Mapping[str, Site] = {}
        left: list[Entry] = []
        if settings.cluster is None:
            # Not above: in a cluster nobody needs what SQLite takes.
            from awesomeproxy.registry.local import LocalRegistry

            self.registry = await LocalRegistry.open(
                self.reactor, Path(settings.state_dir) / "registry.sqlite"
            )
            self.added = await self.registry.definitions()
            sites = compose(settings, self.added)
            self.placements = await self.registry.placements()
            left = await self.moves.recover(sites)
        else:
            await self.membership.find_others()
            self.answering.begin()
        self.placements = await self.registry.placements()
        everything: list[Site | Database] = [*sites.values(), *settings.databases.values()]
        for problem in misplaced(everything, self.placements).values():
            # One site that nobody can reach is no reason to serve none.
            log.error("{problem}; its requests are held", problem=problem)
        acme = Path(settings.state_dir) / "acme"
        issued = str(acme / "certificates")
        self.certifying = Certifying(self.reactor, settings.tls, (issued,), self.emit)
        await self.certifying.start()
        self.plane = Plane(
            self.reactor,
            name=settings.name,
            access_log=settings.access_log,
            max_connections=affordable(settings.max_connections),
            max_sockets=open_files() - RESERVED,
            max_held=settings.max_held,
            max_held_bytes=settings.max_held_bytes,
            permit=self.membership.permit,
            certificates=self.certifying.certificates,
            now=self.cluster.now,
            on_change=self._changed,
        )
        self.keeper = Keeper(
            self.reactor,
            settings.acme,
            acme,
            self.plane.challenges,
            on_issued=lambda site: self.certifying.hurry(),
        )
        await self.place(sites.values())
        await self.place(settings.databases.values())
        await self.place_filesystems(settings.filesystems.values())
        await self.residence.start(settings.filesystems)
        for site in sites.values():
            self.define(site)
        for database in settings.databases.values():
            self.define_database(database)
        if not self.cluster.alone:
            left = await self.membership.join()
        self.moves.take_up(left)
        self.residence.begin()
        self._control = await listen_control(settings.control)
        await self.metrics.move(settings.metrics)
        await self.plane.listen(settings.listen, settings.databases.values())
        for name in settings.databases:
            if self.placements[DATABASE + name].mode is Mode.OPEN:
                self.poolers.rouse(DATABASE + name)
        self.keeper.start()
        log.info(
            "{name} serves {count} sites on {addresses}",
            name=settings.name,
            count=len(self.sites),
            addresses=", ".join(listen.endpoint for listen in settings.listen),
        )

    async def stop(self) -> None:
        """Stop accepting, finish what is in flight within ``drain_time``, let go of all.

        A pause or migration that is under way is undone; a resume works to the end.
        """
        self.stopping = True
        self.membership.stop()
        await self._definitions.acquire()  # a start or a reload has come to its end
        try:
            if hasattr(self, "plane"):
                await self.plane.listen(())
        finally:
            self._definitions.release()
        if hasattr(self, "keeper"):
            self.keeper.stop()
        if hasattr(self, "certifying"):
            await self.certifying.stop()
        await self.pauses.call_off("the daemon is stopping")
        self.poolers.stop()
        await self.moves.stop("the daemon is stopping")
        self.residence.stop()
        if hasattr(self, "plane"):
            await self.plane.stop(self.settings.drain_time)
        self._on_change.fire_all(Outcome.REFUSED)
        self.pauses.forget_expiries()
        await self.metrics.move("")
        if self._control is not None:
            await maybeDeferred(self._control.stopListening)
        if hasattr(self, "registry"):
            await self.cluster.leave()
            await self.registry.close()

    # Definitions

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Change which sites there are, one after the other.

        :raise Stopping: this daemon changes nothing any more.
        """
        await self._definitions.acquire()
        try:
            if self.stopping:
                raise Stopping
            yield
        finally:
            self._definitions.release()

    async def place(self, defined: Iterable[Site | Database]) -> None:
        """Place those of ``defined`` that are new where their definitions say.

        :raise RegistryError: it cannot be recorded.
        """
        await self._place_new(
            Placement(each.name if isinstance(each, Site) else DATABASE + each.name, each.backend)
            for each in defined
        )

    async def place_filesystems(self, defined: Iterable[Filesystem]) -> None:
        """The same for filesystems."""
        await self._place_new(Placement(FILESYSTEM + each.name, each.node) for each in defined)

    async def _place_new(self, firsts: Iterable[Placement]) -> None:
        new = [first for first in firsts if first.site not in self.placements]
        if new:  # in one transaction: each has its disk write
            try:
                placed = await self.registry.place_new(new)
            except Conflict:  # another node was first: then that is where they are
                self.placements |= await self.registry.placements()
                return await self._place_new(new)
            self.placements |= {each.site: each for each in placed}

    def define(self, site: Site) -> None:
        """Take over the definition, new or changed, of a site that has been placed."""
        for doubt in unverified(site):
            if site != self.sites.get(site.name):
                log.warn("{doubt}", doubt=doubt)
        self.sites[site.name] = site
        self.keeper.define(site)
        self.adopt(self.placements[site.name])

    def define_database(self, database: Database) -> None:
        """The same for a database."""
        self.databases[database.name] = database
        self.adopt(self.placements[DATABASE + database.name])

    def undefine_database(self, name: str) -> None:
        """A database is served no more; where it is placed stays known."""
        del self.databases[name]
        self.plane.remove_database(name)
        self.pauses.forget_expiry(DATABASE + name)
        self.tell_changed(DATABASE + name)

    def undefine(self, name: str) -> None:
        """A site is served no more; where it is placed stays known."""
        if self.sites.pop(name, None) is None:
            return
        self.plane.remove(name)
        self.keeper.undefine(name)
        self.watching.forget(name)
        self.pauses.forget_expiry(name)
        self.tell_changed(name)
        self.emit(event="removed", site=name)

    # Desired and observed

    def placement(self, name: str) -> Placement:
        """Where a site is placed."""
        return self.placements[name]

    def adopt(self, placement: Placement, *, heard: bool = False) -> None:
        """Make the workers converge to ``placement``; an older one than known is ignored.

        :param heard: the registry says so, of a change that another node may have made; what
            is not newer than known is ignored, and what only one has to do is not done.
        """
        name = placement.site
        known = self.placements.get(name)
        if known is not None and known.generation + heard > placement.generation:
            return
        if heard:
            self.trials.end(name)
            if placement.by.startswith(MOUNTED_ON):
                self.residence.doubts.heard(name)
        self.placements[name] = placement
        if name.startswith(FILESYSTEM):
            self.residence.placed(name.removeprefix(FILESYSTEM))
            if heard:
                self.residence.heard(name.removeprefix(FILESYSTEM))
        elif name.startswith(DATABASE):
            database = self.databases.get(name.removeprefix(DATABASE))
            if database is None:
                self.membership.report(name)
                return
            admits = self.trials.admitted(name)
            absent = self._absent(database, placement)
            self.plane.apply_database(DesiredDatabase(database, placement, admits, absent))
            self._watch_expiry(placement)
            self.poolers.adopted(known, placement, heard=heard)
        elif name in self.sites:
            site = self.sites[name]
            self.plane.apply(Desired(site, placement, self._absent(site, placement)))
            self._watch_expiry(placement)
        else:
            self.membership.report(name)
            return
        if heard:
            self.residence.doubts.prove(name)
        event = {"backend": placement.backend, "mode": placement.mode.value}
        if known is None or event != {"backend": known.backend, "mode": known.mode.value}:
            self.emit(
                event="placed",
                site=name,
                by=placement.by,
                generation=placement.generation,
                **event,
            )

    def _absent(self, definition: Site | Database, placement: Placement) -> str:
        """Why it is held here, whatever its placement says; empty: it is not."""
        misfit = self.misfits.get(placement.site, "")
        return misfit or self.membership.withheld or self.residence.absent(definition, placement)

    def observed(self, name: str) -> Observed:
        """What the workers report of a site.

        :raise KeyError: there is no such site.
        """
        observed = self.plane.observed(name)
        if observed is None:
            raise KeyError(name)
        return observed

    def changed(self, name: str, timeout: float | None = None) -> Deferred[Outcome]:
        """Fires when what is reported of a site may have changed, or ``timeout`` is over."""
        return self._on_change.wait(name, timeout)

    def tell_changed(self, name: str) -> None:
        """Have those look who wait for a change of a site."""
        self._on_change.fire(name)

    def cut(self, name: str) -> Deferred[int]:
        """Break off what is in flight for a site on all nodes; fires with how much that was."""
        return Deferred.fromCoroutine(self.answering.cut_everywhere(name))

    def counted(self, names: Sequence[str]) -> Deferred[Counted]:
        """What has become of the requests of sites and databases, on each node."""
        return Deferred.fromCoroutine(self.answering.counted(names))

    def elsewhere(self, name: str) -> str:
        """Which migration another node has, that has to do with it; empty: none."""
        return self.migrating.elsewhere(name)

    def check(self, site: str, backend: str) -> Deferred[None]:
        """Ask a backend's servers past the gate; fails unless one of them is well."""
        return Deferred.fromCoroutine(check_backend(self.plane, site, backend))

    def mounted(self, filesystem: str, node: str) -> Deferred[None]:
        """Fires when a filesystem is mounted on a node; fails if it is not in good time."""
        return self.residence.lookout.wait(filesystem.removeprefix(FILESYSTEM), node)

    def usable(self, filesystem: str, node: str) -> Deferred[None]:
        """Look whether a filesystem is mounted on a node, writable; fails if it is not."""
        return self.residence.lookout.usable(filesystem.removeprefix(FILESYSTEM), node)

    def lost(self, filesystem: str, node: str, why: str) -> None:
        """It is seen that a filesystem is not to be used any more, which may be moving."""
        if (migration := self.moves.of(filesystem)) is not None:
            migration.lost(filesystem, node, why)

    def moving(self, name: str) -> bool:
        """Whether a migration has to do with it, one that cannot be taken up among them."""
        here = self.moves.of(name) is not None or name in self.moves.stuck
        return here or self.migrating.entry_of(name) is not None

    def moved(self, plan: Plan) -> None:
        """A migration has ended, one way or the other."""
        for member in plan.members:
            if member.has_gate and member.name in self.placements:
                self._watch_expiry(self.placements[member.name])
        self.residence.settle(
            member.name.removeprefix(FILESYSTEM) for member in plan.members if not member.has_gate
        )

    def shell(self, node: str) -> Shell:
        """What runs commands on a node."""
        return self.moves.shell(node)

    def _watch_expiry(self, placement: Placement) -> None:
        # A site that was paused before it was moved may have outstayed its pause by now,
        # but a move is not to be called off by that.
        if self.moves.of(placement.site) is not None:
            self.pauses.forget_expiry(placement.site)
        else:
            self.pauses.watch_expiry(placement)

    # Watching

    def emit(self, **event: Any) -> None:
        """Tell everybody who watches."""
        self.watching.emit(**event)

    def _families(self) -> Iterator[Any]:
        from awesomeproxy.metrics.families import families  # not above: its library is an extra

        return families(self)

    def served(self) -> list[str]:
        """All sites and databases, called as their placements are."""
        return [*self.sites, *(DATABASE + name for name in self.databases)]

    def _changed(self, name: str) -> None:
        self.membership.report(name)
        self._on_change.fire(name)
        if self.watching and (observed := self.plane.observed(name)) is not None:
            self.watching.look(observed)
