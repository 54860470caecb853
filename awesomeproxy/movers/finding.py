"""Movers by name: those that come with the proxy, and those that others have added."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from awesomeproxy.movers.interface import Kind

GROUP = "awesomeproxy.movers"


def names() -> list[str]:
    """The names of all movers that are installed."""
    return sorted({point.name for point in entry_points(group=GROUP)})


@cache
def find(name: str) -> Kind:
    """The mover called ``name``.

    :raise ValueError: there is none, or it cannot be used; the message says what to write.
    """
    for point in entry_points(group=GROUP, name=name):
        try:
            kind = point.load()
        except Exception as problem:  # somebody else's code
            raise ValueError(f"{name!r} cannot be used: {problem}; see to {point.value}") from None
        if not isinstance(kind, Kind):
            raise ValueError(f"{name!r} is no mover: {point.value} is not a Kind; see to it")
        return kind
    raise ValueError(f"{name!r} is not a mover; write {' or '.join(names())}")
