"""The connections of a node to the registry's Redis: there, or being made again.

There are three, to the same server, and if one is lost all are: there is one state.  What is
asked on ``firm`` may have to wait there until replicas have it, which nothing else should wait
for; ``heard`` brings what others tell.

Nothing is asked before the script ``enter`` has said which *epoch* of the data this is.  Each
process of Redis that is written to begins another one, since after a fail-over or a restart
the newest changes may be missing; so whoever comes back knows that there is something to
compare.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import ConnectionError as Lost  # type: ignore[import-untyped]
from txredisapi import ResponseError

from awesomeproxy.model import Cluster
from awesomeproxy.registry.clock import RegistryClock
from awesomeproxy.registry.interface import Doubtful, RegistryError, Unreachable
from awesomeproxy.registry.master import (
    Asking,
    Connections,
    Hearing,
    Master,
    Refused,
    authenticate,
    password,
    watch,
)
from awesomeproxy.registry.scripts import NAMES, WRITES, digest, script

log = Logger()

SCHEMA = 1  # of the keys; see docs/registry.md
FIRST, LONGEST, GROWTH = 0.1, 2.0, 1.5  # seconds between tries to connect
KINDS = (Asking, Asking, Hearing)  # to ask on, to ask firmly on, to be told on
COPY = 1000  # milliseconds that one WAIT may take


@dataclass(slots=True)
class Origin:
    """Which data a node has seen, so that it notices when it meets other or older data."""

    cluster: str = ""  # an id that was drawn when the data were new
    epoch: int = 0
    run: str = ""  # the process of Redis that the epoch is of
    kept: dict[int, int] = field(default_factory=dict)  # epoch -> the version it began with


class Link:
    """The connections."""

    def __init__(self, reactor: Any, cluster: Cluster, origin: Origin, clock: RegistryClock):
        """
        :param origin: what was seen before; it is kept up to date.
        :param clock: learns what time it is there.
        """
        self._reactor = reactor
        self._cluster = cluster
        self._clock = clock
        self._master = Master(reactor, cluster)
        self.origin = origin
        self.keys = f"{cluster.prefix}:{SCHEMA}:"
        self._channels: dict[bytes, Callable[[str], None]] = {}
        self._connections: list[Any] = []
        self._broken: Deferred[None] | None = None  # fires when these connections are lost
        self._running: Deferred[None] | None = None
        self._told: set[str] = set()  # problems since it was reached last
        self.connected = False
        self.ready = False  # connected, and whoever has to has caught up
        self.problem = "it was not reached yet"  # why it is not connected
        self._lost_at = reactor.seconds()
        self.copies = cluster.replicas  # how many replicas had what was asked for last
        self.counters = {"reconnects": 0, "epochs": 0}
        self.on_ready: Callable[[], Awaitable[None]] = _nothing
        self.on_lost: list[Callable[[], None]] = []

    @property
    def epoch(self) -> int:
        """Of the data that it is connected to, or was."""
        return self.origin.epoch

    @property
    def where(self) -> str:
        """What it is called in messages."""
        hosts = ", ".join(f"{host}:{port}" for host, port in self._cluster.addresses)
        return f"the registry at {hosts}"

    @property
    def trouble(self) -> str:
        """Why nothing can be asked of it, for people."""
        why = self.problem.removesuffix(".")
        return why if why.startswith(self.where) else f"{self.where} cannot be reached: {why}"

    @property
    def lost(self) -> float:
        """Seconds for which it has not been ready; 0: it is."""
        return 0.0 if self.ready else self._reactor.seconds() - self._lost_at

    def start(self) -> None:
        """Connect, and do so again whenever that is lost."""
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(_cancelled)

    def close(self) -> None:
        """Let go of it."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        self._drop("it was closed")

    def listen(self, channel: str, callback: Callable[[str], None]) -> None:
        """Have ``callback`` called with what is published on a channel of ours."""
        name = (self.keys + channel).encode()
        self._channels[name] = callback
        if self._connections:
            self._connections[2].subscribe([name]).addErrback(lambda _: None)

    async def call(self, name: str, *args: str, firm: bool = False) -> str:
        """What a script answers.

        :param args: its arguments after the epoch.
        :param firm: :meth:`copied` is going to be asked for it.
        :raise Unreachable: it was not done.
        :raise Doubtful: it may have been done.
        :raise RegistryError: Redis refuses it.
        """
        self._check_connected()
        epoch = () if name == "enter" else (str(self.origin.epoch),)
        connection = self._connections[1 if firm else 0]
        try:
            answer = await connection.eval(script(name), [self.keys], [*epoch, *args])
        except Lost as problem:
            self._drop(str(problem))
            kind = Doubtful if name in WRITES else Unreachable
            raise kind(f"{self.where} was lost: {problem}") from None
        except ResponseError as problem:
            text = str(problem)
            if "READONLY" in text or "LOADING" in text or "MASTERDOWN" in text:
                self._drop(f"it is not the master: {text}")
                raise Unreachable(f"{self.where} is not the master any more") from None
            raise RegistryError(f"{self.where} refuses {name}: {text}") from None
        said: str = answer.decode()
        if said == "EPOCH":
            self._drop("its data have begun another epoch")
            raise Unreachable(f"{self.where} has begun anew; it is read again")
        return said

    async def copied(self) -> int:
        """How many replicas have, after a second at the most, all that was called as ``firm``.

        :raise Unreachable: that cannot be known any more.
        """
        if not self._cluster.replicas:
            return 0
        self._check_connected()
        try:
            words = ("WAIT", str(self._cluster.replicas), str(COPY))
            self.copies = int(await self._connections[1].execute_command(*words))
        except (Lost, ResponseError) as problem:
            self._drop(str(problem))
            raise Unreachable(f"{self.where} was lost: {problem}") from None
        return self.copies

    async def kept(self) -> bool:
        """Whether as many replicas as must have it; see :meth:`copied`."""
        return await self.copied() >= self._cluster.replicas

    async def replicas(self) -> int:
        """How many replicas there are, whatever they have.

        :raise RegistryError: that cannot be known now.
        """
        self._check_connected()
        try:
            _, _, replicas = await self._connections[0].role()
        except Lost as problem:
            self._drop(str(problem))
            raise Unreachable(f"{self.where} was lost: {problem}") from None
        except ResponseError as problem:
            raise RegistryError(f"{self.where} refuses ROLE: {problem}") from None
        return len(replicas)

    def _check_connected(self) -> None:
        if not self.connected:
            raise Unreachable(self.trouble)

    def publish(self, channel: str, text: str) -> None:
        """Tell all that listen on a channel of ours; nobody may hear it."""
        if self.connected:
            self._connections[0].publish(self.keys + channel, text).addErrback(lambda _: None)

    def renew(self, why: str) -> None:
        """Connect anew: the data are not those that were entered."""
        self._drop(why)

    # The connections

    async def _run(self) -> None:
        delay = FIRST
        while True:
            try:
                await self._connect()
                delay, self._told = FIRST, set()
                broken = self._broken = Deferred()
                self.connected = True
                try:
                    await self.on_ready()
                    if self.connected:
                        self.ready = True
                        self.problem = ""
                except RegistryError as problem:
                    self._drop(str(problem))
                await broken
            except CancelledError:
                raise
            except Exception as problem:
                if self._connections or not isinstance(problem, Lost):  # else it is told already
                    self._drop(_why(problem))
                self._tell()
                if not isinstance(problem, Refused | OSError | ConnectError | Lost | ResponseError):
                    log.failure("{where}: cannot be reached", where=self.where)
            await deferLater(self._reactor, delay)
            delay = min(delay * GROWTH, LONGEST)
            self.counters["reconnects"] += 1

    def _tell(self) -> None:
        """Say why it cannot be reached, each reason once."""
        if self.problem not in self._told:
            self._told.add(self.problem)
            log.warn("{trouble}", trouble=self.trouble)

    async def _connect(self) -> None:
        address = await self._master.find()
        word = password(self._cluster.password_file)
        endpoint = self._master.endpoint(address)
        for kind in KINDS:
            connection: Any = await endpoint.connect(Connections(kind))
            self._connections.append(connection)
            connection.whenDisconnected().addCallback(self._disconnected)
            watch(connection, self._cluster.lease)
            await authenticate(connection, self._cluster.user, word)
            if kind is Hearing:
                connection.messageReceived = self._heard
                await gatherResults([connection.subscribe([each]) for each in self._channels])
            else:
                if self._cluster.db:
                    await connection.select(self._cluster.db)
                for name in NAMES:
                    await connection.script_load(script(name))
                    connection.script_hashes.add(digest(name))
        self._check_whole()
        await self._enter()
        self._check_whole()

    def _check_whole(self) -> None:
        if len(self._connections) < len(KINDS):  # one was lost, and with it those before
            raise Lost("the connection was lost")

    async def _enter(self) -> None:
        origin = self.origin
        sent = self._clock.monotonic()
        args = (str(origin.epoch), origin.run, origin.cluster, secrets.token_hex(8))
        answer = await self._connections[1].eval(script("enter"), [self.keys], args)
        word, *rest = answer.decode().splitlines()
        said = word.split()
        if said[0] == "EMPTY" or said[0] == "OTHER":
            what = "is empty" if said[0] == "EMPTY" else f"is cluster {said[1]}'s"
            raise Refused(
                f"{self.where} {what}, but this node belongs to cluster {origin.cluster}; restore "
                "its data, or if they are lost for good remove cluster.json from the state "
                "directories of all nodes, and start these anew"
            )
        if said[0] == "EVICTS":
            raise Refused(
                f"{self.where} drops whatever it likes when it is full ({said[1]}), and what is"
                " held would be forgotten; set its maxmemory-policy to noeviction"
            )
        if said[0] == "SCHEMA":
            raise Refused(f"its keys have schema {said[1]}, not {SCHEMA}; use one version alone")
        epoch = int(said[1])
        if epoch != origin.epoch:
            self.counters["epochs"] += 1
        origin.epoch, origin.run, origin.cluster = epoch, said[2], said[3]
        origin.kept = {int(each): int(kept) for each, kept in map(str.split, rest)}
        self._clock.take(sent, self._clock.monotonic(), int(said[4]) + int(said[5]) / 1e6)

    def _heard(self, pattern: object, channel: bytes, message: bytes) -> None:
        callback = self._channels.get(channel)
        if callback is None:
            return
        try:
            callback(message.decode())
        except (ValueError, IndexError, TypeError) as problem:
            log.error(
                "{where}: what was told on {channel} is none of ours: {why!r}",
                where=self.where,
                channel=channel.decode(errors="replace"),
                why=problem,
            )

    def _disconnected(self, connection: Asking | Hearing) -> None:
        if connection in self._connections:
            self._drop(connection.why_lost)

    def _drop(self, why: str) -> None:
        """Have no connection any more; it is made again."""
        self.problem = why
        connections, self._connections = self._connections, []
        was, self.connected, self.ready = self.connected, False, False
        for each in connections:
            each.transport.abortConnection()
        if was:
            self._lost_at = self._reactor.seconds()
            for callback in list(self.on_lost):
                callback()
        broken, self._broken = self._broken, None
        if broken is not None:
            broken.callback(None)


def _why(problem: Exception) -> str:
    """What somebody can read who has to correct it."""
    text = str(problem) or type(problem).__name__
    if isinstance(problem, ResponseError) and text.startswith("NOAUTH"):
        return f"{text.removesuffix('.')}; name a file that has a password in cluster.password_file"
    return text


async def _nothing() -> None:
    pass


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)  # type: ignore[no-untyped-call]
