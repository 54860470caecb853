"""HTTP/2: streams, their states, and how many there may be (RFC 9113, sections 5.1 and 5.4)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from h2_frames import (
    FRAME,
    MOST,
    WINDOW,
    Error,
    Setting,
    Type,
    continuation,
    data,
    frame,
    headers,
    priority,
    rst_stream,
    window_update,
)
from h2_hpack import INDEXED, block, indexed, literal
from h2_wire import H2C, HELLO, Client, ask, conversation, request
from plane_stage import END, Wire, eventually, ok, one_request, turns, twisted_test

from awesomeproxy.model import Mode

PROTOCOL = Error.PROTOCOL_ERROR
CLOSED = Error.STREAM_CLOSED
BLOCK = block(request())
TRAILERS = block([("x-sum", "1")])


async def asked(client: Client) -> Wire:
    """The server's connection on which the next request has arrived, to its end."""
    server = await client.stage.origin.accept()
    await one_request(server)
    return server


# Identifiers


@pytest.mark.parametrize("stream", [2, 4, 1000, MOST - 1])
@twisted_test
async def test_streams_of_clients_are_odd(stream: int) -> None:
    """5.1.1: HEADERS on an even stream is a connection error."""
    async with conversation() as client:
        client.send(headers(stream, BLOCK, end=True))
        await client.connection_error(PROTOCOL)


@twisted_test
async def test_identifiers_may_have_gaps() -> None:
    """5.1.1: a new stream has any odd identifier above those before it."""
    async with conversation() as client:
        for stream in (1, 3, 9, 1001, MOST):
            client.send(ask(stream))
            assert (await client.response(stream)).body == HELLO


@pytest.mark.parametrize("answered", [False, True])
@twisted_test
async def test_identifiers_never_decrease(answered: bool) -> None:
    """5.1.1: HEADERS on a lower stream than the last is a connection error."""
    async with conversation() as client:
        client.send(ask(5))
        if answered:
            await client.response(5)
        client.send(ask(3))
        await client.connection_error(PROTOCOL, *([CLOSED] if answered else []))


@pytest.mark.parametrize("type_", [Type.DATA, Type.HEADERS])
@twisted_test
async def test_streams_that_were_passed_over_are_closed(type_: int) -> None:
    """5.1.1: opening a stream closes all idle ones below it."""
    async with conversation(None) as client:
        client.send(ask(5), frame(type_, 0x5, 3, BLOCK))
        await client.error(3, PROTOCOL, CLOSED)


# Idle


IDLE = {
    "DATA": data(1, b"test", end=True),
    "empty DATA": data(1, end=True),
    "RST_STREAM": rst_stream(1),
    "WINDOW_UPDATE": window_update(1, 100),
    "CONTINUATION": continuation(1, BLOCK),
    "DATA on an even one": data(2, b"test"),
    "RST_STREAM on an even one": rst_stream(2),
    "WINDOW_UPDATE on an even one": window_update(2, 100),
    "far away": window_update(MOST, 100),
}


@pytest.mark.parametrize("wrong", IDLE.values(), ids=IDLE)
@twisted_test
async def test_only_headers_and_priority_may_come_on_an_idle_stream(wrong: bytes) -> None:
    """5.1: anything else on a stream that was never opened is a connection error."""
    async with conversation() as client:
        client.send(wrong)
        await client.connection_error(PROTOCOL)


@twisted_test
async def test_a_stream_is_idle_as_long_as_only_its_priority_is_known() -> None:
    """5.1, 6.3: PRIORITY does not open a stream."""
    async with conversation() as client:
        client.send(priority(1), data(1, b"test"))
        await client.connection_error(PROTOCOL)


# Half-closed: the client has sent its END_STREAM


