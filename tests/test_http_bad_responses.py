"""A server that misbehaves is told apart, and nobody else hears of it."""

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
from test_responses import BAD

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TEN = b"GET / HTTP/1.0\r\nHost: blog.example\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
WEBSOCKET = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize("response", BAD.values(), ids=BAD.keys())
@twisted_test
async def test_a_bad_response_is_502_and_the_end_of_its_connection(response: bytes) -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(response)
        answer = await client.answer()
        if answer.status == 200:  # its head was good, and has been passed on
            assert response.startswith(CHUNKED)
            await client.rest()
            assert client.reset
        else:
            assert answer.status == 502
        await eventually(lambda: server.closed)
        assert s.counters.failed == 1
        assert not s.live.connections


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (GET, SWITCH),
        (WEBSOCKET, SWITCH.replace(b"websocket", b"h2c")),
        (WEBSOCKET, b"HTTP/1.1 101 S\r\n\r\n"),
        (WEBSOCKET, b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n"),
        (WEBSOCKET, b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\n\r\n"),
    ],
    ids=["unasked", "another", "none", "no Connection", "no Upgrade"],
)
@twisted_test
async def test_a_protocol_is_switched_only_to_what_was_asked_for(
    request_: bytes, response: bytes
) -> None:
    async with stage() as s:
        client = await s.connect(request_)
        server = await s.origin.accept()
        await one_request(server)
        server.write(response)
        assert (await client.answer()).status == 502
        await eventually(lambda: server.closed)
        assert not s.live.tunnels


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (GET, OK),
        (GET, CHUNKED + b"2\r\nok\r\n0\r\n\r\n"),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (GET.replace(b"GET", b"HEAD"), b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"),
    ],
    ids=["length", "chunked", "204", "HEAD"],
)
@twisted_test
async def test_what_exceeds_a_response_reaches_nobody(request_: bytes, response: bytes) -> None:
    async with stage() as s:
        client = await s.connect(request_)
        server = await s.origin.accept()
        await one_request(server)
        server.write(response + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        answer = await client.answer(head_only=request_.startswith(b"HEAD"))
        assert answer.body in (b"ok", b"")
        await eventually(lambda: server.closed)
        client.write(GET)
        other = await s.origin.accept()
        await one_request(other)
        other.write(ok(b"good"))
        assert (await client.answer()).body == b"good"
        assert b"evil" not in client.all


@twisted_test
async def test_what_comes_on_an_idle_connection_closes_it() -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(OK)
        await client.answer()
        assert len(s.live.connections) == 1
        server.write(ok(b"evil"))
        await eventually(lambda: server.closed)
        assert not s.live.connections
        client.write(GET)
        other = await s.origin.accept()
        await one_request(other)
        other.write(ok(b"good"))
        assert (await client.answer()).body == b"good"


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        CHUNKED + b"4\r\nhalf\r\n",
        CHUNKED + b"9\r\nhalf",
        CHUNKED + b"4\r\nhalf\r\n0\r\nX-Sum: 1\r\n",
    ],
    ids=["length", "between chunks", "in a chunk", "in the trailers"],
)
@pytest.mark.parametrize("request_", [GET, TEN], ids=["1.1", "1.0"])
@pytest.mark.parametrize("rudely", [False, True], ids=["closed", "reset"])
@twisted_test
async def test_a_truncated_response_looks_truncated(
    response: bytes, request_: bytes, rudely: bool
) -> None:
    async with stage() as s:
        client = await s.connect(request_)
        server = await s.origin.accept()
        await one_request(server)
        server.write(response)
        await client.until(b"half")
        (server.abort if rudely else server.close)()
        assert b"0\r\n\r\n" not in await client.rest()
        assert client.reset
        assert s.counters.failed == 1


