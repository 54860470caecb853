"""A shop in Python on both of two servers: files that rsync moves, and a PostgreSQL.

Each order writes a row and a file.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from daemon_stage import Load, free_ports
from postgres_stage import PROGRAMS, USER
from servers_stage import Server, Servers, backends, tables
from stage_waiting import until

HERE = Path(__file__).parent
SITES = 64 << 20  # bytes of the disk that sites are on
DATABASES = 192 << 20  # and of the one that databases are on
_AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--"]
_SETTINGS = {
    "wal_level": "logical",
    "fsync": "off",
    "shared_buffers": "16MB",
    "max_wal_size": "32MB",
    "min_wal_size": "2MB",
    "wal_retrieve_retry_interval": "200ms",
    "unix_socket_directories": "/srv/pg",
}


@dataclass
class Shop:
    """The shop, on both servers."""

    servers: Servers
    port: int  # of the database's listener
    at: Server  # where it is
    name: str = "shop"
    programs: str = ""  # where PostgreSQL's are; in PATH Debian has scripts that look for them

    @classmethod
    async def build(cls, servers: Servers, method: str, more: str = "", programs: str = "") -> Shop:
        """
        :param method: how its database is moved.
        :param more: what else is to be configured.
        """
        shop = cls(servers, free_ports(1)[0], servers.one, programs=programs)
        for server in servers.both:
            shop.furnish(server)
        await shop.starts()
        shop.psql(servers.one, "postgres", "CREATE DATABASE shop")
        shop.psql(
            servers.one,
            "shop",
            "CREATE TABLE orders (id serial PRIMARY KEY, number bigint NOT NULL)",
        )
        daemon = servers.daemon
        daemon.configure(servers.nodes, shop.tables(method), more)
        servers.one.run(*shop.service(servers.one, "start"))
        await daemon.start()
        return shop

    def furnish(self, server: Server) -> None:
        """A disk with a database server, and one for the site."""
        for at, size in (("/srv", DATABASES), ("/srv/www", SITES)):
            server.run("mkdir", "-p", at)
            server.run("mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", at)
        server.run("install", "-d", "-o", USER, "/srv/pg")
        if server.name == "one":
            server.run("mkdir", "-p", "/srv/www/shop/orders")
        how = ["--no-sync", "--auth=trust", f"--username={USER}", "--encoding=UTF8"]
        how += ["--wal-segsize=1", "--pgdata=/srv/pg/data"]
        server.run(*_AS_USER, f"{PROGRAMS}/initdb", *how)
        rule = f"host all all {server.gateway}/24 trust"
        server.run("sh", "-c", f"echo '{rule}' >>/srv/pg/data/pg_hba.conf")
        self.start_database(server)

    def start_database(self, server: Server) -> None:
        settings = {**_SETTINGS, "listen_addresses": server.address}
        words = [f"--{key}={value}" for key, value in settings.items()]
        server.spawn(
            *_AS_USER, f"{PROGRAMS}/postgres", "-D", "/srv/pg/data", *words, log="postgres.log"
        )

    async def starts(self) -> None:
        for server in self.servers.both:
            await self.database_runs(server)

    async def database_runs(self, server: Server) -> None:
        ready = server.inside([f"{PROGRAMS}/pg_isready", "-q", "-h", "/srv/pg"])
        await until(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL")

    def psql(self, server: Server, database: str, statement: str) -> str:
        return server.run(
            *(f"{PROGRAMS}/psql", "-XAtq", "-h", "/srv/pg", "-U", USER, "-d", database),
            *("-c", statement),
        )

    def service(self, server: Server, act: str) -> list[str]:
        conninfo = f"host={server.gateway} port={self.port} dbname=shop user={USER}"
        app = [sys.executable, str(HERE / "shop_app.py"), "/srv/www/shop", server.address, "8000"]
        words = [act, f"{server.directory}/shop.pid", "8000", *app, conninfo]
        return [str(HERE / "service.sh"), *words]

    def tables(self, method: str) -> str:
        how = ('protocol = "postgres"', 'mover = "postgres"', f'options.method = "{method}"')
        lines = [tables("shop", 'mover = "rsync"', self.port, *how)]
        for server in self.servers.both:
            conninfo = f"host={server.address} user={USER} dbname=shop"
            place = ('socket = "/srv/pg"', f'conninfo = "{conninfo}"')
            where = [f'programs = "{self.programs}"'] if self.programs else []
            service = {act: self.service(server, act) for act in ("start", "stop")}
            lines.append(
                backends("shop", server, 'path = "/srv/www/shop"', 5432, service, *place, *where)
            )
        return "\n".join(lines)

    def rows(self, server: Server) -> Counter[int]:
        """The rows that are there, and how often."""
        return Counter(map(int, self.psql(server, "shop", "SELECT number FROM orders").split()))

    def files(self, server: Server) -> set[int]:
        """The files that are there."""
        return set(map(int, server.run("ls", "/srv/www/shop/orders").split()))


async def passes(shop: Shop, load: Load, server: Server) -> None:
    """Nothing has failed, and each order that was acknowledged is there once, row and file."""
    result = await load.passes()
    acknowledged = set(result.acknowledged())
    rows = shop.rows(server)
    assert acknowledged <= set(rows)
    assert set(rows.values()) == {1}
    assert acknowledged <= shop.files(server)
