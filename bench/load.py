"""What the figures know of the programs that make load: started, ended, what they counted.

:mod:`bench.wrk` and :mod:`bench.h2load` are the two kinds.  Both ask as fast as they
are answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Report:
    """What the clients counted."""

    requests: int  # that were answered
    failed: int  # that got an error, a wrong answer, or none in time
    seconds: float
    counted: Mapping[str, int]  # the ways to fail, and how many did

    def __str__(self) -> str:
        ways = ", ".join(f"{way} {count}" for way, count in self.counted.items())
        return f"{self.requests:,} requests; {ways}"


class Running(Protocol):
    """Clients at work."""

    @property
    def over(self) -> bool:
        """Whether they have ended, of themselves."""

    def stop(self) -> Report:
        """Wait for the end, or bring it about; raises :exc:`BenchError` without a report."""


class Load(Protocol):
    """A kind and a number of clients."""

    def start(self, url: str, seconds: float) -> AbstractContextManager[Running]:
        """Ask for ``url`` from the load's core, for ``seconds`` at least unless stopped."""

    def run(self, url: str, seconds: float) -> Report:
        """Ask for ``url`` for about ``seconds``."""