@pytest.mark.parametrize(
    "wrong",
    [
        data(1, b"test", end=True),
        data(1, b"test"),
        data(1, end=True),
        headers(1, BLOCK, end=True),
        headers(1, TRAILERS, end=True),
        headers(1, TRAILERS),
    ],
    ids=["DATA", "DATA without end", "empty DATA", "HEADERS", "trailers", "without end"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("by", ["HEADERS", "DATA"])
@twisted_test
async def test_after_its_end_a_client_has_nothing_to_say(
    wrong: bytes, method: str, by: str
) -> None:
    """5.1, 6.1: DATA or HEADERS on a half-closed stream is a stream error, STREAM_CLOSED."""
    async with conversation(None) as client:
        if by == "HEADERS":
            client.send(ask(1, method=method))
        else:
            client.send(ask(1, method=method, end=False), data(1, b"all", end=True))
        client.send(wrong)
        await client.stream_error(1, CLOSED)


@pytest.mark.parametrize("harmless", [priority(1), window_update(1, 1)], ids=["PRIO", "WINDOW"])
@twisted_test
async def test_priority_and_window_update_may_come_after_the_end(harmless: bytes) -> None:
    """5.1: a half-closed stream takes PRIORITY and WINDOW_UPDATE."""
    pairs = ((Setting.INITIAL_WINDOW_SIZE, 0),)
    async with conversation(pairs=pairs) as client:
        client.send(ask(1), harmless, window_update(1, 1))
        first = await client.until(Type.DATA, 1)
        assert first.content in (HELLO[:1], HELLO[:2])


@pytest.mark.parametrize("end", [False, True])
@twisted_test
async def test_a_client_may_reset_a_stream(end: bool) -> None:
    """5.1, 6.4: RST_STREAM on an open or half-closed stream ends it, and that is all."""
    async with conversation(None) as client:
        client.send(ask(1, end=end), rst_stream(1))
        assert await client.settled() == []
        client.send(ask(3))
        server = await client.stage.origin.accept()
        await eventually(lambda: END in server.all)
        assert client.stage.gate.in_flight <= 2


# Closed by the client's RST_STREAM


@pytest.mark.parametrize(
    "wrong",
    [data(1, b"test", end=True), data(1, b"test"), headers(1, BLOCK, end=True)],
    ids=["DATA with end", "DATA", "HEADERS"],
)
@twisted_test
async def test_after_a_reset_a_client_has_nothing_to_say(wrong: bytes) -> None:
    """5.1: DATA or HEADERS on a stream that the client has reset is STREAM_CLOSED."""
    async with conversation(None) as client:
        client.send(ask(1, end=False), rst_stream(1), wrong)
        await client.error(1, CLOSED)


@pytest.mark.parametrize(
    "harmless",
    [priority(1), window_update(1, 1), rst_stream(1)],
    ids=["PRIORITY", "WINDOW_UPDATE", "RST_STREAM"],
)
@twisted_test
async def test_a_reset_stream_takes_what_concerns_no_state(harmless: bytes) -> None:
    """5.1: what may be on its way for a closed stream does no harm to the connection."""
    async with conversation(None) as client:
        client.send(ask(1, end=False), rst_stream(1), harmless)
        assert [f for f in await client.settled() if f.type != Type.RST_STREAM] == []


# Closed by the end of both sides


@pytest.mark.parametrize(
    "wrong",
    [data(1, b"test", end=True), data(1, end=True)],
    ids=["DATA", "empty DATA"],
)
@twisted_test
async def test_data_on_a_finished_stream_is_an_error(wrong: bytes) -> None:
    """5.1: DATA after the END_STREAM of both sides is STREAM_CLOSED."""
    async with conversation() as client:
        client.send(ask(1))
        await client.response()
        client.send(wrong)
        await client.error(1, CLOSED)


@twisted_test
async def test_a_finished_stream_is_not_used_again() -> None:
    """5.1, 5.1.1: HEADERS on a finished stream is a connection error, STREAM_CLOSED."""
    async with conversation() as client:
        client.send(ask(1))
        await client.response()
        client.send(ask(1))
        await client.connection_error(CLOSED)


@twisted_test
async def test_a_finished_stream_is_not_used_again_when_others_have_come() -> None:
    """5.1.1: an old stream is not forgotten to be closed."""
    async with conversation() as client:
        for stream in range(1, 41, 2):
            client.send(ask(stream))
            await client.response(stream)
        client.send(ask(1))
        await client.connection_error(CLOSED, PROTOCOL)


@pytest.mark.parametrize(
    "harmless",
    [priority(1), window_update(1, 1), rst_stream(1)],
    ids=["PRIORITY", "WINDOW_UPDATE", "RST_STREAM"],
)
@twisted_test
async def test_a_finished_stream_takes_what_was_on_its_way(harmless: bytes) -> None:
    """5.1: PRIORITY, WINDOW_UPDATE and RST_STREAM on a finished stream are ignored."""
    async with conversation() as client:
        client.send(ask(1))
        await client.response()
        client.send(harmless)
        assert await client.settled() == []


# Closed by the server


async def refused(client: Client) -> None:
    """Have stream 1 reset by the server, for being malformed."""
    client.send(ask(1, ("Upper", "case"), end=False, method="POST"))
    await client.stream_error(1, PROTOCOL)


@pytest.mark.parametrize(
    "late",
    [data(1, b"test"), data(1, end=True), headers(1, TRAILERS, end=True), window_update(1, 1)],
    ids=["DATA", "end", "trailers", "WINDOW_UPDATE"],
)
@twisted_test
async def test_what_a_client_sent_before_it_knew_of_a_reset_does_no_harm(late: bytes) -> None:
    """5.1: frames on a stream that the server has reset are at the most answered alike."""
    async with conversation() as client:
        await refused(client)
        client.send(late)
        left = await client.settled()
        assert all(f.type == Type.RST_STREAM and f.error == CLOSED for f in left), left
        client.send(ask(3))
        assert (await client.response(3)).body == HELLO


@twisted_test
async def test_fields_sent_on_a_reset_stream_keep_the_tables_in_step() -> None:
    """4.3, 5.1: trailers of a stream that was reset still change the table of fields."""
    async with conversation(None) as client:
        await refused(client)
        client.send(headers(1, literal(b"x-sum", b"late", INDEXED), end=True))
        client.send(headers(3, BLOCK + indexed(62), end=True))
        server = await client.stage.origin.accept()
        head, _ = await one_request(server)
        assert b"x-sum: late\r\n" in head


@twisted_test
async def test_data_sent_on_reset_streams_does_not_use_up_the_connection() -> None:
    """5.2, 6.9: the connection's window is given back whatever became of the stream."""
    async with conversation() as client:
        for stream in range(1, 40, 2):
            client.send(ask(stream, ("Upper", "case"), end=False, method="POST"))
            await client.stream_error(stream, PROTOCOL)
            client.room.pop(stream, None)
            await client.upload(stream, bytes(FRAME), end=False)
        client.send(ask(41, end=False, method="POST"))
        await client.upload(41, bytes(2 * WINDOW))
        assert (await client.response(41)).body == HELLO


# Side by side


@twisted_test
async def test_responses_come_in_the_order_in_which_they_are_ready() -> None:
    """5: streams are independent of each other."""
    async with conversation(None) as client:
        servers = []
        for stream in (1, 3, 5):
            client.send(ask(stream))
            servers.append(await asked(client))
        for stream, server in reversed(list(zip((1, 3, 5), servers, strict=True))):
            server.write(ok(b"%d" % stream))
            assert (await client.response(stream)).body == b"%d" % stream


@twisted_test
async def test_bodies_of_requests_may_be_interleaved() -> None:
    """5: DATA of several streams comes in any order."""
    async with conversation(None) as client:
        client.send(
            ask(1, end=False, method="POST", path="/1"), ask(3, end=False, method="POST", path="/3")
        )
        for number in range(10):
            client.send(data(1, b"a%d" % number), data(3, b"b%d" % number))
        client.send(data(3, end=True), data(1, end=True))
        bodies = {}
        for _ in range(2):
            server = await client.stage.origin.accept()
            head, body = await one_request(server)
            bodies[head[:7]] = body
            server.write(ok(HELLO))
        everything = b"".join(b"a%d" % number for number in range(10))
        assert bodies == {b"POST /1": everything, b"POST /3": everything.replace(b"a", b"b")}
        for stream in (1, 3):
            assert (await client.response(stream)).body == HELLO


@twisted_test
async def test_a_hundred_requests_in_one_segment_are_all_answered() -> None:
    """5.1.2: as many streams as were announced may be open together."""
    streams = range(1, 201, 2)
    async with conversation() as client:
        client.send(*(ask(stream) for stream in streams))
        for stream in streams:
            assert (await client.response(stream)).body == HELLO


@twisted_test
async def test_a_reset_gives_up_half_a_request() -> None:
    """8.7: what a server has got of a request must not look like all of it."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"), data(1, b"half"))
        server = await client.stage.origin.accept()
        await server.until(b"half")
        client.send(rst_stream(1))
        await eventually(lambda: server.closed)
        assert b"\r\n0\r\n" not in server.all
        await client.settled()


@twisted_test
async def test_a_reset_gives_up_a_response_that_has_begun() -> None:
    """5.4.2: the server need not go on with what nobody takes."""
    async with conversation(None) as client:
        client.send(ask(1), ask(3))
        first, second = await asked(client), await asked(client)
        first.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        stream = (await client.until(Type.HEADERS)).stream
        client.send(rst_stream(stream))
        await eventually(lambda: first.closed)
        second.write(ok(HELLO))
        assert (await client.response(4 - stream)).body == HELLO


@twisted_test
async def test_a_server_finishes_what_it_was_asked_though_the_stream_was_reset() -> None:
    """A whole request is in flight until the server has answered; nobody is told."""
    async with conversation(None) as client:
        client.send(ask(1))
        server = await asked(client)
        client.send(rst_stream(1))
        assert await client.settled() == []
        assert client.stage.gate.in_flight == 1
        server.write(ok(HELLO))
        await client.stage.quiet()
        assert await client.settled() == []


@twisted_test
async def test_a_held_request_whose_stream_was_reset_is_never_sent() -> None:
    """A client may leave while it is held, though its connection stays."""
    async with conversation() as client:
        client.stage.place(Mode.HOLDING)
        client.send(ask(1, path="/leaves"), ask(3, path="/stays"))
        await client.stage.held(2)
        client.send(rst_stream(1))
        await client.stage.held(1)
        client.stage.place()
        assert (await client.response(3)).body == HELLO
        assert b"/leaves" not in client.stage.origin.received
        assert client.stage.counters.departed == 1


@twisted_test
async def test_a_connection_that_goes_takes_all_its_streams_along() -> None:
    """5.4.3: without the connection there is nobody to answer."""
    async with conversation(None) as client:
        for stream in (1, 3, 5):
            client.send(ask(stream, end=False, method="POST"), data(stream, b"half"))
        servers = [await client.stage.origin.accept() for _ in range(3)]
        client.wire.abort()
        await eventually(lambda: all(server.closed for server in servers), "nothing is left")
        await client.stage.quiet()


# How many


FEW = replace(H2C, max_streams=3)


@twisted_test
async def test_the_number_of_streams_is_announced() -> None:
    """5.1.2: SETTINGS_MAX_CONCURRENT_STREAMS is what the listener allows."""
    async with conversation(listen=FEW) as client:
        assert client.settings[Setting.MAX_CONCURRENT_STREAMS] == 3


@twisted_test
async def test_streams_beyond_the_limit_are_refused_alone() -> None:
    """5.1.2, 8.7: one stream too many is REFUSED_STREAM; the others are answered."""
    async with conversation(None, listen=FEW) as client:
        client.send(*(ask(stream, path=f"/{stream}") for stream in (1, 3, 5, 7, 9)))
        for stream in (7, 9):
            await client.stream_error(stream, Error.REFUSED_STREAM)
        for _ in (1, 3, 5):
            (await asked(client)).write(ok(HELLO))
        for stream in (1, 3, 5):
            assert (await client.response(stream)).body == HELLO
        received = client.stage.origin.received
        assert b"/7" not in received
        assert b"/9" not in received


@twisted_test
async def test_a_stream_that_ends_makes_room_for_another() -> None:
    """5.1.2: streams that are closed do not count."""
    async with conversation(None, listen=FEW) as client:
        client.send(ask(1), ask(3), ask(5, end=False, method="POST"))
        first = await asked(client)
        first.write(ok(HELLO))
        await client.on(1)
        client.send(rst_stream(5))
        await turns()
        client.send(ask(7), ask(9))
        assert all(f.type != Type.RST_STREAM for f in await client.settled())
        client.send(ask(11))
        await client.stream_error(11, Error.REFUSED_STREAM)


@twisted_test
async def test_streams_whose_answer_is_not_taken_count() -> None:
    """5.1.2: a stream is open until its response has been sent."""
    async with conversation(listen=FEW, pairs=((Setting.INITIAL_WINDOW_SIZE, 0),)) as client:
        client.send(*(ask(stream) for stream in (1, 3, 5, 7)))
        await client.stream_error(7, Error.REFUSED_STREAM)


@twisted_test
async def test_the_fields_of_a_refused_stream_keep_the_tables_in_step() -> None:
    """4.3, 5.1.2: a block is decoded even if its stream is refused."""
    async with conversation(None, listen=FEW) as client:
        client.send(ask(1, end=False), ask(3, end=False), ask(5, end=False))
        client.send(headers(7, BLOCK + literal(b"x-mark", b"kept", INDEXED), end=True))
        await client.stream_error(7, Error.REFUSED_STREAM)
        client.send(rst_stream(1), rst_stream(3), rst_stream(5))
        await client.settled()
        client.send(headers(9, block(request(path="/9")) + indexed(62), end=True))
        await eventually(lambda: b"GET /9 " in client.stage.origin.received)
        await eventually(lambda: b"x-mark: kept\r\n" in client.stage.origin.received)
