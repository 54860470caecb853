"""Nodes of a cluster that share a real Redis, without a data plane, each with a clock of its own.

What they ask of Redis takes its time; all else happens when a test lets a node's time go on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from redis_stage import Redis
from stage_waiting import reactor
from twisted.internet.task import Clock

from awesomeproxy import config
from awesomeproxy.cluster.lease import STEPS
from awesomeproxy.cluster.redis import Fellows
from awesomeproxy.model import Mode, Observed, Placement
from awesomeproxy.proxy.permit import Permit
from awesomeproxy.registry.interface import Entry
from awesomeproxy.registry.redis import RedisRegistry
from awesomeproxy.registry.view import Change

LEASE = 10.0
TABLES = '[node]\nname = "{name}"\n[[listen]]\nendpoint = "tcp:80"\n[cluster]\n'


class Time(Clock):
    """A node's clock; its commands are real processes."""

    spawnProcess = reactor.spawnProcess


class Host:
    """What a node does when it is told to, noted."""

    def __init__(self, name: str, redis: Redis, prefix: str, **keys: str) -> None:
        lines = {
            "redis": f'"redis://127.0.0.1:{redis.port}"',
            "prefix": f'"{prefix}"',
            "lease": str(LEASE),
            **keys,
        }
        text = TABLES.format(name=name) + "\n".join(f"{key} = {of}" for key, of in lines.items())
        self.name = name
        self.settings = config.parse(text, name)
        self.reactor = Time()
        self.reactor.advance(1000.0)
        self.permit = Permit()
        self.placements: dict[str, Placement] = {}
        self.drains = True  # whether it has drained what is held, or ever will
        self.withheld = ""
        self.did: list[str] = []
        self.taken: list[Entry] = []
        self.heard: list[tuple[str, str]] = []
        self.registry: RedisRegistry
        self.fellows: Fellows

    async def open(self, directory: Path) -> None:
        """Read the registry, and be about to join."""
        assert self.settings.cluster is not None
        directory.mkdir(exist_ok=True)
        self.registry = await RedisRegistry.open(
            reactor, self.settings.cluster, self.name, directory
        )
        self.fellows = Fellows(self.registry, self, self.reactor.seconds)
        self.registry.on_change.append(self.adopt_all)
        self.fellows.subscribe(lambda what, name: self.heard.append((what, name)))
        self.placements = dict(self.registry.view.placements)

    def adopt_all(self, change: Change) -> None:
        """Hold and open as is written, and report what is drained."""
        self.placements = dict(self.registry.view.placements)
        for observed in self.held():
            if observed.site in change.placements:
                self.fellows.report(observed, {})

    def held(self) -> list[Observed]:
        return [
            Observed(each.site, each.generation, each.backend, each.mode)
            for each in self.placements.values()
            if each.mode is Mode.HOLDING and self.drains
        ]

    def withhold(self, why: str) -> None:
        if why != self.withheld:
            self.did.append(f"withhold: {why}" if why else "withhold no more")
        self.withheld = why

    def cut_all(self) -> int:
        self.did.append("cut")
        return 0

    def resume_serving(self) -> None:
        self.did.append("resume")

    def take_up(self, entries: Sequence[Entry]) -> None:
        self.taken += entries

    def lapse(self) -> None:
        self.did.append("lapse")

    # What tests do with it

    async def settle(self) -> None:
        """Wait until Redis has answered all that was asked of it, if it is there."""
        if self.registry.link.ready:
            await self.registry.link.call("hash", "beats", firm=False)

    async def pass_time(self, leases: float) -> None:
        """Let it go on, step by step."""
        for _ in range(round(leases * STEPS)):
            self.reactor.advance(LEASE / STEPS)
            await self.settle()

    def deafen(self) -> None:
        """Have it hear nothing any more, as one that is frozen or off."""
        self.registry.link._channels[f"{self.registry.link.keys}changes".encode()] = lambda _: None

    async def freeze(self, leases: float) -> None:
        """Let it go on in one step: nothing was done meanwhile."""
        self.reactor.advance(leases * LEASE)
        await self.settle()

    def state(self, of: Host | str) -> str:
        """Of which state another is, as this one knows."""
        name = of if isinstance(of, str) else of.name
        return {each.name: each.state for each in self.fellows.members()}.get(name, "unknown")

    async def place(self, name: str, mode: Mode = Mode.HOLDING) -> Placement:
        """Have it held, or opened, on ``old``."""
        before = self.registry.view.placements.get(name)
        new = replace(before or Placement(name, "old"), mode=mode)
        return await self.registry.place(new, before.generation if before else 0)


@asynccontextmanager
async def fellows(
    names: str, redis: Redis, directory: Path, **keys: str
) -> AsyncIterator[list[Host]]:
    """Nodes called by the words in ``names``; ``keys`` are those of ``[cluster]``."""
    hosts = [Host(name, redis, directory.name, **keys) for name in names.split()]
    try:
        for host in hosts:
            await host.open(directory / host.name)
            await host.fellows.join()
        yield hosts
    finally:
        for host in hosts:
            if hasattr(host, "fellows"):
                await host.fellows.leave()
                await host.registry.close()


async def together(hosts: Sequence[Any], leases: float) -> None:
    """Let time go on for several."""
    for _ in range(round(leases * STEPS)):
        for host in hosts:
            host.reactor.advance(LEASE / STEPS)
        for host in hosts:
            await host.settle()
