"""The demo itself: two acts under load, and the count afterwards.

First act, ``POST``.  The site is migrated to and fro; then it is paused, its backend is
killed and started again, and it is resumed.  A paused site has nothing in flight, so the
kill meets no request; those that come meanwhile are held.  Nothing fails, although not
one of these requests could have been sent twice.

Second act, ``PUT``.  The backend is killed with requests in flight.  What happened to
them no proxy can know: the backend may have carried one out and died before it could
say so.  A ``POST`` in that place is *ambiguous*: sent again it might be done twice, so
it is answered 502 and counted.  A ``PUT`` may be sent again, for the site applies it
once; that is why it is ``PUT`` here, and why none fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from awesomeproxy.demo.report import Act, Report, ledger_line
from awesomeproxy.demo.script import DOWN, LIFE, Script
from awesomeproxy.demo.show import Show
from awesomeproxy.demo.stage import BACKENDS, HOST, SITE, Stage
from awesomeproxy.load.plan import Plan
from awesomeproxy.load.run import Run

CONNECTIONS = 2048  # of the clients at once, at most: all that are held have one each
TIMEOUT = 30.0  # seconds that a client waits for an answer

Part = Callable[["Performance", Run], Awaitable[None]]


class Performance:
    """One performance of a script."""

    def __init__(self, reactor: Any, script: Script, stage: Stage, show: Show) -> None:
        self.reactor = reactor
        self.script = script
        self.stage = stage
        self.show = show
        self.report = Report()
        self._began = 0.0  # of the act, by the reactor's clock

    async def play(self) -> Report:
        """Play it all and count.

        :raises RpcError, Unreachable: if the daemon does not do as it is told.
        :raises ChildFailed: if a process does not start.
        """
        script = self.script
        await self.act("POST", script.first, _first)
        if script.second:
            await self.act("PUT", script.second, _second)
        counters = (await self.stage.status())["counters"]
        self.report.ambiguous = counters["ambiguous"]
        self.report.retried = counters["retried"]
        return self.report

    async def act(self, method: str, seconds: float, part: Part) -> None:
        """Load the site for some time, play ``part`` meanwhile, and count the updates."""
        plan = Plan(
            url=f"{self.stage.url}/update/{{n}}",
            rate=self.script.rate,
            duration=seconds,
            connections=CONNECTIONS,
            method=method,
            timeout=TIMEOUT,
            expect=frozenset({200}),
            expect_body="update {n} by ",
        )
        load = Run(self.reactor, plan, self.show.update)
        self.show.say(f"{method} {HOST}/update/n: {plan.rate:g} requests/s for {seconds:g} s")
        self._began = self.reactor.seconds()
        loaded = Deferred.fromCoroutine(load.go())
        try:
            await part(self, load)
            await loaded
        finally:
            load.abandon()
        database = self.stage.database
        act = Act(
            method=method,
            result=load.result,
            count=database.count(method, load.result.acknowledged()),
            backends=database.backends(method),
        )
        self.report.acts.append(act)
        self.show.say(f"{act}\n")

    async def at(self, seconds: float) -> None:
        """Wait for a moment of the act; not at all if it is over."""
        wait = self._began + seconds - self.reactor.seconds()
        if wait > 0:
            await deferLater(self.reactor, wait)

    async def migrate(self, load: Run) -> None:
        """Move the site to the backend on which it is not."""
        target = _other((await self.stage.status())["backend"])
        load.result.mark(f"migrate to {target}")
        ledger = await self.stage.ask("migrate", site=SITE, to=target)
        self.report.ledgers.append(ledger)
        self.show.say(ledger_line(len(self.report.ledgers), ledger))


async def _first(performance: Performance, load: Run) -> None:
    script, stage, say = performance.script, performance.stage, performance.show.say
    for number in range(1, script.migrations + 1):
        await performance.at(script.every * number)
        await performance.migrate(load)
    if not script.restarts:
        return
    await performance.at(script.every * (script.migrations + 1))
    receipt = await stage.ask("pause", site=SITE)
    backend = receipt["backend"]
    say(f"  paused on {backend}, drained in {receipt['drained_in'] * 1000:.0f} ms")
    load.result.mark(f"paused, kill {backend}")
    await stage.kill(backend)
    await deferLater(performance.reactor, DOWN)
    await stage.restart(backend)
    resumed = await stage.ask("resume", site=SITE)
    load.result.mark("resume")
    say(
        f"  killed {backend} and started it again, then resumed:"
        f" {resumed['released']} held requests go on"
    )


async def _second(performance: Performance, load: Run) -> None:
    stage, say = performance.stage, performance.show.say
    for number in range(performance.script.kills):
        await performance.at(1.0 + LIFE * number)
        before = await stage.status()
        backend = before["backend"]
        load.result.mark(f"kill {backend}")
        await stage.kill(backend)
        await deferLater(performance.reactor, DOWN)
        await stage.restart(backend)
        load.result.mark(f"{backend} is back")
        # The proxy knocks; once it is let in, what it holds goes on within moments.
        await deferLater(performance.reactor, 1.0)
        counters, earlier = (await stage.status())["counters"], before["counters"]
        more = {name: counters[name] - earlier[name] for name in ("held", "retried")}
        say(
            f"  killed {backend} with requests in flight and started it again:"
            f" {more['retried']} sent again, {more['held']} held"
        )


def _other(backend: str) -> str:
    return BACKENDS[1 - BACKENDS.index(backend)]
