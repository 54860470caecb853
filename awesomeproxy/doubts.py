"""Sites and databases of which it is doubted that they are well: they are held until one is.

When a filesystem has been mounted, the servers of what lives in it may still have to start,
or have seen an empty directory before.  They are asked again and again, past the gate, until
one of them is well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from awesomeproxy.model import DATABASE, Database, Placement, Site

log = Logger()

PROVE_EVERY = 0.5  # seconds between questions whether a site's servers are well


class Host(Protocol):
    """What is asked of the node."""

    reactor: Any
    sites: dict[str, Site]
    databases: dict[str, Database]

    def placement(self, name: str) -> Placement:
        """Where something is placed."""

    def adopt(self, placement: Placement) -> None:
        """Make every worker converge to ``placement``."""

    def check(self, site: str, backend: str) -> Deferred[None]:
        """Ask a backend's servers, past the gate."""


class Doubts:
    """Those of a node; what is doubted is called as its placement is."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._doubted: set[str] = set()
        self._proving: dict[str, Deferred[None]] = {}
        self._running = False

    def __repr__(self) -> str:
        return f"<Doubts of {', '.join(self._doubted) or 'nothing'}>"

    def __contains__(self, name: str) -> bool:
        return name in self._doubted

    def begin(self) -> None:
        """Ask, from now on."""
        self._running = True

    def stop(self) -> None:
        """Ask no more."""
        self._running = False
        for proving in list(self._proving.values()):
            proving.cancel()

    def add(self, names: Iterable[str]) -> None:
        """Doubt some; nobody is asked yet."""
        self._doubted.update(names)

    def heard(self, name: str) -> None:
        """Another node has placed it where its filesystem is: this one has not looked yet."""
        if self._running:
            self._doubted.add(name)

    def prove(self, name: str) -> None:
        """Have it held, if it is doubted, until one of its servers is well."""
        if name not in self._doubted or name in self._proving or not self._running:
            return
        self._proving[name] = Deferred.fromCoroutine(self._until_well(name))

        def proved(result: object) -> None:
            del self._proving[name]
            self._doubted.discard(name)
            if self._running and self._is_served(name):
                self._host.adopt(self._host.placement(name))

        self._proving[name].addBoth(proved)

    async def _until_well(self, name: str) -> None:
        while self._is_served(name):
            backend = self._host.placement(name).backend
            try:
                await self._host.check(name, backend)
            except CancelledError:
                raise
            except Exception as problem:
                log.debug("{site}: not well yet: {why}", site=name, why=problem)
            else:
                if backend == self._host.placement(name).backend:
                    return
                continue  # it has gone somewhere else meanwhile
            await deferLater(self._host.reactor, PROVE_EVERY)

    def _is_served(self, name: str) -> bool:
        return name in self._host.sites or name.removeprefix(DATABASE) in self._host.databases
