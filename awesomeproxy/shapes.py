"""Tables and lists of readers: how a whole document is read in one pass, to its end.

A *reader* takes one value and returns what it stands for, or raises
:class:`ValueError` (see :mod:`awesomeproxy.quantities`).  A :class:`Shape` is a
table of them: which keys there are, how each is read, and what is made of the
lot.  :class:`Several` and :class:`Named` are the lists and the tables of tables.

What is wrong is noted at its :class:`Spot`; the default of what is being made,
or a blank, takes its place; and reading goes on, so that all the problems are
told at once.  Who started the reading must look at the notes before using
anything of what came out.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from awesomeproxy.addresses import name
from awesomeproxy.quantities import show

T = TypeVar("T")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_NOTHING: Any = object()  # what a reader that failed came back with


Keys = tuple[str, ...]


class Notes:
    """What is wrong in a document: where, and how."""

    __slots__ = ("_marred", "texts")

    def __init__(self) -> None:
        self.texts: list[tuple[Keys, str]] = []
        self._marred: set[Keys] = set()

    def add(self, keys: Keys, text: str) -> None:
        """Note what is wrong at ``keys``."""
        self.texts.append((keys, text))
        self._marred.update(keys[:depth] for depth in range(len(keys) + 1))

    def mar(self, keys: Keys) -> bool:
        """Whether anything there or below has been noted."""
        return keys in self._marred


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a document, and the notes of what is wrong in all of the document."""

    source: str  # what the document is called: the file's path
    keys: Keys = ()  # the way to the place, each step as it is printed
    notes: Notes = field(default_factory=Notes)

    def at(self, key: str) -> Spot:
        """The place of ``key`` in the table that is here."""
        step = key if _BARE_KEY.fullmatch(key) else show(key)
        return Spot(self.source, (*self.keys, f".{step}" if self.keys else step), self.notes)

    def item(self, index: int) -> Spot:
        """The place of one item, counted from 0, of the list that is here."""
        return Spot(self.source, (*self.keys, f"[{index}]"), self.notes)

    def wrong(self, text: str) -> None:
        """Note that what is here is wrong; ``text`` says how, and what to do."""
        self.notes.add(self.keys, text)

    @property
    def marred(self) -> bool:
        """Whether anything here or below has been noted."""
        return self.notes.mar(self.keys)

    def lines(self) -> tuple[str, ...]:
        """All the notes of the document, one line each."""
        return tuple(f"{self.source}: {''.join(keys)}: {text}" for keys, text in self.notes.texts)


class Structure(ABC, Generic[T]):
    """A reader that notes the problems of its parts, as against one that raises its own."""

    @abstractmethod
    def read(self, value: object, spot: Spot) -> T:
        """What ``value``, found at ``spot``, stands for.

        Raises ValueError only if ``value`` is not this structure at all.
        """


Reader = Callable[[object], Any] | Structure[Any]


def _read(reader: Reader, value: object, spot: Spot) -> Any:
    try:
        return reader.read(value, spot) if isinstance(reader, Structure) else reader(value)
    except ValueError as problem:
        spot.wrong(str(problem))
        return _NOTHING


@dataclass(frozen=True)
class Shape(Structure[T]):
    """A table: its keys with their readers, and what is made of their values.

    ``needed`` are the keys that must be there, each with the blank that stands in
    for it until the problem is told.  ``check`` is given what was made, to note
    what is wrong between keys.
    """

    make: Callable[..., T]
    keys: Mapping[str, Reader]
    needed: Mapping[str, object] = field(default_factory=dict)
    check: Callable[[T, Spot], None] | None = None

    def read(self, value: object, spot: Spot, **given: object) -> T:
        """What the table stands for; ``given`` are values that it does not hold itself."""
        if not isinstance(value, Mapping):
            raise ValueError(f"{show(value)} is not a table; write key = value pairs")
        for key in map(str, value):
            if key not in self.keys:
                spot.at(key).wrong(f"is not a key here; {self._remedy(key)}")
        fields = {**self.needed, **given}
        for key, reader in self.keys.items():
            if key in value:
                read = _read(reader, value[key], spot.at(key))
                if read is not _NOTHING:
                    fields[key] = read
            elif key in self.needed:
                like = reader.like if isinstance(reader, Several) else "it"
                spot.at(key).wrong(f"is missing; add {like}")
        made = self.make(**fields)
        if self.check is not None:
            self.check(made, spot)
        return made

    def _remedy(self, key: str) -> str:
        near = difflib.get_close_matches(key[:80], self.keys, n=1)
        return f"did you mean {show(near[0])}?" if near else f"the keys are {', '.join(self.keys)}"


@dataclass(frozen=True)
class Several(Structure[tuple[Any, ...]]):
    """A list of values that are all read the same way, none of them twice."""

    reader: Reader
    like: str  # what to write, for an error's text
    empty: bool = False  # whether it may be

    def read(self, value: object, spot: Spot) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{show(value)} is not a list; write {self.like}")
        if not value and not self.empty:
            raise ValueError(f"is empty; write {self.like}")
        items: dict[Any, None] = {}
        for index, each in enumerate(value):
            at = spot.item(index)
            item = _read(self.reader, each, at)
            if at.marred:  # with its blanks it may equal another that is as bad
                continue
            if item in items:
                at.wrong(f"{show(each)} is here twice; leave one out")
            items[item] = None
        return tuple(items)


@dataclass(frozen=True)
class Named(Structure[dict[str, T]]):
    """A table of tables, each under a name that its author has chosen."""

    shape: Any  # a Shape, or another structure whose ``read`` takes what is given
    empty: bool = False  # whether it may be
    told: bool = True  # whether ``shape`` is given the name, as ``name``

    def read(self, value: object, spot: Spot) -> dict[str, T]:
        if not isinstance(value, Mapping):
            raise ValueError(f"{show(value)} is not a table; write a table for each name")
        if not value and not self.empty:
            raise ValueError("is empty; add at least one")
        tables = {str(key): table for key, table in value.items()}
        read = {key: self.read_one(key, table, spot.at(key)) for key, table in tables.items()}
        return {key: made for key, made in read.items() if made is not None}

    def read_one(self, key: str, table: object, spot: Spot) -> T | None:
        """What the table named ``key`` stands for; None, with a note, if it is no table."""
        _read(name, key, spot)
        try:
            given = {"name": key} if self.told else {}
            made: T = self.shape.read(table, spot, **given)
            return made
        except ValueError as problem:
            spot.wrong(str(problem))
            return None
