"""HTTP/2: requests that are malformed, or refused (RFC 9113, sections 8.1.1 to 8.3.1)."""

from __future__ import annotations

import pytest
from h2_frames import (
    FRAME,
    Error,
    continued,
    data,
    headers,
)
from h2_hpack import block
from h2_wire import HELLO, Client, Fields, ask, but, conversation, request
from plane_stage import (
    END,
    eventually,
    ok,
    turns,
    twisted_test,
)

PROTOCOL = Error.PROTOCOL_ERROR


# Malformed requests


MALFORMED: dict[str, Fields] = {
    "no :method": but((":method", None)),
    "no :scheme": but((":scheme", None)),
    "no :path": but((":path", None)),
    "no :method and :scheme": but((":method", None), (":scheme", None)),
    "nothing": [],
    "only fields": [("x-own", "a")],
    "empty :path": but((":path", "")),
    "empty :method": but((":method", "")),
    "empty :scheme": but((":scheme", "")),
    ":path without /": but((":path", "index")),
    ":path with a URL": but((":path", "http://blog.example/")),
    ":path with a space": but((":path", "/a b")),
    ":path with a line end": but((":path", "/ HTTP/1.1\r\nx: y\r\n\r\n")),
    ":path with a NUL": but((":path", "/\0")),
    ":path *": but((":path", "*")),
    ":method with a space": but((":method", "GET /x HTTP/1.1\r\n")),
    ":method in brackets": but((":method", "(GET)")),
    ":authority with a line end": but((":authority", "blog.example\r\nx: y")),
    "two :method": but(more=[(":method", "GET")]),
    "two :scheme": but(more=[(":scheme", "http")]),
    "two :path": but(more=[(":path", "/")]),
    "two :authority": but(more=[(":authority", "blog.example")]),
    "two that differ": but(more=[(":method", "POST")]),
    "unknown pseudo field": but(more=[(":test", "ok")]),
    "nameless pseudo field": but(more=[(":", "ok")]),
    ":status": but(more=[(":status", "200")]),
    "pseudo field behind another": [("x-test", "ok"), *request()],
    "one pseudo field behind another": but((":path", None), more=[("a", "b"), (":path", "/")]),
    "upper-case name": but(more=[("X-TEST", "ok")]),
    "one upper-case letter": but(more=[("x-tesT", "ok")]),
    "upper-case pseudo field": but(more=[(":Method", "GET")]),
    "empty name": but(more=[("", "ok")]),
    "name with a space": but(more=[("x test", "ok")]),
    "name with a colon": but(more=[("x:test", "ok")]),
    "name with a line end": but(more=[("x\r\ny", "ok")]),
    "name with a NUL": but(more=[("x\0", "ok")]),
    "name with a DEL": but(more=[("x\x7f", "ok")]),
    "name beyond ASCII": but(more=[("\xe4", "ok")]),
    "name in brackets": but(more=[("(x)", "ok")]),
    "value with a NUL": but(more=[("x", "a\0b")]),
    "value with CR": but(more=[("x", "a\rb")]),
    "value with LF": but(more=[("x", "a\nb")]),
    "value with CR LF": but(more=[("x", "a\r\nevil: b")]),
    "value that begins with a space": but(more=[("x", " a")]),
    "value that ends with a space": but(more=[("x", "a ")]),
    "value that begins with a tab": but(more=[("x", "\ta")]),
    "value that ends with a tab": but(more=[("x", "a\t")]),
    "connection": but(more=[("connection", "keep-alive")]),
    "connection close": but(more=[("connection", "close")]),
    "keep-alive": but(more=[("keep-alive", "timeout=5")]),
    "proxy-connection": but(more=[("proxy-connection", "keep-alive")]),
    "transfer-encoding": but(more=[("transfer-encoding", "chunked")]),
    "upgrade": but(more=[("upgrade", "websocket")]),
    "te gzip": but(more=[("te", "gzip")]),
    "te trailers and more": but(more=[("trailers", "test"), ("te", "trailers, deflate")]),
    "two Host": but((":authority", None), more=[("host", "blog.example")] * 2),
    "Host and another :authority": but(more=[("host", "other.example")]),
    ":protocol without CONNECT": but(more=[(":protocol", "websocket")]),
    "CONNECT with a path": [(":method", "CONNECT"), (":path", "/"), (":authority", "a:1")],
    "CONNECT with a scheme": [(":method", "CONNECT"), (":scheme", "http"), (":authority", "a:1")],
    "CONNECT without authority": [(":method", "CONNECT")],
    "content-length with END_STREAM": but(more=[("content-length", "1")]),
    "content-length that is no number": but(more=[("content-length", "x")]),
    "content-length with a sign": but(more=[("content-length", "+0")]),
    "content-length below 0": but(more=[("content-length", "-1")]),
    "empty content-length": but(more=[("content-length", "")]),
    "two content-length that differ": but(more=[("content-length", "0"), ("content-length", "1")]),
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
@twisted_test
async def test_malformed_requests_are_stream_errors(fields: Fields) -> None:
    """8.1.1 to 8.3.1: a request that breaks a rule is reset, and reaches no server."""
    async with conversation() as client:
        client.send(headers(1, block(fields), end=True))
        await client.stream_error(1, PROTOCOL)
        client.send(ask(3))
        assert (await client.response(3)).body == HELLO
        assert client.stage.origin.received.count(b"HTTP/1.1\r\n") == 1


LENGTHS = {
    "too much": ("1", [data(1, b"test", end=True)]),
    "too much in two": ("1", [data(1, b"test"), data(1, b"test", end=True)]),
    "too much, and more to come": ("1", [data(1, b"test")]),
    "too little": ("5", [data(1, b"test", end=True)]),
    "nothing": ("5", [data(1, end=True)]),
    "padding does not count": ("5", [data(1, b"test", pad=1, end=True)]),
    "trailers too early": ("5", [data(1, b"test"), headers(1, block([("a", "b")]), end=True)]),
    "something": ("0", [data(1, b"t", end=True)]),
}


@pytest.mark.parametrize(("length", "frames"), LENGTHS.values(), ids=LENGTHS)
@twisted_test
async def test_a_body_of_another_length_is_an_error(length: str, frames: list[bytes]) -> None:
    """8.1.1: a body that is not as long as announced makes its request malformed."""
    async with conversation(None) as client:
        client.send(ask(1, ("content-length", length), end=False, method="POST"), *frames)
        await client.error(1, PROTOCOL)
        await eventually(lambda: not client.stage.gate.in_flight)
        await eventually(lambda: all(wire.closed for wire in client.stage.origin.wires))


BAD_TRAILERS: dict[str, Fields] = {
    "pseudo field": [(":method", "POST")],
    ":status": [(":status", "200")],
    "upper case": [("X-Sum", "ok")],
    "connection": [("connection", "close")],
    "transfer-encoding": [("transfer-encoding", "chunked")],
    "value with a line end": [("x-sum", "a\r\nb: c")],
    "name with a space": [("x sum", "ok")],
}


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("fields", BAD_TRAILERS.values(), ids=BAD_TRAILERS)
@twisted_test
async def test_malformed_trailers_are_stream_errors(fields: Fields, end: bool) -> None:
    """8.1, 8.3: what must not be in fields must not be in trailers, nor pseudo fields."""
    async with conversation(None) as client:
        client.send(
            ask(1, end=False, method="POST"), data(1, b"test"), headers(1, block(fields), end=end)
        )
        await client.error(1, PROTOCOL)


@twisted_test
async def test_trailers_are_the_end() -> None:
    """8.1: a second HEADERS without END_STREAM makes its request malformed."""
    async with conversation(None) as client:
        client.send(
            ask(1, end=False, method="POST"),
            data(1, b"test"),
            headers(1, block([("x-test", "ok")])),
        )
        await client.error(1, PROTOCOL)


@twisted_test
async def test_nothing_comes_behind_trailers() -> None:
    """8.1: DATA behind trailers is STREAM_CLOSED."""
    async with conversation(None) as client:
        client.send(
            ask(1, end=False, method="POST"),
            headers(1, block([("x-test", "ok")]), end=True),
            data(1, b"test"),
        )
        await client.stream_error(1, Error.STREAM_CLOSED)


@twisted_test
async def test_fields_that_must_not_be_in_trailers_are_left_out() -> None:
    """RFC 9110, 6.5.1: what steers a message has no effect in its trailers."""
    async with conversation(None) as client:
        client.send(
            ask(1, end=False, method="POST"),
            data(1, b"test"),
            headers(
                1,
                block([("host", "evil"), ("content-length", "9"), ("x-sum", "1"), ("cookie", "a")]),
                end=True,
            ),
        )
        server = await client.stage.origin.accept()
        await server.until(END)
        assert await server.chunked() == (b"test", b"x-sum: 1\r\n")
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO


# Requests that are refused with an answer


async def refused(client: Client, status: int, *frames: bytes) -> None:
    """Have a request answered by the proxy, and see that the connection goes on."""
    client.send(*frames)
    assert (await client.response()).status == status
    assert client.stage.origin.received == b""
    client.send(ask(101))
    assert (await client.response(101)).body == HELLO


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (404, request(authority="nobody.example")),
        (400, but((":authority", None))),
        (400, but((":path", "/a#b"))),
        (400, request(authority="a b")),
        (417, request(("expect", "a miracle"))),
        (501, [(":method", "CONNECT"), (":authority", "blog.example:80")]),
        (414, request(path="/" + "a" * 9000)),
        (431, request(*((f"x-{number}", "a") for number in range(101)))),
        (431, request(("x-long", "a" * 33_000))),
    ],
    ids=["unknown", "no host", "#", "host", "expect", "CONNECT", "path", "fields", "long"],
)
@twisted_test
async def test_what_is_well_formed_and_not_wanted_is_answered(status: int, fields: Fields) -> None:
    """8.1.1: a request that only this proxy refuses gets an answer, and the connection lives."""
    fragment = block(fields)
    parts = [fragment[at : at + FRAME] for at in range(0, len(fragment), FRAME)]
    whole = continued(1, parts, end=True) if parts[1:] else headers(1, fragment, end=True)
    async with conversation() as client:
        await refused(client, status, whole)


