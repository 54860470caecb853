"""The bytes of one small request, and where its answer ends.

The benchmark's own clients send one kind of request and get answers with a
``Content-Length``; what does not look like that counts as a failure.
"""

from __future__ import annotations

import re

from bench.processes import HOST

REQUEST = f"GET /small HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode("ascii")

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.I)


def answered(received: bytes) -> int:
    """The status of a complete answer, 0 while more is to come.

    Raises :exc:`ValueError` when ``received`` is no answer with a ``Content-Length``.
    """
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return 0
    length = _LENGTH.search(head)
    if length is None or not head.startswith(b"HTTP/1."):
        raise ValueError(f"not an answer with a Content-Length: {head[:80]!r}")
    return int(head[9:12]) if len(body) >= int(length[1]) else 0
