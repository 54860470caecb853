"""The words of the control protocol: newline-delimited JSON-RPC 2.0.

One request is one line, and so is its answer.  While a command runs, lines
without an ``id`` may come on the same connection::

    -> {"jsonrpc":"2.0","id":1,"method":"pause","params":{"site":"blog"}}
    <- {"jsonrpc":"2.0","method":"progress","params":{"id":1,"step":"drain","message":"3"}}
    <- {"jsonrpc":"2.0","id":1,"result":{"site":"blog","generation":7}}

``progress`` tells of the command whose id it carries; ``event`` is what
``watch`` is for.  Batches and requests without an id are not served: nothing is
run without someone to be told what came of it.

This module only takes lines apart and puts them together.  It needs nothing but
the standard library, because the command line has milliseconds to start in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

LINE_MAX: Final = 8 * 1024 * 1024
"""Bytes of the longest request line, without its newline: some 20,000 sites to be applied."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
OVERLOADED: Final = -32000
"""A bound of the server was reached; what was asked for has not been begun."""
FAILED: Final = 1
"""The command failed and was undone; ``data`` says why, and who won a lost race."""

RequestId = int | str


class RpcError(Exception):
    """What is answered instead of a result.

    :param code: one of the codes above.
    :param message: for people: what was wrong and what to do.
    :param data: for programs; ``None`` is left out.
    """

    def __init__(self, code: int, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def as_json(self) -> dict[str, Any]:
        """The error as JSON-RPC's error object."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.data is not None:
            error["data"] = dict(self.data)
        return error


class LineTooLong(Exception):
    """A line exceeds its bound; nothing after it on the connection can be understood."""


@dataclass(slots=True)
class Lines:
    """Cuts a stream of bytes into lines, and keeps at most one unfinished line."""

    limit: int = LINE_MAX
    _rest: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each line that ``data`` finishes, without its newline.

        :raises LineTooLong: after the lines before the one that is too long.
        """
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._keep(data[start:end])
            line = bytes(self._rest)
            self._rest.clear()
            start = end + 1
            yield line
        self._keep(data[start:])

    def _keep(self, data: bytes) -> None:
        if len(self._rest) + len(data) > self.limit:
            raise LineTooLong(f"a line is longer than {self.limit} bytes")
        self._rest += data


@dataclass(frozen=True, slots=True)
class Request:
    """One command, as it was asked for."""

    id: RequestId
    method: str
    params: Mapping[str, Any]


def read_json(line: bytes) -> Any:
    """The value of one line.

    :raises ValueError: if it is no JSON of RFC 8259 (``NaN`` is none), or no Unicode.
    """
    text = line.decode("utf-8")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\u" in text:  # an escaped lone surrogate is no text that could be stored or shown
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def read_request(line: bytes) -> Request:
    """The request in ``line``.

    :raises BadLine: saying what is wrong with it, under its id where that could be read.
    """
    try:
        value = read_json(line)
    except ValueError as problem:
        raise BadLine(None, PARSE_ERROR, f"not a line of JSON: {problem}") from None
    if isinstance(value, list):
        raise BadLine(
            None, INVALID_REQUEST, "batches are not supported: send one request object a line"
        )
    if not isinstance(value, dict):
        raise BadLine(None, INVALID_REQUEST, "a request is a JSON object")
    found = value.get("id")
    id = found if isinstance(found, int | str) and not isinstance(found, bool) else None
    if value.get("jsonrpc") != "2.0":
        raise BadLine(id, INVALID_REQUEST, 'a request has "jsonrpc": "2.0"')
    if id is None:
        raise BadLine(
            None,
            INVALID_REQUEST,
            'a request has an "id", an integer or a string, to be answered by',
        )
    method = value.get("method")
    if not isinstance(method, str):
        raise BadLine(id, INVALID_REQUEST, 'a request has a "method", a string')
    params = value.get("params", {})
    if isinstance(params, list):
        raise BadLine(id, INVALID_PARAMS, '"params" are given by name, in an object')
    if not isinstance(params, dict):
        raise BadLine(id, INVALID_REQUEST, '"params" is an object')
    return Request(id, method, params)


class BadLine(RpcError):
    """A line that is no request; ``id`` is what it is to be answered by, if that is known."""

    def __init__(self, id: RequestId | None, code: int, message: str) -> None:
        super().__init__(code, message)
        self.id = id


def request_line(id: RequestId, method: str, params: Mapping[str, Any]) -> bytes:
    """A request, ready to be sent."""
    return _line({"jsonrpc": "2.0", "id": id, "method": method, "params": params})


def result_line(id: RequestId, result: Any) -> bytes:
    """The answer to a command that has been done.

    :raises ValueError, TypeError: if ``result`` cannot be written as JSON.
    """
    return _line({"jsonrpc": "2.0", "id": id, "result": result})


def error_line(id: RequestId | None, error: RpcError) -> bytes:
    """The answer to a command that has not been done."""
    return _line({"jsonrpc": "2.0", "id": id, "error": error.as_json()})


def notification_line(method: str, params: Mapping[str, Any]) -> bytes:
    """A word in between."""
    return _line({"jsonrpc": "2.0", "method": method, "params": params})


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
