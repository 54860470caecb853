"""ZFS for tests: Debian's ``zfs-fuse``, pools in files, and a filesystem that is moved between.

There can be one ``zfs-fuse`` on a machine: its socket is always the same.  So each has a mount
namespace for itself (a :class:`Zone`), and all that deals with it is run in there.  That also
keeps its mounts from being copied into the namespaces that other tests make, where they would
stay in use after they have been unmounted; and they go with the daemon.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mover_contract import FilesystemStage
from mover_stage import ONE, TWO
from slow_shell import slowed
from ssh_stage import SshStage
from stage_waiting import PATIENCE, reactor

from awesomeproxy.movers.interface import Job, Place
from awesomeproxy.movers.shell import Reach, Shell
from awesomeproxy.movers.zfs import ZFS, ZfsOptions, ZfsPlace

DAEMON = "exec zfs-fuse --no-daemon --no-kstat-mount --enable-xattr"
# Its socket and its lock are below /run.  What is unmounted outside is so inside, too.
OWN = ["unshare", "--mount", "--propagation", "slave", "sh", "-c"]
START = f"mount -t tmpfs tmpfs /run && mkdir /run/lock && {DAEMON}"
SIZE = 256 << 20  # bytes of a pool
COUNTER = itertools.count()


class Zone:
    """A daemon, and the namespace that it is in."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "zfs-fuse.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*OWN, START], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.enter = ["nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt", "--"]

    def try_out(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        words = [*self.enter, *argv]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def run(self, *argv: str | Path) -> str:
        """What a command prints; it has to succeed, in some seconds: what has just been used
        is busy for a moment."""
        late = time.monotonic() + PATIENCE
        while True:
            done = self.try_out(*argv)
            if done.returncode == 0:
                return done.stdout
            said = f"{argv}: {done.stdout}{done.stderr}{self.log.read_text()}"
            assert "busy" in said or "connect" in said, said
            assert time.monotonic() < late, said
            time.sleep(0.02)

    def outside(self, path: Path) -> Path:
        """A path in it, as others see it."""
        return Path(f"/proc/{self.process.pid}/root{path}")


@contextlib.contextmanager
def zfs_fuse(directory: Path) -> Iterator[Zone]:
    """Have a daemon running, which writes its log into a directory."""
    zone = Zone(directory)
    try:
        zone.run("zpool", "list")  # until it answers
        yield zone
    finally:
        zone.process.kill()
        zone.process.wait()


@contextlib.contextmanager
def pool(zone: Zone) -> Iterator[str]:
    """The name of a pool that is in a file; in memory, where that can be."""
    name = f"pool{next(COUNTER)}"
    memory = Path("/dev/shm")
    directory = memory if memory.is_dir() else Path(tempfile.gettempdir())
    file = directory / f"awesomeproxy-{os.getpid()}-{name}.img"
    with open(file, "wb") as opened:
        opened.truncate(SIZE)
    try:
        zone.run("zpool", "create", "-o", "cachefile=none", "-O", "mountpoint=none", name, file)
        yield name
    finally:
        file.unlink()


class ZoneShell(Shell):
    """Runs commands of a node in a namespace that is there."""

    zone: Zone
    slow = False

    def command(self, argv: Sequence[str]) -> list[str]:
        words = slowed(argv) if self.slow else argv
        return super().command([*self.zone.enter, *words])


class ZfsStage(FilesystemStage):
    """Two pools, a node each."""

    def __init__(self, directory: Path, zone: Zone, pools: dict[str, str]) -> None:
        self.directory = directory
        self.zone = zone
        self.servers = (zone.process.pid,)
        self.datasets = {side: f"{pools[side]}/sites/{side}.test" for side in (ONE, TWO)}
        self.options = ZfsOptions()
        self.shells: dict[Any, Shell] = {}
        for name in pools.values():
            zone.run("zfs", "create", f"{name}/sites")
        self.make(ONE)

    def make(self, side: str) -> None:
        """Make a new filesystem on one side."""
        at = f"mountpoint={self.inside(side)}"
        self.zone.run("zfs", "create", "-o", at, self.datasets[side])

    def inside(self, side: str) -> Path:
        """Where it is, as it is seen in the zone."""
        return self.directory / f"the {side}'s site"

    def path(self, side: str) -> Path:
        return self.zone.outside(self.inside(side))

    def make_shell(self, side: str, slow: bool, far: SshStage | None) -> Shell:
        reach, control = (Reach(side), "") if far is None else (far.reach(), far.control)
        shell = ZoneShell(reactor, reach, control)
        shell.zone, shell.slow = self.zone, slow
        return shell

    def place(self, side: str, slow: bool = False) -> Place:
        """The place on one side."""
        settings = ZfsPlace(self.datasets[side], str(self.inside(side)))
        return Place(side, self.shell(side, slow), settings)

    def mover(
        self, migration: int, source: str = ONE, target: str = TWO, slow: bool = False
    ) -> Any:
        places = self.place(source, slow), self.place(target)
        scratch = str(self.directory)
        return ZFS.make(Job("site", migration, *places, self.options, reactor, scratch))

    @property
    def harms(self) -> dict[str, Callable[[Path], object]]:
        return {**super().harms, "mode": lambda at: (at / "one").chmod(0o604)}

    def exists(self, side: str) -> bool:
        """Whether there is a filesystem on one side."""
        listed = self.zone.run(
            "zfs", "list", "-H", "-r", "-o", "name", self.datasets[side].split("/")[0]
        )
        return self.datasets[side] in listed.splitlines()

    def labels(self, side: str) -> list[str]:
        """The snapshots on one side."""
        if not self.exists(side):
            return []
        words = ("zfs", "list", "-H", "-r", "-t", "snapshot", "-o", "name", self.datasets[side])
        return [name.partition("@")[2] for name in self.zone.run(*words).splitlines()]

    async def leftovers(self, side: str) -> list[str]:
        other = self.labels(TWO if side == ONE else ONE)
        return [label for label in self.labels(side) if label not in other[-1:]]

    def get(self, side: str, key: str) -> str:
        """A property."""
        return self.zone.run("zfs", "get", "-H", "-o", "value", key, self.datasets[side]).strip()

    async def close(self) -> None:
        await super().close()
        for name in self.datasets.values():
            self.zone.run("zfs", "destroy", "-r", name.rpartition("/")[0])
