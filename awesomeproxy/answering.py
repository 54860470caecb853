"""What a node answers when another node asks, and asks of all nodes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from awesomeproxy import __version__
from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.migrate.host import Counted
from awesomeproxy.migrating import Migrating
from awesomeproxy.model import Counters, Generation, Observed, Placement, Settings
from awesomeproxy.proxy.plane import Plane
from awesomeproxy.trials import Trials

ANSWER_IN = 1.0  # seconds; who has not answered by then is left out


class Host(Protocol):
    """What is asked of the node."""

    cluster: ICluster
    plane: Plane
    settings: Settings
    trials: Trials

    def served(self) -> list[str]:
        """All sites and databases, called as their placements are."""

    def placement(self, name: str) -> Placement:
        """Where something is placed."""

    @property
    def migrating(self) -> Migrating:
        """Its migrations."""


class Answering:
    """The questions that this node can answer, and their answers; see :meth:`ICluster.ask`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def begin(self) -> None:
        """Answer from now on."""
        cluster = self._host.cluster
        cluster.answers("status", self.status)
        cluster.answers("observed", self.observed)
        cluster.answers("counters", self.counters)
        cluster.answers("cut", self.cut)
        cluster.answers("stop", self.stop)
        cluster.answers("trial", self.trial)

    # Answers

    def status(self, names: Sequence[str] | None = None, *, counts: bool = False) -> dict[str, Any]:
        """What this node has to tell of itself, and of its sites and databases.

        :param names: only these, called as their placements are; None: all that are not *at
            rest*, which is idle, open, well and up to date.
        :param counts: tell the counters, too: of all of which something was counted, as their
            numbers.
        """
        host, plane = self._host, self._host.plane
        rows, counted = {}, {}
        for seen in self._seen(host.served() if names is None else names):
            if names is not None or not self._is_at_rest(seen):
                rows[seen.site] = plain(seen)
            if counts and any(seen.counters):
                counted[seen.site] = list(seen.counters)
        return {
            "version": __version__,
            "connections": len(plane.clients),
            "held": plane.held.requests,
            "sites": rows,
            "counts": counted,
        }

    def _is_at_rest(self, seen: Observed) -> bool:
        idle = not (seen.in_flight or seen.held or seen.tunnels or seen.connections)
        behind = seen.generation != self._host.placement(seen.site).generation
        return idle and seen.state == "open" and not behind and not seen.trouble

    def observed(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """What is in flight for some."""
        return [plain(seen) for seen in self._seen(names)]

    def counters(self, names: Sequence[str]) -> dict[str, Any]:
        """What has become of the requests of some, since this node was started."""
        return {
            seen.site: {**asdict(seen.counters), "longest_wait": seen.longest_wait}
            for seen in self._seen(names)
        }

    def cut(self, name: str) -> int:
        """Break off what is in flight; answer with how much that was."""
        return self._host.plane.cut(name)

    def trial(self, tried: Mapping[str, tuple[str, Generation, list[str]]]) -> int:
        """Let servers try databases that are held; see :meth:`Trials.begin`."""
        for name, (backend, generation, admits) in tried.items():
            self._host.trials.begin(name, backend, generation, admits)
        return len(tried)

    def stop(self, site: str, reason: str) -> Deferred[dict[str, str]]:
        """Call off a migration; see :meth:`Migrating.stop_here`."""
        return Deferred.fromCoroutine(self._host.migrating.stop_here(site, reason))

    def _seen(self, names: Sequence[str]) -> list[Observed]:
        plane = self._host.plane
        return [seen for name in names if (seen := plane.observed(name)) is not None]

    # Questions

    async def cut_everywhere(self, name: str) -> int:
        """Break off what is in flight on all nodes; return how much that was."""
        answers: dict[str, int] = await self._host.cluster.ask("cut", {"name": name}, ANSWER_IN)
        return sum(answers.values())

    async def held(self, names: Sequence[str]) -> int:
        """How many requests and connections wait at some gates, on all nodes that answer."""
        answers = await self._host.cluster.ask("observed", {"names": list(names)}, ANSWER_IN)
        return sum(seen["held"] for rows in answers.values() for seen in rows)

    async def counted(self, names: Sequence[str]) -> Counted:
        """What has become of requests, on each node that answers."""
        answers = await self._host.cluster.ask("counters", {"names": list(names)}, ANSWER_IN)
        return {
            node: {name: _counts(**each) for name, each in sites.items()}
            for node, sites in answers.items()
        }


def _counts(longest_wait: float, **counters: int) -> tuple[Counters, float]:
    return Counters(**counters), longest_wait


def plain(seen: Observed) -> dict[str, Any]:
    """What was observed, but for what was counted, as plain JSON values."""
    return {
        "site": seen.site,
        "generation": seen.generation,
        "backend": seen.backend,
        "mode": seen.mode.value,
        "state": seen.state,
        "in_flight": seen.in_flight,
        "held": seen.held,
        "held_bytes": seen.held_bytes,
        "tunnels": seen.tunnels,
        "connections": seen.connections,
        "closed": seen.closed,
        "ambiguous": seen.ambiguous,
        "trouble": seen.trouble,
    }
