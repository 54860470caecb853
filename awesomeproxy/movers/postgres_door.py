"""The door of a database: its name.

A database under the name that its users know is open to them.  One that is being moved away
or has not arrived yet has another name, the mover's, and there is nobody who asks for that.

Why the name: a limit of connections, a revoked privilege and ``default_transaction_read_only``
do not bind a superuser, and ``ALLOW_CONNECTIONS false`` binds the mover too, which has to
read the source once more to compare it.  A new name binds everybody, and the server gives
it only to a database that nobody is connected to.

Nobody slips in while the door closes.  Once ``ALLOW_CONNECTIONS false`` is committed, who
comes anew is turned away.  Who was just coming in holds a lock on the database until the
session shows among the activity; so when no such lock and then no session is there, all
are gone, and those that there were have been ended.

What has to be known after a crash is written to the database's own settings, in the
catalogue: they are changed in one transaction with the name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.postgres_server import MAINTENANCE, PostgresServer, ident, literal

_LONGEST_NAME = 63  # bytes
_PREFIX = "awesomeproxy."
NOTES = ("copied", "database", "fence", "migration", "part", "read_only", "system")
SOURCE, TARGET, LEFT = "source", "target", "left"  # the parts that a database can play
_PATIENCE = 20  # seconds that sessions have to end when they are told to
_READ_ONLY = "default_transaction_read_only"


def hidden_name(database: str, migration: int, part: str) -> str:
    """What a database is called while it is closed to its users."""
    end = f".{migration}.{part}"
    room = _LONGEST_NAME - len(end)
    if len(database.encode()) > room:
        end = f"~{hashlib.sha256(database.encode()).hexdigest()[:8]}{end}"
        room -= 9
    return database.encode()[:room].decode(errors="ignore") + end


@dataclass(frozen=True)
class Found:
    """A database as the catalogue has it."""

    oid: int
    name: str
    allowed: bool
    settings: dict[str, str] = field(default_factory=dict)

    def note(self, key: str) -> str:
        """What the mover has written down about it; empty: nothing."""
        return self.settings.get(_PREFIX + key, "")


def notes(name: str, **values: str) -> list[str]:
    """Statements that write down something about a database."""
    return [
        f"ALTER DATABASE {ident(name)} SET {_PREFIX}{key} = {literal(value)}"
        for key, value in values.items()
    ]


def forget(name: str) -> list[str]:
    """Statements that take away all that was written down."""
    return [f"ALTER DATABASE {ident(name)} RESET {_PREFIX}{key}" for key in NOTES]


def transaction(*statements: str) -> list[str]:
    """Statements as one transaction."""
    return ["BEGIN", *statements, "COMMIT"]


class Door:
    """One database on one server, under its own name or the mover's."""

    def __init__(self, server: PostgresServer, name: str, hidden: str) -> None:
        self.server = server
        self.name = name
        self.hidden = hidden

    async def all(self) -> list[Found]:
        """All databases of the server."""
        rows = await self.server.rows(
            MAINTENANCE,
            "SELECT d.oid::bigint AS oid, datname, datallowconn, coalesce(setconfig, '{}') AS set"
            " FROM pg_database d"
            " LEFT JOIN pg_db_role_setting s ON s.setdatabase = d.oid AND s.setrole = 0",
        )
        return [
            Found(
                row["oid"],
                row["datname"],
                row["datallowconn"],
                dict(each.split("=", 1) for each in row["set"]),
            )
            for row in rows
        ]

    async def find(self) -> tuple[Found | None, Found | None]:
        """What is there under its own name, and under the mover's."""
        found = {each.name: each for each in await self.all()}
        return found.get(self.name), found.get(self.hidden)

    async def reach(self) -> str:
        """The name under which it is now.

        :raise MoverError: there is neither.
        """
        shown, hidden = await self.find()
        found = hidden or shown
        if found is None:
            raise MoverError(f"there is no database {self.name!r} on {self.server.node}")
        return found.name

    async def shut(self, found: Found, slot: str = "", **written: str) -> None:
        """Let nobody in, and end all sessions but the one that serves ``slot``.

        :raise MoverError: somebody cannot be got out, or has prepared a transaction.
        """
        name = ident(found.name)
        closing = transaction(
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", *notes(found.name, **written)
        )
        await self.server.run(MAINTENANCE, *closing, _emptied(found, slot))

    async def hide(self, *more: str) -> None:
        """Give it the mover's name; nothing, if it has that already."""
        shown, hidden = await self.find()
        if hidden is None and shown is not None:
            await self._rename(shown, self.hidden, *more)

    async def show(self, *more: str) -> None:
        """Give it its own name.

        :raise MoverError: there is another one of that name.
        """
        shown, hidden = await self.find()
        if hidden is None:
            return
        if shown is not None:
            raise MoverError(
                f"there is another database {self.name!r} on {self.server.node}, beside "
                f"{self.hidden!r} which is to have that name; rename it or drop it"
            )
        await self._rename(hidden, self.name, *more)

    async def drop(self, name: str) -> None:
        """Drop a database that is no subscription's; nothing, if it is not there."""
        await self.server.run(
            MAINTENANCE, f"DROP DATABASE IF EXISTS {ident(name)} WITH (FORCE)", time=600.0
        )

    async def _rename(self, found: Found, name: str, *more: str) -> None:
        await self.shut(found)
        await self.server.run(
            MAINTENANCE,
            *transaction(
                f"ALTER DATABASE {ident(found.name)} RENAME TO {ident(name)}",
                f"ALTER DATABASE {ident(name)} ALLOW_CONNECTIONS true",
                *more,
            ),
        )


