"""The stage of the demo: a daemon, two backends, a database, and their directory.

The daemon is the real one, in a process of its own, and is told what to do through its
control socket, as an operator's ``awesomeproxy`` would.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread

from awesomeproxy.control.client import Client
from awesomeproxy.demo.children import Child, ChildFailed
from awesomeproxy.demo.database import Database

SITE = "demo"
BACKENDS = ("web1", "web2")
HOST = "localhost"
ANSWER_TIMEOUT = 60.0  # seconds of silence of the daemon

CONFIGURATION = """\
[node]
name = "demo"
state_dir = "{directory}/state"
control = "{directory}/control.sock"
access_log = "{directory}/access.log"
drain_time = "2s"

[[listen]]
endpoint = "tcp:{port}:interface=127.0.0.1"

[sites.demo]
hosts = ["localhost"]
backend = "web1"
"""
BACKEND = """
[sites.demo.backends.{name}]
servers = ["http://127.0.0.1:{port}"]
health.path = "/health"
"""
SITE_MODULE = "awesomeproxy.demo.site"
TWISTD = "from twisted.scripts.twistd import run; run()"


class Stage:
    """What the demo plays on.  Set it up with :meth:`start`, and :meth:`close` it."""

    def __init__(
        self, reactor: Any, think: tuple[float, float], on_death: Callable[[ChildFailed], None]
    ) -> None:
        """
        :param think: the shortest and the longest time that a request takes, in seconds.
        :param on_death: told when a process dies unasked.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="awesomeproxy-demo-"))
        self.database = Database.create(self.directory / "updates.sqlite")
        self.ports = dict(zip(("daemon", *BACKENDS), free_ports(1 + len(BACKENDS)), strict=True))
        self._reactor = reactor
        self._think = think
        self._on_death = on_death
        self._children: dict[str, Child] = {}

    @property
    def url(self) -> str:
        """Where the daemon takes the site's requests."""
        return f"http://{HOST}:{self.ports['daemon']}"

    async def start(self) -> None:
        """Start everything.

        :raises ChildFailed: if something does not start.
        """
        text = CONFIGURATION.format(directory=self.directory, port=self.ports["daemon"])
        for name in BACKENDS:
            text += BACKEND.format(name=name, port=self.ports[name])
        configuration = self.directory / "awesomeproxy.toml"
        configuration.write_text(text)
        options = ("-n", "--pidfile=", "awesomeproxy", "--config", str(configuration))
        self._spawn("the daemon", ["-c", TWISTD, *options], "serves 1 site")
        for name in BACKENDS:
            self._spawn_backend(name)
        for child in list(self._children.values()):
            await child.ready()

    async def ask(
        self,
        method: str,
        progress: Callable[[str, dict[str, Any]], None] | None = None,
        **params: object,
    ) -> Mapping[str, Any]:
        """Tell the daemon to do something, and return what it answers.

        :param progress: called (in a thread) with what the daemon says in between.
        :raises RpcError: if it could not be done.
        :raises Unreachable: if the daemon does not answer.
        """

        def call() -> Any:
            with Client(str(self.directory / "control.sock"), ANSWER_TIMEOUT) as client:
                return client.call(method, params, progress)

        result: Mapping[str, Any] = await deferToThread(call)
        return result

    async def status(self) -> Mapping[str, Any]:
        """What the daemon says of the site."""
        answer = await self.ask("status", site=SITE)
        found: Mapping[str, Any] = answer["sites"][0]
        return found

    async def kill(self, backend: str) -> None:
        """Kill a backend's process."""
        await self._children[backend].kill()

    async def restart(self, backend: str) -> None:
        """Start a backend that was killed, and wait until it is ready."""
        await self._spawn_backend(backend).ready()

    async def close(self) -> None:
        """End all processes and remove all files."""
        await DeferredList([Deferred.fromCoroutine(c.stop()) for c in self._children.values()])
        self.database.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _spawn_backend(self, name: str) -> Child:
        shortest, longest = map(str, self._think)
        options = ("--name", name, "--port", str(self.ports[name]), "--think", shortest, longest)
        database = ("--database", str(self.directory / "updates.sqlite"))
        return self._spawn(name, ["-m", SITE_MODULE, *options, *database], "is ready")

    def _spawn(self, name: str, arguments: list[str], ready: str) -> Child:
        child = Child(self._reactor, name, arguments, ready, self._on_death)
        self._children[name] = child
        return child


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface on which nothing listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
