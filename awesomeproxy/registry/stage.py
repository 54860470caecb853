"""Where a change is made before it is: on a node's view, with what it has read and what it writes.

What is read is noted with its version.  The change is then made in Redis if all of that still
has the version that was read, and not at all otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awesomeproxy.model import Generation, Placement
from awesomeproxy.registry.interface import Entry
from awesomeproxy.registry.records import entry_of, entry_text, packed, placement_text
from awesomeproxy.registry.view import EPOCH, View, gate

LAST = ("counters", "migration")  # all that begin write it, so that they are in line


class Stage:
    """A :class:`.book.Store` that only notes."""

    def __init__(self, view: View, me: Callable[[], tuple[str, int]], epoch: Callable[[], int]):
        self._view = view
        self._me = me
        self._epoch = epoch
        self.clear()

    def clear(self, change: str = "") -> None:
        """Begin anew.

        :param change: what it is called.
        """
        self._change = change
        self._read: dict[tuple[str, str], str] = {}
        self._put: dict[tuple[str, str], tuple[str, str]] = {}
        self._made: dict[tuple[str, str], Any] = {}
        self._more: dict[str, int] = {}

    def asked(self, changes: bool) -> str:
        """What the script ``write`` is to do.

        :param changes: false: only to see whether what was read is still so.
        """
        checks = [[*key, version] for key, version in self._read.items()]
        puts = [[*key, *put] for key, put in self._put.items()]
        if not changes:
            return packed({"checks": checks, "puts": []})
        return packed({"checks": checks, "puts": puts, **self._more})

    @property
    def changes(self) -> bool:
        """Whether anything is written."""
        return bool(self._put)

    def _note(self, hash_: str, item: str) -> None:
        self._read.setdefault((hash_, item), self._view.stored(f"{hash_}/{item}"))

    def _set(self, hash_: str, item: str, body: str, made: Any, flag: str = "") -> None:
        self._note(hash_, item)
        self._put[hash_, item] = (body, flag)
        self._made[hash_, item] = made

    @property
    def me(self) -> tuple[str, int]:
        return self._me()

    def floor(self) -> Generation:
        return self._epoch() * EPOCH

    def next_id(self) -> int:
        self._note(*LAST)
        return self._view.last_id + 1

    def placements(self) -> list[Placement]:
        return list(self._view.placements.values())

    def placement(self, site: str) -> Placement | None:
        self._note("placements", site)
        made: Placement | None = self._made.get(
            ("placements", site), self._view.placements.get(site)
        )
        return made

    def put_placement(self, placement: Placement) -> None:
        text = placement_text(placement, self._change)
        self._set("placements", placement.site, text, placement, gate(placement))

    def drop_placement(self, site: str) -> None:
        self._set("placements", site, "", None, "open")

    def forgotten(self, site: str) -> Generation:
        self._note("forgotten", site)
        return self._view.forgotten.get(site, 0)

    def put_forgotten(self, site: str, generation: Generation) -> None:
        self._set("forgotten", site, str(generation), generation)

    def drop_forgotten(self, site: str) -> None:
        if site in self._view.forgotten:
            self._set("forgotten", site, "", 0)

    def definitions(self) -> dict[str, str]:
        return self._view.definitions

    def put_definition(self, name: str, table: str) -> None:
        self._set("definitions", name, table, table)

    def drop_definition(self, name: str) -> None:
        if name in self._view.definitions:
            self._set("definitions", name, "", None)

    def entries(self, site: str | None, unfinished: bool, limit: int) -> list[Entry]:
        running = self._view.entries
        numbers = running.keys() if unfinished else running.keys() | self._view.ended.keys()
        found: list[Entry] = []
        for number in sorted(numbers, reverse=True):
            if len(found) == limit:
                break
            entry = running.get(number) or entry_of(self._view.ended[number])
            if site is None or entry.concerns(site):
                found.append(entry)
        for each in found if unfinished else ():  # it may have ended, which we have not heard
            self._note("journal", str(each.id))
        return found

    def entry(self, entry_id: int) -> Entry | None:
        self._note("journal", str(entry_id))
        if entry_id in self._view.entries:
            return self._view.entries[entry_id]
        ended = self._view.ended.get(entry_id)
        return entry_of(ended) if ended else None

    def put_entry(self, entry: Entry) -> None:
        self._set("journal", str(entry.id), entry_text(entry, self._change), entry)
        if entry.id > self._view.last_id:
            self._set(*LAST, str(entry.id), entry.id)
        if not entry.unfinished:
            self._more["finished"] = entry.id

    def drop_finished(self, up_to: int) -> None:
        self._more["trim"] = up_to
