"""A daemon of its own process, origins that write down what reaches them, clients, operators.

A test takes a ``stage`` fixture (:func:`a_stage`), puts origins and a daemon on it, and
drives them from the test's reactor; operators speak to the daemon from threads, as the
command does.  Whatever was put on the stage is taken down at the end, the daemon by its
process id.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httptools
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from awesomeproxy.control.client import Client, Notified
from awesomeproxy.control.protocol import RpcError, request_line
from awesomeproxy.load.plan import Plan
from awesomeproxy.load.result import Result
from awesomeproxy.load.run import Run

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
twisted_test: Callable[[F], F] = pytest_twisted.ensureDeferred
twisted_fixture: Callable[[F], F] = pytest_twisted.async_yield_fixture

reactor: Any = _reactor
HOST = "127.0.0.1"
PATIENCE = 20.0  # seconds until a test gives up waiting for what should happen at once
TWISTD = "from twisted.scripts.twistd import run; run()"
TWIST = "from twisted.application.twist._twist import Twist; Twist.main()"
COMMAND = "import sys; from awesomeproxy.control.cli import main; sys.exit(main())"


async def until(happened: Callable[[], T], what: str = "it") -> T:
    """Wait until ``happened`` answers with something true, and answer with that."""
    late = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < late, f"{what} has not happened in {PATIENCE:g} s"
        await deferLater(reactor, 0.005)
    return found


async def until_async(happened: Callable[[], Awaitable[T]], what: str = "it") -> T:
    """The same, of something that has to be awaited to be known."""
    late = time.monotonic() + PATIENCE
    while not (found := await happened()):
        assert time.monotonic() < late, f"{what} has not happened in {PATIENCE:g} s"
        await deferLater(reactor, 0.01)
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


# Origins


@dataclass
class Asked:
    """A request as it reached an origin."""

    method: str
    path: str
    headers: dict[str, str]
    at: float  # time.monotonic() of its first byte
    body: bytes = b""
    complete: bool = False


class OriginConnection(Protocol):
    """Reads requests with llhttp, and lets the origin answer each when it is complete."""

    transport: Any

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.parser = httptools.HttpRequestParser(self)
        self.asked: Asked | None = None
        self.upgraded = False
        self._at = 0.0

    def connectionMade(self) -> None:
        self.origin.connections.add(self)
        self.origin.connected += 1

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.origin.connections.discard(self)

    def dataReceived(self, data: bytes) -> None:
        self._at = time.monotonic()
        self.origin.bytes_at.append(self._at)
        if self.upgraded:
            self.transport.write(b"echo " + data)
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.upgraded = True

    def on_message_begin(self) -> None:
        self.asked = Asked("", "", {}, self._at)

    def on_url(self, url: bytes) -> None:
        assert self.asked is not None
        self.asked.path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self.asked is not None
        self.asked.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        assert self.asked is not None
        self.asked.method = self.parser.get_method().decode()
        self.origin.asked.append(self.asked)

    def on_body(self, body: bytes) -> None:
        assert self.asked is not None
        self.asked.body += body

    def on_message_complete(self) -> None:
        assert self.asked is not None
        self.asked.complete = True
        self.origin.answer(self, self.asked)

    def reply(self, body: bytes, status: str = "200 OK") -> None:
        self.transport.write(
            b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)
        )


class Origin(Factory):
    """A server that answers at once, or when it is told to, and keeps all it was asked.

    - ``/later`` is answered by :meth:`let_go`, not before; ``/begun`` ends with it;
    - ``/events`` is an event stream without an end, ``/upgrade`` echoes what comes after;
    - ``/health`` says how it is; ``/crash`` closes the connection without an answer;
    - anything else: ``NAME PATH``, after what ``work`` has done.
    """

    noisy = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections: set[OriginConnection] = set()
        self.connected = 0  # connections it has had
        self.asked: list[Asked] = []
        self.bytes_at: list[float] = []  # when bytes came, by time.monotonic()
        self.waiting: list[tuple[OriginConnection, Asked]] = []
        self.healthy = True
        self.delay = 0.0  # seconds before an answer
        self.work: Callable[[Asked], None] = lambda asked: None
        self.port = 0
        self._listening: Any = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def buildProtocol(self, addr: object) -> OriginConnection:
        return OriginConnection(self)

    def open(self) -> None:
        """Listen, the second time at the same place."""
        self._listening = reactor.listenTCP(self.port, self, backlog=1024, interface=HOST)
        self.port = self._listening.getHost().port

    async def close(self) -> None:
        """Refuse connections from now on, and end those that there are."""
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.stopListening()
        for connection in list(self.connections):
            connection.transport.abortConnection()
        await until(lambda: not self.connections, "the end of an origin's connections")

    def paths(self, method: str = "") -> list[str]:
        """What was asked for, but for health checks."""
        return [
            asked.path
            for asked in self.asked
            if asked.path != "/health" and method in ("", asked.method)
        ]

    async def has(self, path: str, count: int = 1) -> None:
        """Wait until a path has been asked for so many times."""
        await until(lambda: self.paths().count(path) >= count, f"{path} at {self.name}")

    def let_go(self) -> None:
        """Answer those who wait."""
        waiting, self.waiting = self.waiting, []
        for connection, asked in waiting:
            if asked.path == "/begun":
                connection.transport.write(b"0\r\n\r\n")
            else:
                connection.reply(f"{self.name} {asked.path}".encode())

    def answer(self, connection: OriginConnection, asked: Asked) -> None:
        path = asked.path.partition("?")[0]
        transport = connection.transport
        if path == "/later":
            self.waiting.append((connection, asked))
        elif path == "/begun":
            self.waiting.append((connection, asked))
            transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        elif path == "/events":
            transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"
            )
        elif path == "/upgrade":
            transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
            )
        elif path == "/health":
            connection.reply(b"", "200 OK" if self.healthy else "503 Service Unavailable")
        elif path == "/crash":
            transport.abortConnection()
        elif self.delay:
            reactor.callLater(self.delay, self._reply, connection, asked)
        else:
            self._reply(connection, asked)

    def _reply(self, connection: OriginConnection, asked: Asked) -> None:
        self.work(asked)
        if connection.transport.connected:
            connection.reply(f"{self.name} {asked.path}".encode())


# Clients


@dataclass
class Answer:
    """A response, and how its connection ended."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Talk(Protocol):
    """A client's connection: sends what it is told, keeps what it gets."""

    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.closed = False
        self.clean = False  # closed with an end of file

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self.clean = isinstance(reason.value, ConnectionDone)

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def ask(self, path: str, host: str = "blog.test", method: str = "GET", more: str = "") -> None:
        """Send a request without a body."""
        self.send(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode())

    async def gets(self, text: bytes, count: int = 1) -> None:
        """Wait until ``text`` has come so many times."""
        await until(
            lambda: self.data.count(text) >= count or self.closed, f"{text!r} in {self.data!r}"
        )
        assert self.data.count(text) >= count, f"closed before {text!r}: {self.data!r}"

    async def ends(self) -> Answer:
        """Wait for the end of the connection; the (only) answer."""
        await until(lambda: self.closed, f"the end after {self.data!r}")
        return self.answer()

    def answer(self) -> Answer:
        head, _, body = self.data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        fields = (line.partition(": ") for line in lines)
        status = int(first.split()[1]) if first else 0
        return Answer(status, {name.lower(): value for name, _, value in fields}, body)

    async def close(self) -> None:
        """Leave."""
        if not self.closed:
            self.transport.abortConnection()
        await until(lambda: self.closed, "leaving")


