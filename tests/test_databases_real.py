"""Real databases are held and moved while real clients work with them."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pymysql  # type: ignore[import-untyped]
import pytest
from plane_stage import twisted_test
from stage_waiting import HOST, reactor, until
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from wire_stage import (
    PROGRAMS,
    USER,
    Process,
    Wire,
    a_mariadb,
    a_pgbouncer,
    a_postgres,
    ended,
    in_thread,
    wire,
)

from awesomeproxy.model import DatabaseDrain, DatabaseRetry, Mode, Server
from awesomeproxy.model import PgBouncer as Settings
from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.pgbouncer import PgBouncer
from awesomeproxy.movers.shell import Reach, Shell

CYCLES = 5
# What psycopg says of a session that was shut down, here as by the server itself: the code if
# it has seen it before the end of the connection.
SHUT_DOWN = {"57P01", "closed"}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Process]:
    yield from a_postgres()


@pytest.fixture(scope="module")
def mariadb() -> Iterator[Process]:
    yield from a_mariadb()


def straight(server: Process) -> str:
    """How psycopg goes around the proxy."""
    where = f"host={server.directory} port={server.port} user={USER} dbname=postgres"
    return f"{where} application_name=asks"


def ask(server: Process, statement: str) -> Any:
    """The first value of the answer, without the proxy."""
    with psycopg.connect(straight(server), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def others(server: Process) -> int:
    """How many clients the server has, but for those who ask."""
    found = ask(
        server,
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        " AND application_name <> 'asks'",
    )
    return int(found)


def table(server: Process) -> None:
    ask(server, "DROP TABLE IF EXISTS done; CREATE TABLE done (id bigserial, who text)")


def pgbench(port: int, script: Path, *more: str) -> subprocess.Popen[str]:
    """Transactions of 1 ms or so, from four clients."""
    script.write_text(
        "BEGIN;\nINSERT INTO done (who) VALUES ('bench');\nSELECT pg_sleep(0.001);\nCOMMIT;\n"
    )
    argv = [f"{PROGRAMS}/pgbench", "-n", "-c4", "-j4", f"-f{script}", f"-h{HOST}", f"-p{port}"]
    return subprocess.Popen(
        [*argv, f"-U{USER}", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def processed(said: tuple[int, str, str]) -> int:
    """How many transactions pgbench has counted, none of which has failed."""
    status, out, err = said
    assert status == 0, err
    assert "aborted" not in err, err
    found = re.search("actually processed: ([0-9]+)", out)
    assert found, out
    return int(found[1])


async def cycles(on: Wire, server: Process, count: int) -> None:
    """Hold, see that nothing is left at the server, and go on at the other place."""
    for _ in range(count):
        await deferLater(reactor, 0.2)
        await on.hold()
        assert await in_thread(others, server) == 0
        before = await in_thread(ask, server, "SELECT count(*) FROM done")
        await deferLater(reactor, 0.1)
        assert await in_thread(ask, server, "SELECT count(*) FROM done") == before
        assert await in_thread(others, server) == 0
        on.move()


@twisted_test
async def test_who_connects_for_each_transaction_sees_nothing(
    postgres: Process, tmp_path: Path
) -> None:
    """pgbench -C over five holds: no error, and each transaction is there once."""
    table(postgres)
    async with wire(postgres, "postgres") as on:
        bench = pgbench(on.port, tmp_path / "script", "-C", "-T4", "postgres")
        result = in_thread(ended, bench)
        await cycles(on, postgres, CYCLES)
        count = processed(await result)
        assert await in_thread(ask, postgres, "SELECT count(*) FROM done") == count
        assert on.seen.counters.released > 0
        assert on.seen.counters.failed == 0


class Pool:
    """A client that keeps its connection, and makes another when that has gone."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.acknowledged: set[str] = set()
        self.refused: set[str] = set()
        self.codes: list[str] = []
        self.stop = threading.Event()

    def work(self, name: str) -> None:
        """Transactions of two statements, each with a name of its own, until told to stop."""
        where = f"host={HOST} port={self.port} user={USER} dbname=postgres"
        number = 0
        while not self.stop.is_set():
            try:
                with psycopg.connect(where) as connection:
                    while not self.stop.is_set():
                        number += 1
                        who = f"{name}-{number}"
                        self._transaction(connection, who)
            except psycopg.OperationalError as problem:
                self.refused.add(who)
                closed = "server closed the connection unexpectedly" in str(problem)
                self.codes.append(problem.sqlstate or ("closed" if closed else str(problem)))

    def _transaction(self, connection: psycopg.Connection[Any], who: str) -> None:
        connection.execute("INSERT INTO done (who) VALUES (%s)", (who,))
        connection.execute("SELECT pg_sleep(0.002)")
        connection.commit()
        self.acknowledged.add(who)
        time.sleep(0.001)


