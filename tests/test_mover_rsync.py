"""The mover that uses rsync: what all of filesystems promise, and what is its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from daemon_stage import twisted_fixture, twisted_test
from mover_contract import MB, ONE, TWO, FilesystemContract, FilesystemStage
from mover_trees import odd_tree, picture
from ssh_stage import NAME, OTHER, SshStage, an_ssh_stage
from stage_waiting import reactor
from twisted.internet.defer import CancelledError
from zope.interface.verify import verifyObject

from awesomeproxy.movers.finding import find
from awesomeproxy.movers.interface import IMover, Job, MoverError, Place
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
        self.paths[ONE].mkdir(parents=True)

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


@twisted_test
async def test_all_that_may_differ_is_found(stage: RsyncStage) -> None:
    """And what does not differ is verified, again and again."""
    one, two = stage.path(ONE), stage.path(TWO)
    odd_tree(one)
    for name in ("one", "two"):
        (one / name).write_bytes(b"one")
    os.link(one / "one", one / "linked")
    (one / "link").symlink_to("one")
    await stage.carry(1)
    file = two / "one"
    wrong: dict[str, Callable[[], Any]] = {
        "later": lambda: os.utime(file, ns=(0, os.stat(file).st_mtime_ns + 1)),
        "gone": lambda: (two / "two").unlink(),
        "more": lambda: (two / "new\nfile").write_bytes(b""),
        "mode": lambda: file.chmod(0o604),
        "owner": lambda: os.chown(file, 12, 34),
        "attribute": lambda: os.setxattr(file, "user.more", b"1"),
        "other attribute": lambda: os.setxattr(two / "rights", "user.directory", b"new"),
        "list": lambda: subprocess.run(["setfacl", "-m", "u:9:r", file], check=True),
        "hard link": lambda: ((two / "linked").unlink(), (two / "linked").write_bytes(b"one")),
        "link": lambda: ((two / "link").unlink(), (two / "link").symlink_to("two")),
        "kind": lambda: ((two / "two").unlink(), (two / "two").mkdir()),
    }
    for what, harm in wrong.items():
        kept = picture(two)
        copy = stage.path(TWO).with_name("kept")
        subprocess.run(["cp", "-a", "--reflink=auto", two, copy], check=True)
        harm()
        assert picture(two) != kept, what
        with pytest.raises(MoverError, match="not as at the source"):
            await stage.step("verify", 1)
        subprocess.run(["rsync", "-aHAXS", "--modify-window=-1", "--delete", f"{copy}/", f"{two}/"])
        shutil.rmtree(copy)
        assert picture(two) == kept, what
    await stage.step("verify", 1)


# Through ssh


def through_ssh(ssh: SshStage, directory: Path, **shells: Shell) -> RsyncStage:
    """A stage whose processes of sshd do not count as the mover's."""
    stage = RsyncStage(directory / "odd $place's \u00e9", shells)
    assert ssh.process is not None
    stage.servers = (ssh.process.pid,)
    return stage


@twisted_test
async def test_it_pushes_and_pulls(ssh: SshStage, tmp_path: Path) -> None:
    """To the other node, and back, from here."""
    stage = through_ssh(ssh, tmp_path, one=here(), two=ssh.shell())
    try:
        odd_tree(stage.path(ONE))
        before = picture(stage.path(ONE))
        await stage.move(1)
        assert picture(stage.path(TWO)) == before
        assert not stage.takes(ONE)
        (stage.path(TWO) / "more").write_bytes(b"more" * MB)
        before = picture(stage.path(TWO))
        await stage.step("check", 2, source=TWO, target=ONE)
        carried = await stage.step("presync", 2, source=TWO, target=ONE)
        assert carried is not None
        assert carried > 4 * MB
        await stage.move(2, source=TWO, target=ONE)
        assert picture(stage.path(ONE)) == before
        assert stage.takes(ONE)
        assert not stage.takes(TWO)
    finally:
        stage.clear()


