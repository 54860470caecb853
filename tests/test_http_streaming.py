"""Long bodies, both ways: the slower side sets the pace, and little is kept in between."""

from __future__ import annotations

import pytest
from plane_stage import (
    END,
    GET,
    OK,
    Wire,
    always,
    answering,
    eventually,
    ok,
    one_request,
    post,
    stage,
    turns,
    twisted_test,
)

BLOCK = b"x" * 65536
LONG = 200 * 1024 * 1024
BOUND = 512 * 1024  # bytes of a body that the proxy may keep in either direction


class Sink(Wire):
    """Counts what comes instead of keeping it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def dataReceived(self, data: bytes) -> None:
        self.count += len(data)


class Pump:
    """Writes a body as fast as it is taken."""

    def __init__(self, wire: Wire, size: int) -> None:
        self._wire = wire
        self.left = size
        wire.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        block = BLOCK[: self.left]
        self.left -= len(block)
        self._wire.write(block)
        if not self.left:
            self._wire.transport.unregisterProducer()

    def stopProducing(self) -> None:
        pass


def become_sink(wire: Wire) -> Sink:
    """From here on what comes on ``wire`` is counted and dropped."""
    sink = Sink()
    sink.count = len(wire.buffer)
    sink.transport = wire.transport
    wire.dataReceived = sink.dataReceived  # type: ignore[method-assign]
    return sink


@twisted_test
async def test_a_long_response_is_not_kept_for_a_slow_client() -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LONG)
        await client.until(END)
        there = s.client
        client.stop_reading()
        pump = Pump(server, LONG)
        sink = become_sink(client)
        most = 0
        await eventually(lambda: there.transport.unsent)
        await turns(50)
        assert pump.left > LONG / 2  # it has been stopped
        client.read_on()
        while sink.count < LONG:
            await turns(1)
            most = max(most, there.transport.unsent)
        assert most < BOUND


@pytest.mark.parametrize("chunked", [False, True])
@twisted_test
async def test_a_long_request_is_not_kept_for_a_slow_server(chunked: bool) -> None:
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % LONG
    async with stage() as s:
        client = await s.connect(b"PUT / HTTP/1.1\r\nHost: blog.example\r\n" + framing + END)
        server = await s.origin.accept()
        await server.until(END)
        (connection,) = s.live.connections
        server.stop_reading()
        if chunked:
            client.write(b"%x\r\n" % LONG)
        pump = Pump(client, LONG)
        sink = become_sink(server)
        await eventually(lambda: connection.transport.unsent)
        await turns(50)
        assert pump.left > LONG / 2
        server.read_on()
        most = 0
        while sink.count < LONG:
            await turns(1)
            most = max(most, connection.transport.unsent)
        if chunked:
            client.write(b"\r\n0\r\n\r\n")
        assert most < BOUND
        await eventually(lambda: not pump.left)
        server.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_the_connections_of_a_slow_upload_can_be_used_again() -> None:
    body = b"x" * 6_000_000
    async with stage() as s:
        client = await s.connect(post(body, method=b"PUT"))
        server = await s.origin.accept()
        await server.until(END)
        server.stop_reading()
        (connection,) = s.live.connections
        await eventually(lambda: connection.transport.unsent)
        server.read_on()
        await server.exactly(len(body))
        server.write(OK)
        assert (await client.answer()).status == 200
        client.write(GET)
        await one_request(server)
        server.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_the_connections_of_a_slow_download_can_be_used_again() -> None:
    body = b"x" * 6_000_000
    async with stage() as s:
        client = await s.connect()
        client.stop_reading()
        client.write(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(ok(body))
        there = s.client
        await eventually(lambda: there.transport.unsent)
        client.read_on()
        assert (await client.answer()).body == body
        for _ in range(2):
            client.write(GET)
            await one_request(server)
            server.write(OK)
            assert (await client.answer()).status == 200
        assert len(s.origin.wires) == 1


@pytest.mark.parametrize("size", [65_537, 131_072, 700_000, 3_000_000])
@twisted_test
async def test_the_last_of_a_response_may_be_more_than_the_client_takes(size: int) -> None:
    """The server's connection is read from again once it has nothing more to do with it."""
    async with stage(always(ok(b"x" * size))) as s:
        for _ in range(4):
            client = await s.connect()
            client.stop_reading()
            client.write(GET)
            await eventually(lambda: s.origin.wires)
            await turns(20)
            client.read_on()
            assert len((await client.answer()).body) == size
            client.abort()


