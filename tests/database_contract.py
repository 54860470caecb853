"""What every mover of databases is held to, on two real servers.

A module of tests makes a stage of its kind (:class:`DatabaseStage`), puts it into a
fixture called ``stage``, and has a class that inherits :class:`DatabaseContract`.

The database that is moved lies on the server ``one`` at the beginning, and is empty.
Each step is done by a mover that was made for it alone, since a mover keeps nothing in
memory.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from daemon_stage import twisted_test
from mover_stage import ONE, TWO, UNDO, MoverStage
from stage_waiting import reactor, until
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from awesomeproxy.movers.interface import Kind, MoverError

Row = tuple[Any, ...]
UNDONE = ("presync", "fence", "sync", "attach")  # those that change something
BULK = 20_000  # rows of a large table
TABLE = "CREATE TABLE numbers (id bigint PRIMARY KEY, word varchar(200) NOT NULL)"
HARMS = (  # and how they are made good
    ("UPDATE numbers SET word = 'x' WHERE id = 2", "UPDATE numbers SET word = 'two' WHERE id = 2"),
    ("UPDATE numbers SET id = 4 WHERE id = 2", "UPDATE numbers SET id = 2 WHERE id = 4"),
    ("DELETE FROM numbers WHERE id = 2", "INSERT INTO numbers VALUES (2, 'two')"),
    ("INSERT INTO numbers VALUES (4, '')", "DELETE FROM numbers WHERE id = 4"),
)


class Refused(Exception):
    """The server did not take a statement, or no connection to that database."""


@dataclass
class DatabaseStage(MoverStage):
    """Two servers, and a database to be moved between them."""

    kind: Kind
    options: dict[str, Any] = field(default_factory=dict)

    @abstractmethod
    def mover(self, migration: int, source: str = ONE, target: str = TWO, **options: Any) -> Any:
        """A new mover of the database; ``options`` as in a config file, beside the stage's."""

    @abstractmethod
    def client(self, side: str) -> list[str]:
        """A command that takes statements, a line each, and prints each result at once.

        It is somebody who goes around the proxy: with all rights, and under the name that
        the database has for its users.  It ends at the first error.
        """

    @abstractmethod
    async def execute(self, side: str, *statements: str) -> list[Row]:
        """What the last of ``statements`` has answered, as somebody like :meth:`client`.

        :raise Refused: one of them, or the connection, was not taken.
        """

    @abstractmethod
    async def kill(self, side: str) -> None:
        """End a server as a crash does."""

    @abstractmethod
    async def start(self, side: str) -> None:
        """Start a server that was killed; returns when it takes connections."""

    @abstractmethod
    async def leftovers(self, side: str) -> list[str]:
        """What movers have left on a server that a rollback has to take away."""

    @property
    @abstractmethod
    def odd(self) -> Sequence[str]:
        """Statements that make whatever is odd: names, values, types, counters, views."""

    @property
    @abstractmethod
    def odd_queries(self) -> Sequence[str]:
        """What has to be answered alike before and after; each with an order."""

    @property
    @abstractmethod
    def after_odd(self) -> Sequence[str]:
        """Statements that only work where counters, defaults and triggers are as they were."""

    async def takes(self, side: str) -> bool:
        """Whether somebody can write to the database there."""
        try:
            await self.execute(side, "CREATE TABLE probe (id int PRIMARY KEY)", "DROP TABLE probe")
        except Refused:
            return False
        return True

    async def numbers(self, side: str) -> list[int]:
        """What is in the table of numbers, in order."""
        return [
            int(row[0]) for row in await self.execute(side, "SELECT id FROM numbers ORDER BY 1")
        ]

    async def fill(self, side: str, count: int, first: int = 1) -> None:
        """Put ``count`` rows of some 200 bytes into the table of numbers."""
        for start in range(first, first + count, 2000):
            numbers = range(start, min(start + 2000, first + count))
            values = ",".join(f"({n}, '{n:0180d}')" for n in numbers)
            await self.execute(side, f"INSERT INTO numbers VALUES {values}")


