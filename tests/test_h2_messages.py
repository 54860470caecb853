"""HTTP/2: requests and responses as they pass the proxy (RFC 9113, section 8; RFC 8441)."""

from __future__ import annotations

import base64
import hashlib

import pytest
from h2_frames import (
    FRAME,
    MOST,
    WINDOW,
    Error,
    Setting,
    Type,
    continued,
    data,
    headers,
    rst_stream,
    window_update,
)
from h2_hpack import block
from h2_wire import HELLO, Client, Response, ask, conversation, request
from plane_stage import (
    END,
    Wire,
    always,
    eventually,
    fields_of,
    ok,
    one_request,
    turns,
    twisted_test,
)

PROTOCOL = Error.PROTOCOL_ERROR
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
Pairs = list[tuple[str, str]]


async def forwarded(client: Client, *frames: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Send a request; how it reaches the server: its first line, its fields and its body."""
    client.send(*frames)
    server = await client.stage.origin.accept()
    head, body = await one_request(server)
    server.write(ok(HELLO))
    assert (await client.response()).body == HELLO
    return head.split(b"\r\n")[0], fields_of(head), body


async def answered(client: Client, response: bytes, *frames: bytes) -> Response:
    """Ask, and let the server answer so."""
    client.send(*(frames or (ask(1),)))
    server = await client.stage.origin.accept()
    await one_request(server)
    server.write(response)
    return await client.response()


# Requests that are in order


@twisted_test
async def test_a_request_reaches_the_server_as_one_of_http_1() -> None:
    """8.3.1: method, path and authority become a request line and a Host field."""
    async with conversation(None) as client:
        line, fields, body = await forwarded(
            client, ask(1, ("accept", "text/html"), ("x-own", "a, b"), path="/a/b?c=d&e")
        )
        assert line == b"GET /a/b?c=d&e HTTP/1.1"
        assert fields[b"host"] == b"blog.example"
        assert (fields[b"accept"], fields[b"x-own"]) == (b"text/html", b"a, b")
        assert fields[b"via"].startswith(b"2.0 ")
        assert fields[b"x-forwarded-proto"] == b"http"
        assert b"content-length" not in fields
        assert b"transfer-encoding" not in fields
        assert not any(name.startswith(b":") for name in fields)
        assert body == b""


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@twisted_test
async def test_methods_are_passed_on(method: str) -> None:
    """8.3.1: any method may be asked for; one of content that has none says so."""
    async with conversation(None) as client:
        client.send(ask(1, method=method))
        server = await client.stage.origin.accept()
        head, _ = await one_request(server)
        assert head.startswith(method.encode() + b" / HTTP/1.1\r\n")
        without = method in ("GET", "HEAD", "DELETE", "OPTIONS")
        assert fields_of(head).get(b"content-length") == (None if without else b"0")
        server.write(ok(b""))
        assert (await client.response()).status == 200


@twisted_test
async def test_options_may_be_asked_of_the_whole_server() -> None:
    """8.3.1: the path '*' is for OPTIONS."""
    async with conversation(None) as client:
        line, _, _ = await forwarded(client, ask(1, method="OPTIONS", path="*"))
        assert line == b"OPTIONS * HTTP/1.1"


@twisted_test
async def test_a_host_field_may_stand_for_the_authority() -> None:
    """8.3.1: a request that was one of HTTP/1.1 may have Host in place of :authority."""
    pseudo = [(":method", "GET"), (":scheme", "http"), (":path", "/")]
    async with conversation(None) as client:
        fragment = block([*pseudo, ("host", "blog.example")])
        _, fields, _ = await forwarded(client, headers(1, fragment, end=True))
        assert fields[b"host"] == b"blog.example"


@twisted_test
async def test_an_authority_and_an_equal_host_become_one() -> None:
    """8.3.1: Host may say once more what :authority says."""
    async with conversation(None) as client:
        _, fields, _ = await forwarded(client, ask(1, ("host", "blog.example")))
        assert fields[b"host"] == b"blog.example"


@twisted_test
async def test_cookies_are_joined() -> None:
    """8.2.3: Cookie fields that were split for compression become one."""
    async with conversation(None) as client:
        _, fields, _ = await forwarded(
            client, ask(1, ("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3"))
        )
        assert fields[b"cookie"] == b"a=1; b=2; c=3"


@pytest.mark.parametrize("te", [True, False])
@twisted_test
async def test_te_trailers_is_passed_on(te: bool) -> None:
    """8.2.2: TE may be there, if all it says is 'trailers'."""
    async with conversation(None) as client:
        _, fields, _ = await forwarded(client, ask(1, *([("te", "trailers")] if te else [])))
        assert fields.get(b"te") == (b"trailers" if te else None)
        assert fields.get(b"connection") == (b"TE" if te else None)


VALUES = ["", "a", "a b", 'a"b\\c', "\xe4\xff\x80", "tab\there", "x" * 8000, "a, b", "a:b"]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
@twisted_test
async def test_values_are_passed_on_as_they_are(value: str) -> None:
    """8.2.1: a value is any octets but NUL, CR and LF, without spaces around them."""
    async with conversation(None) as client:
        _, fields, _ = await forwarded(client, ask(1, ("x-any", value)))
        assert fields[b"x-any"] == value.encode("latin-1")


@twisted_test
async def test_an_underscore_does_not_make_a_field_of_the_proxy() -> None:
    """What CGI cannot tell from a field that the proxy writes does not travel."""
    async with conversation(None) as client:
        _, fields, _ = await forwarded(client, ask(1, ("x_forwarded_for", "evil")))
        assert b"x_forwarded_for" not in fields


# Their bodies


@pytest.mark.parametrize("size", [0, 1, 4, FRAME, 3 * FRAME])
@pytest.mark.parametrize("announced", [True, False])
@twisted_test
async def test_a_body_is_passed_on(size: int, announced: bool) -> None:
    """8.1: DATA is the body, of a length that was announced or of one that was not."""
    body = b"x" * size
    length = [("content-length", str(size))] if announced else []
    parts = [body[at : at + FRAME] for at in range(0, size, FRAME)] or [b""]
    async with conversation(None) as client:
        _, fields, came = await forwarded(
            client,
            ask(1, *length, end=False, method="POST"),
            *(data(1, part, end=part is parts[-1]) for part in parts[:-1]),
            data(1, parts[-1], end=True),
        )
        assert came == body
        if announced:
            assert fields[b"content-length"] == str(size).encode()
        else:
            assert fields[b"transfer-encoding"] == b"chunked"


@twisted_test
async def test_an_empty_frame_may_end_a_body() -> None:
    """6.1: END_STREAM may come with DATA that has nothing in it."""
    async with conversation(None) as client:
        _, _, body = await forwarded(
            client,
            ask(1, ("content-length", "8"), end=False, method="POST"),
            data(1, b"test"),
            data(1),
            data(1, b"test"),
            data(1, end=True),
        )
        assert body == b"testtest"


@twisted_test
async def test_a_body_is_passed_on_as_it_comes() -> None:
    """8.1: the server does not wait for the end of a body to have its beginning."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"), data(1, b"first"))
        server = await client.stage.origin.accept()
        await server.until(b"\r\n\r\n5\r\nfirst\r\n")
        client.send(data(1, b"second", end=True))
        await server.until(b"6\r\nsecond\r\n0\r\n\r\n")
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_trailers_of_a_request_are_passed_on() -> None:
    """8.1: HEADERS behind the body are its trailers."""
    async with conversation(None) as client:
        client.send(
            ask(1, ("trailer", "x-sum"), end=False, method="POST"),
            data(1, b"test"),
            headers(1, block([("x-sum", "ok")]), end=True),
        )
        server = await client.stage.origin.accept()
        await server.until(END)
        assert (await server.chunked())[0] == b"test"
        assert server.all.lower().endswith(b"\r\n0\r\nx-sum: ok\r\n\r\n")
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_trailers_may_follow_a_head_at_once() -> None:
    """8.1: a body before trailers may be empty."""
    async with conversation(None) as client:
        client.send(
            ask(1, end=False, method="POST"), headers(1, block([("x-sum", "ok")]), end=True)
        )
        server = await client.stage.origin.accept()
        await server.until(END)
        assert await server.chunked() == (b"", b"x-sum: ok\r\n")
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_trailers_come_behind_a_body_of_known_length_too() -> None:
    """8.1.1: trailers end a request whose length was right."""
    async with conversation() as client:
        client.send(
            ask(1, ("content-length", "4"), end=False, method="POST"),
            data(1, b"test"),
            headers(1, block([("x-sum", "ok")]), end=True),
        )
        assert (await client.response()).body == HELLO


