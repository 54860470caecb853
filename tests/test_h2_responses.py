"""HTTP/2: responses as they reach a client (RFC 9113, sections 8.1 and 8.2)."""

from __future__ import annotations

import pytest
from h2_frames import (
    FRAME,
    MOST,
    WINDOW,
    Error,
    Setting,
    Type,
    rst_stream,
    window_update,
)
from h2_wire import Client, Response, ask, conversation
from plane_stage import (
    always,
    eventually,
    ok,
    one_request,
    twisted_test,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def answered(client: Client, response: bytes, *frames: bytes) -> Response:
    """Ask, and let the server answer so."""
    client.send(*(frames or (ask(1),)))
    server = await client.stage.origin.accept()
    await one_request(server)
    server.write(response)
    return await client.response()


@pytest.mark.parametrize(
    ("response", "body"),
    [
        (ok(b"hello"), b"hello"),
        (ok(b""), b""),
        (CHUNKED + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!"),
        (CHUNKED + b"0\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!", b"no!"),
    ],
    ids=["length", "empty", "chunked", "empty chunked", "204", "304", "1.0", "404"],
)
@twisted_test
async def test_a_response_is_passed_on(response: bytes, body: bytes) -> None:
    """8.1: status and body are those of the server, and the stream ends with them."""
    async with conversation(None) as client:
        answer = await answered(client, response)
        assert (b"%d" % answer.status, answer.body) == (response[9:12], body)
        assert answer["transfer-encoding"] is None
        assert await client.settled() == []


@twisted_test
async def test_a_response_until_the_end_of_the_connection_is_passed_on() -> None:
    """8.1: a response of HTTP/1 that ends with its connection ends the stream."""
    async with conversation(None) as client:
        client.send(ask(1))
        server = await client.stage.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        server.close()
        assert (await client.response()).body == b"all of it"


@twisted_test
async def test_a_response_without_content_ends_with_its_head() -> None:
    """8.1: HEADERS carries END_STREAM when nothing follows."""
    async with conversation(always(b"HTTP/1.1 204 No Content\r\n\r\n")) as client:
        client.send(ask(1))
        assert (await client.on(1)).ends_stream


@pytest.mark.parametrize(
    "response",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", CHUNKED, b"HTTP/1.1 200 OK\r\n\r\n"],
    ids=["length", "chunked", "neither"],
)
@twisted_test
async def test_head_has_no_content(response: bytes) -> None:
    """8.1.1: the answer to HEAD has the length that GET would have, and no DATA."""
    async with conversation(None) as client:
        answer = await answered(client, response, ask(1, method="HEAD"))
        assert answer["content-length"] == ("5" if b"5" in response else None)
        assert answer.body == b""
        assert not [f for f in client.came if f.type == Type.DATA and f.payload]


@twisted_test
async def test_names_are_in_lower_case_and_fields_of_the_connection_are_left_out() -> None:
    """8.2, 8.2.2: names are lower-case; what concerns one connection stays there."""
    fields = (
        b"Content-Type: text/plain",
        b"X-UPPER: Value",
        b"Connection: X-Mine, keep-alive",
        b"X-Mine: 1",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"Upgrade: h2c",
    )
    async with conversation(None) as client:
        answer = await answered(client, ok(b"hello", *fields))
        assert (answer["content-type"], answer["x-upper"]) == ("text/plain", "Value")
        names = {name for name, _ in answer.fields}
        assert all(name == name.lower() for name in names)
        unwanted = "connection x-mine keep-alive proxy-connection upgrade transfer-encoding"
        assert not names & set(unwanted.split())


@twisted_test
async def test_fields_that_cannot_be_joined_stay_apart() -> None:
    """RFC 9110, 5.3: two Set-Cookie fields are two."""
    async with conversation(None) as client:
        answer = await answered(client, ok(b"", b"Set-Cookie: a=1", b"Set-Cookie: b=2"))
        assert [v for name, v in answer.fields if name == "set-cookie"] == ["a=1", "b=2"]


@twisted_test
async def test_a_long_head_comes_in_several_frames() -> None:
    """4.2, 6.10: fields that exceed the client's frame size are continued."""
    fields = [b"X-%d: %b" % (number, b"~" * 5000) for number in range(8)]
    async with conversation(None) as client:
        answer = await answered(client, ok(b"hello", *fields))
        assert answer["x-7"] == "~" * 5000
        assert answer.body == b"hello"
        assert max(len(f.payload) for f in client.came) <= FRAME
        assert any(f.type == Type.CONTINUATION for f in client.came)


@twisted_test
async def test_a_long_body_comes_whole() -> None:
    """8.1: a body that exceeds all windows comes as they are opened, to its end."""
    body = bytes(range(256)) * 8192
    pairs = ((Setting.INITIAL_WINDOW_SIZE, MOST),)
    async with conversation(always(ok(body)), pairs=pairs) as client:
        client.send(window_update(0, MOST - WINDOW), ask(1))
        assert (await client.response()).body == body


@twisted_test
async def test_interim_responses_are_passed_on() -> None:
    """8.1: 1xx comes as HEADERS without END_STREAM, before the response."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with conversation(None) as client:
        answer = await answered(client, early + early + ok(b"hello"))
        hint = [(":status", "103"), ("link", "</a>")]
        assert answer.interim == [hint, hint]
        assert (answer.status, answer.body) == (200, b"hello")


@twisted_test
async def test_101_does_not_exist() -> None:
    """8.6: a server that switches protocols, unasked, is in error."""
    switch = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    async with conversation(None) as client:
        assert (await answered(client, switch)).status == 502


@pytest.mark.parametrize("body", [b"", b"5\r\nhello\r\n"], ids=["empty", "hello"])
@twisted_test
async def test_trailers_of_a_response_are_passed_on(body: bytes) -> None:
    """8.1: trailers come as HEADERS with END_STREAM behind the body, in lower case."""
    async with conversation(None) as client:
        response = CHUNKED + body + b"0\r\nX-Sum: 2\r\nSet-Cookie: evil\r\n\r\n"
        answer = await answered(client, response, ask(1, ("te", "trailers")))
        assert (answer.body, answer.trailers) == (body[3:8], [("x-sum", "2")])


@pytest.mark.parametrize(
    "response",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", CHUNKED + b"5\r\nhello\r\n"],
    ids=["length", "chunked"],
)
@twisted_test
async def test_a_truncated_response_looks_truncated(response: bytes) -> None:
    """8.1.1: a response that breaks off resets its stream, and no other."""
    async with conversation(None) as client:
        client.send(ask(1))
        server = await client.stage.origin.accept()
        await one_request(server)
        server.write(response)
        assert await client.content(1, 5) == b"hello"
        server.close()
        frame = await client.on(1)
        assert (frame.type, frame.error) == (Type.RST_STREAM, Error.INTERNAL_ERROR)
        await client.settled()


@twisted_test
async def test_a_response_that_cannot_be_understood_is_answered_for() -> None:
    """What a server gets wrong is a 502, as it is in HTTP/1.1."""
    async with conversation(None) as client:
        answer = await answered(client, b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")
        assert answer.status == 502


@twisted_test
async def test_what_was_sent_is_counted_and_forgotten_when_the_client_resets() -> None:
    """6.4: a response that nobody wants any more is not sent on."""
    async with conversation(None) as client:
        client.send(ask(1))
        server = await client.stage.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        assert await client.content(1, 5) == b"hello"
        client.send(rst_stream(1))
        await client.settled()
        server.write(b"there")
        assert await client.settled() == []
        await eventually(lambda: server.closed)