# The daemon


@dataclass
class Ended:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Failed(Exception):
    """The daemon's error, as the operator gets it."""

    def __init__(self, message: str, data: Any) -> None:
        super().__init__(message)
        self.data = data or {}

    @property
    def winner(self) -> dict[str, Any]:
        """Who was first."""
        winner: dict[str, Any] = self.data["winner"]
        return winner


@dataclass
class Daemon:
    """A daemon and what an operator can do to it."""

    directory: Path
    port: int
    text: str = ""
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    talks: list[Talk] = field(default_factory=list)

    @property
    def control(self) -> str:
        return str(self.directory / "control.sock")

    @property
    def config(self) -> Path:
        return self.directory / "awesomeproxy.toml"

    @property
    def log(self) -> str:
        """What the latest process has written."""
        return (self.directory / f"log.{self.starts}").read_text()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def configure(self, *sites: str, node: str = "", listen: str = "") -> None:
        """Write the configuration file."""
        self.text = "\n".join(
            [
                "[node]",
                'name = "node1"',
                f'state_dir = "{self.directory / "state"}"',
                f'control = "{self.control}"',
                node,
                "[[listen]]",
                f'endpoint = "tcp:{self.port}:interface={HOST}"',
                listen,
                *sites,
                "",
            ]
        )
        self.config.write_text(self.text)

    def spawn(self, runner: str = TWISTD, *words: str) -> None:
        """Start the process; :meth:`serves` waits for it."""
        self.starts += 1
        own = ["-n", "--pidfile="] if runner is TWISTD else []
        service = ["awesomeproxy", f"--config={self.config}"]
        with open(self.directory / f"log.{self.starts}", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", runner, *own, *words, *service],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def serves(self) -> Daemon:
        """Wait until it serves."""
        await until(lambda: " serves " in self.log or not self.running, "the daemon's start")
        assert self.running, self.log
        return self

    async def start(self) -> Daemon:
        self.spawn()
        return await self.serves()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def exits(self) -> int:
        """Wait for the end of the process; its status."""
        await until(lambda: not self.running, "the daemon's end")
        assert self.process is not None
        return self.process.returncode

    async def kill(self) -> None:
        """``kill -9``."""
        self.signal(signal.SIGKILL)
        await self.exits()

    # Operators

    def ask(self, method: str, notified: Notified | None = None, **params: Any) -> Deferred[Any]:
        """A command; fails with :class:`Failed` or :class:`Unreachable`."""
        return deferToThread(self._ask, method, params, notified)

    def _ask(self, method: str, params: dict[str, Any], notified: Notified | None) -> Any:
        with Client(self.control, PATIENCE) as client:
            try:
                return client.call(method, params, notified)
            except RpcError as error:
                raise Failed(str(error), error.data) from None

    def at_once(self, *calls: tuple[str, dict[str, Any]]) -> Deferred[dict[str, Any]]:
        """Commands sent together on one connection; the answers by method, as they came."""
        return deferToThread(self._at_once, calls)

    def _at_once(self, calls: tuple[tuple[str, dict[str, Any]], ...]) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(self.control)
            connection.sendall(b"".join(request_line(name, name, params) for name, params in calls))
            for line in connection.makefile("rb"):
                message = json.loads(line)
                if "method" not in message:
                    answers[message["id"]] = message
                if len(answers) == len(calls):
                    break
        return answers

    def command(self, *words: str) -> Deferred[Ended]:
        """The ``awesomeproxy`` command."""
        return deferToThread(self._command, words)

    def _command(self, words: tuple[str, ...]) -> Ended:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *words],
            env={**os.environ, "AWESOMEPROXY_CONTROL": self.control},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    async def site(self, name: str = "blog") -> dict[str, Any]:
        """What ``status`` says of a site."""
        result = await self.ask("status", site=name)
        site: dict[str, Any] = result["sites"][0]
        return site

    async def until_site(self, name: str = "blog", **wanted: Any) -> dict[str, Any]:
        """Wait until ``status`` says so of a site."""

        async def look() -> dict[str, Any] | None:
            site = await self.site(name)
            return site if all(site[key] == value for key, value in wanted.items()) else None

        found = await until_async(look, f"{wanted} of {name}")
        assert found is not None
        return found

    # Clients

    async def connect(self) -> Talk:
        endpoint = TCP4ClientEndpoint(reactor, HOST, self.port)
        talk: Talk = await connectProtocol(endpoint, Talk())  # type: ignore[no-untyped-call]
        self.talks.append(talk)
        return talk

    async def get(
        self, path: str = "/", host: str = "blog.test", method: str = "GET", more: str = ""
    ) -> Answer:
        """One request on a connection of its own."""
        talk = await self.connect()
        talk.ask(path, host, method, more + "Connection: close\r\n")
        return await talk.ends()

    def fetch(self, path: str = "/", **how: Any) -> Deferred[Answer]:
        """The same, begun now and awaited later."""
        return Deferred.fromCoroutine(self.get(path, **how))

    def load(self, **how: Any) -> Load:
        """Traffic until it is stopped; the same arguments as a Plan's."""
        return Load(self, how)


