"""Knocking at a database's server that refuses connections, until it takes one.

A connection is opened and closed again without a word.  The server of a held database is
left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from awesomeproxy.proxy.dial import dial
from awesomeproxy.proxy.health import KNOCK_FIRST, KNOCK_LAST, KNOCK_TIMEOUT

if TYPE_CHECKING:
    from awesomeproxy.proxy.livedatabase import LiveDatabase


class Knock:
    """Knocks at the present server of one database."""

    def __init__(self, database: LiveDatabase) -> None:
        self._database = database
        self._clock = database.plane.clock
        self._delay = KNOCK_FIRST
        self._visit: _Visit | None = None
        self._next: IDelayedCall | None = self._clock.callLater(self._delay, self._knock)

    def stop(self) -> None:
        """Knock no more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self.interrupt()

    def interrupt(self) -> None:
        """Let go of the knock that is under way."""
        visit, self._visit = self._visit, None
        if visit is not None:
            visit.call_off()

    def _knock(self) -> None:
        database = self._database
        self._delay = min(KNOCK_LAST, self._delay * 2)
        self._next = self._clock.callLater(self._delay, self._knock)
        held = database.gate.holding or database.plane.permit.lapsed
        if self._visit is None and not held and database.backend is not None:
            self._visit = _Visit(self._answered)
            self._visit.call_off = dial(
                database.plane.eager,
                database.backend.server,
                self._visit,
                self._silent,
                KNOCK_TIMEOUT,
            )

    def _answered(self) -> None:
        if self._visit is not None:
            self._visit = None
            self._database.reachable()

    def _silent(self, why: Failure) -> None:
        self._visit = None


class _Visit(Protocol):
    """A connection that is closed as soon as it is there."""

    transport: Any

    def __init__(self, answered: Callable[[], None]) -> None:
        self._answered = answered
        self.call_off: Callable[[], object] = lambda: None

    def connectionMade(self) -> None:
        self.transport.abortConnection()
        self._answered()
