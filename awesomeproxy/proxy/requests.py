"""Requests: bytes from a client in, :class:`Request` objects out.  No I/O.

The parsing is llhttp's, through httptools, in its strict mode.  What it lets
through and RFC 9112 does not is refused here: a missing or second ``Host``,
HTTP/0.9, HTTP/2 as a version, ``Transfer-Encoding`` from an HTTP/1.0 client or
with any coding but ``chunked``, a fragment in the target.

Fields are kept as they came, save those that concern only this
connection (RFC 9110, section 7.6.1) or that the proxy writes itself.  The head of
the forwarded request is put together in :mod:`awesomeproxy.proxy.heads`.

A parser is fed whatever arrives; requests come out in :attr:`RequestParser.ready`
as soon as their head is complete, and their bodies follow.  What is wrong ends up
in :attr:`RequestParser.refusal`, behind the requests that came before it.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from awesomeproxy.model import Listen
from awesomeproxy.proxy.fields import (
    OWS,
    Field,
    Kinds,
    find,
    names_in,
    size_of,
    without,
)

# Fields that do not travel as they came.
SPECIAL = frozenset(
    b"host connection content-length transfer-encoding upgrade expect te keep-alive"
    b" proxy-connection via forwarded x-forwarded-for x-forwarded-proto x-forwarded-host"
    b" x-request-id max-forwards http2-settings".split()
)
KINDS = Kinds(SPECIAL)
PLAIN = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close"))  # values of Connection

HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?\Z")
OVERHEAD = 1024  # bytes of memory that a request takes beside its fields and its body
END = b"\r\n\r\n"  # of a head; or it is in a body
REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ \S+ HTTP/")
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is answered by the proxy, and with what status."""

    status: int
    reason: str


class Request:
    """One request.  ``chunks`` holds what has arrived of its body and was not taken yet."""

    method = b""
    target = b""
    version = b"1.1"
    host: bytes | None = None  # the Host field as it came, or the target's authority
    connection: bytes | None = None
    length = -1  # Content-Length; -1: none
    chunked = False
    keep_alive = True
    expects_continue = False
    upgrade = b""  # the Upgrade field of a request that asks to switch protocols
    te_trailers = False
    max_forwards: bytes | None = None
    forwarded_for: bytes | None = None
    forwarded_proto: bytes | None = None
    forwarded_host: bytes | None = None
    request_id = b""  # X-Request-Id: from a trusted proxy, or made for it
    via: bytes | None = None
    received = 0  # bytes of the body that have arrived
    complete = False  # the whole body has arrived

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self.trailers: list[Field] = []
        self.chunks: list[bytes] = []

    def __repr__(self) -> str:
        return f"<Request {self.method.decode()} {self.target.decode('latin-1')}>"

    @property
    def has_body(self) -> bool:
        """Whether a body comes with it, be it empty."""
        return self.chunked or self.length > 0

    @property
    def idempotent(self) -> bool:
        """Whether sending it twice is as good as once (RFC 9110, section 9.2.2)."""
        return self.method in IDEMPOTENT

    @property
    def awaits_continue(self) -> bool:
        """Whether the client keeps the body back until it is told to go on."""
        return self.expects_continue and not self.received

    @property
    def kept(self) -> int:
        """About how many bytes of memory it takes."""
        body = sum(map(len, self.chunks))
        return OVERHEAD + len(self.target) + size_of(self.fields) + body

    def field(self, name: bytes) -> bytes | None:
        """The value of the first end-to-end field of that (lower-case) name."""
        return find(self.fields, name)

    def take(self, name: bytes) -> bytes | None:
        """The same, and no field of that name is forwarded."""
        value = self.field(name)
        if value is not None:
            self.fields[:] = without(self.fields, {name})
        return value


