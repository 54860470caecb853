"""What comes out of the response parser for what a server sends, however it is cut up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awesomeproxy.proxy.responses import MAX_HEAD, BadResponse, Response, ResponseParser

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SWITCH = b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def response(*fields: bytes, first: bytes = b"HTTP/1.1 200 OK", body: bytes = b"") -> bytes:
    return b"\r\n".join([first, *fields, b"", body])


def said(found: Response) -> dict[str, Any]:
    """All there is to know of a response, in whatever pieces its body came."""
    names = [n for n, v in vars(Response).items() if not n.startswith("_") and not callable(v)]
    return {
        **{name: getattr(found, name) for name in names},
        "fields": found.fields,
        "trailers": found.trailers,
        "body": b"".join(found.chunks),
    }


def parse(*pieces: bytes, head_only: bool = False) -> tuple[ResponseParser, str]:
    """A parser that was fed, and the fault it found at last."""
    parser = ResponseParser()
    parser.expect(head_only)
    for piece in filter(None, pieces):
        try:
            parser.feed(piece)
        except BadResponse as bad:
            return parser, str(bad)
    return parser, ""


def outcome(*pieces: bytes, head_only: bool = False) -> tuple[Any, ...]:
    parser, fault = parse(*pieces, head_only=head_only)
    interim = [said(found) for found in parser.interim]
    return interim, said(parser.response), parser.rest, bool(fault)


GOOD = {
    "length": OK,
    "no body": response(b"Content-Length: 0"),
    "no reason": response(b"Content-Length: 0", first=b"HTTP/1.1 200"),
    "own reason": response(b"Content-Length: 0", first=b"HTTP/1.1 299 Ganz sch\xf6n\tgut"),
    "fields": response(b"Content-Length: 0", b"Set-Cookie: a=b", b"Set-Cookie: c=d", b"X:"),
    "chunked": CHUNKED + b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
    "until the end": response(body=b"all that comes"),
    "1.0": response(b"Content-Length: 2", first=b"HTTP/1.0 200 OK", body=b"ok"),
    "1.0 kept alive": response(
        b"Content-Length: 2", b"Connection: keep-alive", first=b"HTTP/1.0 200 OK", body=b"ok"
    ),
    "close": response(b"Content-Length: 2", b"Connection: close", body=b"ok"),
    "keep-alive": response(b"Content-Length: 0", b"Keep-Alive: timeout=7, max=5"),
    "listed": response(b"Connection: X-Gone", b"X-Gone: 1", b"X: 2", b"Content-Length: 0"),
    "no content": response(first=b"HTTP/1.1 204 No Content"),
    "not modified": response(b"Content-Length: 5", first=b"HTTP/1.1 304 Not Modified"),
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
    "switched": SWITCH + b"\x81\x02hi",
    "empty line before it": b"\r\n" + OK,
    "upgrade offered": response(b"Connection: Upgrade", b"Upgrade: h2", b"Content-Length: 0"),
}

BAD = {
    "length and chunked": response(b"Content-Length: 2", b"Transfer-Encoding: chunked"),
    "chunked and length": response(b"Transfer-Encoding: chunked", b"Content-Length: 2"),
    "two lengths": response(b"Content-Length: 2", b"Content-Length: 3", body=b"abc"),
    "length twice": response(b"Content-Length: 2", b"Content-Length: 2", body=b"ok"),
    "lengths": response(b"Content-Length: 2, 2", body=b"ok"),
    "negative length": response(b"Content-Length: -2"),
    "empty length": response(b"Content-Length:"),
    "gzip": response(b"Transfer-Encoding: gzip", body=b"x"),
    "gzip, chunked": response(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "chunked, gzip": response(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "coding in 1.0": response(b"Transfer-Encoding: chunked", first=b"HTTP/1.0 200 OK"),
    "2.0": response(first=b"HTTP/2.0 200 OK"),
    "0.9": response(first=b"HTTP/0.9 200 OK"),
    "no HTTP": b"hello\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "no status": response(first=b"HTTP/1.1 OK"),
    "short status": response(first=b"HTTP/1.1 20 OK"),
    "long status": response(first=b"HTTP/1.1 2000 OK"),
    "status 000": response(first=b"HTTP/1.1 000 OK"),
    "status 099": response(first=b"HTTP/1.1 099 OK"),
    "NUL in the reason": response(b"Content-Length: 0", first=b"HTTP/1.1 200 O\0K"),
    "CR in the reason": response(first=b"HTTP/1.1 200 O\rK"),
    "bare LF": OK.replace(b"\r\n", b"\n"),
    "folded": response(b"X: a", b" b"),
    "space before the colon": response(b"X : a"),
    "NUL in a value": response(b"X: \0"),
    "interim with a length": response(b"Content-Length: 1", first=b"HTTP/1.1 100 C", body=b"x"),
    "interim in chunks": response(b"Transfer-Encoding: chunked", first=b"HTTP/1.1 102 P"),
    "bad chunk": CHUNKED + b"x\r\n",
    "length as a trailer": CHUNKED + b"0\r\nContent-Length: 3\r\n\r\n",
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
def test_a_good_response_is_the_same_wherever_it_is_split(data: bytes) -> None:
    whole = outcome(data)
    assert not whole[-1]
    assert whole[1]["head_complete"]
    for at in range(1, len(data)):
        found = outcome(data[:at], data[at:])
        if found[1]["status"] == 101:  # what follows belongs to the new protocol
            assert found[1] == whole[1]
        else:
            assert found == whole, data[:at]


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_a_bad_response_is_one_wherever_it_is_split(data: bytes) -> None:
    assert parse(data)[1]
    for at in range(1, len(data)):
        parser, fault = parse(data[:at], data[at:])
        assert fault, data[:at]
        assert not parser.response.complete


@pytest.mark.parametrize(
    ("data", "head_only"),
    [
        (OK, False),
        (GOOD["chunked"], False),
        (GOOD["trailers"], False),
        (GOOD["no content"], False),
        (GOOD["not modified"], False),
        (GOOD["close"], False),
        (response(b"Content-Length: 2"), True),
        (CHUNKED, True),
        (response(), True),
    ],
)
@pytest.mark.parametrize("excess", [b"x", b"excess", OK, b"0\r\n\r\n", b"\0"])
def test_what_exceeds_a_response_is_a_fault_and_not_part_of_it(
    data: bytes, head_only: bool, excess: bytes
) -> None:
    whole = outcome(data, head_only=head_only)[1]
    assert whole["complete"]
    for at in range(1, len(data) + 1):
        parser, fault = parse(data[:at], data[at:] + excess, head_only=head_only)
        assert fault
        assert said(parser.response) == whole


def test_a_response_that_was_not_asked_for_is_a_fault() -> None:
    parser, fault = parse(OK)
    assert not fault
    with pytest.raises(BadResponse, match="nobody asked"):
        parser.feed(OK)
    with pytest.raises(BadResponse, match="nobody asked"):
        ResponseParser().feed(OK)


@pytest.mark.parametrize("data", [OK, GOOD["chunked"], GOOD["no content"], GOOD["interim"]])
def test_one_connection_carries_many_responses(data: bytes) -> None:
    parser = ResponseParser()
    for _ in range(3):
        parser.expect(False)
        parser.feed(data)
        assert parser.response.complete
        assert parser.response.keep_alive


def test_a_response_to_head_has_no_body_and_the_next_one_may() -> None:
    parser = ResponseParser()
    for head in (response(b"Content-Length: 2"), CHUNKED, response()):
        parser.expect(True)
        parser.feed(head)
        assert parser.response.complete
        parser.expect(False)
        parser.feed(OK)
        assert parser.response.chunks == [b"ok"]


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (OK, True),
        (GOOD["1.0"], False),
        (GOOD["1.0 kept alive"], True),
        (GOOD["close"], False),
        (GOOD["until the end"], False),
        (GOOD["keep-alive"], True),
    ],
)
def test_whether_the_connection_is_kept_alive(data: bytes, kept: bool) -> None:
    assert parse(data)[0].response.keep_alive is kept


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        (b"Keep-Alive: timeout=7, max=5", 7),
        (b"Keep-Alive: max=5,Timeout=7", 7),
        (b"Keep-Alive: timeout=0", 0),
        (b"Keep-Alive: timeout=x", -1),
        (b"X: y", -1),
    ],
)
def test_what_a_server_says_of_its_patience_is_heard(field: bytes, seconds: float) -> None:
    data = response(b"Content-Length: 0", field)
    assert parse(data)[0].response.keep_alive_timeout == seconds


def test_a_body_until_the_end_is_complete_when_the_connection_ends() -> None:
    parser, _ = parse(GOOD["until the end"])
    assert not parser.response.complete
    assert parser.close()
    assert b"".join(parser.response.chunks) == b"all that comes"


@pytest.mark.parametrize("data", [OK[:-1], GOOD["chunked"][:-1], OK[:20], b""])
def test_any_other_response_that_ends_with_the_connection_is_not_complete(data: bytes) -> None:
    assert not parse(data)[0].close()


def feed_for_ever(parser: ResponseParser, piece: bytes) -> int:
    """Feed it until that is a fault; return how many bytes it took."""
    for fed in range(len(piece), 2 * MAX_HEAD, len(piece)):
        try:
            parser.feed(piece)
        except BadResponse:
            return fed
        parser.interim.clear()
    raise AssertionError("there is no bound")


@pytest.mark.parametrize("endless", [b"X: y\r\n", b"X: " + b"y" * 1000 + b"\r\n", b"y" * 1000])
def test_a_head_is_bounded(endless: bytes) -> None:
    parser, fault = parse(b"HTTP/1.1 200 OK\r\n")
    fed = feed_for_ever(parser, endless)
    assert not fault
    assert fed <= MAX_HEAD + len(endless)


def test_interim_responses_are_bounded() -> None:
    parser, _ = parse()
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    fed = feed_for_ever(parser, interim)
    assert fed <= MAX_HEAD + len(interim)


@pytest.mark.parametrize("endless", [b"X: y\r\n", b"y" * 1000])
def test_trailers_are_bounded(endless: bytes) -> None:
    parser, _ = parse(CHUNKED + b"1\r\na\r\n0\r\n")
    parser.response.chunks.clear()
    fed = feed_for_ever(parser, endless)
    assert fed <= MAX_HEAD + len(endless)


def test_a_body_is_not_bounded() -> None:
    parser, _ = parse(CHUNKED)
    for _ in range(200):
        parser.feed(b"400\r\n" + b"a" * 1024 + b"\r\n")
        parser.response.chunks.clear()
    parser.feed(b"0\r\n\r\n")
    assert parser.response.complete


@given(st.lists(st.binary(max_size=60), max_size=10), st.booleans())
@settings(deadline=None)
def test_random_bytes_are_no_response(pieces: list[bytes], head_only: bool) -> None:
    parser, _ = parse(*pieces, head_only=head_only)
    assert not parser.response.complete


PIECES = [
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 204 N\r\n", b"HTTP/1.1 100 C\r\n", b"HTTP/1.0 200 OK\r\n",
    b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n",
    b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n", b"X: y\r\n", b"\n", b"\0", b"HTTP/1.1 101 S\r\n", OK, CHUNKED,
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=15), st.booleans(), st.data())
@settings(deadline=None, max_examples=300)
def test_pieces_of_responses_mean_the_same_wherever_they_are_split(
    pieces: list[bytes], head_only: bool, data: st.DataObject
) -> None:
    whole = b"".join(pieces)
    at = data.draw(st.integers(0, len(whole)))
    one, fault = parse(whole, head_only=head_only)
    two, other = parse(whole[:at], whole[at:], head_only=head_only)
    if one.response.status != 101:
        assert bool(fault) == bool(other)
    if one.response.complete:
        assert said(one.response) == said(two.response)
