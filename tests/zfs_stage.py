"""ZFS for tests: Debian's ``zfs-fuse``, pools in files, and a filesystem that is moved between.

There can be one ``zfs-fuse`` on a machine: its socket is always the same.  Whoever needs it
first starts it, and whoever has no more use for it last ends it; files that are locked tell.
One that was running before is used, and left running.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mover_contract import ONE, TWO, FilesystemStage
from slow_shell import SlowShell
from stage_waiting import PATIENCE, reactor

from awesomeproxy.movers.interface import Job, Place
from awesomeproxy.movers.shell import Reach, Shell
from awesomeproxy.movers.zfs import ZFS, ZfsOptions, ZfsPlace

LOCKS = Path(tempfile.gettempdir())
STARTING = LOCKS / "awesomeproxy-zfs-fuse.starting"  # who starts or ends it has this locked
IN_USE = LOCKS / "awesomeproxy-zfs-fuse.in-use"  # who uses it shares a lock of this
PID = LOCKS / "awesomeproxy-zfs-fuse.pid"  # of one that tests have started
DAEMON = ("zfs-fuse", "--no-daemon", "--no-kstat-mount", "--enable-xattr")
SIZE = 256 << 20  # bytes of a pool
COUNTER = itertools.count()
STARTED: list[subprocess.Popen[bytes]] = []  # the daemons that this process has started


def run(*argv: str | Path) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def again(*argv: str | Path) -> None:
    """Run it until it succeeds: what has just been used is busy for a moment."""
    late = time.monotonic() + PATIENCE
    while (done := subprocess.run(argv, capture_output=True, text=True, check=False)).returncode:
        assert time.monotonic() < late, f"{argv}: {done.stderr}"
        time.sleep(0.05)


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Have a file locked."""
    with open(path, "wb") as file:
        fcntl.flock(file, how)
        yield


def answers() -> bool:
    """Whether the daemon is there."""
    return subprocess.run(["zpool", "list"], capture_output=True, check=False).returncode == 0


def _start() -> None:
    with open(f"{PID}.log", "wb") as log:
        process = subprocess.Popen(
            DAEMON, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    STARTED.append(process)
    PID.write_text(str(process.pid))
    late = time.monotonic() + PATIENCE
    while not answers():
        assert process.poll() is None, Path(f"{PID}.log").read_text()
        assert time.monotonic() < late, "zfs-fuse does not answer"
        time.sleep(0.02)


def _end() -> None:
    """End the daemon, if tests have started it and nobody uses it any more."""
    with contextlib.suppress(BlockingIOError), locked(IN_USE, fcntl.LOCK_EX | fcntl.LOCK_NB):
        if not PID.exists():
            return
        pid = int(PID.read_text())
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == "zfs-fuse\n":
                os.kill(pid, signal.SIGKILL)
        for process in STARTED:
            if process.pid == pid:
                process.wait()
        PID.unlink()
        Path(f"{PID}.log").unlink()


@contextlib.contextmanager
def zfs_fuse() -> Iterator[None]:
    """Have the daemon running."""
    using = contextlib.ExitStack()
    try:
        with locked(STARTING, fcntl.LOCK_EX):
            if not answers():
                _start()
            using.enter_context(locked(IN_USE, fcntl.LOCK_SH))
        yield
    finally:
        with locked(STARTING, fcntl.LOCK_EX):
            using.close()
            _end()


@contextlib.contextmanager
def pool() -> Iterator[str]:
    """The name of a pool that is in a file; in memory, where that can be."""
    name = f"awesomeproxy{os.getpid()}n{next(COUNTER)}"
    memory = Path("/dev/shm")
    file = (memory if memory.is_dir() else Path(tempfile.gettempdir())) / f"{name}.img"
    with open(file, "wb") as opened:
        opened.truncate(SIZE)
    try:
        run("zpool", "create", "-o", "cachefile=none", "-O", "mountpoint=none", name, file)
        yield name
    finally:
        again("zpool", "destroy", "-f", name)
        file.unlink()


class ZfsStage(FilesystemStage):
    """Two pools, a node each."""

    def __init__(self, directory: Path, pools: dict[str, str]) -> None:
        self.directory = directory
        self.datasets = {side: f"{pools[side]}/sites/{side}.test" for side in (ONE, TWO)}
        self.options = ZfsOptions()
        if PID.exists():
            self.servers = (int(PID.read_text()),)
        for name in pools.values():
            run("zfs", "create", f"{name}/sites")
        self.make(ONE)

    def make(self, side: str) -> None:
        """Make a new filesystem on one side."""
        run("zfs", "create", "-o", f"mountpoint={self.path(side)}", self.datasets[side])

    def path(self, side: str) -> Path:
        return self.directory / f"the {side}'s site"

    def place(self, side: str, slow: bool = False) -> Place:
        """The place on one side."""
        shell = (SlowShell if slow else Shell)(reactor, Reach(side))
        return Place(side, shell, ZfsPlace(self.datasets[side], str(self.path(side))))

    def mover(
        self, migration: int, source: str = ONE, target: str = TWO, slow: bool = False
    ) -> Any:
        places = self.place(source, slow), self.place(target)
        scratch = str(self.directory)
        return ZFS.make(Job("site", migration, *places, self.options, reactor, scratch))

    def exists(self, side: str) -> bool:
        """Whether there is a filesystem on one side."""
        listed = run("zfs", "list", "-H", "-r", "-o", "name", self.datasets[side].split("/")[0])
        return self.datasets[side] in listed.splitlines()

    def labels(self, side: str) -> list[str]:
        """The snapshots on one side."""
        if not self.exists(side):
            return []
        words = ("zfs", "list", "-H", "-r", "-t", "snapshot", "-o", "name", self.datasets[side])
        return [name.partition("@")[2] for name in run(*words).splitlines()]

    async def leftovers(self, side: str) -> list[str]:
        other = self.labels(TWO if side == ONE else ONE)
        return [label for label in self.labels(side) if label not in other[-1:]]

    def get(self, side: str, key: str) -> str:
        """A property."""
        return run("zfs", "get", "-H", "-o", "value", key, self.datasets[side]).strip()

    def close(self) -> None:
        """Take it all away again."""
        for name in self.datasets.values():
            sites = name.rpartition("/")[0]
            again("zfs", "destroy", "-r", sites)
