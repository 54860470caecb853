"""A node follows what other nodes have changed in the registry.

What is heard is only that something has changed.  What counts is what the registry's view
has by now, and of a placement only what is newer than what this node knows: its own changes
come back to it as well, perhaps late.  A definition that does not fit this node, because it
names something that is not in its file, stops nobody: the site is held here, and says why.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.logger import Logger

from awesomeproxy.composing import fitting
from awesomeproxy.config import ConfigError, uncollected
from awesomeproxy.migrate.planning import read
from awesomeproxy.model import Placement, Settings, Site
from awesomeproxy.registry.interface import Entry

log = Logger()


class View(Protocol):
    """What the registry has, as far as this node has read it."""

    @property
    def placements(self) -> Mapping[str, Placement]:
        """All of them, by name."""

    @property
    def definitions(self) -> Mapping[str, str]:
        """The tables of sites, as JSON."""

    @property
    def entries(self) -> Mapping[int, Entry]:
        """Migrations that have not ended."""


class Change(Protocol):
    """What has changed in a view: names, and numbers of entries."""

    @property
    def placements(self) -> Collection[str]:
        """Whose placement is another, or is gone."""

    @property
    def definitions(self) -> Collection[str]:
        """Whose definition is another, or is gone."""

    @property
    def entries(self) -> Collection[int]:
        """Which migrations have begun, gone on or ended."""


@dataclass(frozen=True, slots=True)
class Everything:
    """A :class:`Change` of all that there is."""

    placements: Collection[str]
    definitions: Collection[str]
    entries: Collection[int]


class Host(Protocol):
    """What is asked of the node."""

    settings: Settings
    sites: dict[str, Site]
    placements: dict[str, Placement]
    misfits: dict[str, str]

    def adopt(self, placement: Placement, *, heard: bool = False) -> None:
        """Converge to a placement."""

    def define(self, site: Site) -> None:
        """Serve a site as it is defined now."""

    def undefine(self, name: str) -> None:
        """Serve it no more."""

    def tell_changed(self, name: str) -> None:
        """Have those look who wait for a change."""


class Others(Protocol):
    """What is asked of who looks after migrations of other nodes."""

    others: dict[int, Entry]  # those that have not ended

    def own(self, entry: Entry) -> None:
        """A migration of this node's is in the journal."""

    def moved_elsewhere(self, entry: Entry) -> None:
        """A migration of another node has ended."""


class Tables(MutableMapping[str, dict[str, Any]]):
    """Tables of sites, kept as the text that the view has as well: there may be very many."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        table: dict[str, Any] = json.loads(self.texts[name])
        return table

    def __setitem__(self, name: str, table: dict[str, Any]) -> None:
        self.texts[name] = json.dumps(table)

    def __delitem__(self, name: str) -> None:
        del self.texts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


class Following:
    """Takes over what has changed in a view."""

    def __init__(self, host: Host, migrations: Others, view: View, me: str) -> None:
        """
        :param me: the node's name; migrations of its own are not followed.
        """
        self._host = host
        self._migrations = migrations
        self._view = view
        self._me = me
        self.tables = Tables()

    def __repr__(self) -> str:
        return f"<Following of {len(self._migrations.others)} migrations elsewhere>"

    def take_over_all(self) -> None:
        """Everything is as the view has it."""
        view = self._view
        definitions = {*self.tables, *view.definitions}
        entries = {*self._migrations.others, *view.entries}
        with uncollected():
            self.take_over(Everything(list(view.placements), definitions, entries))

    def fitting(self, settings: Settings) -> tuple[dict[str, Site], dict[str, str]]:
        """All sites under other settings, and which of them do not fit those, and why."""
        sites: dict[str, Site] = {}
        misfits: dict[str, str] = {}
        for name in self._view.definitions:
            site, misfit = self._site(settings, name, self.tables[name])
            if site is not None:
                sites[name] = site
            if misfit:
                misfits[name] = misfit
        return sites, misfits

    def _site(
        self, settings: Settings, name: str, table: dict[str, Any]
    ) -> tuple[Site | None, str]:
        """A site, if there can be one, and why it does not fit, if it does not."""
        if name not in self._host.placements:
            return None, f"sites.{name}: is not placed"
        try:
            return fitting(settings, name, table)
        except ConfigError as problem:
            return self._host.sites.get(name), str(problem)  # as it was: it is held anyway

    def take_over(self, change: Change) -> None:
        """Everything that ``change`` names is from now on as the view has it."""
        for number in change.entries:
            self._entry(number)
        for name in change.placements:
            self._placement(name)
        for name in change.definitions:
            self._definition(name)

    def _entry(self, number: int) -> None:
        """What others move is not to be taken for something that is not there."""
        entry = self._view.entries.get(number)
        before = self._migrations.others.pop(number, None)
        if entry is None:
            if before is not None:
                self._migrations.moved_elsewhere(before)
        elif before is not None or entry.owner != self._me:
            # One that this node has just taken over is the others' until it is taken up.
            self._migrations.others[number] = entry
        else:
            self._migrations.own(entry)
        if (known := entry or before) is not None:
            for member in read(known).members:
                self._host.tell_changed(member.name)

    def _placement(self, name: str) -> None:
        placement = self._view.placements.get(name)
        if placement is not None:
            is_new = name not in self._host.placements
            self._host.adopt(placement, heard=True)
            if is_new and name in self.tables.texts:  # its definition was heard before
                self._serve(name)
        elif name not in self._host.sites:
            self._host.placements.pop(name, None)

    def _definition(self, name: str) -> None:
        host = self._host
        text = self._view.definitions.get(name)
        if text is None:
            self.tables.pop(name, None)
            host.misfits.pop(name, None)
            if name in host.sites and name not in host.settings.sites:
                host.undefine(name)
                if name not in self._view.placements:
                    host.placements.pop(name, None)
            return
        if self.tables.texts.get(name) == text:
            return
        self.tables.texts[name] = text
        self._serve(name)

    def _serve(self, name: str) -> None:
        """Serve a site as it is defined now, or hold it if it does not fit."""
        host = self._host
        site, misfit = self._site(host.settings, name, self.tables[name])
        host.misfits.pop(name, None)
        if misfit:
            host.misfits[name] = misfit
            log.error("{misfit}; it is held on this node", misfit=misfit)
        if site is not None:
            host.define(site)