@twisted_test
async def test_a_body_is_left_in_the_kernel_while_a_connection_is_opened() -> None:
    async with stage() as s:
        await s.origin.refuse()
        client = await s.connect(post(b"x" * 5_000_000))
        await s.held()
        await turns(20)
        there = s.client
        assert there.exchange is not None
        assert sum(map(len, there.exchange.request.chunks)) <= 2 * 65536
        s.origin.listen()
        await s.pass_time(1)
        server = await s.origin.accept()
        assert (await one_request(server))[1] == b"x" * 5_000_000
        server.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_server_that_stops_taking_a_body_is_late() -> None:
    async with stage() as s:
        client = await s.connect(post(b"x" * 20_000_000))
        server = await s.origin.accept()
        await server.until(END)
        server.stop_reading()
        (connection,) = s.live.connections
        await eventually(lambda: connection.transport.unsent)
        await s.pass_time(s.site.timeouts.response * 2 + 5)
        assert (await client.answer()).status == 504
        await s.quiet()
        assert s.counters.ambiguous == 1


@twisted_test
async def test_a_server_that_takes_a_body_slowly_is_not_late() -> None:
    size = 30_000_000
    async with stage() as s:
        client = await s.connect(post(b"x" * size))
        server = await s.origin.accept()
        await server.until(END)
        server.stop_reading()
        there = s.client
        exchange = there.exchange
        assert exchange is not None
        assert exchange.connection is not None
        transport = exchange.connection.transport
        for taken in range(0, size, size // 5):
            # Time passes while it is the server that is waited for, not the test's client.
            await eventually(lambda: transport.unsent or exchange.request_sent)
            await s.pass_time(s.site.timeouts.response * 0.9)
            server.read_on()
            await eventually(lambda: len(server.buffer) > taken)  # noqa: B023
            server.stop_reading()
        server.read_on()
        await server.exactly(size)
        server.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_stream_of_events_passes_as_it_comes() -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        await client.until(END)
        for number in range(3):
            await s.pass_time(s.site.timeouts.response - 1)
            event = b"data: %d\n\n" % number
            server.write(event)
            await client.until(b"\r\n" + event + b"\r\n")
        assert s.gate.in_flight == 1
        await s.pass_time(s.site.timeouts.response + 1)
        await client.rest()
        assert client.reset


@twisted_test
async def test_a_client_that_leaves_a_stream_ends_it() -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        await client.until(END)
        client.close()
        await eventually(lambda: server.closed)
        await s.quiet()


@twisted_test
async def test_a_client_that_leaves_an_upload_ends_it_visibly() -> None:
    async with stage() as s:
        client = await s.connect(post(b"hello")[:-1])
        server = await s.origin.accept()
        await server.until(b"hell")
        client.close()
        await eventually(lambda: server.closed)
        assert server.reset
        await s.quiet()


@twisted_test
async def test_a_client_that_leaves_before_the_answer_is_counted_until_then() -> None:
    async with stage() as s:
        client = await s.connect(post(b"hello"))
        server = await s.origin.accept()
        await one_request(server)
        client.close()
        await eventually(lambda: not s.plane.clients)
        await turns(20)
        assert s.gate.in_flight == 1
        assert not server.closed
        server.write(OK)
        await s.quiet()
        assert not s.counters.ambiguous


@twisted_test
async def test_a_client_that_leaves_before_the_answer_is_counted_until_the_server_is_late() -> None:
    async with stage() as s:
        client = await s.connect(post(b"hello"))
        server = await s.origin.accept()
        await one_request(server)
        client.close()
        await eventually(lambda: not s.plane.clients)
        await s.pass_time(s.site.timeouts.response + 1)
        await s.quiet()
        await eventually(lambda: server.closed)


@twisted_test
async def test_many_bodies_at_once_keep_apart() -> None:
    async def echo(wire: Wire) -> None:
        while True:
            _, body = await one_request(wire)
            wire.write(ok(body))

    async with stage(echo) as s:
        clients = []
        for number in range(30):
            body = b"%04d" % number * (number * 3000 + 1)
            clients.append((await s.connect(post(body, method=b"PUT") * 2), body))
        for client, body in clients:
            for _ in range(2):
                assert (await client.answer()).body == body


@twisted_test
async def test_small_answers_need_no_second_look() -> None:
    async with stage(answering) as s:
        client = await s.connect(GET)
        assert (await client.answer()).status == 200
        there = s.client
        assert there.transport.producer is None
        assert not there.transport.unsent
