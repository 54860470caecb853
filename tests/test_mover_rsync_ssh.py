"""The mover that uses rsync: through ssh."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from daemon_stage import twisted_fixture, twisted_test
from mover_contract import MB
from mover_stage import ONE, TWO
from mover_trees import odd_tree, picture
from rsync_stage import (
    RsyncStage,
    here,
)
from ssh_stage import NAME, OTHER, SshStage, an_ssh_stage
from twisted.internet.defer import CancelledError

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.shell import Shell

ssh = twisted_fixture(an_ssh_stage)


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
        for step in ("fence", "sync", "attach", "verify", "clean"):
            await stage.step(step, 2, source=TWO, target=ONE)
        assert picture(stage.path(ONE)) == before
        assert stage.takes(ONE)
        assert not stage.takes(TWO)
    finally:
        await stage.close()


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
        for step in ("fence", "sync", "attach", "verify"):
            await stage.step(step, 1)
        assert picture(stage.path(TWO)) == before
    finally:
        await stage.close()


@twisted_test
async def test_a_node_that_is_gone_in_the_middle(ssh: SshStage, tmp_path: Path) -> None:
    """It is told, can be undone when the node is back, and what was carried stays so."""
    stage = through_ssh(ssh, tmp_path, one=here(), two=ssh.shell())
    try:
        (stage.path(ONE) / "large").write_bytes(os.urandom(stage.bulk))
        before = picture(stage.path(ONE))
        await stage.step("check", 1)
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
        await stage.close()


@twisted_test
async def test_what_still_runs_on_the_other_node_is_ended(ssh: SshStage, tmp_path: Path) -> None:
    """The network was cut, so it does not know that nobody wants it any more."""
    stage = through_ssh(ssh, tmp_path, one=here(), two=ssh.shell(shared=False))
    try:
        (stage.path(ONE) / "large").write_bytes(os.urandom(stage.bulk))
        await stage.step("check", 1)
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
        await stage.close()


def inside(pid: int, directory: Path) -> bool:
    """Whether a process is in a directory."""
    try:
        return os.readlink(f"/proc/{pid}/cwd").startswith(str(directory))
    except OSError:
        return False
