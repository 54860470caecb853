"""Heads as they are written, and the proxy's own answers."""

from __future__ import annotations

import json

import pytest
from plane_stage import Answer, fields_of

from awesomeproxy.model import Listen
from awesomeproxy.proxy.answers import explain
from awesomeproxy.proxy.heads import (
    Origin,
    RequestIds,
    added,
    chunk,
    interim_head,
    last_chunk,
    request_head,
    response_head,
)
from awesomeproxy.proxy.requests import Request, RequestParser
from awesomeproxy.proxy.responses import ResponseParser

VIA = b"1.1 node-abc"


def read(*fields: bytes, first: bytes = b"GET /a?b HTTP/1.1") -> Request:
    parser = RequestParser(Listen("tcp:0"))
    parser.feed(b"\r\n".join([first, b"Host: a.example", *fields, b"", b""]))
    assert parser.refusal is None, parser.refusal
    found = parser.ready[0]
    found.request_id = found.request_id or b"id"
    return found


def written(request: Request, *, trusted: bool = False) -> dict[bytes, bytes]:
    return fields_of(request_head(request, Origin(b"192.0.2.1", trusted), VIA))


def test_a_request_is_written_as_it_came_with_what_the_proxy_adds() -> None:
    head = request_head(read(b"Accept: x", b"X-a:", b"x-A: 1"), Origin(b"192.0.2.1"), VIA)
    assert head == (
        b"GET /a?b HTTP/1.1\r\nHost: a.example\r\nAccept: x\r\nX-a: \r\nx-A: 1\r\n"
        b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\n"
        b"X-Forwarded-Host: a.example\r\nX-Request-Id: id\r\nVia: 1.1 node-abc\r\n\r\n"
    )


def test_a_written_request_can_be_read_again() -> None:
    first = read(b"Accept: x", b"Via: 1.0 y", b"TE: trailers", b"Max-Forwards: 4")
    again = RequestParser(Listen("tcp:0"))
    again.feed(request_head(first, Origin(b"192.0.2.1"), VIA))
    (found,) = again.ready
    assert (found.method, found.target, found.host) == (b"GET", b"/a?b", b"a.example")
    assert found.fields == first.fields
    assert found.via == b"1.0 y, 1.1 node-abc"
    assert found.te_trailers
    assert found.max_forwards == b"4"


def test_a_stranger_does_not_say_where_a_request_comes_from() -> None:
    said = (b"X-Forwarded-For: 1.1.1.1", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: evil")
    fields = written(read(*said))
    assert fields[b"x-forwarded-for"] == b"192.0.2.1"
    assert fields[b"x-forwarded-proto"] == b"http"
    assert fields[b"x-forwarded-host"] == b"a.example"


def test_a_trusted_proxy_does_and_is_added() -> None:
    said = (b"X-Forwarded-For: 1.1.1.1", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: b")
    fields = written(read(*said), trusted=True)
    assert fields[b"x-forwarded-for"] == b"1.1.1.1, 192.0.2.1"
    assert fields[b"x-forwarded-proto"] == b"https"
    assert fields[b"x-forwarded-host"] == b"b"


def test_a_trusted_proxy_that_says_nothing_is_the_client() -> None:
    fields = written(read(), trusted=True)
    assert fields[b"x-forwarded-for"] == b"192.0.2.1"
    assert fields[b"x-forwarded-proto"] == b"http"
    assert fields[b"x-forwarded-host"] == b"a.example"


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ((b"Content-Length: 3",), b"content-length", b"3"),
        ((b"Content-Length: 0",), b"content-length", b"0"),
        ((b"Transfer-Encoding: Chunked",), b"transfer-encoding", b"chunked"),
        ((b"Expect: 100-Continue", b"Content-Length: 3"), b"expect", b"100-continue"),
        ((b"Connection: Upgrade", b"Upgrade: WebSocket"), b"upgrade", b"WebSocket"),
        ((b"Connection: Upgrade", b"Upgrade: WebSocket"), b"connection", b"Upgrade"),
        ((b"TE: deflate, Trailers",), b"te", b"trailers"),
        ((b"TE: trailers",), b"connection", b"TE"),
        ((b"TE: gzip",), b"te", None),
        ((b"Connection: close",), b"connection", None),
        ((b"Upgrade: x",), b"upgrade", None),
    ],
)
def test_what_concerns_the_connection_is_written_anew(
    fields: tuple[bytes, ...], name: bytes, value: bytes | None
) -> None:
    assert written(read(*fields, first=b"POST / HTTP/1.1")).get(name) == value


