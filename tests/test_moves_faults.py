"""A shop moves between two servers, and whatever takes part in it dies, at every step in turn.

Orders come all the time, and each writes a row and a file.  A hook has the migration wait
before a step; then something is broken, and it goes on.  Until the commit everything leads
back to the source, after it everything leads to the target, and no order is lost, or there
twice.  None fails, either, unless the daemon itself was killed, with which the connections
of its clients die.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

from daemon_stage import Failed, Load, twisted_fixture, twisted_test
from servers_stage import Server, Servers, two_servers
from shop_stage import HERE, Shop, passes
from stage_waiting import reactor, until, until_async
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from awesomeproxy.control.client import Unreachable
from awesomeproxy.migrate.steps import ORDER

servers = twisted_fixture(two_servers)

STEPS = tuple(ORDER)
MOVERS = ("rsync", "pg_dump", "psql", "python3")  # what movers run on nodes
WWW, DATABASE = "/srv/www", "/srv"  # disks
DONE, UNDONE = "done", "rolled back"


class Moving:
    """A migration that waits before a step."""

    def __init__(self, shop: Shop, step: str) -> None:
        """Begin it, to wherever the shop is not."""
        self.shop = shop
        self.step = step
        self.source = shop.at
        self.target = next(each for each in shop.servers.both if each is not self.source)
        self._stop = shop.servers.daemon.directory / "stop"
        self._stopped = shop.servers.daemon.directory / "stopped"
        self._stopped.unlink(missing_ok=True)
        self._stop.write_text(step)
        self.said: dict[str, Any] = {}
        self.end: Deferred[str] = Deferred.fromCoroutine(self._run())

    async def _run(self) -> str:
        try:
            self.said = await self.shop.servers.daemon.ask(
                "migrate",
                site="shop",
                to=self.target.name,
                databases={"shop": self.target.name},
                max_pause=40.0,
            )
        except (Failed, Unreachable) as problem:
            self.said = {"outcome": UNDONE, "reason": str(problem)}
        return str(self.said["outcome"])

    async def stops(self) -> None:
        """Wait until it has come to the step."""
        while not (self._stopped.exists() or self.end.called):  # which is bounded
            await sleep(0.02)
        assert self._stopped.exists(), f"{self.step}: {self.said}"

    def go_on(self) -> None:
        self._stop.unlink()

    async def ends(self) -> str:
        """How it has ended, and the shop is where that says."""
        outcome = await self.end
        print(self.step, self.said["outcome"], self.said["reason"], self.said.get("pause"))
        at = self.target if outcome == DONE else self.source
        site = await self.shop.servers.daemon.site("shop")
        assert (site["backend"], site["mode"]) == (at.name, "open")
        self.shop.at = at
        return outcome


async def a_shop(servers: Servers) -> Shop:
    """One that moves with as little work as can be."""
    words = str([str(HERE / "stop.sh"), str(servers.daemon.directory)]).replace("'", '"')
    hooks = [f'[[hooks]]\nstep = "{step}"\ncommand = {words}\ntime = "60s"' for step in STEPS]
    return await Shop.build(servers, "dump", "\n".join(hooks))


def orders(shop: Shop) -> Load:
    return shop.servers.daemon.load(method="POST", rate=20.0, duration=600.0, timeout=60.0)


async def sleep(seconds: float) -> None:
    await deferLater(reactor, seconds)


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
            assert newest["state"] == (DONE if committed else UNDONE), step
        shop.at = moving.target if committed else moving.source
        await daemon.until_site("shop", backend=shop.at.name, mode="open")
        await load.flows()
        print(step, (await daemon.site("shop"))["backend"])
    result = await load.stop()
    acknowledged = set(result.acknowledged())
    assert len(acknowledged) > len(STEPS)
    assert set(shop.orders(shop.at).values()) == {1}
    assert acknowledged <= set(shop.orders(shop.at))
    assert acknowledged <= shop.files(shop.at)


class Killer:
    """Kills the first process of a mover that it sees on a server."""

    def __init__(self, servers: Servers) -> None:
        self.killed = ""
        self._spaces = {os.stat(f"/proc/{_keeper(each)}/ns/net").st_ino for each in servers.both}
        self._enough = threading.Event()
        self._hunt = deferToThread(self._look)

    def _look(self) -> None:
        while not self._enough.is_set() and not self.killed:
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    self._kill(int(pid))

    def _kill(self, pid: int) -> None:
        at = Path(f"/proc/{pid}")
        name = (at / "comm").read_text().strip()
        if name not in MOVERS or self.killed:
            return
        words = (at / "cmdline").read_bytes().split(b"\0")
        if os.stat(at / "ns/net").st_ino in self._spaces and b"/srv/www/shop" not in words[2:3]:
            os.kill(pid, signal.SIGKILL)
            self.killed = name

    async def stop(self) -> str:
        """What it has killed."""
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
    for step in ("check", "presync", "fence", "sync", "attach", "verify", "clean"):
        moving = Moving(shop, step)
        await moving.stops()
        killer = Killer(servers)
        moving.go_on()
        outcome = await moving.ends()
        print(step, await killer.stop(), outcome)
        assert outcome == (DONE if step == "clean" else UNDONE)
        assert killer.killed
        await load.flows()
    await passes(shop, load, shop.at)


@twisted_test
async def test_the_database_of_the_source_is_killed_at_every_step_of_the_pause(
    servers: Servers,
) -> None:
    """It is started again a second later, and the shop goes on where it is said to be."""
    shop = await a_shop(servers)
    load = orders(shop)
    await load.flows()
    for step in ("fence", "sync", "attach", "start", "verify", "commit", "release", "clean"):
        moving = Moving(shop, step)
        await moving.stops()
        await moving.source.kill("postgres")
        moving.go_on()
        await sleep(1.0)
        shop.start_database(moving.source)
        outcome = await moving.ends()
        if step in ("fence", "sync", "verify"):
            assert outcome == UNDONE
        if step in ("commit", "release", "clean"):
            assert outcome == DONE
        await load.flows()
    await passes(shop, load, shop.at)


@twisted_test
async def test_the_network_fails_for_some_seconds_at_every_step(servers: Servers) -> None:
    """The cable of the target, and that of the source, are pulled for a while."""
    shop = await a_shop(servers)
    load = orders(shop)
    await load.flows()
    for side in ("target", "source"):
        for step in ("presync", "drain", "sync", "attach", "start", "verify", "release", "clean"):
            moving = Moving(shop, step)
            await moving.stops()
            server = getattr(moving, side)
            server.cut()
            moving.go_on()
            await sleep(2.0)
            server.cut(off=False)
            await moving.ends()
            await load.flows()
    await passes(shop, load, shop.at)


@twisted_test
async def test_the_network_stays_away_until_the_migration_gives_up(servers: Servers) -> None:
    """Without the target the source serves, without the source it is waited for."""
    shop = await a_shop(servers)
    load = orders(shop)
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
    await sleep(12.0)
    assert not moving.end.called
    moving.source.cut(off=False)
    assert await moving.ends() == UNDONE
    moving = Moving(shop, "clean")
    await moving.stops()
    moving.source.cut()
    moving.go_on()
    await load.flows()
    assert await moving.ends() == DONE
    moving.source.cut(off=False)
    await passes(shop, load, shop.at)


@twisted_test
async def test_the_disk_of_the_target_is_full_at_every_step(servers: Servers) -> None:
    """What does not fit is undone, and fits when there is room."""
    shop = await a_shop(servers)
    load = orders(shop)
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
        await load.flows()
    if not target.runs("postgres"):  # it ends if it cannot write its log
        shop.start_database(target)
    await shop.database_runs(target)
    moving = Moving(shop, "clean")
    await moving.stops()
    moving.go_on()
    assert await moving.ends() == DONE
    await passes(shop, load, shop.at)
