"""HTTP/2: what a client may not make the proxy do (RFC 9113, section 10.5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from h2_frames import (
    FRAME,
    MOST,
    Error,
    Setting,
    Type,
    continuation,
    data,
    headers,
    ping,
    priority,
    rst_stream,
    settings,
    window_update,
)
from h2_hpack import block
from h2_wire import H2C, HELLO, Client, ask, conversation, request
from plane_stage import (
    eventually,
    ok,
    one_request,
    turns,
    twisted_test,
)

CALM = Error.ENHANCE_YOUR_CALM
TIMEOUTS = H2C.timeouts


async def calmed(client: Client, *others: Error) -> None:
    """The client is told to enhance its calm, and sent away."""
    last = await client.until(Type.GOAWAY)
    assert last.error in (CALM, *others), last
    await client.wire.rest()


async def flood(client: Client, *frames: bytes, most: int = 20_000) -> None:
    """Send frames again and again, until the server has had enough."""
    segment = b"".join(frames)
    for _ in range(most // 100):
        if client.wire.closed or b"\0\0\x08\x07\0" in client.wire.buffer:
            break
        client.send(segment * 100)
        await turns(1)


FLOODS = {
    "PING": ping(),
    "SETTINGS": settings((Setting.INITIAL_WINDOW_SIZE, 1000)),
    "empty SETTINGS": settings(),
    "empty DATA": data(1),
    "padded DATA": data(1, pad=0),
    "PRIORITY": priority(3),
}


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS)
@twisted_test
async def test_floods_of_frames_that_lead_nowhere_end(frame: bytes) -> None:
    """10.5: whoever sends nothing but such frames is told ENHANCE_YOUR_CALM."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"))
        await flood(client, frame)
        await calmed(client)


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS)
@twisted_test
async def test_some_of_such_frames_are_no_flood(frame: bytes) -> None:
    """10.5: a hundred of them are a client's good right."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"), frame * 100)
        assert {f.type for f in await client.settled()} <= {Type.PING, Type.SETTINGS}
        client.send(data(1, end=True))
        server = await client.stage.origin.accept()
        await one_request(server)
        server.write(ok(HELLO))
        await client.settled()
        assert client.stage.origin.received


@twisted_test
async def test_patience_comes_back_with_time() -> None:
    """10.5: as many pings as one likes, spread over the hours."""
    async with conversation() as client:
        for stream in range(1, 61, 2):
            client.send(ping() * 100)
            await client.stage.pass_time(TIMEOUTS.head * 0.9)
            client.send(ask(stream))
            assert (await client.response(stream)).body == HELLO


@pytest.mark.parametrize("fragment", [b"", block([("x", "y")])], ids=["empty", "fields"])
@twisted_test
async def test_a_field_block_does_not_go_on_for_ever(fragment: bytes) -> None:
    """10.5.1: CONTINUATION without an end is stopped, and nothing of it reaches a server."""
    async with conversation() as client:
        client.send(headers(1, block(request()), complete=False))
        await flood(client, continuation(1, fragment, complete=False))
        await calmed(client, Error.PROTOCOL_ERROR, Error.COMPRESSION_ERROR)
        assert client.stage.origin.received == b""


@twisted_test
async def test_a_field_block_of_large_frames_is_stopped_early() -> None:
    """10.5.1: a block is not kept that is far longer than any request may be."""
    async with conversation() as client:
        client.send(headers(1, block(request()), complete=False))
        for _ in range(20):
            client.send(continuation(1, bytes(FRAME), complete=False))
        await client.connection_error(CALM, Error.PROTOCOL_ERROR, Error.COMPRESSION_ERROR)


@twisted_test
async def test_rapid_resets_end() -> None:
    """CVE-2023-44487: streams that are opened only to be reset end the connection."""
    async with conversation(None) as client:
        for stream in range(1, 20_001, 2):
            client.send(ask(stream), rst_stream(stream))
            if not stream % 199:
                await turns(1)
                if client.wire.closed:
                    break
        await calmed(client)
        counters = client.stage.counters
        assert counters.requests < 1000, counters


@pytest.mark.parametrize(
    "provocation",
    [
        lambda stream: ask(stream, ("Upper", "case")),
        lambda stream: ask(stream, end=False) + window_update(stream, 0),
        lambda stream: ask(stream, end=False) + window_update(stream, MOST),
        lambda stream: ask(stream) + data(stream, b"too late"),
        lambda stream: ask(stream, end=False) + headers(stream, block([("X", "y")]), end=True),
        lambda stream: ask(stream, ("content-length", "1"), end=False) + data(stream, b"too long"),
    ],
    ids=["malformed", "increment of 0", "overflow", "half-closed", "trailers", "length"],
)
@twisted_test
async def test_resets_that_were_provoked_end_too(provocation: Callable[[int], bytes]) -> None:
    """CVE-2025-8671: it does not matter on which side a stream is reset."""
    async with conversation(None) as client:
        for stream in range(1, 20_001, 2):
            client.send(provocation(stream))
            if not stream % 199:
                await turns(1)
                if client.wire.closed:
                    break
        await calmed(client, Error.PROTOCOL_ERROR)  # each of them may be one by itself
        await eventually(lambda: client.stage.gate.in_flight < 1000)


@twisted_test
async def test_refused_streams_end_too() -> None:
    """5.1.2, 10.5: who goes on opening streams that are refused is sent away."""
    async with conversation(None, listen=replace(H2C, max_streams=3)) as client:
        for stream in range(1, 20_001, 2):
            client.send(ask(stream))
            if not stream % 199:
                await turns(1)
                if client.wire.closed:
                    break
        await calmed(client)


@twisted_test
async def test_everything_may_be_cancelled_at_once() -> None:
    """6.4: a client that gives up all it has asked for, and asks anew, does nothing wrong."""
    async with conversation(None) as client:
        streams = range(1, 2 * H2C.max_streams, 2)
        client.send(*(ask(stream) for stream in streams))
        await eventually(lambda: client.stage.gate.in_flight == H2C.max_streams)
        client.send(*(rst_stream(stream) for stream in streams))
        assert await client.settled() == []
        client.send(ask(2 * H2C.max_streams + 1, path="/another"))
        await eventually(lambda: b"GET /another " in client.stage.origin.received)
        assert await client.settled() == []


@pytest.mark.parametrize("frames", [63, 64])
@twisted_test
async def test_a_field_block_of_more_than_64_frames_is_refused(frames: int) -> None:
    """10.5.1: that is the h2 library's own bound; HEADERS and 63 CONTINUATION are taken."""
    async with conversation() as client:
        client.send(headers(1, b"", complete=False, end=True))
        client.send(*(continuation(1, b"", complete=False) for _ in range(frames - 1)))
        client.send(continuation(1, block(request())))
        if frames == 63:
            assert (await client.response()).body == HELLO
        else:
            await client.connection_error(Error.PROTOCOL_ERROR)
