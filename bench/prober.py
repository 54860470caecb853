"""One request every two milliseconds, whatever becomes of those before it.

Run as ``python -m bench.prober PORT``; when its standard input ends it waits for
the answers that are due and prints a JSON list with one ``[sent, seconds, status]``
per request, ``sent`` being a time of the monotonic clock.  Because the pace does not
depend on the answers, a pause of the proxy is seen by every request that falls into
it, the first of which waits as long as the pause takes.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from bench.wire import REQUEST, answered

EVERY = 0.002
LAST_WAIT = 10.0  # seconds


@dataclass(slots=True, eq=False)
class Connection:
    """A connection, and the request that it carries, if it does."""

    socket: socket.socket
    sent: float = 0.0
    received: bytes = b""
    busy: bool = False


class Prober:
    """Connections that are opened as they are needed, and the results."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._idle: list[Connection] = []
        self.results: list[tuple[float, float, int]] = []

    def run(self) -> None:
        """Send at the pace until standard input ends, then wait for what is due."""
        self._poll.register(0, select.EPOLLIN | select.EPOLLHUP)
        next_send = time.monotonic()
        while True:
            if time.monotonic() >= next_send:
                self._send(next_send)
                next_send += EVERY
            if self._handle(max(0.0, next_send - time.monotonic())):
                break
        self._poll.unregister(0)
        deadline = time.monotonic() + LAST_WAIT
        while any(c.busy for c in self._connections.values()) and time.monotonic() < deadline:
            self._handle(0.1)
        now = time.monotonic()
        self.results += [(c.sent, now - c.sent, 0) for c in self._connections.values() if c.busy]

    def _send(self, due: float) -> None:
        connection = self._idle.pop() if self._idle else self._connect()
        # From when it was due, so that a late prober shortens no wait.
        connection.sent, connection.received, connection.busy = due, b"", True
        with suppress(OSError):  # then reading tells that it failed
            connection.socket.sendall(REQUEST)

    def _connect(self) -> Connection:
        s = socket.create_connection(("127.0.0.1", self._port))
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self._connections[s.fileno()] = Connection(s)
        self._poll.register(s, select.EPOLLIN)
        return connection

    def _handle(self, timeout: float) -> bool:
        for number, _ in self._poll.poll(timeout):
            if number == 0:
                return True
            self._read(self._connections[number])
        return False

    def _read(self, connection: Connection) -> None:
        status = -1
        with suppress(OSError, ValueError):
            data = connection.socket.recv(65536)
            connection.received += data
            status = answered(connection.received) if data else -1
            if not status:
                return
        if connection.busy:
            self.results.append((connection.sent, time.monotonic() - connection.sent, status))
        if status > 0:
            connection.busy = False
            self._idle.append(connection)
            return
        if connection in self._idle:
            self._idle.remove(connection)
        del self._connections[connection.socket.fileno()]
        self._poll.unregister(connection.socket)
        connection.socket.close()


def main() -> None:
    """Probe, then print the results."""
    prober = Prober(int(sys.argv[1]))
    prober.run()
    print(json.dumps(prober.results), flush=True)


if __name__ == "__main__":
    main()
