"""Answers of the proxy's own: small, with a reason a person can use.

Text unless the client asks for JSON.  They are marked ``Cache-Control:
no-store``, so that no cache keeps a trouble for longer than it lasts.
"""

from __future__ import annotations

import json
from http import HTTPStatus

from awesomeproxy.proxy.requests import Request

RETRY_AFTER = 2  # seconds that a refused client is asked to wait


def answer(
    status: int, reason: str, request: Request | None = None, *, close: bool = False
) -> bytes:
    """A whole response.

    :param request: what is answered, if it could be understood; decides on JSON, and
        on whether there is a body.
    :param close: whether the connection ends with it.
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
    fields = [
        b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nCache-Control: no-store\r\n"
        % (status, phrase.encode(), kind, len(body))
    ]
    if status == 503:
        fields.append(b"Retry-After: %d\r\n" % RETRY_AFTER)
    if close:
        fields.append(b"Connection: close\r\n")
    elif request is not None and request.version == b"1.0":
        fields.append(b"Connection: keep-alive\r\n")
    fields.append(b"\r\n")
    if request is None or request.method != b"HEAD":
        fields.append(body)
    return b"".join(fields)
