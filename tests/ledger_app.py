"""A site with nothing but a directory: each request writes a row and a file.

``ledger_app.py DIRECTORY ADDRESS PORT``; the rows are in an SQLite in the directory.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DIRECTORY, ADDRESS, PORT = sys.argv[1:]
FILES = Path(DIRECTORY) / "files"


class Ledger(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200, b"well\n")

    def do_POST(self) -> None:
        name = self.path[1:].replace("/", "-")
        with closing(sqlite3.connect(f"{DIRECTORY}/rows", timeout=60)) as rows, rows:
            rows.execute("PRAGMA synchronous = OFF")
            rows.execute("INSERT INTO written VALUES (?)", (name,))
            with open(FILES / name, "x") as file:
                file.write(f"{name}\n")
                file.flush()
                os.fsync(file.fileno())
        self._answer(201, b"written\n")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *what: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 100
    daemon_threads = True


Server((ADDRESS, int(PORT)), Ledger).serve_forever()
