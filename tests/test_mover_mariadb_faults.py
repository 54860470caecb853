"""MariaDB databases: dumps, what is refused, and servers that die in the middle."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from daemon_stage import twisted_fixture, twisted_test
from database_contract import TABLE, Client, DatabaseContract
from mariadb_stage import ODD_QUERIES, MariadbStage, Servers, a_mariadb_stage
from mariadb_stage import servers as two_servers
from mover_stage import ONE, TWO
from stage_waiting import reactor, until_async
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from awesomeproxy.movers import mariadb_closing, mariadb_following
from awesomeproxy.movers.finding import find
from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.mariadb import MARIADB

servers = pytest.fixture(scope="module")(two_servers)


async def _stage(servers: Servers) -> AsyncIterator[MariadbStage]:
    async for stage in a_mariadb_stage(servers, method="dump"):
        yield stage


stage = twisted_fixture(_stage)


class TestDump:
    """What holds for all movers of databases, where it is another way than replication."""

    test_it_moves = DatabaseContract.test_it_moves_while_somebody_writes_and_moves_back
    test_what_is_odd_arrives = DatabaseContract.test_what_is_odd_arrives


@twisted_test
async def test_tables_of_other_engines_are_dumped(stage: MariadbStage) -> None:
    """They only lie still behind the fence; replication refuses them."""
    await stage.execute(ONE, "CREATE TABLE m (a INT) ENGINE=MyISAM", "INSERT INTO m VALUES (1)")
    await stage.execute(ONE, "CREATE TABLE a (a INT) ENGINE=Aria", "INSERT INTO a VALUES (2)")
    with pytest.raises(MoverError, match="InnoDB"):
        await stage.mover(1, method="replicate").check()
    await stage.carry(1)
    assert await stage.execute(TWO, "SELECT a.a, m.a FROM a, m") == [("2", "1")]


@twisted_test
async def test_auto_dumps_what_is_small(stage: MariadbStage) -> None:
    """And has what is large follow."""
    await stage.execute(ONE, TABLE)
    await stage.fill(ONE, 100)
    assert await stage.mover(1, method="auto").presync(lambda size: None) == 0
    assert await stage.leftovers(TWO) == []
    assert await stage.mover(1, method="auto", dump_below=1).presync(lambda size: None) > 100 * 180
    assert await stage.leftovers(TWO) != []
    assert await stage.leftovers(ONE) == [], "the account is dropped as soon as it is connected"


# The fence


@twisted_test
async def test_who_uses_the_tables_from_another_database_is_ended(stage: MariadbStage) -> None:
    """He, and nobody else."""
    await stage.execute(ONE, TABLE, "CREATE DATABASE other", "CREATE TABLE other.t (a INT)")
    elsewhere = replace(stage, database="other")
    across, bystander = Client(elsewhere, ONE), Client(elsewhere, ONE)
    try:
        for client, table in (
            (across, f"`{stage.database.replace('`', '``')}`.numbers"),
            (bystander, "t"),
        ):
            client.say("BEGIN")
            assert client.ask(f"SELECT COUNT(*) FROM {table} FOR UPDATE") == "0"
        await stage.carry(1, "fence")
        assert across.ask("SELECT 1") is None
        assert bystander.ask("SELECT 1") == "1"
    finally:
        across.close()
        bystander.close()
    assert "METADATA_LOCK_INFO" not in await stage.leftovers(ONE)


@twisted_test
async def test_a_fence_that_cannot_be_built_leaves_all_open(
    stage: MariadbStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prepared transaction of an XA cannot be ended; the message says so."""
    monkeypatch.setattr(mariadb_closing, "LATE", 1.0)
    await stage.execute(ONE, TABLE)
    client = Client(stage, ONE)
    try:
        client.say("XA START 'x'")
        client.say("INSERT INTO numbers VALUES (1, 'x')")
        client.say("XA END 'x'")
        client.say("XA PREPARE 'x'")
        assert client.ask("SELECT 1") == "1"
        with pytest.raises(MoverError, match="XA RECOVER"):
            await stage.carry(1, "fence")
    finally:
        client.close()
    await stage.undo(1)
    await stage.execute(ONE, "XA COMMIT 'x'")
    assert await stage.numbers(ONE) == [1]
    assert await stage.leftovers(ONE) == []


