"""Short commands, which a resident runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from daemon_stage import twisted_fixture, twisted_test
from ssh_stage import SshStage, a_shell_here, an_ssh_stage
from stage_waiting import until
from twisted.internet.defer import Deferred

from awesomeproxy.movers.errands import Errands
from awesomeproxy.movers.shell import Shell, ShellError

ssh = twisted_fixture(an_ssh_stage)
ODD = "it's \n\t$HOME `*` \u00e9"


here = twisted_fixture(a_shell_here)


@twisted_test
async def test_commands_say_what_they_do(here: Shell, ssh: SshStage) -> None:
    """As they would by themselves, in English; there is nothing for them to read."""
    for shell in (here, ssh.shell()):
        errands = Errands(shell, "web")
        assert await errands.run("printf", "%s|", ODD, "") == f"{ODD}||"
        assert await errands.all(["echo", "one"], ["cat"], ["echo", "two"]) == "one\ntwo\n"
        assert await errands.run("sh", "-c", "echo $LC_ALL $PPID") == f"C {await pid(errands)}\n"
        assert await errands.run("printf", r"\377") == "\ufffd"


async def pid(errands: Errands) -> int:
    """The process that runs them."""
    return int(await errands.run("sh", "-c", "echo $PPID"))


@twisted_test
async def test_the_first_that_fails_is_the_last(here: Shell, tmp_path: Path) -> None:
    """It is told which it was and what it has said."""
    errands = Errands(here, "web")
    wrong = "echo no >&2; echo more >&2; exit 4"
    with pytest.raises(ShellError) as told:
        await errands.all(["true"], ["sh", "-c", wrong], ["touch", str(tmp_path / "file")])
    assert str(told.value) == f"sh -c '{wrong}': no / more"
    assert (told.value.status, told.value.said) == (4, "no / more")
    with pytest.raises(ShellError, match=r"^false: ended with status 1$"):
        await errands.run("false")
    with pytest.raises(ShellError, match=r"^nosuch a: nosuch: No such file") as told:
        await errands.run("nosuch", "a")
    assert told.value.status == 127
    assert os.listdir(tmp_path) == []


@twisted_test
async def test_one_that_takes_too_long_is_ended(here: Shell) -> None:
    """With whoever runs it; the next one has another."""
    errands = Errands(here, "web")
    before = await pid(errands)
    with pytest.raises(ShellError, match=r"^sleep 61: no answer in 0\.3 s$") as told:
        await errands.run("sleep", "61", time=0.3)
    assert told.value.status is None
    assert await pid(errands) != before


@twisted_test
async def test_a_node_that_cannot_be_reached_is_told(ssh: SshStage) -> None:
    """As ssh tells it."""
    far = ssh.shell()
    await ssh.stop()
    with pytest.raises(ShellError, match=r"^far: zfs list: ssh: connect to host.*refused$"):
        await Errands(far, "web").run("zfs", "list")


@twisted_test
async def test_nothing_more_is_run_for_who_is_gone(ssh: SshStage, tmp_path: Path) -> None:
    """The command that runs comes to its end, but those behind it are not begun."""
    far = ssh.shell(shared=False)
    begun, ended, more = (tmp_path / name for name in ("begun", "ended", "more"))
    slow = f"touch {begun}; sleep 1; touch {ended}"
    running = Deferred.fromCoroutine(
        Errands(far, "web").all(["sh", "-c", slow], ["touch", str(more)])
    )
    running.addErrback(lambda failure: None)
    await until(begun.exists, "the command")
    running.cancel()
    await running
    await until(ended.exists, "the command's end")
    await until(lambda: len(ssh.processes()) == 1, "the end of who runs them")
    assert not more.exists()
