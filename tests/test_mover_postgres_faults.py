"""What PostgreSQL's mover refuses, and what happens when servers, networks and disks fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_stage import twisted_test
from database_contract import TABLE
from mover_stage import ONE, TWO
from postgres_stage import ROLE, Cluster, PostgresStage, a_postgres_stage, two_clusters
from stage_waiting import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.postgres import POSTGRES
from awesomeproxy.movers.postgres_door import hidden_name
from awesomeproxy.shapes import Spot


@pytest.fixture(scope="module")
def clusters() -> Iterator[dict[str, Cluster]]:
    yield from two_clusters()


@pytest.fixture
def stage(clusters: dict[str, Cluster], tmp_path: Path) -> PostgresStage:
    return a_postgres_stage(clusters, tmp_path, method="replicate")


def read(table: dict[str, Any]) -> list[str]:
    """What is wrong with the settings of a place."""
    spot = Spot("file")
    POSTGRES.place.read(table, spot)
    return list(spot.lines())


async def refused(stage: PostgresStage, step: str, **how: Any) -> str:
    """What a step that does not succeed says."""
    with pytest.raises(MoverError) as problem:
        await stage.step(step, 1, **how)
    return str(problem.value)


# Settings


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "database: is missing"),
        ({"database": "postgres"}, "belongs to the server"),
        ({"database": "é" * 32}, "1 to 63 bytes"),
        ({"database": "shop", "port": 65536}, "is not a port"),
        ({"database": "shop", "run_as": "-u root"}, "cannot be a user"),
        ({"database": "shop", "host": "db1", "socket": "/run/db"}, "leave one out"),
        ({"database": "shop", "conninfo": "postgres://a:sesame@b/c"}, "KEY=VALUE"),
        ({"database": "shop", "conninfo": "host=b password='sesame"}, "KEY=VALUE"),
    ],
)
def test_a_bad_setting_is_told(table: dict[str, Any], said: str) -> None:
    """With what to write; but a secret is not repeated."""
    (line,) = read(table)
    assert said in line
    assert "sesame" not in line


def test_good_settings_are_taken() -> None:
    """A password does not show when they are printed."""
    table = {"database": "my shop", "conninfo": r"host = 'a b' user=x password='ses\'ame' port=1"}
    assert read(table) == []
    assert "ame" not in repr(POSTGRES.place.read({**table, "database": "x"}, Spot("file")))


def test_a_hidden_name_fits_and_is_no_other_databases() -> None:
    """However long the name is, and wherever it has to be cut."""
    long, other = "é" * 31, "é" * 30 + "e"
    names = {hidden_name(name, 12345, part) for name in (long, other) for part in ("source", "x")}
    assert len(names) == 4
    assert all(len(name.encode()) <= 63 for name in names)
    assert hidden_name("shop", 17, "source") == "shop.17.source"


# Refusals


@twisted_test
async def test_what_cannot_be_replicated_is_refused(stage: PostgresStage) -> None:
    """All of it in one go, by name; a dump takes most of it."""
    await stage.execute(
        ONE,
        'CREATE TABLE "no key" (id int)',
        "CREATE TABLE whole (id int, j json)",
        "ALTER TABLE whole REPLICA IDENTITY FULL",
        "CREATE UNLOGGED TABLE light (id int PRIMARY KEY)",
        "SELECT lo_create(0)",
        TABLE,
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER tr AFTER INSERT ON numbers FOR EACH ROW EXECUTE FUNCTION f()",
        "ALTER TABLE numbers ENABLE ALWAYS TRIGGER tr",
    )
    said = await refused(stage, "check")
    for each in (
        'public."no key" has no primary key',
        "public.whole has REPLICA IDENTITY FULL and the column j of type json",
        "public.light is unlogged",
        "1 large objects",
        "the trigger tr of the table public.numbers",
        'method = "dump"',
    ):
        assert each in said
    await stage.step("check", 1, method="dump")


@twisted_test
async def test_what_the_servers_lack_is_refused(stage: PostgresStage) -> None:
    """Roles, rights, transactions that somebody has prepared, others that read along."""
    await stage.admin(ONE, "CREATE ROLE lonely LOGIN")
    try:
        await stage.execute(
            ONE,
            TABLE,
            "ALTER TABLE numbers OWNER TO lonely",
            "BEGIN",
            "INSERT INTO numbers VALUES (1, '')",
            "PREPARE TRANSACTION 'mine'",
        )
        assert "the transaction 'mine' is prepared" in await refused(stage, "check")
        assert "prepared transactions" in await refused(stage, "fence")
        await stage.step("unfence", 1)
        await stage.execute(ONE, "ROLLBACK PREPARED 'mine'")
        assert "the role 'lonely' is missing on two" in await refused(stage, "check")
        await stage.execute(ONE, f"ALTER TABLE numbers OWNER TO {ROLE}")
        stage.places[ONE] = {"conninfo": "host=127.0.0.1 user=lonely password=sesame"}
        said = await refused(stage, "check")
        assert "lonely of conninfo may not replicate" in said
        assert "lonely of conninfo cannot read public.numbers" in said
        assert "sesame" not in said
        stage.places[ONE] = {"user": "lonely"}
        assert "'lonely' on one is no superuser" in await refused(stage, "check")
        stage.places[ONE] = {"conninfo": ""}
        assert "write conninfo for one" in await refused(stage, "check")
        stage.places[ONE] = {"programs": "/nonexistent"}
        assert "PostgreSQL on one" in await refused(stage, "check")
    finally:
        await stage.admin(ONE, "DROP ROLE lonely")


@twisted_test
async def test_an_empty_database_at_the_target_is_replaced(stage: PostgresStage) -> None:
    """It has been made for that; and what the source has written beside its rows comes along."""
    quoted = stage.database.replace('"', '""')
    await stage.admin(
        ONE,
        f'ALTER DATABASE "{quoted}" SET search_path = "a b", public',
        f'ALTER DATABASE "{quoted}" SET default_transaction_read_only = on',
        f"ALTER ROLE {ROLE} IN DATABASE \"{quoted}\" SET work_mem = '5MB'",
        f'REVOKE CONNECT ON DATABASE "{quoted}" FROM PUBLIC',
        f'GRANT CREATE ON DATABASE "{quoted}" TO {ROLE} WITH GRANT OPTION',
        f'ALTER DATABASE "{quoted}" CONNECTION LIMIT 7',
        f"COMMENT ON DATABASE \"{quoted}\" IS 'it''s mine'",
    )
    await stage.admin(TWO, f'CREATE DATABASE "{quoted}"')
    query = (
        "SELECT datconnlimit, (SELECT array_agg(a ORDER BY a::text) FROM unnest(datacl) AS a),"
        " shobj_description(oid, 'pg_database'),"
        " (SELECT array_agg(setconfig::text ORDER BY setrole) FROM pg_db_role_setting"
        f" WHERE setdatabase = oid) FROM pg_database WHERE datname = $${stage.database}$$"
    )
    before = await stage.admin(ONE, query)
    await stage.carry(1)
    await stage.undo(1)
    assert await stage.admin(ONE, query) == before
    await stage.carry(2, method="dump")
    await stage.step("clean", 2, method="dump")
    assert await stage.admin(TWO, query) == before


# What changes under way


@twisted_test
async def test_a_definition_that_changes_ends_the_migration(stage: PostgresStage) -> None:
    """It is said what; updates of a new table go on; and after a rollback it can be moved."""
    await stage.execute(ONE, TABLE)
    await stage.carry(1, "presync")
    await stage.execute(
        ONE,
        "CREATE TABLE keyless (x int)",
        "INSERT INTO keyless VALUES (1)",
        "UPDATE keyless SET x = 2",
    )
    await stage.step("fence", 1)
    assert "CREATE TABLE public.keyless" in await refused(stage, "sync")
    await stage.undo(1)
    assert await stage.execute(ONE, "SELECT x FROM keyless") == [("2",)]
    assert await stage.notes(ONE) == []


@twisted_test
async def test_a_small_database_is_dumped(stage: PostgresStage) -> None:
    """All of it in the pause; a large one has to be replicated before."""
    await stage.execute(ONE, *stage.odd, "SELECT lo_from_bytea(7, 'large')")
    before = [await stage.execute(ONE, query) for query in stage.odd_queries]
    how = {"method": "auto", "dump_below": "64MB"}
    await stage.step("check", 1, **how)
    assert await stage.step("presync", 1, **how) == 0
    await stage.step("fence", 1, **how)
    said = await refused(stage, "sync", method="auto", dump_below="1MB")
    assert "has to be" in said
    assert (await stage.step("sync", 1, **how) or 0) > 1000
    for step in ("attach", "verify", "clean"):
        await stage.step(step, 1, **how)
    assert [await stage.execute(TWO, query) for query in stage.odd_queries] == before
    assert await stage.execute(TWO, "SELECT lo_get(7)", *stage.after_odd[:1], "SELECT 1") == [
        ("1",)
    ]


@twisted_test
async def test_a_server_that_stands_still_is_not_waited_for(stage: PostgresStage) -> None:
    """What was begun is ended when it is given up, and all goes on when the server does."""
    await stage.execute(ONE, TABLE)
    await stage.carry(1, "presync")
    stage.clusters[TWO].freeze()
    try:
        trying = Deferred.fromCoroutine(stage.mover(1).presync(lambda size: None))
        await deferLater(reactor, 0.3)
        trying.cancel()
        with pytest.raises(CancelledError):
            await trying
    finally:
        stage.clusters[TWO].thaw()
    await stage.carry(1)


@twisted_test
async def test_replication_that_is_cut_after_the_fence_is_taken_up(stage: PostgresStage) -> None:
    """Its sender cannot come back to a closed database, but to a hidden one."""
    await stage.execute(ONE, TABLE)
    await stage.carry(1, "presync")
    stage.clusters[TWO].freeze()
    try:
        await stage.fill(ONE, 2000)
        await stage.step("fence", 1)
        await stage.admin(
            ONE,
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
            f" WHERE database = $${stage.database}$$",
        )
    finally:
        stage.clusters[TWO].thaw()
    for step in ("sync", "attach", "verify"):
        await stage.step(step, 1)
    assert len(await stage.numbers(TWO)) == 2000


@pytest.mark.parametrize("dead", [ONE, TWO])
@twisted_test
async def test_a_server_that_dies_in_the_first_round(stage: PostgresStage, dead: str) -> None:
    """The round goes on when it is back, or is undone."""
    await stage.execute(ONE, TABLE)
    await stage.fill(ONE, 2000)
    await stage.carry(1, "presync")
    await stage.kill(dead)
    with pytest.raises(MoverError, match=f"PostgreSQL on {dead}"):
        await stage.step("presync", 1)
    with pytest.raises(MoverError, match=f"PostgreSQL on {dead}"):
        await stage.step("abandon", 1)
    if dead == TWO:
        assert await stage.leftovers(ONE) == []
    await stage.start(dead)
    await stage.step("abandon", 1)
    assert [await stage.leftovers(side) for side in (ONE, TWO)] == [[], []]
    assert await stage.notes(ONE) == []


@pytest.fixture
def small(clusters: dict[str, Cluster], tmp_path: Path) -> Iterator[PostgresStage]:
    """A stage whose target has a small disk, but for its log, which it could not live without."""
    with clusters[TWO].disk("36m") as cluster:
        yield a_postgres_stage({ONE: clusters[ONE], TWO: cluster}, tmp_path, method="replicate")


@twisted_test
async def test_a_full_disk_is_survived(small: PostgresStage) -> None:
    """Check refuses it; without one the copy is given up, and all of it can be undone."""
    await small.execute(ONE, TABLE)
    await small.fill(ONE, 60_000)
    assert "make room" in await refused(small, "check")
    said = await refused(small, "presync")
    assert "on two fails again and again" in said
    assert "its log says why" in said
    await small.step("abandon", 1)
    assert [await small.leftovers(side) for side in (ONE, TWO)] == [[], []]
    await small.step("fence", 2)
    with pytest.raises(MoverError, match="No space left on device"):
        await small.step("sync", 2, method="dump")
    await small.undo(2)
    assert [await small.leftovers(side) for side in (ONE, TWO)] == [[], []]
    assert await small.takes(ONE)
