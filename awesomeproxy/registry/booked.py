"""The interface on top of a :class:`.book.Book`: what all registries share.

Every method is one call of the book, handed to one of two verbs that the
registries differ in: :meth:`BookedRegistry._read`, and
:meth:`BookedRegistry._write`, which is told how much the change matters.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Literal, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from awesomeproxy.model import Generation, Mode, Placement
from awesomeproxy.registry.book import Book
from awesomeproxy.registry.interface import Entry, IRegistry

R = TypeVar("R")


class Care(enum.Enum):
    """What a change asks of the disk."""

    DURABLE = enum.auto()  # survives a power cut; housekeeping may be done along with it
    PROMPT = enum.auto()  # survives a power cut; requests wait for it, so nothing else is done
    FIRM = enum.auto()  # the same; in a cluster it survives a fail-over as well
    RELAXED = enum.auto()  # may be lost in a power cut


@implementer(IRegistry)
class BookedRegistry(ABC):
    """A registry whose rules are those of a book."""

    _log = Logger()

    def __init__(self, book: Book) -> None:
        self._book = book
        self._subscribers: dict[object, Callable[[str], None]] = {}

    @abstractmethod
    def _read(self, work: Callable[[], R]) -> Deferred[R]:
        """Do ``work``, which only reads."""

    @abstractmethod
    def _write(self, care: Care, sites: Sequence[str], work: Callable[[], R]) -> Deferred[R]:
        """Do ``work`` wholly or not at all, then tell the subscribers of ``sites``."""

    @abstractmethod
    def close(self) -> Deferred[None]:
        """Let go of everything."""

    def placements(self) -> Deferred[dict[str, Placement]]:
        return self._read(self._book.placements)

    def place(self, new: Placement, expected: Generation) -> Deferred[Placement]:
        # A gate that opens has requests waiting for it.
        care = Care.PROMPT if new.mode is Mode.OPEN else Care.DURABLE
        return self._write(care, [new.site], lambda: self._book.place(new, expected))

    def place_new(self, new: Sequence[Placement]) -> Deferred[list[Placement]]:
        sites = [each.site for each in new]
        return self._write(Care.DURABLE, sites, lambda: self._book.place_new(new))

    def forget(self, site: str, expected: Generation) -> Deferred[None]:
        return self._write(Care.DURABLE, [site], lambda: self._book.forget(site, expected))

    def definitions(self) -> Deferred[dict[str, dict[str, Any]]]:
        return self._read(self._book.definitions)

    def define(self, name: str, table: dict[str, Any]) -> Deferred[None]:
        mine = deepcopy(table)  # read later, perhaps in a thread
        return self._write(Care.DURABLE, [name], lambda: self._book.define(name, mine))

    def undefine(self, name: str) -> Deferred[None]:
        return self._write(Care.DURABLE, [name], lambda: self._book.undefine(name))

    def begin(
        self,
        site: str,
        source: str,
        target: str,
        hold: Placement,
        expected: Generation,
        along: Sequence[tuple[Placement, str]] = (),
    ) -> Deferred[Entry]:
        return self._write(
            Care.DURABLE,
            [site],
            lambda: self._book.begin(site, source, target, hold, expected, along),
        )

    def step(self, entry_id: int, name: str) -> Deferred[None]:
        return self._write(Care.RELAXED, [], lambda: self._book.step(entry_id, name))

    def hold(
        self,
        entry_id: int,
        placement: Placement,
        expected: Generation,
        along: Sequence[Placement] = (),
    ) -> Deferred[dict[str, Placement]]:
        return self._write(
            Care.DURABLE,
            [placement.site],
            lambda: self._book.hold(entry_id, placement, expected, along),
        )

    def commit(
        self,
        entry_id: int,
        placement: Placement,
        expected: Generation,
        along: Sequence[Placement] = (),
    ) -> Deferred[dict[str, Placement]]:
        return self._write(
            Care.FIRM,
            [placement.site],
            lambda: self._book.commit(entry_id, placement, expected, along),
        )

    def finish(
        self,
        entry_id: int,
        state: Literal["done", "rolled back"],
        placement: Placement,
        expected: Generation,
        reason: str = "",
        ledger: dict[str, Any] | None = None,
        along: Sequence[Placement] = (),
    ) -> Deferred[dict[str, Placement]]:
        mine = deepcopy(ledger)
        return self._write(
            Care.DURABLE,
            [placement.site],
            lambda: self._book.finish(entry_id, state, placement, expected, reason, mine, along),
        )

    def take_over(self, entry_id: int, owner: str, life: int) -> Deferred[Entry]:
        return self._write(Care.FIRM, [], lambda: self._book.take_over(entry_id, owner, life))

    def unfinished(self) -> Deferred[list[Entry]]:
        return self._read(self._book.unfinished)

    def history(self, site: str | None, limit: int) -> Deferred[list[Entry]]:
        return self._read(lambda: self._book.history(site, limit))

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        key = object()
        self._subscribers[key] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe

    def _tell(self, sites: Sequence[str]) -> None:
        for callback in list(self._subscribers.values()):
            for site in sites:
                try:
                    callback(site)
                except Exception:  # theirs: the change is made all the same
                    self._log.failure("A subscriber failed at the change of {site}", site=site)
