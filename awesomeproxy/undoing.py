"""Holds that have to be undone, though the registry cannot be asked now: tried until it is done.

Or until somebody else has changed the placement, for then there is nothing left to undo.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from awesomeproxy.model import Placement
from awesomeproxy.registry.interface import Conflict, Doubtful, IRegistry, RegistryError

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

    def later(self, seen: Placement, after: Placement, doubt: Doubtful | None = None) -> None:
        """Place ``after`` instead of what was ``seen``, as soon as that can be done.

        :param doubt: it is not known whether a hold was stored after that.
        """
        self.forget(seen.site)
        call = self._host.reactor.callLater(TRY_AGAIN, self._try, seen, after, doubt)
        self._calls[seen.site] = call

    def forget(self, name: str) -> None:
        """It needs not be undone any more."""
        if (call := self._calls.pop(name, None)) is not None:
            call.cancel()

    def stop(self) -> None:
        """Undo nothing any more."""
        for name in list(self._calls):
            self.forget(name)

    def _try(self, seen: Placement, after: Placement, doubt: Doubtful | None) -> None:
        del self._calls[seen.site]
        undoing = Deferred.fromCoroutine(self._undo(seen, after, doubt))
        undoing.addErrback(lambda failure: log.failure("{site}", failure, site=seen.site))

    async def _undo(self, seen: Placement, after: Placement, doubt: Doubtful | None) -> None:
        try:
            self._host.adopt(await self._host.registry.place(after, seen.generation))
        except Conflict as conflict:
            stored = conflict.stored
            if stored and doubt and doubt.made():  # it was stored, as it turns out
                await self._undo(stored, after, None)
        except RegistryError as problem:
            log.error("{site}: is still held: {why}", site=seen.site, why=problem)
            if seen.site not in self._calls:
                self.later(seen, after, doubt)
