"""Btrfs for tests: two of them in files, and a subvolume that is moved between them."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mover_contract import FilesystemStage
from mover_stage import ONE, TWO
from slow_shell import SlowShell
from ssh_stage import SshStage
from stage_waiting import reactor

from awesomeproxy.movers.btrfs import BTRFS, BtrfsPlace
from awesomeproxy.movers.interface import Job, Place
from awesomeproxy.movers.shell import Reach, Shell

SIZE = 512 << 20  # bytes of each
COUNTER = itertools.count()


def run(*argv: str | Path) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def btrfs(directory: Path) -> Iterator[Path]:
    """One that is mounted there; its file is in memory, where that can be."""
    memory = Path("/dev/shm")
    name = f"awesomeproxy{os.getpid()}n{next(COUNTER)}"
    file = (memory if memory.is_dir() else Path(tempfile.gettempdir())) / f"{name}.img"
    with open(file, "wb") as opened:
        opened.truncate(SIZE)
    at = directory / name
    at.mkdir()
    try:
        run("mkfs.btrfs", "-q", "-m", "single", file)
        run("mount", "-o", "loop", file, at)
        try:
            yield at
        finally:
            run("umount", at)
    finally:
        file.unlink()


class BtrfsStage(FilesystemStage):
    """Two of them, a node each."""

    def __init__(self, name: str, roots: dict[str, Path]) -> None:
        self.roots = {side: root / name for side, root in roots.items()}
        self.shells: dict[Any, Shell] = {}
        self.snapshots = ""  # the setting
        for root in self.roots.values():
            root.mkdir()
        run("btrfs", "subvolume", "create", self.path(ONE))

    def path(self, side: str) -> Path:
        return self.roots[side] / "it's the\tsite"

    def kept(self, side: str) -> Path:
        """Where the mover keeps its snapshots."""
        return self.roots[side] / ".awesomeproxy" / self.path(side).name

    def place(self, side: str, slow: bool = False) -> Place:
        """The place on one side."""
        settings = BtrfsPlace(str(self.path(side)), self.snapshots)
        return Place(side, self.shell(side, slow), settings)

    def make_shell(self, side: str, slow: bool, far: SshStage | None) -> Shell:
        if slow and far is None:
            return SlowShell(reactor, Reach(side))
        return super().make_shell(side, slow, far)

    def mover(
        self, migration: int, source: str = ONE, target: str = TWO, slow: bool = False
    ) -> Any:
        places = self.place(source, slow), self.place(target)
        return BTRFS.make(Job("site", migration, *places, {}, reactor, str(self.roots[ONE])))

    @property
    def harms(self) -> dict[str, Callable[[Path], object]]:
        return {**super().harms, "mode": lambda at: (at / "one").chmod(0o604)}

    def labels(self, side: str) -> list[str]:
        """What is kept on one side."""
        kept = self.kept(side)
        return sorted(os.listdir(kept)) if kept.exists() else []

    async def leftovers(self, side: str) -> list[str]:
        other = self.labels(TWO if side == ONE else ONE)
        return [label for label in self.labels(side) if label not in other[-1:]]

    async def close(self) -> None:
        await super().close()
        for side, root in self.roots.items():
            for at in (*(self.kept(side) / label for label in self.labels(side)), self.path(side)):
                if at.is_dir() and os.stat(at).st_ino == 256:
                    run("btrfs", "subvolume", "delete", at)
            run("rm", "-rf", root)
