"""What a load run is to do, and the bytes of each of its requests.

A :class:`Plan` is a frozen value; making one checks it, so that a mistake shows
before the first request and not after three minutes.  ``{n}`` in the path, in a
header or in the body stands for the number of the request (0, 1, 2, ...), which
makes every request a different one: what was acknowledged can be looked up on
the server afterwards, and what was carried out twice shows.

:class:`RequestWriter` builds the bytes.  It must cost next to nothing, so the
whole request is cut at each ``{n}`` beforehand and is only joined by the number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

EXPECTED = frozenset(range(200, 400))

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_NUMBER = "{n}"
_MOST_DIGITS = 12
_SENDS_LENGTH = frozenset({"POST", "PUT", "PATCH"})  # RFC 9110 section 8.6: even when empty


class PlanError(ValueError):
    """The run as described cannot be done; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One load run.  Times are seconds.

    ``rate`` is requests a second, open loop: they are due at fixed moments, whether or
    not earlier ones have been answered.  ``rate = 0`` is a closed loop: each of the
    ``connections`` sends its next request when the last one is answered.
    """

    url: str
    rate: float = 100.0
    duration: float = 10.0
    connections: int = 256  # open at the same time, at most
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    timeout: float = 30.0  # per request, from when it was due
    expect: frozenset[int] = EXPECTED  # statuses
    expect_body: str = ""  # a text the body contains, or a regular expression between slashes
    unix: str = ""  # connect to this Unix socket instead of the URL's host and port
    insecure: bool = False  # https: accept any certificate

    def __post_init__(self) -> None:
        """:raises PlanError: if it cannot be done."""
        for name in ("rate", "duration", "timeout"):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or (name != "rate" and value == 0):
                raise PlanError(f"{name} is {value}: give a number of at least 0")
        if self.connections < 1:
            raise PlanError(f"connections is {self.connections}: at least 1 is needed")
        if self.rate and not self.count:
            raise PlanError(f"{self.rate:g} requests/s for {self.duration:g} s is not one request")
        if not _TOKEN.fullmatch(self.method) or self.method == "CONNECT":
            raise PlanError(f"the method {self.method!r} cannot be sent")
        for name, value in self.headers:
            _check_header(name, value)
        _check_url(self.url)
        body_check(self.expect_body)

    @property
    def count(self) -> int:
        """How many requests an open loop sends; 0 for a closed loop, which sends what it can."""
        return round(self.rate * self.duration)

    @property
    def tls(self) -> bool:
        """Whether the URL asks for TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def host(self) -> str:
        """The host name or address to connect to."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port to connect to."""
        return urlsplit(self.url).port or (443 if self.tls else 80)

    def __str__(self) -> str:
        return f"{self.method} {self.url}"


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise PlanError(f"the URL {url!r} cannot be read: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PlanError(f"the URL {url!r} is not of the form http://host[:port]/path (or https)")
    if port == 0:
        raise PlanError(f"the URL {url!r} has port 0, which nothing can listen on")
    if "@" in parts.netloc:
        raise PlanError("the URL has a user name in it: send an Authorization header instead")
    if _NUMBER in parts.netloc:
        raise PlanError("{n} cannot be in the URL's host: put it into --header 'Host: ...'")


def _check_header(name: str, value: str) -> None:
    if not _TOKEN.fullmatch(name.replace(_NUMBER, "0")):
        raise PlanError(f"the header name {name!r} is not one: write 'Name: value'")
    if name.lower() in ("content-length", "transfer-encoding"):
        raise PlanError(f"the header {name} is set from the body: leave it out")
    if any(c in value for c in "\r\n\0"):
        raise PlanError(f"the value of the header {name} has a line break or NUL in it")
    try:
        value.encode("latin-1")
    except UnicodeEncodeError as error:
        raise PlanError(f"the value of the header {name} is not ISO 8859-1") from error


class RequestWriter:
    """Builds request ``n`` of a plan."""

    def __init__(self, plan: Plan) -> None:
        # The length of the body depends on n only through the number of its digits.
        self._pieces = tuple(
            (_head(plan, digits) + plan.body).split(_NUMBER.encode())
            for digits in range(_MOST_DIGITS + 1)
        )

    def __call__(self, n: int) -> bytes:
        """The bytes of request ``n``, head and body."""
        number = b"%d" % n
        return number.join(self._pieces[len(number)])


def _head(plan: Plan, digits: int) -> bytes:
    parts = urlsplit(plan.url)
    # What is already quoted stays as it is, and so do the braces of {n}.
    target = quote(parts.path or "/", safe="/%{}~:@!$&'()*+,;=")
    if parts.query:
        target += "?" + quote(parts.query, safe="/%{}~:@!$&'()*+,;=?")
    given = {name.lower() for name, _ in plan.headers}
    lines = [f"{plan.method} {target} HTTP/1.1"]
    for name, value in (("Host", parts.netloc), ("User-Agent", "awesomeproxy-load")):
        if name.lower() not in given:
            lines.append(f"{name}: {value}")
    lines += [f"{name}: {value}" for name, value in plan.headers]
    if plan.body or plan.method in _SENDS_LENGTH:
        numbers = plan.body.count(_NUMBER.encode())
        lines.append(f"Content-Length: {len(plan.body) + numbers * (digits - len(_NUMBER))}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def body_check(expect: str) -> Callable[[int, bytes], bool] | None:
    """What tells whether the body of response ``n`` is the expected one.

    :param expect: a text the body must contain, or ``/regular expression/``.
    :returns: nothing if any body will do.
    :raises PlanError: if the regular expression is not one.
    """
    if not expect:
        return None
    if not (len(expect) > 2 and expect.startswith("/") and expect.endswith("/")):
        pieces = expect.encode().split(_NUMBER.encode())
        return lambda n, body: (b"%d" % n).join(pieces) in body
    source = expect[1:-1].encode()
    try:
        pattern = re.compile(source.replace(b"{n}", b"0"))
    except re.error as error:
        raise PlanError(f"expected body: {expect} is no regular expression: {error}") from error
    if b"{n}" not in source:
        return lambda n, body: pattern.search(body) is not None
    return lambda n, body: re.search(source.replace(b"{n}", b"%d" % n), body) is not None


def parse_statuses(text: str) -> frozenset[int]:
    """``"200,404"``, ``"2xx"``, ``"200-299,503"`` as the set of statuses they mean.

    :raises PlanError: if it is none of these.
    """
    statuses: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:([1-5])xx|([1-9]\d\d)(?:-([1-9]\d\d))?)\s*", part)
        if match is None:
            raise PlanError(f"expected status {part!r}: write 200, 2xx or 200-299, with commas")
        hundred, first, last = match.groups()
        if hundred:
            statuses.update(range(int(hundred) * 100, int(hundred) * 100 + 100))
        else:
            statuses.update(range(int(first), int(last or first) + 1))
    if not statuses:
        raise PlanError(f"expected status {text!r}: the range is empty")
    return frozenset(statuses)
