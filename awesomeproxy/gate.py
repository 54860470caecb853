"""One site's gate: it counts what is in flight and queues what is held.

Every request of the site comes through here.  :meth:`Gate.enter` is the whole
of the usual way: one comparison and one addition, which together are *one step*
-- between the check and the count nothing else can run, so once a gate holds, no
request is on its way that was not counted.

Whether a request may pass comes down to a single number, the *window*: how many
may be in flight.  It is

- 0 while the gate holds (an operator's pause, a migration), and while no server
  of the backend can be reached;
- the site's ``max_in_flight`` in ordinary times;
- in between for a while after a release, the *ramp*, so that a backend with cold
  caches does not meet ten thousand requests at once.

Who may not pass waits in line, bounded by count, bytes and age, and goes on in
the order of arrival: a newcomer never overtakes those who wait.  A wait ends in
``RELEASED`` (and the request has been counted in flight, again in one step),
``TIMED_OUT``, ``REFUSED`` or ``GONE``.

A gate knows neither backends nor connections: whoever is released looks up where
the site is placed *then*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from awesomeproxy.happenings import Waiters
from awesomeproxy.model import HoldLimits, Outcome, Ramp
from awesomeproxy.proxy.permit import Permit

UNBOUNDED = 1 << 30


@dataclass(slots=True)
class HeldTotal:
    """What all gates of a process hold together, and how much they may."""

    max_requests: int
    max_bytes: int
    permit: Permit = field(default_factory=Permit)  # after which nobody is let on
    requests: int = 0
    bytes: int = 0


class Gate:
    """The door of one site.  ``clock`` is asked only when something is held."""

    __slots__ = (
        "_budget",
        "_clock",
        "_expiry",
        "_growth",
        "_limit",
        "_limits",
        "_line",
        "_on_idle",
        "_ramp",
        "_releasing",
        "_total",
        "_trouble_since",
        "departed",
        "held",
        "holding",
        "in_flight",
        "longest_wait",
        "refused",
        "refusing",
        "released",
        "trouble",
        "window",
    )

    def __init__(
        self,
        clock: IReactorTime,
        limits: HoldLimits = HoldLimits(),
        *,
        ramp: Ramp = Ramp(),
        max_in_flight: int = 0,
        budget: float = 15.0,
        total: HeldTotal | None = None,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        """
        :param limits: how much may wait here, and for how long.
        :param max_in_flight: how many may be in flight; 0: any number.
        :param budget: seconds a request waits for a backend that cannot be reached.
        :param total: the bounds shared with the process's other gates.
        :param on_idle: called when the last request in flight leaves a holding gate.
        """
        self._clock = clock
        self._total = total or HeldTotal(UNBOUNDED, UNBOUNDED)
        self._on_idle = on_idle
        self._line = Waiters()
        self._releasing = False
        self._expiry: IDelayedCall | None = None
        self._growth: IDelayedCall | None = None
        self._trouble_since = 0.0

        self.holding = False
        self.refusing = ""  # why requests are refused instead of held
        self.trouble = ""  # why requests are held although the gate is open
        self.in_flight = 0
        self.held = 0  # counts since the start, from here on
        self.released = 0
        self.departed = 0
        self.refused = 0
        self.longest_wait = 0.0  # of those released since the last hold, in seconds
        self.window = 0
        self.configure(limits, ramp=ramp, max_in_flight=max_in_flight, budget=budget)
        self.window = self._limit

    def __repr__(self) -> str:
        return (
            f"<Gate {self.state}: {self.in_flight} in flight of {self.window},"
            f" {len(self._line)} held>"
        )

    @property
    def state(self) -> str:
        """One word for people: open, holding, draining, releasing, unreachable, refusing."""
        if self.refusing:
            return "refusing"
        if self.holding:
            return "draining" if self.in_flight else "holding"
        if self.trouble:
            return "unreachable"
        return "releasing" if self._line else "open"

    @property
    def waiting(self) -> int:
        """How many requests are held now."""
        return len(self._line)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes the held requests keep in memory."""
        return self._line.bytes

    def configure(
        self, limits: HoldLimits, *, ramp: Ramp, max_in_flight: int, budget: float
    ) -> None:
        """Take over new bounds; those who wait already stay, for as long as those now say."""
        self._limits = limits
        self._ramp = ramp
        self._budget = budget
        self._limit = max_in_flight or UNBOUNDED
        if self._growth is not None:
            self.window = min(self.window, self._limit)
        elif self.window:
            self.window = self._limit
        self._expiry_changed()
        self._release()

    # The usual way

    def enter(self) -> bool:
        """Count a request in flight if it may pass now; else it has to :meth:`wait`."""
        if self.in_flight < self.window and not self._line.count:
            self.in_flight += 1
            return True
        return False

    def leave(self) -> None:
        """A request that was counted in flight no longer is."""
        self.in_flight -= 1
        if self._growth is not None and self.window < self._limit:
            self.window += 1
        if self.holding:
            if not self.in_flight:
                self._on_idle()
        elif self._line.count:
            self._release()

    # Waiting

    def wait(self, size: int, since: float | None = None) -> Deferred[Outcome]:
        """Hold a request.

        :param size: what the held request keeps in memory, in bytes.
        :param since: for one that comes back because no server took it: the clock's
            time when it first came, which is its place in line.
        :return: fires with ``RELEASED`` (counted in flight already), ``TIMED_OUT`` or
            ``REFUSED``; cancelling it is leaving the line, which gives ``GONE``.
        """
        total = self._total
        if (
            self.refusing
            or len(self._line) >= self._limits.max_requests
            or self._line.bytes + size > self._limits.max_bytes
            or total.requests >= total.max_requests
            or total.bytes + size > total.max_bytes
        ):
            self.refused += 1
            return succeed(Outcome.REFUSED)
        now = self._clock.seconds()
        began = now if since is None else since
        total.requests += 1
        total.bytes += size
        self.held += 1
        deferred = self._line.wait(since=began, size=size)
        deferred.addCallback(self._ended, began, size)
        if self._expiry is None:
            self._watch_expiry()
        elif since is not None:
            self._expiry_changed()
        if self.window:
            # At the bound, or behind others: but one that came back may be first in line.
            self._release()
        return deferred

    def _ended(self, outcome: Outcome, began: float, size: int) -> Outcome:
        self._total.requests -= 1
        self._total.bytes -= size
        if outcome is Outcome.RELEASED:
            self.released += 1
            self.longest_wait = max(self.longest_wait, self._clock.seconds() - began)
        elif outcome is Outcome.GONE:
            self.departed += 1
        else:
            self.refused += 1
        if not self._line.count and self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        return outcome

    def _release(self) -> None:
        """Let on as many as the window allows.  Those let on may come back at once."""
        if self._releasing or self._total.permit.lapsed:
            return
        self._releasing = True
        try:
            while self._line.count and self.in_flight < self.window:
                self.in_flight += 1
                self._line.fire_first(Outcome.RELEASED)
        finally:
            self._releasing = False

    def resume(self) -> None:
        """The permit was renewed: let on whoever may go on."""
        if self._line.count:
            self._release()

    # Age

    def _expires(self, since: float) -> float:
        longest = since + self._limits.max_time
        if self.trouble and not self.holding:
            began = max(since, self._trouble_since)
            # A server that comes and goes does not renew the budget for ever.
            return min(began + min(self._budget, self._limits.max_time), longest + self._budget)
        return longest

    def _watch_expiry(self) -> None:
        first = self._line.first()
        if first is None:
            self._expiry = None
            return
        delay = max(0.0, self._expires(first.since) - self._clock.seconds())
        self._expiry = self._clock.callLater(delay, self._expire)

    def _expire(self) -> None:
        # Arrival order is age order, so only the head of the line can be overdue.
        self._expiry = None
        now = self._clock.seconds()
        while (first := self._line.first()) is not None and self._expires(first.since) <= now:
            self._line.fire_first(Outcome.TIMED_OUT)
        if self._expiry is None:
            self._watch_expiry()

    def _expiry_changed(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._watch_expiry()

    # The door itself

    def hold(self) -> None:
        """From here on no request passes.  In flight is what :attr:`in_flight` says."""
        if not self.holding:
            self.holding = True
            self.longest_wait = 0.0
        self.refusing = ""
        self._set_window(0)
        self._expiry_changed()

    def open(self) -> None:
        """Release what is held, in order and along the ramp, and let new requests pass."""
        if not self.holding and not self.refusing:
            return
        self.holding = False
        self.refusing = ""
        self._trouble_since = self._clock.seconds()  # who was held has not waited for a server
        self._reopen()

    def refuse(self, why: str) -> None:
        """Hold, but answer instead of keeping: the hold has outlived its deadline."""
        self.hold()
        self.refusing = why or "refusing"
        self._line.fire(Outcome.REFUSED)

    def unreachable(self, why: str) -> None:
        """No server takes requests: they wait, within their budget, until :meth:`reachable`."""
        if not self.trouble:
            self._trouble_since = self._clock.seconds()
        self.trouble = why or "no server can be reached"
        self._set_window(0)
        self._expiry_changed()

    def reachable(self) -> None:
        """A server takes requests again."""
        if self.trouble:
            self.trouble = ""
            self._reopen()

    def close(self) -> None:
        """The site is gone, or the process ends: refuse what is held, for good."""
        self.refuse("the site is being removed or the proxy is shutting down")

    def _reopen(self) -> None:
        self._expiry_changed()
        if self.holding or self.trouble:
            return
        if not self._ramp.start or self._ramp.start >= self._limit:
            self._set_window(self._limit)
        else:
            self._set_window(self._ramp.start)
            self._growth = self._clock.callLater(self._ramp.double_every, self._grow)
        self._release()

    def _grow(self) -> None:
        self._growth = None
        window = self.window * 2
        # Nothing waits and nothing is near the bound: the backend keeps up.
        if window >= self._limit or (not self._line.count and self.in_flight < window // 4):
            self._set_window(self._limit)
        else:
            self.window = window
            self._growth = self._clock.callLater(self._ramp.double_every, self._grow)
        self._release()

    def _set_window(self, window: int) -> None:
        if self._growth is not None:
            self._growth.cancel()
            self._growth = None
        self.window = window
