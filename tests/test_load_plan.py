"""The plan of a load run: what is accepted, and the bytes of its requests."""

from __future__ import annotations

from typing import Any

import pytest
from httptools import HttpRequestParser

from awesomeproxy.load.plan import (
    Plan,
    PlanError,
    RequestWriter,
    body_check,
    parse_statuses,
)

URL = "http://shop.example:8080/orders/{n}?page={n}"


class Parsed:
    """A request as a server reads it."""

    def __init__(self, data: bytes) -> None:
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.complete = False
        parser = HttpRequestParser(self)
        parser.feed_data(data)
        self.method = parser.get_method()

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


@pytest.mark.parametrize("n", [0, 9, 10, 12345])
def test_the_number_is_put_into_path_header_and_body(n: int) -> None:
    plan = Plan(URL, method="PUT", headers=(("X-Order", "no {n}"),), body=b"{n},{n};")
    request = Parsed(RequestWriter(plan)(n))
    assert request.complete
    assert (request.method, request.target) == (b"PUT", b"/orders/%d?page=%d" % (n, n))
    assert request.headers[b"x-order"] == b"no %d" % n
    assert request.body == b"%d,%d;" % (n, n)
    assert int(request.headers[b"content-length"]) == len(request.body)


def test_the_host_comes_from_the_url_unless_a_header_says_otherwise() -> None:
    assert Parsed(RequestWriter(Plan(URL))(1)).headers[b"host"] == b"shop.example:8080"
    named = Plan(URL, headers=(("host", "s{n}.example"),))
    assert RequestWriter(named)(1).lower().count(b"host:") == 1
    assert Parsed(RequestWriter(named)(1)).headers[b"host"] == b"s1.example"


def test_a_get_has_no_length_and_an_empty_post_has_one() -> None:
    assert b"content-length" not in Parsed(RequestWriter(Plan(URL))(0)).headers
    empty = Parsed(RequestWriter(Plan(URL, method="POST"))(0))
    assert empty.headers[b"content-length"] == b"0"


def test_the_path_is_quoted_once() -> None:
    request = Parsed(RequestWriter(Plan("http://a/b c/é/%20?q=ü v"))(0))
    assert request.target == b"/b%20c/%C3%A9/%20?q=%C3%BC%20v"


@pytest.mark.parametrize(
    ("rate", "seconds", "count"), [(333, 0.3, 100), (10, 180, 1800), (0, 5, 0)]
)
def test_an_open_loop_knows_how_many_requests_it_sends(
    rate: float, seconds: float, count: int
) -> None:
    assert Plan(URL, rate=rate, duration=seconds).count == count


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"url": "ftp://a/"}, "http://host"),
        ({"url": "shop.example"}, "http://host"),
        ({"url": "http://a:99999/"}, "cannot be read"),
        ({"url": "http://me:secret@a/"}, "Authorization"),
        ({"url": "http://s{n}.a/"}, "Host"),
        ({"rate": -1}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": 0.1, "duration": 1}, "not one request"),
        ({"duration": 0}, "duration"),
        ({"timeout": 0}, "timeout"),
        ({"connections": 0}, "connections"),
        ({"method": "GET /"}, "method"),
        ({"method": "CONNECT"}, "method"),
        ({"headers": (("A B", "c"),)}, "header name"),
        ({"headers": (("A", "b\r\nC: d"),)}, "line break"),
        ({"headers": (("A", "\u20ac"),)}, "8859-1"),
        ({"headers": (("Content-Length", "3"),)}, "from the body"),
        ({"expect_body": "/(/"}, "regular expression"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        Plan(**{"url": URL, **changed})


def test_host_and_port_are_those_of_the_url() -> None:
    assert (Plan(URL).host, Plan(URL).port, Plan(URL).tls) == ("shop.example", 8080, False)
    assert (Plan("https://[::1]/").host, Plan("https://[::1]/").port) == ("::1", 443)


@pytest.mark.parametrize(
    ("text", "statuses"),
    [
        ("200", {200}),
        ("200,404", {200, 404}),
        ("2xx", set(range(200, 300))),
        ("200-202, 503", {200, 201, 202, 503}),
    ],
)
def test_statuses_are_written_in_lists_hundreds_and_ranges(text: str, statuses: set[int]) -> None:
    assert parse_statuses(text) == statuses


@pytest.mark.parametrize("text", ["", "ok", "2x", "200-", "300-200", "99"])
def test_other_statuses_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match="expected status"):
        parse_statuses(text)


@pytest.mark.parametrize(
    ("expect", "body", "good"),
    [
        ("order {n}.", b"<p>order 7.</p>", True),
        ("order {n}.", b"<p>order 77</p>", False),
        ("a.c", b"abc", False),
        ("/a.c/", b"abc", True),
        ("/^order {n}$/", b"order 7", True),
        ("/^order {n}$/", b"order 8", False),
        ("/", b"a/b", True),
    ],
)
def test_a_body_is_checked_for_a_text_or_a_regular_expression(
    expect: str, body: bytes, good: bool
) -> None:
    check = body_check(expect)
    assert check is not None
    assert check(7, body) is good


def test_without_an_expectation_there_is_no_check() -> None:
    assert body_check("") is None
