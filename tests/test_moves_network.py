"""A shop moves between two servers, and cables are pulled, or a disk is full.

What a network does not carry for some seconds it carries then.  What takes longer, or does
not fit, leads back to the source until the commit, and to the target after it.  No order
fails, is lost, or there twice.
"""

from __future__ import annotations

from daemon_stage import twisted_fixture, twisted_test
from fault_stage import BLIP, DONE, UNDONE, Moving, a_shop, pull_cables, sleep, writes
from servers_stage import Servers, two_servers
from shop_stage import passes

servers = twisted_fixture(two_servers)

WWW, DATABASE = "/srv/www", "/srv"  # disks


@twisted_test
async def test_the_network_fails_for_some_seconds_at_every_step(servers: Servers) -> None:
    """The cable of the target, and that of the source, are pulled for a while."""
    shop = await a_shop(servers)
    load = writes(shop)
    await load.flows()
    steps = ("presync", "drain", "sync", "attach", "compare", "start", "clean")
    await pull_cables(shop, load, steps)
    await passes(shop, load, shop.at)


@twisted_test
async def test_the_network_stays_away_until_the_migration_gives_up(servers: Servers) -> None:
    """Without the target the source serves, without the source it is waited for."""
    shop = await a_shop(servers)
    load = writes(shop)
    await load.flows()
    moving = Moving(shop, "attach")
    await moving.stops()
    moving.target.cut()
    moving.go_on()
    answered = load.run.result.finished
    while load.run.result.finished < answered + 20:  # though the target is not there yet
        assert not moving.end.called
        await sleep(0.1)
    moving.target.cut(off=False)
    assert await moving.ends() == UNDONE
    moving = Moving(shop, "sync")
    await moving.stops()
    moving.source.cut()
    moving.go_on()
    while await moving.reached() != "roll back":
        await sleep(0.5)
    await sleep(2.0)
    assert await moving.reached() == "roll back"
    moving.source.cut(off=False)
    assert await moving.ends() == UNDONE
    moving = Moving(shop, "clean")
    await moving.stops()
    moving.source.cut()
    moving.go_on()
    await sleep(BLIP)
    await load.flows()
    moving.source.cut(off=False)
    assert await moving.ends() == DONE
    await passes(shop, load, shop.at)


@twisted_test
async def test_the_disk_of_the_target_is_full_at_every_step(servers: Servers) -> None:
    """What does not fit is undone, and fits when there is room."""
    shop = await a_shop(servers)
    load = writes(shop)
    await load.flows()
    for step, disk in (("check", WWW), ("presync", WWW), ("sync", WWW), ("sync", DATABASE)):
        moving = Moving(shop, step)
        await moving.stops()
        target = moving.target
        target.run("sh", "-c", f"cat /dev/zero >{disk}/filler 2>/dev/null || true")
        moving.go_on()
        assert await moving.ends() == UNDONE
        assert "o space left" in moving.said["reason"] or "make room" in moving.said["reason"]
        target.run("rm", f"{disk}/filler")
        await load.flows(5)
    if not target.runs("postgres"):  # it ends if it cannot write its log
        shop.start_database(target)
    await shop.database_runs(target)
    moving = Moving(shop, "clean")
    await moving.stops()
    moving.go_on()
    assert await moving.ends() == DONE
    await passes(shop, load, shop.at)
