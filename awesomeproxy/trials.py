"""Trials of held databases: those who are going to use one may connect before it is opened.

A migration that carries a database starts the servers of its sites, and asks whether they are
well, while all of them are held.  Such a server may need the database for its answer.  So
those addresses, and nobody else, are let past the database's gate, to where it is going to
be: on each node, because a server may reach it through any of them.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.model import Generation, Placement, Site

TRIAL_IN = 2.0  # seconds that other nodes have to let servers try a database


class Host(Protocol):
    """What is asked of the node."""

    cluster: ICluster
    sites: dict[str, Site]
    placements: dict[str, Placement]

    def adopt(self, placement: Placement) -> None:
        """Make every worker converge to ``placement``."""


class Trials:
    """Those that go on, on this node."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._admitted: dict[str, frozenset[str]] = {}

    def __repr__(self) -> str:
        return f"<Trials: {', '.join(self._admitted) or 'none'}>"

    def admitted(self, name: str) -> frozenset[str]:
        """The addresses that pass the gate of a database, though it is held."""
        return self._admitted.get(name, frozenset())

    def admit(self, plan: Plan) -> Deferred[None]:
        """Let the servers that sites are going to have connect to held databases."""
        return Deferred.fromCoroutine(self._admit(plan))

    async def _admit(self, plan: Plan) -> None:
        held = [member.name for member in plan.members if member.is_database]
        if held:
            admits = await self._addresses(plan)
            tried = {}
            for name in held:
                placement = self._host.placements[name]
                self.begin(name, placement.backend, placement.generation, admits)
                tried[name] = (placement.backend, placement.generation, admits)
            if not self._host.cluster.alone:
                await self._host.cluster.ask("trial", {"tried": tried}, TRIAL_IN)

    async def _addresses(self, plan: Plan) -> list[str]:
        """From where the servers of a plan's sites connect."""
        names = {
            server.host or "127.0.0.1"
            for member in plan.members
            if member.is_site
            for server in self._host.sites[member.name].backends[member.target].servers
        }
        found = {address for name in names for address in await deferToThread(_resolved, name)}
        return list(found)

    def begin(self, name: str, backend: str, generation: Generation, admits: list[str]) -> None:
        """Have a held database on ``backend`` for those who try it; a newer placement ends that.

        :param admits: the addresses of who may connect to it.
        """
        placement = self._host.placements.get(name)
        if placement is not None and placement.generation == generation:
            self._admitted[name] = frozenset(admits)
            self._host.adopt(replace(placement, backend=backend))

    def dismiss(self, plan: Plan) -> None:
        """Let nobody past them any more."""
        for member in plan.members:
            if self.end(member.name):
                self._host.adopt(self._host.placements[member.name])

    def end(self, name: str) -> bool:
        """There is no trial of it any more; return whether there was one."""
        return self._admitted.pop(name, None) is not None


def _resolved(name: str) -> list[str]:
    """The addresses of a host; none if it has no such name."""
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(name, None)]
    except OSError:
        return []
