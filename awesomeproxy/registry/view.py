"""What a node knows of the registry: a copy of all its records, each with its version.

Versions are numbers of changes, one after the other.  What is heard is taken over at once, but
counts as all that there is only if nothing is missing before it; whoever has to know asks for
what came after the last version up to which nothing is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from sys import intern
from typing import Any

from twisted.logger import Logger

from awesomeproxy.model import Generation, Mode, Placement
from awesomeproxy.registry.book import HISTORY
from awesomeproxy.registry.interface import Entry
from awesomeproxy.registry.records import entry_of, entry_text, placement_of, placement_text

log = Logger()

RECENT = 1000  # records of which it is known by which change
EPOCH = 1 << 32  # how far the versions, and the generations, of two epochs are apart at least


@dataclass(slots=True)
class Change:
    """What has become another, by name."""

    placements: set[str] = field(default_factory=set)
    definitions: set[str] = field(default_factory=set)
    entries: set[int] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return any((self.placements, self.definitions, self.entries, self.nodes))


class View:
    """The records."""

    def __init__(self, keep: int = HISTORY) -> None:
        """
        :param keep: how many migrations are remembered.
        """
        self._keep = keep
        self.placements: dict[str, Placement] = {}
        self.definitions: dict[str, str] = {}  # as JSON: they are many, and rarely read
        self.forgotten: dict[str, Generation] = {}
        self.entries: dict[int, Entry] = {}  # those that have not ended
        self.ended: dict[int, str] = {}  # the others, as JSON
        self.nodes: dict[str, dict[str, Any]] = {}
        self.last_id = 0
        self.version = 0  # up to here nothing is missing
        self._changes: dict[str, str] = {}  # what has made records so, of those changed last
        # Of each record, by hash and field; of lost ones, too.
        self._versions: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def stored(self, key: str) -> str:
        """The version of a record as the scripts know it; "0": there is none."""
        name, item = key.split("/", 1)
        version = self._versions[name].get(item, 0)
        return str(version) if version and self._has(name, item) else "0"

    def heard(self, message: str) -> tuple[Change, bool]:
        """Take over what was published, or what a change of ours has answered.

        :return: what it has changed, and whether something is missing now.
        """
        head, *lines = message.split("\n")
        change = self.take(lines)
        newest = int(head.split()[1])
        versions = [int(line.split(" ", 2)[1]) for line in lines if line]
        if versions and versions[0] <= self.version + 1:
            self.version = max(self.version, versions[-1])
        return change, newest > self.version

    def take(self, lines: list[str]) -> Change:
        """Take over records, each as ``HASH/FIELD VERSION BODY``, that are newer than ours."""
        change = Change()
        for line in lines:
            if line:
                key, version, body = line.split(" ", 2)
                name, item = key.split("/", 1)
                versions = self._versions[name]
                if int(version) > versions.get(item, 0):
                    item = intern(item)  # records of the same name, and there may be very many
                    try:
                        self._take(name, item, body, change)
                    except (ValueError, KeyError, TypeError) as problem:
                        # Not ours: it changes nothing, and others go on.
                        log.error("{key} cannot be read: {why!r}", key=key, why=problem)
                    else:
                        versions[item] = int(version)
        return change

    def aged(self) -> dict[int, str]:
        """Migrations that have not ended, as far as is known, though others of their age are
        not remembered any more; and the versions of their records."""
        oldest = self.last_id - self._keep
        return {each: self.stored(f"journal/{each}") for each in self.entries if each <= oldest}

    def drop_aged(self, number: int, version: str) -> Change:
        """Remember a migration no more, unless something was heard of it after ``version``."""
        if self.stored(f"journal/{number}") != version:
            return Change()
        del self.entries[number], self._versions["journal"][str(number)]
        return Change(entries={number})

    def lost(self, kept: dict[int, int]) -> list[list[str]]:
        """What we have, and a fail-over has lost: arguments for the script ``mend``.

        :param kept: by epoch, the last version that it began with.
        """
        epochs = sorted(kept)
        found = []
        for name, versions in self._versions.items():
            for item, version in versions.items():
                later = next((each for each in epochs if each > version // EPOCH), None)
                if later is not None and version > kept[later]:
                    body, flag = self._body(name, item)
                    if body or name in ("placements", "definitions"):
                        found.append([name, item, str(version), body, flag])
        return found

    def take_nodes(self, lines: list[str], epoch: int) -> Change:
        """Take over what the registry has of nodes, each as ``NODE VERSION BODY``.

        It may be older than what is known: that was lost, and is not given back.

        :param epoch: what is known of this one cannot have been lost.
        """
        versions = self._versions["nodes"]
        lost = {name for name, version in versions.items() if version < epoch * EPOCH}
        for name in lost:
            del versions[name]
        change = self.take([f"nodes/{line}" for line in lines if line])
        for name in lost - change.nodes:  # it was removed, or had not joined
            if self.nodes.pop(name, None) is not None:
                change.nodes.add(name)
        return change

    def _take(self, name: str, item: str, body: str, change: Change) -> None:
        if name == "placements":
            if body:
                fields = json.loads(body)
                self.placements[item] = placement_of(item, fields)
                self._made_by(name, item, fields["change"])
            else:
                self.placements.pop(item, None)
            change.placements.add(item)
        elif name == "definitions":
            if body:
                self.definitions[item] = body
            else:
                self.definitions.pop(item, None)
            change.definitions.add(item)
        elif name == "forgotten":
            if body:
                self.forgotten[item] = int(body)
            else:
                self.forgotten.pop(item, None)
        elif name == "journal":
            self._take_entry(int(item), body)
            change.entries.add(int(item))
        elif name == "nodes":
            if body:
                self.nodes[item] = json.loads(body)
            else:
                self.nodes.pop(item, None)
            change.nodes.add(item)
        elif name == "counters":
            self.last_id = int(body)
            for old in [each for each in self.ended if each <= self.last_id - self._keep]:
                del self.ended[old]
                self._versions["journal"].pop(str(old), None)

    def _take_entry(self, number: int, body: str) -> None:
        entry = entry_of(body)
        self._made_by("journal", str(number), json.loads(body)["change"])
        if entry.unfinished:
            self.entries[number] = entry
            return
        self.entries.pop(number, None)
        self.ended[number] = body

    def _made_by(self, name: str, item: str, change: str) -> None:
        key = f"{name}/{item}"
        self._changes.pop(key, None)
        self._changes[key] = change
        if len(self._changes) > RECENT:
            del self._changes[next(iter(self._changes))]

    def made(self, change: str) -> bool:
        """Whether a change is what has made a record as it is, of those changed last."""
        return change in self._changes.values()

    def _has(self, name: str, item: str) -> bool:
        if name == "journal":
            return int(item) in self.entries or int(item) in self.ended
        if name == "counters":
            return bool(self.last_id)
        return item in getattr(self, name)

    def _body(self, name: str, item: str) -> tuple[str, str]:
        """A record as it is written, and what that does to the gate, or to the journal."""
        change = self._changes.get(f"{name}/{item}", "")
        if name == "placements":
            placement = self.placements.get(item)
            if placement is None:
                return "", "open"
            return placement_text(placement, change), gate(placement)
        if name == "definitions":
            return self.definitions.get(item, ""), ""
        if name == "journal":
            number = int(item)
            unfinished = self.entries.get(number)
            if unfinished:
                return entry_text(unfinished, change), ""
            return self.ended.get(number, ""), "finished"
        if name == "counters":
            return str(self.last_id), ""
        if name == "forgotten":
            return str(self.forgotten.get(item, "")), ""
        return "", ""  # what nodes say of themselves they say anew


def gate(placement: Placement) -> str:
    """What a placement does to the gate, as the scripts call it."""
    return "hold" if placement.mode is Mode.HOLDING else "open"
