"""A connection after its protocol was switched: two transports, and bytes between them.

What is spoken is none of our business any more.  The slower side sets the pace, either
side's end is the other's, and nothing that was said before the end is lost.  At the gate
a tunnel does not count as a request in flight, but a site is not drained while it has
one.

WebSocket, which it mostly is, knows how to part: either side says so with a Close frame,
which the other answers, and then the server closes the connection.  When it is the proxy
that wants an end, it says Close to both, to each where no frame is under way towards it,
and passes nothing on behind that.  The server's connection is the server's to close, the
client's is closed when the client has answered.  None of this is waited for longer than
for a moment; and where the two were parting anyway, they are let.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from awesomeproxy.proxy.fields import names_in
from awesomeproxy.proxy.sweep import NEVER
from awesomeproxy.proxy.websocket import (
    GOING_AWAY,
    PROTOCOL,
    SERVICE_RESTART,
    Frames,
    close_frame,
    masked_close_frame,
)

if TYPE_CHECKING:
    from awesomeproxy.proxy.exchange import Exchange
    from awesomeproxy.proxy.interfaces import IClient
    from awesomeproxy.proxy.upstream import ServerConnection

PATIENCE = 1.0  # seconds that two who speak WebSocket may take to part


class Tunnel:
    """Bytes between a client and a server, on behalf of the exchange that led to it."""

    def __init__(self, exchange: Exchange, client: IClient, server: ServerConnection) -> None:
        self._exchange = exchange
        self._client = client
        self._server = server
        self._to_client = Way(server.transport, client.transport)
        self._to_server = Way(client.transport, server.transport)
        self._websocket = False
        self.parting = False  # it has been told to end
        self._closed = False

    def open(self, head: bytes) -> None:
        """Tell the client that its upgrade was accepted, and begin to pass on bytes.

        :param head: of the response that says so.
        """
        client, server = self._client, self._server
        if names_in(server.response.upgrade) == {PROTOCOL}:
            self._websocket = True
            self._to_client.frames = Frames()
            self._to_server.frames = Frames()
        late, server.parser.rest = server.parser.rest, b""
        client.transport.write(head)
        server.deadline = NEVER
        server.tunnel = self
        early = client.begin_tunnel(self)
        self._to_client.begin()
        self._to_server.begin()
        self._exchange.site.tunnel_opened(self, bypass=self._exchange.bypass)
        self.from_server(late)
        self.from_client(early)

    def from_client(self, data: bytes) -> None:
        """The client has said ``data``."""
        if not self._closed:
            self._to_server.say(data)
            self._moved()

    def from_server(self, data: bytes) -> None:
        """The server has said ``data``."""
        if not self._closed:
            self._exchange.bytes_sent += self._to_client.say(data)
            self._moved()

    def _moved(self) -> None:
        if self.parting:
            self._parted()
            return
        site = self._exchange.site
        timeouts = site.site.timeouts
        patience = timeouts.websocket if self._websocket else timeouts.tunnel
        self._client.deadline = site.plane.seconds() + patience

    # Parting

    @property
    def can_part(self) -> bool:
        """Whether it can be ended with a word, and has not been yet."""
        return self._websocket and not self.parting and not self._closed

    def part(self, code: int, patience: float = PATIENCE) -> None:
        """Have both sides say goodbye.

        :param code: why, for the client; to the server it is the client that goes.
        :param patience: seconds; what has not ended by then is cut.
        """
        self.parting = True
        site = self._exchange.site
        self._client.deadline = site.plane.seconds() + min(patience, PATIENCE)
        if not self._to_client.closed and not self._to_server.closed:
            self._to_client.end(close_frame(code))
            self._to_server.end(masked_close_frame(GOING_AWAY))

    def _parted(self) -> None:
        """Close if nobody has anything to say any more."""
        if self._to_server.closed and not self._server.ready:
            self._close()

    def expired(self, now: float) -> None:
        """Nothing has moved for too long, or the two do not part."""
        if self.can_part:
            self.part(GOING_AWAY)
        else:
            self.cut()

    def cut(self) -> None:
        """End it now; with a word to either side that speaks WebSocket and can hear it."""
        if self._websocket and not self._closed:
            self._to_client.end(close_frame(SERVICE_RESTART))
            self._to_server.end(masked_close_frame(GOING_AWAY))
        self._close()

    def close(self) -> None:
        """A side has ended: so does the other, once what is under way has been sent."""
        if self.parting and not self._server.ready and self._client.transport.connected:
            # Its goodbye is still to be heard: closing on a client that speaks resets it,
            # and it might not even read why.
            self._to_server.drop()
            self._parted()
        else:
            self._close()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._exchange.site.tunnel_closed(self)
        self._server.close()
        self._client.end_tunnel()
        self._exchange.tunnel_closed()


class Way:
    """One of the two ways through a tunnel: what comes from ``source`` goes to ``sink``."""

    def __init__(self, source: Any, sink: Any) -> None:
        self._source = Source(source)
        self._sink = sink
        self.frames: Frames | None = None  # where WebSocket is spoken
        self._last = b""  # what is to be said when the present frame has ended
        self._dropping = False

    @property
    def closed(self) -> bool:
        """Whether its source has said goodbye."""
        return self.frames is not None and self.frames.closed

    def begin(self) -> None:
        """Let the slower side set the pace."""
        self._sink.registerProducer(self._source, True)

    def say(self, data: bytes) -> int:
        """Pass on ``data``; return how many bytes of it were."""
        frames = self.frames
        size = len(data)
        if frames is not None:
            if self._last:
                passed = 0 if self._dropping else frames.feed(data, to_end=True)
                if passed:
                    self._sink.write(data[:passed])
                    self._try_to_end()
                frames.feed(data[passed:])
                return passed
            frames.feed(data)
        self._sink.write(data)
        return size

    def end(self, last: bytes) -> None:
        """Say ``last`` as soon as no frame is under way, and nothing after it."""
        if not self._last and not self._dropping and not self.closed:
            self._last = last
            self._try_to_end()

    def _try_to_end(self) -> None:
        assert self.frames is not None
        if self.frames.between and not self.frames.closed:
            self._sink.write(self._last)
            self.drop()

    def drop(self) -> None:
        """Nothing passes from here on; but what comes is listened to."""
        self._dropping = True
        self._sink.unregisterProducer()
        self._source.resumeProducing()


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
