"""A look at a path tells of what is mounted there what the mount table tells."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_stage import Namespace, namespace, needs_telling_kernel

from awesomeproxy.mountinfo import Mount, Mounting, Place, Watchlist, parse
from awesomeproxy.mountpoint import Look

pytestmark = needs_telling_kernel


@pytest.fixture
def place() -> Iterator[Namespace]:
    with namespace() as place:
        yield place


def at(path: Path, process: str) -> Place:
    (way,) = Watchlist({"it": Mounting(str(path))}).ways.values()
    return Look(process).at(way)


def in_table(path: Path, process: str) -> Mount:
    lines = Path(process, "mountinfo").read_bytes().split(b"\n")[:-1]
    return [m for m in map(parse, lines) if m.point == os.fsencode(path)][-1]


class TestLooking:
    @pytest.mark.parametrize("path", ["/", "/proc"])
    def test_this_process(self, path: str) -> None:
        """What it has mounted is told in all its fields."""
        assert at(Path(path), "/proc/self").mount == in_table(Path(path), "/proc/self")

    @pytest.mark.parametrize("name", ["plain", "odd \t\n\\#", "\udcff"])
    @pytest.mark.parametrize("remounts", [["rw"], ["ro"], ["bind,ro"], ["ro", "bind,rw"]])
    def test_another_namespace(
        self, place: Namespace, tmp_path: Path, name: str, remounts: list[str]
    ) -> None:
        """What another process has mounted, too; any name is a name."""
        path = tmp_path / name
        path.mkdir()
        process = os.path.dirname(place.table)
        place.run("mount", "-t", "tmpfs", "--", f"{name} of us", path)
        place.run("mkdir", path / name)
        for options in remounts:
            place.run("mount", "-o", f"remount,{options}", path)
        place.run("mount", "--bind", path / name, path / name)
        for each in (path, path / name):
            assert at(each, process).mount == in_table(each, process)

    def test_a_subtype(self, place: Namespace, tmp_path: Path) -> None:
        """A filesystem in user space has a type of its own, after a dot."""
        server = os.open("/dev/fuse", os.O_RDWR)
        try:
            options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
            command = place.command("mount", "-i", "-t", "fuse.zfs", "-o", options, "x", tmp_path)
            subprocess.run(command, check=True, pass_fds=[server])
            found = at(tmp_path, os.path.dirname(place.table)).mount
            assert found is not None
            assert found.fstype == "fuse.zfs"
            assert found == in_table(tmp_path, os.path.dirname(place.table))
            with pytest.raises(OSError, match=r"fuse\.zfs may not answer"):
                at(tmp_path / "beneath", os.path.dirname(place.table))
        finally:
            os.close(server)

    def test_nothing_mounted(self, place: Namespace, tmp_path: Path) -> None:
        """The mount in which the last directory of a path lies is the place of all of it."""
        process = os.path.dirname(place.table)
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to("/proc")
        before = at(tmp_path, process)
        assert before.mount is None
        for name in ("none", "none/deep", "file", "file/deep", "link", "link/self"):
            assert at(tmp_path / name, process) == before
        place.run("mount", "-t", "tmpfs", "lid", tmp_path)
        now = at(tmp_path / "none", process)
        assert now == at(tmp_path / "none/deep", process) != before

    def test_a_source_that_is_not_told(self, place: Namespace, tmp_path: Path) -> None:
        """An empty source the kernel does not tell; so it is not taken for one."""
        place.run("mount", "-t", "tmpfs", "", tmp_path)
        with pytest.raises(OSError, match="does not tell all") as caught:
            at(tmp_path, os.path.dirname(place.table))
        assert caught.value.errno == errno.EOPNOTSUPP

    def test_no_process(self, tmp_path: Path) -> None:
        """Where there is none nothing can be told."""
        with pytest.raises(FileNotFoundError):
            at(tmp_path, str(tmp_path))