class Load:
    """Traffic in the background."""

    def __init__(self, daemon: Daemon, how: dict[str, Any]) -> None:
        how = {"rate": 100.0, "duration": 60.0, "connections": 64, "timeout": PATIENCE, **how}
        host = how.pop("host", "blog.test")
        path = how.pop("path", "/{n}")
        headers = (("Host", host), *how.pop("headers", ()))
        self.plan = Plan(f"http://{HOST}:{daemon.port}{path}", headers=headers, **how)
        self.run = Run(reactor, self.plan)
        self.result: Deferred[Result] = Deferred.fromCoroutine(self.run.go())

    async def flows(self, count: int = 20) -> None:
        """Wait until some more requests have been answered."""
        wanted = self.run.result.finished + count
        await until(lambda: self.run.result.finished >= wanted, "traffic")

    async def stop(self) -> Result:
        """Send no more, and wait for the answers."""
        self.run.stop()
        return await self.result

    async def passes(self) -> Result:
        """Stop, and see that nothing has failed."""
        result = await self.stop()
        assert result.passed, f"{result.outcomes()} {result.statuses()} {result.reasons}"
        assert result.finished, "there was no traffic"
        return result


@dataclass
class Stage:
    """What a test has put on it."""

    directory: Path
    origins: list[Origin] = field(default_factory=list)
    daemons: list[Daemon] = field(default_factory=list)
    at_end: list[Callable[[], object]] = field(default_factory=list)

    def origin(self, name: str) -> Origin:
        """An origin that listens."""
        origin = Origin(name)
        origin.open()
        self.origins.append(origin)
        return origin

    def two(self) -> tuple[Origin, Origin]:
        """Where a site is, and where it can go."""
        return self.origin("one"), self.origin("two")

    def daemon(self) -> Daemon:
        """A daemon that is neither configured nor started."""
        directory = self.directory / f"daemon{len(self.daemons)}"
        directory.mkdir()
        daemon = Daemon(directory, free_ports(1)[0])
        self.daemons.append(daemon)
        return daemon

    async def serving(self, *sites: str, node: str = "", listen: str = "") -> Daemon:
        """A daemon that serves sites."""
        daemon = self.daemon()
        daemon.configure(*sites, node=node, listen=listen)
        return await daemon.start()

    async def blog(self, *, node: str = "", **more: Any) -> tuple[Daemon, Origin, Origin]:
        """A daemon with the site ``blog`` on ``one``, which can go to ``two``."""
        one, two = self.two()
        daemon = await self.serving(site("blog", one, two, **more), node=node)
        return daemon, one, two

    async def clear(self) -> None:
        for daemon in self.daemons:
            if daemon.running:
                await daemon.kill()
            for talk in daemon.talks:
                await talk.close()
        for origin in self.origins:
            await origin.close()
        for close in self.at_end:
            close()


def site(
    name: str,
    *origins: Origin,
    more: str = "",
    health: bool = False,
    placed: str = "",
    hosts: tuple[str, ...] = (),
) -> str:
    """The table of a site, with a backend of the origin's name for each."""
    lines = [
        f"[sites.{name}]",
        f"hosts = {json.dumps(list(hosts or (f'{name}.test',)))}",
        f'backend = "{placed or origins[0].name}"',
        more,
    ]
    for origin in origins:
        lines += [f"[sites.{name}.backends.{origin.name}]", f'servers = ["{origin.url}"]']
        if health:
            lines += ['health = { path = "/health", interval = "100ms", rise = 1, fall = 1 }']
    return "\n".join(lines)


async def a_stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """An empty stage, for ``stage = twisted_fixture(a_stage)``."""
    made = Stage(tmp_path)
    yield made
    await made.clear()
