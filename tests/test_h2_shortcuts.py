"""HTTP/2: what takes a shorter way around the library is, byte for byte, what it would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from h2.connection import H2Connection
from h2.events import Event
from h2.exceptions import ProtocolError
from h2_frames import (
    PREFACE,
    RESERVED,
    Setting,
    continuation,
    data,
    dependency,
    headers,
    priority,
    rst_stream,
    settings,
    window_update,
)
from h2_hpack import block
from h2_wire import request
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st

from awesomeproxy.proxy.multiplex import Multiplex

HELLO = PREFACE + settings((Setting.INITIAL_WINDOW_SIZE, 40_000))
GET = block(request())


class Library(Multiplex):
    """The same with nothing shortened."""

    def receive_data(self, data: Any) -> Any:
        return H2Connection.receive_data(self, data)


def server(kind: type[Multiplex]) -> Multiplex:
    """The server of a connection that has begun."""
    multiplex = kind(client=False, settings={}, max_list=65_536)
    multiplex.begin(65_535)
    multiplex.receive_data(HELLO)
    multiplex.data_to_send()
    return multiplex


def told(event: Any) -> Any:
    """All that an event says, in what can be compared."""
    if isinstance(event, Event):
        return type(event), {name: told(value) for name, value in vars(event).items()}
    return event


def outcome(multiplex: Multiplex, function: Callable[[], Any]) -> tuple[Any, bytes]:
    """What comes of a call, and what is to be sent then."""
    came: Any
    try:
        came = [told(event) for event in function() or ()]
    except ProtocolError as fault:
        came = fault.error_code
    return came, multiplex.data_to_send()


def states(multiplex: Multiplex) -> Any:
    """All that the library remembers of the streams, and of what is agreed on."""
    return [
        multiplex.state_machine.state,
        multiplex.outbound_flow_control_window,
        multiplex.highest_inbound_stream_id,
        dict(multiplex._closed_streams),
        {
            number: (vars(stream.state_machine), stream.outbound_flow_control_window)
            for number, stream in multiplex.streams.items()
        },
    ]


def both() -> tuple[Multiplex, Library]:
    ours, theirs = server(Multiplex), server(Library)
    assert isinstance(theirs, Library)
    return ours, theirs


# Receiving

STREAMS = st.sampled_from([0, 1, 2, 3, 5, 7, RESERVED | 1, RESERVED | 3])
BLOCKS = st.sampled_from(
    [
        GET,
        block(request(("x-a", "b"), method="POST")),
        block([("grpc-status", "0")]),
        block([(":status", "103")]),
        b"",
        b"\xff\xff\xff\xff\xff\xff",
    ]
)
PADS = st.none() | st.integers(0, 20)
FRAMES = st.one_of(
    st.builds(headers, STREAMS, BLOCKS, end=st.booleans()),
    st.builds(headers, STREAMS, BLOCKS, end=st.booleans(), pad=PADS),
    st.builds(
        headers,
        STREAMS,
        BLOCKS,
        end=st.booleans(),
        pad=PADS,
        depends=st.builds(dependency, st.integers(0, 3), exclusive=st.booleans()),
    ),
    st.builds(
        lambda stream, fields, end: (
            headers(stream, fields[:2], end=end, complete=False) + continuation(stream, fields[2:])
        ),
        STREAMS,
        BLOCKS,
        st.booleans(),
    ),
    st.builds(data, STREAMS, st.binary(max_size=5), end=st.booleans(), pad=PADS),
    st.builds(rst_stream, STREAMS),
    st.builds(window_update, STREAMS, st.integers(1, 9)),
    st.builds(priority, STREAMS, st.integers(0, 3)),
)


@tried(deadline=None, max_examples=500, derandomize=True)
@given(st.lists(st.lists(FRAMES, max_size=6), max_size=3))
def test_heads_are_taken_as_the_library_takes_them(reads: list[list[bytes]]) -> None:
    """5.1, 6.2: heads among other frames bring about the same events, faults and answers."""
    ours, theirs = both()
    for frames in reads:
        read = b"".join(frames)
        came = [outcome(m, lambda: m.receive_data(read)) for m in (ours, theirs)]  # noqa: B023
        assert came[0] == came[1]
        if isinstance(came[0][0], int):
            return  # the connection ends
        assert states(ours) == states(theirs)
