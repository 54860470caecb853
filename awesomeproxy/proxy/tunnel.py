"""A connection after its protocol was switched: two transports, and bytes between them.

What is spoken is none of our business any more (WebSocket, mostly).  The slower side
sets the pace, either side's end is the other's, and nothing that was said before the end
is lost.  At the gate a tunnel does not count as a request in flight, but a site is not
drained while it has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from awesomeproxy.proxy.sweep import NEVER

if TYPE_CHECKING:
    from awesomeproxy.proxy.exchange import Exchange
    from awesomeproxy.proxy.interfaces import IClient
    from awesomeproxy.proxy.upstream import ServerConnection


class Tunnel:
    """Bytes between a client and a server, on behalf of the exchange that led to it."""

    def __init__(
        self, exchange: Exchange, client: IClient, server: ServerConnection
    ) -> None:
        self._exchange = exchange
        self._client = client
        self._server = server
        self._closed = False

    def open(self, head: bytes) -> None:
        """Tell the client that its upgrade was accepted, and begin to pass on bytes.

        :param head: of the response that says so.
        """
        client, server = self._client, self._server
        late, server.parser.rest = server.parser.rest, b""
        client.transport.write(head + late)
        server.deadline = NEVER
        server.tunnel = self
        early = client.begin_tunnel(self)
        client.transport.registerProducer(Source(server.transport), True)
        server.transport.registerProducer(Source(client.transport), True)
        self._exchange.site.tunnels.add(self)
        self.from_client(early)

    def from_client(self, data: bytes) -> None:
        """The client has said ``data``."""
        self._server.transport.write(data)
        self._moved()

    def from_server(self, data: bytes) -> None:
        """The server has said ``data``."""
        self._exchange.bytes_sent += len(data)
        self._client.transport.write(data)
        self._moved()

    def _moved(self) -> None:
        site = self._exchange.site
        self._client.deadline = site.plane.seconds() + site.site.timeouts.tunnel

    def close(self) -> None:
        """Close both sides, once what is under way has been sent."""
        if self._closed:
            return
        self._closed = True
        self._exchange.site.tunnels.discard(self)
        self._server.close()
        self._client.end_tunnel()
        self._exchange.tunnel_closed()


@implementer(IPushProducer)
class Source:
    """The transport that bytes come from, to be stopped while they cannot be passed on."""

    __slots__ = ("_transport",)

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def pauseProducing(self) -> None:
        """Read no more for now."""
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        if self._transport.connected:
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """The other side is gone; who owns this one will hear of it by itself."""
