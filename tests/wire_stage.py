"""Real servers behind the listener of a database: PostgreSQL, MariaDB, and PgBouncer before it.

A server is one process with one set of data, and two addresses, TCP and a Unix socket.  These
are the two places of the database: moving it moves no data, but connections.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from daemon_stage import free_ports
from stage_waiting import HOST, PATIENCE, reactor, until
from twisted.internet.threads import deferToThread

from awesomeproxy.model import (
    Database,
    DatabaseBackend,
    DatabaseDrain,
    DesiredDatabase,
    Listen,
    Mode,
    Observed,
    Placement,
    Server,
)
from awesomeproxy.proxy.plane import Plane

T = TypeVar("T")
PROGRAMS = "/usr/lib/postgresql/15/bin"
USER = "postgres"  # its server does not run as root
_AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
_LEASH = ["setpriv", "--pdeathsig", "KILL", "--"]


@dataclass
class Process:
    """A server of a test's own."""

    directory: Path
    port: int
    argv: list[str]
    socket: Path
    running: subprocess.Popen[bytes] | None = None

    def start(self, answers: Callable[[], bool]) -> None:
        """Start it; returns when it answers."""
        with open(self.directory / "log", "ab") as log:
            self.running = subprocess.Popen(
                [*_LEASH, *self.argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        late = time.monotonic() + PATIENCE
        while not answers():
            assert self.running.poll() is None, (self.directory / "log").read_text()[-2000:]
            assert time.monotonic() < late, (self.directory / "log").read_text()[-2000:]
            time.sleep(0.03)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it."""
        running, self.running = self.running, None
        if running is not None:
            running.send_signal(how)
            try:
                running.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()

    @property
    def backends(self) -> dict[str, DatabaseBackend]:
        """The two places: the one address, and the other."""
        tcp = Server("tcp", HOST, self.port)
        unix = Server("unix", path=str(self.socket))
        return {"one": DatabaseBackend("one", tcp), "two": DatabaseBackend("two", unix)}


def _directory(name: str) -> Path:
    directory = Path(tempfile.mkdtemp(prefix=name))
    user = pwd.getpwnam(USER)
    os.chown(directory, user.pw_uid, user.pw_gid)
    return directory


def _quietly(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True).returncode == 0


def a_postgres(**settings: str) -> Iterator[Process]:
    """A PostgreSQL server, for a module's fixture."""
    directory, port = _directory("wire-pg"), free_ports(1)[0]
    try:
        how = ["--no-sync", "--auth=trust", f"--username={USER}", f"--pgdata={directory}/data"]
        subprocess.run(
            [*_AS_USER, "--", f"{PROGRAMS}/initdb", *how],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        settings = {
            "listen_addresses": HOST,
            "port": str(port),
            "unix_socket_directories": str(directory),
            "fsync": "off",
            "shared_buffers": "16MB",
            "lc_messages": "C",
            **settings,
        }
        argv = [*_AS_USER, "--", f"{PROGRAMS}/postgres", "-D", f"{directory}/data"]
        argv += [f"--{key}={value}" for key, value in settings.items()]
        server = Process(directory, port, argv, directory / f".s.PGSQL.{port}")
        ready = [f"{PROGRAMS}/pg_isready", "-q", "-h", str(directory), "-p", str(port)]
        server.start(lambda: _quietly(*ready))
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def a_mariadb() -> Iterator[Process]:
    """A MariaDB server, for a module's fixture; its user ``app`` has no password."""
    directory, port = _directory("wire-my"), free_ports(1)[0]
    data, sock = directory / "data", directory / "socket"
    try:
        installed = subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={data}",
                "--user=root",
                "--auth-root-authentication-method=socket",
                "--innodb-use-native-aio=0",  # the kernel has only so much of it for all
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert installed.returncode == 0, installed.stdout[-2000:]
        argv = [
            shutil.which("mariadbd") or "/usr/sbin/mariadbd",
            "--no-defaults",
            "--user=root",
            f"--datadir={data}",
            f"--socket={sock}",
            f"--port={port}",
            f"--bind-address={HOST}",
            "--innodb-buffer-pool-size=16M",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-use-native-aio=0",
            "--skip-name-resolve",
            "--local-infile=1",
        ]
        server = Process(directory, port, argv, sock)
        asks = ["mariadb", "--no-defaults", f"--socket={sock}", "-e"]
        server.start(lambda: _quietly(*asks, "SELECT 1"))
        grant = "CREATE USER app@'%'; CREATE USER app@localhost; CREATE DATABASE shop;"
        grant += " GRANT ALL ON *.* TO app@'%'; GRANT ALL ON *.* TO app@localhost"
        subprocess.run([*asks, grant], check=True)
        try:
            yield server
        finally:
            server.stop(signal.SIGKILL)  # it takes its time otherwise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def a_pgbouncer(port: int, password: str = "", **settings: str) -> Iterator[Process]:
    """A PgBouncer whose database ``shop`` is what listens at ``port``.

    :param password: of its administrator.
    """
    directory, own = _directory("wire-pgb"), free_ports(1)[0]
    try:
        settings = {
            "listen_addr": HOST,
            "listen_port": str(own),
            "unix_socket_dir": str(directory),
            "auth_type": "trust",
            "auth_file": f"{directory}/users",
            "pool_mode": "transaction",
            "admin_users": "pgbouncer",
            "server_login_retry": "0.1",
            **settings,
        }
        lines = [f"{key} = {value}\n" for key, value in settings.items()]
        shop = f"shop = host={HOST} port={port} dbname=postgres\n"
        (directory / "users").write_text(f'"{USER}" ""\n"pgbouncer" "{password}"\n')
        (directory / "ini").write_text("".join(["[databases]\n", shop, "[pgbouncer]\n", *lines]))
        argv = [*_AS_USER, "--", shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"]
        server = Process(directory, own, [*argv, f"{directory}/ini"], directory / f".s.PGSQL.{own}")
        server.start(server.socket.exists)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class Wire:
    """A plane with one database, ``shop``, in front of a server."""

    plane: Plane
    definition: Database
    port: int
    changes: list[str] = field(default_factory=list)
    generation: int = 1
    backend: str = "one"

    @property
    def seen(self) -> Observed:
        found = self.plane.observed("database:shop")
        assert found is not None
        return found

    def place(self, mode: Mode, backend: str = "") -> None:
        """Apply the next placement."""
        self.generation += 1
        self.backend = backend or self.backend
        placement = Placement("database:shop", self.backend, mode, self.generation)
        self.plane.apply_database(DesiredDatabase(self.definition, placement))

    async def hold(self) -> None:
        """Hold, and wait until it is drained."""
        self.place(Mode.HOLDING)
        await until(lambda: self.seen.drained, f"drained: {self.seen}")

    def move(self) -> None:
        """Let go on at the other place."""
        self.place(Mode.OPEN, "two" if self.backend == "one" else "one")


@contextlib.asynccontextmanager
async def wire(server: Process, protocol: Any, **more: Any) -> AsyncIterator[Wire]:
    """A plane in front of ``server``; ``more`` is what is special about the database."""
    port = free_ports(1)[0]
    endpoint = f"tcp:{port}:interface={HOST}"
    more.setdefault("drain", DatabaseDrain(grace=0.3, tunnels=1.0))
    definition = Database("shop", endpoint, "one", server.backends, protocol=protocol, **more)
    changes: list[str] = []
    plane = Plane(reactor, on_change=changes.append)
    plane.apply_database(DesiredDatabase(definition, Placement("database:shop", "one")))
    listens: list[Listen] = []
    await plane.listen(listens, [definition])
    try:
        yield Wire(plane, definition, port, changes)
    finally:
        await plane.stop(0.0)
        await until(lambda: not plane.links, "the end of all connections")


def in_thread(work: Callable[..., T], *arguments: Any) -> Any:
    """A Deferred for what ``work`` returns, while the reactor goes on."""
    return deferToThread(work, *arguments)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """How a command has ended, and what it has said."""
    with suppress(subprocess.TimeoutExpired):
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err
    process.kill()
    return -1, *process.communicate()