@twisted_test
async def test_it_carries_from_one_far_node_to_another(ssh: SshStage, tmp_path: Path) -> None:
    """The one reaches the other; this node sees none of it but how far it is."""
    stage = through_ssh(ssh, tmp_path, one=ssh.shell(NAME), two=ssh.shell(OTHER))
    try:
        odd_tree(stage.path(ONE))
        (stage.path(ONE) / "large").write_bytes(os.urandom(MB))
        before = picture(stage.path(ONE))
        sizes: list[int] = []
        await stage.step("check", 1)
        assert await stage.mover(1).presync(sizes.append) > MB
        assert sizes[-1] > MB
        await stage.move(1)
        assert picture(stage.path(TWO)) == before
    finally:
        stage.clear()


@twisted_test
async def test_a_node_that_is_gone_in_the_middle(ssh: SshStage, tmp_path: Path) -> None:
    """It is told, can be undone when the node is back, and what was carried stays so."""
    stage = through_ssh(ssh, tmp_path, one=here(), two=ssh.shell())
    try:
        (stage.path(ONE) / "large").write_bytes(os.urandom(stage.bulk))
        before = picture(stage.path(ONE))
        running = await stage.midway("presync", 1)
        await ssh.stop()
        with pytest.raises(MoverError, match="web"):
            await running
        assert stage.commands() == []
        with pytest.raises(MoverError):
            await stage.step("abandon", 1)
        await ssh.start()
        await stage.undo(1)
        assert picture(stage.path(ONE)) == before
        assert stage.takes(ONE)
        await stage.move(2)
        assert picture(stage.path(TWO)) == before
    finally:
        stage.clear()


@twisted_test
async def test_what_still_runs_on_the_other_node_is_ended(ssh: SshStage, tmp_path: Path) -> None:
    """The network was cut, so it does not know that nobody wants it any more."""
    stage = through_ssh(ssh, tmp_path, one=here(), two=ssh.shell(shared=False))
    try:
        (stage.path(ONE) / "large").write_bytes(os.urandom(stage.bulk))
        running = await stage.midway("presync", 1)
        takers = [pid for pid in ssh.processes() if inside(pid, stage.path(TWO))]
        assert takers
        for pid in takers:
            os.kill(pid, signal.SIGSTOP)  # it hears of nothing
        running.cancel()
        with pytest.raises(CancelledError):
            await running
        assert any(inside(pid, stage.path(TWO)) for pid in takers)
        await stage.step("abandon", 1)
        assert not any(inside(pid, stage.path(TWO)) for pid in takers)
    finally:
        stage.clear()


def inside(pid: int, directory: Path) -> bool:
    """Whether a process is in a directory."""
    try:
        return os.readlink(f"/proc/{pid}/cwd").startswith(str(directory))
    except OSError:
        return False


# Closing

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


@pytest.mark.parametrize("how", [MAPPED, OPENED, DIRECTORY, INSIDE])
@twisted_test
async def test_who_could_still_write_is_named(stage: RsyncStage, how: str) -> None:
    """With a file open or mapped, from a directory that it has open, or is in."""
    (stage.path(ONE) / "file").write_bytes(b"file")
    holder = holding(stage.path(ONE), how)
    try:
        with pytest.raises(MoverError, match=rf"process {holder.pid} \(python.*stop what uses it"):
            await stage.step("fence", 1)
    finally:
        holder.communicate()
    await stage.step("fence", 1)
    assert not stage.takes(ONE)


@twisted_test
async def test_who_reads_does_not_matter(stage: RsyncStage) -> None:
    """It goes on reading, before and after."""
    (stage.path(ONE) / "file").write_bytes(b"file")
    holder = holding(stage.path(ONE), READS)
    try:
        await stage.step("fence", 1)
        await stage.step("unfence", 1)
    finally:
        holder.communicate()
    assert holder.returncode == 0


