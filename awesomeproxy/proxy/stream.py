"""One stream of a client's connection: a request, and its response.

To an exchange it is the client; to a tunnel, what the client's transport is elsewhere.

Its body is asked for as it is taken: the window that a client has for a stream is what
it may send before anybody has said that there is a place for it to go to.  While a
request is held, the window stays as it is.  What is sent waits here while the client's
window is closed, or its socket full.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import TYPE_CHECKING, Any

from h2.errors import ErrorCodes
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from awesomeproxy.proxy.answers import Answer, explain
from awesomeproxy.proxy.exchange import Exchange
from awesomeproxy.proxy.fields import Field, find
from awesomeproxy.proxy.heads import added
from awesomeproxy.proxy.interfaces import IClient
from awesomeproxy.proxy.messages import lowered, response_fields, trailer_fields
from awesomeproxy.proxy.multiplex import WINDOW
from awesomeproxy.proxy.reception import receive
from awesomeproxy.proxy.requests import Refusal, Request
from awesomeproxy.proxy.responses import Response
from awesomeproxy.proxy.sweep import NEVER

if TYPE_CHECKING:
    from awesomeproxy.proxy.http2 import Http2Connection
    from awesomeproxy.proxy.tunnel import Tunnel

LINGER = 2.0  # seconds that a client may go on sending what nobody wants any more
FULL = 64 * 1024  # bytes unsent at which the server is told to wait
ROOMY = 256 * 1024  # the window of a body that is on its way to a server
ASK_AT = WINDOW // 2  # bytes taken before more are asked for: each time is a frame
GRPC = b"application/grpc"
KEY_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


@implementer(IClient)
class Stream:
    """A request of an HTTP/2 connection."""

    # What most streams never change costs nothing to set up this way.
    exchange: Exchange | None = None
    producer: IPushProducer | None = None  # of what is sent
    deadline = NEVER
    connected = True
    _tunnel: Tunnel | None = None
    _early = b""  # for a tunnel that is not open yet
    _waits = False  # the rest of the body is not wanted for now
    _full = False  # the server is slower than the client
    _ended = False  # everything is given to be sent ...
    end_sent = False  # ... and sent
    _lingers = False  # the answer is over, and the request is not
    _finished = False  # the stream is over as far as we are concerned
    _stopped = False  # ``producer`` has been told to wait
    _owed = 0  # bytes taken that the client was not told of
    _roomy = False
    _watched = False
    _seen = 0  # of the body, at the last look
    _sent = 0  # bytes of the answer that were sent ...
    _sent_seen = 0  # ... at the last look, ...
    _taken_seen = 0  # ... of all that was sent on the connection, ...
    _unsent_seen = 0  # ... while so many waited, ...
    _behind = False  # ... and whether the server had been told to wait
    _key = b""  # of a WebSocket's handshake with the server
    unsent = 0

    def __init__(self, connection: Http2Connection, number: int, request: Request) -> None:
        self.connection = connection
        self.number = number
        self.request = request
        self.address = connection.address
        self.arrival = connection.arrival
        self.origin = connection.origin
        self._queue: list[bytes] = []
        self._trailers: list[Field] = []

    def __repr__(self) -> str:
        return f"<Stream {self.number} of {self.address}: {self.exchange!r}>"

    @property
    def transport(self) -> Stream:
        """What a tunnel writes to."""
        return self

    # The request

    def begin(self, refusal: Refusal | None) -> None:
        """Its head has come."""
        connection = self.connection
        plane = connection.plane
        request = self.request
        started = plane.seconds()
        if refusal is not None:
            if not (self.origin.trusted and request.request_id):
                request.request_id = plane.request_id()
            self._give(explain(refusal.status, refusal.reason, request))
            return
        site = receive(plane, connection.listen, self.arrival, self.origin, request)
        if isinstance(site, Answer):
            self._give(site)
            return
        if request.upgrade:
            self._ask_for_websocket()
        site.requests += 1
        self.exchange = Exchange(self, request, site, started)
        if not request.complete:
            self._watch_body(started)
        self.exchange.begin()

    def _ask_for_websocket(self) -> None:
        """RFC 8441, section 5: what HTTP/1.1 needs for its handshake, HTTP/2 does without."""
        self.request.take(b"sec-websocket-key")
        self._key = base64.b64encode(os.urandom(16))
        self.request.fields.append((b"Sec-WebSocket-Key", self._key))

    def body_came(self, data: bytes, length: int, last: bool) -> None:
        """Part of the body.

        :param length: bytes that it takes of the window: padding counts.
        """
        request = self.request
        exchange = self.exchange
        self._owed += length
        if request.upgrade:
            self._tunnelled(data, last)
            return
        if data:
            request.chunks.append(data)
            request.received += len(data)
        if request.length >= 0 and (
            request.received > request.length or (last and request.received < request.length)
        ):
            # RFC 9113, section 8.1.1
            self.connection.reset(self, ErrorCodes.PROTOCOL_ERROR)
            self.gone()
            return
        if last:
            request.complete = True
        if exchange is None:
            request.chunks.clear()
            if last and self._lingers:
                self._leave()
            return
        limit = exchange.site.site.max_body
        if request.received > limit > 0:
            exchange.refuse(413, f"The request's body is longer than {limit} bytes.")
        elif exchange.waiting is None:
            if last:
                self.deadline = NEVER
                if self.unsent:
                    self.watch_writing(self.connection.plane.seconds())
            exchange.body_arrived()
            self._ask()

    def trailers_came(self, trailers: list[Field]) -> None:
        """The end of the body, with trailers."""
        self.request.trailers = trailers
        self.body_came(b"", 0, True)

    def _tunnelled(self, data: bytes, last: bool) -> None:
        if self._tunnel is None:
            self._early += data
        elif data:
            self._tunnel.from_client(data)
            self._ask()
        if last:
            if self._tunnel is not None:
                self._tunnel.close()
            elif self.exchange is not None:
                self.connection.reset(self, ErrorCodes.CANCEL)
                self.gone()

    def _ask(self) -> None:
        """Let as much come as has been taken."""
        if self._waits or self._full or (self.request.complete and not self.request.upgrade):
            return
        owed = self._owed
        if owed >= ASK_AT or (owed and not self._roomy):
            self._owed = 0
            if not self._roomy:
                self._roomy = True
                owed += ROOMY - WINDOW
            self.connection.ask(self, owed)

    # What the exchange asks of its client

    @property
    def kept(self) -> int:
        """Bytes of memory that may be taken beside those of the request: its window."""
        return 0 if self.request.complete and not self.request.upgrade else WINDOW

    def has_left(self) -> bool:
        """Whether it has gone, though nothing of it was read that says so."""
        return self._finished or self.connection.has_left()

    def hold_body(self) -> None:
        """Let the rest of the body wait where it is."""
        self._waits = True

    def take_body(self) -> None:
        """Let the rest come."""
        self._waits = self._full = False
        self._ask()
        self._watch_body(self.connection.plane.seconds())

    def watch_leaving(self) -> None:
        """A connection is always read from: its client's leaving is noticed."""

    def pauseProducing(self) -> None:
        """The server takes the body more slowly than it comes."""
        self._full = True

    def resumeProducing(self) -> None:
        """The server has taken what there was."""
        self._full = False
        self._ask()

    def stopProducing(self) -> None:
        """The server is gone: the exchange hears of it by itself."""

    def interim(self, response: Response) -> None:
        """Pass a 1xx response on."""
        fields = [(b":status", b"%d" % response.status), *lowered(response.fields)]
        self.connection.send_head(self, fields, False)

    def relay(self, exchange: Exchange, response: Response, head: bool) -> None:
        """Send what has come of a response, as far as the client takes it."""
        last = response.complete
        if head:
            if self.request.upgrade and 200 <= response.status < 300:
                # A server that has not switched has not agreed, but here this would say so.
                response.status = exchange.status = 502
            hsts = exchange.site.hsts if self.arrival.tls else b""
            more = added(response, exchange.held, hsts) if hsts or exchange.held else []
            ends = last and not response.chunks and not response.trailers
            self.connection.send_head(self, response_fields(response, more), ends)
            if ends:
                self._ended = True
                return
        if response.chunks:
            parts, response.chunks = response.chunks, []
            for part in parts:
                exchange.bytes_sent += len(part)
                self.unsent += len(part)
            self._queue += parts
        if last:
            self._ended = True
            self._trailers = trailer_fields(response.trailers)
        self.connection.send_body(self)

    def stream_from(self, source: IPushProducer, now: float) -> None:
        """The response is long: let the slower side set the pace."""
        if self.producer is None:
            self.producer = source
        if self.unsent:
            self.watch_writing(now)
            self._slow_down()

    def stream_ended(self) -> None:
        """No more will come from that source."""
        self.unregisterProducer()

    def answer(self, status: int, reason: str, request: Request) -> int:
        """Answer the present request ourselves; return with how many bytes."""
        return self._answer(explain(status, reason, request))

    def _give(self, answer: Answer) -> None:
        """Answer what is given to no site."""
        size = self._answer(answer)
        self.connection.plane.log_refused(self.origin.address, answer.status, size, self.request)

    def _answer(self, answer: Answer) -> int:
        self.exchange = None
        body = b"" if self.request.method == b"HEAD" else answer.body
        fields = [(b":status", b"%d" % answer.status), *lowered(answer.fields)]
        self.connection.send_head(self, fields, not body)
        self._ended = True
        if body:
            self._queue.append(body)
            self.unsent += len(body)
            self.connection.send_body(self)
        self._wait_for_end()
        return len(body)

    def finished(self, exchange: Exchange, now: float) -> None:
        """The response has been passed on, to its end."""
        self.exchange = None
        self._wait_for_end()

    def _wait_for_end(self) -> None:
        """The stream is over once the client has taken all of its answer."""
        if not self.connected:
            return
        if self.end_sent:
            self._over()
        else:
            self.watch_writing(self.connection.plane.seconds())

    def _over(self) -> None:
        if self.request.upgrade:
            self.stop_client()
        elif self.request.complete:
            self._leave()
        elif not self._lingers:
            # The rest of the request is not wanted; but a client that is told so while it
            # still sends may not look at the answer, though it should.
            self._lingers = True
            self.deadline = self.connection.plane.seconds() + LINGER
            self._watch()

    @property
    def lingers(self) -> bool:
        """Whether it stays only for its client to look at the answer."""
        return self._lingers

    def stop_client(self) -> None:
        """RFC 9113, section 8.1: what it still sends is not wanted."""
        self.connection.reset(self, ErrorCodes.NO_ERROR)
        self._leave()

    def abort(self) -> None:
        """End it in a way that cannot be taken for a proper end."""
        exchange, self.exchange = self.exchange, None
        tunnel, self._tunnel = self._tunnel, None
        self.connection.reset(self, ErrorCodes.INTERNAL_ERROR)
        self._leave()
        if tunnel is not None:
            tunnel.close()
        elif exchange is not None:
            exchange.client_gone()

    def gone(self) -> None:
        """The client has reset the stream, or left altogether."""
        exchange, self.exchange = self.exchange, None
        tunnel, self._tunnel = self._tunnel, None
        self._leave()
        if tunnel is not None:
            tunnel.close()
        elif exchange is not None:
            exchange.client_gone()

    def _leave(self) -> None:
        if not self._finished:
            self._finished = True
            self.connected = False
            self._queue.clear()
            self.unsent = 0
            if self._watched:
                self.connection.plane.sweep.remove(self)
            self.connection.over(self)

    # Sending

    @property
    def to_end(self) -> bool:
        """Whether nothing is left to send but the end."""
        return self._ended and not self._queue

    def take(self, room: int) -> tuple[bytes, bool]:
        """The next bytes to send, at the most ``room``, and whether they are the last."""
        queue = self._queue
        if len(queue) == 1 and len(queue[0]) <= room:
            data = queue.pop()
        elif not queue:
            data = b""
        else:
            whole = b"".join(queue)
            data, rest = whole[:room], whole[room:]
            queue[:] = [rest] if rest else []
        self.unsent -= len(data)
        self._sent += len(data)
        return data, self._ended and not queue and not self._trailers

    def take_trailers(self) -> list[Field]:
        """The trailers, once everything else is sent."""
        trailers, self._trailers = self._trailers, []
        return trailers

    def sent(self) -> None:
        """Some of what waited has been sent."""
        if self.unsent:
            self._slow_down()
            return
        if self._stopped and self.producer is not None:
            self._stopped = False
            self.producer.resumeProducing()
        if self.end_sent and self.exchange is None and not self._finished:
            self._over()

    def _slow_down(self) -> None:
        if self.unsent >= FULL and not self._stopped and self.producer is not None:
            self._stopped = True
            self.producer.pauseProducing()

    # Deadlines

    def _watch(self) -> None:
        if not self._watched and not self._finished:
            self._watched = True
            self.connection.plane.sweep.add(self)

    def _watch_body(self, now: float) -> None:
        self._seen = self.request.received
        self._sent_seen = self._sent
        self.deadline = now + self.connection.listen.timeouts.body
        if self._converses:
            assert self.exchange is not None
            self.deadline = now + self.exchange.site.site.timeouts.tunnel
        self._watch()

    @property
    def _converses(self) -> bool:
        """Whether it is a call of gRPC, in which either side may be silent for long."""
        exchange = self.exchange
        if exchange is None or exchange.server is None or not exchange.server.server.http2:
            return False
        return (self.request.field(b"content-type") or b"").startswith(GRPC)

    def watch_writing(self, now: float) -> None:
        """The client is slower than its response: see that it takes it at all."""
        timeouts = self.connection.listen.timeouts
        # A call may be silent for long, but its answer is taken like any other.
        if self.deadline > now + max(timeouts.write, timeouts.body):
            self._sent_seen = self._sent
            self._taken_seen = self.connection.taken
            self._unsent_seen = self.unsent
            self._behind = self._stopped
            self.deadline = now + timeouts.write
            self._watch()

    def _takes_too_little(self) -> bool:
        """Whether there was something to take ever since the last look, and too little taken.

        Where it is not the stream that its client keeps waiting, but the whole connection,
        what is taken of any stream counts: there may be many for a line that is slow.
        """
        connection = self.connection
        listen = connection.listen
        sent = taken = self._sent - self._sent_seen
        if connection.behind:
            taken = max(sent, connection.taken - self._taken_seen)
        if taken >= max(1, listen.write_rate * listen.timeouts.write):
            return False
        return not taken or (self._behind and self._stopped) or sent < self._unsent_seen

    def expired(self, now: float) -> None:
        """A deadline has passed; which one depends on what is going on."""
        self.deadline = NEVER
        exchange = self.exchange
        if self._lingers:
            self.stop_client()
        elif self._tunnel is not None:
            self._tunnel.expired(now)
        elif self.unsent or (self._ended and not self.end_sent):
            if self._takes_too_little():
                self.abort()
            else:
                self.watch_writing(now)
        elif exchange is not None and exchange.waiting is None and not self.request.complete:
            self._expired_body(exchange, now)

    def _expired_body(self, exchange: Exchange, now: float) -> None:
        listen = self.connection.listen
        came = self.request.received - self._seen + self.connection.incomplete
        # Nobody is late who may not send, or has been told to wait.
        waits = self._waits or self._full or self.request.awaits_continue
        if self._converses and (came or self._sent != self._sent_seen):
            self._watch_body(now)
            return
        if waits or came >= listen.body_rate * listen.timeouts.body:
            self._watch_body(now)
            return
        if exchange.head_sent:
            self.abort()
        else:
            reason = f"The request's body came slower than {listen.body_rate} bytes a second."
            exchange.refuse(408, reason)

    # Tunnels (RFC 8441)

    def switch(self, exchange: Exchange, response: Response) -> bytes | None:
        """The server has agreed to a WebSocket: say so."""
        accept = base64.b64encode(hashlib.sha1(self._key + KEY_GUID).digest())
        if find(response.fields, b"sec-websocket-accept") != accept:
            return None
        fields = [
            (name, value)
            for name, value in lowered(response.fields)
            if name != b"sec-websocket-accept"
        ]
        self.connection.send_head(self, [(b":status", b"200"), *fields], False)
        return b""

    def begin_tunnel(self, tunnel: Tunnel) -> bytes:
        """From here on bytes go to ``tunnel``; return those that have come already."""
        self._tunnel = tunnel
        self._watch()
        early, self._early = self._early, b""
        self._ask()
        return early

    def end_tunnel(self) -> None:
        """The other side is closed: so is this one, once everything is sent."""
        self.exchange = None
        self._tunnel = None
        self._ended = True
        if self.connected:
            self.connection.send_body(self)
            self._wait_for_end()

    def write(self, data: bytes) -> None:
        """Send part of what a tunnel carries."""
        if data and self.connected:
            self._queue.append(data)
            self.unsent += len(data)
            self.connection.send_body(self)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Stop ``producer`` while what it has produced cannot be sent."""
        self.producer = producer
        self._slow_down()

    def unregisterProducer(self) -> None:
        """It will produce no more."""
        self.producer = None
        self._stopped = False
