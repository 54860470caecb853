"""A blog in PHP on both of two servers: a filesystem of ZFS, Apache, and a MariaDB.

Each post writes a row and a file.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from daemon_stage import Load, free_ports
from mariadb_stage import SMALL, install
from php_stage import USER, Website
from servers_stage import Server, Servers, backends, tables
from stage_waiting import until
from zfs_stage import START

HERE = Path(__file__).parent
MARIADBD = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
SIZE = 96 << 20  # bytes of a pool
_CLIENT = ("mariadb", "--no-defaults", "--socket=/srv/db/socket", "--batch", "--skip-column-names")
_NUMBERS = count(1)


@pytest.fixture
def disks() -> Iterator[Path]:
    """A directory for what the pools are in; in memory, where that can be."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="disks-", dir=memory if memory.is_dir() else None))
    yield made
    shutil.rmtree(made)


@dataclass
class Blog:
    """The blog, on both servers."""

    servers: Servers
    disks: Path
    port: int  # of the database's listener
    at: Server  # where it is
    name: str = "blog"

    @classmethod
    async def build(cls, servers: Servers, disks: Path, more: str = "") -> Blog:
        """
        :param more: what else is to be configured.
        """
        blog = cls(servers, disks, free_ports(1)[0], servers.one)
        first, second = (server.directory / "srv/db/data" for server in servers.both)
        first.parent.parent.mkdir()
        install(first)
        shutil.copytree(first, second)
        for server in servers.both:
            blog.furnish(server)
        for server in servers.both:
            await blog.starts(server)
        blog.write(servers.one)
        daemon = servers.daemon
        daemon.configure(servers.nodes, blog.tables(), more)
        await daemon.start()
        return blog

    def furnish(self, server: Server) -> None:
        """A disk with a database and a web server on it, and what ZFS needs."""
        disk = server.directory / "srv"
        server.run("mount", "--bind", str(disk), "/srv")
        server.spawn("sh", "-c", START, log="zfs.log")
        self.start_database(server)
        (disk / "web").mkdir()
        (disk / "blog").mkdir()
        self.website(server).configure("event")
        server.spawn(*self.website(server).apache(), log="apache.log")

    def start_database(self, server: Server) -> None:
        server.spawn(
            MARIADBD,
            "--no-defaults",
            "--user=root",
            "--datadir=/srv/db/data",
            "--socket=/srv/db/socket",
            "--pid-file=/srv/db/pid",
            "--tmpdir=/srv/db",
            f"--bind-address={server.address}",
            f"--server-id={self.servers.both.index(server) + 1}",
            "--skip-name-resolve",
            *SMALL,
            log="mariadb.log",
        )

    def website(self, server: Server) -> Website:
        env = (("DATABASE_HOST", server.gateway), ("DATABASE_PORT", str(self.port)))
        here, seen = server.directory / "srv/web", Path("/srv/web")
        return Website(here, Path("/srv/blog"), server.address, 8000, seen, env)

    async def starts(self, server: Server) -> None:
        """Wait for all of it, and give the blog a pool and a user."""
        await until(lambda: _succeeds(server, "zpool", "list"), "zfs-fuse")
        server.run("mkdir", "/run/sshd")  # its /run is a new one
        file = self.disks / server.name
        with open(file, "wb") as opened:
            opened.truncate(SIZE)
        how = ("-o", "cachefile=none", "-O", "mountpoint=none")
        server.run("zpool", "create", *how, server.name, str(file))
        await self.database_runs(server)
        self.sql(server, "CREATE USER blog IDENTIFIED BY 'a password'")
        self.sql(server, "GRANT ALL ON blog.* TO blog")
        await until((server.directory / "srv/web/apache.pid").exists, "Apache")

    async def database_runs(self, server: Server) -> None:
        await until(lambda: _succeeds(server, *_CLIENT, "--execute=SELECT 1"), "MariaDB")

    def write(self, server: Server) -> None:
        """Have it on one of them."""
        dataset = f"{server.name}/blog"
        server.run("zfs", "create", "-o", "mountpoint=/srv/blog", "-o", "atime=off", dataset)
        server.run("cp", str(HERE / "blog.php"), "/srv/blog/index.php")
        server.run("mkdir", "/srv/blog/posts")
        server.run("chown", USER, "/srv/blog/posts")
        self.sql(server, "CREATE DATABASE blog")
        self.sql(server, "CREATE TABLE blog.posts (id SERIAL PRIMARY KEY, number BIGINT NOT NULL)")
        server.run(*self.service(server, "start"))

    def sql(self, server: Server, statement: str) -> str:
        return server.run(*_CLIENT, f"--execute={statement}")

    def service(self, server: Server, act: str) -> list[str]:
        """PHP is started and stopped; Apache has others to serve."""
        fpm = self.website(server).fpm
        return [str(HERE / "service.sh"), act, "/srv/web/service.pid", "", *fpm]

    def tables(self) -> str:
        how = ('protocol = "mysql"', 'mover = "mariadb"', 'options.method = "replicate"')
        lines = [tables("blog", 'mover = "zfs"', self.port, *how)]
        for server in self.servers.both:
            files = f'dataset = "{server.name}/blog"\npath = "/srv/blog"'
            place = ('socket = "/srv/db/socket"', f'replication.host = "{server.address}"')
            service = {act: self.service(server, act) for act in ("start", "stop")}
            lines.append(backends("blog", server, files, 3306, service, *place))
        return "\n".join(lines)

    def paint(self, server: Server) -> None:
        """Give it something that takes much room."""
        server.run(
            "dd", "if=/dev/urandom", f"of=/srv/blog/{next(_NUMBERS)}.jpg", "bs=1M", "count=4"
        )

    def fill(self, server: Server) -> None:
        """Leave no room in the pool."""
        server.run("zfs", "create", "-o", "mountpoint=/srv/filler", f"{server.name}/filler")
        server.run("sh", "-c", "cat /dev/zero >/srv/filler/zeros 2>/dev/null || true")

    async def empty(self, server: Server) -> None:
        """Undo that; what has just been used is busy for a moment."""
        await until(lambda: _succeeds(server, "zfs", "destroy", f"{server.name}/filler"), "room")

    def rows(self, server: Server) -> Counter[int]:
        """The posts in the database, and how often each is there."""
        return Counter(map(int, self.sql(server, "SELECT number FROM blog.posts").split()))

    def files(self, server: Server) -> set[int]:
        """The posts in the filesystem."""
        return set(map(int, server.run("ls", "/srv/blog/posts").split()))


def _succeeds(server: Server, *argv: str) -> bool:
    return subprocess.run(server.inside(argv), capture_output=True, check=False).returncode == 0


async def passes(blog: Blog, load: Load, server: Server) -> None:
    """Nothing has failed, and each post that was acknowledged is there once, row and file."""
    result = await load.passes()
    acknowledged = Counter(result.acknowledged())
    assert blog.rows(server) == acknowledged
    assert blog.files(server) == set(acknowledged)