@twisted_test
async def test_the_body_waits_for_the_servers_100() -> None:
    """8.1, RFC 9110, 10.1.1: Expect is passed on, and so is the 100 of the server."""
    length = ("content-length", "4")
    async with conversation(None) as client:
        client.send(ask(1, length, ("expect", "100-continue"), end=False, method="POST"))
        server = await client.stage.origin.accept()
        assert fields_of(await server.until(END))[b"expect"] == b"100-continue"
        assert await client.settled() == []
        server.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        interim = await client.until(Type.HEADERS, 1)
        assert (interim.fields[0], interim.ends_stream) == ((":status", "100"), False)
        client.send(data(1, b"test", end=True))
        assert await server.exactly(4) == b"test"
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_a_server_may_answer_before_it_has_the_body() -> None:
    """8.1: after an early answer the rest of the request is told to be unwanted."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"), data(1, b"begin"))
        server = await client.stage.origin.accept()
        await server.until(b"begin")
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO
        left = await client.until(Type.RST_STREAM, 1)
        assert left.error == Error.NO_ERROR
        client.send(ask(3))
        server = await client.stage.origin.accept()
        await one_request(server)
        server.write(ok(HELLO))
        assert (await client.response(3)).body == HELLO


# Malformed requests


def but(*changed: tuple[str, str | None], more: Pairs | None = None) -> Pairs:
    """The fields of a request, with some changed, or left out."""
    changes = dict(changed)
    kept = [(name, changes.get(name, value)) for name, value in request()]
    return [(name, value) for name, value in kept if value is not None] + (more or [])


MALFORMED: dict[str, Pairs] = {
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
async def test_malformed_requests_are_stream_errors(fields: Pairs) -> None:
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


BAD_TRAILERS: dict[str, Pairs] = {
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
async def test_malformed_trailers_are_stream_errors(fields: Pairs, end: bool) -> None:
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
async def test_what_is_well_formed_and_not_wanted_is_answered(status: int, fields: Pairs) -> None:
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


# Responses


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


# CONNECT, and a WebSocket in a stream (RFC 8441)


def connect(protocol: str = "websocket", *more: tuple[str, str]) -> Pairs:
    """An extended CONNECT."""
    return [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "http"),
        (":path", "/chat"),
        (":authority", "blog.example"),
        ("sec-websocket-version", "13"),
        *more,
    ]


async def switched(client: Client, *more: tuple[str, str]) -> tuple[Wire, bytes]:
    """Have a WebSocket opened on stream 1; the server's side, and the head it got."""
    client.send(headers(1, block(connect("websocket", *more))))
    server = await client.stage.origin.accept()
    head = await server.until(END)
    key = fields_of(head)[b"sec-websocket-key"]
    assert len(base64.b64decode(key)) == 16
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    server.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Protocol: chat\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % base64.b64encode(digest)
    )
    return server, head