@twisted_test
async def test_a_pool_is_parted_between_transactions_only(postgres: Process) -> None:
    """What a pool's client was told is done is there once; what it was not is not there."""
    table(postgres)
    async with wire(postgres, "postgres") as on:
        pool = Pool(on.port)
        workers = [in_thread(pool.work, f"worker{number}") for number in range(4)]
        await cycles(on, postgres, CYCLES - 2)
        await deferLater(reactor, 0.2)
        pool.stop.set()
        for worker in workers:
            await worker
        names = "SELECT array_agg(who ORDER BY who) FROM done"
        assert await in_thread(ask, postgres, names) == sorted(pool.acknowledged)
        assert not pool.refused & pool.acknowledged
        assert len(pool.codes) >= CYCLES - 2  # they were parted, and were told so
        assert {"57P01"} <= set(pool.codes) <= SHUT_DOWN


@twisted_test
async def test_a_transaction_may_finish_and_is_waited_for(postgres: Process) -> None:
    """A session in a transaction goes on while the database is held, and is parted behind it."""
    table(postgres)
    async with wire(postgres, "postgres", drain=DatabaseDrain(grace=0.0)) as on:
        where = f"host={HOST} port={on.port} user={USER} dbname=postgres"
        busy, idle = (
            await in_thread(psycopg.connect, where),
            await in_thread(psycopg.connect, where),
        )
        await in_thread(busy.execute, "INSERT INTO done (who) VALUES ('first')")
        on.place(Mode.HOLDING)
        await until(lambda: on.seen.connections == 1, "the idle one is parted")
        await in_thread(busy.execute, "INSERT INTO done (who) VALUES ('second')")
        assert not on.seen.drained
        await in_thread(busy.commit)
        await until(lambda: on.seen.drained, "drained")
        assert await in_thread(ask, postgres, "SELECT count(*) FROM done") == 2
        for connection in (busy, idle):
            with pytest.raises(psycopg.OperationalError):
                await in_thread(connection.execute, "SELECT 1")
            await in_thread(connection.close)
        on.move()
        late = await in_thread(psycopg.connect, where)
        where_from = await in_thread(late.execute, "SELECT inet_client_addr()")
        assert where_from.fetchone() == (None,)  # it is the Unix socket by now
        await in_thread(late.close)


@twisted_test
async def test_copy_and_pipelines_are_followed(postgres: Process) -> None:
    """After COPY both ways, pipelines, cursors and errors a session is idle, and parted."""
    table(postgres)
    async with wire(postgres, "postgres", drain=DatabaseDrain(grace=0.0)) as on:
        where = f"host={HOST} port={on.port} user={USER} dbname=postgres"

        def all_of_it() -> psycopg.Connection[Any]:
            connection = psycopg.connect(where, autocommit=True)
            with connection.cursor().copy("COPY done (who) FROM STDIN") as copy:
                for number in range(20_000):
                    copy.write_row([f"row {number}"])
            with connection.cursor().copy("COPY done (id, who) TO STDOUT") as copy:
                assert len(list(copy.rows())) == 20_000
            with (
                pytest.raises(psycopg.errors.BadCopyFileFormat),
                connection.cursor().copy("COPY done (id, who) FROM STDIN") as copy,
            ):
                copy.write(b"1\t2\t3\n" * 50_000)
            with connection.pipeline():
                found = [connection.execute("SELECT %s::int", [n]) for n in range(300)]
            assert [cursor.fetchone() for cursor in found] == [(n,) for n in range(300)]
            with connection.transaction(), connection.cursor("kept") as cursor:
                assert len(cursor.execute("SELECT * FROM done").fetchall()) == 20_000
            with pytest.raises(psycopg.errors.DivisionByZero):
                connection.execute("SELECT 1/0")
            connection.execute("LISTEN news")
            connection.execute("NOTIFY news")
            assert connection.execute("SELECT repeat('x', 1000000)").fetchone()
            return connection

        connection = await in_thread(all_of_it)
        (pipe,) = on.plane.databases["shop"].pipes
        assert pipe.session.idle
        await on.hold()
        with pytest.raises(psycopg.OperationalError):
            await in_thread(connection.execute, "SELECT 1")
        await in_thread(connection.close)


