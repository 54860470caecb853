"""A shop moves between two servers, and what takes part in it is killed, at every step in turn.

Until the commit everything leads back to the source, after it everything leads to the
target, and no order is lost, or there twice.  None fails, either, unless the daemon itself
was killed, with which the connections of its clients die.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

from daemon_stage import twisted_fixture, twisted_test
from fault_stage import DONE, STEPS, UNDONE, Moving, a_shop, orders, sleep
from servers_stage import Server, Servers, two_servers
from shop_stage import passes
from stage_waiting import until_async
from twisted.internet.threads import deferToThread

from awesomeproxy.migrate.steps import ORDER

servers = twisted_fixture(two_servers)

HELPER = "python3"  # what closes directories; a new one may take its place
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
    daemon = servers.daemon
    load = orders(shop)
    await load.flows()

    async def ended() -> dict[str, Any] | None:
        newest = (await daemon.ask("migrations", site="shop", limit=1))["migrations"][0]
        return newest if newest["state"] in (DONE, UNDONE) else None

    for step in STEPS:
        moving = Moving(shop, step)
        await moving.stops()
        await daemon.kill()
        moving.go_on()
        await moving.end
        await daemon.start()
        committed = ORDER[step] > ORDER["commit"]
        if step != "check":  # before that there is nothing to be ended
            newest = await until_async(ended, f"the end of what died before {step}")
            assert newest is not None
            assert newest["state"] == (DONE if committed else UNDONE), step
        shop.at = moving.target if committed else moving.source
        await daemon.until_site("shop", backend=shop.at.name, mode="open")
        await load.flows(5)
    result = await load.stop()
    acknowledged = set(result.acknowledged())
    assert len(acknowledged) > len(STEPS)
    assert set(shop.orders(shop.at).values()) == {1}
    assert acknowledged <= set(shop.orders(shop.at))
    assert acknowledged <= shop.files(shop.at)


class Killer:
    """Kills the first process of a mover that it sees on a server."""

    def __init__(self, servers: Servers, name: str) -> None:
        self.killed = False
        self._name = name
        self._spaces = {os.stat(f"/proc/{_keeper(each)}/ns/net").st_ino for each in servers.both}
        self._enough = threading.Event()
        self._hunt = deferToThread(self._look)

    def _look(self) -> None:
        while not self._enough.is_set() and not self.killed:
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    self._kill(int(pid))
            self._enough.wait(0.002)

    def _kill(self, pid: int) -> None:
        at = Path(f"/proc/{pid}")
        if self.killed or (at / "comm").read_text().strip() != self._name:
            return
        words = (at / "cmdline").read_bytes().split(b"\0")
        if os.stat(at / "ns/net").st_ino in self._spaces and b"/srv/www/shop" not in words[2:3]:
            os.kill(pid, signal.SIGKILL)
            self.killed = True

    async def stop(self) -> bool:
        """Whether it has killed one."""
        self._enough.set()
        await self._hunt
        return self.killed


def _keeper(server: Server) -> int:
    assert server.keeper is not None
    return server.keeper.pid


@twisted_test
async def test_a_process_of_a_mover_is_killed_at_every_step(servers: Servers) -> None:
    """Until the commit that leads back, and the next try succeeds."""
    shop = await a_shop(servers)
    load = orders(shop)
    await load.flows()
    for step, name in RUN:
        moving = Moving(shop, step)
        await moving.stops()
        killer = Killer(servers, name)
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
    load = orders(shop)
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
