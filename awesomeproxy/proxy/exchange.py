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
  server is still writing.  A server that can be told to stop (HTTP/2) is told, and the
  request is in flight until it has heard that.
- A response is cut short: so is the client's, visibly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from awesomeproxy.model import Outcome
from awesomeproxy.proxy.fields import names_in
from awesomeproxy.proxy.interfaces import ICarrier, IClient
from awesomeproxy.proxy.requests import IDEMPOTENT, Request
from awesomeproxy.proxy.responses import Response
from awesomeproxy.proxy.servers import LiveServer
from awesomeproxy.proxy.serverstream import ServerStream
from awesomeproxy.proxy.tunnel import Tunnel
from awesomeproxy.proxy.upstream import ServerConnection

if TYPE_CHECKING:
    from awesomeproxy.proxy.site import LiveSite

REPLAYABLE = 64 * 1024  # bytes of a request body kept for a second sending
NONE_TRIED: frozenset[LiveServer] = frozenset()


class Exchange:
    """A request and what becomes of it.  ``client`` is None once it has left."""

    # What most exchanges never change costs nothing to set up this way.
    client: IClient | None
    connection: ICarrier | None = None
    server: LiveServer | None = None  # the last it was meant for
    waiting: Deferred[Outcome] | None = None
    counted = False  # in flight at the gate
    bypass = False
    head_sent = False  # of the response, to the client
    request_sent = False
    streaming = False  # the response, at the pace of the slower side
    sends = 0
    tried = NONE_TRIED
    replay: list[bytes] | None = None
    replay_size = 0
    held = 0.0
    status = 0
    bytes_sent = 0

    def __init__(self, client: IClient, request: Request, site: LiveSite, started: float) -> None:
        self.client = client
        self.address = client.origin.address
        self.request = request
        self.site = site
        self.started = started

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
            size += self.client.kept
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
        if server.server.http2:
            # A server that closes such a connection says which requests it has not looked
            # at, so that there is no race that only fresh ones would be safe from.
            stream = self.connection = ServerStream(site, server, self)
            stream.connect(site.site.timeouts.connect)
            if self.connection is stream and not stream.ready:
                self._hold_body()
            return
        connection: ICarrier | None = None
        if server.idle and not self.sends:
            request = self.request
            once = request.length > REPLAYABLE or request.chunked  # too long to keep, or may be
            if request.method in IDEMPOTENT and not once:
                connection = server.take(now)
            elif site.site.reuse_unsafe:
                connection = server.take_proved(now, now - site.site.reuse_unsafe)
        if connection is None:
            self._hold_body()
            connection = self.connection = ServerConnection(site, server, self)
            connection.connect(site.site.timeouts.connect)
        else:
            connection.exchange = self
            server.busy += 1
            self.connection = connection
            self._send(connection, now)

    def _hold_body(self) -> None:
        """There is nobody yet to send it to."""
        if not self.request.complete and self.client is not None:
            self.client.hold_body()

    def connected(self, connection: ICarrier) -> None:
        """A fresh connection is there."""
        self._send(connection, self.site.plane.seconds())

    def not_connected(self, connection: ICarrier, why: str) -> None:
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

    def _send(self, connection: ICarrier, now: float) -> None:
        """Send head and body, as far as it has arrived, in one write."""
        site = self.site
        request = self.request
        self.sends += 1
        connection.deadline = now + site.site.timeouts.response
        client = self.client
        assert client is not None
        if request.complete and not request.chunks and self.replay is None:
            self.request_sent = True
            connection.send(request, client.origin, request.chunks, True)
            return
        if self.replay is None:
            self.replay = []
        else:
            request.chunks[:0] = self.replay
            self.replay = []
            self.replay_size = 0
        connection.send(request, client.origin, self._take_body(), request.complete)
        if not request.complete:
            connection.pull_from(client)
            client.take_body()

    def _take_body(self) -> list[bytes]:
        """What has arrived of the body, kept as well while that is little."""
        request = self.request
        parts, request.chunks = request.chunks, []
        self.request_sent = request.complete
        if self.replay is not None:
            self.replay_size += sum(map(len, parts))
            if self.replay_size <= REPLAYABLE:
                self.replay.extend(parts)
            else:
                self.replay = None
        return parts

    def body_arrived(self) -> None:
        """More of the request's body is here."""
        connection = self.connection
        if connection is None or not self.sends or self.request_sent or not connection.ready:
            return
        connection.deadline = self.site.plane.seconds() + self.site.site.timeouts.response
        connection.send_body(self.request, self._take_body(), self.request.complete)
        if self.request.complete and self.client is not None:
            connection.pulled()
            self.client.resumeProducing()

    # The way back

    def arrived(self, connection: ICarrier, fault: str) -> None:
        """Something has come from the server; it is parsed already."""
        response = connection.response
        client = self.client
        if connection.interims:
            self._relay_interims(connection)
        if not response.head_complete or (fault and not response.complete and not self.head_sent):
            if fault:
                self._bad_response(connection, fault)
            return
        if client is None:
            # The server has done what it was asked; there is nobody to tell.
            self._finish(connection, response, bool(fault) or not response.complete)
            return
        if response.status == 101:
            asked = self.request.upgrade and names_in(self.request.upgrade)
            if asked and names_in(response.upgrade) <= asked and not fault:
                self._switch(connection, response)
            else:
                self._bad_response(connection, "the server has switched protocols unasked")
            return
        head = not self.head_sent
        if head:
            self.head_sent = True
            self.status = response.status
        client.relay(self, response, head)
        if response.complete:
            self._finish(connection, response, bool(fault))
        elif fault:
            self._truncate(connection)
        else:
            self.streaming = True
            now = self.site.plane.seconds()
            connection.deadline = now + self.site.site.timeouts.response
            client.stream_from(connection, now)

    def _relay_interims(self, connection: ICarrier) -> None:
        site = self.site
        connection.deadline = site.plane.seconds() + site.site.timeouts.response
        for response in connection.interims:
            if response.status == 100:
                self.request.expects_continue = False
            if self.client is not None:
                self.client.interim(response)
        connection.interims.clear()

    def _finish(self, connection: ICarrier, response: Response, spoilt: bool) -> None:
        """The response is complete (or nobody wants the rest): part with the connection."""
        now = self.site.plane.seconds()
        self.connection = None
        connection.server.worked()
        client = self.client
        if self.streaming:
            self.streaming = False
            if client is not None:
                client.stream_ended()
            connection.resumeProducing()
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

    def lost(self, connection: ICarrier, clean: bool, fault: str = "") -> None:
        """The connection to the server is gone.

        :param fault: of TLS, that has brought it about.
        """
        if self.sends and connection.ended() and clean:
            self.arrived(connection, "the end")
        elif self.head_sent:
            self._truncate(connection)
        else:
            self.connection = None
            why = "it closed the connection without an answer" + (fault and f" ({fault})")
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

    def not_taken(self, connection: ICarrier, why: str) -> None:
        """The server has said that it has not looked at the request: any can be sent again."""
        self.connection = None
        if self.client is None:
            self._end()
        elif self._may_send_again(any_method=True):
            self.site.retried += 1
            self.request_sent = False
            self._forward(self.site.plane.seconds())
        else:
            self.site.failed += 1
            self.refuse(502, f"The server has not taken the request: {why}.")

    def _may_send_again(self, *, any_method: bool = False) -> bool:
        request = self.request
        return (
            self.client is not None
            and (any_method or request.idempotent)
            and self.sends < self.site.site.retry.attempts
            and self.replay_size <= REPLAYABLE
        )

    def server_late(self, connection: ICarrier, now: float) -> None:
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

    def _client_late(self, connection: ICarrier) -> bool:
        """Whether the server waits for the client, who has deadlines of its own."""
        if self.client is None:
            return False
        if self.client.unsent:
            return True
        unsent = connection.unsent
        if unsent:
            # It has not taken all of the body; but it is not late if it has taken some.
            # What is unsent alone does not tell: the buffer may be as full as it was.
            taken = self.request.received - unsent
            seen, connection.taken_seen = connection.taken_seen, taken
            return bool(taken != seen)
        return not self.request_sent and not self.request.awaits_continue

    def _bad_response(self, connection: ICarrier, fault: str) -> None:
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

    def _truncate(self, connection: ICarrier) -> None:
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
        else:
            # The server is at work on it: in flight until it has answered, or has stopped.
            connection.cancel()

    def cancelled(self, connection: ICarrier) -> None:
        """The server has been told to stop, and has heard it."""
        self.connection = None
        self._end()

    def cut(self, connection: ICarrier) -> None:
        """Break off: close the server's side now, and the client's if it is still there."""
        self.connection = None
        connection.abort()
        client = self.client
        self._end()
        if client is not None:
            client.abort()

    def break_off(self, connection: ICarrier) -> None:
        """Its site is held and waits no longer: what can be sent again waits, the rest ends."""
        if self.client is None:
            if not self.request.idempotent:
                self.site.ambiguous += 1  # though nobody is left to be told
            self.cut(connection)
        elif self.head_sent:
            self._truncate(connection)
        elif self.bypass or connection.heard or (self.sends and not self._may_send_again()):
            connection.abort()
            self._failed(502, "The site is paused, and the answer had not come in time.")
        else:
            self.site.retried += bool(self.sends)
            self._back_to_the_gate(connection)

    def call_off(self, connection: ICarrier) -> None:
        """Its site is held, and no server has been reached yet: nothing was sent."""
        if self.client is None:
            self.cut(connection)
        elif not self.bypass:
            self._back_to_the_gate(connection)

    def _back_to_the_gate(self, connection: ICarrier) -> None:
        self.connection = None
        self.request_sent = False
        connection.abort()
        self.counted = False
        self.site.gate.leave()
        self._wait(self.started)

    # Upgrades

    def _switch(self, connection: ICarrier, response: Response) -> None:
        """Both sides speak another protocol from here on."""
        assert self.client is not None
        assert isinstance(connection, ServerConnection)  # the only kind that is asked to
        head = self.client.switch(self, response)
        if head is None:
            self._bad_response(connection, "the server has not understood the upgrade")
            return
        self.head_sent = True
        self.status = 101
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
