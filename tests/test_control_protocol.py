"""Lines and requests, taken apart without a reactor."""

from __future__ import annotations

import json

import pytest

from awesomeproxy.control.protocol import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    PARSE_ERROR,
    BadLine,
    Lines,
    LineTooLong,
    Request,
    notification_line,
    read_request,
    request_line,
    result_line,
)

STREAM = b'{"a":1}\n\n{"b":"\xc3\xa9"}\r\nrest'
WHOLE = [b'{"a":1}', b"", b'{"b":"\xc3\xa9"}\r']


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_lines_are_the_same_wherever_the_stream_is_cut(cut: int) -> None:
    lines = Lines()
    assert [*lines.feed(STREAM[:cut]), *lines.feed(STREAM[cut:])] == WHOLE


def test_lines_are_the_same_byte_by_byte() -> None:
    lines = Lines()
    assert [line for byte in STREAM for line in lines.feed(bytes([byte]))] == WHOLE


def test_a_line_may_be_as_long_as_the_limit() -> None:
    assert list(Lines(4).feed(b"abcd\n")) == [b"abcd"]


@pytest.mark.parametrize("cut", range(6))
def test_a_longer_line_is_refused_before_its_end_is_seen(cut: int) -> None:
    lines = Lines(4)
    with pytest.raises(LineTooLong, match="a line is longer than 4 bytes"):
        list(lines.feed(b"abcde"[:cut])) + list(lines.feed(b"abcde"[cut:]))


def test_the_lines_before_one_that_is_too_long_are_had() -> None:
    lines = Lines(4).feed(b"ab\ncd\nefghijk")
    assert [next(lines), next(lines)] == [b"ab", b"cd"]
    with pytest.raises(LineTooLong):
        next(lines)


def test_a_request_is_read_as_it_was_written() -> None:
    line = request_line(7, "pause", {"site": "blög"})
    assert line.endswith(b"\n")
    assert read_request(line) == Request(7, "pause", {"site": "blög"})


def test_a_request_needs_no_params() -> None:
    assert read_request(b'{"jsonrpc":"2.0","id":"a","method":"status"}') == Request(
        "a", "status", {}
    )


BAD = [
    (b"hello", None, PARSE_ERROR, "not a line of JSON: Expecting value"),
    (b"\xff\xfe", None, PARSE_ERROR, "not a line of JSON: 'utf-8' codec can't decode"),
    (b'{"jsonrpc":"2.0","id":1', None, PARSE_ERROR, "not a line of JSON"),
    (b"[" * 100_000, None, PARSE_ERROR, "not a line of JSON: nested too deeply"),
    (b'{"id":NaN}', None, PARSE_ERROR, "not a line of JSON: NaN is not JSON"),
    (b'{"id":"\\ud800"}', None, PARSE_ERROR, "surrogates not allowed"),
    (b"1" * 5000, None, PARSE_ERROR, "not a line of JSON"),
    (b"[]", None, INVALID_REQUEST, "batches are not supported: send one request object a line"),
    (b"3", None, INVALID_REQUEST, "a request is a JSON object"),
    (b"null", None, INVALID_REQUEST, "a request is a JSON object"),
    (b'{"id":1,"method":"x"}', 1, INVALID_REQUEST, 'a request has "jsonrpc": "2.0"'),
    (b'{"jsonrpc":2.0,"id":1,"method":"x"}', 1, INVALID_REQUEST, '"jsonrpc": "2.0"'),
    (b'{"jsonrpc":"2.0","method":"x"}', None, INVALID_REQUEST, 'a request has an "id"'),
    (b'{"jsonrpc":"2.0","id":null,"method":"x"}', None, INVALID_REQUEST, 'has an "id"'),
    (b'{"jsonrpc":"2.0","id":true,"method":"x"}', None, INVALID_REQUEST, 'has an "id"'),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"x"}', None, INVALID_REQUEST, 'has an "id"'),
    (b'{"jsonrpc":"2.0","id":[],"method":"x"}', None, INVALID_REQUEST, 'has an "id"'),
    (b'{"jsonrpc":"2.0","id":1}', 1, INVALID_REQUEST, 'a request has a "method", a string'),
    (b'{"jsonrpc":"2.0","id":1,"method":5}', 1, INVALID_REQUEST, 'has a "method", a string'),
    (
        b'{"jsonrpc":"2.0","id":"a","method":"x","params":["blog"]}',
        "a",
        INVALID_PARAMS,
        '"params" are given by name, in an object',
    ),
    (
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":"blog"}',
        1,
        INVALID_REQUEST,
        '"params" is an object',
    ),
]


@pytest.mark.parametrize(("line", "id", "code", "message"), BAD)
def test_what_is_no_request_is_told_why(
    line: bytes, id: int | str | None, code: int, message: str
) -> None:
    with pytest.raises(BadLine) as caught:
        read_request(line)
    assert message in caught.value.message
    assert (caught.value.id, caught.value.code) == (id, code)


def test_a_message_is_one_line_whatever_is_in_it() -> None:
    line = notification_line("event", {"message": "two\nlines\u2028"})
    assert line.count(b"\n") == 1
    assert json.loads(line)["params"] == {"message": "two\nlines\u2028"}


@pytest.mark.parametrize("result", [float("nan"), object(), {1, 2}])
def test_a_result_that_is_not_json_is_not_written(result: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        result_line(1, result)