# A frame of RFC 6455, unmasked and masked with zeros, so that it reads the same.
FROM_SERVER = b"\x81\x05hello"
FROM_CLIENT = b"\x81\x85\0\0\0\0there"


@twisted_test
async def test_a_websocket_is_an_upgrade_towards_the_server() -> None:
    """RFC 8441, 5: the server is asked as HTTP/1.1 asks, and 101 becomes 200."""
    async with conversation(None) as client:
        _, head = await switched(client, ("sec-websocket-protocol", "chat"))
        assert head.startswith(b"GET /chat HTTP/1.1\r\n")
        fields = fields_of(head)
        assert fields[b"host"] == b"blog.example"
        assert (fields[b"connection"].lower(), fields[b"upgrade"]) == (b"upgrade", b"websocket")
        assert fields[b"sec-websocket-version"] == b"13"
        assert fields[b"sec-websocket-protocol"] == b"chat"
        answer = await client.until(Type.HEADERS, 1)
        assert answer.fields[0] == (":status", "200")
        assert not answer.ends_stream
        names = {name for name, _ in answer.fields}
        assert "sec-websocket-protocol" in names
        assert not names & {"sec-websocket-accept", "connection", "upgrade", "content-length"}


@twisted_test
async def test_what_is_said_in_a_websocket_is_data() -> None:
    """RFC 8441, 5: bytes pass both ways as DATA."""
    async with conversation(None) as client:
        server, _ = await switched(client)
        await client.until(Type.HEADERS, 1)
        client.send(data(1, FROM_CLIENT[:4]), data(1, FROM_CLIENT[4:], pad=9))
        assert await server.exactly(len(FROM_CLIENT)) == FROM_CLIENT
        server.write(FROM_SERVER)
        assert await client.content(1, len(FROM_SERVER)) == FROM_SERVER
        client.send(ask(3))
        other = await client.stage.origin.accept()
        await one_request(other)
        other.write(ok(HELLO))
        assert (await client.response(3)).body == HELLO


