"""What may be written after what: the rules that all registries share.

A :class:`Book` decides, a :class:`Store` remembers.  The book reads what is
stored, refuses what cannot follow it, and only then writes.  It is synchronous
and takes for granted that nobody else writes in between; the registry around
it sees to that, with a transaction or by having one thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from awesomeproxy.model import Generation, Mode, Placement
from awesomeproxy.registry.interface import (
    Busy,
    Companion,
    Conflict,
    Entry,
    NotAllowed,
    State,
    Superseded,
)

HISTORY = 1000  # migrations that are kept

# What a migration must be before it can become this.
BEFORE: dict[State, State] = {"committed": "running", "done": "committed", "rolled back": "running"}


class Store(Protocol):
    """Records by their key; ``put`` replaces, ``drop`` of what is not there does nothing."""

    @property
    def me(self) -> tuple[str, int]:
        """Who writes: a node's name and its life; ``("", 0)`` where there is only one."""

    def floor(self) -> Generation:
        """What all new generations are larger than."""

    def next_id(self) -> int:
        """The number of the next migration."""

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
        """The newest ``limit`` entries, newest first; those that concern ``site``, or only
        the unfinished."""

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
        placed = replace(new, generation=max(before, self._store.floor()) + 1)
        self._store.put_placement(placed)
        if stored is None:
            self._store.drop_forgotten(new.site)
        return placed

    def place_new(self, new: Sequence[Placement]) -> list[Placement]:
        for each in new:
            self._stored(each.site, 0)
        return [self.place(each, 0) for each in new]

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
        self,
        site: str,
        source: str,
        target: str,
        hold: Placement,
        expected: Generation,
        along: Sequence[tuple[Placement, str]] = (),
    ) -> Entry:
        for name in (site, *(companion.site for companion, _ in along)):
            self._check_idle(name)
        owner, life = self._store.me
        entry = Entry(
            id=self._store.next_id(),
            site=site,
            source=source,
            target=target,
            generation=expected,
            began=self._now(),
            along=tuple(Companion(h.site, h.backend, to, h.generation) for h, to in along),
            owner=owner,
            life=life,
        )
        holds = [each for each, _ in along]
        _check_fits(entry, [hold, *holds], "source")
        entry = self._place_all(entry, hold, expected, holds)
        self._store.put_entry(entry)
        self._store.drop_finished(entry.id - self._keep)
        return entry

    def step(self, entry_id: int, name: str) -> None:
        entry = self._own(entry_id)
        if not entry.unfinished:
            raise NotAllowed(f"{_called(entry)} is {entry.state}: it has no step {name!r} to begin")
        self._store.put_entry(replace(entry, step=name))

    def hold(
        self,
        entry_id: int,
        placement: Placement,
        expected: Generation,
        along: Sequence[Placement] = (),
    ) -> dict[str, Placement]:
        entry = self._own(entry_id)
        if entry.state != "running":
            raise NotAllowed(f"{_called(entry)} is {entry.state}: it holds nothing any more")
        _check_fits(entry, [placement, *along], "source")
        held = replace(self._place_all(entry, placement, expected, along), step="hold")
        return self._placed(held)

    def commit(
        self,
        entry_id: int,
        placement: Placement,
        expected: Generation,
        along: Sequence[Placement] = (),
    ) -> dict[str, Placement]:
        entry = self._turn(entry_id, "committed")
        _check_fits(entry, [placement, *along], "target", holding=True)
        return self._placed(self._place_all(entry, placement, expected, along))

    def finish(
        self,
        entry_id: int,
        state: Literal["done", "rolled back"],
        placement: Placement,
        expected: Generation,
        reason: str,
        ledger: dict[str, Any] | None,
        along: Sequence[Placement] = (),
    ) -> dict[str, Placement]:
        entry = replace(
            self._turn(entry_id, state),
            reason=reason,
            ledger=None if ledger is None else json.loads(as_json(ledger)),
        )
        side: Literal["source", "target"] = "target" if state == "done" else "source"
        _check_fits(entry, [placement, *along], side)
        return self._placed(self._place_all(entry, placement, expected, along))

    def _place_all(
        self, entry: Entry, main: Placement, expected: Generation, along: Sequence[Placement]
    ) -> Entry:
        """Place the site and what comes along, or raise Conflict before anything is written."""
        self._stored(main.site, expected)
        for each in along:
            self._stored(each.site, each.generation)
        generations = {each.site: self.place(each, each.generation).generation for each in along}
        return replace(
            entry,
            generation=self.place(main, expected).generation,
            along=tuple(replace(each, generation=generations[each.site]) for each in entry.along),
        )

    def _placed(self, entry: Entry) -> dict[str, Placement]:
        """Record ``entry``; answer with where all of it is."""
        self._store.put_entry(entry)
        placed = {}
        for name in (entry.site, *(each.site for each in entry.along)):
            stored = self._store.placement(name)
            assert stored is not None
            placed[name] = stored
        return placed

    def take_over(self, entry_id: int, owner: str, life: int) -> Entry:
        entry = self._entry(entry_id)
        if (entry.owner, entry.life) != (owner, life):
            raise Superseded(f"{_called(entry)} was taken over by node {entry.owner}")
        if not entry.unfinished:
            raise NotAllowed(f"{_called(entry)} is {entry.state}: there is nothing to take over")
        heir, its_life = self._store.me
        taken = replace(entry, owner=heir, life=its_life)
        self._store.put_entry(taken)
        return taken

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
        for entry in self.unfinished():
            if entry.concerns(site):
                raise Busy(entry)

    def _entry(self, entry_id: int) -> Entry:
        entry = self._store.entry(entry_id)
        if entry is None:
            raise NotAllowed(f"migration {entry_id}: there is none in the journal")
        return entry

    def _own(self, entry_id: int) -> Entry:
        entry = self._entry(entry_id)
        if (entry.owner, entry.life) != self._store.me:
            raise Superseded(f"{_called(entry)} was taken over by node {entry.owner}")
        return entry

    def _turn(self, entry_id: int, state: State) -> Entry:
        """The entry as it is in ``state``, if it may become that."""
        entry = self._own(entry_id)
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


def _check_fits(
    entry: Entry,
    placements: Sequence[Placement],
    side: Literal["source", "target"],
    holding: bool = False,
) -> None:
    """That ``placements`` are those of the site and of all that comes along, on that side."""
    allowed = {entry.site: getattr(entry, side)}
    allowed |= {each.site: getattr(each, side) for each in entry.along}
    for placement in placements:
        name, backend = placement.site, placement.backend
        if allowed.get(name) != backend:
            raise NotAllowed(
                f"{_called(entry)} would place {name} on {backend}: here it may only place "
                + " and ".join(f"{name} on {where}" for name, where in allowed.items())
            )
        if holding and placement.mode is not Mode.HOLDING:
            raise NotAllowed(f"{_called(entry)} would open the gate: not before it is finished")
    if missing := allowed.keys() - {placement.site for placement in placements}:
        raise NotAllowed(f"{_called(entry)} says nothing of {', '.join(sorted(missing))}")
