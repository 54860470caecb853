"""How much, and for how long, a client may: every bound of a listener and of a site."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

import pytest
from plane_stage import (
    END,
    GET,
    LISTEN,
    OK,
    Stage,
    Wire,
    answering,
    eventually,
    ok,
    one_request,
    post,
    stage,
    turns,
    twisted_test,
)

from awesomeproxy.model import ListenTimeouts

TIMES = LISTEN.timeouts
SMALL = replace(LISTEN, max_head=1024, max_target=256, max_headers=10)
CHUNKED_POST = b"POST / HTTP/1.1\r\nHost: blog.example\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET.replace(b"/ ", b"/" + b"x" * 256 + b" "), 414),
        (GET[:-2] + b"X: " + b"y" * 1024 + END, 431),
        (GET[:-2] + b"X: y\r\n" * 11 + b"\r\n", 431),
        (GET[:-2] + b"X: " + b"y" * 70_000, 431),
        (b"BREW / HTTP/1.1\r\nHost: blog.example\r\n\r\n", 501),
        (b"CONNECT blog.example:443 HTTP/1.1\r\nHost: blog.example\r\n\r\n", 501),
        (GET.replace(b"1.1", b"2.0"), 505),
        (GET[:-2] + b"Expect: miracles\r\n\r\n", 417),
    ],
)
@twisted_test
async def test_what_is_too_much_or_unknown_is_refused(request_: bytes, status: int) -> None:
    async with stage(listen=SMALL) as s:
        client = await s.connect(request_)
        answer = await client.answer()
        assert (answer.status, answer["connection"]) == (status, "close")
        assert await client.rest() == b""
        assert not s.origin.wires


# Bodies


@twisted_test
async def test_a_body_announced_as_too_long_is_refused_before_it_comes() -> None:
    async with stage(max_body=4) as s:
        client = await s.connect(post(b"hello")[:-1])
        assert (await client.answer()).status == 413
        assert await client.rest() == b""
        assert not client.reset
        assert not s.origin.wires


@twisted_test
async def test_the_connection_goes_on_when_the_body_came_all_the_same() -> None:
    async with stage(answering, max_body=4) as s:
        client = await s.connect(post(b"hello") + GET)
        assert (await client.answer()).status == 413
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("at_once", [True, False])
@twisted_test
async def test_a_chunked_body_is_refused_when_it_gets_too_long(at_once: bool) -> None:
    async with stage(max_body=4) as s:
        client = await s.connect(CHUNKED_POST)
        if not at_once:
            server = await s.origin.accept()
            await server.until(END)
        for _ in range(3):
            client.write(b"2\r\nab\r\n")
            if not at_once:
                await turns()
        assert (await client.answer()).status == 413
        assert await client.rest() == b""
        await eventually(lambda: not s.live.connections)


@twisted_test
async def test_a_chunked_body_that_comes_too_long_with_its_head_is_not_forwarded() -> None:
    async with stage(max_body=4) as s:
        answer = await s.ask(CHUNKED_POST + b"5\r\nhello\r\n0\r\n\r\n")
        assert answer.status == 413
        assert not s.origin.wires


@pytest.mark.parametrize("request_", [post(b"okay"), CHUNKED_POST + b"4\r\nokay\r\n0\r\n\r\n"])
@twisted_test
async def test_a_body_as_long_as_it_may_be_is_forwarded(request_: bytes) -> None:
    async with stage(answering, max_body=4) as s:
        client = await s.connect()
        for byte in request_:
            client.write(bytes([byte]))
            await turns(1)
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_body_that_gets_too_long_after_its_answer_began_ends_both() -> None:
    async with stage(max_body=4) as s:
        client = await s.connect(CHUNKED_POST + b"2\r\nab\r\n")
        server = await s.origin.accept()
        await server.until(b"ab")
        server.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await client.until(b"half")
        client.write(b"5\r\nhello\r\n")
        assert b"HTTP" not in await client.rest()
        assert client.reset
        await eventually(lambda: server.closed)


@pytest.mark.parametrize("framing", ["length", "chunked"])
@twisted_test
async def test_a_body_that_comes_too_slowly_is_refused(framing: str) -> None:
    async with stage() as s:
        head = CHUNKED_POST if framing == "chunked" else post(b"x" * 1000).split(END)[0] + END
        client = await s.connect(head)
        server = await s.origin.accept()
        await server.until(END)
        for _ in range(5):
            client.write(b"1\r\na\r\n" if framing == "chunked" else b"a")
            await s.pass_time(TIMES.body / 4)
        assert (await client.answer()).status == 408
        assert await client.rest() == b""
        await eventually(lambda: server.closed)
        assert b"\r\n0\r\n\r\n" not in server.all


@twisted_test
async def test_a_body_at_the_rate_that_is_asked_may_take_its_time() -> None:
    async with stage() as s:
        size = int(LISTEN.body_rate * TIMES.body)
        client = await s.connect(post(b"x" * size * 4).split(END)[0] + END)
        server = await s.origin.accept()
        await server.until(END)
        for _ in range(4):
            await s.pass_time(TIMES.body * 0.8)
            client.write(b"x" * size)
            await server.exactly(size)
        server.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_the_servers_time_begins_when_the_body_is_there() -> None:
    async with stage() as s:
        client = await s.connect(post(b"x" * 120_000).split(END)[0] + END)
        server = await s.origin.accept()
        await server.until(END)
        for _ in range(10):
            client.write(b"x" * 12_000)
            await server.exactly(12_000)
            await s.pass_time(TIMES.body / 2)
        await s.pass_time(s.site.timeouts.response)
        assert (await client.answer()).status == 504


# Heads


@twisted_test
async def test_a_head_that_trickles_in_is_late_all_the_same() -> None:
    async with stage() as s:
        client = await s.connect(b"GET / HTTP/1.1\r\n")
        for _ in range(10):
            await s.pass_time(TIMES.head / 9)
            if not client.closed:
                client.write(b"X: y\r\n")
        answer = await client.answer()
        assert (answer.status, answer["connection"]) == (408, "close")
        assert await client.rest() == b""


@twisted_test
async def test_a_second_head_that_trickles_in_is_late_too() -> None:
    async with stage(answering) as s:
        client = await s.connect(GET + b"GET / HTTP/1.1\r\n")
        assert (await client.answer()).status == 200
        for _ in range(10):
            await s.pass_time(TIMES.head / 9)
            if not client.closed:
                client.write(b"X: y\r\n")
        assert (await client.answer()).status == 408


@twisted_test
async def test_a_client_that_says_nothing_is_closed() -> None:
    async with stage() as s:
        client = await s.connect()
        await eventually(lambda: s.plane.clients)
        await s.pass_time(TIMES.head + 1)
        assert await client.rest() == b""
        assert not client.reset


@pytest.mark.parametrize("said", [b"", b"\r\n"])
@twisted_test
async def test_a_kept_connection_is_closed_when_it_idles_even_with_empty_lines(said: bytes) -> None:
    async with stage(answering) as s:
        client = await s.connect(GET)
        assert (await client.answer()).status == 200
        for _ in range(4):
            await s.pass_time(TIMES.idle / 4)
            if said and not client.closed:
                client.write(said)
        await s.pass_time(5)
        assert await client.rest() == b""
        assert not client.reset


@twisted_test
async def test_a_kept_connection_is_kept_while_it_is_used() -> None:
    async with stage(answering) as s:
        client = await s.connect()
        for _ in range(4):
            client.write(GET)
            assert (await client.answer()).status == 200
            await s.pass_time(TIMES.idle - 1)
        assert not client.closed


@pytest.mark.parametrize("times", [1, 2])
@twisted_test
async def test_a_request_may_take_longer_than_a_connection_may_idle(times: int) -> None:
    listen = replace(LISTEN, timeouts=ListenTimeouts(idle=5, head=5))
    async with stage(listen=listen) as s:
        client = await s.connect(GET * times)
        server = await s.origin.accept()
        for _ in range(times):
            await one_request(server)
            await s.pass_time(30)
            server.write(OK)
            assert (await client.answer()).status == 200


# Answers that nobody takes


@pytest.mark.parametrize("kept", [True, False])
@twisted_test
async def test_a_client_that_takes_nothing_is_cut(kept: bool) -> None:
    request = GET if kept else GET[:-2] + b"Connection: close\r\n\r\n"
    async with stage() as s:
        client = await s.connect()
        client.stop_reading()
        client.write(request)
        server = await s.origin.accept()
        await one_request(server)
        server.write(ok(b"x" * 50_000_000))
        (there,) = s.plane.clients
        await eventually(lambda: there.transport.unsent)
        await s.pass_time(TIMES.write * 3)
        assert not s.plane.clients
        await eventually(lambda: server.closed)
        assert not s.gate.in_flight


@pytest.mark.parametrize("size", [20_000_000, 20_000_000 - 60_000])
@pytest.mark.parametrize("kept", [True, False])
@twisted_test
async def test_a_client_that_takes_little_by_little_gets_it_all(kept: bool, size: int) -> None:
    request = GET if kept else GET[:-2] + b"Connection: close\r\n\r\n"
    async with stage() as s:
        client = await s.connect()
        # The kernel then keeps what this is, and 4 MB on the proxy's side: less than a quarter.
        client.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.stop_reading()
        client.write(request)
        server = await s.origin.accept()
        await one_request(server)
        server.write(ok(b"x" * size))
        (there,) = s.plane.clients
        await eventually(lambda: there.transport.unsent)
        for taken in range(size // 4, size, size // 4):
            await s.pass_time(TIMES.write * 0.9)
            client.read_on()
            await eventually(lambda: len(client.buffer) > taken)  # noqa: B023
            client.stop_reading()
        client.read_on()
        assert (await client.answer()).body == b"x" * size


async def _slow_reader(s: Stage, request: bytes = GET) -> tuple[Wire, Wire]:
    """A client that has asked and reads nothing by itself, and its server; kernels keep little."""
    client = await s.connect()
    client.stop_reading()
    client.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
    s.client.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
    client.write(request)
    server = await s.origin.accept()
    await server.until(END)
    return client, server


async def _take(s: Stage, client: Wire, least: int) -> int:
    """Read until the proxy sees that so many bytes were taken; return how many it saw."""
    there = s.client

    def taken() -> int:
        assert there.exchange is not None
        return there.exchange.bytes_sent - there.unsent

    before = taken()
    while taken() < before + least:
        with contextlib.suppress(BlockingIOError):
            client.transport.socket.recv(4096)
        await turns(1)
    return taken() - before


@twisted_test
async def test_a_client_that_takes_too_little_is_cut() -> None:
    """Less than ``write_rate`` bytes a second, while the server waits for it."""
    async with stage(listen=replace(LISTEN, write_rate=2048)) as s:
        client, server = await _slow_reader(s)
        server.write(ok(b"x" * 10_000_000))
        await eventually(lambda: s.client.unsent)
        for _ in range(3):
            await _take(s, client, round(2048 * TIMES.write))
            await s.pass_time(TIMES.write)
        for _ in range(2):
            assert s.plane.clients
            assert await _take(s, client, 1) < 2048 * TIMES.write / 2
            await s.pass_time(TIMES.write / 2)
        assert not s.plane.clients
        await eventually(lambda: server.closed)
        assert not s.gate.in_flight


@pytest.mark.parametrize("rate", [0, 512])
@twisted_test
async def test_a_client_that_takes_what_it_must_stays(rate: int) -> None:
    """``write_rate = 0``: that is a byte in each ``timeouts.write``."""
    async with stage(listen=replace(LISTEN, write_rate=rate)) as s:
        client, server = await _slow_reader(s)
        server.write(ok(b"x" * 10_000_000))
        await eventually(lambda: s.client.unsent)
        for _ in range(5):
            await _take(s, client, round(rate * TIMES.write * 1.2) or 1)
            await s.pass_time(TIMES.write)
        assert s.plane.clients
        client.abort()
        server.abort()


@twisted_test
async def test_a_client_that_has_taken_all_there_was_stays() -> None:
    """Event after event, each taken in time; at each look another has just come."""
    async with stage(listen=replace(LISTEN, write_rate=2048)) as s:
        client, server = await _slow_reader(s)
        server.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        await turns()
        for _ in range(5):
            while not s.client.unsent:  # kernels keep something, too
                server.write(b"x" * 20_000)
                await turns()
            await s.pass_time(TIMES.write * 0.9)
            while s.client.unsent:
                await _take(s, client, 1)
        while not s.client.unsent:
            server.write(b"x" * 20_000)
            await turns()
        await s.pass_time(TIMES.write * 3)
        assert not s.plane.clients
        await eventually(lambda: server.closed)


@twisted_test
async def test_a_body_that_ends_keeps_no_answer_waiting() -> None:
    """The answer has begun, and is not taken; then the rest of the request comes."""
    async with stage() as s:
        client, server = await _slow_reader(s, post(b"12")[:-1])
        server.write(ok(b"x" * 10_000_000))
        await eventually(lambda: s.client.unsent)
        client.write(b"2")
        await eventually(lambda: server.all.endswith(b"12"))
        await s.pass_time(TIMES.write * 3)
        assert not s.plane.clients
        await eventually(lambda: server.closed)


# Connections


@twisted_test
async def test_a_client_too_many_is_told_so() -> None:
    async with stage(answering, plane={"max_connections": 2}) as s:
        first, second = await s.connect(GET), await s.connect(GET)
        assert (await first.answer()).status == 200
        assert (await second.answer()).status == 200
        third = await s.connect(GET)
        answer = await third.answer()
        assert (answer.status, answer["retry-after"]) == (503, "2")
        assert await third.rest() == b""
        assert not third.reset
        first.abort()
        await eventually(lambda: len(s.plane.clients) == 1)
        assert (await s.ask()).status == 200


@twisted_test
async def test_clients_far_too_many_are_not_even_told() -> None:
    async with stage(plane={"max_connections": 0}) as s:
        address = ("127.0.0.1", s.plane.listening[0].port)
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(socket.create_connection(address))
                await turns(1)
            assert len(s.plane.clients) == 256


@twisted_test
async def test_a_request_waits_while_no_socket_is_left_for_it() -> None:
    async with stage(plane={"max_sockets": 3}) as s:
        first, second = await s.connect(GET), await s.connect(post(b"x"))
        server = await s.origin.accept()
        await s.held()
        assert "no file descriptor is left" in s.live.observed().trouble
        server.write(ok(b"", b"Connection: close"))
        await eventually(lambda: first.buffer or second.buffer)
        await s.pass_time(1)  # the next knock
        server = await s.origin.accept()
        server.write(OK)
        assert (await first.answer()).status == 200
        assert (await second.answer()).status == 200


@twisted_test
async def test_clients_leave_the_last_sockets_to_servers() -> None:
    async with stage(answering, plane={"max_sockets": 10}) as s:
        for _ in range(9):
            await s.connect()
        late = await s.connect()
        assert await late.rest() == b""
        s.clients[0].write(GET)
        assert (await s.clients[0].answer()).status == 200


@twisted_test
async def test_a_client_that_is_turned_away_cannot_stay() -> None:
    async with stage(answering) as s:
        client = await s.connect(b"nonsense\r\n\r\n")
        await client.answer()
        for _ in range(6):
            if not client.closed:
                client.write(b"x" * 100)
            await s.pass_time(0.5)
        assert not s.plane.clients
