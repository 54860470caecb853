"""The h2 library, with what a proxy wants otherwise.

``h2`` keeps the state of a connection and its streams, parses and builds frames, and
compresses fields.  Here

- a GOAWAY, sent or received, ends nothing but new streams: those that are open go on,
  as RFC 9113, section 6.8 has it;
- what is ready to be sent is sent, even if a GOAWAY has come before that was done;
- fields and lengths are not judged by the library, which would end the whole connection for one bad
  request and looks at each character in Python; :mod:`awesomeproxy.proxy.messages`
  judges them, and refuses the one stream;
- what comes is looked at before, see :mod:`awesomeproxy.proxy.frames`;
- what nearly every stream consists of takes a shorter way: the library's states judge it,
  as all else, but are told of it without the many small objects that it would make.
"""

from __future__ import annotations

import contextlib
from typing import Any

from h2.config import H2Configuration
from h2.connection import (
    AllowedStreamIDs,
    ConnectionInputs,
    ConnectionState,
    H2Connection,
    H2ConnectionStateMachine,
)
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import FlowControlError, ProtocolError
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream, StreamInputs
from h2.utilities import is_informational_response
from hyperframe.frame import GoAwayFrame

from awesomeproxy.proxy.compression import BlockDecoder, FieldEncoder
from awesomeproxy.proxy.fields import Field
from awesomeproxy.proxy.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME,
    HEADERS,
    Frames,
    Head,
    frame,
)

WINDOW = 65_535  # bytes of a body that may come before they are asked for, section 6.9.2
HIGHEST = 2**31 - 1  # of the numbers of streams


class _States(H2ConnectionStateMachine):
    _transitions = {  # noqa: RUF012 -- so it is in the library
        **H2ConnectionStateMachine._transitions,
        **{
            (state, goaway): (None, state)
            for state in ConnectionState
            if state is not ConnectionState.CLOSED
            for goaway in (ConnectionInputs.SEND_GOAWAY, ConnectionInputs.RECV_GOAWAY)
        },
    }


def _nothing(headers: object) -> None:
    """What the library does with a length."""


