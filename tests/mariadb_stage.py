"""Two MariaDB servers of a test's own, and a database to be moved between them.

The servers are those of a module of tests: each test has a database of another name there,
and takes away what it has made.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from daemon_stage import free_ports
from database_contract import DatabaseStage, Refused, Row
from mover_stage import ONE, TWO
from stage_waiting import HOST, reactor, until

from awesomeproxy.movers.interface import Job, Kind, Place
from awesomeproxy.movers.mariadb import MARIADB
from awesomeproxy.movers.mariadb_server import MariadbServer, name, script, table
from awesomeproxy.movers.shell import Reach, Shell, ShellError
from awesomeproxy.shapes import Spot

_NUMBERS = count(1)
_LAST = "what comes now is the last"
SMALL = (
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=8M",
    "--innodb-flush-log-at-trx-commit=2",
    "--aria-pagecache-buffer-size=8M",
    "--key-buffer-size=1M",
    "--event-scheduler=ON",
    "--innodb-flush-method=nosync",
    "--log-bin=binary",
    "--binlog-format=ROW",
    "--log-bin-trust-function-creators=1",
)


class Server:
    """One server, a process of its own."""

    def __init__(self, directory: Path, number: int) -> None:
        self.directory = directory
        self.number = number
        self.port = free_ports(1)[0]
        self.socket = directory / "socket"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, *options: str) -> None:
        """Start it; returns when it takes connections."""
        log = self.directory / "log"
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [
                    shutil.which("mariadbd") or "/usr/sbin/mariadbd",
                    "--no-defaults",
                    "--user=root",
                    f"--datadir={self.directory / 'data'}",
                    f"--socket={self.socket}",
                    f"--port={self.port}",
                    f"--bind-address={HOST}",
                    f"--server-id={self.number}",
                    f"--pid-file={self.directory / 'pid'}",
                    f"--tmpdir={self.directory}",
                    *SMALL,
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        process = self.process

        def answers() -> bool:
            assert process.poll() is None, log.read_text()[-2000:]
            with socket.socket(socket.AF_UNIX) as trying:
                return trying.connect_ex(str(self.socket)) == 0

        await until(answers, "MariaDB")

    async def kill(self) -> None:
        """End it as a crash does."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            await until(lambda: process.poll() is not None, "the end of MariaDB")

    @property
    def shell(self) -> Shell:
        """For commands on its node, which is this one."""
        return Shell(reactor, Reach("one" if self.number == 1 else "two"))


@dataclass
class Servers:
    """The two of them."""

    directory: Path
    sides: dict[str, Server] = field(default_factory=dict)

    async def start(self) -> None:
        """Start both, if they do not run."""
        for side, number in ((ONE, 1), (TWO, 2)):
            if side not in self.sides:
                self.sides[side] = Server(self.directory / side, number)
            if self.sides[side].process is None:
                await self.sides[side].start()


def servers() -> Iterator[Servers]:
    """For a fixture of a module."""
    directory = Path(tempfile.mkdtemp(prefix="awesomeproxy-mariadb-"))
    made = Servers(directory)
    try:
        install(directory / ONE / "data")
        shutil.copytree(directory / ONE / "data", directory / TWO / "data")
        yield made
    finally:
        for server in made.sides.values():
            if server.process is not None:
                server.process.kill()
                server.process.wait()
        shutil.rmtree(directory)


