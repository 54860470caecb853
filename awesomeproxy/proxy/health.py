"""Is a server well?  Asked every so often, once before a switch, and after a refusal.

:func:`check` sends one request of its own on a connection of its own.
:class:`Checks` repeats it for a site's servers and counts rises and falls.
:class:`Probe` knocks, after a backend has refused connections, until one is taken.

None of them touches the backend on which a held site is placed: after ``pause`` has
answered, not a byte goes there.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random
from typing import TYPE_CHECKING, Any

from h2.events import (
    ConnectionTerminated,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamReset,
)
from h2.exceptions import ProtocolError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from awesomeproxy.model import HealthCheck
from awesomeproxy.proxy.fields import Field
from awesomeproxy.proxy.messages import Malformed, response_of
from awesomeproxy.proxy.multiplex import WINDOW, Multiplex
from awesomeproxy.proxy.responses import MAX_HEAD, BadResponse, ResponseParser
from awesomeproxy.proxy.servers import LiveServer

if TYPE_CHECKING:
    from awesomeproxy.proxy.plane import Plane
    from awesomeproxy.proxy.site import LiveSite

AGENT = b"awesomeproxy-health-check"
KNOCK_TIMEOUT = 2.0  # seconds that a knock may take to be answered
KNOCK_FIRST = 0.05  # seconds until the first knock at a backend that refuses ...
KNOCK_LAST = 0.25  # ... and, doubling, between the later ones


class Unwell(Exception):
    """Why a server is not well."""


class _Check(Protocol):
    """Sends one GET and judges the status of the response; no request: the connection."""

    transport: Any

    def __init__(self, request: bytes, status: tuple[int, int], result: Deferred[None]) -> None:
        self._request = request
        self._status = status
        self._result: Deferred[None] | None = result
        self._parser = ResponseParser()
        self._parser.expect(False)
        self.call_off: Callable[[], object] | None = None

    def connectionMade(self) -> None:
        if self._result is None:
            self.transport.abortConnection()  # nobody wants to know any more
        elif self._request:
            self.transport.write(self._request)
        else:
            self.end(None)

    def dataReceived(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
        except BadResponse as bad:
            self.end(Unwell(str(bad)))
            return
        response = self._parser.response
        if response.head_complete:
            self.judge(response.status)

    def judge(self, status: int) -> None:
        """It has answered."""
        low, high = self._status
        if low <= status <= high:
            self.end(None)
        else:
            self.end(Unwell(f"it answered {status}"))

    def failed(self, reason: Failure) -> None:
        self.end(Unwell(reason.getErrorMessage().rstrip(".")))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.end(Unwell("it closed the connection without an answer"))

    def end(self, unwell: Unwell | None) -> None:
        result, self._result = self._result, None
        if result is None:
            return
        if self.transport is not None:
            self.transport.abortConnection()
        elif self.call_off is not None:
            self.call_off()
        if unwell is None:
            result.callback(None)
        else:
            result.errback(unwell)


class _Http2Check(_Check):
    """The same for a server that speaks HTTP/2; no request: its first words."""

    def __init__(
        self, fields: list[Field], status: tuple[int, int], result: Deferred[None]
    ) -> None:
        super().__init__(b"", status, result)
        self._fields = fields
        self._h2 = Multiplex(client=True, settings={}, max_list=MAX_HEAD)

    def connectionMade(self) -> None:
        if self._result is None:
            super().connectionMade()
            return
        head = self._h2.begin(WINDOW)
        if self._fields:
            self._h2.send_headers(1, self._fields, end_stream=True)
        self.transport.write(head + self._h2.data_to_send())

    def dataReceived(self, data: bytes) -> None:
        try:
            for event in self._h2.receive_data(data):
                if isinstance(event, ResponseReceived):
                    self.judge(response_of(event.headers).status)
                elif isinstance(event, RemoteSettingsChanged) and not self._fields:
                    self.end(None)
                elif isinstance(event, StreamReset | ConnectionTerminated):
                    self.end(Unwell("it has not answered the request"))
        except (ProtocolError, Malformed) as fault:
            self.end(Unwell(f"its HTTP/2 is not well-formed: {fault}"))


def check(
    plane: Plane, server: LiveServer, health: HealthCheck | None, host: str, timeout: float
) -> Deferred[None]:
    """Ask ``server`` once; without ``health``, only whether it takes a connection.

    :param host: for the Host field, where ``health`` names none.
    :param timeout: seconds for all of it.
    :return: fires with None, or fails with :class:`Unwell`.
    """
    result: Deferred[None] = Deferred(lambda _: protocol.end(Unwell("the check was cancelled")))
    host = health.host or host if health is not None else host
    path = health.path if health is not None else ""
    status = health.status if health is not None else (100, 999)
    protocol: _Check
    if server.server.http2:
        fields = [
            (b":method", b"GET"),
            (b":scheme", b"https" if server.server.tls else b"http"),
            (b":authority", host.encode()),
            (b":path", path.encode()),
            (b"user-agent", AGENT),
        ]
        protocol = _Http2Check(fields if path else [], status, result)
    else:
        request = b"GET %b HTTP/1.1\r\nHost: %b\r\nUser-Agent: %b\r\nConnection: close\r\n\r\n" % (
            path.encode(),
            host.encode(),
            AGENT,
        )
        protocol = _Check(request if path else b"", status, result)
    protocol.call_off = server.dial(plane, protocol, protocol.failed, timeout)
    late = plane.reactor.callLater(
        timeout, protocol.end, Unwell(f"it did not answer within {timeout:g} s")
    )

    def ended(outcome: Any) -> Any:
        if late.active():
            late.cancel()
        return outcome

    return result.addBoth(ended)


class Checks:
    """The repeated check of one server."""

    __slots__ = ("_health", "_next", "_running", "_server", "_site", "_stopped", "_streak")

    def __init__(self, site: LiveSite, server: LiveServer, health: HealthCheck) -> None:
        self._site = site
        self._server = server
        self._health = health
        self._streak = 0  # results in a row that speak against the present judgement
        self._running: Deferred[None] | None = None
        self._next: IDelayedCall | None = None
        self._stopped = False
        # Of thousands that begin together, each has an instant of its own.
        self._schedule(health.interval * random())

    def interrupt(self) -> None:
        """Let go of the check that is running, which proves nothing then."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            self._schedule(self._health.interval)

    def stop(self) -> None:
        """Check no more."""
        self._stopped = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._running is not None:
            self._running.cancel()

    def _schedule(self, delay: float) -> None:
        if not self._stopped:
            self._next = self._site.plane.reactor.callLater(delay, self._check)

    def _check(self) -> None:
        self._next = None
        if self._site.quiet(self._server.backend):
            self._schedule(self._health.interval)
            return
        self._running = check(
            self._site.plane,
            self._server,
            self._health,
            self._site.host,
            self._health.timeout,
        )
        self._running.addCallbacks(lambda _: self._judge(""), lambda f: self._judge(str(f.value)))

    def _judge(self, why: str) -> None:
        if self._running is None or self._stopped:
            return
        self._running = None
        server = self._server
        self._streak = 0 if bool(why) != server.healthy else self._streak + 1
        if why and server.healthy and self._streak >= self._health.fall:
            server.healthy, server.trouble, self._streak = False, why, 0
        elif not why and not server.healthy and self._streak >= self._health.rise:
            server.healthy, server.trouble, self._streak = True, "", 0
            server.fails = 0
            self._site.server_back(server.backend)
        self._schedule(self._health.interval)


