"""A program that stays on a node, and answers there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from daemon_stage import twisted_fixture, twisted_test
from ssh_stage import SshStage, a_shell_here, an_ssh_stage, runs
from stage_waiting import until
from twisted.internet.defer import CancelledError, Deferred

from awesomeproxy.movers.resident import Resident
from awesomeproxy.movers.shell import Shell, ShellError

ssh = twisted_fixture(an_ssh_stage)
PROGRAM = b"""
import os, time
def answer_to(act, *words):
    if act == "fail":
        raise OSError(*words)
    if act == "hang":
        open(words[0], "a").write("x")
        time.sleep(60)
    if act == "die":
        open(words[0], "a").write("x")
        os._exit(3)
    return [os.getpid(), *words]
"""


here = twisted_fixture(a_shell_here)


@twisted_test
async def test_it_answers_all_movers_of_a_thing(here: Shell) -> None:
    """Each thing has one of its own, and what is asked together is answered in turn."""
    one, same = Resident(here, "web", PROGRAM), Resident(here, "web", PROGRAM)
    words = ["a\nb", "ü", ""]
    asked = [Deferred.fromCoroutine(each.ask("pid", *words)) for each in (one, same)]
    first, second = [await each for each in asked]
    assert first == second == [here.staying[0], *words]
    assert await Resident(here, "shop", PROGRAM).ask("pid") == [here.staying[1]]
    await here.close()
    assert here.staying == []
    assert not runs(first[0])


@twisted_test
async def test_what_is_wrong_is_told(here: Shell) -> None:
    """And it stays."""
    resident = Resident(here, "web", PROGRAM)
    with pytest.raises(ShellError, match="no such thing") as told:
        await resident.ask("fail", "no such thing")
    assert told.value.said == "no such thing"
    assert await resident.ask("pid") == here.staying


@twisted_test
async def test_one_that_was_killed_is_started_anew(here: Shell) -> None:
    """Whoever asks does not notice."""
    resident = Resident(here, "web", PROGRAM)
    (before,) = await resident.ask("pid")
    os.kill(before, signal.SIGKILL)
    (after,) = await resident.ask("pid")
    assert after != before
    os.kill(after, signal.SIGKILL)
    await until(lambda: not here.staying, "its end")
    assert await resident.ask("pid") == here.staying


@twisted_test
async def test_a_question_that_it_dies_of(here: Shell, tmp_path: Path) -> None:
    """It is asked twice, and no more."""
    with pytest.raises(ShellError, match="ended with status 3"):
        await Resident(here, "web", PROGRAM).ask("die", str(tmp_path / "asked"))
    assert (tmp_path / "asked").read_text() == "xx"
    with pytest.raises(ShellError, match="SyntaxError"):
        await Resident(here, "web", b"no program").ask("pid")


@twisted_test
async def test_what_nobody_waits_for_is_ended(here: Shell, tmp_path: Path) -> None:
    """Cancelled, or too late."""
    resident = Resident(here, "web", PROGRAM)
    (pid,) = await resident.ask("pid")
    asked = Deferred.fromCoroutine(resident.ask("hang", str(tmp_path / "asked")))
    await until((tmp_path / "asked").exists, "the question")
    asked.cancel()
    with pytest.raises(CancelledError):
        await asked
    assert not runs(pid)
    with pytest.raises(ShellError, match=r"no answer in 0\.5 s"):
        await resident.ask("hang", str(tmp_path / "asked"), time=0.5)
    assert here.staying == []


@twisted_test
async def test_it_goes_when_it_has_been_forgotten(here: Shell) -> None:
    """Some time after the last question."""
    resident = Resident(here, "web", PROGRAM, idle=1)
    await resident.ask("pid")
    await until(lambda: not here.staying, "its end")
    assert await resident.ask("pid") == here.staying


@twisted_test
async def test_it_stays_on_another_node(ssh: SshStage) -> None:
    """It is gone when ssh is."""
    far = ssh.shell()
    resident = Resident(far, "web", PROGRAM)
    pid, word = await resident.ask("pid", "a 'b'")
    assert word == "a 'b'"
    assert await resident.ask("pid") == [pid]
    await far.close()
    await until(lambda: not runs(pid), "its end")
