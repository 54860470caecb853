"""Where filesystems are, and what that means for the sites that live in them.

A site that lives in a filesystem is served only where that is mounted.  While it is not,
its requests are held; when it is mounted again, or on another node, the site is placed
there, its servers are asked whether they are well, and the requests go on.  So whatever
mounts a filesystem -- a migration, ``zfs mount``, a script for emergencies -- moves the
traffic as well.

The registry has a placement for each filesystem: its backend is the node on which it is,
open or, if it is mounted nowhere, holding.  What this node sees in its own mount table it
writes there; of other nodes it is told, with ``awesomeproxy mounted`` and ``unmounted``.
If a filesystem is mounted in two places the recorded one counts, and the other is a
conflict: told loudly, and served from no sooner than the recorded one is gone.

A filesystem whose paths are no mount points (a directory, for rsync) is where the registry
says, without any further proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.model import (
    DATABASE,
    FILESYSTEM,
    Database,
    Filesystem,
    Mode,
    Outcome,
    Placement,
    Site,
)
from awesomeproxy.mountinfo import Mounting, MountState, states
from awesomeproxy.mounts import Mounts
from awesomeproxy.mounttable import TABLE
from awesomeproxy.movers.errands import Errands
from awesomeproxy.movers.shell import Shell, ShellError
from awesomeproxy.registry.interface import IRegistry, RegistryError

log = Logger()

LOOK_AGAIN = 5.0  # seconds between looks after a node that is lost
LOOK_EVERY = 0.2  # seconds between looks at another node's mount table
PROVE_EVERY = 0.5  # seconds between questions whether a site's servers are well
MOUNT_IN = 30.0  # seconds in which something has to be mounted that was attached
MOUNTED_ON = "mounted on "  # who has placed something where its filesystem is
TRY_AGAIN = 1.0  # seconds between tries to record what was seen


class Elsewhere(Exception):
    """A filesystem is mounted somewhere else, too; the message says where and what to do."""


class Host(Protocol):
    """What residence asks of the node."""

    reactor: Any
    registry: IRegistry
    cluster: ICluster
    sites: dict[str, Site]
    databases: dict[str, Database]

    def placement(self, name: str) -> Placement:
        """Where something is placed."""

    def adopt(self, placement: Placement) -> None:
        """Make every worker converge to ``placement``."""

    def check(self, site: str, backend: str) -> Deferred[None]:
        """Ask a backend's servers, past the gate."""

    def moving(self, name: str) -> bool:
        """Whether a migration has to do with it."""

    def lost(self, filesystem: str, node: str, why: str) -> None:
        """It is seen that a filesystem is not to be used on a node, while it may be moving."""

    def shell(self, node: str) -> Shell:
        """What runs commands on a node."""

    def emit(self, **event: Any) -> None:
        """Tell everybody who watches."""


