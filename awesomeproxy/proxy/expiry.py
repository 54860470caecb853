"""The end of a hold's welcome: a deadline that a worker keeps, even with no daemon there.

A hold that outlives its deadline refuses what comes from then on.  One that is to end in a
resume is ended by the daemon instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from awesomeproxy.model import Mode, Placement

OVERDUE = "the pause has outlived its deadline; resume or pause it again"


class Expiry:
    """Watches the deadline of one hold at a time."""

    __slots__ = ("_call", "_now", "_reactor", "_refuse")

    def __init__(
        self, reactor: Any, refuse: Callable[[], object], now: Callable[[], float]
    ) -> None:
        """
        :param refuse: called when the deadline is over.
        :param now: the time that deadlines are in, in seconds.
        """
        self._reactor = reactor
        self._refuse = refuse
        self._now = now
        self._call: IDelayedCall | None = None

    def watch(self, placement: Placement) -> None:
        """Watch this one's, and none that was watched before."""
        self.stop()
        expires = placement.expires
        if placement.mode is Mode.HOLDING and expires is not None and placement.then == "refuse":
            left = expires - self._now()
            if left > 0:
                self._call = self._reactor.callLater(left, self._over)
            else:
                self._refuse()

    def stop(self) -> None:
        """Watch no more."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _over(self) -> None:
        self._call = None
        self._refuse()
