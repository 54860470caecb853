"""A database closed to everybody, and opened again: how it is fenced, and how it arrives.

Nothing that a server offers would do.  ``read_only`` is for all its databases, and not for
those who may go around it; table locks end with the session that took them; and neither is
there after a crash.  So a closed database is one that has gone: its tables are in another
one, whose name begins with ``awesomeproxy_``, and its own name is no database any more.
Nobody can write to it, whatever his rights, not even make a table; who was connected is not
any more, and what he had begun is rolled back.  All of it outlives a crash.

Closing goes through these stages, each written down, in that other database, before it
begins:

``recorded``
    What the database has beside tables is written down.  Then the *gate*: all tables are
    given other names, within the database, in one statement that waits for those who use
    them; those are ended until it gets through.  From here on nobody can write.
``gated``
    The triggers are written down, too.  Now they can be dropped, which they have to be
    for a table to leave its database; then the tables go, and the database.
``closed``
    It has gone.  Opening does all that backwards, with the gate last, and needs no other
    place than the record: it is the same where a closed database has been copied to.
``opened``
    It is there again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.task import deferLater

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.mariadb_definitions import Definition, definitions, facts
from awesomeproxy.movers.mariadb_record import RECORD, Closed
from awesomeproxy.movers.mariadb_server import LONG, MariadbServer, ServerError, exactly, name, text

LATE = 60.0  # seconds that the gate may take
_LOCK_WAIT = 1  # seconds that it waits before those who use the tables are ended, again
_WAITED = 1205  # ER_LOCK_WAIT_TIMEOUT
_AGAIN = 0.05  # seconds
_USERS = (  # of a database's tables; {here} is its name
    "SELECT ID FROM information_schema.PROCESSLIST WHERE DB = {here} AND ID <> CONNECTION_ID() "
    "AND USER NOT IN ('system user', 'event_scheduler') AND COMMAND NOT LIKE 'Binlog Dump%'"
)
_LOCKERS = (
    "SELECT THREAD_ID FROM information_schema.METADATA_LOCK_INFO "
    "WHERE TABLE_SCHEMA = {here} AND THREAD_ID NOT IN (0, CONNECTION_ID())"
)
_PLUGIN = "'metadata_lock_info'"


class Closing:
    """One database on one server, and the other one where it is while it is closed."""

    def __init__(self, server: MariadbServer, database: str, place: str, reactor: Any) -> None:
        """
        :param place: the other database's name.
        """
        self.server = server
        self.database = database
        self.place = place
        self._reactor = reactor
        self._sees_lockers: bool | None = None

    def __repr__(self) -> str:
        return f"<Closing of {self.database!r} on {self.server.node}>"

    # The record

    async def read(self) -> Closed | None:
        """What is written down; None: nothing."""
        written = await self.server.kept(self.place, RECORD, "written")
        return None if written is None else Closed.from_text(written)

    async def write(self, closed: Closed, stage: str) -> None:
        """Write down how far it is."""
        closed.stage = stage
        await self.server.change(
            f"REPLACE INTO {name(self.place)}.{RECORD} VALUES (1, {text(closed.as_text())})"
        )

    async def forget(self) -> None:
        """Take the record away, of a database that is open, or was never begun to be closed."""
        left = [each for each in await self.server.tables(self.place) if each != RECORD]
        if left:
            raise MoverError(
                f"{self.place!r} on {self.server.node} still has the table {left[0]!r}, "
                f"which may be of {self.database!r}; see to it, then drop {self.place!r}"
            )
        await self.server.change(f"DROP DATABASE IF EXISTS {name(self.place)}")

    # The steps

    async def close(self) -> None:
        """Close it; nobody can write to it when this returns."""
        closed = await self.read()
        if closed is None:
            closed = await self._record()
        elif closed.stage == "closed":
            return
        elif closed.stage == "opened":
            await self.write(closed, "gated")
        finding = await self._find_lockers()
        try:
            await self._gate(closed)
            if closed.stage == "recorded":
                await self._record_the_rest(closed)
            while not await self._take_away(closed):
                await self._gate(closed)
        finally:
            if finding:
                self._sees_lockers = None
                await self.server.run(f"UNINSTALL SONAME {_PLUGIN}")
        await self.write(closed, "closed")

    async def open(self) -> None:
        """Open it, if it is closed or half closed; the record stays."""
        closed = await self.read()
        if closed is None or closed.stage == "opened":
            return
        database, place = name(self.database), name(self.place)
        if closed.stage == "recorded":  # all that it has beside tables is still there
            await self._rename(await self._gated(closed))
            await self.write(closed, "opened")
            return
        await self.write(closed, "gated")
        comment = f" COMMENT {text(closed.comment)}" if closed.comment else ""
        await self.server.change(
            f"CREATE DATABASE IF NOT EXISTS {database}",
            f"ALTER DATABASE {database} CHARACTER SET {closed.charset} "
            f"COLLATE {closed.collation}{comment}",
        )
        here = await self.server.tables(self.database)
        if not closed.tables or not set(closed.tables.values()) <= set(here):
            await self._gate(closed)  # all or nothing of them has its own name
            hidden = {was: now for now, was in closed.tables.items()}
            away = [each for each in await self.server.tables(self.place) if each != RECORD]
            await self._rename(
                [
                    (f"{place}.{name(each)}", f"{database}.{name(hidden.get(each, each))}")
                    for each in away
                ]
            )
            await self._make([each for each in closed.definitions if each.early])
            await self._rename(await self._gated(closed))
        await self._make([each for each in closed.definitions if not each.early])
        await self.write(closed, "opened")

    async def facts(self, open_names: Mapping[str, str]) -> list[list[str]]:
        """What the database has beside its tables now.

        :param open_names: what tables that have been renamed are called otherwise.
        """
        return await facts(self.server, self.database, open_names)

    # How they are done

    async def _record(self) -> Closed:
        here = exactly(self.database)
        rows = await self.server.rows(
            "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME, SCHEMA_COMMENT "
            f"FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {here}"
        )
        if not rows:
            raise MoverError(f"there is no database {self.database!r} on {self.server.node}")
        charset, collation, comment = rows[0]
        closed = Closed(self.database, "recorded", charset, collation, comment, tables={})
        kinds = ("FUNCTION", "PROCEDURE", "EVENT", "VIEW")
        closed.definitions = await definitions(self.server, self.database, kinds)
        closed.facts = await self.facts(closed.tables)
        await self.server.change(
            f"CREATE DATABASE IF NOT EXISTS {name(self.place)} CHARACTER SET utf8mb4",
            f"CREATE TABLE IF NOT EXISTS {name(self.place)}.{RECORD} "
            "(one INT PRIMARY KEY, written LONGTEXT NOT NULL) ENGINE=InnoDB",
        )
        await self.write(closed, "recorded")
        return closed

    async def _record_the_rest(self, closed: Closed) -> None:
        triggers = await definitions(self.server, self.database, ("TRIGGER",))
        now = await self.facts(closed.tables)
        if now != closed.facts:
            changed = next(
                each
                for each in [*now, *closed.facts]
                if each not in now or each not in closed.facts
            )
            raise MoverError(
                f"the {changed[0].lower()} {changed[1]!r} of {self.database!r} on "
                f"{self.server.node} was changed while it was being closed; try again"
            )
        closed.definitions = [*triggers, *closed.definitions]
        await self.write(closed, "gated")

    async def _gate(self, closed: Closed) -> None:
        """Give all tables that have their own names others."""
        names = {was: now for now, was in closed.tables.items()}
        while wanted := [
            each for each in await self.server.tables(self.database) if each not in closed.tables
        ]:
            new = [each for each in wanted if each not in names]
            for number, each in enumerate(new, start=len(names) + 1):
                names[each] = f"{self.place}_{number}"
                closed.tables[names[each]] = each
            if new:
                await self.write(closed, closed.stage)
            where = name(self.database)
            await self._rename(
                [(f"{where}.{name(each)}", f"{where}.{name(names[each])}") for each in wanted]
            )

    async def _gated(self, closed: Closed) -> list[tuple[str, str]]:
        """What has to be renamed for all tables of the database to have their own names."""
        where = name(self.database)
        return [
            (f"{where}.{name(each)}", f"{where}.{name(closed.tables[each])}")
            for each in await self.server.tables(self.database)
            if each in closed.tables
        ]

    async def _take_away(self, closed: Closed) -> bool:
        """Empty and drop the database; False: somebody has made another table in it."""
        here, database, place = exactly(self.database), name(self.database), name(self.place)
        triggers = await self.server.column(
            f"SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {here}"
        )
        if triggers:
            await self.server.change(
                *(f"DROP TRIGGER IF EXISTS {database}.{name(each)}" for each in triggers)
            )
        hidden = [each for each in await self.server.tables(self.database) if each in closed.tables]
        await self._rename(
            [(f"{database}.{name(each)}", f"{place}.{name(each)}") for each in hidden]
        )
        await self.server.change(
            "BEGIN NOT ATOMIC IF NOT EXISTS (SELECT 1 FROM information_schema.TABLES WHERE "
            f"TABLE_SCHEMA = {here} AND TABLE_TYPE <> 'VIEW') "
            f"THEN DROP DATABASE IF EXISTS {database}; END IF; END"
        )
        return self.database not in await self.server.databases()

    async def _rename(self, renames: list[tuple[str, str]]) -> None:
        """Rename tables, all in one, and end those who keep it waiting."""
        if not renames:
            return
        late = self._reactor.seconds() + LATE
        while True:
            try:
                await self.server.change(
                    *await self._ending(),
                    f"SET SESSION lock_wait_timeout = {_LOCK_WAIT}, "
                    f"innodb_lock_wait_timeout = {_LOCK_WAIT}",
                    "RENAME TABLE " + ", ".join(f"{was} TO {now}" for was, now in renames),
                    time=LONG,
                )
                return
            except ServerError as problem:
                if problem.code != _WAITED:
                    raise
                if self._reactor.seconds() > late:
                    raise MoverError(
                        f"somebody keeps the tables of {self.database!r} on {self.server.node} "
                        "in use and cannot be ended: a prepared XA transaction (XA RECOVER), or "
                        "a lock of the whole server (FLUSH TABLES WITH READ LOCK); see to it"
                    ) from None
            await deferLater(self._reactor, _AGAIN)

    async def _ending(self) -> list[str]:
        """The statement that ends those who use the database."""
        if self._sees_lockers is None:
            self._sees_lockers = await self._finds_lockers()
        queries = [_USERS, _LOCKERS] if self._sees_lockers else [_USERS]
        union = " UNION ".join(each.format(here=exactly(self.database)) for each in queries)
        return [
            "BEGIN NOT ATOMIC DECLARE CONTINUE HANDLER FOR 1094, 1095 DO 0; "
            f"FOR used_by IN (SELECT * FROM ({union}) users) DO "
            "EXECUTE IMMEDIATE CONCAT('KILL CONNECTION ', used_by.ID); END FOR; END"
        ]

    async def _finds_lockers(self) -> bool:
        active = await self.server.value(
            "SELECT COUNT(*) FROM information_schema.PLUGINS "
            "WHERE PLUGIN_NAME = 'METADATA_LOCK_INFO' AND PLUGIN_STATUS = 'ACTIVE'"
        )
        return active != "0"

    async def _find_lockers(self) -> bool:
        """Have the server say who uses a table; False: it does already, or cannot."""
        self._sees_lockers = await self._finds_lockers()
        if self._sees_lockers:
            return False
        try:
            await self.server.run(f"INSTALL SONAME {_PLUGIN}")
        except ServerError:
            return False  # who uses it from another database is not ended, but waited for
        self._sees_lockers = True
        return True

    async def _make(self, wanted: list[Definition]) -> None:
        statements = [statement for each in wanted for statement in each.statements]
        if statements:
            await self.server.change(*statements, database=self.database)
