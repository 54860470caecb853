"""The mover of ZFS filesystems, on real pools of zfs-fuse."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from daemon_stage import reactor, twisted_fixture, twisted_test
from mapping_writer import HoldsMapping
from mover_contract import FilesystemContract
from mover_stage import ONE, STEPS, TWO
from mover_trees import NAMES, picture
from ssh_stage import SshStage, an_ssh_stage
from zfs_stage import ZfsStage, Zone, pool, zfs_fuse

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.shell import ShellError
from awesomeproxy.movers.zfs import ZfsOptions, dataset_name
from awesomeproxy.movers.zfs_dataset import Dataset

ssh = twisted_fixture(an_ssh_stage)


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Zone, dict[str, str]]]:
    """Two of them, by side, and where they are."""
    directory = tmp_path_factory.mktemp("zone")
    with zfs_fuse(directory) as zone, pool(zone) as one, pool(zone) as two:
        yield zone, {ONE: one, TWO: two}


async def a_stage(tmp_path: Path, pools: tuple[Zone, dict[str, str]]) -> AsyncIterator[ZfsStage]:
    """A filesystem on the one."""
    made = ZfsStage(tmp_path, *pools)
    yield made
    await made.close()


stage = twisted_fixture(a_stage)


class TestContract(FilesystemContract):
    """What every mover of filesystems is held to."""


# The fence


@twisted_test
async def test_a_shared_mapping_is_a_writer(stage: ZfsStage) -> None:
    """Its file is closed, and still it can be written to: the fence is refused."""
    with HoldsMapping(stage.path(ONE) / "mapped") as pid:
        with pytest.raises(MoverError, match=rf"\({pid}\) has files open for writing"):
            await stage.step("fence", 1)
        await stage.step("unfence", 1)
        assert stage.takes(ONE)
    await stage.step("fence", 1)
    assert not stage.takes(ONE)


@twisted_test
async def test_a_writer_in_another_namespace_is_one(stage: ZfsStage) -> None:
    """It has a mount of its own, which no unmounting here would reach."""
    writing = 'exec 3>>"$1"; echo ready; exec sleep 60'
    process = subprocess.Popen(
        [
            *stage.zone.enter,
            "unshare",
            "--mount",
            "sh",
            "-c",
            writing,
            "sh",
            stage.inside(ONE) / "file",
        ],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    try:
        with pytest.raises(MoverError, match=rf"\({process.pid}\) has files open for writing"):
            await stage.step("fence", 1)
    finally:
        process.kill()
        process.communicate()
    await stage.step("fence", 1)
    assert not stage.takes(ONE)


@twisted_test
async def test_who_only_reads_is_let(stage: ZfsStage) -> None:
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


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["zfs", "create", "-o", "mountpoint=none", "{}/more"], "datasets below it.*/more"),
        (["zfs", "set", "mountpoint=none", "{}"], "has mountpoint=none, not path"),
        (["zfs", "unmount", "{}"], "is closed to writers"),
        (["zfs", "destroy", "{}"], "there is no "),
    ],
)
@twisted_test
async def test_a_source_that_cannot_be_moved(stage: ZfsStage, wrong: list[str], told: str) -> None:
    """It is told why, and nothing comes of it on the target."""
    stage.zone.run(*(word.format(stage.datasets[ONE]) for word in wrong))
    with pytest.raises(MoverError, match=told):
        await stage.step("check", 1)
    assert not stage.exists(TWO)


@twisted_test
async def test_a_target_without_room(stage: ZfsStage) -> None:
    """It is told before anything is sent."""
    (stage.path(ONE) / "file").write_bytes(os.urandom(4 << 20))
    await stage.mover(1).estimate()  # has it counted
    stage.zone.run("zfs", "set", "quota=1M", stage.datasets[TWO].rpartition("/")[0])
    with pytest.raises(MoverError, match="has no room"):
        await stage.step("check", 1)
    stage.zone.run("zfs", "set", "quota=none", stage.datasets[TWO].rpartition("/")[0])


@twisted_test
async def test_a_target_that_runs_full(stage: ZfsStage) -> None:
    """The round fails, and says so; with room it succeeds."""
    (stage.path(ONE) / "file").write_bytes(os.urandom(4 << 20))
    stage.zone.run("zfs", "set", "quota=2M", stage.datasets[TWO].rpartition("/")[0])
    with pytest.raises(MoverError, match=r"out of space|quota"):
        await stage.step("presync", 1)
    await stage.undo(1)
    stage.zone.run("zfs", "set", "quota=none", stage.datasets[TWO].rpartition("/")[0])
    assert not stage.exists(TWO)
    await stage.move(2)
    assert picture(stage.path(TWO)) == picture(stage.path(ONE))


@twisted_test
async def test_a_target_that_is_something_else(stage: ZfsStage) -> None:
    """A dataset that somebody has made is not overwritten, though it is empty."""
    stage.make(TWO)
    stage.zone.run("zfs", "unmount", stage.datasets[TWO])
    stage.zone.run("zfs", "snapshot", f"{stage.datasets[TWO]}@theirs")
    for step in ("check", "presync"):
        with pytest.raises(MoverError, match="has no snapshot in common"):
            await stage.step(step, 1)
    await stage.undo(1)
    assert stage.labels(TWO) == ["theirs"]


@pytest.mark.parametrize("how", ["written", "snapshot"])
@twisted_test
async def test_a_target_that_has_gone_its_own_way(stage: ZfsStage, how: str) -> None:
    """Nothing of what was written there is lost; when it is given up, the way back is open."""
    one = stage.path(ONE)
    (one / "file").write_bytes(b"first")
    await stage.move(1)
    (common,) = stage.labels(ONE)
    if how == "written":
        stage.zone.run("zfs", "set", "readonly=off", stage.datasets[ONE])
        stage.zone.run("mount", "-i", "-o", "remount,rw", stage.inside(ONE))
        (one / "file").write_bytes(b"by mistake")
        stage.zone.run("zfs", "set", "readonly=on", stage.datasets[ONE])
        stage.zone.run("mount", "-i", "-o", "remount,ro", stage.inside(ONE))
        told = f"has been written to since @{common}"
    else:
        stage.zone.run("zfs", "snapshot", f"{stage.datasets[ONE]}@daily")
        told = "has the snapshot @daily, which is newer"
    for step in ("check", "presync"):
        with pytest.raises(MoverError, match=rf"{told}.*zfs rollback -r .*@{common}"):
            await stage.step(step, 2, source=TWO, target=ONE)
    await stage.undo(2, source=TWO, target=ONE)
    assert (one / "file").read_bytes() == (b"by mistake" if how == "written" else b"first")
    stage.zone.run("zfs", "rollback", "-r", f"{stage.datasets[ONE]}@{common}")
    await stage.move(3, source=TWO, target=ONE)
    assert (one / "file").read_bytes() == b"first"
    assert stage.takes(ONE)


@pytest.mark.parametrize("instead", [(), ("mount", "-t", "tmpfs", "tmpfs")])
@twisted_test
async def test_a_source_that_is_not_mounted_is_not_fenced(
    stage: ZfsStage, instead: tuple[str, ...]
) -> None:
    """What is in its place is left alone, and so is it."""
    path = stage.inside(ONE)
    await stage.step("presync", 1)
    stage.zone.run("zfs", "unmount", stage.datasets[ONE])
    if instead:
        stage.zone.run(*instead, path)
    with pytest.raises(MoverError, match=f"is not mounted at {path} any more"):
        await stage.step("fence", 1)
    await stage.undo(1)
    if instead:
        stage.zone.run("touch", f"{path}/still-open")
        stage.zone.run("umount", path)
    stage.zone.run("zfs", "mount", stage.datasets[ONE])
    assert stage.takes(ONE)


@twisted_test
async def test_a_source_stays_closed_when_its_node_starts_anew(stage: ZfsStage) -> None:
    """From the last sync on: it may not be written to when the target is in its place."""
    stage.path(ONE)
    for step in ("presync", "fence", "sync"):
        await stage.step(step, 1)
    stage.zone.run("zfs", "unmount", stage.datasets[ONE])
    stage.zone.run("zfs", "mount", stage.datasets[ONE])
    assert not stage.takes(ONE)
    await stage.undo(1)
    assert stage.takes(ONE)


@twisted_test
async def test_a_look_that_fails_finds_nothing(stage: ZfsStage) -> None:
    """It is not as if somebody had written: who believes that takes it back."""
    place = stage.place(ONE)
    dataset = Dataset(reactor, place.shell, stage.datasets[ONE], "site")
    await dataset.take("known")
    assert not await dataset.changed_since("known")
    with pytest.raises(ShellError, match="what was written since @unknown"):
        await dataset.changed_since("unknown")
    (stage.path(ONE) / "new").write_bytes(b"new")
    await dataset.settle()
    assert await dataset.changed_since("known")


@twisted_test
async def test_a_source_that_was_moved_away_is_none(stage: ZfsStage) -> None:
    """What it has is old: it cannot be moved from there again."""
    await stage.move(1)
    with pytest.raises(MoverError, match="is closed to writers, as one that has been moved away"):
        await stage.step("check", 2)


@twisted_test
async def test_an_old_zfs_cannot_send_compressed(stage: ZfsStage) -> None:
    """It is told; the option can be left out."""
    stage.options = ZfsOptions(compressed=True)
    with pytest.raises(MoverError, match="cannot send compressed"):
        await stage.step("check", 1)


# There and back


@twisted_test
async def test_the_way_back_is_short(stage: ZfsStage) -> None:
    """Only what has changed is carried; one snapshot is left of it all on both sides."""
    (stage.path(ONE) / "large").write_bytes(os.urandom(4 << 20))
    await stage.move(1)
    assert stage.labels(ONE) == stage.labels(TWO) == ["awesomeproxy-1-2"]
    (stage.path(TWO) / "small").write_bytes(b"new")
    await stage.step("check", 2, source=TWO, target=ONE)
    carried = await stage.step("presync", 2, source=TWO, target=ONE)
    assert carried is not None
    assert carried < 100_000
    await stage.undo(2, source=TWO, target=ONE)
    assert (stage.path(ONE) / "small").read_bytes() == b"new"
    assert not stage.takes(ONE)
    assert stage.takes(TWO)


@twisted_test
async def test_who_reads_what_was_left_behind_is_told(stage: ZfsStage) -> None:
    """It has to be unmounted for the way back."""
    (stage.path(ONE) / "file").write_bytes(b"content")
    await stage.move(1)
    with (
        open(stage.path(ONE) / "file", "rb"),
        pytest.raises(MoverError, match=rf"cannot be unmounted: .*\({os.getpid()}\)"),
    ):
        await stage.step("presync", 2, source=TWO, target=ONE)
    await stage.move(3, source=TWO, target=ONE)


@twisted_test
async def test_what_was_written_to_a_target_that_is_given_up_goes(stage: ZfsStage) -> None:
    """And what was taken of it meanwhile: the next try is as if it had never been attached."""
    await stage.carry(1)
    (stage.path(TWO) / "started").write_bytes(b"a service has begun to write")
    stage.zone.run("zfs", "snapshot", f"{stage.datasets[TWO]}@hourly")
    await stage.undo(1)
    assert stage.labels(TWO) == stage.labels(ONE) == ["awesomeproxy-1-2"]
    assert stage.get(TWO, "mounted") == "no"
    assert stage.get(TWO, "canmount") == "noauto"
    await stage.move(2)
    assert not (stage.path(TWO) / "started").exists()


@twisted_test
async def test_snapshots_of_others_stay(stage: ZfsStage) -> None:
    """Whoever takes them of the source, and whenever, it does not stop a move."""
    for step in (*STEPS, "clean"):
        await stage.step(step, 1)
        stage.zone.run("zfs", "snapshot", f"{stage.datasets[ONE]}@after-{step}")
    assert {f"after-{step}" for step in (*STEPS, "clean")} < set(stage.labels(ONE))
    assert stage.takes(TWO)


@twisted_test
async def test_what_a_look_has_left_goes(stage: ZfsStage) -> None:
    """Whoever took the look was killed; it is in nobody's way, and not kept."""
    await stage.carry(1, "presync")
    for side in (ONE, TWO):
        stage.zone.run("zfs", "snapshot", f"{stage.datasets[side]}@awesomeproxy-probe")
    await stage.undo(1)
    assert stage.labels(ONE) == stage.labels(TWO) == ["awesomeproxy-1-1"]
    for side in (ONE, TWO):
        stage.zone.run("zfs", "snapshot", f"{stage.datasets[side]}@awesomeproxy-probe")
    await stage.move(2)
    assert stage.labels(ONE) == stage.labels(TWO) == ["awesomeproxy-2-2"]


@twisted_test
async def test_it_moves_through_ssh(stage: ZfsStage, ssh: SshStage) -> None:
    """The target is on another node."""
    for number, name in enumerate(NAMES):
        with open(os.fsencode(stage.path(ONE)) + b"/" + name, "wb") as file:
            file.write(b"%d" % number)
    stage.ssh = ssh
    await stage.move(1)
    assert picture(stage.path(TWO)) == picture(stage.path(ONE))
    assert stage.takes(TWO)
    assert not stage.takes(ONE)


def test_what_is_no_dataset() -> None:
    """A pool, an option, and a snapshot are none."""
    assert dataset_name("tank/sites/blog.example.com") == "tank/sites/blog.example.com"
    for wrong in ("tank", "-r/x", "tank/-x", "tank/blog@now", "tank//x", "tank/x/", "", 7):
        with pytest.raises(ValueError, match="; write "):
            dataset_name(wrong)
