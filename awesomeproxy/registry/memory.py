"""A registry that remembers nothing beyond the process: for tests, and for trying things out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, execute, succeed

from awesomeproxy.model import Generation, Placement
from awesomeproxy.registry.book import HISTORY, Book
from awesomeproxy.registry.booked import BookedRegistry, Care, R
from awesomeproxy.registry.interface import Entry, RegistryError


class MemoryRegistry(BookedRegistry):
    """The registry in dicts.  Every Deferred that it answers with has fired already.

    ``now`` answers with unix time; ``keep`` is how many migrations are remembered.
    """

    def __init__(self, now: Callable[[], float] = time.time, keep: int = HISTORY) -> None:
        super().__init__(Book(MemoryStore(), now, keep))
        self._closed = False

    def _read(self, work: Callable[[], R]) -> Deferred[R]:
        return execute(self._do, (), work)

    def _write(self, care: Care, sites: Sequence[str], work: Callable[[], R]) -> Deferred[R]:
        return execute(self._do, sites, work)

    def _do(self, sites: Sequence[str], work: Callable[[], R]) -> R:
        if self._closed:
            raise RegistryError("the registry in memory is closed")
        result = work()
        self._tell(sites)
        return result

    def close(self) -> Deferred[None]:
        self._closed = True
        return succeed(None)


class MemoryStore:
    """A :class:`.book.Store` of dicts.

    It needs no transactions: the book writes only once nothing can fail any more.
    """

    def __init__(self) -> None:
        self._placements: dict[str, Placement] = {}
        self._forgotten: dict[str, Generation] = {}
        self._definitions: dict[str, str] = {}
        self._entries: dict[int, Entry] = {}

    @property
    def me(self) -> tuple[str, int]:
        return "", 0

    def floor(self) -> Generation:
        return 0

    def next_id(self) -> int:
        return max(self._entries, default=0) + 1

    def placements(self) -> list[Placement]:
        return list(self._placements.values())

    def placement(self, site: str) -> Placement | None:
        return self._placements.get(site)

    def put_placement(self, placement: Placement) -> None:
        self._placements[placement.site] = placement

    def drop_placement(self, site: str) -> None:
        self._placements.pop(site, None)

    def forgotten(self, site: str) -> Generation:
        return self._forgotten.get(site, 0)

    def put_forgotten(self, site: str, generation: Generation) -> None:
        self._forgotten[site] = generation

    def drop_forgotten(self, site: str) -> None:
        self._forgotten.pop(site, None)

    def definitions(self) -> dict[str, str]:
        return self._definitions

    def put_definition(self, name: str, table: str) -> None:
        self._definitions[name] = table

    def drop_definition(self, name: str) -> None:
        self._definitions.pop(name, None)

    def entries(self, site: str | None, unfinished: bool, limit: int) -> list[Entry]:
        found = [
            entry
            for entry in reversed(self._entries.values())
            if (site is None or entry.concerns(site)) and (entry.unfinished or not unfinished)
        ]
        return found if limit < 0 else found[:limit]

    def entry(self, entry_id: int) -> Entry | None:
        return self._entries.get(entry_id)

    def put_entry(self, entry: Entry) -> None:
        self._entries[entry.id] = entry

    def drop_finished(self, up_to: int) -> None:
        for entry in list(self._entries.values()):
            if entry.id <= up_to and not entry.unfinished:
                del self._entries[entry.id]