@twisted_test
async def test_the_fence_holds_in_other_mount_namespaces(stage: RsyncStage, tmp_path: Path) -> None:
    """As in a container that has the directory at another place; undone it is as before."""
    (tmp_path / "volume").mkdir()
    enter = ["unshare", "--mount", "sh", "-c", 'mount --bind "$1" "$2"; shift 2; cd /; exec "$@"']
    where = ["sh", str(stage.path(ONE)), str(tmp_path / "volume")]
    container = holding(tmp_path, "import os", *enter, *where)
    inside = ["nsenter", f"--mount=/proc/{container.pid}/ns/mnt", "touch"]
    ways = [stage.path(ONE) / "file", tmp_path / "volume" / "file"]
    try:
        for migration in (1, 2):
            for way in ways:
                assert subprocess.run([*inside, way]).returncode == 0
            await stage.step("fence", migration)
            await stage.step("fence", migration)
            for way in ways:
                assert subprocess.run([*inside, way], stderr=subprocess.DEVNULL).returncode == 1
            await stage.step("unfence", migration)
        for way in ways:
            assert subprocess.run([*inside, way]).returncode == 0
    finally:
        container.communicate()


@twisted_test
async def test_another_mount_of_it_is_closed_too(stage: RsyncStage, tmp_path: Path) -> None:
    """And what is mounted of its inside."""
    within = stage.path(ONE) / "within"
    within.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["mount", "--bind", within, other], check=True)
    try:
        await stage.step("fence", 1)
        assert subprocess.run(["touch", other / "file"], stderr=subprocess.DEVNULL).returncode == 1
        await stage.step("unfence", 1)
        (other / "file").touch()
    finally:
        subprocess.run(["umount", other], check=True)


@twisted_test
async def test_nobody_uses_the_target_before_it_is_attached(stage: RsyncStage) -> None:
    """It is closed from the first round on, and again when that is undone."""
    await stage.carry(1, "presync")
    assert not stage.takes(TWO)
    await stage.carry(1, "attach")
    assert stage.takes(TWO)
    await stage.step("detach", 1)
    assert not stage.takes(TWO)


@twisted_test
async def test_a_fence_that_a_reboot_took_away_stands_again(stage: RsyncStage) -> None:
    """The last round sees to it, and so does verifying."""
    await stage.carry(1, "fence")
    for step in ("sync", "verify"):
        subprocess.run(["umount", stage.path(ONE)], check=True)
        assert stage.takes(ONE)
        await stage.step(step, 1)
        assert not stage.takes(ONE)


# What is refused, and what may be asked for


@twisted_test
async def test_a_full_target_says_so(stage: RsyncStage) -> None:
    """Before anything is done, if it can be known; and when it happens, undone as ever."""
    two = stage.path(TWO)
    two.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", two], check=True)
    (stage.path(ONE) / "file").write_bytes(os.urandom(8 * MB))
    before = picture(stage.path(ONE))
    with pytest.raises(MoverError, match=r"has room for \d+ bytes, and \d+ are needed; make room"):
        await stage.step("check", 1)
    await stage.step("fence", 1)
    with pytest.raises(MoverError, match=r"No space left on device.*; make room on here"):
        await stage.step("sync", 1)
    await stage.undo(1)
    assert picture(stage.path(ONE)) == before
    subprocess.run(["umount", two], check=True)  # its layer
    subprocess.run(["mount", "-o", "remount,size=32M", two], check=True)
    await stage.move(2)
    assert picture(two) == before