class RequestParser:
    """Turns the bytes of one connection into requests."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._parser = HttpRequestParser(self)
        self._request = Request()
        self._fields = self._request.fields
        self._special: dict[bytes, bytes] | None = None
        self._fed = 0  # bytes that are certainly of the head that has begun
        self._unsure = 0  # bytes that may be of it as well
        self._feeding = 0  # bytes of this feed
        self._in_head = False
        self._raw_left = 0  # of a long body with a length: bytes that need no parsing
        self._rest = b""  # behind a request that asks for an upgrade
        self._switching = False
        self.ready: deque[Request] = deque()
        self.refusal: Refusal | None = None
        self.refused: Request | None = None  # what it is about, if its head could be read

    @property
    def in_head(self) -> bool:
        """Whether a head has begun to arrive and is incomplete."""
        return self._in_head

    @property
    def more(self) -> bool:
        """Whether something has arrived behind the request that is being answered."""
        return bool(self.ready or self._rest or self.refusal is not None)

    @property
    def kept(self) -> int:
        """About how many bytes of memory that takes."""
        return len(self._rest) + sum(request.kept for request in self.ready)

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        if self.refusal is not None:
            return
        if self._raw_left:
            data = self._take_raw(data)
            if not data:
                return
        if self._switching:
            self._rest += data
            return
        while True:
            self._feeding = len(data)
            self._fed += len(data)
            try:
                self._parser.feed_data(data)
                break
            except HttpParserUpgrade as switch:
                data = self._upgrade(data[switch.args[0] :])
                if not data:
                    return
            except HttpParserError as error:
                if self.refusal is None:
                    self.refusal = self._diagnose(error, data)
                if self.ready and not self.ready[-1].complete:
                    self.refused = self.ready.pop()  # the fault is in its body
                return
        request = self._request
        if self._in_head:
            if not self._fed:  # it has begun in this feed
                self._fed = len(data)
                if END in data:
                    self._fed = max(1, len(request.target) + size_of(request.fields))
                self._unsure = len(data) - self._fed
            if self._fed > self._listen.max_head:
                self._too_long()
        elif not request.complete and self.refusal is None:
            if request.length > 0:
                # Nothing in a long body needs parsing: counting will do, and spares copying it.
                self._raw_left = request.length - request.received
                self._parser = HttpRequestParser(self)
            elif request.chunks:
                self._fed = 0
            elif self._fed > 2 * self._listen.max_head:
                self._refuse(431, "The request's trailers, or what else is no body, are too long.")

    def take_rest(self) -> bytes:
        """The upgrade was accepted: what has arrived behind the request, unparsed."""
        rest, self._rest = self._rest, b""
        return rest

    def resume(self) -> None:
        """The upgrade was declined: what has arrived behind the request is requests."""
        rest, self._rest = self._rest, b""
        self._switching = False
        self._parser = HttpRequestParser(self)
        if rest:
            self.feed(rest)

    def discard(self) -> None:
        """Nothing will be fed any more: part with httptools' parser, which holds this one."""
        del self._parser

    # Called by the parser

    def on_message_begin(self) -> None:
        """A request begins."""
        request = self._request = Request()
        self._fields = request.fields
        self._special = {}
        self._in_head = True
        self._fed = 0

    def on_url(self, url: bytes) -> None:
        """Part of the target."""
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field, of the head or of the trailers."""
        key = KINDS[name]
        if not key:
            self._fields.append((name, value))
        elif self._special is not None:
            if key in self._special:
                self._repeated(key, value)
            else:
                self._special[key] = value.strip(OWS)

    def on_headers_complete(self) -> None:
        """The head is complete: judge it."""
        request = self._request
        parser = self._parser
        special = self._special
        assert special is not None
        self._special = None
        self._fields = request.trailers
        self._in_head = False
        request.method = parser.get_method()
        request.host = special.pop(b"host", None)
        request.keep_alive = parser.should_keep_alive()
        # With no Connection field, only HTTP/1.1 keeps alive: spares reading the version.
        if special or not request.keep_alive:
            self._judge_special(request, special, parser.get_http_version())
        if request.target[:1] != b"/" or b"#" in request.target:
            self._judge_target(request)
        if request.host is None and request.version == b"1.1":
            self._refuse(400, "The request has no Host field.")
        listen = self._listen
        if len(request.target) > listen.max_target:
            self._refuse(414, f"The request's target is longer than {listen.max_target} bytes.")
        elif len(request.fields) > listen.max_headers:
            self._refuse(431, f"The request has more than {listen.max_headers} header fields.")
        elif self._fed + self._feeding + self._unsure > listen.max_head:
            self._judge_size(request, special)
        if self.refusal is None:
            self.ready.append(request)
        else:
            self.refused = request

    def on_body(self, data: bytes) -> None:
        """Part of the body."""
        request = self._request
        request.chunks.append(data)
        request.received += len(data)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._request.complete = True

    # The rest is off the usual way

    def _judge_size(self, request: Request, special: dict[bytes, bytes]) -> None:
        self._unsure = 0
        size = len(b"%b %b HTTP/1.1\r\n\r\n" % (request.method, request.target))
        size += size_of(request.fields) + size_of(special.items())
        if request.host is not None:
            size += len(b"Host: %b\r\n" % request.host)
        if request.connection is not None:
            size += len(b"Connection: %b\r\n" % request.connection)
        if size > self._listen.max_head:
            self._too_long()

    def _refuse(self, status: int, reason: str) -> None:
        if self.refusal is None:
            self.refusal = Refusal(status, reason)

    def _repeated(self, key: bytes, value: bytes) -> None:
        assert self._special is not None
        if key in (b"host", b"content-length", b"transfer-encoding", b"max-forwards"):
            self._refuse(400, f"The request has more than one {key.decode()} field.")
        else:
            self._special[key] += b", " + value.strip(OWS)

    def _judge_special(self, request: Request, special: dict[bytes, bytes], version: str) -> None:
        if version not in ("1.0", "1.1"):
            self._refuse(505, f"HTTP/{version} is not spoken here; HTTP/1.1 is.")
            return
        request.version = version.encode()
        request.connection = connection = special.pop(b"connection", None)
        if connection is not None and connection not in PLAIN:
            self._drop_listed(request, connection)
        if not special:
            return
        length = special.get(b"content-length")
        if length is not None:
            request.length = int(length)
        coding = special.get(b"transfer-encoding")
        if coding is not None:
            if version == "1.0":
                self._refuse(400, "Transfer-Encoding is not for HTTP/1.0.")
            elif coding.lower() != b"chunked":
                self._refuse(501, "No transfer coding but 'chunked' is understood.")
            request.chunked = True
        if version == "1.1":
            expect = special.get(b"expect")
            if expect is not None:
                if expect.lower() != b"100-continue":
                    self._refuse(417, "No expectation but '100-continue' can be met.")
                request.expects_continue = True
            upgrade = special.get(b"upgrade")
            if upgrade is not None and self._parser.should_upgrade():
                self._judge_upgrade(request, upgrade)
        te = special.get(b"te")
        if te is not None:
            request.te_trailers = b"trailers" in [
                part.strip(OWS) for part in te.lower().split(b",")
            ]
        request.max_forwards = special.get(b"max-forwards")
        request.forwarded_for = special.get(b"x-forwarded-for")
        request.forwarded_proto = special.get(b"x-forwarded-proto")
        request.forwarded_host = special.get(b"x-forwarded-host")
        request.request_id = special.get(b"x-request-id", b"")
        request.via = special.get(b"via")

    def _judge_upgrade(self, request: Request, upgrade: bytes) -> None:
        if request.chunked:
            # The parser takes what follows for the new protocol, and not for the body.
            self._refuse(501, "An upgrade together with a chunked body is not supported.")
        elif not request.has_body and b"h2c" not in names_in(upgrade):
            # h2c would take the connection out of the proxy's hands unseen.
            request.upgrade = upgrade

    def _drop_listed(self, request: Request, connection: bytes) -> None:
        """Fields that Connection names are for this connection alone."""
        names = names_in(connection)
        names -= {b"close", b"keep-alive", b"upgrade", b"te", b""}
        if names:
            request.fields[:] = without(request.fields, names)

    def _judge_target(self, request: Request) -> None:
        target = request.target
        if b"#" in target:
            self._refuse(400, "The request's target has a fragment ('#').")
        elif request.method == b"CONNECT":
            self._refuse(501, "CONNECT is not for this proxy: it stands before servers.")
        elif target == b"*":
            if request.method != b"OPTIONS":
                self._refuse(400, "The target '*' is for OPTIONS alone.")
        elif target[:1] != b"/":
            self._absolute_form(request)

    def _absolute_form(self, request: Request) -> None:
        """RFC 9112, section 3.2.2: the target's authority wins over Host."""
        try:
            parts = urlsplit(request.target)
        except ValueError:
            parts = urlsplit(b"")
        if parts.scheme not in (b"http", b"https") or not parts.netloc or b"@" in parts.netloc:
            self._refuse(400, "The request's target is neither a path nor an http URL.")
            return
        if request.host is None and request.version == b"1.1":
            self._refuse(400, "The request has no Host field.")
        request.host = parts.netloc
        path = parts.path or (b"*" if request.method == b"OPTIONS" else b"/")
        request.target = path + (b"?" + parts.query if b"?" in request.target else b"")

    def _upgrade(self, rest: bytes) -> bytes:
        """The parser stopped behind a head that takes HTTP's end for granted.

        Return what is to be parsed of ``rest``.
        """
        request = self._request
        if self.refusal is not None:
            return b""
        if request.method == b"CONNECT":
            self.ready.pop()
            self.refused = request
            self._refuse(501, "CONNECT is not for this proxy: it stands before servers.")
            return b""
        if request.upgrade:
            self._switching = True
            self._rest = rest
            return b""
        # Not an upgrade we pass on: go on as if it had not been asked for.
        self._parser = HttpRequestParser(self)
        if request.length > 0:
            request.complete = False
            self._raw_left = request.length
            return self._take_raw(rest) if rest else b""
        return rest

    def _take_raw(self, data: bytes) -> bytes:
        request = self._request
        left = self._raw_left
        if len(data) < left:
            self._raw_left = left - len(data)
            request.chunks.append(data)
            request.received += len(data)
            return b""
        self._raw_left = 0
        request.chunks.append(data[:left])
        request.received += left
        request.complete = True
        return data[left:]

    def _too_long(self) -> None:
        listen = self._listen
        if not self._fields and len(self._request.target) > listen.max_target:
            self._refuse(414, f"The request's target is longer than {listen.max_target} bytes.")
        else:
            self._refuse(431, f"The request's head is longer than {listen.max_head} bytes.")

    def _diagnose(self, error: HttpParserError, data: bytes) -> Refusal:
        if self._parser.get_method() == b"PRI":
            return Refusal(505, "HTTP/2 is not spoken here; HTTP/1.1 is.")
        if isinstance(error, HttpParserInvalidMethodError) and REQUEST_LINE.match(data):
            return Refusal(501, "The request's method is not one that is known here.")
        return Refusal(400, f"The request is not well-formed: {error}.")