class Residence:
    """Keeps placements of filesystems, and of the sites in them, as the mounts are."""

    def __init__(self, host: Host, table: str = TABLE) -> None:
        """
        :param table: the file that has the mount table.
        """
        self._host = host
        self._filesystems: Mapping[str, Filesystem] = {}
        self._mounts = Mounts(host.reactor, {}, self._seen, table)
        self._turns: dict[str, DeferredLock] = {}
        self._doubted: set[str] = set()  # sites of which no server is known to be well
        self._proving: dict[str, Deferred[None]] = {}
        self._again: dict[str, IDelayedCall] = {}
        self._looking: dict[str, IDelayedCall] = {}  # after nodes that are lost
        self.conflicts: dict[str, str] = {}  # filesystem -> the node that has it as well
        self._running = False

    def __repr__(self) -> str:
        return f"<Residence of {len(self._filesystems)} filesystems>"

    # Life

    async def start(self, filesystems: Mapping[str, Filesystem]) -> None:
        """Look what is mounted, and watch it from then on; nothing is placed before :meth:`begin`.

        All placements have to be known by now, but no site needs to be served.
        """
        self._filesystems = filesystems
        watching = self._mounts.watch(self._watched())
        await self._mounts.start()
        await watching

    def begin(self) -> None:
        """Place what lives in filesystems where those are.

        What a dead daemon was moving has to be known by now: it is not placed by what is
        mounted, which may be both sides of it.
        """
        self._running = True
        self.settle(self._filesystems)

    def configure(self, filesystems: Mapping[str, Filesystem]) -> Deferred[Outcome]:
        """Take over what a reload has changed.

        :return: fires when it is known what is mounted; what has to be is held until then.
        """
        self._filesystems = filesystems
        for name in self.conflicts.keys() - filesystems.keys():
            del self.conflicts[name]
        watching = self._mounts.watch(self._watched())
        for name in filesystems:
            self.placed(name)
        return watching

    def stop(self) -> None:
        """Watch no longer."""
        self._running = False
        for again in self._again.values():
            again.cancel()
        self._again.clear()
        for looking in self._looking.values():
            looking.cancel()
        self._looking.clear()
        for proving in list(self._proving.values()):
            proving.cancel()
        self._mounts.stop()

    def _watched(self) -> dict[str, Mounting]:
        """What can be seen here, by the names that :meth:`_key` gives."""
        return {
            _key(name, node): Mounting(place.path, getattr(place, "dataset", ""))
            for name, filesystem in self._filesystems.items()
            for node, place in filesystem.places.items()
            if filesystem.mount_point and self._host.shell(node).local
        }

    # What it comes to

    def absent(self, site: Site | Database, placement: Placement) -> str:
        """Why a site or a database cannot be served where it is placed; empty: it can."""
        name = site.filesystem
        if not name or name not in self._filesystems:
            return ""
        backend = site.backends.get(placement.backend)
        where = self._host.placement(FILESYSTEM + name)
        if backend is None or backend.node != where.backend:
            return f"its filesystem {name} is on {where.backend}"
        if why := self._not_there(name, where):
            return why
        if placement.site in self._doubted:
            return f"its filesystem {name} has just been mounted, and no server is well yet"
        return ""

    def _not_there(self, name: str, where: Placement) -> str:
        state = self._state(name, where.backend)
        if state is not None and not _usable(state):
            return f"its filesystem {name} is not to be used on {where.backend}: {_trouble(state)}"
        if where.mode is Mode.HOLDING and not self._host.moving(FILESYSTEM + name):
            return f"its filesystem {name} is not mounted on {where.backend}"
        return ""

    def _state(self, name: str, node: str) -> MountState | None:
        """How it stands with a mount, if it can be seen from here."""
        return self._mounts.states().get(_key(name, node))

    def sees(self, name: str, node: str) -> bool:
        """Whether this node sees for itself what is mounted there."""
        return self._state(name, node) is not None

    def status(self) -> list[dict[str, Any]]:
        """Each filesystem: where it is, and what is wrong."""
        found = []
        for name in sorted(self._filesystems):
            where = self._host.placement(FILESYSTEM + name)
            other = self.conflicts.get(name)
            # What is moving is placed on its target before its end settles what is where.
            both = other is not None and other != where.backend
            conflict = f"it is mounted on {other} as well" if both else ""
            moving = self._host.moving(FILESYSTEM + name)
            well = "mounted" if self._filesystems[name].mount_point else "there"
            found.append(
                {
                    "name": name,
                    "mover": self._filesystems[name].mover,
                    "node": where.backend,
                    "generation": where.generation,
                    "state": "moving" if moving else self._not_there(name, where) or well,
                    "trouble": conflict,
                }
            )
        return found

    def doubt(self, lodger: str) -> None:
        """Another node has placed it where its filesystem is: this one has not looked yet."""
        if self._running:
            self._doubted.add(lodger)

    def prove(self, lodger: str) -> None:
        """Look, if that is to be done: it is held here until one of its servers is well."""
        if lodger in self._doubted:
            self._prove(lodger)

    def heard(self, name: str) -> None:
        """Another node has placed a filesystem: what was in its way may be so no more."""
        other, where = self.conflicts.get(name), self._host.placement(FILESYSTEM + name)
        if other is not None and where.mode is Mode.HOLDING and self._running:
            telling = Deferred.fromCoroutine(self._tell_mounted(name, other))
            telling.addErrback(self._not_recorded, _key(name, other))

    async def _tell_mounted(self, name: str, node: str) -> None:
        await self.mounted(name, node)

    def look_after(self, node: str) -> None:
        """A node is there, or is not any more: see what has become of what was mounted there.

        What is mounted on a node that was fenced is used no more.  Of one that only says
        nothing that is known when no server there takes a connection either: until then the
        daemon may just be starting again, or have lost the registry.
        """
        if (again := self._looking.pop(node, None)) is not None:
            again.cancel()
        states = {each.name: each.state for each in self._host.cluster.members()}
        if states.get(node, "live") in ("live", "late") or not self._running:
            return
        for name, filesystem in self._filesystems.items():
            where = self._host.placement(FILESYSTEM + name)
            there = where.backend == node and where.mode is Mode.OPEN and filesystem.mount_point
            if there and not self._host.moving(where.site):
                leaving = Deferred.fromCoroutine(self._leave(name, node, states[node] == "fenced"))
                leaving.addErrback(self._not_left, name)
        self._looking[node] = self._host.reactor.callLater(LOOK_AGAIN, self._look_again, node)

    def _look_again(self, node: str) -> None:
        del self._looking[node]
        self.look_after(node)

    async def _leave(self, name: str, node: str, surely: bool) -> None:
        """Hold what lives in a filesystem of a node that is lost."""
        for lodger in () if surely else self._lodgers(name):
            try:
                await self._host.check(lodger, self._host.placement(lodger).backend)
            except Exception as problem:
                log.debug("{site}: {why}", site=lodger, why=problem)
            else:
                return
        log.error(
            "The node {node} is lost, and with it the filesystem {name}: what lives in it is"
            " held until it is mounted somewhere else.",
            node=node,
            name=name,
        )
        await self.unmounted(name, node)

    def _not_left(self, failure: Failure, name: str) -> None:
        # Another node may have been first; and if it cannot be recorded, there is the next look.
        if not isinstance(failure.value, RegistryError | Elsewhere):
            log.failure("{name}: cannot be held", failure, name=name)

    # What is told

    async def mounted(self, name: str, node: str) -> Placement:
        """A filesystem is mounted on ``node``: what lives in it is served there from now on.

        :raise Elsewhere: it is recorded to be mounted on another node.
        :raise RegistryError: it cannot be recorded.
        """
        async with self._turn(name):
            where = self._host.placement(FILESYSTEM + name)
            if self._host.moving(FILESYSTEM + name):  # its end will be to settle
                return where
            if where.backend != node and self._may_be_there(name, where):
                self._conflict(name, where.backend, node)
                raise Elsewhere(
                    f"the filesystem {name} is mounted on {where.backend}, as far as is known;"
                    f" if it is not any more, say: awesomeproxy unmounted {name}"
                    f" --node {where.backend}"
                )
            self.conflicts.pop(name, None)
            if where.backend != node or where.mode is Mode.HOLDING:
                wanted = replace(where, backend=node, mode=Mode.OPEN, by="mounted")
                where = await self._host.registry.place(wanted, where.generation)
                back = [
                    lodger
                    for lodger, definition in self._lodgers(name).items()
                    if self._is_on(lodger, definition, node)
                ]
                self._doubted.update(back)  # or they would be served without a look
                self._host.adopt(where)
                for site in back:
                    self._prove(site)
            await self._follow(name, node)
            return where

    def _may_be_there(self, name: str, where: Placement) -> bool:
        """Whether it is where it is recorded, as far as is known."""
        state = self._state(name, where.backend)
        return where.mode is Mode.OPEN or (state is not None and _usable(state))

    async def unmounted(self, name: str, node: str) -> Placement:
        """A filesystem is not mounted on ``node`` any more: what lives in it is held.

        :raise RegistryError: it cannot be recorded.
        """
        async with self._turn(name):
            other = self.conflicts.get(name)
            where = self._host.placement(FILESYSTEM + name)
            if other == node:
                del self.conflicts[name]
            if where.backend != node or self._host.moving(FILESYSTEM + name):
                return where
            if where.mode is Mode.OPEN:
                wanted = replace(where, mode=Mode.HOLDING, by="unmounted")
                where = await self._host.registry.place(wanted, where.generation)
                self._host.adopt(where)
        if other is not None and other != node:
            return await self.mounted(name, other)
        return where

    def wait(self, name: str, node: str) -> Deferred[None]:
        """Fires when a filesystem is mounted on ``node``; fails if that takes too long."""
        filesystem = self._filesystems[name]
        if not filesystem.mount_point:
            return succeed(None)
        if self._state(name, node) is not None:
            return Deferred.fromCoroutine(self._wait_here(name, node))
        return Deferred.fromCoroutine(self._wait_there(name, node))

    def usable(self, name: str, node: str) -> Deferred[None]:
        """Look whether a filesystem is mounted on ``node``, writable; fails if it is not."""
        if not self._filesystems[name].mount_point:
            return succeed(None)
        return Deferred.fromCoroutine(self._look(name, node))

    def placed(self, name: str) -> None:
        """A filesystem is placed somewhere else than before, or no longer mounted."""
        for lodger in self._lodgers(name):
            self._host.adopt(self._host.placement(lodger))

    def settle(self, names: Iterable[str]) -> None:
        """A migration of some filesystems has ended: what was seen meanwhile counts now."""
        states = self._mounts.states()
        for name in names:
            where = self._host.placement(FILESYSTEM + name).backend
            places = self._filesystems[name].places if name in self._filesystems else ()
            # Where it is recorded comes first: if it is there, it is nowhere else.
            for node in sorted(places, key=lambda place: place != where):
                if state := states.get(_key(name, node)):
                    self._seen(_key(name, node), state)

    # Deeds

    def _seen(self, key: str, state: MountState) -> None:
        """This node's mount table says something new."""
        name, node = _names(key)
        self.placed(name)  # at once: requests must not find an empty directory
        if not self._running or name not in self._filesystems:
            return
        if self._host.moving(FILESYSTEM + name):
            if not _usable(state):
                self._host.lost(FILESYSTEM + name, node, _trouble(state))
        else:
            tell = self.mounted if _usable(state) else self.unmounted
            telling = Deferred.fromCoroutine(tell(name, node))
            telling.addErrback(self._not_recorded, key)

    def _not_recorded(self, failure: Failure, key: str) -> None:
        if isinstance(failure.value, Elsewhere):  # it was told already
            return
        if not isinstance(failure.value, RegistryError):
            log.failure("{key}: what is mounted cannot be followed", failure, key=key)
            return
        log.error("{key}: what is mounted is not recorded yet: {why}", key=key, why=failure.value)
        if self._running and key not in self._again:
            self._again[key] = self._host.reactor.callLater(TRY_AGAIN, self._see_again, key)

    def _see_again(self, key: str) -> None:
        del self._again[key]
        if state := self._mounts.states().get(key):
            self._seen(key, state)

    def _lodgers(self, name: str) -> dict[str, Site | Database]:
        """What lives in a filesystem, called as its placement is."""
        everything: dict[str, Site | Database] = {**self._host.sites}
        everything |= {DATABASE + each.name: each for each in self._host.databases.values()}
        return {placed: each for placed, each in everything.items() if each.filesystem == name}

    def _is_on(self, lodger: str, definition: Site | Database, node: str) -> bool:
        backend = definition.backends.get(self._host.placement(lodger).backend)
        return backend is not None and backend.node == node

    def _is_served(self, lodger: str) -> bool:
        return lodger in self._host.sites or lodger.removeprefix(DATABASE) in self._host.databases

    def _turn(self, name: str) -> DeferredLock:
        return self._turns.setdefault(name, DeferredLock())

    async def _follow(self, name: str, node: str) -> None:
        """Place what lives in a filesystem where that is."""
        problems: list[RegistryError] = []
        for lodger, definition in self._lodgers(name).items():
            if self._host.moving(lodger) or self._is_on(lodger, definition, node):
                continue
            choices = [each.name for each in definition.backends.values() if each.node == node]
            if not choices:
                log.error("{site}: has no backend on {node}", site=lodger, node=node)
                continue
            seen = self._host.placement(lodger)
            wanted = replace(seen, backend=choices[0], by=MOUNTED_ON + node)
            try:
                placed = await self._host.registry.place(wanted, seen.generation)
            except RegistryError as problem:  # the others can go on all the same
                problems.append(problem)
                continue
            self._doubted.add(lodger)
            self._host.adopt(placed)
            self._prove(lodger)
        if problems:
            raise problems[0]

    def _prove(self, site: str) -> None:
        """Have a site or database that is doubted held until one of its servers is well."""
        if site in self._proving or not self._running:
            return
        self._proving[site] = Deferred.fromCoroutine(self._until_well(site))

        def proved(result: object) -> None:
            del self._proving[site]
            self._doubted.discard(site)
            if self._running and self._is_served(site):
                self._host.adopt(self._host.placement(site))

        self._proving[site].addBoth(proved)

    async def _until_well(self, site: str) -> None:
        while self._is_served(site):
            backend = self._host.placement(site).backend
            try:
                await self._host.check(site, backend)
            except CancelledError:
                raise
            except Exception as problem:
                log.debug("{site}: not well yet: {why}", site=site, why=problem)
            else:
                if backend == self._host.placement(site).backend:
                    return
                continue  # it has gone somewhere else meanwhile
            await deferLater(self._host.reactor, PROVE_EVERY)

    def _conflict(self, name: str, recorded: str, node: str) -> None:
        if self.conflicts.get(name) != node:
            self.conflicts[name] = node
            log.error(
                "The filesystem {name} is mounted on {node}, though it is on {recorded}: what"
                " lives in it is served from {recorded}. Unmount one of them.",
                name=name,
                node=node,
                recorded=recorded,
            )
            self._host.emit(event="conflict", filesystem=name, node=node, recorded=recorded)

    async def _wait_here(self, name: str, node: str) -> None:
        key = _key(name, node)
        late = self._host.reactor.seconds() + MOUNT_IN
        while (state := self._state(name, node)) is not None and not _usable(state):
            if self._host.reactor.seconds() > late:
                raise _gone(name, node, state)
            # Not for longer: what was mounted and turns writable is not mounted once more.
            if await self._mounts.on_mount.wait(key, LOOK_EVERY) is Outcome.REFUSED:
                raise Elsewhere(f"{name} is watched no more on {node}")

    async def _wait_there(self, name: str, node: str) -> None:
        late = self._host.reactor.seconds() + MOUNT_IN
        while not _usable(state := await self._look_there(name, node)):
            if self._host.reactor.seconds() > late:
                raise _gone(name, node, state)
            await deferLater(self._host.reactor, LOOK_EVERY)

    async def _look_there(self, name: str, node: str) -> MountState:
        """How it stands with a mount on another node."""
        place = self._filesystems[name].places[node]
        wanted = {name: Mounting(place.path, getattr(place, "dataset", ""))}
        errands = Errands(self._host.shell(node), name)  # a mover's as well: they run already
        try:
            table = await errands.run("cat", "/proc/self/mountinfo")
            return states(table.encode(), wanted)[name]
        except (ShellError, ValueError) as problem:
            return MountState(False, why=str(problem))

    async def _look(self, name: str, node: str) -> None:
        state = self._state(name, node)
        state = await self._look_there(name, node) if state is None else state
        if not _usable(state):
            raise _gone(name, node, state)


def _usable(state: MountState) -> bool:
    """Whether a filesystem is there to be served from: a fenced one is read-only."""
    return state.mounted and not state.read_only


def _trouble(state: MountState) -> str:
    """Why it is not usable."""
    return "it is mounted read-only" if state.mounted else state.why


def _gone(name: str, node: str, state: MountState) -> Elsewhere:
    return Elsewhere(f"{name} is not mounted on {node}: {_trouble(state)}")


def _key(name: str, node: str) -> str:
    return f"{name}@{node}"  # neither has an "@"


def _names(key: str) -> tuple[str, str]:
    name, _, node = key.partition("@")
    return name, node
