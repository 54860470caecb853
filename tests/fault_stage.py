"""A migration of the shop that waits before a step, so that something can be broken there.

Orders come all the time, and each writes a row and a file.
"""

from __future__ import annotations

import os
from typing import Any

from daemon_stage import Failed, Load
from servers_stage import Servers
from shop_stage import HERE, Shop
from stage_waiting import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from awesomeproxy.control.client import Unreachable
from awesomeproxy.migrate.steps import ORDER

STEPS = tuple(ORDER)
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
        self._write(step)
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

    def go_on(self, step: str = "none") -> None:
        """Go on, to another step that it waits before, or to the end."""
        self._stopped.unlink(missing_ok=True)
        self.step = step
        self._write(step)

    def _write(self, step: str) -> None:
        new = self._stop.with_suffix(".new")
        new.write_text(step)
        os.rename(new, self._stop)

    async def reached(self) -> str:
        """The step that it is in; empty: it has ended."""
        site = await self.shop.servers.daemon.site("shop")
        return str(site["migration"]["step"]) if site["migration"] else ""

    async def ends(self) -> str:
        """How it has ended, and the shop is where that says."""
        outcome = await self.end
        print(self.said)
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
