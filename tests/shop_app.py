"""A shop: each order writes a row and a file.  ``shop_app.py DIRECTORY ADDRESS PORT CONNINFO``.

It connects to its database anew for each request.  ``/health`` needs both of them.
"""

from __future__ import annotations

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg

DIRECTORY, ADDRESS, PORT, CONNINFO = sys.argv[1:]
ORDERS = Path(DIRECTORY) / "orders"


class Shop(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with psycopg.connect(CONNINFO) as connection:
            connection.execute("SELECT count(*) FROM orders")
        self._answer(200, b"%d files\n" % len(os.listdir(ORDERS)))

    def do_POST(self) -> None:
        number = int(self.path[1:])
        with psycopg.connect(CONNINFO) as connection:
            connection.execute("INSERT INTO orders (number) VALUES (%s)", (number,))
            with open(ORDERS / str(number), "x") as file:
                file.write(f"order {number}\n")
                file.flush()
                os.fsync(file.fileno())
        self._answer(201, b"taken\n")

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


Server((ADDRESS, int(PORT)), Shop).serve_forever()
