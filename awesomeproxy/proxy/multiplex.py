"""The h2 library, with what a proxy wants otherwise.

``h2`` keeps the state of a connection and its streams, parses and builds frames, and
compresses fields.  Here

- a GOAWAY, sent or received, ends nothing but new streams: those that are open go on,
  as RFC 9113, section 6.8 has it;
- fields are not judged by the library, which would end the whole connection for one bad
  request and looks at each character in Python; :mod:`awesomeproxy.proxy.messages`
  judges them, and refuses the one stream;
- what comes is looked at before, see :mod:`awesomeproxy.proxy.frames`.
"""

from __future__ import annotations

from typing import Any

from h2.config import H2Configuration
from h2.connection import (
    ConnectionInputs,
    ConnectionState,
    H2Connection,
    H2ConnectionStateMachine,
)
from h2.errors import ErrorCodes
from h2.events import Event
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from awesomeproxy.proxy.frames import FRAME, Frames

WINDOW = 65_535  # bytes of a body that may come before they are asked for, section 6.9.2
HIGHEST = 2**31 - 1  # of the numbers of streams


class _States(H2ConnectionStateMachine):
    _transitions = {  # noqa: RUF012 -- so it is in the library
        **H2ConnectionStateMachine._transitions,
        **{
            (state, goaway): (None, state)
            for state in (ConnectionState.CLIENT_OPEN, ConnectionState.SERVER_OPEN)
            for goaway in (ConnectionInputs.SEND_GOAWAY, ConnectionInputs.RECV_GOAWAY)
        },
    }


class Multiplex(H2Connection):
    """One connection that speaks HTTP/2."""

    MAX_CLOSED_STREAMS = 1024  # that are remembered

    def __init__(self, *, client: bool, settings: dict[SettingCodes, int], max_block: int) -> None:
        """
        :param client: which side we are.
        :param settings: what is announced.
        :param max_block: bytes of a field block, compressed.
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
        self.frames = Frames(preface=not client, max_block=max_block)
        self.local_settings = Settings(client=client, initial_values=settings)
        self.max_inbound_frame_size = FRAME

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
            frames = self.frames.feed(data)
        except ProtocolError as fault:
            self._terminate_connection(fault.error_code)
            raise
        return super().receive_data(frames)

    def say_goodbye(self, last: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Send GOAWAY.

        :param last: the number of the last stream that is, or will be, looked at.
        """
        frame = GoAwayFrame(0, last_stream_id=last, error_code=code)
        self._prepare_for_sending([frame])