@twisted_test
async def test_a_server_that_restarts_is_waited_for(postgres: Process) -> None:
    """Who connects while the server is down is held, and let in when it is back."""
    async with wire(postgres, "postgres") as on:
        where = f"host={HOST} port={on.port} user={USER} dbname=postgres"
        await in_thread(postgres.stop)
        coming = in_thread(psycopg.connect, where)
        await until(lambda: on.seen.held == 1, "held")
        assert on.seen.state == "unreachable"
        sock = postgres.socket
        await in_thread(postgres.start, lambda: sock.exists() and others_or_less(postgres))
        connection = await coming
        await in_thread(connection.close)
        await until(lambda: not on.seen.connections, "closed")


def others_or_less(server: Process) -> bool:
    """Whether the server answers."""
    try:
        return others(server) >= 0
    except psycopg.OperationalError:
        return False


@twisted_test
async def test_who_has_waited_too_long_is_told_so_in_words(postgres: Process) -> None:
    """When the server does not come back in time, psycopg gets an error it understands."""
    nowhere = {
        name: type(backend)(name, Server("tcp", HOST, 1))
        for name, backend in postgres.backends.items()
    }
    async with wire(postgres, "postgres", retry=DatabaseRetry(budget=0.3)) as on:
        on.definition = type(on.definition)(
            "shop",
            on.definition.endpoint,
            "one",
            nowhere,
            protocol="postgres",
            retry=DatabaseRetry(budget=0.3),
        )
        on.place(Mode.OPEN)
        where = f"host={HOST} port={on.port} user={USER} dbname=postgres sslmode=disable"
        with pytest.raises(psycopg.OperationalError, match="cannot be reached; try again"):
            await in_thread(psycopg.connect, where)
        assert on.seen.counters.refused == 1


@twisted_test
async def test_what_is_encrypted_is_closed_after_a_while(tmp_path_factory: Any) -> None:
    """A session over TLS cannot be followed: it stays for drain.tunnels, and is closed then."""
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = directory / "key", directory / "pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=shop", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    for server in a_postgres():
        data = server.directory / "data"
        for name, source in (("server.key", key), ("server.crt", certificate)):
            subprocess.run(
                ["install", "-o", USER, "-m", "600", str(source), str(data / name)], check=True
            )
        ask(server, "ALTER SYSTEM SET ssl = on")
        ask(server, "SELECT pg_reload_conf()")
        async with wire(server, "postgres", drain=DatabaseDrain(grace=0.0, tunnels=0.4)) as on:
            where = f"host={HOST} port={on.port} user={USER} dbname=postgres sslmode=require"
            await until_tls(where)
            connection = await in_thread(psycopg.connect, where)
            await until(lambda: on.seen.tunnels == 1, "it is known to be unknown")
            on.place(Mode.HOLDING)
            await in_thread(connection.execute, "SELECT 1")
            assert on.seen.connections == 1
            await until(lambda: on.seen.drained, "drained")
            assert on.seen.closed == 1
            with pytest.raises(psycopg.OperationalError):
                await in_thread(connection.execute, "SELECT 1")
            await in_thread(connection.close)


async def until_tls(where: str) -> None:
    """The server takes over its new settings when it likes."""
    while True:
        try:
            connection = await in_thread(psycopg.connect, where)
        except psycopg.OperationalError:
            continue
        await in_thread(connection.close)
        return


# ---- PgBouncer ------------------------------------------------------------------------


def console(bouncer: Process, database: str = "shop") -> PgBouncer:
    """Its admin console, at its Unix socket."""
    address = Server("unix", path=str(bouncer.socket))
    return PgBouncer(Shell(reactor, Reach("here")), Settings(address, database))


@twisted_test
async def test_clients_of_pgbouncer_keep_their_sessions(postgres: Process, tmp_path: Path) -> None:
    """pgbench with sessions that last, over five holds: no error, each transaction once."""
    table(postgres)
    async with wire(postgres, "postgres") as on:
        with a_pgbouncer(on.port) as bouncer:
            there = console(bouncer)
            bench = pgbench(bouncer.port, tmp_path / "script", "-T6", "shop")
            result = in_thread(ended, bench)
            for _ in range(CYCLES):
                await deferLater(reactor, 0.2)
                await there.pause(5.0)
                await until(lambda: not on.seen.connections, "all closed, before it is held")
                await on.hold()
                assert on.seen.closed == 0
                assert await in_thread(others, postgres) == 0
                on.move()
                await there.resume()
            count = processed(await result)
            assert await in_thread(ask, postgres, "SELECT count(*) FROM done") == count


