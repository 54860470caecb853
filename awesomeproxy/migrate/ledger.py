"""What a migration does to requests, counted while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Literal

from awesomeproxy.migrate.host import Host
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.model import Counters, Ledger, Observed


class Account:
    """Counts, from one moment on, what becomes of the requests of all sites in a plan."""

    def __init__(self, host: Host, plan: Plan) -> None:
        self._host = host
        self._plan = plan
        self._counted: tuple[str, ...] = tuple(m.name for m in plan.members if m.has_gate)
        self._before: dict[str, Counters] = {}
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._before = {}
        for name in self._counted:
            with suppress(KeyError):  # a dead daemon's, and it is served no more
                self._before[name] = self._host.observed(name).counters

    def ledger(
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
        seen = [self._host.observed(name) for name in self._before]
        counts = [each.counters.since(self._before[each.site]) for each in seen]
        return Ledger(
            site=main.name,
            source=main.source,
            target=main.target,
            generation=self._host.placement(main.name).generation,
            outcome=outcome,
            reason=reason,
            **asdict(_sum(counts)),
            longest_added_wait=round(_longest(seen, counts), 6),
            bytes_moved=bytes_moved,
            pause=round(pause, 6),
            steps=dict(steps),
        )


def _sum(counts: Sequence[Counters]) -> Counters:
    return Counters(*(sum(getattr(each, field) for each in counts) for field in Counters.__slots__))


def _longest(seen: Sequence[Observed], counts: Sequence[Counters]) -> float:
    waits = [each.longest_wait for each, count in zip(seen, counts, strict=True) if count.released]
    return max(waits, default=0.0)
