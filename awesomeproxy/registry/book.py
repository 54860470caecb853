"""What may be written after what: the rules that the embedded registries share.

A :class:`Book` decides, a :class:`Store` remembers.  The book reads what is
stored, refuses what cannot follow it, and only then writes.  It is synchronous
and takes for granted that nobody else writes in between; the registry around
it sees to that, with a transaction or by having one thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Protocol

from awesomeproxy.model import Generation, Mode, Placement
from awesomeproxy.registry.interface import Busy, Conflict, Entry, NotAllowed, State

HISTORY = 1000  # migrations that are kept

# What a migration must be before it can become this.
BEFORE: dict[State, State] = {"committed": "running", "done": "committed", "rolled back": "running"}


class Store(Protocol):
    """Records by their key; ``put`` replaces, ``drop`` of what is not there does nothing."""

    def placements(self) -> list[Placement]: ...
    def placement(self, site: str) -> Placement | None: ...
    def put_placement(self, placement: Placement) -> None: ...
    def drop_placement(self, site: str) -> None: ...

    def forgotten(self, site: str) -> Generation:
        """The generation at which ``site`` was forgotten; 0 if it never was."""

    def put_forgotten(self, site: str, generation: Generation) -> None: ...
    def drop_forgotten(self, site: str) -> None: ...

    def definitions(self) -> dict[str, str]: ...
    def put_definition(self, name: str, table: str) -> None: ...
    def drop_definition(self, name: str) -> None: ...

    def entries(self, site: str | None, unfinished: bool, limit: int) -> list[Entry]:
        """The newest ``limit`` entries, newest first; of one site, or only the unfinished."""

    def entry(self, entry_id: int) -> Entry | None: ...
    def put_entry(self, entry: Entry) -> None: ...

    def drop_finished(self, up_to: int) -> None:
        """Drop the entries that are finished and whose id is at most ``up_to``."""


class Book:
    """The registry's methods on a ``store``, synchronous; see :class:`.interface.IRegistry`.

    ``now`` answers with unix time; ``keep`` is how many migrations are remembered.
    """

    def __init__(self, store: Store, now: Callable[[], float], keep: int = HISTORY) -> None:
        self._store = store
        self._now = now
        self._keep = keep

    def placements(self) -> dict[str, Placement]:
        return {placement.site: placement for placement in self._store.placements()}

    def place(self, new: Placement, expected: Generation) -> Placement:
        stored = self._stored(new.site, expected)
        # A site that was forgotten goes on from where it was.
        before = expected if stored else self._store.forgotten(new.site)
        placed = replace(new, generation=before + 1)
        self._store.put_placement(placed)
        if stored is None:
            self._store.drop_forgotten(new.site)
        return placed

    def forget(self, site: str, expected: Generation) -> None:
        self._check_idle(site)
        if self._stored(site, expected) is not None:
            self._store.drop_placement(site)
            self._store.put_forgotten(site, expected)

    def definitions(self) -> dict[str, dict[str, Any]]:
        return {name: json.loads(table) for name, table in self._store.definitions().items()}

    def define(self, name: str, table: dict[str, Any]) -> None:
        self._store.put_definition(name, as_json(table))

    def undefine(self, name: str) -> None:
        self._store.drop_definition(name)

    def begin(
        self, site: str, source: str, target: str, hold: Placement, expected: Generation
    ) -> Entry:
        self._check_idle(site)
        newest = self._store.entries(None, unfinished=False, limit=1)
        entry = Entry(
            id=newest[0].id + 1 if newest else 1,
            site=site,
            source=source,
            target=target,
            generation=expected,
            began=self._now(),
        )
        _check_fits(entry, hold, source, holding=True)
        entry = replace(entry, generation=self.place(hold, expected).generation)
        self._store.put_entry(entry)
        self._store.drop_finished(entry.id - self._keep)
        return entry

    def step(self, entry_id: int, name: str) -> None:
        entry = self._entry(entry_id)
        if not entry.unfinished:
            raise NotAllowed(f"{_called(entry)} is {entry.state}: it has no step {name!r} to begin")
        self._store.put_entry(replace(entry, step=name))

    def commit(self, entry_id: int, placement: Placement, expected: Generation) -> Placement:
        entry = self._turn(entry_id, "committed")
        _check_fits(entry, placement, entry.target, holding=True)
        placed = self.place(placement, expected)
        self._store.put_entry(replace(entry, generation=placed.generation))
        return placed

    def finish(
        self,
        entry_id: int,
        state: Literal["done", "rolled back"],
        placement: Placement,
        expected: Generation,
        reason: str,
        ledger: dict[str, Any] | None,
    ) -> Placement:
        entry = replace(
            self._turn(entry_id, state),
            reason=reason,
            ledger=None if ledger is None else json.loads(as_json(ledger)),
        )
        _check_fits(entry, placement, entry.target if state == "done" else entry.source)
        placed = self.place(placement, expected)
        self._store.put_entry(replace(entry, generation=placed.generation))
        return placed

    def unfinished(self) -> list[Entry]:
        return self._store.entries(None, unfinished=True, limit=-1)[::-1]

    def history(self, site: str | None, limit: int) -> list[Entry]:
        return self._store.entries(site, unfinished=False, limit=max(limit, 0))

    def _stored(self, site: str, expected: Generation) -> Placement | None:
        stored = self._store.placement(site)
        if expected != (stored.generation if stored else 0):
            raise Conflict(site, expected, stored)
        return stored

    def _check_idle(self, site: str) -> None:
        for entry in self._store.entries(site, unfinished=True, limit=1):
            raise Busy(entry)

    def _entry(self, entry_id: int) -> Entry:
        entry = self._store.entry(entry_id)
        if entry is None:
            raise NotAllowed(f"migration {entry_id}: there is none in the journal")
        return entry

    def _turn(self, entry_id: int, state: State) -> Entry:
        """The entry as it is in ``state``, if it may become that."""
        entry = self._entry(entry_id)
        if entry.state != BEFORE[state]:
            raise NotAllowed(
                f"{_called(entry)} is {entry.state}: "
                f"only one that is {BEFORE[state]} can become {state}"
            )
        return replace(entry, state=state)


def as_json(table: dict[str, Any]) -> str:
    """``table`` as JSON text; TypeError or ValueError if it holds anything JSON has not."""
    return json.dumps(table, allow_nan=False)


def _called(entry: Entry) -> str:
    return f"migration {entry.id} of {entry.site}"


def _check_fits(entry: Entry, placement: Placement, backend: str, holding: bool = False) -> None:
    if (placement.site, placement.backend) != (entry.site, backend):
        raise NotAllowed(
            f"{_called(entry)} would place {placement.site} on {placement.backend}: "
            f"here it may only place {entry.site} on {backend}"
        )
    if holding and placement.mode is not Mode.HOLDING:
        raise NotAllowed(f"{_called(entry)} would open the gate: not before it is finished")
