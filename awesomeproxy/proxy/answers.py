"""Answers of the proxy's own: small, with a reason a person can use.

Text unless the client asks for JSON.  They are marked ``Cache-Control:
no-store``, so that no cache keeps a trouble for longer than it lasts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus

from awesomeproxy.proxy.fields import COLON, CRLF, Field
from awesomeproxy.proxy.requests import Request

RETRY_AFTER = 2  # seconds that a refused client is asked to wait


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response, in no version of HTTP yet."""

    status: int
    fields: tuple[Field, ...]
    body: bytes

    def http1(self, request: Request | None, *, close: bool) -> bytes:
        """As it is sent in HTTP/1.1.

        :param request: what is answered, if it could be understood.
        :param close: whether the connection ends with it.
        """
        lines = [
            b"HTTP/1.1 %d %b" % (self.status, HTTPStatus(self.status).phrase.encode()),
            *map(COLON.join, self.fields),
        ]
        if close:
            lines.append(b"Connection: close")
        elif request is not None and request.version == b"1.0":
            lines.append(b"Connection: keep-alive")
        lines.append(CRLF)
        head = CRLF.join(lines)
        return head if request is not None and request.method == b"HEAD" else head + self.body


def explain(status: int, reason: str, request: Request | None = None, *fields: Field) -> Answer:
    """An answer that gives a reason.

    :param request: what is answered, if it could be understood; decides on JSON.
    :param fields: what is to be in the head besides.
    """
    phrase = HTTPStatus(status).phrase
    identity = request.request_id.decode("latin-1") if request is not None else ""
    if request is not None and b"json" in (request.field(b"accept") or b""):
        kind = b"application/json"
        content = {"status": status, "error": phrase, "reason": reason, "request_id": identity}
        body = json.dumps(content).encode() + b"\n"
    else:
        kind = b"text/plain; charset=utf-8"
        body = f"{status} {phrase}\n{reason}\n".encode()
        if identity:
            body += f"Request: {identity}\n".encode()
    if status in (429, 503):
        fields += ((b"Retry-After", b"%d" % RETRY_AFTER),)
    return plain(status, kind, body, *fields)


def plain(status: int, kind: bytes, body: bytes, *fields: Field) -> Answer:
    """An answer with a body of that kind (a media type)."""
    head = (
        (b"Content-Type", kind),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
    )
    return Answer(status, (*head, *fields), body)
