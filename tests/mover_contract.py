"""What every mover of filesystems is held to, on two real places.

A module of tests makes a stage of its kind (:class:`FilesystemStage`), puts it into a
fixture called ``stage``, and has a class that inherits :class:`FilesystemContract`.

The filesystem that is moved lies at ``ONE`` at the beginning, and is empty.  Each step is
done by a mover that was made for it alone, since a mover keeps nothing in memory.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemon_stage import twisted_test
from mover_stage import ONE, STEPS, TWO, MoverStage
from mover_trees import odd_tree, picture
from ssh_stage import SshStage, descendants
from stage_waiting import reactor, until
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.shell import Reach, Shell

MB = 1 << 20


class FilesystemStage(MoverStage):
    """Two places on this machine, however a mover gets there, and a filesystem to be moved."""

    bulk = 8 * MB  # bytes that a slow mover takes some seconds to carry
    servers: tuple[int, ...] = ()  # processes of the stage, that do not count as the mover's
    shells: dict[Any, Shell]  # what movers run commands with
    ssh: SshStage | None = None  # what leads to the second one; None: it is here

    @abstractmethod
    def mover(
        self, migration: int, source: str = ONE, target: str = TWO, slow: bool = False
    ) -> Any:
        """A new mover of the filesystem.

        :param slow: it takes some seconds for ``bulk``, so that it can be met in the middle.
        """

    @abstractmethod
    def path(self, side: str) -> Path:
        """Where the filesystem is, or comes to be, on one side."""

    def shell(self, side: str, slow: bool) -> Shell:
        """What runs commands on one side, for all movers."""
        far = self.ssh if side == TWO else None
        key = (side, slow, far is not None)
        if key not in self.shells:
            self.shells[key] = self.make_shell(side, slow, far)
        return self.shells[key]

    def make_shell(self, side: str, slow: bool, far: SshStage | None) -> Shell:
        """A new one; ``far`` is what leads there, if it is not here."""
        return Shell(reactor, Reach(side)) if far is None else far.shell()

    async def close(self) -> None:
        """Take it all away again."""
        for shell in self.shells.values():
            await shell.close()

    async def leftovers(self, side: str) -> list[str]:
        """What movers have left there that a rollback has to take away."""
        return []

    @property
    def harms(self) -> dict[str, Callable[[Path], object]]:
        """What may be wrong with the target, done to the directory ``harmed`` in it.

        There are two files ``one`` and ``two`` in it.
        """
        return {
            "longer": lambda at: (at / "one").write_bytes(b"one more"),
            "gone": lambda at: (at / "one").unlink(),
        }

    def takes(self, side: str) -> bool:
        """Whether somebody can write to the filesystem there."""
        directory = self.path(side)
        probe = directory / "probe"
        times = os.stat(directory)
        done = subprocess.run(["touch", probe], stderr=subprocess.DEVNULL, check=False)
        if done.returncode == 0:
            probe.unlink()
            os.utime(directory, ns=(times.st_atime_ns, times.st_mtime_ns))
        return done.returncode == 0

    def residents(self) -> list[int]:
        """The processes that movers leave running for those that come after them."""
        return [pid for shell in self.shells.values() for pid in shell.staying]

    def commands(self) -> list[int]:
        """The processes that movers have started here, and those that these have started."""
        found = set(descendants(os.getpid()))
        for server in (*self.servers, *self.residents()):
            found -= {server, *descendants(server)}
        return sorted(found)

    def kill_commands(self) -> None:
        """Kill what movers have started, as when memory is short."""
        for pid in (*self.commands(), *self.residents()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def midway(self, step: str, migration: int) -> Deferred[int]:
        """Begin a slow step, and come back when it is in the middle of it."""
        carried: list[int] = []
        mover = self.mover(migration, slow=True)
        running = Deferred.fromCoroutine(getattr(mover, step)(carried.append))
        await until(lambda: (carried and carried[-1] > 0) or running.called, "the middle")
        assert not running.called, running
        return running


WRITER = """
import os, sys
os.chdir(sys.argv[1])
file = os.open("written", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
print("ready", flush=True)
for line in sys.stdin:
    done = ""
    try:
        os.write(file, b"open\\n")
        done += "open "
    except OSError:
        pass
    try:
        with open("fresh", "a") as fresh:
            fresh.write("fresh\\n")
        done += "fresh "
    except OSError:
        pass
    print(done, flush=True)
"""


class Writer:
    """One who goes around the proxy: stands in the directory, and has a file open to write."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self.pid = self._process.pid

    def write(self) -> set[str]:
        """Which of the two ways of writing, ``open`` and ``fresh``, have gone well just now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return set(self._process.stdout.readline().split())

    def close(self) -> None:
        """Leave."""
        self._process.kill()
        self._process.communicate()


class FilesystemContract:
    """The facts."""

    # There and back

    @twisted_test
    async def test_it_moves_and_moves_back(self, stage: FilesystemStage) -> None:
        """What was there arrives, the source is closed, and the way back is as good."""
        one, two = stage.path(ONE), stage.path(TWO)
        (one / "file").write_bytes(b"first")
        await stage.move(1)
        assert picture(two) == picture(one)
        assert stage.takes(TWO)
        assert not stage.takes(ONE)
        (two / "file").write_bytes(b"second")
        (two / "new").write_bytes(b"new")
        await stage.move(2, source=TWO, target=ONE)
        assert (one / "file").read_bytes() == b"second"
        assert picture(one) == picture(two)
        assert stage.takes(ONE)
        assert not stage.takes(TWO)
        (one / "new").unlink()
        await stage.move(3)
        await stage.step("clean", 3)
        assert picture(two) == picture(one)
        assert stage.takes(TWO)
        assert not stage.takes(ONE)

    @twisted_test
    async def test_what_is_odd_arrives(self, stage: FilesystemStage) -> None:
        """Names, types, owners, modes, times, links, attributes, holes."""
        odd_tree(stage.path(ONE))
        before = picture(stage.path(ONE))
        await stage.move(1)
        after = picture(stage.path(TWO))
        assert after.keys() == before.keys()
        for name, entry in before.items():
            assert after[name] == entry, name

    @twisted_test
    async def test_a_later_round_carries_what_is_new(self, stage: FilesystemStage) -> None:
        """And the estimate says so before; what is gone goes."""
        one, two = stage.path(ONE), stage.path(TWO)
        (one / "large").write_bytes(random.randbytes(stage.bulk))
        (one / "small").write_bytes(random.randbytes(MB // 4))
        (one / "gone").mkdir()
        (one / "gone" / "file").write_bytes(b"gone")
        estimate = await stage.mover(1).estimate()
        assert estimate.whole >= stage.bulk
        assert estimate.pending >= stage.bulk
        sizes: list[int] = []
        await stage.step("check", 1)
        first = await stage.mover(1).presync(sizes.append)
        assert first >= stage.bulk
        assert sizes == sorted(sizes)
        (one / "small").write_bytes(random.randbytes(MB // 4))
        (one / "gone" / "file").unlink()
        (one / "gone").rmdir()
        estimate = await stage.mover(1).estimate()
        assert estimate.whole >= stage.bulk
        assert estimate.pending < stage.bulk / 4
        second = await stage.step("presync", 1)
        assert second is not None
        assert second < stage.bulk / 4
        await stage.step("fence", 1)
        last = await stage.step("sync", 1)
        assert last is not None
        assert last < stage.bulk / 4
        await stage.step("attach", 1)
        await stage.step("verify", 1)
        assert picture(two) == picture(one)

    @twisted_test
    async def test_what_changes_while_it_is_carried_arrives(self, stage: FilesystemStage) -> None:
        """Files come, grow, and go during the round; the last one has them right."""
        one, two = stage.path(ONE), stage.path(TWO)
        for number in range(100):
            (one / f"file {number}").write_bytes(b"%d" % number)
        await stage.step("check", 1)
        running = Deferred.fromCoroutine(stage.mover(1).presync(lambda size: None))
        number = 0
        while not running.called:
            number += 1
            (one / f"file {number % 100}").unlink(missing_ok=True)
            (one / f"file {(number * 7) % 100}").write_bytes(b"%d again" % number)
            await deferLater(reactor, 0.001)
        await running
        await stage.step("fence", 1)
        await stage.step("sync", 1)
        await stage.step("attach", 1)
        await stage.step("verify", 1)
        assert picture(two) == picture(one)

    # The fence

    @twisted_test
    async def test_the_fence_stops_who_goes_around(self, stage: FilesystemStage) -> None:
        """With a file open, or in the directory: refused, with its number, or stopped."""
        one = stage.path(ONE)
        (one / "work").mkdir()
        writer = Writer(one / "work")
        try:
            assert writer.write() == {"open", "fresh"}
            await stage.carry(1, "presync")
            assert writer.write() == {"open", "fresh"}
            try:
                await stage.step("fence", 1)
            except MoverError as problem:
                assert str(writer.pid) in str(problem)  # noqa: PT017
                await stage.step("unfence", 1)
                assert stage.takes(ONE)
                assert writer.write() == {"open", "fresh"}
                writer.close()
                await stage.step("fence", 1)
            else:
                assert writer.write() == set()
        finally:
            writer.close()
        before = picture(one)
        assert not stage.takes(ONE)
        await stage.step("fence", 1)
        await stage.step("sync", 1)
        await stage.step("attach", 1)
        await stage.step("verify", 1)
        assert picture(one) == before
        assert picture(stage.path(TWO)) == before
        await stage.undo(1)
        assert stage.takes(ONE)
        assert picture(one) == before

    # Undoing

    @twisted_test
    async def test_each_step_can_be_undone_and_tried_again(self, stage: FilesystemStage) -> None:
        """Twice, too, and by somebody who knows nothing of it; then a migration succeeds."""
        one, two = stage.path(ONE), stage.path(TWO)
        for migration, last in enumerate(STEPS, start=1):
            (one / last).write_bytes(last.encode())
            before = picture(one)
            await stage.carry(migration, last)
            await stage.undo(migration)
            await stage.undo(migration)
            assert picture(one) == before, last
            assert stage.takes(ONE), last
            assert await stage.leftovers(ONE) == [], last
            assert await stage.leftovers(TWO) == [], last
        await stage.move(len(STEPS) + 1)
        assert picture(two) == picture(one)
        assert stage.takes(TWO)
        assert not stage.takes(ONE)

    @twisted_test
    async def test_undoing_what_was_never_begun_changes_nothing(
        self, stage: FilesystemStage
    ) -> None:
        """Not where nothing has been moved yet, and not what was moved before."""
        one, two = stage.path(ONE), stage.path(TWO)
        (one / "file").write_bytes(b"file")
        before = picture(one)
        await stage.undo(7)
        assert picture(one) == before
        assert stage.takes(ONE)
        await stage.move(8)
        await stage.undo(9)
        await stage.undo(10, source=TWO, target=ONE)
        assert picture(two) == before
        assert stage.takes(TWO)
        assert not stage.takes(ONE)

    # When it breaks

    @pytest.mark.parametrize("step", ["presync", "sync"])
    @pytest.mark.parametrize("how", ["cancelled", "killed"])
    @twisted_test
    async def test_a_round_that_breaks_off_is_taken_up(
        self, stage: FilesystemStage, step: str, how: str
    ) -> None:
        """Nothing of it goes on running; it is undone, or done again, and nothing is lost."""
        one, two = stage.path(ONE), stage.path(TWO)
        for number in range(8):
            (one / f"file {number}").write_bytes(random.randbytes(stage.bulk // 8))
        before = picture(one)
        await stage.step("check", 1)
        if step == "sync":
            await stage.step("fence", 1)
        running = await stage.midway(step, 1)
        if how == "cancelled":
            running.cancel()
            with pytest.raises(CancelledError):
                await running
        else:
            stage.kill_commands()
            with pytest.raises(MoverError):
                await running
        assert stage.commands() == []
        assert stage.takes(ONE) == (step == "presync")
        await stage.undo(1)
        assert picture(one) == before
        assert stage.takes(ONE)
        await stage.move(2)
        assert picture(two) == before

    # Seeing that it is right

    @twisted_test
    async def test_what_differs_is_found(self, stage: FilesystemStage) -> None:
        """Whatever it is: it is not verified; undone, the source is as it was."""
        one, two = stage.path(ONE), stage.path(TWO)
        (one / "harmed").mkdir()
        (one / "harmed" / "one").write_bytes(b"one")
        (one / "harmed" / "two").write_bytes(b"two")
        before = picture(one)
        for migration, (what, harm) in enumerate(stage.harms.items(), start=1):
            await stage.carry(migration)
            harm(two / "harmed")
            try:
                await stage.step("verify", migration)
            except MoverError:
                pass
            else:
                pytest.fail(f"{what}: was not found")
            await stage.undo(migration)
            assert picture(one) == before
            assert stage.takes(ONE)
        await stage.move(len(stage.harms) + 1)
        assert picture(two) == before

    @twisted_test
    async def test_a_target_that_has_something_else_is_refused(
        self, stage: FilesystemStage
    ) -> None:
        """Somebody else's files are in it; neither check nor undoing touches them."""
        one, two = stage.path(ONE), stage.path(TWO)
        (one / "file").write_bytes(b"file")
        two.mkdir(parents=True, exist_ok=True)
        (two / "strange").write_bytes(b"not ours")
        before = picture(two)
        with pytest.raises(MoverError):
            await stage.step("check", 1)
        await stage.undo(1)
        assert picture(two) == before
        assert stage.takes(TWO)
