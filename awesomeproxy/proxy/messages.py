"""Requests and responses of HTTP/2: lists of fields in and out, judged.  No I/O.

In HTTP/2 a message is a list of fields, of which the first, with names that begin with a
colon, stand for HTTP/1.1's first line (RFC 9113, section 8.3).  What is read here may be
written to a server in HTTP/1.1, so that nothing may pass which would mean something else
there: no control characters in values, no spaces in targets, no names that are no tokens.

What is malformed raises :class:`Malformed`: the stream is reset (section 8.1.1).  What is
well-formed and not for this proxy is answered, with a status.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from awesomeproxy.model import Listen
from awesomeproxy.proxy.fields import (
    NOT_IN_TRAILERS,
    OWS,
    REMEMBERED,
    Field,
    number,
    size_of,
    without,
)
from awesomeproxy.proxy.requests import KINDS, Refusal, Request
from awesomeproxy.proxy.responses import Response

NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+\Z")  # a token, in lower case
METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
TARGET = re.compile(rb"[!-~\x80-\xff]+\Z")
BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, section 5.5
PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
CONNECTION = frozenset(  # RFC 9113, section 8.2.2
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
ONCE = frozenset((b"host", b"content-length", b"max-forwards", b"expect"))
BODILESS = frozenset((b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"))  # if none is announced


class Malformed(Exception):
    """A message that breaks the rules of HTTP/2."""


class _Names(dict[bytes, bool]):
    """Whether a name may name a field; the spellings that were seen are remembered."""

    def __missing__(self, name: bytes) -> bool:
        good = NAME.match(name) is not None and name not in CONNECTION
        if len(self) >= REMEMBERED:
            self.clear()
        self[name] = good
        return good


class _Lower(dict[bytes, bytes]):
    """Names in lower case."""

    def __missing__(self, name: bytes) -> bytes:
        lower = name.lower()
        if len(self) >= REMEMBERED:
            self.clear()
        self[name] = lower
        return lower


_GOOD = _Names()
_LOWER = _Lower()


def _check(fields: Iterable[Field]) -> None:
    """Judge fields that are no pseudo fields."""
    good = _GOOD
    for name, value in fields:
        if not good[name]:
            raise Malformed(f"{name.decode('latin-1')!r} cannot name a field")
        # RFC 9113, section 8.2.1
        if value and (value[0] in b" \t" or value[-1] in b" \t"):
            raise Malformed("a value has spaces around it")


def _parted(fields: list[Field], known: frozenset[bytes]) -> tuple[dict[bytes, bytes], list[Field]]:
    """Pseudo fields, and the others."""
    pseudo: dict[bytes, bytes] = {}
    count = 0
    for name, value in fields:
        if name[:1] != b":":
            break
        if name in pseudo or name not in known:
            raise Malformed(f"the field {name.decode('latin-1')!r} is not known, or there twice")
        pseudo[name] = value
        count += 1
    rest = fields[count:]
    if BAD_VALUE.search(b"".join([value for _, value in fields])):
        raise Malformed("a value has a control character")
    _check(rest)  # which finds pseudo fields behind others
    return pseudo, rest


def request_of(fields: list[Field], last: bool, listen: Listen) -> tuple[Request, Refusal | None]:
    """The request that ``fields`` are, and why it is refused, if it is.

    :param last: no body comes.
    :raise Malformed: they are none.
    """
    pseudo, rest = _parted(fields, PSEUDO)
    request = Request()
    request.version = b"2.0"
    method = request.method = pseudo.get(b":method", b"")
    protocol = pseudo.get(b":protocol")
    scheme = pseudo.get(b":scheme", b"")
    target = request.target = pseudo.get(b":path", b"")
    if not METHOD.match(method):
        raise Malformed("there is no method")
    if method == b"CONNECT" and protocol is None:
        if scheme or target or not pseudo.get(b":authority"):
            raise Malformed("a CONNECT has a scheme, a path or no authority")
        request.target = pseudo[b":authority"]
        return request, Refusal(501, "CONNECT is not for this proxy: it stands before servers.")
    if method != b"CONNECT" and protocol is not None:
        raise Malformed("there is a protocol without CONNECT")
    if not scheme:
        raise Malformed("there is no scheme")
    if not TARGET.match(target) or (target[:1] != b"/" and (target, method) != (b"*", b"OPTIONS")):
        raise Malformed("the path is missing, or is none")
    special = _take_special(request, rest)
    authority = pseudo.get(b":authority")
    host = special.get(b"host")
    if authority is not None and host is not None and authority.lower() != host.lower():
        raise Malformed("the authority and the Host field differ")
    request.host = authority if authority is not None else host
    request.complete = last
    refusal = _judge(request, special)
    if protocol is not None:
        refusal = refusal or _extended(request, protocol)
    elif not last and request.length < 0:
        request.chunked = True
    elif last and request.length < 0 and method not in BODILESS:
        request.length = 0  # RFC 9110, section 8.6: that no body comes is to be said
    return request, refusal or _too_long(request, fields, listen)


def _take_special(request: Request, rest: list[Field]) -> dict[bytes, bytes]:
    special: dict[bytes, bytes] = {}
    cookies: list[bytes] = []
    for field in rest:
        name = field[0]
        key = KINDS[name]
        if not key:
            if name == b"cookie":
                cookies.append(field[1])
            else:
                request.fields.append((name, field[1]))
        elif key not in special:
            special[key] = field[1]
        elif key in ONCE:
            raise Malformed(f"there is more than one {key.decode()} field")
        else:
            special[key] += b", " + field[1]
    if cookies:
        request.fields.append((b"cookie", b"; ".join(cookies)))  # RFC 9113, section 8.2.3
    return special


def _judge(request: Request, special: dict[bytes, bytes]) -> Refusal | None:
    if request.host is None:
        return Refusal(400, "The request has no authority, and no Host field.")
    if b"#" in request.target:
        return Refusal(400, "The request's target has a fragment ('#').")
    if not special:
        return None
    length = special.get(b"content-length")
    if length is not None:
        request.length = number(length)
        if request.length < 0 or (request.complete and request.length):
            raise Malformed("the length is not the body's")
    te = special.get(b"te")
    if te is not None:
        if te.lower() != b"trailers":
            raise Malformed("the field TE says more than 'trailers'")  # section 8.2.2
        request.te_trailers = True
    request.max_forwards = special.get(b"max-forwards")
    request.forwarded_for = special.get(b"x-forwarded-for")
    request.forwarded_proto = special.get(b"x-forwarded-proto")
    request.forwarded_host = special.get(b"x-forwarded-host")
    request.request_id = special.get(b"x-request-id", b"")
    request.via = special.get(b"via")
    expect = special.get(b"expect")
    if expect is not None:
        if expect.lower() != b"100-continue":
            return Refusal(417, "No expectation but '100-continue' can be met.")
        request.expects_continue = not request.complete
    return None


def _extended(request: Request, protocol: bytes) -> Refusal | None:
    """RFC 8441: a connection in a stream.  Towards the server it is an upgrade."""
    if protocol.lower() != b"websocket":
        return Refusal(501, "No protocol but 'websocket' is spoken in a stream.")
    if request.complete or request.length >= 0:
        return Refusal(400, "What is to be a connection has ended, or has a length.")
    request.method = b"GET"
    request.upgrade = b"websocket"
    request.complete = True  # what follows is not its body
    return None


def _too_long(request: Request, fields: list[Field], listen: Listen) -> Refusal | None:
    if len(request.target) > listen.max_target:
        return Refusal(414, f"The request's target is longer than {listen.max_target} bytes.")
    if len(request.fields) > listen.max_headers:
        return Refusal(431, f"The request has more than {listen.max_headers} header fields.")
    if size_of(fields) > listen.max_head:
        return Refusal(431, f"The request's head is longer than {listen.max_head} bytes.")
    return None


def trailers_of(fields: list[Field]) -> list[Field]:
    """The trailers that ``fields`` are.

    :raise Malformed: they cannot be.
    """
    _, rest = _parted(fields, frozenset())
    return [(name, value) for name, value in rest]


def response_fields(response: Response, more: list[Field]) -> list[Field]:
    """The head of ``response`` for a client.

    :param more: what is added to it.
    """
    lower = _LOWER
    fields = [(b":status", b"%d" % response.status)]
    fields += [(lower[name], value.strip(OWS)) for name, value in response.fields]
    if response.length >= 0 and response.status != 204:
        fields.append((b"content-length", b"%d" % response.length))
    fields += [(lower[name], value) for name, value in more]
    return fields


def lowered(fields: Iterable[Field]) -> list[Field]:
    """``fields`` as HTTP/2 wants them."""
    lower = _LOWER
    return [(lower[name], value.strip(OWS)) for name, value in fields]


def trailer_fields(trailers: list[Field]) -> list[Field]:
    """Those ``trailers`` that may be passed on."""
    return lowered(without(trailers, NOT_IN_TRAILERS))


def response_of(fields: list[Field]) -> Response:
    """The response that ``fields`` begin.

    :raise Malformed: they are none.
    """
    pseudo, rest = _parted(fields, frozenset((b":status",)))
    status = pseudo.get(b":status", b"")
    if len(status) != 3 or not status.isdigit() or status[:1] == b"0":
        raise Malformed("there is no status")
    if status == b"101":
        raise Malformed("the status 101 is not one of HTTP/2")  # RFC 9113, section 8.6
    response = Response()
    response.status = int(status)
    for name, value in rest:
        if name == b"content-length":
            if response.length >= 0 or number(value) < 0:
                raise Malformed("there is no length, or more than one")
            response.length = number(value)
        elif name != b"te":
            response.fields.append((name, value))
    return response
