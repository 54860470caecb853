"""A node that has no others: what it has observed itself is all there is to know."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from zope.interface import implementer

from awesomeproxy import __version__
from awesomeproxy.cluster.interface import ICluster, Member, Roll
from awesomeproxy.model import Observed, Placement, Report
from awesomeproxy.registry.interface import Conflict, NotAllowed

LEASE = 0.0  # seconds; it is never over: nobody counts it


class Host(Protocol):
    """What is asked of the node."""

    def placement(self, name: str) -> Placement:
        """Where something is placed."""

    def observed(self, name: str) -> Observed:
        """What the workers report of it; KeyError if it is not served."""


def reported(node: str, observed: Observed) -> Report:
    """A node's line in a receipt."""
    return Report(
        node=node,
        worker="daemon",
        generation=observed.generation,
        in_flight=observed.in_flight,
        connections=observed.connections,
        held=observed.held,
        closed=observed.closed,
        ambiguous=observed.ambiguous,
    )


@implementer(ICluster)
class Alone:
    """The cluster of one node."""

    alone = True
    identity = ""
    counters: Mapping[str, int] = MappingProxyType({})

    def __init__(self, host: Host, node: str) -> None:
        """
        :param node: its name.
        """
        self._host = host
        self.node = node
        self._began = time.time()
        self._answers: dict[str, Callable[..., Any]] = {}

    def __repr__(self) -> str:
        return f"<Alone: {self.node}>"

    async def join(self) -> None:
        """There is nobody to be joined."""

    async def leave(self) -> None:
        """There is nobody to be left."""

    def now(self) -> float:
        """Unix time."""
        return time.time()

    def members(self) -> list[Member]:
        """This node."""
        return [Member(self.node, 0, "live", "serve", LEASE, 0.0, __version__, "", self._began)]

    def report(self, observed: Observed, more: Mapping[str, Any]) -> None:
        """There is nobody to tell: :meth:`roll` looks for itself."""

    def roll(self, held: Sequence[Placement]) -> Deferred[Roll]:
        """Whether this node has drained them; see :meth:`ICluster.roll`."""
        reports: dict[str, tuple[Report, ...]] = {}
        missing = []
        for each in held:
            stored = self._host.placement(each.site)
            if stored.generation != each.generation:
                return fail(Conflict(each.site, each.generation, stored))
            observed = self._host.observed(each.site)
            if observed.drained and observed.generation >= each.generation:
                reports[each.site] = (reported(self.node, observed),)
            else:
                missing.append((each.site, self.node))
        return succeed(Roll(reports, tuple(missing)))

    def ask(
        self,
        question: str,
        params: Mapping[str, Any],
        timeout: float,
        nodes: Sequence[str] | None = None,
    ) -> Deferred[dict[str, Any]]:
        """This node's own answer."""
        if question not in self._answers or (nodes is not None and self.node not in nodes):
            return succeed({})
        answer = maybeDeferred(self._answers[question], **params)
        return answer.addCallback(lambda value: {self.node: value})

    def answers(self, question: str, function: Callable[..., Any]) -> None:
        """Have ``function`` answer ``question``."""
        self._answers[question] = function

    def fence(self, node: str, why: str) -> Deferred[Member]:
        """It cannot be: who would?"""
        return fail(NotAllowed(f"{self.node} is in no cluster; there is nobody to be fenced"))

    def expire(self, node: str) -> Deferred[bool]:
        """Never."""
        return succeed(False)

    def remove(self, node: str) -> Deferred[None]:
        """There is nobody else."""
        return fail(NotAllowed(f"{self.node} is in no cluster; there is nobody to be removed"))

    def trouble(self) -> str:
        """None."""
        return ""

    def subscribe(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        """Nothing ever happens to others."""
        return lambda: None
