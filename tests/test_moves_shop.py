"""A shop in Python, with PostgreSQL, moves between two servers and back under load."""

from __future__ import annotations

from daemon_stage import twisted_fixture, twisted_test
from servers_stage import Servers, two_servers
from shop_stage import Shop, passes

servers = twisted_fixture(two_servers)


@twisted_test
async def test_a_shop_moves_to_and_fro_with_its_files_and_its_database(servers: Servers) -> None:
    """Under orders that each write a row and a file nothing fails, is lost, or is there twice."""
    shop = await Shop.build(servers, "replicate")
    daemon = servers.daemon
    load = daemon.load(method="POST", rate=20.0, duration=600.0, timeout=60.0)
    await load.flows(20)
    for server in (servers.two, servers.one):
        ledger = await daemon.ask(
            "migrate", site="shop", to=server.name, databases={"shop": server.name}, max_pause=60.0
        )
        print(ledger)
        assert ledger["outcome"] == "done"
        assert ledger["failed"] == ledger["ambiguous"] == 0
        await load.flows(20)
    await passes(shop, load, servers.one)
