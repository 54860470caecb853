"""The registry's records as rows of SQLite tables, each with a checksum.

SQLite notices a page that is not a page, but not a letter that has changed
inside a row.  A placement that names another generation or another backend
than was written would send requests to the wrong place, so every row carries
the CRC of its values, and a row that does not match is never used.

No table has an index beside it, so that a row is written once and there is
nothing that could disagree with it.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import astuple
from sys import intern
from typing import Any

from awesomeproxy.model import Generation, Mode, Placement
from awesomeproxy.registry.interface import Companion, Entry


class Damaged(Exception):
    """A row is not what was written."""


class Table:
    """How one kind of record is stored.  The first of ``columns`` is the key."""

    def __init__(self, name: str, *columns: str) -> None:
        names = [column.split()[0] for column in columns]
        self.name = name
        # An INTEGER key is the rowid itself; any other would get an index.
        kind = "" if columns[0].split()[1] == "INTEGER" else " WITHOUT ROWID"
        self.create = f"CREATE TABLE {name} ({', '.join(columns)}, crc INTEGER NOT NULL){kind}"
        self._select = f"SELECT {', '.join(names)}, crc FROM {name} "
        self._put = f"INSERT OR REPLACE INTO {name} VALUES ({'?, ' * len(names)}?)"
        self._drop = f"DELETE FROM {name} WHERE {names[0]} = ?"

    def put(self, db: sqlite3.Connection, *values: Any) -> None:
        db.execute(self._put, (*values, self._crc(values)))

    def drop(self, db: sqlite3.Connection, key: str) -> None:
        db.execute(self._drop, (key,))

    def rows(self, db: sqlite3.Connection, where: str = "", *args: Any) -> Iterator[Any]:
        for *values, crc in db.execute(self._select + where, args).fetchall():
            if crc != self._crc(values):
                raise Damaged(f"the checksum of {self.name} {values[0]!r} is wrong")
            yield values

    def _crc(self, values: Any) -> int:
        try:
            return zlib.crc32(json.dumps(values).encode())
        except TypeError as error:  # bytes, which are never written
            raise Damaged(f"{self.name} {values[0]!r} is not made of text and numbers") from error


PLACEMENT = Table(
    "placement",
    "site TEXT PRIMARY KEY NOT NULL",
    "backend TEXT NOT NULL",
    "mode TEXT NOT NULL",
    "generation INTEGER NOT NULL",
    "changed_by TEXT NOT NULL",
    "expires REAL",
    "at_expiry TEXT NOT NULL",
)
FORGOTTEN = Table("forgotten", "site TEXT PRIMARY KEY NOT NULL", "generation INTEGER NOT NULL")
DEFINITION = Table("definition", "name TEXT PRIMARY KEY NOT NULL", "body TEXT NOT NULL")
JOURNAL = Table(
    "journal",
    "id INTEGER PRIMARY KEY NOT NULL",
    "site TEXT NOT NULL",
    "source TEXT NOT NULL",
    "target TEXT NOT NULL",
    "generation INTEGER NOT NULL",
    "step TEXT NOT NULL",
    "state TEXT NOT NULL",
    "reason TEXT NOT NULL",
    "ledger TEXT",
    "began REAL NOT NULL",
    "along TEXT NOT NULL",
)
TABLES = (PLACEMENT, FORGOTTEN, DEFINITION, JOURNAL)

UNFINISHED = "('running', 'committed')"
ALONG = "EXISTS (SELECT 1 FROM json_each(along) WHERE json_extract(value, '$[0]') = ?1)"


class TableStore:
    """A :class:`.book.Store` of tables in ``db``; every method may raise Damaged."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def check(self) -> None:
        """Read every row; raise Damaged if one is not what was written."""
        for table in TABLES:
            for _ in table.rows(self._db):
                pass

    @property
    def me(self) -> tuple[str, int]:
        return "", 0

    def floor(self) -> Generation:
        return 0

    def next_id(self) -> int:
        newest = self.entries(None, unfinished=False, limit=1)
        return newest[0].id + 1 if newest else 1

    def placements(self) -> list[Placement]:
        return [_placement(row) for row in PLACEMENT.rows(self._db)]

    def placement(self, site: str) -> Placement | None:
        rows = PLACEMENT.rows(self._db, "WHERE site = ?", site)
        return next(map(_placement, rows), None)

    def put_placement(self, placement: Placement) -> None:
        PLACEMENT.put(
            self._db,
            placement.site,
            placement.backend,
            str(placement.mode),
            placement.generation,
            placement.by,
            None if placement.expires is None else float(placement.expires),
            placement.then,
        )

    def drop_placement(self, site: str) -> None:
        PLACEMENT.drop(self._db, site)

    def forgotten(self, site: str) -> Generation:
        rows = FORGOTTEN.rows(self._db, "WHERE site = ?", site)
        return next((generation for _, generation in rows), 0)

    def put_forgotten(self, site: str, generation: Generation) -> None:
        FORGOTTEN.put(self._db, site, generation)

    def drop_forgotten(self, site: str) -> None:
        FORGOTTEN.drop(self._db, site)

    def definitions(self) -> dict[str, str]:
        return dict(DEFINITION.rows(self._db))

    def put_definition(self, name: str, table: str) -> None:
        DEFINITION.put(self._db, name, table)

    def drop_definition(self, name: str) -> None:
        DEFINITION.drop(self._db, name)

    def entries(self, site: str | None, unfinished: bool, limit: int) -> list[Entry]:
        where = (
            f"WHERE (?1 IS NULL OR site = ?1 OR {ALONG})"
            f" AND (NOT ?2 OR state IN {UNFINISHED}) ORDER BY id DESC LIMIT ?3"
        )
        return [_entry(row) for row in JOURNAL.rows(self._db, where, site, unfinished, limit)]

    def entry(self, entry_id: int) -> Entry | None:
        return next(map(_entry, JOURNAL.rows(self._db, "WHERE id = ?", entry_id)), None)

    def put_entry(self, entry: Entry) -> None:
        JOURNAL.put(
            self._db,
            entry.id,
            entry.site,
            entry.source,
            entry.target,
            entry.generation,
            entry.step,
            entry.state,
            entry.reason,
            None if entry.ledger is None else json.dumps(entry.ledger),
            float(entry.began),
            json.dumps([astuple(each) for each in entry.along]),
        )

    def drop_finished(self, up_to: int) -> None:
        self._db.execute(
            f"DELETE FROM journal WHERE id <= ? AND state NOT IN {UNFINISHED}", (up_to,)
        )


def _placement(row: Any) -> Placement:
    site, backend, mode, generation, by, expires, then = row
    # Much the same words in every row, and all rows are kept for as long as the daemon runs.
    return Placement(site, intern(backend), Mode(mode), generation, intern(by), expires, then)


def _entry(row: Any) -> Entry:
    entry_id, site, source, target, generation, step, state, reason, ledger, began, along = row
    return Entry(
        id=entry_id,
        site=site,
        source=source,
        target=target,
        generation=generation,
        step=step,
        state=state,
        reason=reason,
        ledger=None if ledger is None else json.loads(ledger),
        began=began,
        along=tuple(Companion(*each) for each in json.loads(along)),
    )