@twisted_test
async def test_what_is_wrong_is_told_before_anything_is_done(stage: RsyncStage) -> None:
    """What it was, and what to do."""

    async def refused(match: str) -> None:
        with pytest.raises(MoverError, match=match):
            await stage.step("check", 1)

    one, two = stage.paths[ONE], stage.paths[TWO]
    stage.paths[ONE] = one / "not there"
    await refused("not there is not there on here; make it")
    stage.paths[ONE], stage.paths[TWO] = one, one / "inside"
    await refused("are not apart on here; name others")
    (one / "file").touch()
    stage.paths[TWO] = one / "file"
    await refused("is not a directory; name one")
    stage.paths[TWO] = two
    await stage.step("fence", 7)
    await refused("is read-only on here; mount it writable, or end the migration")
    await stage.step("unfence", 7)
    (one / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", one / "below"], check=True)
    await refused("something else is mounted at .*/below on here; make it a filesystem")
    subprocess.run(["umount", one / "below"], check=True)
    two.mkdir(parents=True)
    holder = holding(two, INSIDE)
    await refused(f"is in use: process {holder.pid} .*; stop what uses it")
    holder.communicate()
    (two / "file").touch()
    await refused("has something else in it; empty it, or name another path")
    await stage.step("fence", 8, source=TWO, target=ONE)
    await stage.step("unfence", 8, source=TWO, target=ONE)
    await stage.step("check", 1)
    with pytest.raises(MoverError, match="was not carried by migration 9; begin again"):
        await stage.step("attach", 9)


@twisted_test
async def test_files_of_the_same_times_are_compared_if_asked(tmp_path: Path) -> None:
    """Somebody has set the time of a file back, after changing it."""
    for verify in ("times", "checksum"):
        directory = tmp_path / verify
        stage = RsyncStage(directory, {ONE: here(), TWO: here()}, verify=verify)
        try:
            file, copy = stage.path(ONE) / "file", stage.path(TWO) / "file"
            file.write_bytes(b"one")
            times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
            await stage.carry(1, "presync")
            file.write_bytes(b"two")
            os.utime(file, ns=times)
            for step in ("fence", "sync", "attach", "verify"):
                await stage.step(step, 1)
            assert copy.read_bytes() == {"times": b"one", "checksum": b"two"}[verify]
            if verify == "checksum":
                copy.write_bytes(b"bad")
                os.utime(copy, ns=times)
                with pytest.raises(MoverError, match=r">fc.* file"):
                    await stage.step("verify", 1)
        finally:
            stage.clear()


@twisted_test
async def test_what_is_left_out_stays_where_it_is(tmp_path: Path) -> None:
    """On both sides."""
    left_out = ["/a cache/", "*.tmp"]
    shells = {ONE: here(), TWO: here()}
    stage = RsyncStage(tmp_path, shells, exclude=left_out, compress=True)
    try:
        one, two = stage.path(ONE), stage.path(TWO)
        (one / "a cache").mkdir()
        for name in ("a cache/file", "b.tmp", "file"):
            (one / name).write_bytes(b"one")
        await stage.move(1)
        assert sorted(path.name for path in two.iterdir()) == ["file"]
        (two / "c.tmp").touch()
        await stage.move(2, source=TWO, target=ONE)
        assert sorted(path.name for path in one.iterdir()) == ["a cache", "b.tmp", "file"]
    finally:
        stage.clear()


def test_it_is_found_by_its_name(tmp_path: Path) -> None:
    """And is what a mover has to be."""
    assert find("rsync") is RSYNC
    assert RSYNC.carries == "filesystem"
    stage = RsyncStage(tmp_path, {ONE: here(), TWO: here()})
    assert verifyObject(IMover, stage.mover(1))
    assert set(RSYNC.about) == {*RSYNC.place.keys, *RSYNC.options.keys}


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ({"exclude": [""]}, "is not a pattern; write one of rsync"),
        ({"bandwidth": 0}, "out of range"),
        ({"verify": "no"}, 'write "times" or "checksum"'),
        ({"compress": 1}, "neither true nor false"),
    ],
)
def test_what_is_written_wrongly_is_told(written: dict[str, Any], problem: str) -> None:
    """What was wrong, and what to write."""
    spot = Spot("test")
    RSYNC.options.read(written, spot)
    (line,) = spot.lines()
    assert problem in line
