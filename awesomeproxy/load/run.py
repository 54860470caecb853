"""Drives a plan: sends each request when it is due, and never waits for the last one.

The requests of an open loop are due at fixed moments, ``n / rate`` after the start.
One alarm wakes for the next of them, and every answer that comes in looks too, so
that at high rates the schedule is kept far finer than any alarm could.  A due request
goes out on the idle connection used last (the least likely to have been closed
meanwhile), else a connection is opened for it, else it queues.

::

    due -> idle connection? ---- yes ---> sent -> answered, truncated, ...
            | no                           ^
           fewer than allowed? -- yes -> opening -> refused
            | no                           ^
           queue ------- one is free or gone

A request that is opening or queueing is bounded by its timeout as well, and all
of this counts as its latency.  Nothing is allocated per request but its bytes: no
Deferred, no timer; a coarse sweep finds the timed out.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import TCPTimedOutError, TimeoutError
from twisted.internet.interfaces import IConnector, IDelayedCall
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from awesomeproxy.load.alarm import Alarm, alarm
from awesomeproxy.load.connection import NOT_HELD, Connecting, Connection
from awesomeproxy.load.outcome import RequestOutcome
from awesomeproxy.load.plan import Plan, PlanError, RequestWriter, body_check
from awesomeproxy.load.result import Progress, Result

SWEEP = 0.25  # seconds between two looks for requests that have timed out
REPORT = 0.5  # seconds between two reports of progress

_NEVER = float("inf")
_SOON = 0.001


async def run(
    reactor: Any,
    plan: Plan,
    progress: Callable[[Progress], None] | None = None,
    stop: Deferred[Any] | None = None,
) -> Result:
    """Do what the plan says.

    :param progress: is told twice a second how far it is.
    :param stop: when it fires no more requests are sent; those that are under way end first.
    :raises PlanError: if the URL's host has no address.
    """
    load = Run(reactor, plan, progress)
    if stop is not None:

        def stopped(result: object) -> object:
            load.stop()
            return result

        stop.addCallback(stopped)
    return await load.go()


class Run:
    """One run of a plan.  Its ``result`` can be read, and marked, while it goes on."""

    def __init__(
        self,
        reactor: Any,
        plan: Plan,
        progress: Callable[[Progress], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.plan = plan
        self.result = Result(plan)
        self._reactor = reactor
        self._progress = progress
        self._clock = clock
        self._zero = 0.0
        self._now = 0.0  # when the last request ended
        self._request = RequestWriter(plan)
        self._check = body_check(plan.expect_body)
        self._connecting: Connecting
        self._connections: set[Connection] = set()
        self._connectors: dict[int, IConnector] = {}
        self._open = 0  # connections, opening ones included
        self._idle: dict[Connection, None] = {}  # a set that remembers which came last
        self._queue: deque[int] = deque()
        self._last = plan.count or -1  # how many requests there will be; -1: not known yet
        self._next_due = 0.0 if plan.rate else _NEVER
        self._latencies: list[float] = []  # of the requests that ended since the last report
        self._reported = 0.0
        self._alarm: Alarm
        self._timers: dict[str, IDelayedCall] = {}
        self._ended: Deferred[None] = Deferred()
        self._empty: Deferred[None] | None = None

    async def go(self) -> Result:
        """Run it to the end.

        :raises PlanError: if the URL's host has no address.
        """
        address = "" if self.plan.unix else await _resolve(self.plan.host)
        self._connecting = Connecting(self._reactor, self.plan, self, address)
        self._alarm = alarm(self._reactor, self._wake)
        self.result.began = time.time()
        self._zero = self._clock()
        cpu = time.process_time()
        if not self._ended.called:
            self._every("sweep", min(SWEEP, self.plan.timeout / 4), self._sweep)
            self._every("report", REPORT, self._report)
            if self.plan.rate:
                self._wake()
            else:
                self._timers["end"] = self._reactor.callLater(self.plan.duration, self.stop)
                for _ in range(self.plan.connections):
                    self._issue(self._clock() - self._zero)
        try:
            await self._ended
        finally:
            self.result.elapsed = self._clock() - self._zero
            self.result.cpu = time.process_time() - cpu
            self._report()
            await self._disconnect()
        return self.result

    def stop(self) -> None:
        """Send no more; the run ends when the requests under way have ended."""
        if self._last < 0 or self._last > self.result.issued:
            self._last = self.result.issued
            self._next_due = _NEVER
            if self.result.finished == self._last:
                self._end()

    def abandon(self) -> None:
        """End now: requests under way stay unfinished."""
        if self._ended.called:
            return
        self.result.interrupted = True
        self.stop()
        self._end()

    # The schedule

    def _wake(self) -> None:
        now = self._clock() - self._zero
        if now >= self._next_due:
            self._send_due(now)
        if self.result.issued < self._last:
            wait = self._next_due - (self._clock() - self._zero)
            self._alarm.set(max(wait, self._alarm.finest))

    def _send_due(self, now: float) -> None:
        rate, result = self.plan.rate, self.result
        result.longest_lag = max(result.longest_lag, now - self._next_due)
        last = min(self._last, int(now * rate) + 1)
        while result.issued < last:
            self._issue(result.issued / rate)
        self._next_due = result.issued / rate if result.issued < self._last else _NEVER

    def _issue(self, due: float) -> None:
        number = self.result.issue(due)
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.usable() and self._send(connection, number):
                return
            self._replace(connection)
        if self._open < self.plan.connections:
            self._connect(number)
        else:
            self._queue.append(number)

    def _send(self, connection: Connection, number: int) -> bool:
        self.result.sent[number] = self._clock() - self._zero
        if connection.carry(number, self._request(number)):
            return True
        self.result.sent[number] = 0.0
        return False

    def _replace(self, connection: Connection) -> None:
        self.result.replaced += 1
        connection.close()

    def _connect(self, number: int) -> None:
        self._open += 1
        left = self.result.due[number] + self.plan.timeout - (self._clock() - self._zero)
        self._connectors[number] = self._connecting.open(number, max(left, _SOON))

    # What connections report

    def opened(self, connection: Connection) -> None:
        """Send the request that it was opened for."""
        number = connection.number
        self.result.opened += 1
        self._connectors.pop(number, None)
        self._connections.add(connection)
        if self._ended.called:
            connection.abort()
        elif not self._send(connection, number):
            self.finished(number, RequestOutcome.RESET, 0, NOT_HELD, "closed as soon as opened")
            connection.close()

    def unopened(self, number: int, reason: Failure) -> None:
        """The request that it was to be opened for has failed."""
        self._connectors.pop(number, None)
        if not self._ended.called:
            late = isinstance(reason.value, TimeoutError | TCPTimedOutError)
            outcome = RequestOutcome.TIMED_OUT if late else RequestOutcome.REFUSED
            self.finished(number, outcome, 0, NOT_HELD, reason.getErrorMessage())
        self._gone()

    def judge(self, number: int, status: int, body: bytes) -> RequestOutcome:
        """Compare a whole response with what is expected."""
        if status not in self.plan.expect:
            return RequestOutcome.STATUS
        if self._check is not None and not self._check(number, body):
            return RequestOutcome.WRONG_BODY
        return RequestOutcome.OK

    def finished(
        self, number: int, outcome: RequestOutcome, status: int, held: float, why: str = ""
    ) -> None:
        """Record how a request has ended."""
        result = self.result
        now = self._clock() - self._zero
        result.finish(number, now, outcome, status, held)
        self._latencies.append(now - result.due[number])
        if why:
            result.reasons[f"{outcome.word}: {why}"] += 1
        self._now = now
        if result.finished == self._last:
            self._end()

    def free(self, connection: Connection) -> None:
        """Let it carry the next request that waits, or be idle."""
        if self._queue:
            number = self._queue.popleft()
        elif self._last < 0:
            number = self.result.issue(self._clock() - self._zero)
        else:
            self._idle[connection] = None
            if self._now >= self._next_due:
                self._send_due(self._now)
            return
        if not (connection.usable() and self._send(connection, number)):
            self._queue.appendleft(number)  # the next connection takes it: its place, if no other
            self._replace(connection)

    def closed(self, connection: Connection) -> None:
        """Open another in its place if a request waits for one."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        self._gone()

    def stray(self) -> None:
        """Count bytes that answer no request."""
        self.result.strays += 1

    def _gone(self) -> None:
        self._open -= 1
        if self._ended.called:
            if not self._open and self._empty is not None:
                self._empty.callback(None)
        elif self._queue:
            self._connect(self._queue.popleft())
        elif self._last < 0:
            self._issue(self._clock() - self._zero)

    # Now and then

    def _every(self, name: str, seconds: float, do: Callable[[], None]) -> None:
        def again() -> None:
            do()
            if not self._ended.called:
                self._timers[name] = self._reactor.callLater(seconds, again)

        self._timers[name] = self._reactor.callLater(seconds, again)

    def _sweep(self) -> None:
        due = self.result.due
        expired = self._clock() - self._zero - self.plan.timeout
        while self._queue and due[self._queue[0]] < expired:
            number = self._queue.popleft()
            why = "no connection was free"
            self.finished(number, RequestOutcome.TIMED_OUT, 0, NOT_HELD, why)
        for connection in list(self._connections):
            if connection.number >= 0 and due[connection.number] < expired:
                connection.expire("no whole response")

    def _report(self) -> None:
        latencies, self._latencies = self._latencies, []
        if self._progress is None:
            return
        result = self.result
        now = self._clock() - self._zero
        since, self._reported = now - self._reported, now
        waiting = len(self._queue)
        self._progress(
            Progress(
                elapsed=now,
                issued=result.issued,
                finished=result.finished,
                failed=result.failed,
                held=result.held_requests,
                in_flight=result.issued - result.finished - waiting,
                waiting=waiting,
                rate=len(latencies) / since if since else 0.0,
                median=median(latencies) if latencies else 0.0,
                longest=max(latencies, default=0.0),
            )
        )

    # The end

    def _end(self) -> None:
        if not self._ended.called:
            self._ended.callback(None)

    async def _disconnect(self) -> None:
        self._alarm.cancel()
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        for connector in list(self._connectors.values()):
            connector.stopConnecting()
        for connection in list(self._connections):
            if connection.number >= 0:
                connection.abort()
            else:
                connection.close()
        if self._open:
            self._empty = Deferred()
            await self._empty


async def _resolve(host: str) -> str:
    """Find the address of a host once, rather than for each connection."""
    if isIPAddress(host) or isIPv6Address(host):
        return host
    try:
        found = await deferToThread(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise PlanError(f"the URL's host {host!r} has no address: {error.strerror}") from error
    addresses = sorted(found, key=lambda info: info[0] != socket.AF_INET)
    return str(addresses[0][4][0])
