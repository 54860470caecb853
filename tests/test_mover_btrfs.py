"""The mover of Btrfs subvolumes, on real ones."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from btrfs_stage import BtrfsStage, btrfs, run
from daemon_stage import twisted_fixture, twisted_test
from mapping_writer import HoldsMapping
from mover_contract import FilesystemContract
from mover_stage import ONE, TWO
from mover_trees import NAMES, picture
from ssh_stage import SshStage, an_ssh_stage

from awesomeproxy.movers.interface import MoverError

ssh = twisted_fixture(an_ssh_stage)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Two of them, by side."""
    directory = tmp_path_factory.mktemp("btrfs")
    with btrfs(directory) as one, btrfs(directory) as two:
        yield {ONE: one, TWO: two}


async def a_stage(tmp_path: Path, roots: dict[str, Path]) -> AsyncIterator[BtrfsStage]:
    """A subvolume on the one."""
    made = BtrfsStage(tmp_path.name, roots)
    yield made
    await made.close()


stage = twisted_fixture(a_stage)


class TestContract(FilesystemContract):
    """What every mover of filesystems is held to."""


def freeze(path: Path, frozen: bool) -> None:
    """Make a subvolume read-only, or not."""
    run("btrfs", "property", "set", "-ts", path, "ro", "true" if frozen else "false")


# The fence


@twisted_test
async def test_a_shared_mapping_is_a_writer(stage: BtrfsStage) -> None:
    """Its file is closed, and still it can be written to: the fence is refused."""
    with HoldsMapping(stage.path(ONE) / "mapped") as pid:
        with pytest.raises(MoverError, match=rf"\({pid}\) has files open for writing"):
            await stage.step("fence", 1)
        await stage.step("unfence", 1)
        assert stage.takes(ONE)
    await stage.step("fence", 1)
    assert not stage.takes(ONE)


