"""Which filesystems are mounted where, as far as it can be seen from this node.

What is mounted here is watched (:mod:`.mounts`).  Another node is asked for its mount table
when a migration wants to know, and not else.  A filesystem whose paths are no mount points
is not looked for at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater

from awesomeproxy.model import Filesystem, Outcome
from awesomeproxy.mountinfo import Mounting, MountState, states
from awesomeproxy.mounts import Mounts
from awesomeproxy.movers.errands import Errands
from awesomeproxy.movers.shell import Shell, ShellError

LOOK_EVERY = 0.2  # seconds between looks at another node's mount table
MOUNT_IN = 30.0  # seconds in which something has to be mounted that was attached


class NotThere(Exception):
    """A filesystem is not to be used on a node; the message says why."""


class Host(Protocol):
    """What is asked of the node."""

    reactor: Any

    def shell(self, node: str) -> Shell:
        """What runs commands on a node."""


class Lookout:
    """Looks for filesystems."""

    def __init__(
        self, host: Host, seen: Callable[[str, str, MountState], object], table: str
    ) -> None:
        """
        :param seen: called with a filesystem, this node and what is new about it there.
        :param table: the file that has the mount table.
        """
        self._host = host
        self._tell = seen
        self._filesystems: Mapping[str, Filesystem] = {}
        self._mounts = Mounts(host.reactor, {}, self._seen, table)

    def __repr__(self) -> str:
        return f"<Lookout: {self._mounts!r}>"

    async def start(self, filesystems: Mapping[str, Filesystem]) -> None:
        """Look what is mounted, and watch it from then on."""
        watching = self.watch(filesystems)
        await self._mounts.start()
        await watching

    def watch(self, filesystems: Mapping[str, Filesystem]) -> Deferred[Outcome]:
        """Watch these instead.

        :return: fires when it is known what is mounted.
        """
        self._filesystems = filesystems
        return self._mounts.watch(
            {
                _key(name, node): self._mounting(name, node)
                for name, filesystem in filesystems.items()
                for node in filesystem.places
                if filesystem.mount_point and self._host.shell(node).local
            }
        )

    def stop(self) -> None:
        """Watch no longer."""
        self._mounts.stop()

    def state(self, name: str, node: str) -> MountState | None:
        """How it stands with a filesystem on a node; None: that cannot be seen from here."""
        try:
            return self._mounts.state(_key(name, node))
        except KeyError:
            return None

    def sees(self, name: str, node: str) -> bool:
        """Whether this node sees for itself what is mounted there."""
        return self.state(name, node) is not None

    def wait(self, name: str, node: str) -> Deferred[None]:
        """Fires when a filesystem is mounted on ``node``; fails if that takes too long."""
        if not self._filesystems[name].mount_point:
            return succeed(None)
        if self.sees(name, node):
            return Deferred.fromCoroutine(self._wait_here(name, node))
        return Deferred.fromCoroutine(self._wait_there(name, node))

    def usable(self, name: str, node: str) -> Deferred[None]:
        """Look whether a filesystem is mounted on ``node``, writable; fails if it is not."""
        if not self._filesystems[name].mount_point:
            return succeed(None)
        return Deferred.fromCoroutine(self._look(name, node))

    def _seen(self, key: str, state: MountState) -> None:
        name, _, node = key.partition("@")
        self._tell(name, node, state)

    def _mounting(self, name: str, node: str) -> Mounting:
        place = self._filesystems[name].places[node]
        return Mounting(place.path, getattr(place, "dataset", ""))

    async def _wait_here(self, name: str, node: str) -> None:
        late = self._host.reactor.seconds() + MOUNT_IN
        while (state := self.state(name, node)) is not None and not state.usable:
            if self._host.reactor.seconds() > late:
                raise _gone(name, node, state)
            # Not for longer: what was mounted and turns writable is not mounted once more.
            waiting = self._mounts.on_mount.wait(_key(name, node), LOOK_EVERY)
            if await waiting is Outcome.REFUSED:
                raise NotThere(f"{name} is watched no more on {node}")

    async def _wait_there(self, name: str, node: str) -> None:
        late = self._host.reactor.seconds() + MOUNT_IN
        while not (state := await self._look_there(name, node)).usable:
            if self._host.reactor.seconds() > late:
                raise _gone(name, node, state)
            await deferLater(self._host.reactor, LOOK_EVERY)

    async def _look(self, name: str, node: str) -> None:
        state = self.state(name, node)
        state = await self._look_there(name, node) if state is None else state
        if not state.usable:
            raise _gone(name, node, state)

    async def _look_there(self, name: str, node: str) -> MountState:
        """How it stands with a mount on another node."""
        errands = Errands(self._host.shell(node), name)  # a mover's as well: they run already
        try:
            table = await errands.run("cat", "/proc/self/mountinfo")
            return states(table.encode(), {name: self._mounting(name, node)})[name]
        except (ShellError, ValueError) as problem:
            return MountState(False, why=str(problem))


def _gone(name: str, node: str, state: MountState) -> NotThere:
    return NotThere(f"{name} is not mounted on {node}: {state.trouble}")


def _key(name: str, node: str) -> str:
    return f"{name}@{node}"  # neither has an "@"
