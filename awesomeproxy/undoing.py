"""Holds that have to be undone, though the registry cannot be asked now: tried until it is done.

Or until somebody else has changed the placement, for then there is nothing left to undo.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from awesomeproxy.model import Placement
from awesomeproxy.registry.interface import Conflict, IRegistry, RegistryError

log = Logger()

TRY_AGAIN = 1.0  # seconds between tries


class Host(Protocol):
    """What is asked of the node."""

    reactor: Any
    registry: IRegistry

    def adopt(self, placement: Placement) -> None:
        """Make every worker converge to ``placement``."""


class Undoing:
    """All that is still to be undone."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._calls: dict[str, IDelayedCall] = {}

    def __repr__(self) -> str:
        return f"<Undoing of {', '.join(self._calls) or 'nothing'}>"

    def later(self, seen: Placement, after: Placement, doubted: Placement | None = None) -> None:
        """Place ``after`` instead of what was ``seen``, as soon as that can be done.

        :param doubted: a hold of which it is not known whether it was stored after that.
        """
        self.forget(seen.site)
        call = self._host.reactor.callLater(TRY_AGAIN, self._try, seen, after, doubted)
        self._calls[seen.site] = call

    def forget(self, name: str) -> None:
        """It needs not be undone any more."""
        if (call := self._calls.pop(name, None)) is not None:
            call.cancel()

    def stop(self) -> None:
        """Undo nothing any more."""
        for name in list(self._calls):
            self.forget(name)

    def _try(self, seen: Placement, after: Placement, doubted: Placement | None) -> None:
        del self._calls[seen.site]
        undoing = Deferred.fromCoroutine(self._undo(seen, after, doubted))
        undoing.addErrback(lambda failure: log.failure("{site}", failure, site=seen.site))

    async def _undo(self, seen: Placement, after: Placement, doubted: Placement | None) -> None:
        try:
            self._host.adopt(await self._host.registry.place(after, seen.generation))
        except Conflict as conflict:
            stored = conflict.stored
            if stored and doubted and replace(doubted, generation=stored.generation) == stored:
                await self._undo(stored, after, None)  # it was stored, as it turns out
        except RegistryError as problem:
            log.error("{site}: is still held: {why}", site=seen.site, why=problem)
            if seen.site not in self._calls:
                self.later(seen, after, doubted)