def install(data: Path) -> None:
    """Make the files of a server that has nothing in it yet."""
    data.parent.mkdir()
    subprocess.run(
        [
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={data}",
            "--user=root",
            "--auth-root-authentication-method=socket",
            "--skip-test-db",
            "--innodb-log-file-size=8M",
            "--innodb-flush-method=nosync",
        ],
        check=True,
        # A server that starts takes temporary tables away, those of others, too.
        env={**os.environ, "TMPDIR": str(data.parent)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@dataclass
class MariadbStage(DatabaseStage):
    """The stage of a test."""

    kind: Kind = MARIADB
    servers: Servers = field(kw_only=True)
    database: str = ""

    def place(self, side: str, **settings: Any) -> Place:
        """Where the database is on one side."""
        server = self.servers.sides[side]
        written = {
            "database": self.database,
            "socket": str(server.socket),
            "replication": {"host": HOST, "port": server.port},
            **settings,
        }
        spot = Spot("test")
        read = self.kind.place.read(written, spot)
        assert not spot.marred, spot.lines()
        return Place(side, server.shell, read, (HOST, server.port))

    def mover(self, migration: int, source: str = ONE, target: str = TWO, **options: Any) -> Any:
        spot = Spot("test")
        read = self.kind.options.read({**self.options, **options}, spot)
        assert not spot.marred, spot.lines()
        places = self.place(source), self.place(target)
        return self.kind.make(Job("shop", migration, *places, read, reactor, "/nowhere"))

    def client(self, side: str) -> list[str]:
        return [
            "mariadb",
            "--no-defaults",
            f"--socket={self.servers.sides[side].socket}",
            "--user=root",
            "--batch",
            "--skip-column-names",
            "--unbuffered",
            "--disable-reconnect",
            f"--database={self.database}",
        ]

    async def execute(self, side: str, *statements: str) -> list[Row]:
        try:
            printed = await self._run(side, [*statements[:-1], f"SELECT '{_LAST}'", statements[-1]])
        except ShellError as problem:
            raise Refused(str(problem)) from None
        rows = table(printed)
        return [tuple(row) for row in rows[rows.index([_LAST]) + 1 :]]

    async def _run(self, side: str, statements: Sequence[str]) -> str:
        words = [
            *self.client(side),
            "--binary-mode",
            "--comments",
            "--default-character-set=utf8mb4",
        ]
        return await self.servers.sides[side].shell.run(*words, input=script(*statements).encode())

    def admin(self, side: str) -> MariadbServer:
        """Statements that do not need the database."""
        return MariadbServer(self.place(side), "a test")

    async def kill(self, side: str) -> None:
        await self.servers.sides[side].kill()

    async def start(self, side: str) -> None:
        await self.servers.sides[side].start()

    async def leftovers(self, side: str) -> list[str]:
        admin = self.admin(side)
        left = await admin.column(
            "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME LIKE 'awesome%' "
            "UNION SELECT User FROM mysql.user WHERE User LIKE 'awesomeproxy%' UNION "
            "SELECT PLUGIN_NAME FROM information_schema.PLUGINS WHERE PLUGIN_NAME LIKE 'METADATA%' "
            "UNION SELECT @@GLOBAL.gtid_slave_pos HAVING @@GLOBAL.gtid_slave_pos <> ''"
        )
        left += [each["Connection_name"] for each in await admin.named("SHOW ALL SLAVES STATUS")]
        return left

    @property
    def odd(self) -> Sequence[str]:
        return ODD

    @property
    def odd_queries(self) -> Sequence[str]:
        return ODD_QUERIES

    @property
    def after_odd(self) -> Sequence[str]:
        return AFTER_ODD

    async def clean_up(self) -> None:
        """Take away what the test has made."""
        await self.servers.start()
        for side in (ONE, TWO):
            admin = self.admin(side)
            for status in await admin.named("SHOW ALL SLAVES STATUS"):
                quoted = f"'{status['Connection_name']}'"
                await admin.run(f"STOP SLAVE {quoted}", f"RESET SLAVE {quoted} ALL")
            databases, users = await admin.answers(
                "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME NOT IN "
                "('information_schema', 'mysql', 'performance_schema', 'sys')",
                "SELECT CONCAT(QUOTE(User), '@', QUOTE(Host)) FROM mysql.user "
                "WHERE User NOT IN ('root', 'mariadb.sys')",
            )
            await admin.run(
                "SET GLOBAL gtid_slave_pos = ''",
                "SET SESSION foreign_key_checks = 0",  # they come in no certain order
                *(f"DROP DATABASE {name(each[0])}" for each in databases),
                *(f"DROP USER {each[0]}" for each in users),
            )


async def a_mariadb_stage(servers: Servers, **options: Any) -> AsyncIterator[MariadbStage]:
    """A stage whose database is there, and empty."""
    await servers.start()
    made = MariadbStage(options=options, servers=servers)
    made.database = f"the `shop\" & é's {next(_NUMBERS)}"
    await made.admin(ONE).run(f"CREATE DATABASE {name(made.database)} COLLATE utf8mb4_bin")
    yield made
    await made.clean_up()


ODD = (
    "CREATE TABLE `a ``b`` \"c\" 'd' é\\\\` (`x y` INT PRIMARY KEY, `né` VARCHAR(50), "
    "`default` BLOB, j JSON, d DECIMAL(30,10), f DOUBLE, b BIT(9), e ENUM('a','ü'), "
    "t TIMESTAMP(6) NULL, dt DATETIME(3), y YEAR, g INT AS (`x y` * 2) VIRTUAL, "
    "h INT AS (`x y` * 3) STORED, hid INT INVISIBLE DEFAULT 3, p POINT, "
    "CHECK (`x y` > -100)) COMMENT 'it''s `odd`'",
    "INSERT INTO `a ``b`` \"c\" 'd' é\\\\` (`x y`, `né`, `default`, j, d, f, b, e, t, dt, y, p) "
    "VALUES (1, 'it''s \\\\ \"q\" 😀\\n\\t', 0x000102FF5C27, '{\"a\": [1, null]}', "
    "12345678901234567890.0123456789, 0.1, b'101', 'ü', '2024-05-06 07:08:09.123456', "
    "'2024-05-06 07:08:09.123', 2024, POINT(1.5, -2)), "
    "(2, '', '', NULL, -1, -1e300, b'0', NULL, NULL, NULL, NULL, NULL)",
    "CREATE TABLE parent (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(20)) CHARSET=latin1",
    "CREATE TABLE `chi ld` (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES parent(id) "
    "ON DELETE CASCADE, CONSTRAINT named FOREIGN KEY (p) REFERENCES parent(id))",
    "CREATE TABLE `-- log` (m TEXT)",
    "CREATE TABLE `no key` (a INT, b TEXT) PARTITION BY HASH (a) PARTITIONS 3",
    "INSERT INTO `no key` VALUES (1, 'x'), (1, 'x'), (NULL, NULL)",
    "CREATE SEQUENCE counted START 5 INCREMENT 5 NOCACHE",
    "DO NEXTVAL(counted)",
    "CREATE TRIGGER `b 2` AFTER INSERT ON parent FOR EACH ROW "
    "INSERT INTO `-- log` VALUES (CONCAT('second ', NEW.id))",
    "CREATE TRIGGER `a 1` AFTER INSERT ON parent FOR EACH ROW PRECEDES `b 2` "
    "BEGIN /* it's; a -- comment */ INSERT INTO `-- log` VALUES (CONCAT('först ', NEW.id)); END",
    "INSERT INTO parent (v) VALUES ('ü'), ('b'), ('gone')",
    "DELETE FROM parent WHERE id = 3",
    "INSERT INTO `chi ld` VALUES (1, 1), (2, 2)",
    "SET SESSION sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT'",
    "CREATE FUNCTION \"fün c\"(a INT, b VARCHAR(9)) RETURNS TEXT COMMENT 'it''s' "
    "RETURN a || b || 'é'",
    "SET SESSION sql_mode = DEFAULT",
    "CREATE PROCEDURE `pro;c`(IN a INT, OUT b INT) MODIFIES SQL DATA BEGIN "
    "-- it's a comment ;; // $$\n SET b = a + 1; INSERT INTO `-- log` VALUES ('called'); END",
    "CREATE VIEW `z first` AS SELECT id, v, `fün c`(id, 'x') AS w FROM parent",
    "CREATE ALGORITHM=MERGE SQL SECURITY INVOKER VIEW `a later` AS "
    "SELECT * FROM `z first` WHERE id > 0 WITH CASCADED CHECK OPTION",
    "SET SESSION time_zone = '+03:00'",
    "CREATE EVENT `e v` ON SCHEDULE EVERY 1 YEAR STARTS '2030-01-01 00:00:00' "
    "COMMENT 'ü' DO INSERT INTO `-- log` VALUES ('é')",
    "CREATE EVENT disabled ON SCHEDULE EVERY 1 HOUR DISABLE DO SET @a = 1",
)
ODD_QUERIES = (
    "SELECT `x y`, `né`, HEX(`default`), j, d, f, HEX(b), e, t, dt, y, g, h, hid, ST_AsText(p) "
    "FROM `a ``b`` \"c\" 'd' é\\\\` ORDER BY 1",
    "SELECT id, HEX(v) FROM parent ORDER BY 1",
    "SELECT * FROM `chi ld` ORDER BY 1",
    "SELECT * FROM `no key` ORDER BY 1",
    "SELECT m FROM `-- log` ORDER BY 1",
    "SELECT * FROM `a later` ORDER BY 1",
    "SHOW CREATE TABLE `a ``b`` \"c\" 'd' é\\\\`",
    "SHOW CREATE TABLE `chi ld`",
    "SHOW CREATE TABLE parent",
    "SHOW CREATE VIEW `a later`",
    "SHOW CREATE FUNCTION `fün c`",
    "SHOW CREATE PROCEDURE `pro;c`",
    "SHOW CREATE EVENT `e v`",
    "SHOW CREATE EVENT disabled",
    "SELECT TRIGGER_NAME, ACTION_ORDER, ACTION_STATEMENT, EVENT_OBJECT_TABLE, SQL_MODE, DEFINER "
    "FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE() ORDER BY 1",
    "SELECT DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = DATABASE()",
)
AFTER_ODD = (
    "INSERT INTO parent (v) VALUES ('new')",
    "INSERT INTO `chi ld` SELECT 4, id FROM parent WHERE id = 4",
    "BEGIN NOT ATOMIC IF (SELECT COUNT(*) FROM `chi ld` WHERE p = 4) <> 1 "
    "OR (SELECT COUNT(*) FROM `-- log` WHERE m IN ('först 4', 'second 4')) <> 2 "
    "OR NEXTVAL(counted) <> 10 THEN SIGNAL SQLSTATE '45000'; END IF; END",
    "CALL `pro;c`(1, @b)",
)