@twisted_test
async def test_a_source_that_dies_in_the_fence_is_opened_again(stage: MariadbStage) -> None:
    """Wherever that was, with all that it had."""
    await stage.execute(ONE, *stage.odd)
    before = [await stage.execute(ONE, query) for query in ODD_QUERIES]
    for migration, after in enumerate((0.1, 0.2, 0.3, 0.4, 0.6), start=1):
        fencing = Deferred.fromCoroutine(stage.mover(migration).fence())
        await deferLater(reactor, after)
        await stage.kill(ONE)
        with contextlib.suppress(MoverError):
            await fencing
        with pytest.raises(MoverError):
            await stage.mover(migration).unfence()
        await stage.start(ONE)
        await stage.undo(migration)
        assert [await stage.execute(ONE, query) for query in ODD_QUERIES] == before, after
        assert [x for x in await stage.leftovers(ONE) if not x.startswith("METADATA")] == []


@twisted_test
async def test_a_fence_outlives_its_server(stage: MariadbStage) -> None:
    """A server that was killed comes back closed."""
    await stage.execute(ONE, TABLE)
    await stage.carry(1, "fence")
    await stage.kill(ONE)
    await stage.start(ONE)
    assert not await stage.takes(ONE)
    for step in ("sync", "attach", "verify"):
        await stage.step(step, 1)
    assert await stage.takes(TWO)


# Following


@twisted_test
async def test_a_target_that_dies_goes_on_where_it_was(stage: MariadbStage) -> None:
    """Nothing is lost or doubled, and nothing of other databases gets there meanwhile."""
    how = {"method": "replicate"}
    await stage.execute(ONE, "CREATE TABLE numbers (id INT, word TEXT)")
    await stage.execute(ONE, "INSERT INTO numbers VALUES (1, 'x')")
    await stage.carry(1, "presync", **how)
    await stage.execute(ONE, "INSERT INTO numbers VALUES (2, 'x')")

    async def status() -> dict[str, str]:
        (only,) = await stage.admin(TWO).named("SHOW ALL SLAVES STATUS")
        return only

    # What comes for others lies in the relay log, not yet left out, when the server dies.
    called = (await status())["Connection_name"]
    await stage.admin(TWO).run(f"STOP SLAVE '{called}' SQL_THREAD")
    other = "CREATE DATABASE other", "CREATE TABLE other.t (a INT)"
    await stage.execute(ONE, "INSERT INTO numbers VALUES (3, 'x')", *other)
    written = await stage.admin(ONE).value("SELECT @@GLOBAL.gtid_binlog_pos")

    async def lies_there() -> bool:
        return (await status())["Gtid_IO_Pos"] == written

    async def tried() -> bool:
        return (await status())["Last_IO_Errno"] != "0"

    await until_async(lies_there, "what was written")
    await stage.kill(TWO)
    await stage.start(TWO)
    await until_async(tried, "an attempt to connect")
    assert "other" not in await stage.admin(TWO).databases()
    await stage.execute(ONE, "INSERT INTO numbers VALUES (4, 'x')")
    assert (await stage.step("presync", 1, **how) or 0) < 5000, "copied anew"
    for step in ("fence", "sync", "attach", "verify"):
        await stage.step(step, 1, **how)
    assert await stage.numbers(TWO) == [1, 2, 3, 4]
    assert "other" not in await stage.admin(TWO).databases()


