"""Connections of clients that speak HTTP/2: streams come in, frames go out.

The h2 library (:mod:`awesomeproxy.proxy.multiplex`) says what has happened; here it is
handed to the streams, and what they send is cut to frames as the client's windows and
its socket allow.  All that one read has brought about is answered with one write.

Streams share one connection, and so must not stand in each other's way: what comes on
the connection is always taken, and only a stream's own window makes its client wait.

A client may make work that leads nowhere: streams that it resets at once, pings, changes
of settings.  Each costs it some of our patience, which comes back with time; without any
left, the connection ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
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

from awesomeproxy.model import Listen
from awesomeproxy.proxy.arrival import Arrival
from awesomeproxy.proxy.fields import Field
from awesomeproxy.proxy.interfaces import IVisitor
from awesomeproxy.proxy.messages import Malformed, request_of, trailers_of
from awesomeproxy.proxy.multiplex import HIGHEST, WINDOW, Multiplex
from awesomeproxy.proxy.requests import Refusal
from awesomeproxy.proxy.sockets import has_left
from awesomeproxy.proxy.stream import Stream
from awesomeproxy.proxy.sweep import NEVER

if TYPE_CHECKING:
    from awesomeproxy.proxy.plane import Plane

LINGER = 2.0  # seconds that a client may go on sending what nobody reads any more
PATIENCE = 1000.0  # how much work may lead nowhere, at once ...
CALMING = 100.0  # ... and how much of it is forgotten in a second
RESET = 4.0  # what a stream that is reset costs of it; other things cost 1
PING = b"farewell"  # its echo says that nothing of the client's is on its way any more
ANSWERED = 2.0  # what an answer gives back: a client opens windows for it, or pings
ROOM = 256 * 1024  # bytes that a client may leave untaken and still be read from
TURN = 4  # frames that a stream sends before it is the next one's turn


@implementer(IPushProducer, IVisitor)
class Http2Connection(Protocol):
    """One connection of a client that speaks HTTP/2."""

    transport: Any

    def __init__(
        self,
        plane: Plane,
        listen: Listen,
        arrival: Arrival,
        turned_away: Refusal | None = None,
    ) -> None:
        """
        :param turned_away: what is answered to all that it asks, before it is closed.
        """
        self.plane = plane
        self.listen = listen
        self.arrival = arrival
        self.address = arrival.address
        self.origin = plane.origin(arrival, listen)
        self.deadline = NEVER
        self._turned_away = turned_away
        self._streams: dict[int, Stream] = {}
        self._waiting: dict[Stream, None] = {}  # to send, in order
        self._h2 = Multiplex(
            client=False,
            settings={
                SettingCodes.MAX_CONCURRENT_STREAMS: listen.max_streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: listen.max_head,
                SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
            },
            # Over what was announced a request is answered 431; far over it, all is refused.
            max_list=4 * listen.max_head,
        )
        self._head_timed = False  # a head has begun, and has to be complete by ...
        self._head_deadline = NEVER  # ... then; afterwards ...
        self._deadline = NEVER  # ... this is the deadline again
        self._receiving = False
        self._flushing = False  # it will be written at the end of the reactor's turn
        self._full = False  # the client's socket
        self._deaf = False  # nothing is read, until the client takes what there is
        self._closing = False  # it ends with the streams there are
        self._echo_due = False  # streams may still come that were sent before we said so
        self._lingering = False
        self._last = HIGHEST  # the last stream that is looked at
        self._owed = 0  # bytes that have come and that the client was not told of
        self._given = 0  # bytes of all answers, to the transport
        # Whoever leaves a page cancels all that is under way, and may come to another at once.
        self._most_patience = max(PATIENCE, 2 * RESET * listen.max_streams)
        self._patience = self._most_patience
        self._patience_at = plane.seconds()

    def __repr__(self) -> str:
        return f"<Http2Connection {self.address}: {len(self._streams)} streams>"

    def connectionMade(self) -> None:
        """A client has come, and is to speak first."""
        plane = self.plane
        self.deadline = plane.seconds() + self.listen.timeouts.head
        plane.client_came(self)
        self.transport.registerProducer(self, True)
        self.transport.write(self._h2.begin(self.listen.max_streams * WINDOW))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client has gone, or was sent away."""
        if self.arrival.counted:
            self.plane.visits.leave(self.address)
        self.plane.client_left(self)
        self._lingering = True  # there is nobody left to be told anything
        for stream in list(self._streams.values()):
            stream.gone()

    def dataReceived(self, data: bytes) -> None:
        """Some frames, or part of one."""
        if self._lingering:
            return
        self._receiving = True
        try:
            try:
                events = self._h2.receive_data(data)
            except ProtocolError:
                self._end()
                return
            for event in events:
                handle = HANDLERS.get(type(event))
                if handle is not None:
                    handle(self, event)
                if self._lingering:
                    return
            frames = self._h2.frames
            if frames.idle:
                self._annoyed(frames.idle)
                frames.idle = 0
            if frames.in_head != self._head_timed:
                self._time_head(frames.in_head)
        finally:
            self._receiving = False
        if self._owed >= WINDOW // 2:
            self._h2.increment_flow_control_window(self._owed)
            self._owed = 0
        self._write()

    def _time_head(self, begun: bool) -> None:
        """A head has begun to arrive, or is over: for that there is a deadline of its own."""
        self._head_timed = begun
        if self._echo_due:
            return
        if begun:
            self._deadline = self.deadline
            self._head_deadline = self.plane.seconds() + self.listen.timeouts.head
            self.deadline = min(self.deadline, self._head_deadline)
        elif self.deadline == self._head_deadline:
            self.deadline = NEVER if self._streams else self._deadline

    def _flush(self) -> None:
        """Send what there is, together with what else this turn of the reactor brings."""
        if not self._receiving and not self._flushing:
            self._flushing = True
            self.plane.eager.at_turn_end(self._write)

    def _write(self) -> None:
        self._flushing = False
        data = self._h2.data_to_send()
        if data and not self._lingering:
            self.transport.write(data)
            if self._full and not self._deaf and self.transport.unsent > ROOM:
                # Heads have no windows: who takes none is not listened to either.
                self._deaf = True
                self.transport.pauseProducing()

    # What has happened

    def _request(self, event: RequestReceived) -> None:
        number: int = event.stream_id
        if number > self._last or not self._has_room():
            self._reset(number, ErrorCodes.REFUSED_STREAM)
            self._annoyed(RESET)
            return
        try:
            request, refusal = request_of(
                event.headers, event.stream_ended is not None, self.listen
            )
        except Malformed:
            self._reset(number, ErrorCodes.PROTOCOL_ERROR)
            return
        stream = self._streams[number] = Stream(self, number, request)
        self._head_timed = False
        if not self._echo_due:
            self.deadline = NEVER
        stream.begin(self._turned_away or refusal)

    def _has_room(self) -> bool:
        """Whether one more stream may be, if need be instead of one that is answered."""
        if len(self._streams) < self.listen.max_streams:
            return True
        for stream in self._streams.values():
            if stream.lingers:
                stream.stop_client()
                return True
        return False

    def _data(self, event: DataReceived) -> None:
        length: int = event.flow_controlled_length
        self._owed += length
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            last = event.stream_ended is not None
            if not event.data and not last:
                self._annoyed(1)
            elif self._patience < self._most_patience:
                self._patience += 1  # it is good for something, too
            stream.body_came(bytes(event.data), length, last)

    def _trailers(self, event: TrailersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        try:
            trailers = trailers_of(event.headers)
        except Malformed:
            self._reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            stream.gone()
            return
        stream.trailers_came(trailers)

    def _was_reset(self, event: StreamReset) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.gone()
        self._annoyed(RESET)  # it was reset by the client, or because of it

    def _window(self, event: WindowUpdated) -> None:
        if event.stream_id:
            stream = self._streams.get(event.stream_id)
            if stream is not None and stream in self._waiting:
                self.send_body(stream)
        else:
            self._send_waiting()
        if not self._streams:
            self._annoyed(1)

    def _settings(self, event: RemoteSettingsChanged) -> None:
        self._annoyed(1)
        self._send_waiting()

    def _ping(self, event: Event) -> None:
        self._annoyed(1)

    def _echo(self, event: PingAckReceived) -> None:
        if self._echo_due and event.ping_data == PING:
            self._no_more()

    def _goodbye(self, event: ConnectionTerminated) -> None:
        self._closing = True
        self._end_if_done()

    def _annoyed(self, cost: float) -> None:
        """The client has made work that leads nowhere."""
        self._patience -= cost
        if self._patience >= 0 or self._lingering:
            return
        now = self.plane.seconds()
        self._patience = min(
            self._most_patience, self._patience + (now - self._patience_at) * CALMING
        )
        self._patience_at = now
        if self._patience < 0:
            self._h2.say_goodbye(self._h2.highest_inbound_stream_id, ErrorCodes.ENHANCE_YOUR_CALM)
            self._end()

    # What streams ask of their connection

    def has_left(self) -> bool:
        """Whether the client has closed its side, though we have not read that far."""
        return not self.transport.connected or has_left(self.transport.socket)

    @property
    def taken(self) -> int:
        """How much the client has taken of all answers: what counts is the growth."""
        return int(self._given - self.transport.unsent)

    @property
    def behind(self) -> bool:
        """Whether its client takes less than there is, of whatever stream."""
        return bool(self.transport.unsent) or self._h2.outbound_flow_control_window <= 0

    @property
    def incomplete(self) -> int:
        """Bytes that have come of a frame that has not come whole."""
        return self._h2.frames.incomplete

    def ask(self, stream: Stream, size: int) -> None:
        """Let so many bytes more come on a stream."""
        try:
            self._h2.increment_flow_control_window(size, stream.number)
        except ProtocolError:
            return  # the client has reset it, and we have not come to know
        except KeyError:
            return  # the same, and the library has forgotten it
        self._flush()

    def send_head(self, stream: Stream, fields: list[Field], last: bool) -> None:
        """Send the head of a response.

        :param last: it has no body.
        """
        try:
            self._h2.respond(stream.number, fields, last)
        except ProtocolError:
            return
        if last:
            stream.end_sent = True
        self._flush()

    def send_body(self, stream: Stream) -> None:
        """Send what waits in a stream, as far as it can be taken."""
        try:
            done = self._send(stream, NEVER)
        except ProtocolError:
            done = True
        if done:
            self._waiting.pop(stream, None)
        else:
            self._waiting[stream] = None
        self._flush()
        stream.sent()

    def _send(self, stream: Stream, frames: float) -> bool:
        """Send at the most so many frames of a stream; return whether that was all."""
        h2 = self._h2
        number = stream.number
        while not self._full:
            if stream.unsent:
                room = h2.room(number)
                if room <= 0 or frames <= 0:
                    return False
                frames -= 1
                data, last = stream.take(room)
                h2.send_part(number, data, last)
                self._given += len(data)
                stream.end_sent = last
                if last:
                    return True
                continue
            if stream.to_end and not stream.end_sent:
                trailers = stream.take_trailers()
                if trailers:
                    h2.respond(number, trailers, True)
                else:
                    h2.end_stream(number)
                stream.end_sent = True
            return True
        return False

    def _send_waiting(self) -> None:
        """There is room again: let all send in turns."""
        while self._waiting and not self._full:
            progress = False
            for stream in list(self._waiting):
                before = stream.unsent
                try:
                    done = self._send(stream, TURN)
                except ProtocolError:
                    done = True
                if done:
                    self._waiting.pop(stream, None)
                progress = progress or done or stream.unsent < before
                self._flush()
                stream.sent()
            if not progress:
                return

    def reset(self, stream: Stream, code: ErrorCodes) -> None:
        """End a stream."""
        self._reset(stream.number, code)
        self._flush()

    def _reset(self, number: int, code: ErrorCodes) -> None:
        if code in (ErrorCodes.PROTOCOL_ERROR, ErrorCodes.CANCEL):
            self._annoyed(RESET)  # what it has asked for may be at work all the same
        try:
            self._h2.reset_stream(number, code)
        except ProtocolError:
            return  # it is closed already

    def over(self, stream: Stream) -> None:
        """Forget a stream that has ended."""
        del self._streams[stream.number]
        self._waiting.pop(stream, None)
        if stream.end_sent and self._patience < self._most_patience:
            self._patience += ANSWERED
        if self._streams or self._lingering:
            return
        if not self._echo_due:
            self.deadline = self.plane.seconds() + self.listen.timeouts.idle
            if self._head_timed:
                self._deadline = self.deadline
                self.deadline = min(self.deadline, self._head_deadline)
        if self._turned_away is not None:
            self._closing = True
        elif self.plane.stopping and not self._closing:
            self.idle_close()
        self._end_if_done()

    # What the socket says

    def pauseProducing(self) -> None:
        """The client takes less than there is."""
        self._full = True

    def resumeProducing(self) -> None:
        """It has taken what there was."""
        self._full = False
        self._hear()
        self._send_waiting()

    def _hear(self) -> None:
        if self._deaf:
            self._deaf = False
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The client is gone."""

    # The end

    def expired(self, now: float) -> None:
        """Nothing is asked for, or only half, for too long; or the end takes too long."""
        self.deadline = NEVER
        if self._lingering:
            self.transport.abortConnection()
        elif self._echo_due:
            self._no_more()
        elif self._head_timed or not self._streams:
            self._h2.say_goodbye(self._h2.highest_inbound_stream_id)
            self._end()

    def idle_close(self) -> None:
        """The proxy stops: take no more streams, once the client has heard of it."""
        if self._closing or self._lingering:
            return
        self._closing = self._echo_due = True
        self._h2.say_goodbye(HIGHEST)
        self._h2.ping(PING)
        self._flush()
        self.deadline = self.plane.seconds() + LINGER

    def _no_more(self) -> None:
        """The client knows that the proxy stops: what it has asked until now is the last."""
        self._echo_due = False
        self.deadline = NEVER
        self._last = self._h2.highest_inbound_stream_id
        self._h2.say_goodbye(self._last)
        self._flush()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._closing and not self._echo_due and not self._streams:
            self._end()

    def _end(self) -> None:
        """Close, and let what was sent last arrive: a client that still sends would reset it."""
        if self._lingering:
            return
        data = self._h2.data_to_send()
        if data:
            self.transport.write(data)
        self._lingering = True
        for stream in list(self._streams.values()):
            stream.gone()
        self.deadline = self.plane.seconds() + LINGER
        self.transport.unregisterProducer()
        self._hear()
        self.transport.loseWriteConnection()

    def abort(self) -> None:
        """Close in a way that cannot be taken for a proper end."""
        self._lingering = True
        self.transport.abortConnection()


HANDLERS: dict[type[Event], Callable[[Http2Connection, Any], None]] = {
    RequestReceived: Http2Connection._request,
    DataReceived: Http2Connection._data,
    TrailersReceived: Http2Connection._trailers,
    StreamReset: Http2Connection._was_reset,
    WindowUpdated: Http2Connection._window,
    RemoteSettingsChanged: Http2Connection._settings,
    PingReceived: Http2Connection._ping,
    PingAckReceived: Http2Connection._echo,
    ConnectionTerminated: Http2Connection._goodbye,
}
