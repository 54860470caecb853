"""Movers by name: those that come with the proxy, and those that others have added."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.metadata import entry_points

from awesomeproxy.movers.kind import Kind

GROUP = "awesomeproxy.movers"


def names(carries: str) -> list[str]:
    """The names of the movers that are installed and carry a filesystem, or a database."""
    found = []
    for name in sorted({point.name for point in entry_points(group=GROUP)}):
        with suppress(ValueError):
            kind = find(name)
            if kind is not None and kind.carries == carries:
                found.append(name)
    return found


@cache
def find(name: str) -> Kind | None:
    """The mover called ``name``; None if there is none.

    :raise ValueError: it cannot be used; the message says why.
    """
    for point in entry_points(group=GROUP, name=name):
        try:
            kind = point.load()
        except Exception as problem:  # somebody else's code
            raise ValueError(f'"{name}" cannot be used: {problem}; see to {point.value}') from None
        if not isinstance(kind, Kind):
            raise ValueError(f'"{name}" is no mover: {point.value} is not a Kind; see to it')
        return kind
    return None
