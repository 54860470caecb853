"""HTTP/2: the format of frames, and their sizes (RFC 9113, sections 4 and 6)."""

from __future__ import annotations

import pytest
from h2_frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FRAME,
    PADDED,
    PRIORITIZED,
    RESERVED,
    Error,
    Setting,
    Type,
    continuation,
    data,
    frame,
    headers,
    priority,
    push_promise,
    rst_stream,
)
from h2_hpack import block
from h2_wire import HELLO, ask, conversation, request
from plane_stage import ok, one_request, turns, twisted_test

PROTOCOL = Error.PROTOCOL_ERROR
SIZE = Error.FRAME_SIZE_ERROR
BLOCK = block(request())
UNKNOWN = 0x16  # a type of frame that nobody has defined


# The format of frames


@twisted_test
async def test_a_request_is_understood_byte_by_byte() -> None:
    """4.1: frames are understood wherever they are cut."""
    everything = ask(1, end=False, method="POST") + data(1, b"body", end=True, pad=3)
    async with conversation(None) as client:
        for at in range(len(everything)):
            client.send(everything[at : at + 1])
            await turns(1)
        server = await client.stage.origin.accept()
        assert (await one_request(server))[1] == b"body"
        server.write(ok(HELLO))
        assert (await client.response()).status == 200


@pytest.mark.parametrize("stream", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [0, 8, FRAME])
@pytest.mark.parametrize("type_", [0xA, 0xC, UNKNOWN, 0xFF])
@twisted_test
async def test_frames_of_unknown_types_are_ignored(type_: int, size: int, stream: int) -> None:
    """4.1, 5.5: a frame of a type nobody has defined is discarded, on any stream."""
    async with conversation(None) as client:
        client.send(ask(1, end=False), frame(type_, 0xFF, stream, bytes(size)))
        assert await client.settled() == []
        client.send(data(1, end=True))
        server = await client.stage.origin.accept()
        await one_request(server)
        server.write(ok(HELLO))
        assert (await client.response()).status == 200


@pytest.mark.parametrize(
    "harmless",
    [
        frame(Type.PING, 0xFE, 0, b"12345678"),
        frame(Type.SETTINGS, 0xFE, 0),
        frame(Type.WINDOW_UPDATE, 0xFF, 0, b"\0\0\0\1"),
        frame(Type.WINDOW_UPDATE, 0xFF, 1, b"\0\0\0\1"),
        frame(Type.PRIORITY, 0xFF, 1, b"\0\0\0\0\0"),
        frame(Type.DATA, 0xFF & ~(END_STREAM | PADDED), 1, b"a"),
    ],
    ids=["PING", "SETTINGS", "WINDOW_UPDATE", "of a stream", "PRIORITY", "DATA"],
)
@twisted_test
async def test_undefined_flags_are_ignored(harmless: bytes) -> None:
    """4.1: flags that mean nothing for a type of frame change nothing."""
    async with conversation() as client:
        client.send(ask(1, method="POST", end=False), harmless, data(1, end=True))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_undefined_flags_of_headers_are_ignored() -> None:
    """4.1: flags that mean nothing for HEADERS change nothing."""
    flags = 0xFF & ~(PADDED | PRIORITIZED)
    async with conversation() as client:
        client.send(frame(Type.HEADERS, flags, 1, BLOCK))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_a_ping_with_undefined_flags_is_answered() -> None:
    """4.1: a PING whose flags are all undefined is an ordinary PING."""
    async with conversation() as client:
        client.send(frame(Type.PING, 0x16, 0, b"12345678"))
        answer = await client.until(Type.PING)
        assert (answer.flags, answer.payload) == (ACK, b"12345678")


@pytest.mark.parametrize(
    "harmless",
    [
        frame(Type.PING, 0, RESERVED, b"12345678"),
        frame(Type.SETTINGS, 0, RESERVED),
        frame(Type.WINDOW_UPDATE, 0, RESERVED, b"\0\0\0\1"),
        frame(Type.WINDOW_UPDATE, 0, 0, b"\x80\0\0\1"),
        frame(Type.WINDOW_UPDATE, 0, RESERVED | 1, b"\x80\0\0\1"),
        frame(Type.DATA, 0, RESERVED | 1, b"a"),
        frame(Type.PRIORITY, 0, RESERVED | 1, b"\0\0\0\0\0"),
    ],
    ids=["PING", "SETTINGS", "WINDOW_UPDATE", "increment", "of a stream", "DATA", "PRIORITY"],
)
@twisted_test
async def test_the_reserved_bit_is_ignored(harmless: bytes) -> None:
    """4.1, 6.9: the bit before a stream identifier or an increment means nothing."""
    async with conversation() as client:
        client.send(ask(1, method="POST", end=False), harmless, data(1, end=True))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_the_reserved_bit_of_headers_is_ignored() -> None:
    """4.1: HEADERS with the reserved bit set opens the same stream."""
    async with conversation() as client:
        client.send(frame(Type.HEADERS, END_HEADERS | END_STREAM, RESERVED | 1, BLOCK))
        assert (await client.response()).body == HELLO


