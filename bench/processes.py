"""Processes the benchmark starts: each on its core, and none left behind.

A process gets a session of its own, so that Ctrl-C in the terminal reaches only
the benchmark, which then ends what it started, each by its own process group.
Should the benchmark itself be killed, the kernel kills the processes (``setpriv
--pdeathsig``).  The proxies have one core; load, origin and the benchmark another.
"""

from __future__ import annotations

import http.client
import os
import random
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
MODULES = {"PYTHONPATH": str(ROOT)}  # the environment in which module() is found
HOST = "localhost"  # what every request and every TLS handshake asks for

# What is run, and the Debian package that has it.
TOOLS = {
    "wrk": "wrk",
    "h2load": "nghttp2-client",
    "haproxy": "haproxy",
    "caddy": "caddy",
    "nginx": "nginx",
    "dot": "graphviz",
    "gprof2dot": "",  # a Python package, see pyproject.toml
    "taskset": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "rsync": "rsync",
    "zfs-fuse": "zfs-fuse",
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
}

Role = Literal["proxy", "load"]


class BenchError(Exception):
    """A measurement that cannot be made, and why."""


class MissingTools(BenchError):
    """Programs that are not installed, and what installs them."""


@dataclass(frozen=True, slots=True)
class Process:
    """A running server: where it listens, and where its files are."""

    name: str
    pid: int
    port: int
    directory: Path
    popen: subprocess.Popen[bytes]
    certificate: Path | None = None  # what it proves itself with, if it speaks TLS

    @property
    def url(self) -> str:
        """Where it takes requests."""
        return f"{'https' if self.certificate else 'http'}://{HOST}:{self.port}"


def module(name: str) -> list[str]:
    """The command that runs a module of this package; it needs :data:`MODULES`."""
    return [sys.executable, "-m", f"bench.{name}"]


def require(*tools: str) -> None:
    """Raise :exc:`MissingTools` unless all of ``tools`` are installed."""
    missing = [t for t in tools if shutil.which(t, path=_path()) is None]
    if not missing:
        return
    packages = sorted({TOOLS[t] for t in missing} - {""})
    remedies = []
    if packages:
        remedies.append(f"apt-get install {' '.join(packages)}")
    if "gprof2dot" in missing:
        remedies.append("pip install 'awesomeproxy[bench]'")
    raise MissingTools(f"not installed: {', '.join(missing)}; try: {'; '.join(remedies)}")


def _path() -> str:
    # Debian keeps haproxy and nginx in sbin, which not every PATH has.
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


def program(name: str) -> str:
    """The full path of an installed program; raises :exc:`MissingTools`."""
    require(name)
    found = shutil.which(name, path=_path())
    assert found is not None
    return found


def prepare() -> None:
    """Move this process to the load's core and allow it, and its children, all files."""
    os.sched_setaffinity(0, {core_of("load")})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


_cores = sorted(os.sched_getaffinity(0))  # before prepare() narrows it


def core_of(role: Role) -> int:
    """The core that processes of this role run on; one for all if there is only one."""
    return _cores[0] if role == "proxy" else _cores[-1]


_used_ports: set[int] = set()


def free_port() -> int:
    """A loopback port nobody listens on, below those that clients are given."""
    for _ in range(1000):
        port = random.randrange(20_000, 32_000)
        if port in _used_ports:
            continue
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            _used_ports.add(port)
            return port
    raise BenchError("no free port between 20000 and 32000 on 127.0.0.1")


@contextmanager
def scratch() -> Iterator[Path]:
    """A new directory, in memory if there is room, removed at the end."""
    shm = Path("/dev/shm")
    roomy = os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2 << 30
    with tempfile.TemporaryDirectory(prefix="bench-", dir=shm if roomy else None) as name:
        yield Path(name)


def spawn(
    argv: Sequence[str],
    role: Role,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``argv`` on its role's core.  End it with :func:`end`.

    ``env`` is added to the environment of the benchmark.
    """
    prefix = [program("setpriv"), "--pdeathsig", "KILL"]
    prefix += [program("taskset"), "-c", str(core_of(role))]
    return subprocess.Popen(
        [*prefix, *argv],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


def end(popen: subprocess.Popen[bytes], grace: float = 10.0) -> None:
    """Ask a process and its group to end; kill them after ``grace`` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if popen.poll() is None:
            # Not reaped yet, so the id is still its own.
            os.killpg(popen.pid, number)
            with suppress(subprocess.TimeoutExpired):
                popen.wait(grace)
    for stream in (popen.stdin, popen.stdout, popen.stderr):
        if stream is not None:
            stream.close()


@contextmanager
def serving(
    name: str,
    argv: Sequence[str],
    role: Role,
    port: int,
    directory: Path,
    *,
    env: Mapping[str, str] | None = None,
    certificate: Path | None = None,
) -> Iterator[Process]:
    """Run a server until the end of the ``with``, entered once a request is answered 200.

    It is asked over TLS, and is to prove itself with it, if there is a ``certificate``.
    Raises :exc:`BenchError` with the end of its log if it does not answer.
    """
    log = directory / "output.log"
    with log.open("wb") as output:
        popen = spawn(
            argv, role, cwd=directory, env=env, stdout=output.fileno(), stderr=subprocess.STDOUT
        )
        try:
            process = Process(name, popen.pid, port, directory, popen, certificate)
            _wait_until_answered(process, log)
            yield process
        finally:
            end(popen)


def _wait_until_answered(server: Process, log: Path) -> None:
    name, popen, port = server.name, server.popen, server.port
    deadline = time.monotonic() + 15
    last = "nothing listens"
    while time.monotonic() < deadline:
        if popen.poll() is not None:
            raise BenchError(f"{name} ended with status {popen.returncode}: {tail(log)}")
        try:
            status = _ask(server)
            if status == 200:
                return
            last = f"it answers {status}"
        except (OSError, http.client.HTTPException) as error:
            last = str(error) or repr(error)
        time.sleep(0.05)
    raise BenchError(f"{name} is not ready on port {port} after 15 s ({last}): {tail(log)}")


def _ask(server: Process) -> int:
    client: http.client.HTTPConnection
    if server.certificate is None:
        client = http.client.HTTPConnection(HOST, server.port, timeout=2)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(server.certificate)
        client = http.client.HTTPSConnection(HOST, server.port, timeout=2, context=context)
    with closing(client):
        client.request("GET", "/small", headers={"Host": HOST})
        return client.getresponse().status


def tail(log: Path) -> str:
    """The end of a log, for an error."""
    lines = log.read_text(errors="replace").splitlines()[-15:]
    return "\n  ".join(["its log ends with", *lines]) if lines else "its log is empty"
