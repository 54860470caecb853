"""For how long a worker may serve without asking again: what a frozen process has to look at.

A process can be stopped at any moment, for any time, and wakes up as if nothing had been.
By then others may have been told that it serves nothing any more.  So there is a time after
which it must not touch a connection before the registry was asked, and it is compared with
the clock before each event.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic


class Permit:
    """When it ends, and what is to be done then."""

    __slots__ = ("on_lapse", "until")

    def __init__(self) -> None:
        self.until = inf  # monotonic seconds
        self.on_lapse: Callable[[], None] = lambda: None  # something was kept from being served

    def __repr__(self) -> str:
        return f"<Permit until {self.until:g}>"

    @property
    def lapsed(self) -> bool:
        """Whether it has ended."""
        return monotonic() > self.until
