"""HTTP/2: deadlines, how connections end, and what is held (RFC 9113, sections 6.8 and 9.1)."""

from __future__ import annotations

from h2_frames import (
    MOST,
    PREFACE,
    SETTINGS_ACK,
    Error,
    Setting,
    Type,
    continuation,
    data,
    headers,
    ping,
)
from h2_hpack import block
from h2_wire import H2C, HELLO, Client, ask, conversation, knock, request
from plane_stage import (
    eventually,
    ok,
    one_request,
    stage,
    turns,
    twisted_test,
)
from twisted.internet.defer import Deferred

from awesomeproxy.model import HoldLimits, Mode

TIMEOUTS = H2C.timeouts


# Deadlines


@twisted_test
async def test_a_preface_must_come_in_time() -> None:
    """10.5: a client that says only half of its preface is not waited for."""
    async with stage(listen=H2C) as s:
        client = await knock(s)
        client.send(PREFACE[:10])
        await turns(5)
        await s.pass_time(TIMEOUTS.head + 1)
        await eventually(lambda: client.wire.closed)


@twisted_test
async def test_settings_must_come_in_time() -> None:
    """3.4, 10.5: a client that stops behind the first 24 octets is not waited for."""
    async with stage(listen=H2C) as s:
        client = await knock(s)
        client.send(PREFACE)
        await turns(5)
        await s.pass_time(TIMEOUTS.head + TIMEOUTS.idle + 1)
        await eventually(lambda: client.wire.closed)


@twisted_test
async def test_a_field_block_must_be_finished_in_time() -> None:
    """10.5: a head that does not end is not waited for, whatever trickles in."""
    async with conversation() as client:
        client.send(headers(1, block(request()), complete=False))
        for _ in range(10):
            await client.stage.pass_time((TIMEOUTS.head + TIMEOUTS.idle) / 9)
            client.send(continuation(1, b"", complete=False))
            await turns()
        await eventually(lambda: client.wire.closed)


@twisted_test
async def test_an_idle_connection_is_closed_with_a_goaway() -> None:
    """9.1: a server that closes an idle connection says so: NO_ERROR."""
    async with conversation() as client:
        client.send(ask(1))
        await client.response()
        await client.stage.pass_time(TIMEOUTS.idle - 1)
        await client.settled()
        await client.stage.pass_time(TIMEOUTS.idle + 2)
        last = await client.until(Type.GOAWAY)
        assert (last.error, last.number) == (Error.NO_ERROR, 1)
        await client.end()


@twisted_test
async def test_pings_do_not_keep_an_idle_connection() -> None:
    """10.5: a connection on which nothing is asked ends, however lively it is."""
    async with conversation() as client:
        for _ in range(20):
            if client.wire.closed:
                break
            client.send(ping())
            await client.stage.pass_time(TIMEOUTS.idle / 5)
        assert (await client.until(Type.GOAWAY)).error == Error.NO_ERROR
        await client.end()


