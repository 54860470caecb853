"""HTTP/2: requests as they reach a server (RFC 9113, sections 8.1 to 8.3)."""

from __future__ import annotations

import pytest
from h2_frames import (
    FRAME,
    Error,
    Type,
    data,
    headers,
)
from h2_hpack import block
from h2_wire import HELLO, Client, ask, conversation
from plane_stage import (
    END,
    fields_of,
    ok,
    one_request,
    twisted_test,
)


async def forwarded(client: Client, *frames: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Send a request; how it reaches the server: its first line, its fields and its body."""
    client.send(*frames)
    server = await client.stage.origin.accept()
    head, body = await one_request(server)
    server.write(ok(HELLO))
    assert (await client.response()).body == HELLO
    return head.split(b"\r\n")[0], fields_of(head), body


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
        await client.stage.pass_time(2.5)  # for the client to look at the answer first
        left = await client.until(Type.RST_STREAM, 1)
        assert left.error == Error.NO_ERROR
        client.send(ask(3))
        server = await client.stage.origin.accept()
        await one_request(server)
        server.write(ok(HELLO))
        assert (await client.response(3)).body == HELLO
