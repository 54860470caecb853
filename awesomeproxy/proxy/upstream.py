"""Connections to servers.

A connection carries one exchange at a time and is pooled in between.  It knows how
to be opened, what its response parser says, and when its time is up; what that
means for the request is the exchange's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from awesomeproxy.proxy.heads import Origin, chunk, last_chunk, request_head
from awesomeproxy.proxy.interfaces import ICarrier, IClient, IServerLink
from awesomeproxy.proxy.proxyprotocol import Ends
from awesomeproxy.proxy.requests import Request
from awesomeproxy.proxy.responses import BadResponse, Response, ResponseParser
from awesomeproxy.proxy.secure import fault_of
from awesomeproxy.proxy.servers import LiveServer
from awesomeproxy.proxy.sockets import is_silent
from awesomeproxy.proxy.sweep import NEVER

if TYPE_CHECKING:
    from awesomeproxy.proxy.exchange import Exchange
    from awesomeproxy.proxy.site import LiveSite
    from awesomeproxy.proxy.tunnel import Tunnel


FLUSH = 5.0  # seconds that a server may take for the last of what it is sent


@implementer(ICarrier, IServerLink)
class ServerConnection(Protocol):
    """One connection to a server of a site, in HTTP/1.1."""

    transport: Any

    def __init__(self, site: LiveSite, server: LiveServer, exchange: Exchange) -> None:
        self.site = site
        self.server = server
        self.exchange: Exchange | None = exchange
        self.parser = ResponseParser()
        self.interims = self.parser.interim
        self.tunnel: Tunnel | None = None  # once the protocol has been switched
        self.heard = False  # a byte has come for the present exchange
        self.taken_seen: int | None = None  # of a request's body, when it was last late
        self.reused = False
        self.deadline = NEVER
        self.idle_since = 0.0
        self._call_off: Callable[[], object] | None = None  # while it is being opened

    def __repr__(self) -> str:
        state = "idle" if self.exchange is None else repr(self.exchange)
        return f"<ServerConnection {self.server.server}: {state}>"

    @property
    def open(self) -> bool:
        """Whether the server, as far as the kernel knows, still listens on it."""
        return bool(self.transport.connected) and is_silent(self.transport.socket)

    @property
    def ready(self) -> bool:
        """Whether it is connected."""
        return self.transport is not None and bool(self.transport.connected)

    @property
    def response(self) -> Response:
        """What has come of the response."""
        return self.parser.response

    @property
    def unsent(self) -> int:
        """Bytes that the server has not taken yet."""
        return int(self.transport.unsent)

    def carriers(self) -> list[ICarrier]:
        """Itself, while it carries an exchange."""
        return [self] if self.exchange is not None else []

    # Opening

    def connect(self, timeout: float) -> None:
        """Open it; the exchange is told ``connected`` or ``not_connected``."""
        self.server.busy += 1
        self.site.connections[self] = None
        plane = self.site.plane
        if plane.crowded:
            self._failed(no_file())
            return
        plane.links.add(self)
        ends = None
        if self.exchange is not None and self.exchange.client is not None:
            arrival = self.exchange.client.arrival
            ends = Ends(arrival.address, arrival.port, arrival.local, arrival.local_port)
        self._call_off = self.server.dial(plane, self, self._failed, timeout, ends)

    def connectionMade(self) -> None:
        """The server's kernel has taken the connection."""
        self._call_off = None
        self.site.plane.sweep.add(self)
        if self.server.server.scheme != "unix":
            self.transport.setTcpNoDelay(True)
        if self.exchange is None:
            self.close()
        else:
            self.exchange.connected(self)

    def _failed(self, reason: Failure) -> None:
        self._call_off = None
        self._gone()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.not_connected(self, reason.getErrorMessage())

    # Use

    def send(self, request: Request, origin: Origin, parts: list[bytes], last: bool) -> None:
        """Send head and body, as far as it has arrived, in one write."""
        self.heard = False
        self.parser.expect(request.method == b"HEAD")
        head = request_head(request, origin, self.site.plane.via[request.version])
        if parts or request.chunked:
            head += _framed(request, parts, last)
        self.transport.write(head)

    def send_body(self, request: Request, parts: list[bytes], last: bool) -> None:
        """Send more of the body."""
        self.transport.write(_framed(request, parts, last))

    def pull_from(self, client: IClient) -> None:
        """Let the slower side set the pace."""
        self.transport.registerProducer(client, True)

    def pulled(self) -> None:
        """No more of the body will come."""
        self.transport.unregisterProducer()

    def pauseProducing(self) -> None:
        """The client takes the response more slowly than it comes."""
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """It has taken what there was."""
        if self.transport.connected:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The client is gone: the exchange hears of it by itself."""

    def cancel(self) -> None:
        """HTTP/1.1 has no word for it: to close would say nothing of what is at work."""

    def ended(self) -> bool:
        """The server has closed its side; return whether its response is complete."""
        return self.parser.close()

    def dataReceived(self, data: bytes) -> None:
        """Part of a response, of a tunnel, or of what nobody asked for."""
        if self.tunnel is not None:
            self.tunnel.from_server(data)
            return
        fault = ""
        try:
            self.parser.feed(data)
        except BadResponse as bad:
            fault = str(bad)
        self.heard = True
        if self.exchange is None:
            self.abort()
        else:
            self.exchange.arrived(self, fault)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is closed, by either side."""
        self.site.plane.sweep.remove(self)
        self._gone()
        self.server.forget(self)
        exchange, self.exchange = self.exchange, None
        if self.tunnel is not None:
            self.tunnel.close()
        elif exchange is not None:
            exchange.lost(self, reason.type is ConnectionDone, fault_of(reason))
        self.parser.discard()

    def _gone(self) -> None:
        if self.exchange is not None:
            self.server.busy -= 1
        self.site.plane.links.discard(self)
        self.site.connections.pop(self, None)
        self.site.check_drained()

    def idle(self, now: float) -> None:
        """The exchange is over and the connection can carry another."""
        self.exchange = None
        server = self.server
        server.busy -= 1
        config = server.backend.config
        full = len(server.idle) >= config.max_idle
        # A PROXY header makes a connection one of that client alone.
        if server.backend.retired or self.site.gate.holding or full or config.send_proxy:
            self.close()
            return
        patience = config.idle_timeout
        announced = self.parser.response.keep_alive_timeout
        if announced >= 0:
            # A second less than the server's own, so that it is never the first to close.
            patience = min(patience, announced - 1)
            if patience <= 0:
                self.close()
                return
        self.reused = True
        self.idle_since = now
        self.deadline = now + patience
        server.keep(self)

    def expired(self, now: float) -> None:
        """The server has kept us waiting, or the connection has been idle for long enough."""
        self.deadline = NEVER
        if self.exchange is not None:
            self.exchange.server_late(self, now)
        elif self.transport.disconnecting:
            self.abort()
        else:
            self.close()

    def close(self) -> None:
        """Close it, once what was written has been sent."""
        self._let_go()
        if self._call_off is not None:
            self._call_off()
        elif self.transport is not None and self.transport.connected:
            self.deadline = self.site.plane.seconds() + FLUSH
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def abort(self) -> None:
        """Close it now; what was not sent is dropped."""
        self._let_go()
        if self._call_off is not None:
            self._call_off()
        elif self.transport is not None:
            self.transport.abortConnection()

    def _let_go(self) -> None:
        """It carries nothing any more."""
        self.deadline = NEVER
        if self.exchange is not None:
            self.exchange = None
            self.server.busy -= 1
        else:
            self.server.forget(self)


def no_file() -> Failure:
    """Why a connection is not even tried."""
    why = ConnectError(string="no file descriptor is left")  # type: ignore[no-untyped-call]
    return Failure(why)  # type: ignore[no-untyped-call]


def _framed(request: Request, parts: list[bytes], last: bool) -> bytes:
    """Parts of a request's body as they are sent."""
    if not request.chunked:
        return b"".join(parts)
    body = chunk(parts) if any(parts) else b""
    return body + last_chunk(request.trailers) if last else body