@pytest.mark.parametrize("request_", [GET, TEN], ids=["1.1", "1.0"])
@twisted_test
async def test_a_response_until_the_end_that_is_reset_looks_truncated(request_: bytes) -> None:
    async with stage() as s:
        client = await s.connect(request_)
        server = await s.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await client.until(b"half")
        server.abort()
        assert b"0\r\n\r\n" not in await client.rest()
        assert client.reset


@pytest.mark.parametrize("part", [b"HTTP/1.1 200 OK\r\nX: y", b"HTTP/1.1 100 Continue\r\n\r\nHTTP"])
@twisted_test
async def test_a_response_that_breaks_off_in_its_head_is_502_and_not_asked_again(
    part: bytes,
) -> None:
    async with stage() as s:
        client = await s.connect(TEN)
        server = await s.origin.accept()
        await one_request(server)
        server.write(part)
        server.close()
        assert (await client.answer()).status == 502
        assert len(s.origin.wires) == 1


@pytest.mark.parametrize(
    "endless",
    [b"X: y\r\n" * 1000, b"y" * 10_000, b"\r\nHTTP/1.1 102 P\r\n" * 1000],
    ids=["fields", "name", "interim"],
)
@twisted_test
async def test_a_head_without_an_end_is_502(endless: bytes) -> None:
    async def babble(wire: Wire) -> None:
        await wire.until(END)
        wire.write(b"HTTP/1.1 102 P\r\n")
        while not wire.closed:
            wire.write(endless)
            await turns(1)

    async with stage(babble) as s:
        client = await s.connect(GET)
        answer = await client.answer()
        while answer.status == 102:
            answer = await client.answer()
        assert answer.status == 502


@twisted_test
async def test_a_bad_answer_to_a_request_that_changes_something_is_ambiguous() -> None:
    async with stage(always(b"nonsense\r\n\r\n")) as s:
        answer = await s.ask(post(b"x"))
        assert answer.status == 502
        assert b"may have been carried out" in answer.body
        assert (s.counters.ambiguous, s.counters.failed) == (1, 0)


@twisted_test
async def test_an_early_answer_ends_the_upload() -> None:
    async with stage() as s:
        head, _ = post(b"x" * 5_000_000).split(END)
        client = await s.connect(head + END + b"x" * 100_000)
        server = await s.origin.accept()
        await server.until(END)
        server.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        answer = await client.answer()
        assert (answer.status, answer.body) == (413, b"no")
        assert answer["connection"] == "close"
        client.write(b"x" * 1_000_000)  # still on its way; it must not reset the answer
        assert await client.rest() == b""
        assert not client.reset
        await eventually(lambda: server.closed)


@twisted_test
async def test_an_early_answer_may_go_on_while_the_body_comes() -> None:
    async with stage() as s:
        client = await s.connect(
            b"POST / HTTP/1.1\r\nHost: blog.example\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        server = await s.origin.accept()
        await server.until(END)
        server.write(CHUNKED)
        await client.until(END)
        for piece in (b"1\r\na\r\n", b"1\r\nb\r\n"):
            client.write(piece)
            await server.until(piece)
            server.write(piece)
            await client.until(piece)
        client.write(b"0\r\n\r\n")
        await server.until(b"0\r\n\r\n")
        server.write(b"0\r\n\r\n")
        await client.until(b"0\r\n\r\n")
        assert not client.closed


@twisted_test
async def test_the_connection_of_a_server_that_says_close_is_not_used_again() -> None:
    async with stage(always(ok(b"", b"Connection: close"))) as s:
        client = await s.connect()
        for _ in range(3):
            client.write(GET)
            assert (await client.answer()).status == 200
        await eventually(lambda: all(wire.closed for wire in s.origin.wires))
        assert len(s.origin.wires) == 3
        assert not s.counters.retried


@twisted_test
async def test_one_connection_carries_many_requests() -> None:
    async with stage(answering) as s:
        client = await s.connect()
        for _ in range(5):
            client.write(GET)
            assert (await client.answer()).status == 200
        assert len(s.origin.wires) == 1
