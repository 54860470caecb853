"""One connection of the load client: it carries one request at a time.

A connection is opened for a request, sends it, reads the response to its end,
and is then free for the next, if the server lets it stay.  It knows how a
response ends (RFC 9112 section 6.3) and so what a cut one is; what is *expected*
of a response, and which request comes next, its owner knows.

What is counted, and what is not:

- A request is sent at most once.  If its connection ends without an answer it has
  failed, even where a browser would quietly try again: that is what is measured.
- A connection that is found closed *before* a byte of a request went out on it is
  replaced without a word: the server was free to close it.
- Bytes that answer no request are strays.  The request before them got its whole
  response and keeps its outcome; the strays are counted for themselves.

For speed the request goes straight to the kernel: the transport, which would wait
for a poll before each write, gets only what the kernel does not take at once.
"""

from __future__ import annotations

import socket
from typing import Any, cast
from typing import Protocol as Interface

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from twisted.internet import ssl
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IReactorTCP,
    IReactorUNIX,
    ISystemHandle,
    ITCPTransport,
)
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from awesomeproxy.load.outcome import RequestOutcome
from awesomeproxy.load.plan import Plan

HELD_HEADER = b"X-Awesomeproxy-Held"  # on the response to a held request: seconds it waited
IDLE = -1  # in place of the number of a request
NOT_HELD = -1.0

_HELD = HELD_HEADER.lower()


class Owner(Interface):
    """Whom a connection reports to."""

    def opened(self, connection: Connection) -> None:
        """It is open, and its request can be sent."""

    def unopened(self, number: int, reason: Failure) -> None:
        """No connection could be opened for request ``number``."""

    def judge(self, number: int, status: int, body: bytes) -> RequestOutcome:
        """What a whole response means."""

    def finished(
        self, number: int, outcome: RequestOutcome, status: int, held: float, why: str = ""
    ) -> None:
        """Request ``number`` has ended."""

    def free(self, connection: Connection) -> None:
        """It can carry another request."""

    def closed(self, connection: Connection) -> None:
        """It is gone."""

    def stray(self) -> None:
        """Bytes came that answer no request."""


class _Stray(Exception):
    """Raised inside the parser to stop it behind the end of a response."""


