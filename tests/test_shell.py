"""Commands on nodes: here, and through ssh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from daemon_stage import twisted_fixture, twisted_test
from ssh_stage import SshStage, an_ssh_stage
from stage_waiting import reactor, until
from twisted.internet.defer import CancelledError, Deferred

from awesomeproxy.movers import shell
from awesomeproxy.movers.shell import Reach, Shell, ShellError

ssh = twisted_fixture(an_ssh_stage)
MB = 1 << 20
ODD = [
    "a b",
    "",
    "-n",
    "--",
    "'",
    '"',
    "$HOME",
    "new\nline",
    "*",
    "ü",
    "\\",
    "`id`",
    "a;b",
    "~",
    "!",
]
PRINT = [sys.executable, "-c", "import sys, json; print(json.dumps(sys.argv[1:]))"]


@pytest.fixture
def here() -> Shell:
    """This node."""
    return Shell(reactor, Reach("here"))


def begin(coroutine: Any) -> Deferred[Any]:
    """Run it, and come back at once."""
    return Deferred.fromCoroutine(coroutine)


def runs(pid: int) -> bool:
    """Whether there is such a process, that is not just waited for."""
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


async def number_in(path: Path) -> int:
    """A process's number that a command writes into a file."""
    await until(lambda: path.exists() and path.read_text().endswith("\n"), "the number")
    return int(path.read_text())


# What is said


@twisted_test
async def test_a_command_is_given_words_input_and_environment(here: Shell) -> None:
    """And what it prints comes back, in pieces while it runs."""
    assert await here.run("printf", "%s", "a  b\n") == "a  b\n"
    assert await here.run("cat", input=b"x" * MB) == "x" * MB
    assert await here.run("cat") == ""
    got = await here.run("sh", "-c", 'echo "$A|$B"', env={"A": "a b", "B": "'\n"})
    assert got == "a b|'\n\n"
    pieces: list[bytes] = []
    running = begin(here.run("sh", "-c", "echo 1; read x; echo 2; sleep 0.1", heard=pieces.append))
    await running
    assert b"".join(pieces) == b"1\n2\n"


@twisted_test
async def test_odd_words_arrive_as_they_are(here: Shell, ssh: SshStage) -> None:
    """On this node, and on another."""
    far = ssh.shell()
    environment = {"A": ODD[7], "B": ODD[4]}
    for node in (here, far):
        assert json.loads(await node.run(*PRINT, *ODD)) == ODD
        said = await node.run("sh", "-c", 'printf "%s|" "$A" "$B"', env=environment)
        assert said == "new\nline|'|"
        assert await node.run("cat", input=b"\xc3\xbc") == "ü"


@twisted_test
async def test_a_failure_says_what_was_said(here: Shell, ssh: SshStage) -> None:
    """Or the status, or the signal; of another node its name."""
    with pytest.raises(ShellError, match=r"^sh -c .*: one / two$") as caught:
        await here.run("sh", "-c", "echo one >&2; echo; echo two >&2; exit 3")
    assert caught.value.status == 3
    assert caught.value.said == "one / two"
    with pytest.raises(ShellError, match=r"^false: ended with status 1$"):
        await here.run("false", env={"A": "1"})
    with pytest.raises(ShellError, match=r"was ended by signal 15$"):
        await here.run("sh", "-c", "kill $$")
    with pytest.raises(ShellError, match=r"^far: sh -c 'echo no >&2; exit 4': no$") as caught:
        await ssh.shell().run("sh", "-c", "echo no >&2; exit 4")
    assert caught.value.status == 4
    with pytest.raises(ShellError, match=r"No such file or directory") as caught:
        await here.run("/no/such/program")


