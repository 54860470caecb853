"""Who has drained: telling the others that this node has, and asking whether all have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from awesomeproxy.cluster.alone import reported
from awesomeproxy.cluster.interface import Roll
from awesomeproxy.model import Observed, Placement, Report
from awesomeproxy.registry.interface import Conflict, Doubtful, RegistryError, Unreachable
from awesomeproxy.registry.records import packed
from awesomeproxy.registry.redis import RedisRegistry

log = Logger()

_FIELDS = [field.name for field in fields(Report)]


class Rolls:
    """The reports of this node, and the roll-calls that it makes."""

    def __init__(self, registry: RedisRegistry, gone: Callable[[], None]) -> None:
        """
        :param gone: is called when the registry takes this node for none of the members.
        """
        self._registry = registry
        self._gone = gone

    def report(self, observed: Observed, more: Mapping[str, Any]) -> None:
        """See :meth:`ICluster.report`."""
        if not self._registry.life or not self._registry.link.connected:
            return  # it is reported when this node has joined, or has come back
        Deferred.fromCoroutine(self.send(observed, more)).addErrback(self._not_sent)

    async def send(self, observed: Observed, more: Mapping[str, Any]) -> None:
        """The same, for one who waits for it.

        :raise RegistryError: it may not have been heard.
        """
        registry = self._registry
        text = packed({**more, **asdict(reported(registry.node, observed))})
        answer = await registry.link.call(
            "report",
            registry.node,
            str(registry.life),
            observed.site,
            str(observed.generation),
            text,
        )
        if answer == "GONE":
            self._gone()

    def _not_sent(self, failure: Any) -> None:
        failure.trap(RegistryError)
        if not failure.check(Unreachable, Doubtful):
            log.error("a report could not be sent: {why}", why=failure.getErrorMessage())

    async def call(self, held: Sequence[Placement]) -> Roll:
        """See :meth:`ICluster.roll`."""
        registry = self._registry
        asked = packed([[each.site, str(each.generation)] for each in held])
        answer = await registry.link.call(
            "certify", registry.node, str(registry.life), asked, firm=True
        )
        word, *lines = answer.split("\n")
        if word == "GONE":
            self._gone()
            raise Unreachable("this node was taken for dead; it joins again by itself")
        if word == "STALE":
            raise await self._conflict(held)
        if word == "WAIT":
            pairs = (line.split(" ") for line in lines)
            return Roll({}, tuple((name, node) for name, node in pairs))
        reports: dict[str, list[Report]] = {each.site: [] for each in held}
        for line in lines:
            name, _, text = line.split(" ", 2)
            said = json.loads(text)
            reports[name].append(Report(**{key: said[key] for key in _FIELDS}))
        return Roll(
            {name: tuple(sorted(found, key=_node)) for name, found in reports.items()},
            firm=await self._registry.link.kept(),
        )

    async def _conflict(self, held: Sequence[Placement]) -> Conflict:
        """What was changed of what is held."""
        await self._registry.catch_up()
        stored = self._registry.view.placements
        for each in held:
            if (found := stored.get(each.site)) is None or found.generation != each.generation:
                return Conflict(each.site, each.generation, found)
        first = held[0]  # it is held no more, and is not heard of yet: the next look tells
        return Conflict(first.site, first.generation, stored.get(first.site))


def _node(report: Report) -> str:
    return report.node
