"""What a migration does to requests, counted on all nodes while it runs.

Each node counts from its own start on, so what it has counted meanwhile is known of those that
say it twice, and have not begun anew in between.  The others are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Literal

from twisted.internet.defer import Deferred, succeed

from awesomeproxy.cluster.interface import MEMBERS
from awesomeproxy.migrate.host import Counted, Counts, Host
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.model import Counters, Ledger


class Account:
    """Counts, from one moment on, what becomes of the requests of all sites in a plan."""

    def __init__(self, host: Host, plan: Plan) -> None:
        self._host = host
        self._plan = plan
        self._names = tuple(member.name for member in plan.members if member.has_gate)
        self._before: Deferred[Counted] = succeed({})
        self._lives: Mapping[str, int] = {}

    def begin(self) -> None:
        """Count from now on.  Nobody waits until all nodes have said where they begin."""
        self._lives = self._members()
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
        before, after = await self._before, await self._host.counted(self._names)
        lives = self._members()
        stayed = {node for node, _ in self._lives.items() & lives.items()}
        told = before.keys() & after.keys() & stayed
        counts = [each for node in told for each in _since(before[node], after[node])]
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
            silent=tuple(sorted((self._lives.keys() | lives.keys()) - told)),
        )

    def _members(self) -> dict[str, int]:
        """The nodes that may have requests, with their lives."""
        members = self._host.cluster.members()
        return {member.name: member.life for member in members if member.state in MEMBERS}


def _since(before: Counts, after: Counts) -> Iterator[tuple[Counters, float]]:
    """What has come to it on a node, and the longest wait, of each that it has told twice."""
    for name in before.keys() & after.keys():
        (earlier, _), (counters, wait) = before[name], after[name]
        yield counters.since(earlier), wait


def _longest(counts: Sequence[tuple[Counters, float]]) -> float:
    return max((wait for count, wait in counts if count.released), default=0.0)