class Probe:
    """Knocks at a site's backend until a server takes a connection."""

    def __init__(self, site: LiveSite) -> None:
        self._site = site
        self._delay = KNOCK_FIRST
        self._running: list[Deferred[None]] = []
        self._next: IDelayedCall | None = site.plane.reactor.callLater(self._delay, self._knock)

    def stop(self) -> None:
        """Knock no more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self.interrupt()

    def interrupt(self) -> None:
        """Let go of the knocks that are under way."""
        running, self._running = self._running, []
        for deferred in running:
            deferred.cancel()

    def _knock(self) -> None:
        site = self._site
        self._delay = min(KNOCK_LAST, self._delay * 2)
        self._next = site.plane.reactor.callLater(self._delay, self._knock)
        if self._running or site.gate.holding or site.plane.permit.lapsed:
            return
        backend = site.backend
        for server in backend.servers if backend is not None else ():
            if server.healthy:
                deferred = check(site.plane, server, None, site.host, KNOCK_TIMEOUT)
                self._running.append(deferred)
                deferred.addCallbacks(
                    self._answered,
                    self._silent,
                    callbackArgs=(deferred,),
                    errbackArgs=(deferred,),
                )

    def _answered(self, result: None, deferred: Deferred[None]) -> None:
        if deferred in self._running:
            self._running.remove(deferred)
            self._site.reachable()

    def _silent(self, failure: Failure, deferred: Deferred[None]) -> None:
        if deferred in self._running:
            self._running.remove(deferred)
