"""A PostgreSQL server, as a mover speaks to it: through ``psql`` on its node.

Statements go in as input, never as arguments, so that what is secret in them shows in no
list of processes; and no error repeats a statement.  Each is a transaction of its own,
unless they say otherwise.  Answers come as JSON.

The session is a superuser's whom nothing in the database can disturb: no trigger of an
event runs, no default of the database applies, and it is ended by the server when its
client is gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from awesomeproxy.movers.interface import MoverError, Place
from awesomeproxy.movers.shell import TIME, ShellError

MAINTENANCE = "postgres"  # the database of every server, from which others are altered
LONG = 7 * 86400.0  # seconds: as long as it takes, who waits has a deadline of its own
# The settings go as one query, which is one turn instead of many.
_PROLOGUE = """\
\\set QUIET on
\\set ON_ERROR_STOP on
\\set VERBOSITY terse
\\set SHOW_CONTEXT never
SET standard_conforming_strings = on\\;
SET session_replication_role = replica\\;
SET default_transaction_read_only = off\\;
SET synchronous_commit = on\\;
SET client_connection_check_interval = '1s'\\;
SET client_min_messages = error\\;
SET log_statement = 'none'\\;
SET log_min_duration_statement = -1\\;
SET log_min_error_statement = panic\\;
SET statement_timeout = 0\\;
SET lock_timeout = 0\\;
SET idle_in_transaction_session_timeout = 0\\;
SET DateStyle = 'ISO'\\;
SET IntervalStyle = 'postgres'\\;
SET TimeZone = 'UTC'\\;
SET bytea_output = 'hex'\\;
SET extra_float_digits = 1\\;
SET xmloption = 'content'\\;
SET search_path = pg_catalog;
"""
_WHERE = re.compile(r"psql:<stdin>:[0-9]+: ")
_PASSWORD = re.compile(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", re.IGNORECASE)


def ident(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def conninfo(**pairs: str) -> str:
    """A connection, as libpq takes it."""
    quoted = {k: v.replace("\\", "\\\\").replace("'", "\\'") for k, v in pairs.items()}
    return " ".join(f"{key}='{value}'" for key, value in quoted.items())


class PostgresServer:
    """The server of one place."""

    def __init__(self, place: Place, label: str) -> None:
        """
        :param label: what its sessions are called, so that they can be found and ended.
        """
        self.place = place
        self.label = label
        self.settings = place.settings
        self.node = place.node

    def __repr__(self) -> str:
        return f"<PostgresServer on {self.node}>"

    def launch(self, name: str) -> list[str]:
        """The words that start one of PostgreSQL's programs on the node."""
        settings = self.settings
        words = []
        if settings.run_as:
            # Nothing is left between: who ends this ends the program.
            user = settings.run_as
            words += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
            words += ["--pdeathsig", "KILL", "--"]
        words += ["env", "-C", "/", "-u", "PGOPTIONS", "-u", "PGSERVICE", "-u", "PGHOSTADDR"]
        words += ["-u", "HOME"] if settings.run_as else []
        words += ["PGCLIENTENCODING=UTF8", f"PGAPPNAME={self.label}", "PGCONNECT_TIMEOUT=5"]
        if settings.password_file:
            words.append(f"PGPASSFILE={settings.password_file}")
        return [*words, f"{settings.programs}/{name}" if settings.programs else name]

    def program(self, name: str, database: str, *arguments: str) -> list[str]:
        """The words that run one of PostgreSQL's programs on ``database``."""
        settings = self.settings
        words = self.launch(name)
        if settings.host or settings.socket:
            words.append(f"--host={settings.host or settings.socket}")
        words += [f"--port={settings.port}", f"--username={settings.user}", "--no-password"]
        return [*words, "--dbname=" + conninfo(dbname=database), *arguments]

    async def run(self, database: str, *statements: str, time: float = TIME) -> str:
        """What ``psql`` prints of ``statements``.

        :param time: seconds that all of them may take.
        :raise MoverError: one of them has failed; those before it have been done.
        """
        text = _PROLOGUE + "".join(f"{statement}\n;\n" for statement in statements)
        return await self._psql(database, text, time)

    async def script(self, database: str, text: str, time: float = TIME) -> str:
        """What ``psql`` prints of ``text``, which may have psql's own commands."""
        return await self._psql(database, _PROLOGUE + text + "\n", time)

    async def bare(self, query: str) -> str:
        """What ``psql`` prints of one query to the maintenance database, without more ado."""
        return (await self._psql(MAINTENANCE, query + "\n;\n", TIME)).strip()

    async def end_sessions(self) -> None:
        """End what is left of the mover's own sessions: their clients may have been killed."""
        mine = f"application_name = {literal(self.label)} AND pid <> pg_backend_pid()"
        await self.run(
            MAINTENANCE,
            "DO $$ BEGIN FOR turn IN 1..500 LOOP PERFORM pg_stat_clear_snapshot();"
            " EXIT WHEN (SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            f" WHERE backend_type = 'client backend' AND {mine}) = 0;"
            " PERFORM pg_sleep(0.02); END LOOP; END $$",
        )

    async def rows(self, database: str, query: str, time: float = TIME) -> list[dict[str, Any]]:
        """What a query answers."""
        wrapped = f"SELECT coalesce(json_agg(to_json(q)), '[]') FROM (\n{query}\n) AS q"
        rows: list[dict[str, Any]] = json.loads(await self.run(database, wrapped, time=time))
        return rows

    async def row(self, database: str, query: str, time: float = TIME) -> dict[str, Any]:
        """What a query that has one row answers."""
        (row,) = await self.rows(database, query, time)
        return row

    async def column(self, database: str, query: str, time: float = TIME) -> list[str]:
        """What a query of one column answers, as texts."""
        return [str(next(iter(row.values()))) for row in await self.rows(database, query, time)]

    async def dump(self, database: str, *arguments: str, time: float = LONG) -> str:
        """What ``pg_dump`` prints."""
        argv = self.program("pg_dump", database, *arguments)
        try:
            return await self.place.shell.run(*argv, time=time)
        except ShellError as problem:
            raise self._failed(problem) from None

    async def pipe(
        self,
        database: str,
        target: PostgresServer,
        target_database: str,
        *arguments: str,
        progress: Callable[[int], None] = lambda size: None,
    ) -> int:
        """Dump ``database`` here and restore it there, all or nothing.

        :return: how many bytes were carried.
        """
        given = self.program("pg_dump", database, "--format=custom", "--compress=0", *arguments)
        how: Sequence[str] = ("--exit-on-error", "--single-transaction")
        taken = target.program("pg_restore", target_database, *how)
        try:
            return await self.place.shell.pipe(
                given, target.place.shell, taken, progress=progress, time=LONG
            )
        except ShellError as problem:
            raise self._failed(problem) from None

    async def _psql(self, database: str, text: str, time: float) -> str:
        flags = ("--no-psqlrc", "--tuples-only", "--no-align")
        argv = self.program("psql", database, *flags, "--file=-")
        try:
            return await self.place.shell.run(*argv, input=text.encode(), time=time)
        except ShellError as problem:
            raise self._failed(problem) from None

    def _failed(self, problem: ShellError) -> MoverError:
        # The words that run a program are long, and tell nothing if it has said what is wrong.
        said = str(problem) if problem.status is None or not problem.said else problem.said
        said = _PASSWORD.sub(r"\1...", _WHERE.sub("", said))
        return MoverError(f"PostgreSQL on {self.node}: {said}")
