"""Two PostgreSQL clusters of a test's own, and databases in them that are moved."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon_stage import free_ports
from database_contract import DatabaseStage, Refused, Row
from mover_stage import ONE, TWO
from stage_waiting import HOST, PATIENCE, reactor
from twisted.internet.threads import deferToThread

from awesomeproxy.movers.interface import Job, Place
from awesomeproxy.movers.postgres import POSTGRES
from awesomeproxy.movers.shell import Reach, Shell
from awesomeproxy.shapes import Spot

PROGRAMS = "/usr/lib/postgresql/15/bin"
ROLE = "\"web 'master'\""
USER = "postgres"  # the server does not run as root
_AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
_AS_USER += ["--pdeathsig", "KILL", "--"]
_SETTINGS = {
    "listen_addresses": HOST,
    "wal_level": "logical",
    "fsync": "off",
    "shared_buffers": "16MB",
    "max_connections": "40",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_worker_processes": "30",
    "max_logical_replication_workers": "20",
    "max_prepared_transactions": "5",
    "wal_retrieve_retry_interval": "200ms",
    "lc_messages": "C",
}
_BETWEEN, _BEHIND = "\x1f", "\x1e"  # of columns, of rows
_numbers = itertools.count(1)


@dataclass
class Cluster:
    """One server."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    more: dict[str, str] = field(default_factory=dict)

    def create(self, *more: str) -> None:
        """Make it, not started."""
        how = ["--no-sync", "--auth=trust", f"--username={USER}", "--encoding=UTF8"]
        how += ["--locale=C.UTF-8", f"--pgdata={self.directory}/data", *more]
        subprocess.run(
            [*_AS_USER, f"{PROGRAMS}/initdb", *how], check=True, stdout=subprocess.DEVNULL, cwd="/"
        )

    @contextmanager
    def disk(self, size: str) -> Iterator[Cluster]:
        """Another server that runs beside it, with a disk of ``size`` for all but its log."""
        small = Cluster(self.directory / "small", free_ports(1)[0])
        for path in (small.directory, small.directory / "data", small.directory / "log"):
            path.mkdir()
            shutil.chown(path, USER, USER)
        owned = f"size={size},mode=700,uid={pwd.getpwnam(USER).pw_uid}"
        data = str(small.directory / "data")
        subprocess.run(["mount", "-t", "tmpfs", "-o", owned, "tmpfs", data], check=True)
        try:
            small.create(f"--waldir={small.directory}/log")
            small.start()
            yield small
        finally:
            small.kill()
            subprocess.run(["umount", "--lazy", data], check=True)

    def start(self) -> None:
        """Start it; returns when it takes connections."""
        settings = {**_SETTINGS, "port": str(self.port), **self.more}
        settings["unix_socket_directories"] = str(self.directory)
        argv = [*_AS_USER, f"{PROGRAMS}/postgres", "-D", f"{self.directory}/data"]
        argv += [f"--{key}={value}" for key, value in settings.items()]
        late = time.monotonic() + PATIENCE
        while time.monotonic() < late:
            if self.process is None or self.process.poll() is not None:
                with open(self.directory / "messages", "ab") as log:
                    self.process = subprocess.Popen(argv, stdout=log, stderr=log, cwd="/")
            asked = subprocess.run(
                [f"{PROGRAMS}/pg_isready", "-q", "-h", str(self.directory), "-p", str(self.port)]
            )
            if asked.returncode == 0:
                return
            time.sleep(0.03)
        raise AssertionError((self.directory / "messages").read_text()[-2000:])

    def kill(self) -> None:
        """End it as a crash does."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Let all its processes stand still."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)

    def _pids(self) -> list[int]:
        assert self.process is not None
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def psql(self, database: str, *more: str) -> list[str]:
        """The words of a client with all rights."""
        name = database.replace("\\", "\\\\").replace("'", "\\'")
        where = ["-h", str(self.directory), "-p", str(self.port), "-U", USER]
        flags = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        return [f"{PROGRAMS}/psql", *flags, *where, "-d", f"dbname='{name}'", *more]

    def ask(self, database: str, *statements: str) -> list[Row]:
        """What the last statement has answered, as texts."""
        *first, last = statements
        text = "\\o /dev/null\n" + "".join(f"{each}\n;\n" for each in first) + f"\\o\n{last}\n;\n"
        argv = self.psql(database, "-F", _BETWEEN, "-R", _BEHIND)
        done = subprocess.run(argv, input=text.encode(), capture_output=True)
        if done.returncode:
            raise Refused(done.stderr.decode())
        out = done.stdout.decode().removesuffix("\n")
        return [tuple(row.split(_BETWEEN)) for row in out.split(_BEHIND)] if out else []


def two_clusters() -> Iterator[dict[str, Cluster]]:
    """Two servers that run, for a module's fixture."""
    directory = Path(tempfile.mkdtemp(prefix="pg"))
    clusters = {}
    try:
        shutil.chown(directory, USER, USER)
        for side, port in zip((ONE, TWO), free_ports(2), strict=True):
            own = directory / side
            own.mkdir()
            shutil.chown(own, USER, USER)
            clusters[side] = Cluster(own, port)
            clusters[side].create()
            clusters[side].start()
            # Roles belong to a server, and are there before what they own.
            clusters[side].ask("postgres", f"CREATE ROLE {ROLE}")
        yield clusters
    finally:
        for cluster in clusters.values():
            with suppress(Exception):
                cluster.thaw()
            cluster.kill()
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class PostgresStage(DatabaseStage):
    """One database and its movers."""

    clusters: dict[str, Cluster] = field(default_factory=dict)
    scratch: Path = Path()
    database: str = ""
    places: dict[str, dict[str, Any]] = field(default_factory=dict)  # beside what is usual

    def mover(self, migration: int, source: str = ONE, target: str = TWO, **options: Any) -> Any:
        spot = Spot("test")
        read = POSTGRES.options.read({**self.options, **options}, spot)
        job = Job(
            name=self.database.replace(" ", "-"),
            migration=migration,
            source=self.place(source, spot),
            target=self.place(target, spot),
            options=read,
            reactor=reactor,
            scratch=str(self.scratch),
        )
        assert not spot.lines()
        return POSTGRES.make(job)

    def place(self, side: str, spot: Spot) -> Place:
        """Where the database is on a side, as a config file would say it."""
        cluster = self.clusters[side]
        written = {
            "database": self.database,
            "port": cluster.port,
            "socket": str(cluster.directory),
            "run_as": USER,
            "conninfo": f"host={HOST} port={cluster.port} user={USER} password=sesame",
            "programs": PROGRAMS,
            **self.places.get(side, {}),
        }
        return Place(
            side, Shell(reactor, Reach(side)), POSTGRES.place.read(written, spot), (HOST, 1)
        )

    def client(self, side: str) -> list[str]:
        return self.clusters[side].psql(self.database)

    async def execute(self, side: str, *statements: str) -> list[Row]:
        return await deferToThread(self.clusters[side].ask, self.database, *statements)

    async def admin(self, side: str, *statements: str) -> list[Row]:
        """The same, in the database that the server has for itself."""
        return await deferToThread(self.clusters[side].ask, "postgres", *statements)

    async def kill(self, side: str) -> None:
        await deferToThread(self.clusters[side].kill)

    async def start(self, side: str) -> None:
        await deferToThread(self.clusters[side].start)

    async def notes(self, side: str) -> list[str]:
        """What is written down about the database."""
        rows = await self.admin(
            side,
            "SELECT setting FROM pg_database d JOIN pg_db_role_setting ON setdatabase = d.oid,"
            f" unnest(setconfig) AS setting WHERE datname = $${self.database}$$",
        )
        return [row[0] for row in rows]

    async def leftovers(self, side: str) -> list[str]:
        mine = f"$${self.database}$$"
        rows = await self.admin(
            side,
            f"SELECT slot_name FROM pg_replication_slots WHERE starts_with(database, {mine})"
            " UNION ALL SELECT subname FROM pg_subscription JOIN pg_database d ON d.oid = subdbid"
            f" WHERE starts_with(datname, {mine})"
            f" UNION ALL SELECT datname FROM pg_database d WHERE starts_with(datname, {mine})"
            f" AND datname <> {mine} AND NOT EXISTS (SELECT FROM pg_db_role_setting"
            " WHERE setdatabase = d.oid AND 'awesomeproxy.part=left' = ANY (setconfig))",
        )
        names = [row[0] for row in rows]
        with suppress(Refused):
            names += [r[0] for r in await self.execute(side, "SELECT pubname FROM pg_publication")]
        return names

    @property
    def odd(self) -> Sequence[str]:
        return ODD

    @property
    def odd_queries(self) -> Sequence[str]:
        return ODD_QUERIES

    @property
    def after_odd(self) -> Sequence[str]:
        return AFTER_ODD


