"""Deadlines of connections, watched by one coarse sweep.

A ``callLater`` for each connection, reset at each byte, costs more than all the
parsing.  Here a connection has a plain attribute, ``deadline``, which is set as
often as one likes for nothing, and a sweep looks at all of them four times a
second: fifteen thousand connections take it well under a millisecond.  So a
deadline is met late by up to :data:`INTERVAL`, never early.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

INTERVAL = 0.25  # seconds
NEVER = float("inf")

log = Logger()


class Timed(Protocol):
    """Something with a deadline."""

    deadline: float

    def expired(self, now: float) -> None:
        """The deadline has passed: end, or set another."""


class Sweep:
    """Watches the deadlines of whatever has been added, while anything has."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._timed: set[Timed] = set()
        self._call: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._timed)

    def add(self, timed: Timed) -> None:
        """Watch ``timed.deadline`` from now on."""
        self._timed.add(timed)
        if self._call is None:
            self._call = self._clock.callLater(INTERVAL, self._sweep)

    def remove(self, timed: Timed) -> None:
        """Watch it no longer."""
        self._timed.discard(timed)
        if not self._timed and self._call is not None:
            self._call.cancel()
            self._call = None

    def _sweep(self) -> None:
        self._call = self._clock.callLater(INTERVAL, self._sweep)
        now = self._clock.seconds()
        for timed in [timed for timed in self._timed if timed.deadline <= now]:
            if timed in self._timed:
                try:
                    timed.expired(now)
                except Exception:  # one that fails must not keep the others waiting
                    log.failure("the deadline of {timed} has passed", timed=timed)