@twisted_test
async def test_pgbouncer_is_told_twice_or_never(postgres: Process) -> None:
    """PAUSE and RESUME may be repeated, and RESUME may come first; unknown ones are told."""
    async with wire(postgres, "postgres") as on:
        with a_pgbouncer(on.port) as bouncer:
            there = console(bouncer)
            await there.resume()
            await there.pause(5.0)
            await there.pause(5.0)
            await there.resume()
            await there.resume()
            with pytest.raises(MoverError, match="no such database"):
                await console(bouncer, "-x \"; SHUTDOWN; '").pause(5.0)
            with pytest.raises(MoverError, match="no such database"):
                await console(bouncer, "nosuch").resume()
        with pytest.raises(MoverError, match="could not resume shop: "):
            await there.resume()
        with pytest.raises(MoverError, match=r"could not pause shop: .* could not resume"):
            await there.pause(5.0)


@twisted_test
async def test_the_console_is_reached_over_tcp_with_a_password(
    postgres: Process, tmp_path: Path
) -> None:
    """The password is in a file as ~/.pgpass is; without it nobody is asked for one."""
    async with wire(postgres, "postgres") as on:
        with a_pgbouncer(on.port, "se:same", auth_type="md5") as bouncer:
            address = Server("tcp", HOST, bouncer.port)
            shell = Shell(reactor, Reach("here"))
            with pytest.raises(MoverError, match="no password supplied"):
                await PgBouncer(shell, Settings(address, "shop")).pause(5.0)
            file = tmp_path / "pass word"
            file.write_text(f"{HOST}:*:pgbouncer:pgbouncer:se\\:same\n")
            file.chmod(0o600)
            there = PgBouncer(shell, Settings(address, "shop", password_file=str(file)))
            await there.pause(5.0)
            await there.resume()


@twisted_test
async def test_a_pause_of_pgbouncer_that_fails_is_taken_back(postgres: Process) -> None:
    """A transaction that does not end makes the PAUSE fail, or it is cancelled: all goes on."""
    async with wire(postgres, "postgres") as on:
        with a_pgbouncer(on.port) as bouncer:
            where = f"host={HOST} port={bouncer.port} user={USER} dbname=shop"
            there = console(bouncer)
            connection = await in_thread(psycopg.connect, where)
            await in_thread(connection.execute, "SELECT 1")  # a transaction has begun
            with pytest.raises(MoverError, match="has not ended its transaction"):
                await there.pause(0.3)
            running: Deferred[None] = Deferred.fromCoroutine(there.pause(20.0))
            await deferLater(reactor, 0.3)
            running.addErrback(lambda failure: None)
            running.cancel()
            await running
            other = await in_thread(psycopg.connect, where)
            await in_thread(other.execute, "SELECT 1")
            await in_thread(other.close)
            await in_thread(connection.commit)
            await in_thread(connection.close)
            await there.pause(5.0)
            await there.resume()


# ---- MariaDB --------------------------------------------------------------------------


def of_mariadb(port: int, **more: Any) -> Any:
    """A connection through the proxy."""
    return pymysql.connect(host=HOST, port=port, user="app", database="shop", **more)


def mysql_ask(server: Process, statement: str) -> Any:
    """The first row of the answer, without the proxy."""
    connection = pymysql.connect(
        unix_socket=str(server.socket), user="app", database="shop", autocommit=True
    )
    with connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()


class MysqlPool(Pool):
    """The same with MariaDB."""

    def work(self, name: str) -> None:
        number = 0
        while not self.stop.is_set():
            who = ""
            try:
                with of_mariadb(self.port) as connection, connection.cursor() as cursor:
                    while not self.stop.is_set():
                        number += 1
                        who = f"{name}-{number}"
                        cursor.execute("INSERT INTO done (who) VALUES (%s)", (who,))
                        cursor.execute("DO SLEEP(0.002)")
                        connection.commit()
                        self.acknowledged.add(who)
                        time.sleep(0.001)
            except (pymysql.OperationalError, pymysql.InterfaceError) as problem:
                self.refused.add(who)
                self.codes.append(str(problem.args[0]))


