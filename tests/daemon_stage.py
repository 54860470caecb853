"""A daemon of its own process, origins that write down what reaches them, clients, operators.

A test takes a ``stage`` fixture (:func:`a_stage`), puts origins and a daemon on it, and
drives them from the test's reactor; operators speak to the daemon from threads, as the
command does.  Whatever was put on the stage is taken down at the end, the daemon by its
process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest_twisted  # type: ignore[import-untyped]
from stage_clients import Answer, Talk
from stage_origins import Asked, Origin
from stage_waiting import HOST, PATIENCE, reactor, until, until_async
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.threads import deferToThread

from awesomeproxy.control.client import Client, Notified
from awesomeproxy.control.protocol import RpcError, request_line
from awesomeproxy.load.plan import Plan
from awesomeproxy.load.result import Result
from awesomeproxy.load.run import Run

__all__ = [
    "HOST",
    "PATIENCE",
    "TWIST",
    "TWISTD",
    "Answer",
    "Asked",
    "Daemon",
    "Failed",
    "Load",
    "Origin",
    "Stage",
    "Talk",
    "a_stage",
    "free_ports",
    "reactor",
    "site",
    "twisted_fixture",
    "twisted_test",
    "until",
]

F = TypeVar("F", bound=Callable[..., Any])
twisted_test: Callable[[F], F] = pytest_twisted.ensureDeferred
twisted_fixture: Callable[[F], F] = pytest_twisted.async_yield_fixture

# Below those that the kernel gives to clients; processes begin at different ones.
PORTS = deque(random.sample(range(20_000, 32_000), 12_000))

TWISTD = "from twisted.scripts.twistd import run; run()"
TWIST = "from twisted.application.twist._twist import Twist; Twist.main()"
COMMAND = "import sys; from awesomeproxy.control.cli import main; sys.exit(main())"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, none of those that the kernel gives to clients."""
    found: list[int] = []
    while len(found) < count:
        port = PORTS[0]
        PORTS.rotate(-1)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            found.append(port)
    return found


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
    name: str = "node1"
    host: str = HOST  # that it listens on
    inside: tuple[str, ...] = ()  # what runs a command where the daemon is

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
                f'name = "{self.name}"',
                f'state_dir = "{self.directory / "state"}"',
                f'control = "{self.control}"',
                node,
                "[[listen]]",
                f'endpoint = "tcp:{self.port}:interface={self.host}"',
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
                [*self.inside, sys.executable, "-c", runner, *own, *words, *service],
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
        endpoint = TCP4ClientEndpoint(reactor, self.host, self.port)
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
        self.plan = Plan(f"http://{daemon.host}:{daemon.port}{path}", headers=headers, **how)
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