class SourceDoor(Door):
    """That of the source, which is read-only as well while it is hidden."""

    async def fence(self, slot: str, migration: int) -> None:
        """Close it, and write down how far the log had come then."""
        shown, hidden = await self.find()
        if shown is None:
            if hidden is None:
                raise MoverError(f"there is no database {self.name!r} on {self.server.node}")
            return
        before = shown.settings.get(_READ_ONLY, "")
        await self.shut(shown, slot, migration=str(migration), part=SOURCE, read_only=before)
        # The commit of this has the log written to the disk, up to there and beyond.
        set_to = f"ALTER DATABASE {ident(self.name)} SET {_PREFIX}fence = %L"
        await self.server.script(
            MAINTENANCE, f"SELECT format({literal(set_to)}, pg_current_wal_insert_lsn()) \\gexec"
        )

    async def withdraw(self) -> None:
        """Hide it."""
        await self.hide(f"ALTER DATABASE {ident(self.hidden)} SET {_READ_ONLY} = on")

    async def unfence(self, migration: int) -> None:
        """Open it as it was before the fence."""
        shown, hidden = await self.find()
        found = hidden or shown
        if found is None or found.note("migration") != str(migration) or not found.note("part"):
            return
        name = ident(self.name)
        before = found.note("read_only")
        restore = f"SET {_READ_ONLY} = {literal(before)}" if before else f"RESET {_READ_ONLY}"
        opening = [
            f"ALTER DATABASE {name} {restore}",
            *(f"ALTER DATABASE {name} RESET {_PREFIX}{key}" for key in ("fence", "part")),
        ]
        if hidden is not None:
            await self.show(*opening)
        else:
            opening.append(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            await self.server.run(MAINTENANCE, *transaction(*opening))


def _emptied(found: Found, slot: str) -> str:
    """A statement that ends all sessions, those that are just coming in too, and waits."""
    return f"""DO $$
DECLARE coming int; inside int;
BEGIN
  FOR turn IN 1..{_PATIENCE * 50} LOOP
    SELECT count(*) INTO coming FROM pg_locks
      WHERE locktype = 'object' AND classid = 'pg_database'::regclass AND objid = {found.oid}
        AND mode = 'RowExclusiveLock' AND pid <> pg_backend_pid();
    PERFORM pg_stat_clear_snapshot();
    SELECT count(pg_terminate_backend(pid)) INTO inside FROM pg_stat_activity
      WHERE datid = {found.oid} AND backend_type <> 'autovacuum worker' AND pid NOT IN
        (SELECT active_pid FROM pg_replication_slots
          WHERE slot_name = {literal(slot)} AND active_pid IS NOT NULL);
    EXIT WHEN coming = 0 AND inside = 0;
    PERFORM pg_sleep(0.02);
  END LOOP;
  IF coming + inside > 0 THEN
    RAISE EXCEPTION '% sessions of the database do not end; look for them in pg_stat_activity',
      coming + inside;
  END IF;
  IF EXISTS (SELECT FROM pg_prepared_xacts x JOIN pg_database d ON x.database = d.datname
             WHERE d.oid = {found.oid}) THEN
    RAISE EXCEPTION 'there are prepared transactions; commit them or roll them back';
  END IF;
END $$"""