@twisted_test
async def test_a_pool_of_mariadb_is_parted_between_transactions_only(mariadb: Process) -> None:
    """The same with MariaDB."""
    mysql_ask(mariadb, "CREATE OR REPLACE TABLE done (who VARCHAR(40))")
    connected = (
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = 'app' AND"
        " ID <> CONNECTION_ID()"
    )
    async with wire(mariadb, "mysql") as on:
        pool = MysqlPool(on.port)
        workers = [in_thread(pool.work, f"worker{number}") for number in range(4)]
        for _ in range(CYCLES - 2):
            await deferLater(reactor, 0.2)
            await on.hold()
            assert await in_thread(mysql_ask, mariadb, connected) == (0,)
            on.move()
        await deferLater(reactor, 0.2)
        pool.stop.set()
        for worker in workers:
            await worker
        names = await in_thread(
            mysql_ask, mariadb, "SELECT COUNT(*), COUNT(DISTINCT who) FROM done"
        )
        assert names == (len(pool.acknowledged), len(pool.acknowledged))
        for who in pool.refused:
            assert await in_thread(
                mysql_ask, mariadb, f"SELECT COUNT(*) FROM done WHERE who = '{who}'"
            ) == (0,)
        assert len(pool.codes) >= CYCLES - 2
        assert set(pool.codes) == {"1053"}


@twisted_test
async def test_sessions_of_mariadb_are_followed(mariadb: Process, tmp_path: Path) -> None:
    """Results of all sorts, errors, files and calls leave a session idle; BEGIN does not."""
    mysql_ask(mariadb, "CREATE OR REPLACE TABLE done (who VARCHAR(40))")
    file = tmp_path / "rows"
    file.write_text("".join(f"row {number}\n" for number in range(20_000)))
    async with wire(mariadb, "mysql", drain=DatabaseDrain(grace=0.0)) as on:

        def all_of_it() -> Any:
            connection = of_mariadb(on.port, autocommit=True, local_infile=True)
            with connection.cursor() as cursor:
                cursor.execute(f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE done")
                cursor.execute("SELECT * FROM done")
                assert len(cursor.fetchall()) == 20_000
                cursor.execute("SELECT REPEAT('x', 20000000)")
                assert cursor.fetchone()
                cursor.execute("SELECT who FROM done WHERE who = ''")
                with pytest.raises(pymysql.ProgrammingError):
                    cursor.execute("SELECT nonsense FROM nowhere")
                cursor.execute(
                    "CREATE OR REPLACE PROCEDURE two() BEGIN SELECT 1; SELECT NULL, 2; END"
                )
                cursor.callproc("two")
                assert cursor.fetchall() == ((1,),)
                assert cursor.nextset()
                assert cursor.fetchall() == ((None, 2),)
                while cursor.nextset():
                    pass
                cursor.execute("PREPARE s FROM 'SELECT 1'")
                cursor.execute("EXECUTE s")
            connection.ping()
            connection.select_db("shop")
            return connection

        connection = await in_thread(all_of_it)
        (pipe,) = on.plane.databases["shop"].pipes
        assert pipe.session.idle
        await in_thread(connection.begin)
        assert not pipe.session.idle
        on.place(Mode.HOLDING)
        await deferLater(reactor, 0.1)
        assert on.seen.connections == 1
        await in_thread(connection.commit)
        await until(lambda: on.seen.drained, "drained")
        with pytest.raises(pymysql.OperationalError, match=r"1053.*Server shutdown in progress"):
            await in_thread(connection.ping, False)


@twisted_test
async def test_the_client_of_mariadb_is_followed(mariadb: Process) -> None:
    """With all that MariaDB's own library agrees on with its server."""
    async with wire(mariadb, "mysql") as on:
        argv = ["mariadb", "--no-defaults", f"--host={HOST}", f"--port={on.port}", "--user=app"]
        client = subprocess.Popen(
            [*argv, "--unbuffered", "shop"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert client.stdin is not None
        client.stdin.write(b"SELECT 1; SHOW TABLES; STATUS;\n")
        client.stdin.flush()
        await until(lambda: on.seen.connections == 1, "connected")
        (pipe,) = on.plane.databases["shop"].pipes
        await until(lambda: pipe.session.idle and pipe.session.between, "idle")
        assert not pipe.session.opaque
        await on.hold()
        assert on.seen.closed == 1
        client.stdin.close()
        await in_thread(client.wait)
