"""HTTP/2: field blocks in several frames (RFC 9113, sections 4.3 and 6.10)."""

from __future__ import annotations

import pytest
from h2_frames import (
    SETTINGS_ACK,
    Error,
    continuation,
    continued,
    data,
    frame,
    goaway,
    headers,
    ping,
    priority,
    push_promise,
    rst_stream,
    settings,
    window_update,
)
from h2_hpack import block
from h2_wire import HELLO, conversation, request
from plane_stage import twisted_test

PROTOCOL = Error.PROTOCOL_ERROR
BLOCK = block(request())
UNKNOWN = 0x16  # a type of frame that nobody has defined


@pytest.mark.parametrize("step", [1, 5, 20])
@twisted_test
async def test_a_field_block_may_come_in_several_frames(step: int) -> None:
    """6.10: any number of CONTINUATION frames may follow, cut anywhere."""
    parts = [BLOCK[at : at + step] for at in range(0, len(BLOCK), step)]
    async with conversation() as client:
        client.send(continued(1, parts, end=True))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_fragments_of_a_field_block_may_be_empty() -> None:
    """6.10: HEADERS and CONTINUATION may carry nothing."""
    async with conversation() as client:
        client.send(continued(1, [b"", b"", BLOCK, b""], end=True))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_long_fields_in_several_frames_are_taken() -> None:
    """6.10: fields of 4000 octets fit in a request, though not in one frame with others."""
    long = block([("x-long", "x" * 4000)])
    async with conversation() as client:
        client.send(continued(1, [BLOCK, long, long], end=True))
        assert (await client.response()).body == HELLO


INTERRUPTIONS = {
    "DATA": data(1, b"test"),
    "HEADERS": headers(1, BLOCK),
    "HEADERS of another stream": headers(3, BLOCK, end=True),
    "PRIORITY": priority(1),
    "PRIORITY of another stream": priority(3),
    "RST_STREAM": rst_stream(1),
    "SETTINGS": settings(),
    "SETTINGS ack": SETTINGS_ACK,
    "PUSH_PROMISE": push_promise(1, 2, BLOCK),
    "PING": ping(),
    "GOAWAY": goaway(),
    "WINDOW_UPDATE": window_update(1, 1),
    "WINDOW_UPDATE of the connection": window_update(0, 1),
    "CONTINUATION of another stream": continuation(3, BLOCK),
    "CONTINUATION without a stream": continuation(0, BLOCK),
    "unknown": frame(UNKNOWN, 0, 0, bytes(8)),
}


@pytest.mark.parametrize("begun", [b"", continuation(1, b"", complete=False)], ids=["1st", "2nd"])
@pytest.mark.parametrize("between", INTERRUPTIONS.values(), ids=INTERRUPTIONS)
@twisted_test
async def test_nothing_may_come_between_the_frames_of_a_field_block(
    between: bytes, begun: bytes
) -> None:
    """4.3, 5.5, 6.2, 6.10: a field block is one sequence, or the connection ends."""
    async with conversation() as client:
        client.send(
            headers(1, BLOCK, complete=False), begun, between, continuation(1, block([("a", "b")]))
        )
        await client.connection_error(PROTOCOL)


@pytest.mark.parametrize(
    "before",
    [
        b"",
        headers(1, BLOCK, end=False),
        headers(1, BLOCK, end=True),
        headers(1, BLOCK, complete=False) + continuation(1, b""),
        headers(1, BLOCK) + data(1, b"test"),
        headers(1, BLOCK) + data(1, b"test", end=True),
    ],
    ids=["idle", "HEADERS", "END_STREAM", "CONTINUATION", "DATA", "DATA END_STREAM"],
)
@twisted_test
async def test_a_continuation_must_continue_something(before: bytes) -> None:
    """6.10: CONTINUATION behind anything but an unfinished block is a PROTOCOL_ERROR."""
    async with conversation(None) as client:
        client.send(before, continuation(1, block([("a", "b")])))
        await client.connection_error(PROTOCOL)


@twisted_test
async def test_data_within_a_field_block_is_an_error_whatever_follows() -> None:
    """6.10: DATA after HEADERS without END_HEADERS ends the connection."""
    async with conversation() as client:
        client.send(
            headers(1, BLOCK, complete=False),
            data(1, b"test", end=True),
            continuation(1, b"", complete=False),
            continuation(0, b""),
        )
        await client.connection_error(PROTOCOL)
