"""Migrations whose owner is no more are taken to their ends by another node.

Each node looks, and waits for a moment of its own, so that mostly one asks; the registry lets
one have it.  The owner stopped by itself when its lease was not renewed, and what it would
record now is refused, since it is not its migration any more.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from awesomeproxy.cluster.host import ClusterHost
from awesomeproxy.cluster.members import Members, is_member
from awesomeproxy.registry.interface import Entry, RegistryError
from awesomeproxy.registry.redis import RedisRegistry

log = Logger()

TURNS, TURN = 5, 0.2  # moments to wait for, and seconds from one to the next


class Heirs:
    """What this node takes over."""

    def __init__(
        self, host: ClusterHost, registry: RedisRegistry, members: Members, lease: float
    ) -> None:
        """
        :param lease: seconds that an owner has that has come back, for what it had begun.
        """
        self._host = host
        self._registry = registry
        self._members = members
        self._lease = lease
        self._calls: dict[int, Any] = {}
        self._asking: dict[int, Deferred[None]] = {}

    def look(self) -> None:
        """See whether there is anything to be taken over."""
        if not self._registry.life:
            return
        for entry in self._registry.view.entries.values():
            if entry.id in self._calls or entry.id in self._asking:
                continue
            if (delay := self._delay(entry)) is not None:
                self._wait(entry, delay, delay)

    def end(self) -> None:
        """Take nothing over any more."""
        for call in self._calls.values():
            call.cancel()
        self._calls.clear()
        for asking in list(self._asking.values()):
            asking.cancel()

    def _delay(self, entry: Entry) -> float | None:
        """Seconds until this node should ask for it; None: it has an owner."""
        owner = self._members.get(entry.owner)
        if not entry.owner or (entry.owner, entry.life) == self._me:
            return None
        turn = crc32(f"{self._registry.node} {entry.id}".encode()) % TURNS * TURN
        if owner is None or not is_member(owner) or owner.state == "gone":
            return turn
        if owner.life == entry.life:
            return None
        return turn + self._lease * (1 if owner.name == self._registry.node else 2)

    @property
    def _me(self) -> tuple[str, int]:
        return (self._registry.node, self._registry.life)

    def _wait(self, entry: Entry, seconds: float, in_all: float) -> None:
        call = self._host.reactor.callLater(seconds, self._turn, entry, in_all)
        self._calls[entry.id] = call

    def _turn(self, entry: Entry, waited: float) -> None:
        del self._calls[entry.id]
        now = self._registry.view.entries.get(entry.id)
        if now is None or (now.owner, now.life) != (entry.owner, entry.life):
            return
        if (delay := self._delay(now)) is None or not self._registry.link.ready:
            return
        if delay > waited:  # its owner has come back meanwhile
            self._wait(entry, delay - waited, delay)
            return
        asking = self._asking[entry.id] = Deferred.fromCoroutine(self._ask(now))
        asking.addErrback(self._refused, entry).addBoth(self._asked, entry.id)

    def _refused(self, failure: Any, entry: Entry) -> None:
        if not failure.check(RegistryError, CancelledError):  # else another was faster
            log.failure("migration {id} was not taken over", failure, id=entry.id)

    def _asked(self, _: object, number: int) -> None:
        self._asking.pop(number, None)

    async def _ask(self, entry: Entry) -> None:
        taken = await self._registry.take_over(entry.id, entry.owner, entry.life)
        log.warn(
            "{site}: migration {id} of node {owner} is taken over; it was in the step {step!r}",
            site=entry.site,
            id=entry.id,
            owner=entry.owner,
            step=entry.step,
        )
        self._host.take_up([taken])
