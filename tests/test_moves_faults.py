"""A shop moves between two servers, and what takes part in it is killed, at every step in turn.

Until the commit everything leads back to the source, after it everything leads to the
target, and no order is lost, or there twice.  None fails, either, unless the daemon itself
was killed, with which the connections of its clients die.
"""

from __future__ import annotations

from daemon_stage import twisted_fixture, twisted_test
from fault_stage import (
    DONE,
    STEPS,
    UNDONE,
    Killer,
    Moving,
    a_shop,
    intact,
    kill_the_daemon,
    sleep,
    writes,
)
from servers_stage import Servers, two_servers
from shop_stage import passes

from awesomeproxy.migrate.steps import ORDER

servers = twisted_fixture(two_servers)

HELPER = "python3"  # what closes and compares directories; a new one may take its place
RUN = (  # by movers, in steps, on nodes
    ("check", "psql"),
    ("presync", "rsync"),
    ("fence", "psql"),
    ("sync", "rsync"),
    ("sync", "pg_dump"),
    ("sync", HELPER),
    ("attach", "psql"),
    ("attach", HELPER),
    ("compare", HELPER),
    ("clean", "psql"),
)


@twisted_test
async def test_the_daemon_is_killed_at_every_step(servers: Servers) -> None:
    """The next one leads it to the end that the commit has decided."""
    shop = await a_shop(servers)
    load = writes(shop)
    await load.flows()
    await kill_the_daemon(shop, load, STEPS)
    intact(shop, await load.stop())


@twisted_test
async def test_a_process_of_a_mover_is_killed_at_every_step(servers: Servers) -> None:
    """Until the commit that leads back, and the next try succeeds."""
    shop = await a_shop(servers)
    load = writes(shop)
    await load.flows()
    for step, name in RUN:
        moving = Moving(shop, step)
        await moving.stops()
        killer = Killer(servers, name, " -ISc " if name == HELPER else "")
        moving.go_on()
        outcome = await moving.ends()
        assert await killer.stop(), f"{step}: no {name}"
        assert name == HELPER or outcome == (DONE if step == "clean" else UNDONE)
        await load.flows(5)
    await passes(shop, load, shop.at)


@twisted_test
async def test_the_database_of_the_source_is_killed_at_every_step_of_the_pause(
    servers: Servers,
) -> None:
    """It is started again a second later, and the shop goes on where it is said to be."""
    shop = await a_shop(servers)
    load = writes(shop)
    await load.flows()
    for step in ("fence", "sync", "attach", "compare", "start", "verify", "commit", "clean"):
        moving = Moving(shop, step)
        await moving.stops()
        await moving.source.kill("postgres")
        moving.go_on()
        await sleep(1.0)
        shop.start_database(moving.source)
        assert await moving.ends() == (DONE if ORDER[step] > ORDER["compare"] else UNDONE)
        await shop.database_runs(moving.source)
        await load.flows(5)
    await passes(shop, load, shop.at)