class Multiplex(H2Connection):
    """One connection that speaks HTTP/2."""

    MAX_CLOSED_STREAMS = 1024  # that are remembered

    def __init__(self, *, client: bool, settings: dict[SettingCodes, int], max_list: int) -> None:
        """
        :param client: which side we are.
        :param settings: what is announced.
        :param max_list: bytes of a block of fields, decoded.
        """
        super().__init__(
            H2Configuration(
                client_side=client,
                header_encoding=None,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
                validate_outbound_headers=False,
                # The library's way to keep secrets out of the compressor's memory, which
                # the clients of a server's connection share (RFC 7541, section 7.1.3).
                normalize_outbound_headers=client,
            )
        )
        self.state_machine = _States()
        self.decoder = BlockDecoder(max_list)
        self.encoder = FieldEncoder()
        self.frames = Frames(preface=not client, max_block=max_list // 2)
        self.local_settings = Settings(client=client, initial_values=settings)
        self.max_inbound_frame_size = FRAME
        self._frame_dispatch_table[Head] = self._receive_headers_frame

    def begin(self, window: int) -> bytes:
        """The first bytes to send.

        :param window: bytes that may come on all streams together.
        """
        self.initiate_connection()
        if window > WINDOW:
            self.increment_flow_control_window(window - WINDOW)
        # Streams over the number announced are refused one by one; the library would
        # end the connection of a client that has not heard of the number yet.
        self.local_settings.max_concurrent_streams = HIGHEST
        self.local_settings.acknowledge()
        return self.data_to_send()

    def receive_data(self, data: Any) -> list[Event]:
        """Take what has arrived.

        :raise ProtocolError: the connection is to end; what says why is ready to be sent.
        """
        try:
            parts = self.frames.feed(data)
        except ProtocolError as fault:
            self._terminate_connection(fault.error_code)
            raise
        events: list[Event] = []
        for part in parts:
            if isinstance(part, Head):
                events += self._receive_head(part)
            else:
                events += super().receive_data(part)
        if self.frames.void:
            events += self._reset_void()
        return events

    def _receive_head(self, head: Head) -> list[Event]:
        try:
            return self._receive_frame(head)
        except ProtocolError as fault:
            self._terminate_connection(fault.error_code)
            raise

    def _reset_void(self) -> list[Event]:
        """A window that is opened by nothing ends its stream (RFC 9113, section 6.9)."""
        void, self.frames.void = self.frames.void, []
        events: list[Event] = []
        for number in void:
            if number > max(self.highest_inbound_stream_id, self.highest_outbound_stream_id):
                self._terminate_connection(ErrorCodes.PROTOCOL_ERROR)
                raise ProtocolError("A window of no stream is opened.")
            with contextlib.suppress(ProtocolError):  # it is closed
                self.reset_stream(number, ErrorCodes.PROTOCOL_ERROR)
                code = ErrorCodes.PROTOCOL_ERROR
                events.append(StreamReset(stream_id=number, error_code=code, remote_reset=False))
        return events

    def clear_outbound_data_buffer(self) -> None:
        """Do nothing: the library would drop what is ready to be sent, for a GOAWAY."""

    def _begin_new_stream(self, stream_id: int, allowed_ids: AllowedStreamIDs) -> H2Stream:
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        # Lengths are fields as well: those who judge them end one stream, not all.
        stream._initialize_content_length = _nothing  # type: ignore[method-assign]
        return stream

    # What is sent most often: the library's states, without its objects for each frame and flag.

    def respond(self, number: int, fields: list[Field], last: bool) -> None:
        """Send the head of a response, or trailers, which are the last.

        :raise ProtocolError: the stream is closed, or this has no place there.
        """
        stream = self._get_stream_by_id(number)
        self.state_machine.process_input(ConnectionInputs.SEND_HEADERS)
        states = stream.state_machine
        interim = is_informational_response(fields)
        states.process_input(
            StreamInputs.SEND_INFORMATIONAL_HEADERS if interim else StreamInputs.SEND_HEADERS
        )
        if interim if last else states.trailers_sent:
            raise ProtocolError("A stream ends with a 1xx response, or goes on after trailers.")
        if last:
            states.process_input(StreamInputs.SEND_END_STREAM)
        block = self.encoder.encode(fields)
        size = self.max_outbound_frame_size
        kind, flags = HEADERS, END_STREAM if last else 0
        while len(block) > size:
            self._data_to_send += frame(kind, flags, number, block[:size])
            block = block[size:]
            kind, flags = CONTINUATION, 0
        self._data_to_send += frame(kind, flags | END_HEADERS, number, block)

    def room(self, number: int) -> int:
        """How many bytes of a body may be sent on a stream in one frame.

        :raise ProtocolError: the stream is closed.
        """
        return min(
            self._get_stream_by_id(number).outbound_flow_control_window,
            self.outbound_flow_control_window,
            self.max_outbound_frame_size,
        )

    def send_part(self, number: int, data: bytes, last: bool) -> None:
        """Send ``data``, for which there is :meth:`room`, as one frame.

        :raise ProtocolError: the stream is closed, or there is no room.
        """
        size = len(data)
        if size and size > self.room(number):
            raise FlowControlError("There is no room for that.")
        self.state_machine.process_input(ConnectionInputs.SEND_DATA)
        stream = self._get_stream_by_id(number)
        states = stream.state_machine
        states.process_input(StreamInputs.SEND_DATA)
        if last:
            states.process_input(StreamInputs.SEND_END_STREAM)
        stream.outbound_flow_control_window -= size
        self.outbound_flow_control_window -= size
        self._data_to_send += frame(DATA, END_STREAM if last else 0, number, data)

    def say_goodbye(self, last: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Send GOAWAY.

        :param last: the number of the last stream that is, or will be, looked at.
        """
        self._prepare_for_sending([GoAwayFrame(0, last_stream_id=last, error_code=code)])
