"""One MariaDB server, as its node reaches it: statements, dumps, loads.

Statements go to the client's standard input, so that no argument and no log has them.  What
changes a database does so under a lock of the server that is called like the migration, and
ends the session that has it first: a client that was ended leaves its last statement
running, and that must not be done after what undoes it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred

from awesomeproxy.movers.interface import MoverError, Place
from awesomeproxy.movers.shell import Shell, ShellError

T = TypeVar("T")

TIME = 60.0  # seconds that statements may take
LONG = 7 * 86400.0  # seconds that a copy may take: it is for who has started it to end it
_OTHERS_END = 10  # seconds in which a session that was ended has to let go of the lock
_ERROR = re.compile(r"ERROR (\d+) ")
_ESCAPES = {"n": "\n", "t": "\t", "0": "\0", "\\": "\\"}
_PROLOGUE = (
    "SET SESSION sql_mode = '', max_statement_time = 0, lock_wait_timeout = 50, "
    "group_concat_max_len = 1073741824"
)


class ServerError(MoverError):
    """The server, or its client, has refused."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code  # MariaDB's number of the error; None: not the server's


def name(identifier: str) -> str:
    """An identifier as a statement has it."""
    return "`" + identifier.replace("`", "``") + "`"


def text(value: str) -> str:
    """A string as a statement has it; sessions here have no ``sql_mode``."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def exactly(value: str) -> str:
    """A string that is compared byte by byte, whatever the collation of the other side."""
    return f"0x{value.encode().hex()}" if value else "''"


def script(*statements: str) -> str:
    """Statements for the client, each up to a mark that none of them can have."""
    mark = f"${secrets.token_hex(7)}"  # the client takes no more than 15 characters
    body = "".join(f"{statement}\n{mark}\n" for statement in statements)
    return f"DELIMITER {mark}\n{body}DELIMITER ;\n"


async def both(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, T]) -> tuple[T, T]:
    """What two coroutines return that run at the same time; if one fails, the other ends."""
    running = [Deferred.fromCoroutine(each) for each in (one, other)]
    try:
        return await running[0], await running[1]
    except BaseException:
        for each in running:
            each.cancel()
            with suppress(MoverError, CancelledError):
                await each
        raise


class MariadbServer:
    """The server of one place."""

    def __init__(self, place: Place, lock: str) -> None:
        """
        :param lock: what the lock is called.
        """
        self.place = place
        self.node = place.node
        self.shell: Shell = place.shell
        self._lock = lock

    def __repr__(self) -> str:
        return f"<MariadbServer on {self.node}>"

    def program(self, called: str, *arguments: str) -> list[str]:
        """The words that run one of MariaDB's programs."""
        settings = self.place.settings
        words = [called]
        if settings.defaults_file:
            words.append(f"--defaults-extra-file={settings.defaults_file}")
        words.append(f"--user={settings.user}")
        if settings.host:
            words += ["--protocol=tcp", f"--host={settings.host}", f"--port={settings.port}"]
        elif settings.socket:
            words += ["--protocol=socket", f"--socket={settings.socket}"]
        return [*words, "--default-character-set=utf8mb4", *arguments]

    def client(self, *arguments: str) -> list[str]:
        """The words that run the client; it reads statements."""
        flags = ("--batch", "--skip-column-names", "--binary-mode", "--comments")
        return self.program(
            "mariadb", *flags, "--no-auto-rehash", "--connect-timeout=10", *arguments
        )

    async def run(self, *statements: str, database: str = "mysql", time: float = TIME) -> str:
        """What the client prints of ``statements``; those before one that fails are done.

        :raise ServerError: one of them has failed.
        """
        body = script(_PROLOGUE, f"USE {name(database)}", *statements)
        try:
            return await self.shell.run(*self.client(), input=body.encode(), time=time)
        except ShellError as problem:
            raise self._failed(problem) from None

    async def change(self, *statements: str, database: str = "mysql", time: float = TIME) -> str:
        """As :meth:`run`, alone: whoever else has changed something here is ended first."""
        return await self.run(*self._alone(), *statements, database=database, time=time)

    async def rows(self, query: str, *, time: float = TIME) -> list[list[str]]:
        """What a query answers."""
        return table(await self.run(query, time=time))

    async def answers(self, *queries: str, time: float = TIME) -> list[list[list[str]]]:
        """What several queries answer, of one session."""
        mark = secrets.token_hex(16)
        parts: list[list[list[str]]] = [[]]
        marked = [each for query in queries for each in (query, f"SELECT '{mark}'")]
        for row in table(await self.run(*marked, time=time)):
            if row == [mark]:
                parts.append([])
            else:
                parts[-1].append(row)
        return parts[:-1]

    async def row(self, query: str, *, time: float = TIME) -> list[str]:
        """What a query that has one row answers."""
        (row,) = await self.rows(query, time=time)
        return row

    async def value(self, query: str, *, time: float = TIME) -> str:
        """What a query that has one value answers."""
        (value,) = await self.row(query, time=time)
        return value

    async def column(self, query: str, *, time: float = TIME) -> list[str]:
        """What a query of one column answers."""
        return [row[0] for row in await self.rows(query, time=time)]

    async def named(self, query: str, *, time: float = TIME) -> list[dict[str, str]]:
        """What a query answers, by the columns' names."""
        body = script(query).encode()
        try:
            printed = await self.shell.run(*self.client("--column-names"), input=body, time=time)
        except ShellError as problem:
            raise self._failed(problem) from None
        head, *rows = table(printed) or [[]]
        return [dict(zip(head, row, strict=True)) for row in rows]

    async def tables(self, database: str) -> list[str]:
        """The names of its tables and sequences, in order."""
        return await self.column(
            "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = "
            f"{exactly(database)} AND TABLE_TYPE <> 'VIEW' ORDER BY TABLE_NAME"
        )

    async def kept(self, database: str, table: str, column: str) -> str | None:
        """What the one row of a table has; None: there is no row, table or database."""
        rows = await self.column(
            "BEGIN NOT ATOMIC DECLARE EXIT HANDLER FOR 1049, 1146 DO 0; "
            f"SELECT {column} FROM {name(database)}.{name(table)}; END"
        )
        return rows[0] if rows else None

    async def databases(self) -> set[str]:
        """The names of all databases."""
        return set(await self.column("SELECT SCHEMA_NAME FROM information_schema.SCHEMATA"))

    async def pipe(
        self,
        arguments: Sequence[str],
        target: MariadbServer,
        database: str,
        *,
        before: str = "",
        progress: Callable[[int], None] = lambda size: None,
    ) -> int:
        """Dump what ``arguments`` say here, and load it into ``database`` there.

        :param before: one more statement that the loading session begins with.
        :return: how many bytes were carried.
        """
        first = "; ".join([*target._alone(), *([before] if before else [])])
        flags = [f"--init-command={first}", f"--database={database}", "--max-allowed-packet=1G"]
        fixed = ("--max-allowed-packet=1G", "--hex-blob", "--skip-comments", "--skip-triggers")
        try:
            return await self.shell.pipe(
                self.program("mariadb-dump", *fixed, *arguments),
                target.shell,
                target.client(*flags),
                progress=progress,
                time=LONG,
            )
        except ShellError as problem:
            raise self._failed(problem) from None

    def _alone(self) -> list[str]:
        lock = text(self._lock)
        return [
            f"BEGIN NOT ATOMIC DECLARE CONTINUE HANDLER FOR 1094, 1095 DO 0; "
            f"IF IS_USED_LOCK({lock}) IS NOT NULL THEN "
            f"EXECUTE IMMEDIATE CONCAT('KILL CONNECTION ', IS_USED_LOCK({lock})); END IF; "
            f"IF NOT COALESCE(GET_LOCK({lock}, {_OTHERS_END}), 0) THEN "
            "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = "
            "'what was begun before does not end; see to the sessions of the server'; "
            "END IF; END"
        ]

    def _failed(self, problem: ShellError) -> ServerError:
        said = str(problem)
        found = _ERROR.search(said)
        if found:
            said = said[found.start() :]
        elif "mariadb" in said:  # the words that run it are nobody's business
            program, _, rest = said[said.find("mariadb") :].partition(" ")
            said = f"{program}: {rest.rpartition(': ')[2] if ': ' in rest else rest}"
        code = int(found[1]) if found else None
        return ServerError(f"MariaDB on {self.node}: {said}", code)


def table(printed: str) -> list[list[str]]:
    """The rows that a client has printed."""
    return [[_plain(field) for field in line.split("\t")] for line in printed.split("\n")[:-1]]


def _plain(field: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), field)
