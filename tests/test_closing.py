"""Closing a directory to writers: whoever they are, and wherever they see it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from daemon_stage import twisted_fixture, twisted_test
from mover_stage import ONE, TWO
from rsync_stage import (
    DIRECTORY,
    INSIDE,
    MAPPED,
    OPENED,
    READS,
    RsyncStage,
    a_stage,
    holding,
)

from awesomeproxy.movers import closing
from awesomeproxy.movers.interface import MoverError

stage = twisted_fixture(a_stage)


@pytest.mark.parametrize("how", [MAPPED, OPENED, DIRECTORY, INSIDE])
@twisted_test
async def test_who_could_still_write_is_named(stage: RsyncStage, how: str) -> None:
    """With a file open or mapped, from a directory that it has open, or is in."""
    (stage.path(ONE) / "file").write_bytes(b"file")
    await stage.step("check", 1)
    holder = holding(stage.path(ONE), how)
    try:
        with pytest.raises(MoverError, match=rf"process {holder.pid} \(python.*stop what uses it"):
            await stage.step("fence", 1)
    finally:
        holder.communicate()
    await stage.step("fence", 1)
    assert not stage.takes(ONE)


def test_who_holds_it_is_seen_though_others_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of mounts is that of one process for all that share it, and that one ends."""
    (tmp_path / "file").write_bytes(b"file")
    ends, holder = holding(Path("/"), ""), holding(tmp_path, OPENED)
    read = closing._read
    gone = f"/proc/{ends.pid}/mountinfo"
    monkeypatch.setattr(
        closing, "_read", lambda path, *at: b"" if path == gone else read(path, *at)
    )
    try:
        tree = closing._tree(os.fsencode(tmp_path), closing._mounts())
        found = closing._holders(tree, [ends.pid, holder.pid])
    finally:
        for each in (ends, holder):
            each.communicate()
    assert [pid for pid, _ in found] == [holder.pid]


@twisted_test
async def test_who_reads_does_not_matter(stage: RsyncStage) -> None:
    """It goes on reading, before and after."""
    (stage.path(ONE) / "file").write_bytes(b"file")
    await stage.step("check", 1)
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
            await stage.step("check", migration)
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
    await stage.step("check", 1)
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


def test_a_mount_table_that_changes_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line was torn: it is read anew.  If it never makes sense, that is told."""
    whole = b"22 1 0:21 / /srv/a\rb\\040c rw,noatime shared:7 - tmpfs tmpfs rw\n"
    tables = [whole + whole[:30], whole[20:] + whole, whole + b"\n" + whole]
    monkeypatch.setattr(closing, "_read", lambda path, directory: tables.pop(0))
    assert [mount.point for mount in closing._mounts()] == [b"/srv/a\rb c"] * 2
    assert not tables
    tables = [whole[:30]] * closing.ROUNDS
    with pytest.raises(OSError, match="makes no sense"):
        closing._mounts()
