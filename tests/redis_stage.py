"""Real Redis servers for tests: alone, with a replica, and with Sentinels."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = 30.0  # seconds for a server to do what it was asked
KEEP = (
    "for _, k in ipairs(redis.call('KEYS', ARGV[1]..':*')) do redis.call('COPY', k, 'past:'..k) end"
)
LOSE = """
for _, k in ipairs(redis.call('KEYS', ARGV[1]..':*')) do redis.call('DEL', k) end
for _, k in ipairs(redis.call('KEYS', 'past:*')) do redis.call('RENAME', k, string.sub(k, 6)) end
redis.call('HSET', ARGV[1]..':1:meta', 'run', 'another')
"""


def program(name: str) -> str:
    """Where a program is; without it the test fails under CI, and is skipped elsewhere."""
    found = shutil.which(name)
    if found is None:
        missing = f"{name} is not installed; it is Debian's package {name}"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def free_port() -> int:
    """A TCP port on the loopback address that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Redis:
    """One server, or one Sentinel; it may be stopped and started again on the same port."""

    def __init__(self, directory: Path, *options: str, port: int = 0, sentinel: str = "") -> None:
        """
        :param options: as on its command line.
        :param sentinel: the configuration of a Sentinel; empty: it is a server.
        """
        self.directory = directory
        self.port = port or free_port()
        self._options = options
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        if sentinel:
            (directory / "sentinel.conf").write_text(sentinel)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        common = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        if self._sentinel:
            argv = [program("redis-sentinel"), str(self.directory / "sentinel.conf"), *common]
        else:
            quiet = ["--save", "", "--repl-diskless-sync-delay", "0", "--appendonly", "yes"]
            argv = [program("redis-server"), *common, *quiet, *self._options]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        late = time.monotonic() + PATIENCE
        while not self.ask("PING").startswith(("PONG", "NOAUTH")):
            assert time.monotonic() < late, (self.directory / "log").read_text()
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, by whatever signal."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal, such as SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(number)

    def ask(self, *words: str) -> str:
        """What it answers, as redis-cli prints it."""
        argv = [program("redis-cli"), "-p", str(self.port), *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()

    def keep(self, prefix: str) -> None:
        """Remember what there is now, for :meth:`lose`."""
        self.ask("EVAL", KEEP, "0", prefix)

    def lose(self, prefix: str) -> None:
        """Have what there was then, as a replica that was promoted would: it has missed the
        rest, and is another process."""
        assert not self.ask("EVAL", LOSE, "0", prefix)

    def until(self, wanted: str, *words: str) -> None:
        """Wait until its answer has ``wanted`` in it."""
        late = time.monotonic() + PATIENCE
        while wanted not in (answer := self.ask(*words)):
            assert time.monotonic() < late, f"{words} answers {answer!r}, not {wanted!r}"
            time.sleep(0.02)


@contextmanager
def redis(directory: Path, *options: str) -> Iterator[Redis]:
    """A server by itself."""
    server = Redis(directory, *options)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


class Watched:
    """A master with a replica, and three Sentinels that watch them."""

    name = "ours"

    def __init__(self, directory: Path) -> None:
        self.servers: list[Redis] = [Redis(directory / "one")]
        follow = ("--replicaof", f"127.0.0.1 {self.servers[0].port}")
        self.servers.append(Redis(directory / "two", *follow))
        self.servers[1].until("master_link_status:up", "INFO", "replication")
        watch = (
            f"sentinel monitor {self.name} 127.0.0.1 {self.servers[0].port} 2\n"
            f"sentinel down-after-milliseconds {self.name} 1000\n"
            f"sentinel failover-timeout {self.name} 5000\n"
        )
        self.sentinels = [
            Redis(directory / f"sentinel-{number}", sentinel=watch) for number in range(3)
        ]
        for each in self.sentinels:
            each.until("num-other-sentinels\n2", "SENTINEL", "MASTER", self.name)
            each.until("num-slaves\n1", "SENTINEL", "MASTER", self.name)

    @property
    def master(self) -> Redis:
        """The one that Sentinels name."""
        port = self.sentinels[0].ask("SENTINEL", "get-master-addr-by-name", self.name).split()[1]
        return next(each for each in self.servers if each.port == int(port))

    @property
    def replica(self) -> Redis:
        """The other one."""
        return next(each for each in self.servers if each is not self.master)

    def stop(self) -> None:
        """End all of them."""
        for each in (*self.sentinels, *self.servers):
            each.stop(signal.SIGKILL)


@contextmanager
def watched(directory: Path) -> Iterator[Watched]:
    """Such a group."""
    group = Watched(directory)
    try:
        yield group
    finally:
        group.stop()