@twisted_test
async def test_a_writer_through_another_path_is_one(stage: BtrfsStage, tmp_path: Path) -> None:
    """The subvolume is mounted there, too."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("mount", "--bind", stage.path(ONE), elsewhere)
    try:
        with (
            open(elsewhere / "file", "wb"),
            pytest.raises(MoverError, match=rf"\({os.getpid()}\) has files open for writing"),
        ):
            await stage.step("fence", 1)
    finally:
        run("umount", elsewhere)
    await stage.step("fence", 1)
    assert not stage.takes(ONE)


@twisted_test
async def test_who_only_reads_is_let(stage: BtrfsStage) -> None:
    """He goes on, while the fence goes up and comes down."""
    file = stage.path(ONE) / "file"
    file.write_bytes(b"content")
    with open(file, "rb", 0) as reading:
        await stage.step("fence", 1)
        assert reading.read(3) == b"con"
        await stage.step("unfence", 1)
        assert reading.read() == b"tent"
        assert stage.takes(ONE)


# What is refused


@twisted_test
async def test_subvolumes_in_it_are_told(stage: BtrfsStage) -> None:
    """They would not come along."""
    run("btrfs", "subvolume", "create", stage.path(ONE) / "more")
    with pytest.raises(MoverError, match=r"has subvolumes in it, .*/more"):
        await stage.step("check", 1)
    run("btrfs", "subvolume", "delete", stage.path(ONE) / "more")
    await stage.step("check", 1)


@twisted_test
async def test_a_source_that_cannot_be_moved(stage: BtrfsStage) -> None:
    """It is no subvolume, or was moved away before."""
    with pytest.raises(MoverError, match="is not a subvolume of a Btrfs"):
        await stage.step("check", 1, source=TWO, target=ONE)
    await stage.move(2)
    with pytest.raises(MoverError, match="is closed to writers, as one that has been moved away"):
        await stage.step("check", 3)


@twisted_test
async def test_snapshots_need_a_place_on_the_same_filesystem(
    stage: BtrfsStage, tmp_path: Path
) -> None:
    """Where there is none, as beside a mount point, one has to be named."""
    stage.snapshots = str(tmp_path / "elsewhere")
    with pytest.raises(MoverError, match=r"cannot have snapshots in .*; name a directory on the"):
        await stage.step("check", 1)
    stage.snapshots = str(stage.roots[ONE] / "kept here")
    await stage.step("check", 1)


@twisted_test
async def test_a_target_that_is_something_else(stage: BtrfsStage) -> None:
    """A subvolume that somebody has made is not replaced."""
    run("btrfs", "subvolume", "create", stage.path(TWO))
    for step in ("check", "presync"):
        with pytest.raises(MoverError, match="is a subvolume already, and not what"):
            await stage.step(step, 1)
    await stage.undo(1)
    assert stage.takes(TWO)


@twisted_test
async def test_a_target_elsewhere_is_refused(stage: BtrfsStage, tmp_path: Path) -> None:
    """It has to be on a Btrfs."""
    (tmp_path / "tmp").mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", tmp_path / "tmp")
    try:
        stage.roots[TWO] = tmp_path / "tmp"
        with pytest.raises(MoverError, match="is not on a Btrfs, but on tmpfs"):
            await stage.step("check", 1)
    finally:
        run("umount", tmp_path / "tmp")


@twisted_test
async def test_a_target_that_has_gone_its_own_way(stage: BtrfsStage) -> None:
    """Nothing of what was written there is lost; out of the way, the way back is open."""
    one = stage.path(ONE)
    (one / "file").write_bytes(b"first")
    await stage.move(1)
    freeze(one, False)
    (one / "file").write_bytes(b"by mistake")
    freeze(one, True)
    for step in ("check", "presync"):
        with pytest.raises(MoverError, match="has been written to since"):
            await stage.step(step, 2, source=TWO, target=ONE)
    await stage.undo(2, source=TWO, target=ONE)
    assert (one / "file").read_bytes() == b"by mistake"
    run("btrfs", "subvolume", "delete", one)
    await stage.move(3, source=TWO, target=ONE)
    assert (one / "file").read_bytes() == b"first"
    assert stage.takes(ONE)


# There and back


@twisted_test
async def test_the_way_back_is_short(stage: BtrfsStage) -> None:
    """Only what has changed is carried; given up, what was left behind is as it was."""
    one, two = stage.path(ONE), stage.path(TWO)
    (one / "large").write_bytes(os.urandom(4 << 20))
    await stage.move(1)
    before = picture(one)
    assert stage.labels(TWO) == ["1-2"]
    (two / "small").write_bytes(b"new")
    await stage.step("check", 2, source=TWO, target=ONE)
    carried = await stage.step("presync", 2, source=TWO, target=ONE)
    assert carried is not None
    assert carried < 100_000
    for step in ("fence", "sync", "attach", "verify"):
        await stage.step(step, 2, source=TWO, target=ONE)
    assert (one / "small").read_bytes() == b"new"
    await stage.undo(2, source=TWO, target=ONE)
    assert picture(one) == before
    assert not stage.takes(ONE)
    assert stage.takes(TWO)
    await stage.move(3, source=TWO, target=ONE)
    assert picture(one) == picture(two)
    assert stage.labels(ONE) == ["3-2"]


@twisted_test
async def test_what_was_written_to_a_target_that_is_given_up_goes(stage: BtrfsStage) -> None:
    """The next try is as if it had never been attached."""
    await stage.carry(1)
    (stage.path(TWO) / "started").write_bytes(b"a service has begun to write")
    await stage.undo(1)
    assert not stage.path(TWO).exists()
    await stage.move(2)
    assert not (stage.path(TWO) / "started").exists()


@twisted_test
async def test_what_was_left_unfinished_goes(stage: BtrfsStage) -> None:
    """Whoever was at it was killed: a look, and a subvolume that has not come to its end."""
    await stage.carry(1, "presync")
    for side in (ONE, TWO):
        for label in ("probe", "1-7"):
            run("btrfs", "subvolume", "create", stage.kept(side) / label)
    await stage.undo(1)
    assert stage.labels(ONE) == stage.labels(TWO) == ["1-1"]


@twisted_test
async def test_it_moves_through_ssh(stage: BtrfsStage, ssh: SshStage) -> None:
    """The target is on another node."""
    for number, name in enumerate(NAMES):
        with open(os.fsencode(stage.path(ONE)) + b"/" + name, "wb") as file:
            file.write(b"%d" % number)
    stage.ssh = ssh
    await stage.move(1)
    assert picture(stage.path(TWO)) == picture(stage.path(ONE))
    assert stage.takes(TWO)
    assert not stage.takes(ONE)
