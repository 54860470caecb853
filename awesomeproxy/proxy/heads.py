"""Heads as they are forwarded: written anew, never passed through raw.

What is added to a request says where it came from: ``Via`` (RFC 9110, section
7.6.3), ``X-Forwarded-For``, ``-Proto`` and ``-Host``, ``X-Request-Id``.  What a
client says of the same is believed only if the client is a trusted proxy.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field

from awesomeproxy.proxy.fields import COLON, CRLF, NOT_IN_TRAILERS, Field, find, without
from awesomeproxy.proxy.requests import Request
from awesomeproxy.proxy.responses import Response

HELD_FIELD = b"X-Awesomeproxy-Held"  # on responses: seconds the request was held


class RequestIds:
    """Names for requests: unique in a cluster, cheap to make, in order of arrival."""

    def __init__(self) -> None:
        self._prefix = os.urandom(6).hex().encode()
        self._count = itertools.count(1).__next__

    def __call__(self) -> bytes:
        return b"%b-%x" % (self._prefix, self._count())


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection's requests come from, as fields ready to be sent."""

    address: bytes
    trusted: bool = False
    proto: bytes = b"http"
    fields: bytes = field(init=False)

    def __post_init__(self) -> None:
        lines = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (self.address, self.proto)
        object.__setattr__(self, "fields", lines)


def request_head(request: Request, origin: Origin, via: bytes) -> bytes:
    """The head of ``request`` as a server gets it.

    :param via: this proxy's entry for the Via field.
    """
    host = request.host or b""
    lines = [
        b"%b %b HTTP/1.1\r\nHost: %b" % (request.method, request.target, host),
        *map(COLON.join, request.fields),
    ]
    if request.chunked:
        lines.append(b"Transfer-Encoding: chunked")
    elif request.length >= 0:
        lines.append(b"Content-Length: %d" % request.length)
    if request.expects_continue:
        lines.append(b"Expect: 100-continue")
    if request.upgrade:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b" % request.upgrade)
    elif request.te_trailers:
        lines.append(b"Connection: TE\r\nTE: trailers")
    if request.max_forwards is not None:
        lines.append(b"Max-Forwards: %b" % request.max_forwards)
    if origin.trusted or request.via is not None:
        for name, value in forwarded_fields(request, origin, via):
            lines.append(b"%b: %b" % (name, value))
        lines.append(CRLF)
    else:
        lines.append(
            b"%bX-Forwarded-Host: %b\r\nX-Request-Id: %b\r\nVia: %b\r\n\r\n"
            % (origin.fields, host, request.request_id, via)
        )
    return CRLF.join(lines)


def forwarded_fields(request: Request, origin: Origin, via: bytes) -> list[Field]:
    """The fields that say which way ``request`` has come."""
    chain, proto, host = origin.address, origin.proto, request.host or b""
    if request.via is not None:
        via = b"%b, %b" % (request.via, via)
    if origin.trusted:
        if request.forwarded_for is not None:
            chain = b"%b, %b" % (request.forwarded_for, chain)
        proto = request.forwarded_proto or proto
        host = request.forwarded_host or host
    return [
        (b"X-Forwarded-For", chain),
        (b"X-Forwarded-Proto", proto),
        (b"X-Forwarded-Host", host),
        (b"X-Request-Id", request.request_id),
        (b"Via", via),
    ]


def chunk(parts: list[bytes]) -> bytes:
    """``parts`` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (sum(map(len, parts)), b"".join(parts))


def last_chunk(trailers: list[Field]) -> bytes:
    """The end of a chunked body, with those trailers that may be passed on."""
    if not trailers:
        return b"0\r\n\r\n"
    return CRLF.join([b"0", *map(COLON.join, without(trailers, NOT_IN_TRAILERS)), b"", b""])


def interim_head(response: Response) -> bytes:
    """A 1xx response as the client gets it."""
    first = b"HTTP/1.1 %d %b" % (response.status, response.reason)
    return CRLF.join([first, *map(COLON.join, response.fields), b"", b""])


def added(response: Response, held: float, hsts: bytes) -> list[Field]:
    """The fields that are added to a response, if any.

    :param held: seconds that the request waited at the gate.
    :param hsts: the value of Strict-Transport-Security, where the server sends none.
    """
    fields = []
    if held:
        fields.append((HELD_FIELD, b"%.3f" % held))
    if hsts and find(response.fields, b"strict-transport-security") is None:
        fields.append((b"Strict-Transport-Security", hsts))
    return fields


def response_head(
    response: Response, *, chunked: bool, length: int, connection: bytes, more: list[Field]
) -> bytes:
    """The head of ``response`` as the client gets it.

    :param chunked: whether its body is sent in chunks.
    :param length: its Content-Length, or -1.
    :param connection: the line of a Connection field, or nothing.
    :param more: what is added to it.
    """
    lines = [
        b"HTTP/1.1 %d %b" % (response.status, response.reason),
        *map(COLON.join, response.fields),
    ]
    if length >= 0:
        lines.append(b"Content-Length: %d" % length)
    elif chunked:
        lines.append(b"Transfer-Encoding: chunked")
    if more:
        lines += map(COLON.join, more)
    if connection:
        lines.append(connection)
    lines.append(b"\r\n")
    return CRLF.join(lines)


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A head as the client gets it, and what it means for what follows."""

    data: bytes
    chunked: bool  # the body is sent in chunks
    keep_alive: bool  # the connection is good for another request


def begin_response(
    request: Request, response: Response, more: list[Field], *, last: bool
) -> ResponseHead:
    """The head of ``response``, and how its body is sent (RFC 9112, section 6).

    :param more: fields that are added to it.
    :param last: the connection ends with it, whatever else would allow.
    """
    old = request.version == b"1.0"
    length = response.length
    until_close = False
    if request.method == b"HEAD" or response.status in (204, 304):
        chunked = response.chunked and not old and response.status not in (204, 304)
        if response.status == 204:
            length = -1
    else:
        chunked = length < 0 and not old
        until_close = length < 0 and old
    # RFC 9112, section 9.6: the rest of an early answer's request is not read.
    early = not request.complete and (response.complete or length >= 0)
    keep_alive = request.keep_alive and not until_close and not early and not last
    connection = b""
    if not keep_alive:
        connection = b"Connection: close"
    elif old:
        connection = b"Connection: keep-alive"
    data = response_head(response, chunked=chunked, length=length, connection=connection, more=more)
    has_body = request.method != b"HEAD" and response.status not in (204, 304)
    return ResponseHead(data, chunked and has_body, keep_alive)
