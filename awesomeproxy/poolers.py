"""The PgBouncers in front of databases: they keep clients waiting while theirs is held.

Whoever opens a database has its pooler go on, once and for all nodes; and so does a daemon
that starts, because its pooler may still keep clients waiting: the end of a pause has come by
itself, or the daemon has died before it had written down that the database was to be held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from awesomeproxy.model import DATABASE, Database, Generation, Mode, Placement, Settings
from awesomeproxy.movers.pgbouncer import PgBouncer
from awesomeproxy.movers.shell import Shell

log = Logger()

WAKE_TRIES = 10
TRY_AGAIN = 1.0  # seconds between them


class Host(Protocol):
    """What is asked of the node."""

    reactor: Any
    settings: Settings
    stopping: bool

    def placement(self, name: str) -> Placement:
        """Where something is placed."""

    def moving(self, name: str) -> bool:
        """Whether a migration has to do with it."""

    def shell(self, node: str) -> Shell:
        """What runs commands on a node."""


class Poolers:
    """Those of a node's databases, which are called as their placements are."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._opened: dict[str, Generation] = {}  # and nobody here has done it yet
        self._rousing: set[Deferred[None]] = set()

    def __repr__(self) -> str:
        return f"<Poolers: {len(self._rousing)} to go on>"

    def has(self, name: str) -> bool:
        """Whether there is one in front of a database."""
        database = self._database(name)
        return database is not None and database.pgbouncer is not None

    def quieten(self, name: str) -> Deferred[None]:
        """Have it keep its clients waiting; if it cannot, they go on, and this fails."""
        return Deferred.fromCoroutine(self._quieten(name))

    async def _quieten(self, name: str) -> None:
        database = self._database(name)
        if database is not None and (pooler := self._of(database)) is not None:
            await pooler.pause(database.drain.time)

    def wake(self, name: str) -> Deferred[None]:
        """Have it let them go on; nothing happens if it does already, and it may fail."""
        return Deferred.fromCoroutine(self._wake(name))

    async def _wake(self, name: str) -> None:
        database = self._database(name)
        if database is not None and (pooler := self._of(database)) is not None:
            await pooler.resume()

    def awaken(self, name: str) -> Deferred[None]:
        """The same for one that is not to be left asleep: it is tried again, and never fails."""
        return Deferred.fromCoroutine(self._until_awake(name, lambda: True))

    def adopted(self, before: Placement | None, placement: Placement, *, heard: bool) -> None:
        """A database is placed anew.

        :param heard: as of :meth:`Node.adopt`: it is for who has opened it to wake its pooler,
            who may hear of that before it is told that it has.
        """
        name = placement.site
        if before is not None and (before.mode, placement.mode) == (Mode.HOLDING, Mode.OPEN):
            self._opened[name] = placement.generation
        if not heard and self._opened.pop(name, None) == placement.generation:
            self.rouse(name)

    def rouse(self, name: str) -> None:
        """Wake it, if need be later."""
        if not self.has(name) or self._host.stopping or self._host.moving(name):
            return
        rousing = Deferred.fromCoroutine(self._until_awake(name, lambda: self._is_open(name)))
        self._rousing.add(rousing)

        def roused(result: object) -> None:
            self._rousing.discard(rousing)
            if isinstance(result, Failure) and not isinstance(result.value, CancelledError):
                log.failure("{name}: cannot be roused", result, name=name)

        rousing.addBoth(roused)

    async def _until_awake(self, name: str, wanted: Callable[[], bool]) -> None:
        for _ in range(WAKE_TRIES):
            if not wanted():
                return
            try:
                return await self._wake(name)
            except CancelledError:
                raise
            except Exception as problem:
                log.error("{name}: {why}", name=name, why=problem)
            await deferLater(self._host.reactor, TRY_AGAIN)

    def stop(self) -> None:
        """Try to wake none any more."""
        for rousing in list(self._rousing):
            rousing.cancel()

    def _is_open(self, name: str) -> bool:
        return self._host.placement(name).mode is Mode.OPEN

    def _database(self, name: str) -> Database | None:
        return self._host.settings.databases.get(name.removeprefix(DATABASE))

    def _of(self, database: Database) -> PgBouncer | None:
        if database.pgbouncer is None:
            return None
        return PgBouncer(self._host.shell(self._host.settings.name), database.pgbouncer)