@twisted_test
async def test_a_body_longer_than_the_site_allows_is_refused() -> None:
    """A body is refused as soon as it is known to be too long: 413."""
    async with conversation(max_body=10) as client:
        await refused(client, 413, ask(1, ("content-length", "11"), end=False, method="POST"))


@twisted_test
async def test_a_body_that_grows_longer_than_the_site_allows_is_refused() -> None:
    """A body without a length is refused when it has become too long: 413."""
    async with conversation(None, max_body=10) as client:
        client.send(ask(1, end=False, method="POST"), data(1, bytes(11)))
        assert (await client.response()).status == 413
        await client.settled()


@twisted_test
async def test_an_answer_of_the_proxy_to_head_has_no_body() -> None:
    """RFC 9110, 9.3.2: HEAD has no content, whoever answers."""
    async with conversation() as client:
        client.send(ask(1, method="HEAD", authority="nobody.example"))
        answer = await client.response()
        assert (answer.status, answer.body) == (404, b"")


@twisted_test
async def test_a_server_that_cannot_be_reached_is_answered_for() -> None:
    """What the proxy answers in place of a server is a response like any other."""
    async with conversation() as client:
        await client.stage.origin.refuse()
        client.send(ask(1))
        await turns(10)
        await client.stage.pass_time(client.stage.site.retry.budget + 5)
        answer = await client.response()
        assert answer.status in (502, 503)
        assert answer.body
