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

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.doubts import Doubts
from awesomeproxy.lookout import Lookout
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
from awesomeproxy.mountinfo import MountState
from awesomeproxy.mounttable import TABLE
from awesomeproxy.movers.shell import Shell
from awesomeproxy.registry.interface import IRegistry, RegistryError

log = Logger()

LOOK_AGAIN = 5.0  # seconds between looks after a node that is lost
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
        self.lookout = Lookout(host, self._seen, table)
        self.doubts = Doubts(host)
        self._turns: dict[str, DeferredLock] = {}
        self._again: dict[tuple[str, str], IDelayedCall] = {}
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
        await self.lookout.start(filesystems)

    def begin(self) -> None:
        """Place what lives in filesystems where those are.

        What a dead daemon was moving has to be known by now: it is not placed by what is
        mounted, which may be both sides of it.
        """
        self._running = True
        self.doubts.begin()
        self.settle(self._filesystems)

    def configure(self, filesystems: Mapping[str, Filesystem]) -> Deferred[Outcome]:
        """Take over what a reload has changed.

        :return: fires when it is known what is mounted; what has to be is held until then.
        """
        self._filesystems = filesystems
        for name in self.conflicts.keys() - filesystems.keys():
            del self.conflicts[name]
        watching = self.lookout.watch(filesystems)
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
        self.doubts.stop()
        self.lookout.stop()

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
        if placement.site in self.doubts:
            return f"its filesystem {name} has just been mounted, and no server is well yet"
        return ""

    def _not_there(self, name: str, where: Placement) -> str:
        state = self.lookout.state(name, where.backend)
        if state is not None and not state.usable:
            return f"its filesystem {name} is not to be used on {where.backend}: {state.trouble}"
        if where.mode is Mode.HOLDING and not self._host.moving(FILESYSTEM + name):
            return f"its filesystem {name} is not mounted on {where.backend}"
        return ""

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

    def heard(self, name: str) -> None:
        """Another node has placed a filesystem: what was in its way may be so no more."""
        other, where = self.conflicts.get(name), self._host.placement(FILESYSTEM + name)
        if other is not None and where.mode is Mode.HOLDING and self._running:
            telling = Deferred.fromCoroutine(self._tell_mounted(name, other))
            telling.addErrback(self._not_recorded, name, other)

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
                self.doubts.add(back)  # or they would be served without a look
                self._host.adopt(where)
                for site in back:
                    self.doubts.prove(site)
            await self._follow(name, node)
            return where

    def _may_be_there(self, name: str, where: Placement) -> bool:
        """Whether it is where it is recorded, as far as is known."""
        state = self.lookout.state(name, where.backend)
        return where.mode is Mode.OPEN or (state is not None and state.usable)

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

    def placed(self, name: str) -> None:
        """A filesystem is placed somewhere else than before, or no longer mounted."""
        for lodger in self._lodgers(name):
            self._host.adopt(self._host.placement(lodger))

    def settle(self, names: Iterable[str]) -> None:
        """A migration of some filesystems has ended: what was seen meanwhile counts now."""
        for name in names:
            where = self._host.placement(FILESYSTEM + name).backend
            places = self._filesystems[name].places if name in self._filesystems else ()
            # Where it is recorded comes first: if it is there, it is nowhere else.
            for node in sorted(places, key=lambda place: place != where):
                if state := self.lookout.state(name, node):
                    self._seen(name, node, state)

    # Deeds

    def _seen(self, name: str, node: str, state: MountState) -> None:
        """This node's mount table says something new."""
        self.placed(name)  # at once: requests must not find an empty directory
        if not self._running or name not in self._filesystems:
            return
        if self._host.moving(FILESYSTEM + name):
            if not state.usable:
                self._host.lost(FILESYSTEM + name, node, state.trouble)
        else:
            tell = self.mounted if state.usable else self.unmounted
            telling = Deferred.fromCoroutine(tell(name, node))
            telling.addErrback(self._not_recorded, name, node)

    def _not_recorded(self, failure: Failure, name: str, node: str) -> None:
        if isinstance(failure.value, Elsewhere):  # it was told already
            return
        key, why = f"{name}@{node}", failure.value
        if not isinstance(why, RegistryError):
            log.failure("{key}: what is mounted cannot be followed", failure, key=key)
            return
        log.error("{key}: what is mounted is not recorded yet: {why}", key=key, why=why)
        if self._running and (name, node) not in self._again:
            call = self._host.reactor.callLater(TRY_AGAIN, self._see_again, name, node)
            self._again[name, node] = call

    def _see_again(self, name: str, node: str) -> None:
        del self._again[name, node]
        if state := self.lookout.state(name, node):
            self._seen(name, node, state)

    def _lodgers(self, name: str) -> dict[str, Site | Database]:
        """What lives in a filesystem, called as its placement is."""
        everything: dict[str, Site | Database] = {**self._host.sites}
        everything |= {DATABASE + each.name: each for each in self._host.databases.values()}
        return {placed: each for placed, each in everything.items() if each.filesystem == name}

    def _is_on(self, lodger: str, definition: Site | Database, node: str) -> bool:
        backend = definition.backends.get(self._host.placement(lodger).backend)
        return backend is not None and backend.node == node

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
            self.doubts.add([lodger])
            self._host.adopt(placed)
            self.doubts.prove(lodger)
        if problems:
            raise problems[0]

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
