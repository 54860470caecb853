"""``defaultdict(Deferred)``, made safe: attach to something that may happen later.

The pleasure of the idiom is that there is no housekeeping::

    await on_mount.wait("blog")     # here
    on_mount.fire("blog")           # and, some time, there

Its naive form hands every waiter the *same* Deferred, so that one waiter's
result becomes the next one's, cancelling one cancels all, and looking a name up
creates it.  Here each waiter owns its Deferred; cancelling removes just that
waiter; firing takes the waiters out first and fires them afterwards, so that
whatever they do in turn meets a consistent table; and a key exists only while
somebody waits for it.

A wait never fails.  It ends in an :class:`~awesomeproxy.model.Outcome`.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from awesomeproxy.model import Outcome

K = TypeVar("K", bound=Hashable)


class Waiter:
    """One wait: when it began, what it keeps, and the Deferred that is its own."""

    __slots__ = ("deferred", "in_line", "since", "size")

    def __init__(self, since: float, size: int) -> None:
        self.since = since
        self.size = size
        self.in_line = True
        self.deferred: Deferred[Outcome] | None = None  # None once it has ended


class Waiters:
    """Those who wait for one thing, first come first served.

    Leaving is cheap wherever in the line one stands: the place is marked empty,
    and the line is closed up when half of it is.
    """

    __slots__ = ("_arrivals", "_line", "bytes", "count")

    def __init__(self) -> None:
        self._line: list[tuple[float, int, Waiter]] = []  # a heap
        self._arrivals = 0
        self.count = 0
        self.bytes = 0

    def __len__(self) -> int:
        return self.count

    def wait(self, *, since: float = 0.0, size: int = 0) -> Deferred[Outcome]:
        """Stand in line, behind all whose wait began earlier.

        :param since: the time at which the wait counts as begun, in seconds.
        :param size: what the waiter keeps in memory, in bytes.
        :return: fires with the outcome; cancelling it is leaving, outcome ``GONE``.
        """
        waiter = Waiter(since, size)
        waiter.deferred = Deferred(lambda _: self._end(waiter, Outcome.GONE))
        self._arrivals += 1
        heapq.heappush(self._line, (since, self._arrivals, waiter))
        self.count += 1
        self.bytes += size
        return waiter.deferred

    def first(self) -> Waiter | None:
        """Who has waited longest, if anybody waits."""
        line = self._line
        while line and not line[0][2].in_line:
            heapq.heappop(line)
        return line[0][2] if line else None

    def fire_first(self, outcome: Outcome) -> None:
        """End the longest wait."""
        waiter = self.first()
        if waiter is not None:
            heapq.heappop(self._line)
            self._end(waiter, outcome)

    def fire(self, outcome: Outcome) -> int:
        """End every wait there is now, in order; return how many there were.

        Those who begin to wait while the others are told are not among them.
        """
        line, self._line = self._line, []
        waiters = [waiter for _, _, waiter in sorted(line) if waiter.in_line]
        # All leave the line before the first is told, who may well look at it.
        self.count = self.bytes = 0
        for waiter in waiters:
            waiter.in_line = False
        for waiter in waiters:
            self._end(waiter, outcome)
        return len(waiters)

    def _end(self, waiter: Waiter, outcome: Outcome) -> None:
        deferred, waiter.deferred = waiter.deferred, None
        if deferred is None:
            return
        if waiter.in_line:
            waiter.in_line = False
            self.count -= 1
            self.bytes -= waiter.size
            if len(self._line) > 32 and len(self._line) > 2 * self.count:
                self._line = [entry for entry in self._line if entry[2].in_line]
                heapq.heapify(self._line)
        deferred.callback(outcome)


class Happenings(Generic[K]):
    """Things that may happen again and again, by key."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiters: dict[K, Waiters] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def wait(self, key: K, timeout: float | None = None) -> Deferred[Outcome]:
        """Wait until ``key`` is fired.

        :param timeout: seconds after which the outcome is ``TIMED_OUT``; less than 0 is 0.
        """
        deferred = self._waiters.setdefault(key, Waiters()).wait()
        if timeout is None:
            return deferred.addCallback(self._forget, key, None)
        ended = _Timeout(deferred)
        ended.call = self._clock.callLater(max(0.0, timeout), ended.expire)
        return deferred.addCallback(self._forget, key, ended)

    def fire(self, key: K, outcome: Outcome = Outcome.RELEASED) -> int:
        """It has happened: end every wait for ``key``; return how many there were."""
        waiters = self._waiters.pop(key, None)
        return waiters.fire(outcome) if waiters is not None else 0

    def fire_all(self, outcome: Outcome) -> None:
        """End every wait for every key, as when whatever fires them shuts down."""
        for key in list(self._waiters):
            self.fire(key, outcome)

    def _forget(self, outcome: Outcome, key: K, ended: _Timeout | None) -> Outcome:
        waiters = self._waiters.get(key)
        if waiters is not None and not waiters:
            del self._waiters[key]
        if ended is not None:
            if ended.expired:
                return Outcome.TIMED_OUT
            if ended.call is not None and ended.call.active():
                ended.call.cancel()
        return outcome


class _Timeout:
    """A deadline of one wait: expiring is leaving, told apart by ``expired``."""

    __slots__ = ("call", "deferred", "expired")

    def __init__(self, deferred: Deferred[Outcome]) -> None:
        self.deferred = deferred
        self.expired = False
        self.call: IDelayedCall | None = None

    def expire(self) -> None:
        self.expired = True
        self.deferred.cancel()


class Once:
    """A thing that happens once: late waiters are told at once."""

    __slots__ = ("_outcome", "_waiters")

    def __init__(self) -> None:
        self._waiters = Waiters()
        self._outcome: Outcome | None = None

    @property
    def happened(self) -> bool:
        """Whether it has."""
        return self._outcome is not None

    def wait(self) -> Deferred[Outcome]:
        """Wait for it, or be told at once that it has happened."""
        deferred = self._waiters.wait()
        if self._outcome is not None:
            self._waiters.fire(self._outcome)
        return deferred

    def fire(self, outcome: Outcome = Outcome.RELEASED) -> None:
        """It has happened.  Only the first time counts."""
        if self._outcome is None:
            self._outcome = outcome
            self._waiters.fire(outcome)