class Connection(Protocol):
    """A client's side of an HTTP/1.1 connection."""

    def __init__(self, owner: Owner, number: int, *, head_only: bool, keep_body: bool) -> None:
        """
        :param number: the request it is opened for.
        :param head_only: responses have no body, as they answer HEAD.
        :param keep_body: hand bodies to the owner's ``judge``.
        """
        self.number = number
        self._owner = owner
        self._head_only = head_only
        self._keep_body = keep_body
        self._socket: socket.socket | None = None
        self._tls = False
        self._eager = True
        self._status = 0
        self._framed = False  # the response says itself where it ends
        self._closing = False
        self._held = NOT_HELD
        self._parser = HttpResponseParser(self)
        self._begin()

    def _begin(self) -> None:
        self._begun = False  # a byte of the response has come
        self._headed = False  # the head of the response has come
        self._whole = False  # all of the response has come
        self._persistent = False
        self._body: list[bytes] = []

    # The request

    def connectionMade(self) -> None:
        """Find the socket, for eager writes and to see whether it has been closed."""
        transport = self.transport
        if isinstance(transport, TLSMemoryBIOProtocol):
            transport = transport.transport
            self._tls = True
            self._eager = False
        self._socket = cast(socket.socket, cast(ISystemHandle, transport).getHandle())
        if self._socket.family != socket.AF_UNIX:
            cast(ITCPTransport, transport).setTcpNoDelay(True)
        self._owner.opened(self)

    def usable(self) -> bool:
        """Whether nothing has come since the last response, not even its end.

        The reactor has not told of what came since it last polled, hence the look.
        """
        assert self._socket is not None
        try:
            early = self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if early and not self._tls:  # over TLS it may be a ticket or a farewell
            self._owner.stray()
        return False

    def carry(self, number: int, request: bytes) -> bool:
        """Send a request.

        :returns: whether it may have been sent.  If not, the connection was closed before
            any of it could be, and is of no use any more.
        """
        assert self.transport is not None
        self.number = number
        if not self._eager:
            self.transport.write(request)
        else:
            assert self._socket is not None
            try:
                taken = self._socket.send(request)
            except BlockingIOError:
                taken = 0
            except OSError:
                self.number = IDLE
                return False
            if taken < len(request):
                self._eager = False  # the transport has a queue now: never overtake it
                self.transport.write(request[taken:])
        return True

    # The response

    def dataReceived(self, data: bytes) -> None:
        """Part of a response, or something nobody asked for."""
        if self.number < 0:
            self._owner.stray()
            self.close()
            return
        self._begun = True
        stray = False
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            pass  # a 101: whole, and the end of HTTP on this connection
        except HttpParserError as error:
            if not self._whole:
                self._fail(RequestOutcome.MALFORMED, str(error))
                self.abort()
                return
            stray = True
        if self._whole:
            self._answered()
            if stray:
                self._owner.stray()
            if stray or not self._persistent:
                self.close()
            else:
                if self._head_only:
                    self._parser = HttpResponseParser(self)
                self._begin()
                self._owner.free(self)

    def on_message_begin(self) -> None:
        """A response, interim or final, begins."""
        if self._whole:
            raise _Stray
        self._framed = False
        self._closing = False
        self._held = NOT_HELD

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note how the body ends, and how long the request was held."""
        name = name.lower()
        if name == b"content-length":
            self._framed = True
        elif name == b"transfer-encoding":
            self._framed = value.lower().rstrip().endswith(b"chunked")
        elif name == b"connection":
            self._closing = b"close" in value.lower()
        elif name == _HELD:
            try:
                self._held = max(0.0, float(value))
            except ValueError:
                self._held = 0.0

    def on_headers_complete(self) -> None:
        """The head is complete; to HEAD, that is all."""
        self._status = self._parser.get_status_code()
        if self._status < 200 and self._status != 101:
            return
        self._headed = True
        if self._head_only:
            # The parser cannot know, and would wait for a body: it is replaced.
            self._whole = True
            self._persistent = not self._closing and self._parser.get_http_version() == "1.1"

    def on_body(self, data: bytes) -> None:
        """Part of the body."""
        if self._whole:
            raise _Stray
        if self._keep_body:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """The end of a response, unless it was an interim one."""
        if self._headed and not self._whole:
            self._whole = True
            self._persistent = self._status != 101 and self._parser.should_keep_alive()

    def _answered(self) -> None:
        number, self.number = self.number, IDLE
        outcome = self._owner.judge(number, self._status, b"".join(self._body))
        self._owner.finished(number, outcome, self._status, self._held)

    def _fail(self, outcome: RequestOutcome, why: str) -> None:
        number, self.number = self.number, IDLE
        status, held = (self._status, self._held) if self._headed else (0, NOT_HELD)
        self._owner.finished(number, outcome, status, held, why)

    # The end

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end of the connection, and of a response that lasts until then."""
        if self.number >= 0:
            why = reason.getErrorMessage()
            if not self._begun:
                self._fail(RequestOutcome.RESET, why)
            elif self._headed and not self._framed and isinstance(reason.value, ConnectionDone):
                self._answered()
            else:
                self._fail(RequestOutcome.TRUNCATED, why)
        self._owner.closed(self)

    def expire(self, why: str) -> None:
        """Give the request it carries up as timed out."""
        self._fail(RequestOutcome.TIMED_OUT, why)
        self.abort()

    def close(self) -> None:
        """Close it; nothing is being carried."""
        assert self.transport is not None
        if self._eager:
            self.transport.loseConnection()
        else:
            self.abort()  # with something queued, or over TLS, an orderly end might never come

    def abort(self) -> None:
        """Cut it, whatever it carries: that request stays unfinished."""
        self.number = IDLE
        cast(ITCPTransport, self.transport).abortConnection()


class _Opening(ClientFactory):
    noisy = False

    def __init__(self, plan: Plan, owner: Owner, number: int) -> None:
        self._plan = plan
        self._owner = owner
        self._number = number

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        return Connection(
            self._owner,
            self._number,
            head_only=self._plan.method == "HEAD",
            keep_body=bool(self._plan.expect_body),
        )

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        self._owner.unopened(self._number, reason)


class Connecting:
    """Opens the connections of a plan."""

    def __init__(self, reactor: object, plan: Plan, owner: Owner, address: str) -> None:
        """
        :param address: the IP address to connect to; not used for a Unix socket.
        """
        self._reactor = reactor
        self._plan = plan
        self._owner = owner
        self._address = address
        self._tls = _tls_options(plan) if plan.tls else None

    def open(self, number: int, timeout: float) -> IConnector:
        """Begin to open a connection for request ``number``, and give up after ``timeout``."""
        factory: ClientFactory = _Opening(self._plan, self._owner, number)
        if self._tls is not None:
            factory = cast(ClientFactory, TLSMemoryBIOFactory(self._tls, True, factory))
        if self._plan.unix:
            unix = cast(IReactorUNIX, self._reactor)
            return unix.connectUNIX(self._plan.unix, factory, timeout)
        tcp = cast(IReactorTCP, self._reactor)
        return tcp.connectTCP(self._address, self._plan.port, factory, timeout)


def _tls_options(plan: Plan) -> Any:
    if plan.insecure:
        return ssl.CertificateOptions(verify=False)
    return ssl.optionsForClientTLS(plan.host)
