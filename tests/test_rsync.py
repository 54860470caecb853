"""The mover that uses rsync: what all of filesystems promise, and what is its own."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from daemon_stage import twisted_fixture
from mover_contract import ONE, TWO, FilesystemContract, FilesystemStage
from ssh_stage import an_ssh_stage
from stage_waiting import reactor

from awesomeproxy.movers.interface import Job, Place
from awesomeproxy.movers.rsync import RSYNC, Directory, Rsync
from awesomeproxy.movers.shell import Reach, Shell
from awesomeproxy.shapes import Spot


def options(**written: Any) -> Any:
    """Options as they are read from a config file."""
    spot = Spot("test")
    read = RSYNC.options.read(written, spot)
    assert not spot.notes, spot.lines()
    return read


class RsyncStage(FilesystemStage):
    """Two directories, each on this node or on one that is reached through ssh."""

    def __init__(self, directory: Path, shells: dict[str, Shell], **written: Any) -> None:
        self._directory = directory
        self._shells = shells
        self._written = written
        self.paths = {ONE: directory / ONE, TWO: directory / "deeper" / TWO}
        self.paths[ONE].mkdir()

    def path(self, side: str) -> Path:
        return self.paths[side]

    def mover(
        self, migration: int, source: str = ONE, target: str = TWO, slow: bool = False
    ) -> Rsync:
        written = {"bandwidth": self.bulk // 4, **self._written} if slow else self._written
        places = {
            side: Place(shell.reach.name, shell, Directory(str(self.paths[side])))
            for side, shell in self._shells.items()
        }
        scratch = str(self._directory)
        asked = options(**written)
        return Rsync(Job("web", migration, places[source], places[target], asked, reactor, scratch))

    def clear(self) -> None:
        """Take the layers away."""
        for path in self.paths.values():
            while subprocess.run(["umount", "-l", path], capture_output=True).returncode == 0:
                pass


def here() -> Shell:
    """A shell on this node."""
    return Shell(reactor, Reach("here"))


async def a_stage(tmp_path: Path) -> AsyncIterator[RsyncStage]:
    stage = RsyncStage(tmp_path, {ONE: here(), TWO: here()})
    yield stage
    stage.clear()


stage = twisted_fixture(a_stage)
ssh = twisted_fixture(an_ssh_stage)


class TestRsync(FilesystemContract):
    """On one node."""
