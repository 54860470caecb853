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
            if find(name).carries == carries:
                found.append(name)
    return found


@cache
def find(name: str) -> Kind:
    """The mover called ``name``.

    :raise ValueError: there is none, or it cannot be used; the message says what to write.
    """
    for point in entry_points(group=GROUP, name=name):
        try:
            kind = point.load()
        except Exception as problem:  # somebody else's code
            raise ValueError(f'"{name}" cannot be used: {problem}; see to {point.value}') from None
        if not isinstance(kind, Kind):
            raise ValueError(f'"{name}" is no mover: {point.value} is not a Kind; see to it')
        return kind
    others = sorted({point.name for point in entry_points(group=GROUP)})
    known = " or ".join(f'"{other}"' for other in others)
    raise ValueError(f'"{name}" is not a mover; write {known}')
