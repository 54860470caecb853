"""A client of the daemon's control socket, small enough to cost nothing.

The socket speaks newline-delimited JSON-RPC 2.0.  Progress may come as
notifications before the answer; they are passed over.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.processes import BenchError, Process


class Control:
    """A connection to a control socket, one call at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._calls = 0

    def call(self, method: str, **params: object) -> Any:
        """Call and return the result; raises :exc:`BenchError` with the error if it is one."""
        self._calls += 1
        call = {"jsonrpc": "2.0", "id": self._calls, "method": method, "params": params}
        try:
            self._connection.sendall(json.dumps(call).encode() + b"\n")
            for line in self._lines:
                message = json.loads(line)
                if message.get("id") != self._calls:
                    continue
                if "error" in message:
                    raise BenchError(f"{method} {params}: {message['error']}")
                return message["result"]
        except TimeoutError:
            raise BenchError(f"{method} {params}: no answer within 60 s") from None
        raise BenchError(f"{method} {params}: the daemon closed the control connection")


@contextmanager
def control(daemon: Process) -> Iterator[Control]:
    """Connect to the control socket of ``daemon``."""
    path = daemon.directory / "control.sock"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise BenchError(f"cannot connect to the control socket {path}: {error}") from None
        yield Control(connection)


def find(result: Any, key: str) -> Any:
    """The first value of ``key`` anywhere in a result; raises :exc:`BenchError` without one."""
    rest = [result]
    while rest:
        value = rest.pop(0)
        if isinstance(value, dict):
            if key in value:
                return value[key]
            rest += value.values()
        elif isinstance(value, list):
            rest += value
    raise BenchError(f"no {key!r} in the daemon's answer: {json.dumps(result)[:300]}")
