"""Connections to servers that speak HTTP/2, and the streams that carry exchanges there.

A session carries many exchanges at once; another is opened only when all there are have
as many as their server allows.  A site is not drained while it has a session: it is
closed with its last stream while the site is held, and after a while without any.

What a server that parts with us has not looked at, it says (RFC 9113, section 6.8): such
a request can be sent again, whatever its method.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from awesomeproxy.proxy.fields import Field
from awesomeproxy.proxy.heads import Origin, forwarded_fields
from awesomeproxy.proxy.interfaces import ICarrier, IClient, IServerLink
from awesomeproxy.proxy.messages import (
    Malformed,
    lowered,
    response_of,
    trailer_fields,
    trailers_of,
)
from awesomeproxy.proxy.multiplex import Multiplex
from awesomeproxy.proxy.requests import Request
from awesomeproxy.proxy.responses import AWAITED, MAX_HEAD, Response
from awesomeproxy.proxy.servers import LiveServer
from awesomeproxy.proxy.sweep import NEVER
from awesomeproxy.proxy.upstream import no_file

if TYPE_CHECKING:
    from awesomeproxy.proxy.exchange import Exchange
    from awesomeproxy.proxy.site import LiveSite

FULL = 64 * 1024  # bytes unsent at which the client is told to wait
WINDOW = 256 * 1024  # bytes of a response that may come before they are asked for
TOGETHER = 16 * 1024 * 1024  # the same of all streams
MOST = 100  # streams of a session, if the server would take more
FLUSH = 5.0  # seconds that a server may take for the last of what it is sent


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
    _end_sent = False  # ... and sent
    _puller: IPushProducer | None = None
    _pulling = False  # it has been told to wait
    _paused = False  # the client takes the response more slowly than it comes
    _owed = 0  # bytes taken that the server was not told of
    _received = 0  # bytes of the body

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
        session = next((s for s in self.server.sessions if s.room), None)
        if session is None:
            session = ServerSession(self.site, self.server)
            self.server.sessions.append(session)
            self.site.connections.add(session)
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
        self._end_sent = ends
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
        return bool(self.unsent or (self._last and not self._end_sent))

    def take(self, room: int) -> tuple[bytes, bool]:
        """The next bytes to send, at the most ``room``, and whether they are the last."""
        whole = b"".join(self._queue)
        data, rest = whole[:room], whole[room:]
        self._queue[:] = [rest] if rest else []
        self.unsent = len(rest)
        self._end_sent = self._last and not rest and not self._trailers
        return data, self._end_sent

    def take_trailers(self) -> list[Field]:
        """The trailers, once everything else is sent."""
        trailers, self._trailers = self._trailers, []
        self._end_sent = True
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
            response = response_of(fields, self._head_only)
        except Malformed as fault:
            self._told(str(fault))
            return
        if response.status < 200:
            self.interims.append(response)
        else:
            response.head_complete = True
            response.complete = last
            self.response = response
        self._told("")

    def body_came(self, data: bytes, length: int, last: bool) -> None:
        """Part of the body.

        :param length: bytes that it takes of the window: padding counts.
        """
        response = self.response
        self._owed += length
        if data:
            response.chunks.append(data)
            self._received += len(data)
        fault = ""
        left = response.length - self._received
        if response.length >= 0 and not self._head_only and (left < 0 or (last and left)):
            fault = "its body is not as long as it said"
            response.chunks.clear()
        response.complete = last and not fault
        self._told(fault)
        self._ask()

    def trailers_came(self, fields: list[Field]) -> None:
        """The end of the body, with trailers."""
        fault = ""
        try:
            self.response.trailers = trailers_of(fields)
            self.response.complete = True
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

    def ended(self) -> bool:
        """The server has closed its side; return whether its response is complete."""
        return self.response.complete

    # The end

    def expired(self, now: float) -> None:
        """The server has kept us waiting."""
        self.deadline = NEVER
        if self.exchange is None:
            return
        if self.ready:
            self.exchange.server_late(self, now)

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


@implementer(IServerLink)
class ServerSession(Protocol):
    """One connection to a server that speaks HTTP/2."""

    transport: Any

    def __init__(self, site: LiveSite, server: LiveServer) -> None:
        self.site = site
        self.server = server
        self.opened = False
        self.deadline = NEVER
        self.waiting: list[ServerStream] = []  # until it is open
        self._streams: dict[int, ServerStream] = {}
        self._blocked: dict[ServerStream, None] = {}
        self._full = False  # the server's socket
        self._closing = False
        self._gone = False
        self._receiving = False
        self._flushing = False  # it will be written at the end of the reactor's turn
        self._owed = 0
        self._call_off: Callable[[], object] | None = None
        self._h2 = Multiplex(
            client=True,
            settings={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEAD,
            },
            max_list=MAX_HEAD,
        )

    def __repr__(self) -> str:
        return f"<ServerSession {self.server.server}: {len(self._streams)} streams>"

    def carriers(self) -> list[ICarrier]:
        """The streams that carry an exchange."""
        return [s for s in (*self.waiting, *self._streams.values()) if s.exchange is not None]

    @property
    def room(self) -> bool:
        """Whether it can carry one more exchange."""
        if self._closing:
            return False
        most = min(MOST, self._h2.remote_settings.max_concurrent_streams)
        return len(self._streams) + len(self.waiting) < most

    # Opening

    def connect(self, timeout: float) -> None:
        """Open it."""
        plane = self.site.plane
        if plane.crowded:
            self._failed(no_file())
            return
        plane.links.add(self)
        self._call_off = self.server.dial(plane, self, self._failed, timeout)

    def connectionMade(self) -> None:
        """It is open."""
        self._call_off = None
        self.opened = True
        self.site.plane.sweep.add(self)
        self.transport.registerProducer(self, True)
        self.transport.write(self._h2.begin(TOGETHER))
        waiting, self.waiting = self.waiting, []
        for stream in waiting:
            stream.connected()
        self._rest()

    def _failed(self, reason: Failure) -> None:
        self._call_off = None
        waiting, self.waiting = self.waiting, []
        self._forget()
        for stream in waiting:
            exchange = stream.dropped()
            if exchange is not None:
                exchange.not_connected(stream, reason.getErrorMessage())

    # What streams ask

    def begin(self, stream: ServerStream, fields: list[Field], last: bool) -> None:
        """Send the head of a request."""
        stream.number = self._h2.get_next_available_stream_id()
        self._streams[stream.number] = stream
        self.deadline = NEVER
        self._h2.send_headers(stream.number, fields, end_stream=last)
        if last:
            self._flush()

    def send_body(self, stream: ServerStream) -> None:
        """Send what waits in a stream, as far as the server takes it."""
        h2 = self._h2
        number = stream.number
        try:
            while stream.to_send and not self._full:
                if stream.unsent:
                    room = min(h2.local_flow_control_window(number), h2.max_outbound_frame_size)
                    if room <= 0:
                        break
                    data, last = stream.take(room)
                    h2.send_data(number, data, end_stream=last)
                else:
                    trailers = stream.take_trailers()
                    if trailers:
                        h2.send_headers(number, trailers, end_stream=True)
                    else:
                        h2.end_stream(number)
        except ProtocolError:
            pass  # the server has reset it, and we have not come to know
        if stream.to_send:
            self._blocked[stream] = None
        else:
            self._blocked.pop(stream, None)
        self._flush()
        stream.sent()

    def ask(self, stream: ServerStream, size: int) -> None:
        """Let so many bytes more come on a stream."""
        try:
            self._h2.increment_flow_control_window(size, stream.number)
        except ProtocolError:
            return
        self._flush()

    def over(self, stream: ServerStream, code: ErrorCodes | None) -> None:
        """Forget a stream.

        :param code: what the server is told, unless all has been said.
        """
        if stream in self.waiting:
            self.waiting.remove(stream)
        elif self._streams.pop(stream.number, None) is not None:
            self._blocked.pop(stream, None)
            if not stream.response.complete or stream.to_send:
                with contextlib.suppress(ProtocolError):  # it is closed already
                    self._h2.reset_stream(stream.number, code or ErrorCodes.NO_ERROR)
                self._flush()
        self._rest()

    def _rest(self) -> None:
        """If nothing is carried any more: be idle, or close."""
        if self._streams or self.waiting or self._gone:
            return
        backend = self.server.backend
        if self._closing or backend.retired or self.site.gate.holding or not self.opened:
            self.close()
        else:
            self.deadline = self.site.plane.seconds() + backend.config.idle_timeout

    # What the server says

    def dataReceived(self, data: bytes) -> None:
        """Some frames, or part of one."""
        self._receiving = True
        try:
            try:
                events = self._h2.receive_data(data)
            except ProtocolError:
                self._write()
                self.abort()
                return
            for event in events:
                handle = HANDLERS.get(type(event))
                if handle is not None:
                    handle(self, event)
        finally:
            self._receiving = False
        if self._owed >= TOGETHER // 2:
            self._h2.increment_flow_control_window(self._owed)
            self._owed = 0
        self._write()

    def _flush(self) -> None:
        """Send what there is, together with what else this turn of the reactor brings."""
        if not self._receiving and not self._flushing:
            self._flushing = True
            self.site.plane.eager.at_turn_end(self._write)

    def _write(self) -> None:
        self._flushing = False
        data = self._h2.data_to_send()
        if data and not self._gone:
            self.transport.write(data)

    def _interim(self, event: InformationalResponseReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.head_came(event.headers, False)

    def _head(self, event: ResponseReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.head_came(event.headers, event.stream_ended is not None)

    def _data(self, event: DataReceived) -> None:
        length: int = event.flow_controlled_length
        self._owed += length
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.body_came(bytes(event.data), length, event.stream_ended is not None)

    def _trailers(self, event: TrailersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.trailers_came(event.headers)

    def _was_reset(self, event: StreamReset) -> None:
        stream = self._streams.pop(event.stream_id, None)
        if stream is None:
            return
        self._blocked.pop(stream, None)
        exchange = stream.dropped()
        if exchange is not None:
            if event.error_code == ErrorCodes.REFUSED_STREAM and not stream.heard:
                exchange.not_taken(stream, "it has refused the stream")
            else:
                exchange.lost(stream, clean=False)
        self._rest()

    def _window(self, event: Event) -> None:
        for stream in list(self._blocked):
            self.send_body(stream)

    def _goodbye(self, event: ConnectionTerminated) -> None:
        self._leave_pool()
        last = event.last_stream_id
        for number, stream in list(self._streams.items()):
            if last is not None and number > last:
                del self._streams[number]
                self._blocked.pop(stream, None)
                exchange = stream.dropped()
                if exchange is not None:
                    exchange.not_taken(stream, "it has closed the connection")
        self._rest()

    # What the socket says

    def pauseProducing(self) -> None:
        """The server takes less than there is."""
        self._full = True

    def resumeProducing(self) -> None:
        """It has taken what there was."""
        self._full = False
        for stream in list(self._blocked):
            self.send_body(stream)

    def stopProducing(self) -> None:
        """The server is gone."""

    # The end

    def expired(self, now: float) -> None:
        """It has been idle for long enough, or takes too long to close."""
        self.deadline = NEVER
        if self._closing and self._gone:
            self.transport.abortConnection()
        elif not self._streams:
            self.close()

    def close_if_idle(self) -> None:
        """Close it unless it carries something."""
        if not self._streams and not self.waiting:
            self.close()

    def close(self) -> None:
        """Say goodbye and close."""
        if self._gone:
            return
        self._leave_pool()
        if self._call_off is not None:
            self._call_off()
        elif self.opened:
            self._h2.say_goodbye(0)
            self._write()
            self._gone = True
            self.deadline = self.site.plane.seconds() + FLUSH
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def abort(self) -> None:
        """Close it now."""
        self._leave_pool()
        if self._call_off is not None:
            self._call_off()
        elif self.opened:
            self._gone = True
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is closed, by either side."""
        self._gone = True
        self.site.plane.sweep.remove(self)
        streams = list(self._streams.values())
        self._streams.clear()
        self._forget()
        for stream in streams:
            exchange = stream.dropped()
            if exchange is not None:
                exchange.lost(stream, clean=False)

    def _leave_pool(self) -> None:
        self._closing = True
        if self in self.server.sessions:
            self.server.sessions.remove(self)

    def _forget(self) -> None:
        self._leave_pool()
        self.site.plane.links.discard(self)
        self.site.connections.discard(self)
        self.site.check_drained()


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
    if request.expects_continue:
        fields.append((b"expect", b"100-continue"))
    return fields + lowered(forwarded_fields(request, origin, via))


HANDLERS: dict[type[Event], Callable[[ServerSession, Any], None]] = {
    InformationalResponseReceived: ServerSession._interim,
    ResponseReceived: ServerSession._head,
    DataReceived: ServerSession._data,
    TrailersReceived: ServerSession._trailers,
    StreamReset: ServerSession._was_reset,
    WindowUpdated: ServerSession._window,
    RemoteSettingsChanged: ServerSession._window,
    ConnectionTerminated: ServerSession._goodbye,
}