def a_postgres_stage(clusters: dict[str, Cluster], scratch: Path, **options: Any) -> PostgresStage:
    """A stage with an empty database on the first of two clusters."""
    for cluster in clusters.values():
        cluster.start()
    database = f"Shop \"{next(_numbers)}\" of 'Zoë'"
    quoted = database.replace('"', '""')
    clusters[ONE].ask("postgres", f'CREATE DATABASE "{quoted}"')
    return PostgresStage(POSTGRES, options, clusters, scratch, database)


ODD = (
    "CREATE EXTENSION citext",
    'CREATE SCHEMA "Ünïcode ""quoted"""',
    "CREATE TYPE \"Ünïcode \"\"quoted\"\"\".mood AS ENUM ('sad', 'it''s ok')",
    "CREATE DOMAIN positive AS integer CHECK (VALUE > 0)",
    'CREATE TABLE "Ünïcode ""quoted"""."select" ('
    ' "from" bigint GENERATED ALWAYS AS IDENTITY (START 7 INCREMENT 3) PRIMARY KEY,'
    ' "a b" text, "é\'\\" bytea, mood "Ünïcode ""quoted""".mood, n numeric, f float8, r real,'
    " j json, b jsonb, x xml, t timestamptz, d interval, a text[], p positive, c citext,"
    " i inet, u uuid, g int4range, s tsvector, o point, m money, bits bit varying,"
    ' twice bigint GENERATED ALWAYS AS ("from" * 2) STORED)',
    'INSERT INTO "Ünïcode ""quoted"""."select" ("a b", "é\'\\", mood, n, f, r, j, b, x, t, d, a, p,'
    " c, i, u, g, s, o, m, bits) VALUES (E'tab\\t newline\\n back\\\\slash \\\\. quote'' ☃ 🐘',"
    " '\\x00ff5c0a27', 'it''s ok', 'NaN', 'NaN', '-Infinity', '{\"a\": 1,  \"a\": 2}',"
    " '{\"k\": [null, \"\\u00e9\"]}', '<a>&lt;</a>', 'infinity', '1 year -3 days 04:05:06.789',"
    " ARRAY['NULL', NULL, '{', '\"', ''], 5, 'MiXed', '::1/64', "
    " '00000000-0000-0000-0000-000000000001', '[1,)', 'fat & cat', '(1.5,-2)', '12.34', B'0101'),"
    " (NULL, '', NULL, 'Infinity', 0.1, 'NaN', NULL, NULL, NULL, '-infinity', NULL, '{}', NULL,"
    " '', NULL, NULL, 'empty', NULL, NULL, NULL, B''),"
    " ('', NULL, 'sad', 1e-300, -0.0, 1.1, 'null', 'null', NULL, '2026-03-29 02:30:00.123456+13',"
    " NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    "CREATE TABLE big (id int PRIMARY KEY, doc text)",
    "INSERT INTO big SELECT n, repeat(md5(n::text), 20000) FROM generate_series(1, 5) AS n",
    "CREATE TABLE orders (id serial PRIMARY KEY, big int REFERENCES big ON DELETE CASCADE,"
    " at timestamp DEFAULT '2026-01-01')",
    "INSERT INTO orders (big) SELECT 1 + n % 5 FROM generate_series(1, 50) AS n",
    "CREATE INDEX ON orders (big, at DESC)",
    "CREATE TABLE audit (id bigserial PRIMARY KEY, what text)",
    "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS"
    " $$BEGIN INSERT INTO audit (what) VALUES (TG_OP || ' -- ; ' || TG_TABLE_NAME);"
    " RETURN NEW; END$$",
    "CREATE TRIGGER audited AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION audit()",
    "INSERT INTO orders (big) VALUES (1), (2)",
    "CREATE TABLE parted (id int, kind text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind)",
    "CREATE TABLE parted_a PARTITION OF parted FOR VALUES IN ('a')",
    "CREATE TABLE parted_rest PARTITION OF parted DEFAULT",
    "INSERT INTO parted VALUES (1, 'a'), (2, 'b'), (3, 'a')",
    "CREATE TABLE parent (id int PRIMARY KEY)",
    "CREATE TABLE child (extra text, PRIMARY KEY (id)) INHERITS (parent)",
    "INSERT INTO parent VALUES (1)",
    "INSERT INTO child VALUES (2, 'two')",
    "CREATE TABLE same (n int)",
    "ALTER TABLE same REPLICA IDENTITY FULL",
    "INSERT INTO same VALUES (1), (1), (NULL)",
    "CREATE TABLE secret (id int PRIMARY KEY)",
    "ALTER TABLE secret ENABLE ROW LEVEL SECURITY",
    f"ALTER TABLE secret OWNER TO {ROLE}",
    "INSERT INTO secret VALUES (1)",
    "CREATE SEQUENCE down INCREMENT -5 MINVALUE -100 MAXVALUE 50 START 50 CYCLE",
    "SELECT nextval('down'), nextval('down')",
    'CREATE SEQUENCE "never\'used"',
    "SELECT setval('\"never''used\"', 42, false)",
    "CREATE VIEW total AS SELECT count(*) AS n FROM orders",
    "CREATE MATERIALIZED VIEW b_first AS SELECT big, count(*) AS n FROM orders GROUP BY big",
    "CREATE MATERIALIZED VIEW a_second AS SELECT sum(n) AS n FROM b_first",
    "CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS n WITH NO DATA",
    "COMMENT ON TABLE big IS 'a ''comment'''",
)
ODD_QUERIES = (
    'SELECT to_jsonb(s), s::text FROM "Ünïcode ""quoted"""."select" AS s ORDER BY "from"',
    "SELECT id, md5(doc), length(doc) FROM big ORDER BY 1",
    "SELECT * FROM orders ORDER BY id",
    "SELECT * FROM audit ORDER BY id",
    "SELECT tableoid::regclass, * FROM parted ORDER BY id",
    "SELECT tableoid::regclass, * FROM parent ORDER BY id",
    "SELECT * FROM same ORDER BY n",
    "SELECT * FROM secret",
    'SELECT d.last_value, d.is_called, n.last_value, n.is_called FROM down d, "never\'used" n',
    "SELECT sequencename, last_value FROM pg_sequences ORDER BY 1",
    "SELECT * FROM total",
    "SELECT * FROM b_first ORDER BY big",
    "SELECT * FROM a_second",
    "SELECT relispopulated FROM pg_class WHERE relname = 'unfilled'",
    "SELECT relname, relkind, relrowsecurity, relreplident, pg_get_userbyid(relowner),"
    " obj_description(oid) FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
    "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid <> 0 ORDER BY 1",
)
AFTER_ODD = (
    'INSERT INTO "Ünïcode ""quoted"""."select" ("a b") VALUES (\'more\')',
    "DO $$ BEGIN ASSERT (SELECT array_agg(\"from\" ORDER BY 1) = '{7,10,13,16}'"
    ' FROM "Ünïcode ""quoted"""."select"); END $$',
    "INSERT INTO orders (big) VALUES (3)",
    "DO $$ BEGIN ASSERT (SELECT max(id) FROM orders) = 53; "
    "ASSERT (SELECT max(id) FROM audit) = 3; ASSERT nextval('\"never''used\"') = 42;"
    " ASSERT nextval('down') = 40; END $$",
    "DELETE FROM big WHERE id = 1",
    "UPDATE same SET n = 2",
)
