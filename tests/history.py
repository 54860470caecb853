"""What was promised to operators, and what backends have seen, on one clock; and a checker.

A *receipt* says that a backend of a site, or each of them, gets not a byte until the site's
*release*.  A release counts from when it was asked for, since nodes act on it before whoever
asked is told; a receipt from when it was there.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from recorder import Recorder

ANY = ""  # in place of a backend


@dataclass(frozen=True, slots=True)
class Receipt:
    """From ``at`` nanoseconds on the backend gets nothing for the site."""

    at: int
    site: str
    backend: str  # ANY: none of them
    generation: int


@dataclass(frozen=True, slots=True)
class Release:
    """From ``at`` on each backend may get something for the site."""

    at: int
    site: str


@dataclass(frozen=True, slots=True)
class Bytes:
    """So many came to the backend of a site at ``at``."""

    at: int
    site: str
    backend: str
    node: str
    count: int


Event = Receipt | Release | Bytes


@dataclass
class History:
    """What has happened, in no particular order."""

    events: list[Event] = field(default_factory=list)

    def receipt(self, site: str, backend: str, generation: int) -> None:
        """A receipt has come, now."""
        self.events.append(Receipt(time.monotonic_ns(), site, backend, generation))

    def released(self, site: str) -> None:
        """A release is about to be asked for."""
        self.events.append(Release(time.monotonic_ns(), site))

    def read(self, recorder: Recorder, nodes: Mapping[str, str] = {}) -> None:
        """Take over what a recorder has seen.

        :param nodes: the nodes' names by address.
        """
        for at, site, backend, source, count in recorder.lines("bytes"):
            node = nodes.get(source, source)
            self.events.append(Bytes(int(at), site, backend, node, int(count)))


def violations(events: Iterable[Event]) -> list[str]:
    """Each arrival of bytes between a receipt and the release after it, in words."""
    found = []
    promised: dict[str, dict[str, Receipt]] = defaultdict(dict)  # by site and backend
    for event in sorted(events, key=lambda event: event.at):
        match event:
            case Receipt(_, site, backend, _):
                promised[site].setdefault(backend, event)
            case Release(_, site):
                promised[site].clear()
            case Bytes(at, site, backend, node, count):
                receipts = promised[site]
                if receipt := receipts.get(backend) or receipts.get(ANY):
                    late = (at - receipt.at) / 1e6
                    found.append(
                        f"{site}: {count} bytes from {node} at {backend}, {late:.1f} ms after the"
                        f" receipt of generation {receipt.generation}"
                    )
    return found


def promises(events: Iterable[Event]) -> int:
    """How many receipts there are to be kept."""
    return sum(isinstance(event, Receipt) for event in events)
