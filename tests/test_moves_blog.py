"""A blog in PHP, on ZFS and with MariaDB, moves between two servers and back under load."""

from __future__ import annotations

from pathlib import Path

from blog_stage import Blog, passes
from blog_stage import disks as disks
from daemon_stage import twisted_fixture, twisted_test
from servers_stage import Servers, two_servers

servers = twisted_fixture(two_servers)


@twisted_test
async def test_a_blog_moves_to_and_fro_with_its_filesystem_and_its_database(
    servers: Servers, disks: Path
) -> None:
    """Under posts that each write a row and a file nothing fails, is lost, or is there twice."""
    blog = await Blog.build(servers, disks)
    daemon = servers.daemon
    load = daemon.load(method="POST", rate=20.0, duration=600.0, timeout=60.0)
    await load.flows(20)
    for server in (servers.two, servers.one):
        ledger = await daemon.ask(
            "migrate", site="blog", to=server.name, databases={"blog": server.name}, max_pause=60.0
        )
        print(ledger)
        assert ledger["outcome"] == "done"
        assert ledger["failed"] == ledger["ambiguous"] == 0
        await load.flows(20)
    await passes(blog, load, servers.one)
