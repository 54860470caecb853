"""The tunnels of a site that is held: ended by a deadline, but not all at once.

Clients that speak WebSocket come back as soon as they are told to go.  If thousands were
told in the same moment, they would all come back in the next: so they are told one after
the other, evenly, and so that the last has had time to say goodbye when the deadline is
there.  What does not speak WebSocket cannot be told anything, and is closed at the
deadline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from awesomeproxy.proxy.tunnel import PATIENCE
from awesomeproxy.proxy.websocket import SERVICE_RESTART

if TYPE_CHECKING:
    from awesomeproxy.proxy.site import LiveSite

TICK = 0.05  # seconds: several are told at a time rather than to wake up more often


class Stagger:
    """Ends the tunnels of one site, and of those it follows."""

    __slots__ = ("_call", "_clock", "_end", "_last", "_since", "_site")

    def __init__(self, site: LiveSite, clock: IReactorTime) -> None:
        self._site = site
        self._clock = clock
        self._call: IDelayedCall | None = None
        self._since = 0.0  # up to when those who were due have been told
        self._last = 0.0  # when the last is to be told
        self._end = 0.0

    def start(self, told: float, closed: float | None = None) -> None:
        """Begin, if there is anything to end; what has begun goes on as it was meant to.

        :param told: seconds in which those that speak WebSocket have parted.
        :param closed: seconds after which everything is closed; None: the same.
        """
        if self._call is not None:
            self._call.reset(0)  # there may be one more
        elif self._site.all_tunnels():
            now = self._clock.seconds()
            self._since = now
            self._last = now + max(0.0, told - PATIENCE)
            self._end = now + (told if closed is None else closed)
            # Not from within whatever has brought this about.
            self._call = self._clock.callLater(0, self._step)

    def stop(self) -> None:
        """Those that have not been told yet may stay."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _step(self) -> None:
        self._call = None
        now = self._clock.seconds()
        if now >= self._end:
            self._site.close_tunnels()
            return
        tunnels = self._site.all_tunnels()
        if not tunnels:
            return
        untold = [tunnel for tunnel in tunnels if tunnel.can_part]
        due = self._due(len(untold), now)
        for tunnel in untold[:due]:
            self._site.closed += 1
            tunnel.part(SERVICE_RESTART, self._end - now)
        left = len(untold) - due
        delay = self._end - now
        if left:
            delay = min(delay, max(TICK, (self._last - now) / left))
        self._call = self._clock.callLater(delay, self._step)

    def _due(self, untold: int, now: float) -> int:
        """How many of so many are to be told now: their share of the time that has passed."""
        since, self._since = self._since, now
        if now >= self._last:
            return untold
        return min(untold, max(1, round(untold * (now - since) / (self._last - since))))
