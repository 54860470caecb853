"""Heads as they are forwarded: written anew, never passed through raw.

What is added to a request says where it came from: ``Via`` (RFC 9110, section
7.6.3), ``X-Forwarded-For``, ``-Proto`` and ``-Host``, ``X-Request-Id``.  What a
client says of the same is believed only if the client is a trusted proxy.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field

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
        fields = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (self.address, self.proto)
        object.__setattr__(self, "fields", fields)


def request_head(request: Request, origin: Origin, via: bytes) -> bytes:
    """The head of ``request`` as a server gets it.

    :param via: the field that names this proxy, a whole line, for a request that has
        passed no other.
    """
    host = request.host or b""
    parts = [
        b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (request.method, request.target, host),
        *request.lines,
    ]
    if request.chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    elif request.length >= 0:
        parts.append(b"Content-Length: %d\r\n" % request.length)
    if request.expects_continue:
        parts.append(b"Expect: 100-continue\r\n")
    if request.upgrade:
        parts.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % request.upgrade)
    elif request.te_trailers:
        parts.append(b"Connection: TE\r\nTE: trailers\r\n")
    if request.max_forwards is not None:
        parts.append(b"Max-Forwards: %b\r\n" % request.max_forwards)
    if request.via is not None:
        via = b"Via: %b, %b" % (request.via, via[len(b"Via: ") :])
    forwarded_host = host
    if origin.trusted:
        chain = request.forwarded_for
        chain = origin.address if chain is None else b"%b, %b" % (chain, origin.address)
        proto = request.forwarded_proto or origin.proto
        forwarded_host = request.forwarded_host or host
        fields = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (chain, proto)
    else:
        fields = origin.fields
    parts.append(
        b"%bX-Forwarded-Host: %b\r\nX-Request-Id: %b\r\n%b\r\n"
        % (fields, forwarded_host, request.request_id, via)
    )
    return b"".join(parts)


def chunk(parts: list[bytes]) -> bytes:
    """``parts`` as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (sum(map(len, parts)), b"".join(parts))


def last_chunk(trailers: list[bytes]) -> bytes:
    """The end of a chunked body."""
    return b"0\r\n%b\r\n" % b"".join(trailers)


def interim_head(response: Response) -> bytes:
    """A 1xx response as the client gets it."""
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (
        response.status,
        response.reason,
        b"".join(response.lines),
    )


def response_head(
    response: Response, *, chunked: bool, length: int, connection: bytes, held: float
) -> bytes:
    """The head of ``response`` as the client gets it.

    :param chunked: whether its body is sent in chunks.
    :param length: its Content-Length, or -1.
    :param connection: a whole Connection field, or nothing.
    :param held: seconds that the request waited at the gate.
    """
    parts = [b"HTTP/1.1 %d %b\r\n" % (response.status, response.reason), *response.lines]
    if length >= 0:
        parts.append(b"Content-Length: %d\r\n" % length)
    elif chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    if held:
        parts.append(b"%b: %.3f\r\n" % (HELD_FIELD, held))
    parts.append(connection)
    parts.append(b"\r\n")
    return b"".join(parts)
