"""One request on its way from a client to a server, and its response on the way back.

The usual way, without a Deferred or a timer: the gate lets the request in and counts
it, a pooled connection takes it, the response is relayed, the gate is told.

Everything else is what may come between:

- The gate holds: the request waits there.  Its backend is looked up when it is
  released, not before -- the site may have moved.
- No server takes a connection: nothing has been sent, so the request goes back to the
  gate, to its old place in line, and waits until a server can be reached.
- A connection breaks before a byte of the response.  The request is sent once more, if
  its method is idempotent and its body is at hand; otherwise nobody can know whether it
  has been carried out: it is *ambiguous*, counted so and answered 502.  Requests that
  are not idempotent therefore travel on fresh connections, where a server that closes
  an idle one cannot get in the way.
- The client leaves.  Held, its request is dropped.  Sent, it stays in flight until the
  server has answered: to count it out earlier would call a site drained while its
  server is still writing.
- A response is cut short: so is the client's, visibly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from awesomeproxy.model import Outcome
from awesomeproxy.proxy.fields import names_in
from awesomeproxy.proxy.heads import (
    chunk,
    interim_head,
    last_chunk,
    request_head,
    response_head,
)
from awesomeproxy.proxy.requests import IDEMPOTENT, Request
from awesomeproxy.proxy.responses import Response
from awesomeproxy.proxy.servers import LiveServer
from awesomeproxy.proxy.tunnel import Source, Tunnel
from awesomeproxy.proxy.upstream import ServerConnection

if TYPE_CHECKING:
    from awesomeproxy.proxy.client import ClientConnection
    from awesomeproxy.proxy.site import LiveSite

REPLAYABLE = 64 * 1024  # bytes of a request body kept for a second sending
NONE_TRIED: frozenset[LiveServer] = frozenset()


class Exchange:
    """A request and what becomes of it.  ``client`` is None once it has left."""

    # What most exchanges never change costs nothing to set up this way.
    client: ClientConnection | None
    connection: ServerConnection | None = None
    server: LiveServer | None = None  # the last it was meant for
    waiting: Deferred[Outcome] | None = None
    counted = False  # in flight at the gate
    bypass = False
    head_sent = False  # of the response, to the client
    request_sent = False
    chunked = False  # the response's body, to the client
    sends = 0
    tried = NONE_TRIED
    replay: list[bytes] | None = None
    replay_size = 0
    held = 0.0
    status = 0
    bytes_sent = 0

    def __init__(
        self, client: ClientConnection, request: Request, site: LiveSite, started: float
    ) -> None:
        self.client = client
        self.address = client.origin.address
        self.request = request
        self.site = site
        self.started = started
        self.keep_alive = request.keep_alive

    def __repr__(self) -> str:
        doing = "held" if self.waiting is not None else f"sent {self.sends} times"
        return f"<Exchange {self.request!r} for {self.site.site.name}: {doing}>"

    # The way there

    def begin(self) -> None:
        """The request's head is here: pass the gate, or wait at it."""
        site = self.site
        # The secret is between the operator and the proxy; servers need not know it.
        secret = self.request.take(site.bypass_field) if site.bypass_field else None
        if site.gate.enter():
            self.counted = True
            self._forward(self.started)
        elif site.lets_by(secret, self.client):
            self.bypass = True
            self._forward(self.started)
        else:
            self._wait(None)

    def _wait(self, since: float | None) -> None:
        request = self.request
        size = request.kept
        if self.replay is not None:
            size += self.replay_size
        if self.client is not None:
            if not request.complete:
                self.client.hold_body()
            self.client.watch_leaving()
            size += self.client.parser.kept
        began = self.site.plane.seconds()
        self.waiting = self.site.gate.wait(size, since)
        self.waiting.addCallback(self._waited, began)

    def _waited(self, outcome: Outcome, began: float) -> None:
        if self.waiting is None:
            return  # answered while it was held
        self.waiting = None
        now = self.site.plane.seconds()
        self.held += now - began
        if outcome is Outcome.RELEASED:
            self.counted = True
            client = self.client
            if client is None or client.has_left():
                # It left without a sign we could have read; nothing has been sent.
                gate = self.site.gate
                gate.released -= 1
                gate.departed += 1
                self.status = 499
                self.client = None
                self._end(now)
                if client is not None:
                    client.abort()
                return
            self._forward(now)
        elif outcome is Outcome.GONE:
            self.status = 499
            self._end()
        elif outcome is Outcome.TIMED_OUT:
            self.refuse(503, self.site.why_held("for too long"))
        else:
            self.refuse(503, self.site.why_held("and no more can wait"))

    def _forward(self, now: float) -> None:
        """Choose a server and send the request, on a pooled connection if that is safe."""
        site = self.site
        backend = site.backend
        server = backend.choose(now, self.tried) if backend is not None else None
        if server is None:
            self._unreachable(site.why_unreachable())
            return
        self.server = server
        connection = None
        if server.idle and not self.sends:
            request = self.request
            once = request.length > REPLAYABLE or request.chunked  # too long to keep, or may be
            if request.method in IDEMPOTENT and not once:
                connection = server.take(now)
            elif site.site.reuse_unsafe:
                connection = server.take_proved(now, now - site.site.reuse_unsafe)
        if connection is None:
            if not self.request.complete and self.client is not None:
                self.client.hold_body()
            connection = self.connection = ServerConnection(site, server, self)
            connection.connect(site.site.timeouts.connect)
        else:
            connection.exchange = self
            connection.reused = True
            server.busy += 1
            self.connection = connection
            self._send(connection, now)

    def connected(self, connection: ServerConnection) -> None:
        """A fresh connection is there."""
        self._send(connection, self.site.plane.seconds())

    def not_connected(self, connection: ServerConnection, why: str) -> None:
        """A server could not be reached: nothing has been sent there."""
        self.connection = None
        server = connection.server
        now = self.site.plane.seconds()
        server.failed(now, why)
        if self.client is None:
            self._end()
            return
        self.tried = self.tried | {server}
        backend = self.site.backend
        if backend is not None and backend.choose(now, self.tried) is not None:
            self._forward(now)
        else:
            self._unreachable(f"{server.server}: {why}")

    def _unreachable(self, why: str) -> None:
        """Nobody takes it: back to its place in line, until somebody does."""
        self.tried = NONE_TRIED
        if self.bypass:
            self.refuse(502, f"No server of the site can be reached: {why}")
            return
        self.site.unreachable(why)
        self.counted = False
        self.site.gate.leave()
        self._wait(self.started)

    def _send(self, connection: ServerConnection, now: float) -> None:
        """Send head and body, as far as it has arrived, in one write."""
        site = self.site
        request = self.request
        self.sends += 1
        connection.heard = False
        connection.parser.expect(request.method == b"HEAD")
        connection.deadline = now + site.site.timeouts.response
        assert self.client is not None
        lines = request_head(request, self.client.origin, site.plane.via)
        if request.complete and not request.chunks and self.replay is None:
            self.request_sent = True
            if request.chunked:
                lines += last_chunk(request.trailers)
            connection.transport.write(lines)
            return
        if self.replay is None:
            self.replay = []
        else:
            request.chunks[:0] = self.replay
            self.replay = []
            self.replay_size = 0
        connection.transport.write(lines + self._take_body())
        if not request.complete:
            connection.transport.registerProducer(self.client, True)
            self.client.take_body()

    def _take_body(self) -> bytes:
        """What has arrived of the body, framed for the server."""
        request = self.request
        parts, request.chunks = request.chunks, []
        size = sum(map(len, parts))
        if self.replay is not None:
            self.replay_size += size
            if self.replay_size <= REPLAYABLE:
                self.replay.extend(parts)
            else:
                self.replay = None
        if not request.chunked:
            self.request_sent = request.complete
            return b"".join(parts)
        body = chunk(parts) if size else b""
        if request.complete:
            self.request_sent = True
            body += last_chunk(request.trailers)
        return body

    def body_arrived(self) -> None:
        """More of the request's body is here."""
        connection = self.connection
        if connection is None or not self.sends or self.request_sent:
            return
        if connection.transport is None or not connection.transport.connected:
            return
        body = self._take_body()
        connection.deadline = self.site.plane.seconds() + self.site.site.timeouts.response
        connection.transport.write(body)
        if self.request.complete and self.client is not None:
            connection.transport.unregisterProducer()
            self.client.resumeProducing()

    # The way back

    def arrived(self, connection: ServerConnection, fault: str) -> None:
        """Something has come from the server; it is parsed already."""
        parser = connection.parser
        response = parser.response
        client = self.client
        if parser.interim:
            self._relay_interim(connection, parser.interim)
        if not response.head_complete or (fault and not response.complete and not self.head_sent):
            if fault:
                self._bad_response(connection, fault)
            return
        if client is None:
            # The server has done what it was asked; there is nobody to tell.
            self._finish(connection, response, bool(fault) or not response.complete)
            return
        if self.head_sent:
            data = b""
        elif response.status == 101:
            asked = self.request.upgrade and names_in(self.request.upgrade)
            if asked and names_in(response.upgrade) <= asked and not fault:
                self._switch(connection, response)
            else:
                self._bad_response(connection, "the server has switched protocols unasked")
            return
        else:
            data = self._start(response)
        if response.chunks:
            parts, response.chunks = response.chunks, []
            if self.chunked:
                data += chunk(parts)
            elif len(parts) == 1 and not data:
                data = parts[0]
            else:
                data += b"".join(parts)
        if response.complete:
            if self.chunked:
                data += last_chunk(response.trailers)
            self.bytes_sent += len(data)
            client.transport.write(data)
            self._finish(connection, response, bool(fault))
        else:
            self.bytes_sent += len(data)
            client.transport.write(data)
            if fault:
                self._truncate(connection)
            else:
                self._stream(connection)

    def _start(self, response: Response) -> bytes:
        """The head that the client gets."""
        request = self.request
        self.head_sent = True
        self.status = response.status
        length = response.length
        connection = b""
        if response.complete and (request.method == b"HEAD" or response.status in (204, 304)):
            chunked = response.chunked and request.version == b"1.1"
            if response.status in (204, 304):
                chunked = False
            if response.status == 204:
                length = -1
        elif length >= 0:
            chunked = False
        elif request.version == b"1.1":
            chunked = self.chunked = True
        else:
            chunked = False
            self.keep_alive = False
        early = not request.complete and (response.complete or length >= 0)
        if early or self.site.plane.stopping:
            self.keep_alive = False  # RFC 9112, section 9.6: the rest of its body is not read
        if not self.keep_alive:
            connection = b"Connection: close"
        elif request.version == b"1.0":
            connection = b"Connection: keep-alive"
        return response_head(
            response, chunked=chunked, length=length, connection=connection, held=self.held
        )

    def _relay_interim(self, connection: ServerConnection, interim: list[Response]) -> None:
        site = self.site
        connection.deadline = site.plane.seconds() + site.site.timeouts.response
        for response in interim:
            if response.status == 100:
                self.request.expects_continue = False
            if self.client is not None and self.request.version == b"1.1":
                self.client.transport.write(interim_head(response))
        interim.clear()

    def _stream(self, connection: ServerConnection) -> None:
        """The response is long: let the slower side set the pace."""
        client = self.client
        assert client is not None
        now = self.site.plane.seconds()
        connection.deadline = now + self.site.site.timeouts.response
        if client.transport.producer is None:
            client.transport.registerProducer(Source(connection.transport), True)
        if client.transport.unsent:
            client.watch_writing(now)

    def _finish(self, connection: ServerConnection, response: Response, spoilt: bool) -> None:
        """The response is complete (or nobody wants the rest): part with the connection."""
        now = self.site.plane.seconds()
        self.connection = None
        connection.server.worked()
        client = self.client
        if client is not None and client.transport.producer is not None:
            client.transport.unregisterProducer()
            connection.transport.resumeProducing()
        if spoilt or not self.request_sent:
            connection.abort()
        elif response.keep_alive:
            connection.idle(now)
        else:
            connection.close()
        self._end(now)
        if client is not None:
            client.finished(self, now)

    # What may go wrong on the way

    def lost(self, connection: ServerConnection, clean: bool) -> None:
        """The connection to the server is gone."""
        parser = connection.parser
        if self.sends and parser.close() and clean:
            self.arrived(connection, "the end")
        elif self.head_sent:
            self._truncate(connection)
        else:
            self.connection = None
            why = "it closed the connection without an answer"
            if not connection.reused:
                connection.server.failed(self.site.plane.seconds(), why)
            if connection.heard:
                self._failed(502, "The server's response broke off within its head.")
            elif self._may_send_again():
                self.site.retried += 1
                self.request_sent = False
                self._forward(self.site.plane.seconds())
            else:
                self._failed(502, f"The server broke off: {why}.")

    def _may_send_again(self) -> bool:
        request = self.request
        return (
            self.client is not None
            and request.idempotent
            and self.sends < self.site.site.retry.attempts
            and self.replay_size <= REPLAYABLE
        )

    def server_late(self, connection: ServerConnection, now: float) -> None:
        """No byte from the server for too long, on a connection that owes one."""
        if self._client_late(connection):
            connection.deadline = now + self.site.site.timeouts.response
            return
        connection.server.failed(now, "it did not answer in time")
        if self.head_sent:
            self._truncate(connection)
        else:
            connection.abort()
            limit = self.site.site.timeouts.response
            self._failed(504, f"The server has not answered within {limit:g} s.")

    def _client_late(self, connection: ServerConnection) -> bool:
        """Whether the server waits for the client, who has deadlines of its own."""
        if self.client is None:
            return False
        if self.client.transport.unsent:
            return True
        unsent = connection.transport.unsent
        if unsent:
            # It has not taken all of the body; but it is not late if it has taken some.
            # What is unsent alone does not tell: the buffer may be as full as it was.
            taken = self.request.received - unsent
            seen, connection.taken_seen = connection.taken_seen, taken
            return bool(taken != seen)
        return not self.request_sent and not self.request.awaits_continue

    def _bad_response(self, connection: ServerConnection, fault: str) -> None:
        connection.abort()
        connection.server.failed(self.site.plane.seconds(), fault)
        self._failed(502, f"Bad response: {fault}.")

    def _failed(self, status: int, reason: str) -> None:
        """The request was sent and has got no answer."""
        if self.request.idempotent:
            self.site.failed += 1
        else:
            self.site.ambiguous += 1
            reason += " The request may have been carried out; it was not sent again."
        self.refuse(status, reason)

    def _truncate(self, connection: ServerConnection) -> None:
        """The response breaks off in the middle: so must the client's."""
        self.site.failed += 1
        self.cut(connection)

    def refuse(self, status: int, reason: str) -> None:
        """Answer the request ourselves, and be done with it."""
        connection, self.connection = self.connection, None
        if self.head_sent and connection is not None:
            self.cut(connection)
            return
        self.status = status
        client = self.client
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.cancel()
        if connection is not None:
            connection.abort()
        self._leave()
        if client is not None:
            self.bytes_sent = client.answer(status, reason, self.request)
        self.site.plane.log(self, self.site.plane.seconds())

    def client_gone(self) -> None:
        """The client has closed its connection."""
        self.client = None
        connection = self.connection
        self.status = self.status or 499
        if self.waiting is not None:
            self.waiting.cancel()
        elif connection is None:
            return
        elif self.head_sent or not self.request_sent:
            # Streams end here, and half a request must not look like a whole one.
            self.cut(connection)
        # Otherwise the server is at work on it: in flight until it has answered.

    def cut(self, connection: ServerConnection) -> None:
        """Break off: close the server's side now, and the client's if it is still there."""
        self.connection = None
        connection.abort()
        client = self.client
        self._end()
        if client is not None:
            client.abort()

    def break_off(self, connection: ServerConnection) -> None:
        """Its site is held and waits no longer: what can be sent again waits, the rest ends."""
        if self.client is None:
            self.cut(connection)
        elif self.head_sent:
            self._truncate(connection)
        elif self.bypass or connection.heard or (self.sends and not self._may_send_again()):
            connection.abort()
            self._failed(502, "The site is paused, and the answer had not come in time.")
        else:
            self.site.retried += bool(self.sends)
            self.connection = None
            self.request_sent = False
            connection.abort()
            self.counted = False
            self.site.gate.leave()
            self._wait(self.started)

    # Upgrades

    def _switch(self, connection: ServerConnection, response: Response) -> None:
        """Both sides speak another protocol from here on."""
        assert self.client is not None
        self.head_sent = True
        self.status = 101
        fields = b"Connection: Upgrade\r\nUpgrade: %b" % response.upgrade
        head = response_head(response, chunked=False, length=-1, connection=fields, held=self.held)
        Tunnel(self, self.client, connection).open(head)
        if self.counted:
            self.counted = False
            self.site.gate.leave()

    def tunnel_closed(self) -> None:
        """What the upgrade has led to is over."""
        self.client = self.connection = None
        self._end()

    # The end

    def _end(self, now: float = 0.0) -> None:
        """Count it out and write it down.  Nothing of it is under way any more."""
        self._leave()
        plane = self.site.plane
        plane.log(self, now or plane.seconds())

    def _leave(self) -> None:
        if self.counted:
            self.counted = False
            self.site.gate.leave()
        else:
            self.site.check_drained()