class Client:
    """One who goes around the proxy, in a session that stays open."""

    def __init__(self, stage: DatabaseStage, side: str) -> None:
        self._process = subprocess.Popen(
            stage.client(side),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )

    def say(self, statement: str) -> None:
        """Send a statement; nobody waits for what comes of it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(statement.encode() + b";\n")

    def ask(self, statement: str) -> str | None:
        """The line that a statement is answered with; None: there is no session any more."""
        assert self._process.stdout is not None
        self.say(statement)
        return self._process.stdout.readline().decode().strip() or None

    def close(self) -> None:
        """Leave."""
        self._process.kill()
        self._process.communicate()


class Writer:
    """Writes one number after the other, each in a transaction, around the proxy."""

    def __init__(self, stage: DatabaseStage, side: str, first: int = 1) -> None:
        self.committed: list[int] = []
        self.unknown: list[int] = []  # sent, without an answer
        self._next = first
        self._stop = threading.Event()
        self._stage, self._side = stage, side
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        while not self._stop.is_set():
            client = Client(self._stage, self._side)
            while not self._stop.is_set():
                number = self._next
                self._next += 1
                insert = f"INSERT INTO numbers VALUES ({number}, 'w') RETURNING id"
                if client.ask(insert) != str(number):
                    self.unknown.append(number)
                    break
                self.committed.append(number)
                self._stop.wait(0.002)
            client.close()
            self._stop.wait(0.05)

    async def more(self, count: int = 5) -> None:
        """Wait until it has written some more."""
        enough = len(self.committed) + count
        await until(lambda: len(self.committed) >= enough, "more writing")

    def end(self) -> None:
        """Let it write no more."""
        self._stop.set()
        self._thread.join()


class DatabaseContract:
    """The facts."""

    # There and back

    @twisted_test
    async def test_it_moves_while_somebody_writes_and_moves_back(
        self, stage: DatabaseStage
    ) -> None:
        """What was committed is there, nothing else is, nothing twice; both ways."""
        await stage.execute(ONE, TABLE)
        await stage.fill(ONE, 1000, first=100_000_001)
        bulk = await stage.numbers(ONE)
        for migration, source, target in ((1, ONE, TWO), (2, TWO, ONE)):
            writer = Writer(stage, source, first=migration * 1_000_000)
            try:
                await writer.more()
                how = {"source": source, "target": target}
                for step in ("check", "presync", "presync"):
                    await stage.step(step, migration, **how)
                await writer.more()
                await stage.step("fence", migration, **how)
                committed = list(writer.committed)
                await stage.step("sync", migration, **how)
                await stage.step("attach", migration, **how)
                await stage.step("verify", migration, **how)
                await stage.step("clean", migration, **how)
                await stage.step("clean", migration, **how)
            finally:
                writer.end()
            assert writer.committed == committed, "written after the fence"
            there = set(await stage.numbers(target))
            assert there >= {*bulk, *committed}
            assert there <= {*bulk, *committed, *writer.unknown}
            assert not await stage.takes(source)
            bulk = sorted(there)
            changes = "UPDATE numbers SET word = 'changed' WHERE id = 100000001"
            await stage.execute(target, changes, "DELETE FROM numbers WHERE id = 100000002")
            bulk = [n for n in bulk if n != 100_000_002]

    @twisted_test
    async def test_what_is_odd_arrives(self, stage: DatabaseStage) -> None:
        """Names, values, types, counters, views; and all goes on where it was."""
        await stage.execute(ONE, *stage.odd)
        before = [await stage.execute(ONE, query) for query in stage.odd_queries]
        assert all(before)
        await stage.carry(1)
        await stage.step("clean", 1)
        for query, answer in zip(stage.odd_queries, before, strict=True):
            after = await stage.execute(TWO, query)
            assert after == answer, f"{query}: {answer} has become {after}"
        await stage.execute(TWO, *stage.after_odd)

    @twisted_test
    async def test_a_later_round_carries_what_is_new(self, stage: DatabaseStage) -> None:
        """And the estimate says so before."""
        if not stage.kind.live or stage.options.get("method") == "dump":
            return
        await stage.execute(ONE, TABLE)
        await stage.fill(ONE, BULK)
        whole = await stage.mover(1).estimate()
        assert whole.whole >= BULK * 180
        assert whole.pending >= BULK * 180
        sizes: list[int] = []
        await stage.step("check", 1)
        first = await stage.mover(1).presync(sizes.append)
        assert first >= BULK * 180
        assert sizes == sorted(sizes)
        await stage.execute(ONE, "UPDATE numbers SET word = 'new' WHERE id <= 10")
        assert (await stage.mover(1).estimate()).pending < first / 10
        second = await stage.step("presync", 1)
        assert second is not None
        assert second < first / 10
        for step in ("fence", "sync", "attach", "verify"):
            await stage.step(step, 1)
        query = "SELECT count(*) FROM numbers WHERE word = 'new'"
        assert [int(row[0]) for row in await stage.execute(TWO, query)] == [10]

    # The fence

    @twisted_test
    async def test_the_fence_stops_who_goes_around(self, stage: DatabaseStage) -> None:
        """Sessions with all rights too, what they have begun, and who comes anew."""
        await stage.execute(ONE, TABLE)
        await stage.fill(ONE, 3)
        await stage.carry(1, "presync")
        inside, idle = Client(stage, ONE), Client(stage, ONE)
        try:
            inside.say("BEGIN")
            assert inside.ask("INSERT INTO numbers VALUES (100, 'open') RETURNING id") == "100"
            assert idle.ask("SELECT count(*) FROM numbers") == "3"
            await stage.step("fence", 1)
            inside.say("COMMIT")
            assert inside.ask("SELECT 1") is None
            assert idle.ask("INSERT INTO numbers VALUES (101, 'idle') RETURNING id") is None
            assert not await stage.takes(ONE)
            await stage.step("fence", 1)
            await stage.step("sync", 1)
            await stage.step("attach", 1)
            assert await stage.numbers(TWO) == [1, 2, 3]
            await stage.undo(1)
        finally:
            inside.close()
            idle.close()
        assert await stage.numbers(ONE) == [1, 2, 3]
        assert await stage.takes(ONE)

    # Undoing

    @twisted_test
    async def test_each_step_can_be_undone_and_tried_again(self, stage: DatabaseStage) -> None:
        """Twice, too, and by somebody who knows nothing of it; then a migration succeeds."""
        await stage.execute(ONE, TABLE)
        await stage.fill(ONE, 10)
        for migration, last in enumerate(UNDONE, start=1):
            await stage.carry(migration, last)
            await stage.undo(migration)
            await stage.undo(migration)
            await stage.fill(ONE, 1, first=100 + migration)
            assert not await stage.takes(TWO), last
            assert [await stage.leftovers(side) for side in (ONE, TWO)] == [[], []], last
        await stage.carry(len(UNDONE) + 1)
        await stage.step("clean", len(UNDONE) + 1)
        assert len(await stage.numbers(TWO)) == 10 + len(UNDONE)

    @twisted_test
    async def test_undoing_what_was_never_begun_changes_nothing(self, stage: DatabaseStage) -> None:
        """Not even where somebody else's database has the name of the target's."""
        await stage.execute(ONE, TABLE)
        await stage.fill(ONE, 3)
        await stage.undo(7)
        assert await stage.numbers(ONE) == [1, 2, 3]
        await stage.carry(8)
        await stage.step("clean", 8)
        await stage.undo(9, source=ONE, target=TWO)
        assert await stage.numbers(TWO) == [1, 2, 3]
        assert await stage.takes(TWO)

    @pytest.mark.parametrize("dead", [ONE, TWO])
    @twisted_test
    async def test_undoing_waits_for_a_dead_server(self, stage: DatabaseStage, dead: str) -> None:
        """It says that it could not, does what it can, and can be called again."""
        await stage.execute(ONE, TABLE)
        await stage.fill(ONE, 3)
        await stage.carry(1, "attach")
        await stage.kill(dead)
        problems = []
        for name in UNDO:
            try:
                await stage.step(name, 1)
            except MoverError as problem:
                problems.append(problem)
        assert problems
        if dead == TWO:
            assert await stage.takes(ONE)
            assert await stage.leftovers(ONE) == []
        await stage.start(dead)
        await stage.undo(1)
        assert await stage.takes(ONE)
        assert not await stage.takes(TWO)
        assert await stage.leftovers(ONE) == await stage.leftovers(TWO) == []

    @twisted_test
    async def test_a_round_that_is_given_up_can_be_tried_again(self, stage: DatabaseStage) -> None:
        """It was cancelled somewhere in the middle, more than once."""
        await stage.execute(ONE, TABLE)
        await stage.fill(ONE, BULK // 4)
        await stage.step("check", 1)
        for after in (0.03, 0.1, 0.25):
            trying = Deferred.fromCoroutine(stage.mover(1).presync(lambda size: None))
            await deferLater(reactor, after)
            trying.cancel()
            with contextlib.suppress(CancelledError, MoverError):
                await trying
        await stage.carry(1)
        assert len(await stage.numbers(TWO)) == BULK // 4

    # Seeing that it is right

    @twisted_test
    async def test_a_row_that_differs_is_found(self, stage: DatabaseStage) -> None:
        """Changed, gone or new: it is not verified, and the table is named."""
        await stage.execute(ONE, TABLE)
        await stage.fill(ONE, 3)
        await stage.execute(ONE, "UPDATE numbers SET word = 'two' WHERE id = 2")
        await stage.carry(1)
        for harm, remedy in HARMS:
            await stage.execute(TWO, harm)
            with pytest.raises(MoverError, match="numbers"):
                await stage.step("verify", 1)
            await stage.execute(TWO, remedy)
            await stage.step("verify", 1)

    @twisted_test
    async def test_a_target_that_has_something_else_is_refused(self, stage: DatabaseStage) -> None:
        """It was moved there, and is in use; neither check nor undoing touches it."""
        await stage.execute(ONE, TABLE)
        await stage.fill(ONE, 3)
        await stage.carry(1)
        await stage.step("clean", 1)
        await stage.execute(TWO, "INSERT INTO numbers VALUES (4, 'new')")
        with pytest.raises(MoverError):
            await stage.step("check", 2, source=ONE, target=TWO)
        await stage.undo(2, source=ONE, target=TWO)
        assert await stage.numbers(TWO) == [1, 2, 3, 4]
        assert await stage.takes(TWO)
