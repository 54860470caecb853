"""What keeps a migration's commands from being carried out when they come too late."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_stage import twisted_fixture, twisted_test
from servers_stage import Servers, two_servers
from ssh_stage import SshStage, an_ssh_stage, descendants, runs
from stage_waiting import reactor, until
from twisted.internet.defer import Deferred

from awesomeproxy.identity import identity
from awesomeproxy.movers.errands import Errands
from awesomeproxy.movers.resident import Resident
from awesomeproxy.movers.shell import Reach, Shell, ShellError
from awesomeproxy.movers.warrant import Warrant

ssh = twisted_fixture(an_ssh_stage)
servers = twisted_fixture(two_servers)


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """Take the notes away again."""
    yield
    for place in ("/run", "/tmp"):
        for note in Path(place).glob("awesomeproxy-test*"):
            note.unlink()


@pytest.fixture
def sockets() -> Iterator[str]:
    """A directory with a short path."""
    with tempfile.TemporaryDirectory(prefix="ssh-") as directory:
        yield directory


@twisted_test
async def test_a_question_that_the_network_kept_is_not_answered_once_it_is_undone(
    servers: Servers, sockets: str, tmp_path: Path
) -> None:
    """It comes when the network is whole again, over the connection that was given up."""
    one = Reach("one", "one", f"{servers.keys}/ssh_config")
    # It is patient, so that the connection does not end with what it has kept.
    shell, warrant = Shell(reactor, one, sockets, alive=600), Warrant("awesomeproxy-test-1")
    errands = Errands(shell.under(warrant), "web")
    await errands.run("true")
    old = descendants(servers.one.processes[-1].pid)
    servers.one.cut()
    with pytest.raises(ShellError, match="no answer"):
        await errands.run("touch", str(tmp_path / "late"), time=1.0)
    servers.one.cut(off=False)
    warrant.withdraw()
    other = Shell(reactor, one)
    await Errands(other.under(warrant), "web").run("touch", str(tmp_path / "undone"))
    await other.close()
    await shell.close()
    await until(lambda: not any(map(runs, old)), "the end of the old connection")
    assert (tmp_path / "undone").exists()
    assert not (tmp_path / "late").exists()


@twisted_test
async def test_what_is_undone_is_not_done_any_more(ssh: SshStage, tmp_path: Path) -> None:
    """Whether it is a command, one end of a pipe, or a question; other migrations go on."""
    shell = ssh.shell()
    mine = shell.under(Warrant("awesomeproxy-test-7"))
    undoing, others = Warrant("awesomeproxy-test-7"), Warrant("awesomeproxy-test-77")
    undoing.withdraw()
    assert repr(undoing) == "<Warrant awesomeproxy-test-7: withdrawn>"
    done = tmp_path / "done"
    await mine.run("touch", str(done))
    await Errands(mine, "web").run("rm", str(done))
    assert await shell.under(undoing).run("echo", "undone") == "undone\n"
    for late in (mine.run("touch", str(done)), Errands(mine, "web").run("touch", str(done))):
        with pytest.raises(ShellError, match="it comes too late: this was undone"):
            await late
    with pytest.raises(ShellError, match="it comes too late: this was undone"):
        await mine.pipe(["cat", "/dev/zero"], mine, ["tee", str(done)], time=60.0)
    assert not done.exists()
    for still in (shell.under(undoing), shell.under(others), shell):
        await still.run("true")
        await Errands(still, "web").run("true")


@twisted_test
async def test_who_undoes_waits_for_what_is_being_done(ssh: SshStage, tmp_path: Path) -> None:
    """By one that was asked before, over whichever connection."""
    begun, done = tmp_path / "begun", tmp_path / "done"
    slow = Errands(ssh.shell(shared=False).under(Warrant("awesomeproxy-test-8")), "web")
    slowly = f"touch {begun}; sleep 1; touch {done}"
    running = Deferred.fromCoroutine(slow.run("sh", "-c", slowly))
    await until(begun.exists, "the command")
    warrant = Warrant("awesomeproxy-test-8")
    warrant.withdraw()
    await Errands(ssh.shell(shared=False).under(warrant), "web").run("test", "-e", str(done))
    await running


@twisted_test
async def test_what_undoes_waits_for_a_command_that_is_awaited(
    ssh: SshStage, tmp_path: Path
) -> None:
    """Though its daemon does not wait for it any more; but for no other, and not for ever."""
    shell, done = ssh.shell(), tmp_path / "done"

    async def begin(number: int, name: str, then: str, patience: float = 0.0) -> None:
        begun = tmp_path / name
        slowly = f"touch {begun}; {then}"
        mine = shell.under(Warrant(f"awesomeproxy-test-{number}"))
        running = Deferred.fromCoroutine(mine.run("sh", "-c", slowly, patience=patience))
        await until(begun.exists, "the command")
        running.addErrback(lambda failure: None).cancel()

    stays = f"while [ ! -e {tmp_path / 'end'} ]; do sleep 0.05; done"
    await begin(11, "unawaited", stays)
    await begin(111, "other", stays, patience=20.0)
    await begin(11, "awaited", f"sleep 1; touch {done}", patience=20.0)
    warrant = Warrant("awesomeproxy-test-11")
    warrant.withdraw()
    await shell.under(warrant).run("test", "-e", str(done), patience=20.0)
    other = Warrant("awesomeproxy-test-111")
    other.withdraw()
    await shell.under(other).run("true", patience=0.3)
    (tmp_path / "end").touch()


@twisted_test
async def test_who_undoes_waits_for_no_other_migration(ssh: SshStage, tmp_path: Path) -> None:
    """Nor for what only looks."""
    begun, on = tmp_path / "begun", tmp_path / "on"
    other = Errands(ssh.shell(shared=False).under(Warrant("awesomeproxy-test-10")), "shop")
    slowly = f"touch {begun}; while [ ! -e {on} ]; do sleep 0.05; done"
    running = Deferred.fromCoroutine(other.run("sh", "-c", slowly))
    await until(begun.exists, "the command")
    mine, warrant = ssh.shell(), Warrant("awesomeproxy-test-9")
    warrant.withdraw()
    await Errands(mine.under(warrant), "web").run("touch", str(on))
    await running
    looking = Resident(mine.under(Warrant("awesomeproxy-test-9")), "web", b"answer_to = len")
    await looking.ready()
    assert await looking.ask("1234", changes=False) == 4


@twisted_test
async def test_who_may_not_write_elsewhere_has_the_note_in_tmp() -> None:
    """Here nothing needs one: what is given up here is ended here."""
    warrant = Warrant("awesomeproxy-test-9")
    assert warrant.around(["true"])[-2:] == ["awesomeproxy-test-9", "true"]
    here = Shell(reactor, Reach("here")).under(warrant)
    warrant.withdraw()
    assert await here.run("echo", "here") == "here\n"
    nobody = ["env", "XDG_RUNTIME_DIR=/nowhere", "setpriv", "--reuid=nobody", "--clear-groups"]
    words = warrant.around(["sh", "-c", "ls /tmp/awesomeproxy-test-9"])
    said = await Shell(reactor, Reach("here")).run(*nobody, *words)
    assert said == "/tmp/awesomeproxy-test-9\n"


def test_a_daemon_is_called_the_same_as_long_as_it_keeps_its_state(tmp_path: Path) -> None:
    """And like no other."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    called = identity(one)
    assert called.isalnum()
    assert identity(one) == called
    assert identity(two) != called
    (one / "identity").write_text("")  # a crash may leave that
    assert identity(one).isalnum()
