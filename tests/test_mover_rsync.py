"""The mover that uses rsync: what all of filesystems promise, and what is its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemon_stage import twisted_fixture, twisted_test
from mover_contract import MB, FilesystemContract
from mover_stage import ONE, TWO
from mover_trees import odd_tree, picture
from rsync_stage import (
    INSIDE,
    RsyncStage,
    a_stage,
    here,
    holding,
)
from zope.interface.verify import verifyObject

from awesomeproxy.movers import closing, rsync
from awesomeproxy.movers.finding import find
from awesomeproxy.movers.interface import IMover, MoverError
from awesomeproxy.movers.rsync import RSYNC
from awesomeproxy.movers.shell import ShellError
from awesomeproxy.shapes import Spot

stage = twisted_fixture(a_stage)


class TestRsync(FilesystemContract):
    """On one node."""


def fresh(path: Path) -> Path:
    """A path with nothing there any more."""
    path.unlink()
    return path


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
        "hard link": lambda: fresh(two / "linked").write_bytes(b"one"),
        "link": lambda: fresh(two / "link").symlink_to("two"),
        "kind": lambda: fresh(two / "two").mkdir(),
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


# A source that is in use


@twisted_test
async def test_a_file_that_shrinks_while_it_is_carried_is_no_fault(stage: RsyncStage) -> None:
    """As one that is written anew; the last round has it right."""
    one, two = stage.path(ONE), stage.path(TWO)
    (one / "large").write_bytes(os.urandom(stage.bulk))
    await stage.step("check", 1)
    running = await stage.midway("presync", 1)
    os.truncate(one / "large", 1)
    await running
    for step in ("fence", "sync", "attach", "verify"):
        await stage.step(step, 1)
    assert picture(two) == picture(one)


@pytest.mark.parametrize(
    ("status", "errors", "borne"),
    [
        (23, 'rsync: [sender] read errors mapping "/a b": No data available (61)', True),
        (23, 'rsync: read errors mapping "/a": No data available (61)', True),
        (23, "WARNING: a failed verification -- update discarded (will try again).", True),
        (23, 'rsync: [sender] opendir "/a" failed: No such file or directory (2)', True),
        (24, 'file has vanished: "/a"', True),
        (23, 'rsync: [sender] send_files failed to open "/a": Permission denied (13)', False),
        (23, 'rsync: [sender] read errors mapping "/a": Input/output error (5)', False),
        (23, 'rsync: [receiver] mkstemp "/a" failed: No such file or directory (2)', False),
        (11, 'rsync: [receiver] write failed on "/a": No space left on device (28)', False),
        (12, 'file has vanished: "/a"', False),
        (23, "", False),
    ],
)
@twisted_test
async def test_what_is_borne_while_the_source_is_in_use(
    status: int, errors: str, borne: bool
) -> None:
    """What comes of its use, and nothing else beside it."""
    vanished = 'file has vanished: "/b"\n' if errors else ""
    ending = f"rsync error: some files could not be transferred (code {status}) at main.c(1338)"

    async def fails() -> str:
        said = f"motd\n{vanished}{errors}\n{ending}\n"
        raise ShellError("no", status, printed="figures", errors=said)

    if borne:
        assert await rsync._patiently(fails()) == "figures"
    else:
        with pytest.raises(ShellError):
            await rsync._patiently(fails())


# A source that is gone


@pytest.mark.parametrize("last", ["check", "presync", "fence", "sync"])
@twisted_test
async def test_a_source_that_is_unmounted_is_not_carried(stage: RsyncStage, last: str) -> None:
    """Whatever is beneath it; what the target has stays."""
    one, two = stage.path(ONE), stage.path(TWO)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", one], check=True)
    (one / "file").write_bytes(b"first")
    await stage.move(1)
    await stage.move(2, source=TWO, target=ONE)
    await stage.carry(3, last)
    while os.path.ismount(one):
        subprocess.run(["umount", one], check=True)
    left = {"check": ("presync", "fence", "sync"), "presync": ("presync", "fence", "sync")}
    for step in left.get(last, ("sync", "verify")):
        with pytest.raises(MoverError, match="is not the directory any more that it was when"):
            await stage.step(step, 3)
        assert (two / "file").read_bytes() == b"first"
    await stage.undo(3)
    assert not os.path.ismount(one)
    assert not os.listdir(one)


@twisted_test
async def test_a_source_that_goes_just_before_a_round_is_not_carried(stage: RsyncStage) -> None:
    """It was there when it was looked for."""
    one, two = stage.path(ONE), stage.path(TWO)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", one], check=True)
    (one / "file").write_bytes(b"first")
    await stage.carry(1, "presync")
    mover = stage.mover(1)
    run = mover._rsync

    async def late(*how: str, **more: Any) -> str:
        subprocess.run(["umount", one], check=True)
        return await run(*how, **more)

    mover._rsync = late  # type: ignore[method-assign]
    with pytest.raises(MoverError, match=f"{one} has been unmounted"):
        await mover.presync(lambda size: None)
    assert (two / "file").read_bytes() == b"first"


@twisted_test
async def test_a_round_has_the_source_until_its_end(stage: RsyncStage) -> None:
    """Though it is unmounted meanwhile; the next one notices."""
    one, two = stage.path(ONE), stage.path(TWO)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", one], check=True)
    for number in range(4):
        (one / f"file {number}").write_bytes(os.urandom(stage.bulk // 4))
    before = picture(one)
    await stage.step("check", 1)
    running = await stage.midway("presync", 1)
    subprocess.run(["umount", one], check=True)
    await running
    assert picture(two) == before
    with pytest.raises(MoverError, match="is not the directory any more that it was when"):
        await stage.step("fence", 1)


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
    await stage.step("check", 7)
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
    os.setxattr(two, closing.NAME, b"web")
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
            await stage.close()


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
        await stage.close()


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
