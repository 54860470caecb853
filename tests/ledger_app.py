"""A site with nothing but a directory: each request writes a row and a file.

``ledger_app.py DIRECTORY ADDRESS PORT``; the rows are in an SQLite in the directory.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from app_serving import Application, keep, serve

DIRECTORY, ADDRESS, PORT = sys.argv[1:]
FILES = Path(DIRECTORY) / "files"


class Ledger(Application):
    def do_GET(self) -> None:
        self.answer(200, b"well\n")

    def do_POST(self) -> None:
        name = self.path[1:].replace("/", "-")
        with closing(sqlite3.connect(f"{DIRECTORY}/rows", timeout=60)) as rows, rows:
            rows.execute("PRAGMA synchronous = OFF")
            rows.execute("INSERT INTO written VALUES (?)", (name,))
            keep(FILES / name, f"{name}\n")
        self.answer(201, b"written\n")


serve(ADDRESS, int(PORT), Ledger)
