"""Connections of clients: requests come in, one exchange at a time goes out.

Pipelined requests wait in the parser, and reading stops as soon as one is complete
behind the one that is being answered; so a connection keeps one read's worth of bytes
at the most.  A client is read from while it waits for its answer, because that is how
its leaving is noticed; where reading had to stop (a body that waits in the kernel, more
requests than one), the kernel is asked instead.

What a client may take its time with, and for how long, is :class:`ListenTimeouts`.  The
deadline of a head is absolute: a byte now and then does not move it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from awesomeproxy.model import Listen
from awesomeproxy.proxy.answers import Answer, explain
from awesomeproxy.proxy.arrival import Arrival
from awesomeproxy.proxy.exchange import Exchange
from awesomeproxy.proxy.fields import Field
from awesomeproxy.proxy.heads import (
    Origin,
    added,
    begin_response,
    chunk,
    interim_head,
    last_chunk,
    response_head,
)
from awesomeproxy.proxy.interfaces import IClient, IVisitor
from awesomeproxy.proxy.reception import receive
from awesomeproxy.proxy.requests import Refusal, Request, RequestParser
from awesomeproxy.proxy.responses import Response
from awesomeproxy.proxy.sockets import has_left, waits_to_be_read
from awesomeproxy.proxy.sweep import NEVER

if TYPE_CHECKING:
    from awesomeproxy.proxy.plane import Plane
    from awesomeproxy.proxy.tunnel import Tunnel

LINGER = 2.0  # seconds that a client may go on sending what nobody reads any more
ROOM = 256 * 1024  # bytes of answers that a client may leave untaken and still be answered
TOO_MANY = Refusal(503, "The proxy carries as many connections as it may.")
LOOK_AGAIN = 1.0  # seconds between looks whether a held client is still there


@implementer(IClient, IVisitor)
class ClientConnection(Protocol):
    """One connection of a client that speaks HTTP/1.1."""

    transport: Any

    def __init__(
        self,
        plane: Plane,
        listen: Listen,
        arrival: Arrival | None = None,
        turned_away: Refusal | None = None,
    ) -> None:
        """
        :param arrival: what has been learnt of the client already; None: ask the transport.
        :param turned_away: what it is told at once, for another reason than what it asks.
        """
        self.plane = plane
        self.listen = listen
        self.arrival = arrival
        self._turned_away = turned_away
        self.parser = RequestParser(listen)
        self.exchange: Exchange | None = None
        self.address = ""
        self.origin = Origin(b"unknown")
        self.deadline = NEVER
        self._tunnel: Tunnel | None = None  # once the protocol is switched
        self._advancing = False
        self._lingering = False
        self._paused = False  # nothing more is wanted for now
        self._full = False  # the server is slower than the client
        self._body_seen = 0  # of the present request's body, at the last look
        self._head_timed = False
        self._answering: Exchange | None = None  # what it took bytes of, at the last look: ...
        self._taken_seen = 0  # ... so many, ...
        self._unsent_seen = 0  # ... while so many waited, ...
        self._behind = False  # ... and whether the server had been told to wait for it
        self._keep_alive = True  # behind the present answer
        self._chunked = False  # the present answer's body

    def __repr__(self) -> str:
        return f"<ClientConnection {self.address}: {self.exchange!r}>"

    def connectionMade(self) -> None:
        """A client has come."""
        plane = self.plane
        plane.client_came(self)
        refusal = self._turned_away
        if self.arrival is None:
            if len(plane.clients) > plane.max_connections:
                refusal = TOO_MANY
            peer = self.transport.getPeer()
            address = getattr(peer, "host", "unix").removeprefix("::ffff:")
            if address != "unix":
                self.transport.setTcpNoDelay(True)
            host = self.transport.getHost()
            local = getattr(host, "host", "").removeprefix("::ffff:")
            port = getattr(host, "port", 0)
            self.arrival = Arrival(address, getattr(peer, "port", 0), local, port)
        self.address = self.arrival.address
        self.origin = plane.origin(self.arrival, self.listen)
        self.deadline = plane.seconds() + self.listen.timeouts.head
        if refusal is not None:
            self._refuse(refusal.status, refusal.reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client has gone, or was sent away."""
        if self.arrival is not None and self.arrival.counted:
            self.plane.visits.leave(self.address)
        self.plane.client_left(self)
        exchange, self.exchange = self.exchange, None
        if self._tunnel is not None:
            self._tunnel.close()
        elif exchange is not None:
            exchange.client_gone()
        self.parser.discard()

    def dataReceived(self, data: bytes) -> None:
        """Part of a request, of a tunnel, or of what nobody reads any more."""
        if self._tunnel is not None:
            self._tunnel.from_client(data)
            return
        if self._lingering:
            return
        parser = self.parser
        parser.feed(data)
        exchange = self.exchange
        if exchange is None:
            self._advance()
        else:
            if exchange.request.chunks or not exchange.request_sent:
                self._body_arrived(exchange)
            if parser.more and self.exchange is exchange:
                self._pause()

    # One request after the other

    def _advance(self) -> None:
        """Begin with what has arrived, as long as nothing is being answered."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self.exchange is None and self.parser.ready and not self._lingering:
                if self.transport.unsent > ROOM:
                    self._wait_for_room()
                    return
                self._begin(self.parser.ready.popleft())
        finally:
            self._advancing = False
        if self.exchange is not None or self._lingering:
            return
        refusal = self.parser.refusal
        if refusal is not None:
            self._refuse(refusal.status, refusal.reason, self.parser.refused)
            return
        if self._paused:
            self._resume()
        # What is no request, such as an empty line, wins no time.
        if self.parser.in_head and not self._head_timed:
            self._head_timed = True
            self.deadline = self.plane.seconds() + self.listen.timeouts.head

    def _wait_for_room(self) -> None:
        """The client asks, and takes no answers: the next one waits until it has."""
        self._pause()
        if self.transport.producer is None:
            self.transport.registerProducer(Room(self), True)
            self.transport.producerPaused = True  # so that it is told when all is taken
        self.deadline = NEVER
        self.watch_writing(self.plane.seconds())

    def room(self) -> None:
        """The client has taken its answers."""
        self.transport.unregisterProducer()
        self._advance()

    def _begin(self, request: Request) -> None:
        plane = self.plane
        started = plane.seconds()
        self._head_timed = False
        self.deadline = NEVER
        assert self.arrival is not None
        site = receive(plane, self.listen, self.arrival, self.origin, request)
        if isinstance(site, Answer):
            self._give(site, request)
            return
        site.requests += 1
        exchange = self.exchange = Exchange(self, request, site, started)
        if not request.complete:
            self._watch_body(started)
        if self._paused and not self.parser.more:
            self._resume()
        exchange.begin()

    def _body_arrived(self, exchange: Exchange) -> None:
        request = exchange.request
        limit = exchange.site.site.max_body
        refusal = self.parser.refusal
        if request.received > limit > 0:
            exchange.refuse(413, f"The request's body is longer than {limit} bytes.")
        elif refusal is not None and not request.complete:
            exchange.refuse(refusal.status, refusal.reason)
        elif exchange.waiting is None:
            if request.complete:
                self.deadline = NEVER
                if exchange.head_sent and self.transport.unsent:
                    self.watch_writing(self.plane.seconds())
            exchange.body_arrived()

    # The response

    def interim(self, response: Response) -> None:
        """Pass a 1xx response on, to who knows of such."""
        if self.exchange is not None and self.exchange.request.version == b"1.1":
            self.transport.write(interim_head(response))

    def relay(self, exchange: Exchange, response: Response, head: bool) -> None:
        """Send what has come of a response, in one write."""
        data = self._head(exchange, response) if head else b""
        if response.chunks:
            parts, response.chunks = response.chunks, []
            if self._chunked:
                data += chunk(parts)
            elif len(parts) == 1 and not data:
                data = parts[0]
            else:
                data += b"".join(parts)
        if self._chunked and response.complete:
            data += last_chunk(response.trailers)
        exchange.bytes_sent += len(data)
        self.transport.write(data)

    def _head(self, exchange: Exchange, response: Response) -> bytes:
        more = self._added(exchange, response)
        head = begin_response(exchange.request, response, more, last=self.plane.stopping)
        self._chunked, self._keep_alive = head.chunked, head.keep_alive
        return head.data

    def _added(self, exchange: Exchange, response: Response) -> list[Field]:
        assert self.arrival is not None
        hsts = exchange.site.hsts if self.arrival.tls else b""
        return added(response, exchange.held, hsts) if hsts or exchange.held else []

    def stream_from(self, source: IPushProducer, now: float) -> None:
        """The response is long: let the slower side set the pace."""
        if self.transport.producer is None:
            self.transport.registerProducer(source, True)
        if self.transport.unsent:
            self.watch_writing(now)

    def stream_ended(self) -> None:
        """No more will come from that source."""
        self.transport.unregisterProducer()

    @property
    def unsent(self) -> int:
        """Bytes of the response that the client has not taken yet."""
        return int(self.transport.unsent)

    @property
    def kept(self) -> int:
        """Bytes of memory that what came behind the request takes."""
        return self.parser.kept

    def finished(self, exchange: Exchange, now: float) -> None:
        """The response has been sent."""
        self.exchange = None
        request = exchange.request
        if not request.complete:
            self._linger()
        elif not self._keep_alive:
            self._close()
        else:
            self.deadline = now + self.listen.timeouts.idle
            parser = self.parser
            if request.upgrade:
                parser.resume()
            if parser.in_head or self._paused or parser.more:
                self._advance()
            elif self.plane.stopping:
                self.idle_close()

    def _refuse(self, status: int, reason: str, request: Request | None = None) -> None:
        """Turn away what is no proper request, and the client with it."""
        if request is not None and not (self.origin.trusted and request.request_id):
            request.request_id = self.plane.request_id()
        self._give(explain(status, reason, request), request, last=True)

    def _give(self, answer: Answer, request: Request | None, *, last: bool = False) -> None:
        """Answer what is given to no site."""
        goes_on = request is not None and not last and self._goes_on(request)
        data = answer.http1(request, close=not goes_on)
        self.plane.log_refused(self.origin.address, answer.status, len(data), request)
        self._answer(data, request, goes_on)

    def answer(self, status: int, reason: str, request: Request) -> int:
        """Answer the present exchange's request ourselves; return with how many bytes."""
        goes_on = self._goes_on(request)
        data = explain(status, reason, request).http1(request, close=not goes_on)
        self._answer(data, request, goes_on)
        return len(data)

    def _goes_on(self, request: Request) -> bool:
        return request.complete and request.keep_alive and not self.plane.stopping

    def _answer(self, data: bytes, request: Request | None, goes_on: bool) -> None:
        self.exchange = None
        self.transport.write(data)
        if not goes_on:
            self._linger()
            return
        self.deadline = self.plane.seconds() + self.listen.timeouts.idle
        if request is not None and request.upgrade:
            self.parser.resume()
        self._advance()

    # Reading, or not

    def hold_body(self) -> None:
        """The request cannot be sent yet: leave the rest of its body in the kernel."""
        self._pause()

    def take_body(self) -> None:
        """It can be sent: read on."""
        self._full = False
        self._resume()
        self._watch_body(self.plane.seconds())

    def watch_leaving(self) -> None:
        """The request is held: see whether the client stays, even if it is not read from."""
        if self._paused:
            self.deadline = self.plane.seconds() + LOOK_AGAIN

    def pauseProducing(self) -> None:
        """The server takes the body more slowly than it comes."""
        self._full = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The server has taken what there was, or wants no more."""
        self._full = False
        if not self._paused and self.transport.connected:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The server is gone: the exchange hears of it by itself."""

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pauseProducing()
            if self.exchange is not None and self.exchange.waiting is not None:
                self.watch_leaving()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._full:
                self.transport.resumeProducing()

    def has_left(self) -> bool:
        """Whether the client has closed its side, though we have not read that far."""
        return not self.transport.connected or has_left(self.transport.socket)

    def _watch_body(self, now: float) -> None:
        assert self.exchange is not None
        self._body_seen = self.exchange.request.received
        self.deadline = now + self.listen.timeouts.body

    def watch_writing(self, now: float) -> None:
        """The client is slower than its response: see that it takes it at all."""
        if self.deadline == NEVER:
            self._watch_taking(now)

    def _watch_taking(self, now: float) -> None:
        self._answering = self.exchange
        self._taken_seen = self._taken()
        self._unsent_seen = self.transport.unsent
        self._behind = self.transport.producerPaused
        self.deadline = now + self.listen.timeouts.write

    def _taken(self) -> int:
        """How much the client has taken of the present answer: what counts is the growth."""
        sent = self.exchange.bytes_sent if self.exchange is not None else 0
        return int(sent - self.transport.unsent)

    def _takes_too_little(self) -> bool:
        """Whether it had something to take ever since the last look, and took less than it must."""
        if self.exchange is not self._answering:
            return False
        taken = self._taken() - self._taken_seen
        if taken >= max(1, self.listen.write_rate * self.listen.timeouts.write):
            return False
        behind = self._behind and self.transport.producerPaused
        return behind or taken < self._unsent_seen

    # Deadlines

    def expired(self, now: float) -> None:
        """A deadline has passed; which one depends on what is going on."""
        self.deadline = NEVER
        exchange = self.exchange
        if self._tunnel is not None and not self._lingering:
            self._tunnel.expired(now)
        elif self.transport.unsent:
            if self._takes_too_little():
                self.abort()
            else:
                self._watch_taking(now)
        elif self._lingering:
            self.transport.abortConnection()
        elif exchange is None:
            if self.parser.in_head:
                limit = self.listen.timeouts.head
                reason = f"The request's head has not arrived within {limit:g} s."
                self._refuse(408, reason)
            else:
                self._close()
        elif exchange.waiting is not None:
            if self.has_left():
                self.abort()
            elif self._paused:
                self.deadline = now + LOOK_AGAIN
        elif not exchange.request.complete:
            self._expired_body(exchange, now)

    def _expired_body(self, exchange: Exchange, now: float) -> None:
        timeouts = self.listen.timeouts
        request = exchange.request
        came = request.received - self._body_seen
        # Nobody is late who is not read from, or has been told to wait.
        waits = self._paused or self._full or request.awaits_continue
        if waits or came >= self.listen.body_rate * timeouts.body:
            self._watch_body(now)
            return
        reason = f"The request's body came slower than {self.listen.body_rate} bytes a second."
        if exchange.head_sent:
            self.abort()
        else:
            exchange.refuse(408, reason)

    # Tunnels

    def switch(self, exchange: Exchange, response: Response) -> bytes:
        """The head that says so."""
        fields = b"Connection: Upgrade\r\nUpgrade: %b" % response.upgrade
        more = self._added(exchange, response)
        return response_head(response, chunked=False, length=-1, connection=fields, more=more)

    def begin_tunnel(self, tunnel: Tunnel) -> bytes:
        """From here on bytes go to ``tunnel``; return those that have come already."""
        self._tunnel = tunnel
        self._resume()
        return self.parser.take_rest()

    def end_tunnel(self) -> None:
        """The other side is closed: so is this one, once everything is sent."""
        self.exchange = None
        if self.transport.connected:
            self.transport.unregisterProducer()
            self._linger()

    # The end

    def idle_close(self) -> None:
        """The proxy stops: close if nothing is being answered, nor about to be."""
        parser = self.parser
        busy = self.exchange is not None or self._lingering or parser.in_head or parser.more
        if not busy and not waits_to_be_read(self.transport.socket):
            self._close()

    def _close(self) -> None:
        self.deadline = self.plane.seconds() + LINGER
        self._lingering = True
        self.transport.loseConnection()

    def _linger(self) -> None:
        """Close so that the answer arrives: a client that still sends would reset it."""
        self._lingering = True
        self.deadline = self.plane.seconds() + LINGER
        self._paused = False
        self.resumeProducing()
        self.transport.loseWriteConnection()

    def abort(self) -> None:
        """Close in a way that cannot be taken for a proper end."""
        exchange, self.exchange = self.exchange, None
        if self._tunnel is not None:
            self._tunnel.close()
        elif exchange is not None:
            exchange.client_gone()
        self._lingering = True
        self.transport.abortConnection()


@implementer(IPushProducer)
class Room:
    """Stands for the next answer, until the client has taken those before it."""

    def __init__(self, client: ClientConnection) -> None:
        self._client = client

    def pauseProducing(self) -> None:
        """Nothing is produced."""

    def resumeProducing(self) -> None:
        """There is room."""
        self._client.room()

    def stopProducing(self) -> None:
        """The client is gone."""