@twisted_test
async def test_what_is_printed_does_not_fill_the_memory(
    here: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is kept up to a bound; of what is only told of, the end."""
    much = ["sh", "-c", 'head -c "$1" /dev/zero; echo end', "sh"]
    monkeypatch.setattr(shell, "MOST", MB)
    assert len(await here.run(*much, str(MB - 4))) == MB
    with pytest.raises(ShellError, match=r"^yes: it has printed more than 1 MB$"):
        await here.run("yes")
    heard: list[int] = []
    said = await here.run(*much, str(3 * MB), end_only=True, heard=lambda p: heard.append(len(p)))
    assert said.endswith("\0end\n")
    assert len(said) <= 2 * shell.KEPT
    assert sum(heard) == 3 * MB + 4


# Giving up


@twisted_test
async def test_a_command_that_takes_too_long_is_ended(here: Shell, tmp_path: Path) -> None:
    """With all that it has started, and it says so."""
    note = f"sleep 60 & echo $! >{tmp_path}/pid; echo busy >&2; wait"
    with pytest.raises(ShellError, match=r"it has taken more than 0\.3 s: busy$") as caught:
        await here.run("sh", "-c", note, time=0.3)
    assert caught.value.status is None
    assert not runs(await number_in(tmp_path / "pid"))


@twisted_test
async def test_a_command_that_is_cancelled_is_ended(here: Shell, tmp_path: Path) -> None:
    """Before the cancelling comes back."""
    running = begin(here.run("sh", "-c", f"sleep 60 & echo $! >{tmp_path}/pid; wait"))
    pid = await number_in(tmp_path / "pid")
    assert runs(pid)
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert not runs(pid)


@twisted_test
async def test_who_has_left_the_group_does_not_hold_it_up(here: Shell, tmp_path: Path) -> None:
    """A service that it has started keeps its output open."""
    held = [tmp_path / "one", tmp_path / "two"]
    began = time.monotonic()
    with pytest.raises(ShellError, match=r"it has taken more than 0\.5 s"):
        await here.run(
            "sh", "-c", f"setsid sh -c 'echo $$ >{held[0]}; exec sleep 60' & sleep 60", time=0.5
        )
    running = begin(
        here.run("sh", "-c", f"setsid sh -c 'echo $$ >{held[1]}; exec sleep 60' & sleep 60")
    )
    await number_in(held[1])
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert time.monotonic() - began < 20
    for path in held:
        os.kill(await number_in(path), signal.SIGKILL)


@twisted_test
async def test_a_command_has_ended_when_its_process_has(here: Shell, tmp_path: Path) -> None:
    """Though what it has left in the background keeps its output open, and goes on."""
    for number, how in enumerate(("", "setsid ")):
        note = tmp_path / str(number)
        left = f"{how}sh -c 'echo $$ >{note}; exec sleep 60' & echo begun"
        assert await here.run("sh", "-c", left, time=50) == "begun\n"
        with pytest.raises(ShellError, match=r"no$") as caught:
            await here.run("sh", "-c", "sleep 5 & echo no >&2; exit 3", time=50)
        assert caught.value.status == 3
        pid = await number_in(note)
        assert runs(pid)
        os.kill(pid, signal.SIGKILL)


DAEMON = """
import sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from awesomeproxy.movers.shell import Reach, Shell
shell = Shell(reactor, Reach("here"))
Deferred.fromCoroutine(shell.run("sh", "-c", "echo $$ >" + sys.argv[1] + "; exec sleep 60"))
reactor.run()
"""


@twisted_test
async def test_a_command_does_not_outlive_a_daemon_that_is_killed(tmp_path: Path) -> None:
    """The kernel sees to that."""
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON, tmp_path / "pid"])
    try:
        pid = await number_in(tmp_path / "pid")
        assert runs(pid)
    finally:
        daemon.kill()
        daemon.wait()
    await until(lambda: not runs(pid), "its end")


# Pipes


@twisted_test
async def test_a_pipe_carries_and_counts(here: Shell, ssh: SshStage, tmp_path: Path) -> None:
    """Here, to another node, and from there."""
    (tmp_path / "from").write_bytes(os.urandom(3 * MB))
    far = ssh.shell()
    for number, (one, two) in enumerate([(here, here), (here, far), (far, here)]):
        to = tmp_path / f"to {number}"
        sizes: list[int] = []
        taking = ["sh", "-c", 'cat >"$1"', "sh", str(to)]
        size = await one.pipe(
            ["cat", str(tmp_path / "from")], two, taking, progress=sizes.append, time=20
        )
        assert size == sizes[-1] == 3 * MB
        assert sizes == sorted(sizes)
        assert to.read_bytes() == (tmp_path / "from").read_bytes()


@twisted_test
async def test_a_pipe_that_breaks_says_why(here: Shell) -> None:
    """What the taker says first; and nobody is waited for in vain."""
    endless = ["cat", "/dev/zero"]
    full = ["sh", "-c", "head -c 100000 >/dev/null; echo full >&2; exit 1"]
    with pytest.raises(ShellError, match=r"full$"):
        await here.pipe(endless, here, full, time=20)
    with pytest.raises(ShellError, match=r"gone$"):
        await here.pipe(["sh", "-c", "echo gone >&2; exit 2"], here, ["cat"], time=20)
    began = time.monotonic()
    with pytest.raises(ShellError, match=r"full$"):
        await here.pipe(["sleep", "60"], here, ["sh", "-c", "echo full >&2; exit 1"], time=20)
    assert time.monotonic() - began < 10
    with pytest.raises(ShellError, match=r"more than 0\.3 s"):
        await here.pipe(endless, here, ["sleep", "60"], time=0.3)
    with pytest.raises(ShellError, match=r"No such file"):
        await here.pipe(["/no/such/program"], here, ["cat"], time=20)


@twisted_test
async def test_a_pipe_that_is_cancelled_is_ended(here: Shell, tmp_path: Path) -> None:
    """Both ends of it."""
    one = ["sh", "-c", f"echo $$ >{tmp_path}/one; exec cat /dev/zero"]
    two = ["sh", "-c", f"echo $$ >{tmp_path}/two; exec cat >/dev/null"]
    sizes: list[int] = []
    running = begin(here.pipe(one, here, two, progress=sizes.append, time=20))
    pids = [await number_in(tmp_path / "one"), await number_in(tmp_path / "two")]
    await until(lambda: sizes and sizes[-1] > MB, "the middle")
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert not any(map(runs, pids))


# Nodes that are gone


@pytest.mark.parametrize("shared", [True, False])
@twisted_test
async def test_a_node_that_hangs_is_given_up(ssh: SshStage, shared: bool, tmp_path: Path) -> None:
    """Its machine stands still, and nothing says that the connection is gone."""
    far = Shell(reactor, ssh.reach(), ssh.control if shared else "", alive=1)
    ssh.shells.append(far)
    began = begin(far.run("sh", "-c", f"echo $$ >{tmp_path}/pid; exec sleep 60", time=50))
    await number_in(tmp_path / "pid")
    ssh.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    with pytest.raises(ShellError, match=r"^far: sh"):
        await began
    assert time.monotonic() - stopped < 10
    ssh.signal(signal.SIGCONT)
    if shared:  # the connection that has died is not used again
        assert await far.run("echo", "back") == "back\n"


@twisted_test
async def test_a_node_that_is_not_there_is_told(ssh: SshStage) -> None:
    """And when it is back, commands run."""
    far = ssh.shell()
    assert await far.run("echo", "1") == "1\n"
    await ssh.stop()
    with pytest.raises(ShellError, match=r"far: echo 2: .*(refused|closed|reset)"):
        await far.run("echo", "2")
    await ssh.start()
    assert await far.run("echo", "3") == "3\n"


@twisted_test
async def test_who_is_first_at_the_same_time_is_told_of_the_command_alone(ssh: SshStage) -> None:
    """All but one go without the connection that is shared, which is no matter of theirs."""
    far = ssh.shell()
    failing = [Deferred.fromCoroutine(far.run("sh", "-c", "exit 7")) for _ in range(6)]
    for each in failing:
        with pytest.raises(ShellError, match=r"^far: sh -c 'exit 7': ended with status 7$"):
            await each


@twisted_test
async def test_a_shared_connection_is_let_go(ssh: SshStage) -> None:
    """Nothing of it is left; and closing twice does no harm."""
    far = ssh.shell()
    await far.run("true")
    assert os.listdir(ssh.control)
    await far.close()
    await until(lambda: not os.listdir(ssh.control), "the end of the connection")
    await far.close()
    assert await far.run("echo", "1") == "1\n"
    await far.close()


def test_it_says_where_it_is(here: Shell, ssh: SshStage) -> None:
    """In logs."""
    assert repr(here) == "<Shell on here>"
    assert repr(ssh.shell()) == "<Shell on far>"
    assert here.local
    assert not ssh.shell().local
