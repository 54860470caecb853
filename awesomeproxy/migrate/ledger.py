"""What a migration does to requests, counted on all nodes while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Literal

from twisted.internet.defer import Deferred

from awesomeproxy.migrate.host import Counted, Host
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.model import Counters, Ledger


class Account:
    """Counts, from one moment on, what becomes of the requests of all sites in a plan."""

    def __init__(self, host: Host, plan: Plan) -> None:
        self._host = host
        self._plan = plan
        self._names = tuple(member.name for member in plan.members if member.has_gate)
        self._before: Deferred[Counted] | None = None

    def begin(self) -> None:
        """Count from now on.  Nobody waits until all nodes have said where they begin."""
        self._before = self._host.counted(self._names)

    async def ledger(
        self,
        outcome: Literal["done", "rolled back"],
        reason: str,
        *,
        pause: float,
        steps: Mapping[str, float],
        bytes_moved: int,
    ) -> Ledger:
        """The account so far.

        :param pause: seconds from the hold to the release.
        :param steps: seconds that each step took.
        """
        main = self._plan.main
        before = {} if self._before is None else await self._before
        self._before = None
        counts = list(_since(before, await self._host.counted(self._names)))
        return Ledger(
            site=main.name,
            source=main.source,
            target=main.target,
            generation=self._host.placement(main.name).generation,
            outcome=outcome,
            reason=reason,
            **asdict(Counters.summed(count for count, _ in counts)),
            longest_added_wait=round(_longest(counts), 6),
            bytes_moved=bytes_moved,
            pause=round(pause, 6),
            steps=dict(steps),
        )


def _since(before: Counted, after: Counted) -> Iterator[tuple[Counters, float]]:
    """What has come to it, and the longest wait, of each that was asked both times."""
    for node, sites in after.items():
        for name, (counters, wait) in sites.items():
            if name in before.get(node, {}):
                yield counters.since(before[node][name][0]), wait


def _longest(counts: Sequence[tuple[Counters, float]]) -> float:
    return max((wait for count, wait in counts if count.released), default=0.0)
