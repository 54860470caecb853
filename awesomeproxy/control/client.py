"""A blocking client of the control socket.

It needs nothing but the standard library, starts in milliseconds, and is all
that the command line or a script wants::

    with Client("/run/awesomeproxy/control.sock") as client:
        receipt = client.call("pause", {"site": "blog"}, on_notification=print)

One call at a time; the connection is made at the first.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from awesomeproxy.control import protocol
from awesomeproxy.control.protocol import RpcError

Notified = Callable[[str, dict[str, Any]], None]

ANSWER_MAX = 256 * 1024 * 1024
"""Bytes of the longest line that is taken from a daemon."""


class Unreachable(Exception):
    """No daemon answers; the message says what was tried and what to do."""


class Client:
    """A connection to the daemon that listens on ``path``.

    :param timeout: seconds to wait for each word of the daemon; ``None``: for ever.
    """

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self.path = path
        self.timeout = timeout
        self._socket: socket.socket | None = None
        self._lines = protocol.Lines(ANSWER_MAX)
        self._last_id = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; a ``watch`` ends with that, other commands go on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._lines = protocol.Lines(ANSWER_MAX)

    def call(
        self,
        method: str,
        params: Mapping[str, Any],
        on_notification: Notified | None = None,
    ) -> Any:
        """Run a command and return its result.

        :param on_notification: called with the method (``progress``, ``event``) and the
            parameters of each word in between.
        :raises RpcError: if the daemon answers with an error.
        :raises Unreachable: if it does not answer.
        """
        self._last_id += 1
        id = self._last_id
        connection = self._socket or self._connect()
        # A daemon that refuses the connection closes it, but has said why before.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(protocol.request_line(id, method, params))
        for message in self._messages(connection):
            if "method" in message:
                if on_notification is not None:
                    on_notification(message["method"], message.get("params", {}))
            elif message.get("id") in (id, None):
                return _outcome(message)
        self.close()
        raise Unreachable(
            f"the daemon at {self.path} closed the connection before it answered; "
            f"{method} may have been begun: see `awesomeproxy status` when it is back"
        )

    def _messages(self, connection: socket.socket) -> Iterator[dict[str, Any]]:
        while True:
            try:
                data = connection.recv(65536)
                lines = list(self._lines.feed(data))
            except TimeoutError:
                self.close()
                raise Unreachable(
                    f"the daemon at {self.path} has not answered for {self.timeout:g} s; "
                    "look at its log"
                ) from None
            except ConnectionResetError:
                return
            except protocol.LineTooLong:
                self.close()
                raise Unreachable(f"what listens at {self.path} sent too long a line") from None
            if not data:
                return
            for line in lines:
                yield self._read(line)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(self.timeout)
        try:
            connection.connect(self.path)
        except OSError as problem:
            connection.close()
            raise Unreachable(_why_unreachable(self.path, problem)) from None
        self._socket = connection
        return connection

    def _read(self, line: bytes) -> dict[str, Any]:
        try:
            message = protocol.read_json(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            self.close()
            raise Unreachable(f"what listens at {self.path} does not speak the control protocol")
        return message


def _outcome(message: Mapping[str, Any]) -> Any:
    error = message.get("error")
    if isinstance(error, Mapping):
        raise RpcError(error.get("code", 0), error.get("message", ""), error.get("data"))
    return message.get("result")


def _why_unreachable(path: str, problem: OSError) -> str:
    start = "twistd -n --pidfile= awesomeproxy --config FILE"
    remedy = f"start it with `{start}`, or name its socket with --control"
    if isinstance(problem, FileNotFoundError):
        return f"no daemon: there is no socket {path}; {remedy}"
    if isinstance(problem, ConnectionRefusedError):
        return f"no daemon: nothing listens at {path} any more; {remedy}"
    if isinstance(problem, PermissionError):
        return f"{path} belongs to another user; run the command as the daemon's user"
    if isinstance(problem, TimeoutError | BlockingIOError):
        return f"the daemon at {path} takes no more connections; look at its log"
    return f"cannot connect to {path}: {problem.strerror or problem}; {remedy}"
