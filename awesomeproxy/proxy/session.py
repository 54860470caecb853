"""Connections to servers that speak HTTP/2, each with the streams it carries.

A session carries many exchanges at once; another is opened only when all there are have
as many as their server allows.  A site is not drained while it has a session: it is
closed with its last stream while the site is held, and after a while without any.

Nothing is asked before the server has said how many streams it takes, with the first of
its words (RFC 9113, section 3.4): to whoever asks more, it would have to refuse them.

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
    SettingsAcknowledged,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from awesomeproxy.proxy.fields import Field
from awesomeproxy.proxy.interfaces import ICarrier, IServerLink
from awesomeproxy.proxy.multiplex import HIGHEST, Multiplex
from awesomeproxy.proxy.responses import MAX_HEAD
from awesomeproxy.proxy.secure import fault_of
from awesomeproxy.proxy.servers import MOST, LiveServer
from awesomeproxy.proxy.sweep import NEVER
from awesomeproxy.proxy.upstream import no_file

if TYPE_CHECKING:
    from awesomeproxy.proxy.serverstream import ServerStream
    from awesomeproxy.proxy.site import LiveSite

WINDOW = 256 * 1024  # bytes of a response that may come before they are asked for
TOGETHER = 16 * 1024 * 1024  # the same of all streams
FLUSH = 5.0  # seconds that a server may take for the last of what it is sent


@implementer(IServerLink)
class ServerSession(Protocol):
    """One connection to a server that speaks HTTP/2."""

    transport: Any

    def __init__(self, site: LiveSite, server: LiveServer) -> None:
        self.site = site
        self.server = server
        self.opened = False  # the server has said how it speaks
        self.deadline = NEVER
        self.waiting: list[ServerStream] = []  # until it is open
        self._streams: dict[int, ServerStream] = {}
        self._blocked: dict[ServerStream, None] = {}
        self._cancelled: dict[int, ServerStream] = {}  # until the server has heard of it, ...
        self._probed: list[int] = []  # ... which for these it is about to say
        self._unacknowledged = 1  # SETTINGS
        self._full = False  # the server's socket
        self._closing = False
        self._gone = False
        self._why = "it closed the connection before it had said a word of HTTP/2"
        self._heard_at = NEVER  # the last time
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
        every = (*self.waiting, *self._streams.values(), *self._cancelled.values())
        return [stream for stream in every if stream.exchange is not None]

    @property
    def room(self) -> bool:
        """Whether it can carry one more exchange."""
        h2 = self._h2
        if self._closing or h2.highest_outbound_stream_id + 2 > HIGHEST:
            return False
        most = self._most if self.opened else self.server.most_streams
        return len(self._streams) + len(self.waiting) < most

    @property
    def _most(self) -> int:
        """How many streams there may be."""
        return min(MOST, self._h2.remote_settings.max_concurrent_streams)

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
        """The server's kernel has taken the connection: it is to speak now."""
        self._call_off = None
        plane = self.site.plane
        self.deadline = plane.seconds() + self.site.site.timeouts.connect
        plane.sweep.add(self)
        self.transport.registerProducer(self, True)
        self.transport.write(self._h2.begin(TOGETHER))

    def _failed(self, reason: Failure) -> None:
        self._call_off = None
        self._forget()
        self._not_opened(reason.getErrorMessage())

    def _not_opened(self, why: str) -> None:
        waiting, self.waiting = self.waiting, []
        for stream in waiting:
            exchange = stream.dropped()
            if exchange is not None:
                exchange.not_connected(stream, why)

    def _settings(self, event: RemoteSettingsChanged) -> None:
        most = self._most
        self.server.most_streams = max(1, most)
        if self.opened:
            self._window(event)
        elif most:
            self._open()
        else:
            self._why = "it takes no streams"
            self.abort()

    def _open(self) -> None:
        """It is open: send as many as there may be; for the others there are more sessions."""
        self.opened = True
        self.deadline = NEVER
        waiting, self.waiting = self.waiting, []
        for stream in waiting:
            if self.room:
                stream.connected()
            elif stream.exchange is not None:
                stream.find(self.site.site.timeouts.connect)
        self._rest()

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
                    room = h2.room(number)
                    if room <= 0:
                        break
                    data, last = stream.take(room)
                    h2.send_part(number, data, last)
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
        except KeyError:
            return  # the library has forgotten it
        self._flush()

    def over(self, stream: ServerStream, code: ErrorCodes | None) -> None:
        """Forget a stream.

        :param code: what the server is told, unless all has been said.
        """
        if stream in self.waiting:
            self.waiting.remove(stream)
        elif self._cancelled.get(stream.number) is stream:
            del self._cancelled[stream.number]
        elif self._streams.pop(stream.number, None) is not None:
            self._blocked.pop(stream, None)
            if code is not None or not (stream.response.complete and stream.end_sent):
                with contextlib.suppress(ProtocolError):  # it is closed already
                    self._h2.reset_stream(stream.number, code or ErrorCodes.NO_ERROR)
                self._flush()
        self._rest()

    def cancel(self, stream: ServerStream) -> None:
        """Reset a stream, and tell it when the server has heard of that.

        Frames are heard in order, so that SETTINGS behind the reset, which change nothing,
        are acknowledged after it.  PING would do as well, but servers of gRPC part with
        whoever sends more than a few.
        """
        del self._streams[stream.number]
        self._blocked.pop(stream, None)
        self._cancelled[stream.number] = stream
        with contextlib.suppress(ProtocolError):  # it is closed already
            self._h2.reset_stream(stream.number, ErrorCodes.CANCEL)
        if not self._probed:
            self._probe()
        self._flush()

    def _probe(self) -> None:
        self._probed = list(self._cancelled)
        self._unacknowledged += 1
        self._h2.update_settings({})

    def _acknowledged(self, event: SettingsAcknowledged) -> None:
        self._unacknowledged -= 1
        if self._unacknowledged or not self._probed:
            return
        probed, self._probed = self._probed, []
        for number in probed:
            stream = self._cancelled.pop(number, None)
            if stream is not None:
                stream.cancelled()
        if self._cancelled:
            self._probe()
        self._rest()

    @property
    def _busy(self) -> bool:
        return bool(self._streams or self.waiting or self._cancelled)

    def _rest(self) -> None:
        """If nothing is carried any more: be idle, or close."""
        if self._busy or self._gone:
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
        self._heard_at = self.site.plane.seconds()
        try:
            try:
                events = self._h2.receive_data(data)
            except ProtocolError as fault:
                if not self.opened:
                    self._why = f"what it speaks is not HTTP/2: {fault}"
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
                if exchange is None:
                    continue
                if stream.heard:  # so it is not true
                    exchange.lost(stream, clean=False)
                else:
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
        elif not self.opened:
            limit = self.site.site.timeouts.connect
            self._why = f"it has not said a word of HTTP/2 within {limit:g} s"
            self.abort()
        elif not self._busy:
            self.close()

    def late(self, since: float) -> None:
        """A stream has got no answer: if nothing else has come either, it is given no more."""
        if self._heard_at <= since:
            self._leave_pool()
            self._rest()

    def close_if_idle(self) -> None:
        """Close it unless it carries something."""
        if not self._busy:
            self.close()

    def close(self) -> None:
        """Say goodbye and close."""
        if self._gone:
            return
        self._leave_pool()
        if self._call_off is not None:
            self._call_off()
        elif self.transport is not None:
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
        elif self.transport is not None:
            self._gone = True
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is closed, by either side."""
        self._gone = True
        fault = fault_of(reason)
        self.site.plane.sweep.remove(self)
        streams = list(self._streams.values())
        self._streams.clear()
        cancelled = list(self._cancelled.values())
        self._cancelled.clear()
        self._forget()
        for stream in cancelled:
            stream.cancelled()
        for stream in streams:
            exchange = stream.dropped()
            if exchange is not None:
                exchange.lost(stream, False, fault)
        self._not_opened(self._why + (fault and f" ({fault})"))

    def _leave_pool(self) -> None:
        self._closing = True
        self.server.sessions = [each for each in self.server.sessions if each is not self]

    def _forget(self) -> None:
        self._leave_pool()
        self.site.plane.links.discard(self)
        self.site.connections.pop(self, None)
        self.site.check_drained()


HANDLERS: dict[type[Event], Callable[[ServerSession, Any], None]] = {
    InformationalResponseReceived: ServerSession._interim,
    ResponseReceived: ServerSession._head,
    DataReceived: ServerSession._data,
    TrailersReceived: ServerSession._trailers,
    SettingsAcknowledged: ServerSession._acknowledged,
    StreamReset: ServerSession._was_reset,
    WindowUpdated: ServerSession._window,
    RemoteSettingsChanged: ServerSession._settings,
    ConnectionTerminated: ServerSession._goodbye,
}
