"""What comes out of the request parser for what goes in, however it is cut up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awesomeproxy.model import Listen
from awesomeproxy.proxy.requests import Request, RequestParser

LISTEN = Listen("tcp:0", max_head=2048, max_target=512, max_headers=20)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def request(*fields: bytes, first: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    lines = [first, *([host] if host else []), *fields, b"", b""]
    return b"\r\n".join(lines)


def said(found: Request) -> dict[str, Any]:
    """All there is to know of a request, in whatever pieces its body came."""
    return {
        **{name: getattr(found, name) for name in vars(Request) if name in ATTRIBUTES},
        "fields": found.fields,
        "trailers": found.trailers,
        "body": b"".join(found.chunks),
    }


ATTRIBUTES = [
    name
    for name, value in vars(Request).items()
    if not name.startswith("_") and not callable(value) and not isinstance(value, property)
]


def parse(*pieces: bytes, listen: Listen = LISTEN) -> RequestParser:
    parser = RequestParser(listen)
    for piece in pieces:
        parser.feed(piece)
    return parser


def outcome(*pieces: bytes, listen: Listen = LISTEN) -> tuple[list[dict[str, Any]], int]:
    """The requests, and the status of the refusal behind them (0: none)."""
    parser = parse(*pieces, listen=listen)
    status = parser.refusal.status if parser.refusal is not None else 0
    return [said(found) for found in parser.ready], status


def refused(data: bytes, listen: Listen = LISTEN) -> tuple[int, str]:
    """How a first request is refused."""
    parser = parse(data, listen=listen)
    assert not parser.ready
    assert parser.refusal is not None
    return parser.refusal.status, parser.refusal.reason


def only(data: bytes, listen: Listen = LISTEN) -> Request:
    """The one request that is there."""
    parser = parse(data, listen=listen)
    assert parser.refusal is None, parser.refusal
    (found,) = parser.ready
    return found


GOOD = {
    "plain": GET,
    "fields": request(b"Accept: */*", b"X-Empty:", b"X-Twice: 1", b"X-Twice: 2", b"x:  spaced \t"),
    "empty lines before it": b"\r\n\r\n" + GET,
    "length": request(b"Content-Length: 5", first=b"POST /x HTTP/1.1") + b"hello",
    "no body": request(b"Content-Length: 0", first=b"POST /x HTTP/1.1"),
    "chunked": CHUNKED + b'5\r\nhello\r\n1;a=b;c="d"\r\n!\r\n0\r\n\r\n',
    "trailers": CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
    "upper-case chunk size": CHUNKED + b"00A\r\n0123456789\r\n0\r\n\r\n",
    "1.0": request(first=b"GET / HTTP/1.0", host=b""),
    "1.0 kept alive": request(b"Connection: keep-alive", first=b"GET / HTTP/1.0"),
    "close": request(b"Connection: close"),
    "listed": request(b"Connection: X-Gone, close", b"X-Gone: 1", b"X-Stays: 2"),
    "absolute": request(first=b"GET http://b:81/c?d=e HTTP/1.1"),
    "asterisk": request(first=b"OPTIONS * HTTP/1.1"),
    "expectation": request(b"Expect: 100-Continue", b"Content-Length: 2", first=b"PUT / HTTP/1.1")
    + b"ok",
    "upgrade": request(b"Connection: Upgrade", b"Upgrade: websocket") + b"\x81\x02hi",
    "declined upgrade": request(b"Connection: Upgrade", b"Upgrade: h2c") + GET,
    "upgrade with a body": request(
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Content-Length: 3",
        first=b"POST / HTTP/1.1",
    )
    + b"abc"
    + GET,
    "two": GET + request(first=b"GET /2 HTTP/1.1"),
    "behind bodies": request(b"Content-Length: 3", first=b"POST / HTTP/1.1")
    + b"abc"
    + CHUNKED
    + b"1\r\nx\r\n0\r\n\r\n"
    + GET,
    "known fields": request(
        b"Via: 1.0 x",
        b"Via: 1.1 y",
        b"X-Forwarded-For: 1.2.3.4",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: h",
        b"X-Request-Id: abc",
        b"TE: trailers, deflate",
        b"Max-Forwards: 3",
    ),
}

BAD = {
    "length and chunked": (400, CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n"),
    "chunked and length": (400, request(b"Content-Length: 3", b"Transfer-Encoding: chunked")),
    "length twice": (400, request(b"Content-Length: 3", b"Content-Length: 3") + b"abc"),
    "lengths": (400, request(b"Content-Length: 3, 3") + b"abc"),
    "negative length": (400, request(b"Content-Length: -1")),
    "signed length": (400, request(b"Content-Length: +1")),
    "empty length": (400, request(b"Content-Length:")),
    "length with a space": (400, request(b"Content-Length: 1 1")),
    "hexadecimal length": (400, request(b"Content-Length: 0x1")),
    "length with an underscore": (400, request(b"Content-Length: 1_0")),
    "enormous length": (400, request(b"Content-Length: 99999999999999999999999")),
    "gzip, chunked": (501, request(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"),
    "chunked, gzip": (400, request(b"Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n"),
    "chunked twice": (400, CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "identity": (501, request(b"Transfer-Encoding: identity")),
    "empty coding": (400, request(b"Transfer-Encoding:")),
    "xchunked": (501, request(b"Transfer-Encoding: xchunked")),
    "coding in 1.0": (400, request(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0")),
    "space before the colon": (400, request(b"Transfer-Encoding : chunked")),
    "folded": (400, request(b"X: a", b" b")),
    "folded first": (400, request(b" X: a", host=b"")),
    "bare LF": (400, GET.replace(b"\r\n", b"\n")),
    "bare LF in a value": (400, request(b"X: a\nY: b")),
    "bare CR in a value": (400, request(b"X: a\rb")),
    "bare CR at the end": (400, b"GET / HTTP/1.1\r\nHost: a\r\rX: b\r\n\r\n"),
    "NUL in a value": (400, request(b"X: a\0b")),
    "NUL in a name": (400, request(b"X\0: a")),
    "NUL in the target": (400, request(first=b"GET /\0 HTTP/1.1")),
    "control in a value": (400, request(b"X: \x01")),
    "no name": (400, request(b": a")),
    "no colon": (400, request(b"X")),
    "space in a name": (400, request(b"X Y: a")),
    "no Host": (400, request(host=b"")),
    "two Hosts": (400, request(b"Host: a")),
    "two Hosts that differ": (400, request(b"host: b")),
    "fragment": (400, request(first=b"GET /a#b HTTP/1.1")),
    "space in the target": (400, request(first=b"GET /a b HTTP/1.1")),
    "no slash": (400, request(first=b"GET a HTTP/1.1")),
    "bytes in the target": (400, request(first=b"GET /\xff HTTP/1.1")),
    "asterisk for GET": (400, request(first=b"GET * HTTP/1.1")),
    "other scheme": (400, request(first=b"GET ftp://a/ HTTP/1.1")),
    "user in the authority": (400, request(first=b"GET http://u:p@a/ HTTP/1.1")),
    "no authority": (400, request(first=b"GET http:///x HTTP/1.1")),
    "absolute without Host": (400, request(first=b"GET http://a/ HTTP/1.1", host=b"")),
    "0.9": (505, b"GET /\r\n\r\n"),
    "0.9 by name": (505, request(first=b"GET / HTTP/0.9")),
    "2.0": (505, request(first=b"GET / HTTP/2.0")),
    "1.2": (400, request(first=b"GET / HTTP/1.2")),
    "1": (400, request(first=b"GET / HTTP/1")),
    "lower case": (400, request(first=b"GET / http/1.1")),
    "space behind the version": (400, request(first=b"GET / HTTP/1.1 ")),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "CONNECT": (501, request(first=b"CONNECT a:443 HTTP/1.1")),
    "CONNECT with a path": (501, request(first=b"CONNECT / HTTP/1.1") + GET),
    "other expectation": (417, request(b"Expect: 200-ok")),
    "two expectations": (417, request(b"Expect: 100-continue", b"Expect: 100-continue")),
    "chunked upgrade": (
        501,
        request(
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Transfer-Encoding: chunked",
            first=b"POST / HTTP/1.1",
        )
        + b"3\r\nabc\r\n0\r\n\r\n",
    ),
    "long target": (414, request(first=b"GET /" + b"a" * 600 + b" HTTP/1.1")),
    "endless target": (414, b"GET /" + b"a" * 3000),
    "many fields": (431, request(*[b"X: 1"] * 21)),
    "long field": (431, request(b"X: " + b"a" * 3000)),
    "long Host": (431, request(host=b"Host: " + b"a" * 3000)),
    "long Via": (431, request(b"Via: " + b"a" * 3000)),
    "long Connection": (431, request(b"Connection: " + b"a, " * 1000)),
    "endless field": (431, b"GET / HTTP/1.1\r\nX: " + b"a" * 5000),
    "endless name": (431, b"GET / HTTP/1.1\r\n" + b"a" * 5000),
    "endless fields": (431, b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 1000),
}

BAD_BODIES = {
    "chunk size with a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "chunk size with 0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size with a space": b"3 \r\nabc\r\n0\r\n\r\n",
    "chunk size with an underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "no chunk size": b"\r\nabc\r\n0\r\n\r\n",
    "enormous chunk size": b"f" * 17 + b"\r\nabc",
    "bare LF behind a chunk size": b"3\nabc\r\n0\r\n\r\n",
    "bare LF behind a chunk extension": b"3;a\nabc\r\n0\r\n\r\n",
    "bare CR in a chunk extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "bare LF behind a chunk": b"3\r\nabc\n0\r\n\r\n",
    "chunk longer than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "chunk shorter than its size": b"3\r\nab\r\n0\r\n\r\n",
    "bare LF at the end": b"0\n\n",
    "trailer without a colon": b"0\r\nX\r\n\r\n",
    "folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "length as a trailer": b"0\r\nContent-Length: 3\r\n\r\n",
    "coding as a trailer": b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
def test_a_good_request_is_the_same_wherever_it_is_split(data: bytes) -> None:
    whole, status = outcome(data)
    assert whole
    assert not status
    for at in range(1, len(data)):
        assert outcome(data[:at], data[at:]) == (whole, 0), data[:at]
    assert outcome(*(data[at : at + 1] for at in range(len(data)))) == (whole, 0)


@pytest.mark.parametrize(("status", "data"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_refused_wherever_it_is_split(status: int, data: bytes) -> None:
    assert refused(data)[0] == status
    step = max(1, len(data) // 300)
    for at in range(1, len(data), step):
        assert outcome(data[:at], data[at:]) == ([], status), data[:at]


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_body_is_refused_wherever_it_is_split(body: bytes) -> None:
    data = CHUNKED + body
    for at in range(1, len(data)):
        parser = parse(data[:at], data[at:])
        assert parser.refusal is not None, data[:at]
        assert parser.refusal.status == 400
        assert not any(found.complete for found in parser.ready), data[:at]


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_request_that_came_with_a_bad_body_is_not_begun(body: bytes) -> None:
    parser = parse(GET + CHUNKED + body)
    assert [found.method for found in parser.ready] == [b"GET"]
    assert parser.refused is not None
    assert parser.refused.method == b"POST"


@pytest.mark.parametrize(("status", "data"), BAD.values(), ids=BAD.keys())
def test_the_good_ones_before_a_bad_one_come_out(status: int, data: bytes) -> None:
    # What has no end is told from a body when there is more of it.
    found, refusal = outcome(GET + GET + data, b"a" * 3000)
    assert [f["method"] for f in found] == [b"GET", b"GET"]
    assert refusal == status


@pytest.mark.parametrize("method", [b"BREW", b"get", b"Get", b"FOO-BAR", b"X"])
def test_an_unknown_method_is_not_implemented(method: bytes) -> None:
    assert refused(request(first=method + b" / HTTP/1.1"))[0] == 501


def test_nothing_is_taken_behind_a_refusal() -> None:
    parser = parse(request(host=b""), GET, GET)
    assert parser.refusal is not None
    assert not parser.ready


def test_hundreds_of_requests_in_one_segment_all_come_out() -> None:
    found, status = outcome(GET * 2000)
    assert len(found) == 2000
    assert not status


def test_hundreds_of_declined_upgrades_in_one_segment_all_come_out() -> None:
    data = request(b"Connection: Upgrade", b"Upgrade: h2c")
    found, status = outcome(data * 1000)
    assert len(found) == 1000
    assert not status


def test_what_is_behind_an_upgrade_is_kept_until_it_is_decided() -> None:
    parser = parse(GOOD["upgrade"], b"more")
    assert parser.ready[0].upgrade == b"websocket"
    assert parser.more
    assert parser.take_rest() == b"\x81\x02himore"


def test_behind_a_declined_upgrade_there_are_requests() -> None:
    parser = parse(request(b"Connection: Upgrade", b"Upgrade: websocket") + GET, GET)
    assert len(parser.ready) == 1
    parser.resume()
    assert len(parser.ready) == 3


@pytest.mark.parametrize("protocols", [b"h2c", b"H2C", b"websocket, h2c", b"h2c,websocket"])
def test_h2c_is_not_asked_for(protocols: bytes) -> None:
    assert not only(request(b"Connection: Upgrade", b"Upgrade: " + protocols)).upgrade


def test_the_authority_of_an_absolute_target_wins_over_host() -> None:
    found = only(request(first=b"GET http://B.example:81/c?d HTTP/1.1"))
    assert (found.host, found.target) == (b"B.example:81", b"/c?d")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://b", b"/"),
        (b"http://b?x", b"/?x"),
        (b"HTTP://b/?", b"/?"),
        (b"https://b/a//b", b"/a//b"),
        (b"http://b/a;b=c?d=http://e/", b"/a;b=c?d=http://e/"),
    ],
)
def test_an_absolute_target_is_forwarded_as_a_path(target: bytes, path: bytes) -> None:
    assert only(request(first=b"GET " + target + b" HTTP/1.1")).target == path


def test_options_for_a_whole_server_stays_so() -> None:
    assert only(request(first=b"OPTIONS http://b HTTP/1.1")).target == b"*"


@pytest.mark.parametrize(
    "name",
    [
        b"Connection: close",
        b"Keep-Alive: 5",
        b"Proxy-Connection: x",
        b"TE: gzip",
        b"Upgrade: websocket",
        b"HTTP2-Settings: x",
        b"Forwarded: for=1.2.3.4",
        b"X_Forwarded_For: 1.2.3.4",
        b"X-Forwarded_For: 1.2.3.4",
        b"Content_Length: 5",
        b"Transfer_Encoding: chunked",
    ],
)
def test_what_concerns_one_connection_or_imitates_it_is_not_forwarded(name: bytes) -> None:
    found = only(request(name, b"X: stays"))
    assert found.fields == [(b"X", b"stays")]
    assert not found.has_body


def test_fields_that_connection_lists_are_not_forwarded() -> None:
    data = request(b"X-A: 1", b"Connection: x-a,X-B , ,close", b"x-b: 2", b"X-C: 3")
    assert only(data).fields == [(b"X-C", b"3")]


def test_connection_cannot_list_away_what_the_proxy_needs() -> None:
    data = request(
        b"Connection: Host, Content-Length, X-Forwarded-For, X-Request-Id",
        b"Content-Length: 2",
        b"X-Forwarded-For: 1.2.3.4",
        first=b"POST / HTTP/1.1",
    )
    found = only(data + b"ok")
    assert (found.host, found.length, found.forwarded_for) == (b"a", 2, b"1.2.3.4")


def test_a_head_as_long_as_it_may_be_is_taken() -> None:
    longest = request(b"X: " + b"a" * (LISTEN.max_head - len(request(b"X: "))))
    too_long = longest.replace(b"X: ", b"X: a")
    for at in range(1, LISTEN.max_head):
        assert len(outcome(longest[:at], longest[at:])[0]) == 1
        assert outcome(too_long[:at], too_long[at:]) == ([], 431)


def test_a_head_that_comes_in_byte_by_byte_is_bounded() -> None:
    parser = RequestParser(LISTEN)
    fed = 0
    for byte in b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000:
        parser.feed(bytes([byte]))
        fed += 1
        if parser.refusal is not None:
            break
    assert fed <= LISTEN.max_head + len(b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize("endless", [b"X: y\r\n", b"y", b"X: " + b"y" * 500])
def test_trailers_are_bounded(endless: bytes) -> None:
    parser = parse(CHUNKED + b"1\r\na\r\n0\r\n")
    parser.ready[0].chunks.clear()  # as an exchange takes them
    for _ in range(10_000):
        parser.feed(endless)
        if parser.refusal is not None:
            break
    assert parser.refusal is not None
    assert parser.refusal.status in (400, 431)
    assert len(parser.ready[0].trailers) < 2 * LISTEN.max_head


def test_a_body_in_many_small_chunks_is_no_trailer() -> None:
    parser = parse(CHUNKED)
    (found,) = parser.ready
    for _ in range(5000):
        parser.feed(b"1\r\na\r\n")
        found.chunks.clear()
    parser.feed(b"0\r\n\r\n")
    assert parser.refusal is None
    assert found.complete
    assert found.received == 5000


@given(st.lists(st.binary(max_size=60), max_size=20))
@settings(deadline=None)
def test_random_bytes_end_in_requests_or_a_refusal(pieces: list[bytes]) -> None:
    parser = parse(*pieces)
    parser.feed(b"\r\n\r\n")
    assert parser.refusal is not None or not parser.in_head


WORDS = [
    b"GET ", b"POST ", b"/", b"*", b"http://a/", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"Host: a\r\n",
    b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n",
    b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"X: y\r\n", b"\n", b"\r", b"\0", b" ", GET,
    CHUNKED, b"Expect: 100-continue\r\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=30), st.data())
@settings(deadline=None, max_examples=300)
def test_pieces_of_requests_mean_the_same_wherever_they_are_split(
    words: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(words)
    at = data.draw(st.integers(0, len(whole)))
    one, one_status = complete(parse(whole))
    two, two_status = complete(parse(whole[:at], whole[at:]))
    assert one == two
    assert bool(one_status) == bool(two_status)


def complete(parser: RequestParser) -> tuple[list[dict[str, Any]], int]:
    """The complete requests, declined upgrades and what is behind them included."""
    while parser.ready and parser.ready[-1].upgrade and parser.more and parser.refusal is None:
        before = len(parser.ready)
        parser.resume()
        if len(parser.ready) == before:
            break
    status = parser.refusal.status if parser.refusal is not None else 0
    return [said(found) for found in parser.ready if found.complete], status
