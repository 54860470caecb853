"""One stream of a session with a server: a request on its way, and its response.

To an exchange it is what carries it; see :mod:`awesomeproxy.proxy.session` for what many
of them share.  A response is asked for as it is taken: a client that takes it slowly
leaves its window as it is, and with that the server, and nobody else's response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from h2.errors import ErrorCodes
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from awesomeproxy.proxy.fields import Field, size_of
from awesomeproxy.proxy.heads import Origin, forwarded_fields
from awesomeproxy.proxy.interfaces import ICarrier, IClient
from awesomeproxy.proxy.messages import Malformed, lowered, response_of, trailer_fields, trailers_of
from awesomeproxy.proxy.requests import Request
from awesomeproxy.proxy.responses import AWAITED, MAX_HEAD, Response
from awesomeproxy.proxy.servers import LiveServer
from awesomeproxy.proxy.session import WINDOW, ServerSession
from awesomeproxy.proxy.sweep import NEVER

if TYPE_CHECKING:
    from awesomeproxy.proxy.exchange import Exchange
    from awesomeproxy.proxy.site import LiveSite

CANCEL = 5.0  # seconds that a server may take to hear that it shall stop
FULL = 64 * 1024  # bytes unsent at which the client is told to wait


@implementer(ICarrier)
class ServerStream:
    """Carries one exchange in a session."""

    # What most streams never change costs nothing to set up this way.
    session: ServerSession | None = None
    number = 0
    response = AWAITED
    heard = False
    reused = False
    taken_seen: int | None = None
    unsent = 0
    deadline = NEVER
    _last = False  # everything is given to be sent ...
    end_sent = False  # ... and sent
    _puller: IPushProducer | None = None
    _pulling = False  # it has been told to wait
    _cancelled = False  # the server has been told to stop
    _paused = False  # the client takes the response more slowly than it comes
    _owed = 0  # bytes taken that the server was not told of
    _received = 0  # bytes of the body
    _interim = 0  # bytes of interim responses
    _bodiless = False  # whatever length the response says, nothing comes (RFC 9110, 6.4.1)

    def __init__(self, site: LiveSite, server: LiveServer, exchange: Exchange) -> None:
        self.site = site
        self.server = server
        self.exchange: Exchange | None = exchange
        self.interims: list[Response] = []
        self._queue: list[bytes] = []
        self._trailers: list[Field] = []
        self._head_only = False

    def __repr__(self) -> str:
        return f"<ServerStream {self.number} to {self.server.server}: {self.exchange!r}>"

    @property
    def ready(self) -> bool:
        """Whether it is connected."""
        return self.session is not None and self.session.opened

    @property
    def transport(self) -> Any:
        """What a tunnel would write to; there is none."""
        return None

    def connect(self, timeout: float) -> None:
        """Find room in a session, or open another."""
        self.server.busy += 1
        self.site.plane.sweep.add(self)
        self.find(timeout)

    def find(self, timeout: float) -> None:
        """Go to a session that has room."""
        session = next((s for s in self.server.sessions if s.room), None)
        if session is None:
            session = ServerSession(self.site, self.server)
            self.server.sessions = [*self.server.sessions, session]
            self.site.connections[session] = None
            self.session = session
            session.waiting.append(self)
            session.connect(timeout)
            return
        self.session = session
        if session.opened:
            self.reused = True
            self.connected()
        else:
            session.waiting.append(self)

    def connected(self) -> None:
        """The session is there."""
        if self.exchange is not None:
            self.exchange.connected(self)

    # The request

    def send(self, request: Request, origin: Origin, parts: list[bytes], last: bool) -> None:
        """Send the head of ``request``, and ``parts`` of its body."""
        assert self.session is not None
        self.heard = False
        self._head_only = request.method == b"HEAD"
        via = self.site.plane.via[request.version]
        self._last = last
        self._trailers = trailer_fields(request.trailers) if last else []
        ends = last and not any(parts) and not self._trailers
        scheme = b"https" if self.server.server.tls else b"http"
        self.end_sent = ends
        self.session.begin(self, _request_fields(request, origin, via, scheme), ends)
        if not ends:
            self._queue += parts
            self.unsent += sum(map(len, parts))
            self.session.send_body(self)

    def send_body(self, request: Request, parts: list[bytes], last: bool) -> None:
        """Send more of the body."""
        assert self.session is not None
        self._queue += parts
        self.unsent += sum(map(len, parts))
        if last:
            self._last = True
            self._trailers = trailer_fields(request.trailers)
        self.session.send_body(self)

    def pull_from(self, client: IClient) -> None:
        """More of the body will come from ``client``: stop it while it cannot be sent."""
        self._puller = client
        self.sent()

    def pulled(self) -> None:
        """No more of the body will come."""
        self._puller = None
        self._pulling = False

    @property
    def to_send(self) -> bool:
        """Whether anything waits."""
        return bool(self.unsent or (self._last and not self.end_sent))

    def take(self, room: int) -> tuple[bytes, bool]:
        """The next bytes to send, at the most ``room``, and whether they are the last."""
        whole = b"".join(self._queue)
        data, rest = whole[:room], whole[room:]
        self._queue[:] = [rest] if rest else []
        self.unsent = len(rest)
        self.end_sent = self._last and not rest and not self._trailers
        return data, self.end_sent

    def take_trailers(self) -> list[Field]:
        """The trailers, once everything else is sent."""
        trailers, self._trailers = self._trailers, []
        self.end_sent = True
        return trailers

    def sent(self) -> None:
        """Some of what waited has been sent, or has begun to wait."""
        puller = self._puller
        if puller is None:
            return
        if self.unsent >= FULL and not self._pulling:
            self._pulling = True
            puller.pauseProducing()
        elif not self.unsent and self._pulling:
            self._pulling = False
            puller.resumeProducing()

    # The response

    def head_came(self, fields: list[Field], last: bool) -> None:
        """The head of a response."""
        self.heard = True
        try:
            response = response_of(fields)
        except Malformed as malformed:
            self._told(str(malformed))
            return
        fault = ""
        if response.status < 200:
            self.interims.append(response)
            self._interim += size_of(fields)
            if self._interim > MAX_HEAD:
                fault = f"its interim responses are longer than {MAX_HEAD} bytes"
        else:
            self._bodiless = self._head_only or response.status in (204, 304)
            response.head_complete = True
            self.response = response
            fault = self._length_fault(last)
            response.complete = last and not fault
        self._told(fault)

    def _length_fault(self, last: bool) -> str:
        """What is wrong with the length of the body, which may have ended."""
        length = self.response.length
        if self._bodiless or length < 0:
            return ""
        left = length - self._received
        return "its body is not as long as it said" if left < 0 or (last and left) else ""

    def body_came(self, data: bytes, length: int, last: bool) -> None:
        """Part of the body.

        :param length: bytes that it takes of the window: padding counts.
        """
        response = self.response
        self._owed += length
        if data and self._bodiless:
            response.complete = True  # with its head
            self._told("it has a body, and must not have one")
            return
        if data:
            response.chunks.append(data)
            self._received += len(data)
        fault = self._length_fault(last)
        if fault:
            response.chunks.clear()
        response.complete = last and not fault
        self._told(fault)
        self._ask()

    def trailers_came(self, fields: list[Field]) -> None:
        """The end of the body, with trailers."""
        fault = self._length_fault(True)
        try:
            self.response.trailers = trailers_of(fields)
            self.response.complete = not fault
        except Malformed as malformed:
            fault = str(malformed)
        self._told(fault)

    def _told(self, fault: str) -> None:
        if self.exchange is None:
            self.abort()
        else:
            self.exchange.arrived(self, fault)

    def _ask(self) -> None:
        session = self.session
        if session is not None and not self._paused and self._owed >= WINDOW // 2:
            session.ask(self, self._owed)
            self._owed = 0

    def pauseProducing(self) -> None:
        """The client takes the response more slowly than it comes."""
        self._paused = True

    def resumeProducing(self) -> None:
        """It has taken what there was."""
        self._paused = False
        self._ask()

    def stopProducing(self) -> None:
        """The client is gone: the exchange hears of it by itself."""

    def cancel(self) -> None:
        """Nobody wants the response any more: have the server stop."""
        assert self.session is not None
        self.deadline = self.site.plane.seconds() + CANCEL
        self._cancelled = True
        self.session.cancel(self)

    def cancelled(self) -> None:
        """The server has heard it, or is gone."""
        exchange = self.dropped()
        if exchange is not None:
            exchange.cancelled(self)

    def ended(self) -> bool:
        """The server has closed its side; return whether its response is complete."""
        return self.response.complete

    # The end

    def expired(self, now: float) -> None:
        """The server has kept us waiting."""
        self.deadline = NEVER
        exchange, session = self.exchange, self.session
        if exchange is None or session is None or not session.opened:
            return
        exchange.server_late(self, now)
        if self.session is None:
            session.late(now - self.site.site.timeouts.response)

    def idle(self, now: float) -> None:
        """The exchange is over; the session goes on."""
        self._part(None)

    def close(self) -> None:
        """The same: what is said of a connection is not said of its streams."""
        self._part(None)

    def abort(self) -> None:
        """Have the server stop."""
        self._part(ErrorCodes.CANCEL)

    def _part(self, code: ErrorCodes | None) -> None:
        session, self.session = self.session, None
        self.exchange = None
        self.deadline = NEVER
        if session is not None:
            self.server.busy -= 1
            self.site.plane.sweep.remove(self)
            session.over(self, code)

    def dropped(self) -> Exchange | None:
        """The session has no more to do with it; return what it carried."""
        exchange, self.exchange = self.exchange, None
        if self.session is not None:
            self.session = None
            self.server.busy -= 1
            self.site.plane.sweep.remove(self)
        return exchange


def _request_fields(request: Request, origin: Origin, via: bytes, scheme: bytes) -> list[Field]:
    fields: list[Field] = [
        (b":method", request.method),
        (b":scheme", scheme),
        (b":authority", request.host or b""),
        (b":path", request.target),
        *lowered(request.fields),
    ]
    if request.length >= 0:
        fields.append((b"content-length", b"%d" % request.length))
    if request.te_trailers:
        fields.append((b"te", b"trailers"))
    if request.max_forwards is not None:
        fields.append((b"max-forwards", request.max_forwards))
    if request.expects_continue:
        fields.append((b"expect", b"100-continue"))
    return fields + lowered(forwarded_fields(request, origin, via))