# Sizes


@twisted_test
async def test_a_frame_of_16384_octets_is_taken() -> None:
    """4.2: every endpoint takes frames of up to 2^14 octets."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"), data(1, bytes(FRAME), end=True))
        server = await client.stage.origin.accept()
        assert (await one_request(server))[1] == bytes(FRAME)
        server.write(ok(HELLO))
        assert (await client.response()).status == 200


@twisted_test
async def test_data_beyond_the_maximum_is_an_error() -> None:
    """4.2: DATA longer than SETTINGS_MAX_FRAME_SIZE is a FRAME_SIZE_ERROR."""
    async with conversation(None) as client:
        most = client.settings.get(Setting.MAX_FRAME_SIZE, FRAME)
        client.send(ask(1, end=False, method="POST"), data(1, bytes(most + 1), end=True))
        await client.error(1, SIZE)


@pytest.mark.parametrize(
    ("type_", "stream"),
    [
        (Type.HEADERS, 1),
        (Type.SETTINGS, 0),
        (Type.PING, 0),
        (Type.GOAWAY, 0),
        (Type.PUSH_PROMISE, 1),
        (UNKNOWN, 0),
    ],
    ids=lambda value: str(value),
)
@twisted_test
async def test_frames_beyond_the_maximum_are_connection_errors(type_: int, stream: int) -> None:
    """4.2: a frame that is too long and not DATA concerns the whole connection."""
    async with conversation() as client:
        most = client.settings.get(Setting.MAX_FRAME_SIZE, FRAME)
        client.send(frame(type_, END_HEADERS | END_STREAM, stream, bytes(most + 1)))
        await client.connection_error(SIZE)


@twisted_test
async def test_a_continuation_beyond_the_maximum_is_a_connection_error() -> None:
    """4.2: a CONTINUATION carries part of a field block and must not be too long either."""
    async with conversation() as client:
        most = client.settings.get(Setting.MAX_FRAME_SIZE, FRAME)
        client.send(headers(1, BLOCK, complete=False), continuation(1, bytes(most + 1)))
        await client.connection_error(SIZE)


@pytest.mark.parametrize("type_", [Type.DATA, Type.HEADERS, Type.SETTINGS, UNKNOWN])
@twisted_test
async def test_a_frame_too_long_is_refused_before_it_has_come(type_: int) -> None:
    """4.2: the nine octets that announce 16 MB are enough to know that they are too many."""
    stream = 0 if type_ in (Type.SETTINGS, UNKNOWN) else 1
    async with conversation(None) as client:
        client.send(ask(1, end=False), frame(type_, 0, stream, length=2**24 - 1))
        await client.connection_error(SIZE)


WRONG_SIZES = [
    (frame(Type.SETTINGS, 0, 0, bytes(1)), "SETTINGS 1"),
    (frame(Type.SETTINGS, 0, 0, bytes(3)), "SETTINGS 3"),
    (frame(Type.SETTINGS, 0, 0, bytes(5)), "SETTINGS 5"),
    (frame(Type.SETTINGS, 0, 0, b"\0\3\0\0\0d\0"), "SETTINGS 7"),
    (frame(Type.SETTINGS, ACK, 0, bytes(1)), "SETTINGS ack 1"),
    (frame(Type.SETTINGS, ACK, 0, b"\0\3\0\0\0d"), "SETTINGS ack 6"),
    (frame(Type.PING, 0, 0), "PING 0"),
    (frame(Type.PING, 0, 0, bytes(6)), "PING 6"),
    (frame(Type.PING, 0, 0, bytes(7)), "PING 7"),
    (frame(Type.PING, 0, 0, bytes(9)), "PING 9"),
    (frame(Type.PING, ACK, 0, bytes(7)), "PING ack 7"),
    (frame(Type.RST_STREAM, 0, 1, bytes(3)), "RST_STREAM 3"),
    (frame(Type.RST_STREAM, 0, 1, bytes(5)), "RST_STREAM 5"),
    (frame(Type.RST_STREAM, 0, 1), "RST_STREAM 0"),
    (frame(Type.WINDOW_UPDATE, 0, 0, b"\0\0\1"), "WINDOW_UPDATE 3"),
    (frame(Type.WINDOW_UPDATE, 0, 0, b"\0\0\0\0\1"), "WINDOW_UPDATE 5"),
    (frame(Type.WINDOW_UPDATE, 0, 1, b"\0\0\1"), "WINDOW_UPDATE 3 on a stream"),
    (frame(Type.GOAWAY, 0, 0, bytes(7)), "GOAWAY 7"),
    (frame(Type.GOAWAY, 0, 0), "GOAWAY 0"),
]


@pytest.mark.parametrize("wrong", [w for w, _ in WRONG_SIZES], ids=[i for _, i in WRONG_SIZES])
@twisted_test
async def test_frames_of_wrong_lengths_are_connection_errors(wrong: bytes) -> None:
    """4.2, 6.4, 6.5, 6.7 to 6.9: a frame that cannot be as long as it is ends the connection."""
    async with conversation(None) as client:
        client.send(ask(1, end=False), wrong)
        await client.connection_error(SIZE)


@pytest.mark.parametrize("size", [0, 4, 6])
@twisted_test
async def test_priorities_of_wrong_lengths_are_errors(size: int) -> None:
    """6.3: a PRIORITY that is not 5 octets long is a FRAME_SIZE_ERROR."""
    async with conversation(None) as client:
        client.send(ask(1), frame(Type.PRIORITY, 0, 1, bytes(size)))
        await client.error(1, SIZE)


@pytest.mark.parametrize(
    "wrong",
    [
        frame(Type.HEADERS, END_HEADERS | END_STREAM | PADDED, 3),
        frame(Type.HEADERS, END_HEADERS | END_STREAM | PRIORITIZED, 3, bytes(4)),
        frame(Type.HEADERS, END_HEADERS | END_STREAM | PADDED | PRIORITIZED, 3, bytes(5)),
        frame(Type.DATA, PADDED, 1),
    ],
    ids=["HEADERS padded", "HEADERS priority", "HEADERS both", "DATA padded"],
)
@twisted_test
async def test_frames_too_short_for_what_they_must_hold_are_connection_errors(
    wrong: bytes,
) -> None:
    """4.2: a frame that has no room for its mandatory fields ends the connection."""
    async with conversation(None) as client:
        client.send(ask(1, end=False), wrong)
        await client.connection_error(SIZE, PROTOCOL)


# Padding


@pytest.mark.parametrize("pad", [0, 1, 6, 255])
@twisted_test
async def test_padding_is_no_part_of_a_body(pad: int) -> None:
    """6.1: the padding of DATA is taken off."""
    async with conversation(None) as client:
        client.send(
            ask(1, end=False, method="POST"), data(1, b"te", pad=pad), data(1, b"st", end=True)
        )
        server = await client.stage.origin.accept()
        assert (await one_request(server))[1] == b"test"
        server.write(ok(HELLO))
        assert (await client.response()).status == 200


@twisted_test
async def test_data_may_be_nothing_but_padding() -> None:
    """6.1: a DATA frame may be all padding, and be the end."""
    async with conversation() as client:
        client.send(ask(1, end=False, method="POST"), data(1, pad=255), data(1, end=True, pad=0))
        assert (await client.response()).body == HELLO


@pytest.mark.parametrize("pad", [0, 1, 8, 255])
@twisted_test
async def test_padding_is_no_part_of_a_field_block(pad: int) -> None:
    """6.2: the padding of HEADERS is taken off."""
    async with conversation() as client:
        client.send(headers(1, BLOCK, end=True, pad=pad))
        assert (await client.response()).body == HELLO


@pytest.mark.parametrize("pad", [5, 6, 255])
@twisted_test
async def test_padding_of_data_as_long_as_the_frame_is_a_connection_error(pad: int) -> None:
    """6.1: padding that leaves no room for itself is a PROTOCOL_ERROR."""
    async with conversation(None) as client:
        client.send(
            ask(1, ("content-length", "4"), end=False, method="POST"),
            frame(Type.DATA, PADDED | END_STREAM, 1, bytes([pad]) + b"Test"),
        )
        await client.connection_error(PROTOCOL)


@pytest.mark.parametrize("more", [1, 2, 100])
@twisted_test
async def test_padding_of_headers_beyond_the_block_is_a_connection_error(more: int) -> None:
    """6.2: padding of which a part would be the field block is a PROTOCOL_ERROR."""
    async with conversation() as client:
        flags = END_HEADERS | END_STREAM | PADDED
        client.send(frame(Type.HEADERS, flags, 1, bytes([len(BLOCK) + more]) + BLOCK))
        await client.connection_error(PROTOCOL)


@twisted_test
async def test_padding_of_headers_that_takes_the_priority_is_a_connection_error() -> None:
    """6.2: what remains for the padding is what the priority leaves."""
    flags = END_HEADERS | END_STREAM | PADDED | PRIORITIZED
    async with conversation() as client:
        payload = bytes([len(BLOCK) + 3]) + bytes(5) + BLOCK
        client.send(frame(Type.HEADERS, flags, 1, payload))
        await client.connection_error(PROTOCOL)


# Frames and the streams they belong to


@pytest.mark.parametrize(
    "wrong",
    [
        data(0, b"test", end=True),
        headers(0, BLOCK, end=True),
        priority(0),
        rst_stream(0),
        continuation(0, BLOCK),
        push_promise(0, 2, BLOCK),
    ],
    ids=["DATA", "HEADERS", "PRIORITY", "RST_STREAM", "CONTINUATION", "PUSH_PROMISE"],
)
@twisted_test
async def test_frames_that_need_a_stream_must_name_one(wrong: bytes) -> None:
    """6.1 to 6.4, 6.6, 6.10: on stream 0 they are connection errors."""
    async with conversation() as client:
        client.send(wrong)
        await client.connection_error(PROTOCOL)


@pytest.mark.parametrize("stream", [1, 2, 3])
@pytest.mark.parametrize(
    ("type_", "payload"),
    [(Type.SETTINGS, b"\0\3\0\0\0d"), (Type.PING, bytes(8)), (Type.GOAWAY, bytes(8))],
    ids=["SETTINGS", "PING", "GOAWAY"],
)
@twisted_test
async def test_frames_of_the_connection_must_name_no_stream(
    type_: int, payload: bytes, stream: int
) -> None:
    """6.5, 6.7, 6.8: on any stream but 0 they are connection errors."""
    async with conversation(None) as client:
        client.send(ask(1), frame(type_, 0, stream, payload))
        await client.connection_error(PROTOCOL)


@twisted_test
async def test_clients_cannot_push() -> None:
    """8.4: a PUSH_PROMISE from a client is a connection error."""
    async with conversation(None) as client:
        client.send(ask(1, end=False), push_promise(1, 2, BLOCK))
        await client.connection_error(PROTOCOL)


@twisted_test
async def test_clients_cannot_push_on_an_idle_stream_either() -> None:
    """8.4: whatever stream a client's PUSH_PROMISE names, it is a connection error."""
    async with conversation() as client:
        client.send(push_promise(1, 3, BLOCK))
        await client.connection_error(PROTOCOL)