@twisted_test
async def test_a_connection_with_a_request_is_not_idle() -> None:
    """9.1: a request that takes its time keeps its connection."""
    async with conversation(None) as client:
        client.send(ask(1))
        server = await client.stage.origin.accept()
        await one_request(server)
        for _ in range(4):
            await client.stage.pass_time(TIMEOUTS.idle / 2)
            server.write(b"HTTP/1.1 102 Processing\r\n\r\n")
            await client.until(Type.HEADERS, 1)
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_a_slow_body_is_a_408() -> None:
    """10.5: a body that trickles costs its stream, and not the others."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"))
        server = await client.stage.origin.accept()
        for _ in range(5):
            client.send(data(1, b"a"))
            await turns()
            await client.stage.pass_time(TIMEOUTS.body / 2)
        assert (await client.response()).status == 408
        await eventually(lambda: server.closed)
        await client.settled()


@twisted_test
async def test_an_answer_that_is_not_taken_ends_its_stream() -> None:
    """10.5: a window that is never opened does not keep a response for ever."""
    async with conversation(pairs=((Setting.INITIAL_WINDOW_SIZE, 3),)) as client:
        client.send(ask(1))
        assert (await client.until(Type.DATA, 1)).content == HELLO[:3]
        await client.stage.pass_time(TIMEOUTS.write + 2)
        assert (await client.on(1)).type == Type.RST_STREAM
        await client.settled()


@twisted_test
async def test_what_is_never_taken_stops_the_connection() -> None:
    """10.5: a client that reads nothing at all does not make the proxy keep everything."""
    async with conversation() as client:
        client.wire.stop_reading()
        for _ in range(300):
            client.send(*(ping() for _ in range(9)))
            await turns(1)
        await client.stage.pass_time(TIMEOUTS.idle + TIMEOUTS.write + 5)
        client.wire.read_on()
        await eventually(lambda: client.wire.closed)


# How connections end


@twisted_test
async def test_an_idle_connection_ends_at_once_when_the_proxy_stops() -> None:
    """6.8: NO_ERROR, and an orderly end."""
    async with conversation() as client:
        client.send(ask(1))
        await client.response()
        stopped = Deferred.fromCoroutine(client.stage.plane.stop(10))
        client.send(SETTINGS_ACK)
        await farewell(client, 1)
        await stopped


async def farewell(client: Client, last: int) -> None:
    """Take part in a graceful end, until the last stream is known."""
    while True:
        frame = await client.next()
        if frame.type == Type.PING:
            client.send(ping(frame.payload, ack=True))
        if frame.type == Type.GOAWAY:
            assert frame.error == Error.NO_ERROR
            if frame.number == last:
                break
            assert frame.number == MOST
    await client.end()


@twisted_test
async def test_requests_under_way_finish_when_the_proxy_stops() -> None:
    """6.8: GOAWAY comes first, then the responses, then the end."""
    async with conversation(None) as client:
        client.send(ask(1))
        server = await client.stage.origin.accept()
        await one_request(server)
        stopped = Deferred.fromCoroutine(client.stage.plane.stop(10))
        assert (await client.until(Type.GOAWAY)).error == Error.NO_ERROR
        client.send(ping((await client.until(Type.PING)).payload, ack=True))
        assert not stopped.called
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO
        await client.end()
        await stopped


@twisted_test
async def test_streams_that_come_before_the_end_is_known_are_carried_out() -> None:
    """6.8: first the highest identifier is named, and the real last one a round trip later."""
    async with conversation() as client:
        client.stage.place(Mode.OPEN)
        stopped = Deferred.fromCoroutine(client.stage.plane.stop(10))
        client.send(ask(1))
        assert (await client.until(Type.GOAWAY)).number == MOST
        echo = await client.until(Type.PING)
        client.send(ask(3), ping(echo.payload, ack=True))
        for stream in (1, 3):
            assert (await client.response(stream)).body == HELLO
        last = await client.until(Type.GOAWAY)
        assert (last.error, last.number) == (Error.NO_ERROR, 3)
        await client.end()
        await stopped


@twisted_test
async def test_streams_that_come_after_the_end_are_not_carried_out() -> None:
    """6.8: what is above the last stream may be sent again elsewhere."""
    async with conversation(None) as client:
        client.send(ask(1, path="/first"))
        server = await client.stage.origin.accept()
        await one_request(server)
        stopped = Deferred.fromCoroutine(client.stage.plane.stop(10))
        client.send(ping((await client.until(Type.PING)).payload, ack=True))
        while (last := await client.until(Type.GOAWAY)).number == MOST:
            pass
        assert last.number == 1
        client.send(ask(3, path="/second"))
        left = await client.settled()
        assert all((f.type, f.error) == (Type.RST_STREAM, Error.REFUSED_STREAM) for f in left)
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO
        await client.end()
        await stopped
        assert b"/second" not in client.stage.origin.received


@twisted_test
async def test_what_does_not_finish_in_time_is_cut() -> None:
    """6.8: the deadline of a stop holds for streams as well."""
    async with conversation(None) as client:
        client.send(ask(1))
        server = await client.stage.origin.accept()
        await one_request(server)
        stopped = Deferred.fromCoroutine(client.stage.plane.stop(10))
        await client.until(Type.GOAWAY)
        await client.stage.pass_time(11)
        await stopped
        await eventually(lambda: client.wire.closed)
        await eventually(lambda: server.closed)


@twisted_test
async def test_a_held_request_is_answered_when_the_proxy_stops() -> None:
    """Nobody will release it any more: 503."""
    async with conversation(None) as client:
        client.stage.place(Mode.HOLDING)
        client.send(ask(1))
        await client.stage.held()
        stopped = Deferred.fromCoroutine(client.stage.plane.stop(10))
        answer = await client.response()
        assert (answer.status, answer["retry-after"] is not None) == (503, True)
        client.send(ping(b"farewell", ack=True))
        await client.end()
        await stopped


# Holding


@twisted_test
async def test_a_held_stream_is_released_in_order() -> None:
    """Streams of one connection are held one by one, and go on in the order they came."""
    async with conversation() as client:
        client.stage.place(Mode.HOLDING)
        streams = (1, 3, 5, 7)
        client.send(*(ask(stream, path=f"/{stream}") for stream in streams))
        await client.stage.held(4)
        assert await client.settled() == []
        client.stage.place()
        for stream in streams:
            assert (await client.response(stream)).body == HELLO
        received = client.stage.origin.received
        found = sorted(streams, key=lambda stream: received.index(b"GET /%d " % stream))
        assert len(client.stage.origin.wires) > 1 or tuple(found) == streams


@twisted_test
async def test_a_hold_that_has_lasted_too_long_is_a_503() -> None:
    """A held stream is answered when its time is up; the connection goes on."""
    async with conversation() as client:
        client.stage.place(Mode.HOLDING)
        client.send(ask(1))
        await client.stage.held()
        await client.stage.pass_time(client.stage.site.hold.max_time + 1)
        assert (await client.response()).status == 503
        client.stage.place()
        client.send(ask(3))
        assert (await client.response(3)).body == HELLO


@twisted_test
async def test_a_connection_that_holds_is_not_idle() -> None:
    """A client that waits for its answer is not sent away."""
    async with conversation(hold=HoldLimits(max_time=300.0)) as client:
        client.stage.place(Mode.HOLDING)
        client.send(ask(1))
        await client.stage.held()
        await client.stage.pass_time(2 * TIMEOUTS.idle)
        client.stage.place()
        assert (await client.response()).body == HELLO