@twisted_test
async def test_a_source_that_does_not_answer_is_an_error(
    stage: MariadbStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a wait for ever; afterwards it goes on."""
    monkeypatch.setattr(mariadb_following, "_ANSWER", 1.0)
    await stage.execute(ONE, TABLE)
    await stage.carry(1, "presync", method="replicate")
    process = stage.servers.sides[ONE].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        following = stage.mover(1, method="replicate")._following
        with pytest.raises(MoverError, match="more than 1 s"):
            await following.reach("0-1-999999", lambda size: None)
    finally:
        process.send_signal(signal.SIGCONT)
    await stage.fill(ONE, 3)
    await stage.carry(1, "verify", method="replicate")
    assert await stage.numbers(TWO) == [1, 2, 3]


@twisted_test
async def test_a_copy_that_cannot_follow_is_made_anew(stage: MariadbStage) -> None:
    """Somebody has changed it, so that a change of the source does not fit."""
    how = {"method": "replicate"}
    await stage.execute(ONE, TABLE)
    await stage.fill(ONE, 3)
    await stage.carry(1, "presync", **how)
    (copy,) = [x for x in await stage.admin(TWO).databases() if x.endswith("_copy")]
    await stage.admin(TWO).run(f"DELETE FROM {copy}.numbers WHERE id = 2")
    await stage.execute(ONE, "DELETE FROM numbers WHERE id = 2")
    with pytest.raises(MoverError, match="copies it anew"):
        await stage.step("presync", 1, **how)
    await stage.carry(1, "verify", **how)
    assert await stage.numbers(TWO) == [1, 3]


@twisted_test
async def test_a_second_copy_does_not_follow_beside_the_first(stage: MariadbStage) -> None:
    """A server has one position for all its connections."""
    await stage.execute(ONE, TABLE, "CREATE DATABASE other", "CREATE TABLE other.t (a INT)")
    other = replace(stage, database="other")
    await other.carry(1, "presync", method="replicate")
    with pytest.raises(MoverError, match="another database is on its way"):
        await stage.mover(2, method="replicate").check()
    await other.undo(1, method="replicate")


@pytest.mark.parametrize("method", ["replicate", "dump"])
@twisted_test
async def test_a_copy_that_nobody_could_end_is_in_nobodys_way(
    stage: MariadbStage, method: str
) -> None:
    """The target was out of reach when the migration was rolled back; the next one ends it."""
    await stage.execute(ONE, TABLE)
    await stage.fill(ONE, 3)
    await stage.carry(1, "presync", method="replicate")
    await stage.carry(2, method=method)
    await stage.step("clean", 2, method=method)
    assert await stage.numbers(TWO) == [1, 2, 3]
    assert await stage.leftovers(TWO) == []


# What is refused


REFUSED = [
    (["CREATE TABLE t (a INT) WITH SYSTEM VERSIONING"], "system-versioned"),
    (["CREATE SEQUENCE s", "CREATE TABLE t (a INT DEFAULT NEXTVAL(s))"], "sequence"),
    (["CREATE TABLE awesomeproxy_x (a INT)"], "rename it"),
    (["CREATE EVENT e ON SCHEDULE AT '2037-01-01' DO SET @a = 1"], "only once"),
    (["CREATE TABLE t (a INT)", "CREATE VIEW v AS SELECT * FROM t", "DROP TABLE t"], "view 'v'"),
    (
        [
            "CREATE DATABASE other",
            "CREATE TABLE other.p (a INT PRIMARY KEY)",
            "CREATE TABLE t (a INT, FOREIGN KEY (a) REFERENCES other.p (a))",
        ],
        "foreign key",
    ),
    (["CREATE TABLE t (a INT) ENGINE=MRG_MyISAM"], "storage engine"),
    (["CREATE USER me@here", "CREATE DEFINER=me@here PROCEDURE p() SELECT 1"], "'me@here'"),
    (
        [
            "CREATE USER me",
            "EXECUTE IMMEDIATE CONCAT('GRANT SELECT ON `', "
            "REPLACE(DATABASE(), '`', '``'), '`.* TO me')",
        ],
        "'me@%'",
    ),
]


@pytest.mark.parametrize(("statements", "says"), REFUSED, ids=[says for _, says in REFUSED])
@twisted_test
async def test_what_cannot_be_carried_is_refused(
    stage: MariadbStage, statements: list[str], says: str
) -> None:
    """Before anything is done, and the message names it."""
    await stage.execute(ONE, *statements)
    with pytest.raises(MoverError, match=says):
        await stage.mover(1).check()


@twisted_test
async def test_no_room_is_refused(stage: MariadbStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's disk is smaller than the database."""
    mover = stage.mover(1)

    async def huge() -> int:
        return 10**18

    monkeypatch.setattr(mover, "_size", huge)
    with pytest.raises(MoverError, match="make room"):
        await mover.check()


def test_it_is_found_by_its_name() -> None:
    """As an entry point, with something to say about each key."""
    assert find("mariadb") is MARIADB
    assert set(MARIADB.about) == {*MARIADB.place.keys, *MARIADB.options.keys}