# PRIORITY


@pytest.mark.parametrize("weight", [1, 16, 256])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("on", [0, 3, 5])
@twisted_test
async def test_priority_is_taken_and_changes_nothing(on: int, exclusive: bool, weight: int) -> None:
    """5.3.2, 6.3: any priority may be given to a stream that is idle, open or closed."""
    async with conversation() as client:
        change = priority(1, on, weight, exclusive=exclusive)
        client.send(change, ask(1, end=False, method="POST"), change, data(1, end=True))
        assert (await client.response()).body == HELLO
        client.send(change)
        assert await client.settled() == []


@pytest.mark.parametrize("stream", [2, 3, 101])
@twisted_test
async def test_priority_of_an_idle_stream_opens_none(stream: int) -> None:
    """6.3: after a PRIORITY for a higher stream, a lower one may still be opened."""
    async with conversation() as client:
        client.send(priority(stream, 1), ask(1))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_headers_may_carry_a_priority() -> None:
    """6.2: the priority fields of HEADERS are taken off its block."""
    async with conversation() as client:
        for stream, depends in ((1, b"\0\0\0\0\xff"), (3, b"\x80\0\0\1\0"), (5, b"\0\0\0\x64\x10")):
            client.send(headers(stream, BLOCK, end=True, depends=depends))
            assert (await client.response(stream)).body == HELLO


@pytest.mark.parametrize(
    "wrong",
    [headers(1, BLOCK, end=True, depends=b"\0\0\0\1\xff"), priority(1, 1, 256)],
    ids=["HEADERS", "PRIORITY"],
)
@twisted_test
async def test_a_stream_cannot_depend_on_itself(wrong: bytes) -> None:
    """RFC 7540, 5.3.1: a stream that depends on itself is a PROTOCOL_ERROR."""
    async with conversation() as client:
        client.send(wrong)
        await client.error(1, PROTOCOL)