@twisted_test
async def test_a_websocket_ends_for_the_server_when_its_stream_does() -> None:
    """RFC 8441, 5.1: END_STREAM is the end of the connection."""
    async with conversation(None) as client:
        server, _ = await switched(client)
        await client.until(Type.HEADERS, 1)
        client.send(data(1, FROM_CLIENT, end=True))
        assert await server.exactly(len(FROM_CLIENT)) == FROM_CLIENT
        await eventually(lambda: server.closed)
        await client.settled()


@twisted_test
async def test_a_websocket_ends_for_the_client_when_the_server_closes_it() -> None:
    """RFC 8441, 5.1: the end of the connection is END_STREAM."""
    async with conversation(None) as client:
        server, _ = await switched(client)
        await client.until(Type.HEADERS, 1)
        server.write(FROM_SERVER)
        server.close()
        said = b""
        while not (frame := await client.on(1)).ends_stream:
            assert frame.type == Type.DATA, frame
            said += frame.content
        assert said + frame.content == FROM_SERVER
        await client.settled()


@twisted_test
async def test_a_websocket_that_is_reset_is_closed() -> None:
    """RFC 8441, 5.1: RST_STREAM is the reset of the connection."""
    async with conversation(None) as client:
        server, _ = await switched(client)
        await client.until(Type.HEADERS, 1)
        client.send(rst_stream(1))
        await eventually(lambda: server.closed)


@twisted_test
async def test_a_server_may_decline_a_websocket() -> None:
    """RFC 8441, 5: an answer other than 101 is passed on as it is."""
    async with conversation(None) as client:
        client.send(headers(1, block(connect())))
        server = await client.stage.origin.accept()
        await server.until(END)
        server.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        answer = await client.response()
        assert (answer.status, answer.body) == (403, b"no")
        await client.settled()


@twisted_test
async def test_a_wrong_handshake_of_the_server_is_a_502() -> None:
    """RFC 6455, 4.1: a Sec-WebSocket-Accept that does not fit is no consent."""
    async with conversation(None) as client:
        client.send(headers(1, block(connect())))
        server = await client.stage.origin.accept()
        await server.until(END)
        server.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: guess\r\n\r\n"
        )
        assert (await client.response()).status == 502
        await eventually(lambda: server.closed)


@twisted_test
async def test_other_protocols_are_not_spoken_in_streams() -> None:
    """RFC 8441, 4: an extended CONNECT for anything but WebSocket is answered 501."""
    async with conversation() as client:
        client.send(headers(1, block(connect("connect-udp"))))
        assert (await client.response()).status == 501
        client.send(ask(3))
        assert (await client.response(3)).body == HELLO


@pytest.mark.parametrize("missing", [":scheme", ":path"])
@twisted_test
async def test_an_extended_connect_says_what_it_wants(missing: str) -> None:
    """RFC 8441, 4: with :protocol, :scheme and :path must be there."""
    fields = [pair for pair in connect() if pair[0] != missing]
    async with conversation() as client:
        client.send(headers(1, block(fields)))
        await client.stream_error(1, PROTOCOL)
