"""Directories for the mover that uses rsync, and processes that hold them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from mover_contract import FilesystemStage
from mover_stage import ONE, TWO
from stage_waiting import reactor

from awesomeproxy.movers.interface import Job, Place
from awesomeproxy.movers.rsync import RSYNC, Directory, Rsync
from awesomeproxy.movers.shell import Reach, Shell
from awesomeproxy.shapes import Spot


def options(**written: Any) -> Any:
    """Options as they are read from a config file."""
    spot = Spot("test")
    read = RSYNC.options.read(written, spot)
    assert not spot.marred, spot.lines()
    return read


class RsyncStage(FilesystemStage):
    """Two directories, each on this node or on one that is reached through ssh."""

    def __init__(self, directory: Path, shells: dict[Any, Shell], **written: Any) -> None:
        self._directory = directory
        self.shells = shells
        self._written = written
        self.paths = {ONE: directory / ONE, TWO: directory / "deeper" / TWO}
        self.paths[ONE].mkdir(parents=True)

    def path(self, side: str) -> Path:
        return self.paths[side]

    def mover(
        self, migration: int, source: str = ONE, target: str = TWO, slow: bool = False
    ) -> Rsync:
        written = {"bandwidth": self.bulk // 4, **self._written} if slow else self._written
        places = {
            side: Place(shell.reach.name, shell, Directory(str(self.paths[side])))
            for side, shell in self.shells.items()
        }
        scratch = str(self._directory)
        asked = options(**written)
        return Rsync(Job("web", migration, places[source], places[target], asked, reactor, scratch))

    async def close(self) -> None:
        await super().close()
        for path in self.paths.values():
            while subprocess.run(["umount", "-l", path], capture_output=True).returncode == 0:
                pass


def here() -> Shell:
    """A shell on this node."""
    return Shell(reactor, Reach("here"))


async def a_stage(tmp_path: Path) -> AsyncIterator[RsyncStage]:
    stage = RsyncStage(tmp_path, {ONE: here(), TWO: here()})
    yield stage
    await stage.close()


MAPPED = """
import mmap, os, sys
file = os.open("file", os.O_RDWR)
kept = mmap.mmap(file, 4)
os.close(file)
os.chdir("/")
"""
OPENED = 'import os\nfile = os.open("file", os.O_RDWR)\nos.chdir("/")'
DIRECTORY = 'import os\nfile = os.open(".", os.O_RDONLY)\nos.chdir("/")'
INSIDE = ""
READS = 'import os\nfile = os.open("file", os.O_RDONLY)\nos.chdir("/")'


def holding(directory: Path, how: str, *before: str) -> subprocess.Popen[bytes]:
    """A process that holds a directory in some way."""
    script = how + '\nprint("ready", flush=True)\nimport sys\nsys.stdin.read()'
    holder = subprocess.Popen(
        [*before, sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=directory,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    return holder
