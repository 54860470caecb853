"""The listener of the metrics page, which a reload may open, move and close."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort


class Listening:
    """The page's listener."""

    def __init__(self, reactor: Any, families: Callable[[], Iterator[Any]]) -> None:
        """
        :param families: what the page tells; pieces of one family follow each other.
        """
        self._reactor = reactor
        self._families = families
        self._endpoint = ""
        self._port: IListeningPort | None = None

    def __repr__(self) -> str:
        return f"<Listening: {self._endpoint or 'no metrics page'}>"

    @asynccontextmanager
    async def at(self, endpoint: str) -> AsyncIterator[Callable[[], None]]:
        """Listen at another place, as well at first.

        :param endpoint: a Twisted server endpoint; empty: nowhere.
        :return: what to call to listen only there from now on; if it is not called, nothing
            has changed afterwards.
        :raise OSError, CannotListenError: the address cannot be had.
        """
        if endpoint == self._endpoint:
            yield lambda: None
            return
        spare = await self._open(endpoint) if endpoint else None

        def take() -> None:
            nonlocal spare
            self._endpoint = endpoint
            spare, self._port = self._port, spare

        try:
            yield take
        finally:
            if spare is not None:
                await maybeDeferred(spare.stopListening)

    async def move(self, endpoint: str) -> None:
        """Listen only there from now on; see :meth:`at`."""
        async with self.at(endpoint) as take:
            take()

    async def _open(self, endpoint: str) -> IListeningPort:
        from awesomeproxy.metrics.page import site  # not above: its library is an extra

        found = serverFromString(self._reactor, endpoint)  # type: ignore[no-untyped-call]
        port: IListeningPort = await found.listen(site(self._reactor, self._families))
        return port
