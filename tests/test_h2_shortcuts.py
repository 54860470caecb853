"""HTTP/2: what takes a shorter way around the library is, byte for byte, what it would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from h2.connection import H2Connection
from h2.events import Event
from h2.exceptions import ProtocolError
from h2_frames import (
    FRAME,
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
OK = [(b":status", b"200"), (b"content-type", b"text/plain"), (b"set-cookie", b"a=1")]
EARLY = [(b":status", b"103"), (b"link", b"</style.css>")]
LONG = [(b":status", b"200"), *((b"x-%d" % number, b"~" * 5000) for number in range(8))]
TRAILERS = [(b"grpc-status", b"0")]

Step = tuple[str, Any, bool]  # "head" or "part", what is sent, whether it is the last


class Library(Multiplex):
    """The same with nothing shortened."""

    def respond(self, number: int, fields: Any, last: bool) -> None:
        self.send_headers(number, fields, end_stream=last)

    def room(self, number: int) -> int:
        return min(self.local_flow_control_window(number), self.max_outbound_frame_size)

    def send_part(self, number: int, data: bytes, last: bool) -> None:
        self.send_data(number, data, end_stream=last)

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


# Sending


@pytest.mark.parametrize(
    "steps",
    [
        [("head", OK, True)],
        [("head", OK, False), ("part", b"hello", True)],
        [("head", OK, False), ("part", b"hello", False), ("part", b"", True)],
        [("head", EARLY, False), ("head", EARLY, False), ("head", OK, False)],
        [("head", OK, False), ("part", b"hello", False), ("head", TRAILERS, True)],
        [("head", LONG, True)],
        [("head", LONG, False), *[("part", bytes(FRAME), False)] * 2, ("part", bytes(7232), True)],
        [("head", OK, False), *[("part", bytes(FRAME), False)] * 3],
        [("head", EARLY, True)],
        [("head", OK, False), ("head", EARLY, False)],
        [("head", OK, False), ("head", TRAILERS, False)],
        [("head", OK, True), ("head", OK, False)],
        [("head", OK, True), ("part", b"late", True)],
    ],
    ids=[
        "a head",
        "a body",
        "an end of its own",
        "early hints",
        "trailers",
        "a long head",
        "a full window",
        "more than the window",
        "hints that end",
        "hints behind the head",
        "trailers that do not end",
        "a head behind the end",
        "a body behind the end",
    ],
)
@pytest.mark.parametrize("ended", [True, False], ids=["request over", "request open"])
def test_what_is_sent_is_what_the_library_would_send(ended: bool, steps: list[Step]) -> None:
    """5.1, 6.1, 6.2, 6.9, 6.10: the frames, the faults and the states after them are the same."""
    ours, theirs = both()
    for multiplex in (ours, theirs):
        multiplex.receive_data(headers(1, GET, end=ended))
    for what, content, last in steps:
        came = []
        for multiplex in (ours, theirs):
            send = multiplex.respond if what == "head" else multiplex.send_part
            came.append(outcome(multiplex, lambda: send(1, content, last)))  # noqa: B023
        assert came[0] == came[1]
        if isinstance(came[0][0], int):
            break  # the library has given the stream up, each way in its own state
        assert ours.room(1) == theirs.room(1)
        assert states(ours) == states(theirs)


def test_nothing_is_sent_on_a_stream_that_is_none() -> None:
    """5.1: a stream that was never opened, or was reset, takes neither a head nor a body."""
    ours = server(Multiplex)
    ours.receive_data(headers(1, GET) + rst_stream(1))
    for number in (1, 3):
        with pytest.raises(ProtocolError):
            ours.respond(number, OK, True)
        with pytest.raises(ProtocolError):
            ours.send_part(number, b"hello", True)
    assert ours.data_to_send() == b""


def test_no_frame_is_longer_than_the_client_takes() -> None:
    """4.2: what there is no room for is not sent, and the stream goes on."""
    ours = server(Multiplex)
    ours.receive_data(headers(1, GET))
    ours.respond(1, OK, False)
    ours.data_to_send()
    with pytest.raises(ProtocolError):
        ours.send_part(1, bytes(FRAME + 1), True)
    assert ours.data_to_send() == b""
    ours.send_part(1, b"hello", True)
    assert ours.data_to_send() == data(1, b"hello", end=True)


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