def test_request_ids_are_unique() -> None:
    one, two = RequestIds(), RequestIds()
    assert len({ids() for _ in range(100) for ids in (one, two)}) == 200


def test_chunks() -> None:
    assert chunk([b"hello", b" world!"]) == b"c\r\nhello world!\r\n"
    assert last_chunk([]) == b"0\r\n\r\n"
    assert last_chunk([(b"X-Sum", b"1")]) == b"0\r\nX-Sum: 1\r\n\r\n"


@pytest.mark.parametrize("name", [b"Host", b"Set-Cookie", b"authorization", b"X-Forwarded-For"])
def test_trailers_that_steer_something_are_not_passed_on(name: bytes) -> None:
    assert last_chunk([(name, b"1")]) == b"0\r\n\r\n"


def test_a_response_is_written_as_it_came() -> None:
    parser = ResponseParser()
    parser.expect(False)
    parser.feed(
        b"HTTP/1.0 404 Gibt es nicht\r\nSet-Cookie: a\r\nKeep-Alive: x\r\nset-cookie: b\r\n"
        b"Connection: X-Own\r\nX-Own: 1\r\n\r\n"
    )
    head = response_head(parser.response, chunked=True, length=-1, connection=b"", more=[])
    assert head == (
        b"HTTP/1.1 404 Gibt es nicht\r\nSet-Cookie: a\r\nset-cookie: b\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )


def test_a_response_says_how_long_its_request_was_held() -> None:
    parser = ResponseParser()
    parser.expect(False)
    parser.feed(b"HTTP/1.1 204 No Content\r\n\r\n")
    more = added(parser.response, 1.5, b"")
    head = response_head(parser.response, chunked=False, length=-1, connection=b"", more=more)
    assert head == b"HTTP/1.1 204 No Content\r\nX-Awesomeproxy-Held: 1.500\r\n\r\n"


def test_an_interim_response_is_written_as_it_came() -> None:
    parser = ResponseParser()
    parser.expect(False)
    parser.feed(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: close\r\n\r\n")
    assert interim_head(parser.interim[0]) == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


def own(status: int, request: Request | None, *, close: bool = False) -> Answer:
    whole = explain(status, "It is so.", request).http1(request, close=close)
    head, _, body = whole.partition(b"\r\n\r\n")
    found = Answer.of(head + b"\r\n\r\n")
    found.body = body
    return found


def test_an_answer_is_short_text_with_its_reason() -> None:
    found = own(404, read())
    assert (found.status, found.reason) == (404, "Not Found")
    assert found.body == b"404 Not Found\nIt is so.\nRequest: id\n"
    assert found["content-length"] == str(len(found.body))
    assert found["cache-control"] == "no-store"
    assert found["connection"] is None


@pytest.mark.parametrize("accept", [b"application/json", b"text/html, application/problem+json"])
def test_an_answer_is_json_for_those_who_ask_for_it(accept: bytes) -> None:
    found = own(502, read(b"Accept: " + accept))
    assert found["content-type"] == "application/json"
    assert json.loads(found.body) == {
        "status": 502,
        "error": "Bad Gateway",
        "reason": "It is so.",
        "request_id": "id",
    }


def test_an_answer_to_head_has_no_body() -> None:
    found = own(404, read(first=b"HEAD / HTTP/1.1"))
    assert found.body == b""
    assert found["content-length"] != "0"


def test_an_answer_says_whether_the_connection_ends() -> None:
    assert own(404, read(), close=True)["connection"] == "close"
    assert own(404, None, close=True)["connection"] == "close"
    assert own(404, read(first=b"GET / HTTP/1.0"))["connection"] == "keep-alive"


def test_only_who_may_come_again_is_told_when() -> None:
    assert own(503, read())["retry-after"] == "2"
    assert own(502, read())["retry-after"] is None
