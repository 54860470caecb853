"""The updates that the demo's site has carried out, a row each, in one SQLite file.

Both backends write to it, as two servers of a real site would share a database.  The
table has deliberately no unique key: an update that is carried out twice is there twice,
and shows.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SCHEMA = """
CREATE TABLE updates (method TEXT, n INTEGER, backend TEXT, at REAL);
CREATE INDEX updates_n ON updates (method, n);
"""
APPEND = "INSERT INTO updates VALUES (:method, :n, :backend, :at)"
# One statement is one transaction: the look and the insertion are not to be parted.
ONCE = """
INSERT INTO updates SELECT :method, :n, :backend, :at
WHERE NOT EXISTS (SELECT 1 FROM updates WHERE method = :method AND n = :n)
"""


@dataclass(frozen=True, slots=True)
class Count:
    """What a comparison of the database with the acknowledgements has found."""

    applied: int  # updates that are there, however often
    lost: int  # acknowledged, but not there
    duplicated: int  # there more than once, acknowledged or not
    unacknowledged: int  # there, though nobody was told so


class Database:
    """An open database of updates."""

    def __init__(self, path: Path) -> None:
        """:raises sqlite3.Error: if it cannot be opened."""
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._connection.execute("PRAGMA synchronous = NORMAL")

    @classmethod
    def create(cls, path: Path) -> Database:
        """A new and empty database at ``path``."""
        database = cls(path)
        database._connection.execute("PRAGMA journal_mode = WAL")
        database._connection.executescript(SCHEMA)
        return database

    def update(self, method: str, n: int, backend: str) -> None:
        """Carry out an update: each ``POST`` again, each ``PUT`` of the same ``n`` once."""
        values = {"method": method, "n": n, "backend": backend, "at": time.time()}
        self._connection.execute(ONCE if method == "PUT" else APPEND, values)

    def backends(self, method: str) -> dict[int, str]:
        """The backend that has carried out each update."""
        query = "SELECT n, backend FROM updates WHERE method = ?"
        return dict(self._connection.execute(query, (method,)))

    def count(self, method: str, acknowledged: Iterable[int]) -> Count:
        """Compare with the numbers of the updates that clients know to be done."""
        query = "SELECT n FROM updates WHERE method = ?"
        times = Counter(n for (n,) in self._connection.execute(query, (method,)))
        known = set(acknowledged)
        return Count(
            applied=len(times),
            lost=len(known - times.keys()),
            duplicated=sum(count > 1 for count in times.values()),
            unacknowledged=len(times.keys() - known),
        )

    def close(self) -> None:
        """Close it."""
        self._connection.close()
