"""The mover that runs the operator's own commands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from daemon_stage import twisted_fixture, twisted_test
from ssh_stage import SshStage, an_ssh_stage, descendants
from stage_waiting import reactor, until
from twisted.internet.defer import CancelledError, Deferred
from zope.interface.verify import verifyObject

from awesomeproxy.movers.command import COMMAND, Command, Directory
from awesomeproxy.movers.finding import find
from awesomeproxy.movers.interface import Estimate, IMover, Job, MoverError, Place
from awesomeproxy.movers.shell import Reach, Shell
from awesomeproxy.shapes import Spot

ssh = twisted_fixture(an_ssh_stage)
STEPS = ("check", "presync", "fence", "sync", "attach", "verify", "clean")
UNDO = ("detach", "unfence", "abandon")
NEEDED = {"fence": ["true"], "unfence": ["true"], "sync": ["true"]}


def script(text: str) -> list[str]:
    """A command that is a script of the shell."""
    return ["sh", "-euc", text]


def mover(tmp_path: Path, target: Shell | None = None, **written: Any) -> Command:
    """A mover from ``tmp_path/one`` to ``tmp_path/two``, with these commands."""
    spot = Spot("test")
    options = COMMAND.options.read({**NEEDED, **written}, spot)
    assert not spot.marred, spot.lines()
    here = Shell(reactor, Reach("here"))
    source = Place("here", here, Directory(str(tmp_path / "one")))
    far = target or here
    places = (source, Place(far.reach.name, far, Directory(str(tmp_path / "t w'o"))))
    return Command(Job("web", 7, *places, options, reactor, str(tmp_path)))


async def step(made: Command, name: str) -> Any:
    """Do one step."""
    if name in ("presync", "sync"):
        return await getattr(made, name)(lambda size: None)
    return await getattr(made, name)()


@twisted_test
async def test_it_carries_with_commands(ssh: SshStage, tmp_path: Path) -> None:
    """To a node that only the words for ssh lead to, and each step runs its own."""
    note = 'echo "$AWESOMEPROXY_STEP" >>"$AWESOMEPROXY_SCRATCH/steps"\n'
    carry = (
        note
        + 'cd "$AWESOMEPROXY_SOURCE_PATH"\n'
        + "quoted=\"'$(printf %s \"$AWESOMEPROXY_TARGET_PATH\" | sed \"s/'/'\\\\\\\\''/g\")'\"\n"
        + 'tar c . | $AWESOMEPROXY_TARGET_SSH "mkdir -p $quoted && tar x -C $quoted"\n'
        + "echo carried\necho 10\necho 4711"
    )
    commands = {name: script(note) for name in (*STEPS, *UNDO)}
    commands.update(sync=script(carry), presync=script(carry))
    made = mover(tmp_path, ssh.shell(), **commands)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "file").write_bytes(b"file")
    sizes: list[int] = []
    for name in (*STEPS, *UNDO):
        if name == "sync":
            assert await made.sync(sizes.append) == 4711
        else:
            await step(made, name)
    assert sizes == [10, 4711]
    assert (tmp_path / "t w'o" / "file").read_bytes() == b"file"
    assert (tmp_path / "steps").read_text().split() == [*STEPS, *UNDO]


@twisted_test
async def test_a_command_knows_what_it_is_for(ssh: SshStage, tmp_path: Path) -> None:
    """By its environment and its input alike."""
    show = script('env | grep ^AWESOMEPROXY_ >"$AWESOMEPROXY_SCRATCH/env"; cat >input')
    made = mover(tmp_path, ssh.shell(), fence=["env", "-C", str(tmp_path), *show])
    await made.fence()
    told = json.loads((tmp_path / "input").read_text())
    words = told.pop("target_ssh")
    assert words[0] == "ssh"
    assert words[-2:] == ["far", "--"]
    assert told == {
        "step": "fence",
        "name": "web",
        "migration": 7,
        "scratch": str(tmp_path),
        "source_node": "here",
        "source_path": f"{tmp_path}/one",
        "source_ssh": [],
        "target_node": "far",
        "target_path": f"{tmp_path}/t w'o",
    }
    lines = (tmp_path / "env").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines)
    assert shlex.split(environment.pop("AWESOMEPROXY_TARGET_SSH")) == words
    told["source_ssh"] = ""
    assert environment == {f"AWESOMEPROXY_{key.upper()}": str(told[key]) for key in told}


@twisted_test
async def test_a_step_without_a_command_does_nothing(tmp_path: Path) -> None:
    """And has carried nothing."""
    made = mover(tmp_path)
    assert await made.estimate() == Estimate(0, 0)
    assert await made.presync(lambda size: None) == 0
    for name in ("check", "attach", "detach", "verify", "clean", "abandon"):
        assert await step(made, name) is None


@twisted_test
async def test_an_estimate_is_two_numbers(tmp_path: Path) -> None:
    """The last that is printed; nothing else will do."""
    made = mover(tmp_path, estimate=script("echo looking; echo 400 20; echo"))
    assert await made.estimate() == Estimate(400, 20)
    for wrong in ("echo 400", "echo 1 2 3", "echo -1 2", "echo a b", "true"):
        with pytest.raises(MoverError, match=r"web: estimate: ended with .*; print two numbers"):
            await mover(tmp_path, estimate=script(wrong)).estimate()


@twisted_test
async def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    """What it said, or its status, or that it was late."""
    problems = {
        "echo no luck >&2; exit 3": "no luck; see to the command",
        "exit 3": "ended with status 3; see to the command",
        "kill -9 $$": "ended by signal 9; see to the command",
        "sleep 60": "it has taken more than 0.3 s; see to the command",
    }
    for text, problem in problems.items():
        for name in (*STEPS, *UNDO):
            written: dict[str, Any] = {"detach": ["true"], name: script(text), "time": 0.3}
            made = mover(tmp_path, **written)
            with pytest.raises(MoverError, match=f"filesystem web: {name}: failed: .*{problem}"):
                await step(made, name)
            if text.startswith("sleep"):
                break
    with pytest.raises(MoverError, match="No such file or directory; see to the command"):
        await mover(tmp_path, check=["/no/such/program"]).check()


@twisted_test
async def test_a_command_that_is_given_up_is_ended(tmp_path: Path) -> None:
    """With all that it has started."""
    before = set(descendants(1))
    made = mover(tmp_path, sync=script("sleep 60 & echo 5; sleep 60; wait"))
    sizes: list[int] = []
    running = Deferred.fromCoroutine(made.sync(sizes.append))
    await until(lambda: sizes == [5], "the middle")
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    mine = [pid for pid in descendants(1) if pid not in before and _runs(pid, b"sleep\060\0")]
    assert mine == []


def _runs(pid: int, command: bytes) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == command
    except OSError:
        return False


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ({}, "fence: is missing; add it"),
        ({**NEEDED, "attach": ["true"]}, "detach: is missing; add the command that undoes attach"),
        ({**NEEDED, "check": "true"}, '"true" is not a command; write a list of words'),
        ({**NEEDED, "check": []}, "a list is not a command; write a list of words"),
        ({**NEEDED, "check": ["a", 1]}, "1 is not a text; write each word of the command"),
        ({**NEEDED, "check": [""]}, '"" cannot be run; write a program\'s name'),
        ({**NEEDED, "time": 0}, "out of range"),
        ({**NEEDED, "fance": ["true"]}, 'did you mean "fence"?'),
    ],
)
def test_what_is_written_wrongly_is_told(written: dict[str, Any], problem: str) -> None:
    """What was wrong, and what to write."""
    spot = Spot("test")
    COMMAND.options.read(written, spot)
    assert any(problem in line for line in spot.lines()), spot.lines()


def test_it_is_found_by_its_name(tmp_path: Path) -> None:
    """And is what a mover has to be; all its keys are explained."""
    assert find("command") is COMMAND
    assert verifyObject(IMover, mover(tmp_path))
    assert set(COMMAND.about) == {*COMMAND.place.keys, *COMMAND.options.keys}
