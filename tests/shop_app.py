"""A shop: each order writes a row and a file.  ``shop_app.py DIRECTORY ADDRESS PORT CONNINFO``.

It connects to its database anew for each request.  ``/health`` needs both of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psycopg
from app_serving import Application, keep, serve

DIRECTORY, ADDRESS, PORT, CONNINFO = sys.argv[1:]
ORDERS = Path(DIRECTORY) / "orders"


class Shop(Application):
    def do_GET(self) -> None:
        with psycopg.connect(CONNINFO) as connection:
            connection.execute("SELECT count(*) FROM orders")
        self.answer(200, b"%d files\n" % len(os.listdir(ORDERS)))

    def do_POST(self) -> None:
        number = int(self.path[1:])
        with psycopg.connect(CONNINFO) as connection:
            connection.execute("INSERT INTO orders (number) VALUES (%s)", (number,))
            keep(ORDERS / str(number), f"order {number}\n")
        self.answer(201, b"taken\n")


serve(ADDRESS, int(PORT), Shop)
