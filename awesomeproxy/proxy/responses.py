"""Responses: bytes from a server in, a :class:`Response` out.  No I/O.

The counterpart of :mod:`awesomeproxy.proxy.requests`.  A server is trusted less
than it is usually: what is not well-formed, or answers where nothing was asked,
is a :class:`BadResponse`, and the connection it came on is never used again.

The parser cannot know which request a response answers, and so not that one to
HEAD has no body: :meth:`ResponseParser.expect` tells it.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from awesomeproxy.proxy.fields import OWS, Field, Kinds, names_in, without

SPECIAL = frozenset(
    b"connection content-length transfer-encoding upgrade keep-alive proxy-connection te".split()
)
KINDS = Kinds(SPECIAL)
KEEP_ALIVE = {b"connection": b"keep-alive"}  # what some servers say each time
PHRASES = frozenset(status.phrase.encode() for status in HTTPStatus)
PHRASE = re.compile(rb"[\t -~\x80-\xff]*\Z")  # RFC 9112, section 4
MAX_HEAD = 128 * 1024  # bytes of a head, with the interim responses before it; or of trailers


class BadResponse(Exception):
    """A server has sent what is no response to what it was asked."""


class Response:
    """One response.  ``chunks`` holds what has arrived of its body and was not taken yet."""

    status = 0
    reason = b""
    length = -1  # Content-Length; -1: none
    chunked = False
    until_close = False  # its body ends where the connection does
    keep_alive = True
    keep_alive_timeout = -1.0  # what the server says of its own patience, in seconds; -1: nothing
    upgrade = b""
    head_complete = False
    complete = False

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self.trailers: list[Field] = []
        self.chunks: list[bytes] = []


AWAITED = Response()  # stands for the response of which no head has come yet


class ResponseParser:
    """Turns the bytes of one connection to a server into responses."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._fresh = True  # nothing has been fed since the last response ended
        self._head_only = True
        self._special: dict[bytes, bytes] = {}
        self._raw_left = 0
        self._plain = False  # what is fed begins with an HTTP/1.1 response
        self._excess = False
        self._idle_fed = 0  # bytes since the request, or since the last of the body
        self._response = Response()
        self._fields = self._response.fields
        self.interim: list[Response] = []  # 1xx, before the response itself
        self.rest = b""  # behind a 101: the new protocol's first bytes
        self.response = AWAITED

    def expect(self, head_only: bool) -> None:
        """A request has been sent; ``head_only`` if it was HEAD."""
        self._head_only = head_only
        self._fresh = False
        self._idle_fed = 0
        self.response = AWAITED

    def feed(self, data: bytes) -> None:
        """Take what has arrived.

        :raise BadResponse: it is no response, or more than one; what came complete
            before the fault is in :attr:`response`.
        """
        if self._raw_left:
            data = self._take_raw(data)
            if not data:
                return
        if self._fresh:
            raise BadResponse("the server has sent what nobody asked for")
        self._plain = data.startswith(b"HTTP/1.1 ")
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as switch:
            self.rest = data[switch.args[0] :]
        except HttpParserError as error:
            if isinstance(error.__context__, BadResponse):
                raise error.__context__ from None
            if not self._excess:
                raise BadResponse(f"the server's response is not well-formed: {error}") from None
        response = self.response
        if self._excess:
            raise BadResponse("the server has sent more than its response")
        if response.complete:
            if not self._fresh:
                # A response without a body, whatever its fields say: the parser would wait.
                self._parser = HttpResponseParser(self)
                self._fresh = True
        elif response.length > 0:
            # Nothing in a long body needs parsing: counting will do, and spares copying it.
            self._raw_left = response.length - sum(map(len, response.chunks))
            self._parser = HttpResponseParser(self)
        elif response.chunks:
            self._idle_fed = 0
        else:
            self._idle_fed += len(data)
            if self._idle_fed > MAX_HEAD:
                raise BadResponse(f"its head or its trailers are longer than {MAX_HEAD} bytes")

    def close(self) -> bool:
        """The server has closed the connection; return whether its response is complete."""
        response = self.response
        if response.until_close and response.head_complete:
            response.complete = True
        return response.complete

    def _take_raw(self, data: bytes) -> bytes:
        response = self.response
        left = self._raw_left
        if len(data) < left:
            self._raw_left = left - len(data)
            response.chunks.append(data)
            return b""
        self._raw_left = 0
        response.chunks.append(data[:left])
        response.complete = True
        self._fresh = True
        return data[left:]

    def discard(self) -> None:
        """Nothing will be fed any more: part with httptools' parser, which holds this one."""
        del self._parser

    # Called by the parser

    def on_message_begin(self) -> None:
        """A response begins: the one expected, or one too many."""
        if self._fresh:
            self._excess = True
        self._response = Response()
        self._fields = self._response.fields
        self._special = {}

    def on_status(self, reason: bytes) -> None:
        """Part of the reason phrase."""
        self._response.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field, of the head or of the trailers."""
        key = KINDS[name]
        if not key:
            self._fields.append((name, value))
        elif key in self._special:
            self._special[key] += b", " + value.strip(OWS)
        else:
            self._special[key] = value.strip(OWS)

    def on_headers_complete(self) -> None:
        """The head is complete: judge it."""
        response = self._response
        if self._excess:
            return
        special = self._special
        self._special = {}
        self._fields = response.trailers
        parser = self._parser
        status = response.status = parser.get_status_code()
        if response.reason not in PHRASES and not PHRASE.match(response.reason):
            raise BadResponse("the server has answered with a reason that is not text")
        length = special.pop(b"content-length", None)
        if length is not None:
            response.length = int(length)
        response.keep_alive = parser.should_keep_alive()
        # With no other special field, only HTTP/1.1 keeps alive: spares reading the version.
        if self._plain and special == KEEP_ALIVE:
            response.keep_alive = True
        elif special or not response.keep_alive:
            self._judge_special(response, special)
        if status < 200:
            self._judge_interim(response)
            return
        if self._head_only or status in (204, 304):
            response.until_close = False
            response.complete = True
        elif length is None and not response.chunked:
            response.until_close = True
            response.keep_alive = False
        response.head_complete = True
        self.response = response

    def on_body(self, data: bytes) -> None:
        """Part of the body."""
        if self._head_only or self._excess:
            self._excess = True
        else:
            self.response.chunks.append(data)

    def on_message_complete(self) -> None:
        """A response is complete: the one awaited, unless it was interim."""
        response = self.response
        if self._response is response:
            if self._head_only and response.chunked and response.status not in (204, 304):
                self._excess = True  # the end of chunks that should not have been there
            response.complete = True
            self._fresh = True

    # The rest is off the usual way

    def _judge_special(self, response: Response, special: dict[bytes, bytes]) -> None:
        version = self._parser.get_http_version()
        if version not in ("1.0", "1.1") or not 100 <= response.status <= 999:
            raise BadResponse(f"the server has answered HTTP/{version} {response.status}")
        connection = special.get(b"connection", b"").lower()
        names = names_in(connection)
        response.keep_alive = b"close" not in names and (version == "1.1" or b"keep-alive" in names)
        coding = special.get(b"transfer-encoding")
        if coding is not None:
            if version == "1.0" or coding.lower() != b"chunked":
                raise BadResponse(f"the server has used Transfer-Encoding {coding!r}")
            response.chunked = True
        if b"upgrade" in names:
            response.upgrade = special.get(b"upgrade", b"")
        for part in special.get(b"keep-alive", b"").lower().split(b","):
            name, _, value = part.strip(OWS).partition(b"=")
            if name == b"timeout" and value.isdigit():
                response.keep_alive_timeout = float(value)
        names -= {b"close", b"keep-alive", b"upgrade", b"te", b""}
        if names:
            response.fields[:] = without(response.fields, names)

    def _judge_interim(self, response: Response) -> None:
        if response.status == 101:
            response.head_complete = True
            self.response = response
        elif response.length >= 0 or response.chunked:
            raise BadResponse("the server has sent an interim response with a body")
        else:
            self.interim.append(response)
