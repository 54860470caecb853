"""Many clients with one request each, all waiting at the same time.

Run as ``python -m bench.herd PORT COUNT``.  It connects at a steady pace, sends a
request on each connection, prints a JSON line ``{"sent": ..., "failed": ...}``,
waits until all are answered or its standard input ends, and prints another:
``{"answered": ..., "failed": ..., "first": ..., "last": ...}``, the last two being
times of the monotonic clock at which the first and the last answer was complete.
The clients share four loopback addresses, for one has too few ports.
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

ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
PACE = 3000  # connections a second: a listener's queue is not what is measured
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: choose the port at connect, for the whole 4-tuple


@dataclass(slots=True)
class Client:
    """One connection, and what has come back on it."""

    socket: socket.socket
    received: bytes = b""


class Herd:
    """The clients, and what has become of them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poll = select.epoll()
        self._waiting: dict[int, Client] = {}
        self.answered = 0
        self.failed = 0
        self.first = 0.0
        self.last = 0.0

    def send(self, count: int) -> None:
        """Connect ``count`` clients and send a request from each."""
        start = time.monotonic()
        for n in range(count):
            ahead = n / PACE - (time.monotonic() - start)
            if ahead > 0.01:
                time.sleep(ahead)
            s = socket.socket()
            try:
                s.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                s.bind((ADDRESSES[n % len(ADDRESSES)], 0))
                s.connect(("127.0.0.1", self._port))
                s.sendall(REQUEST)
            except OSError:
                s.close()
                self.failed += 1
                continue
            s.setblocking(False)
            self._waiting[s.fileno()] = Client(s)
            self._poll.register(s, select.EPOLLIN)

    def wait(self) -> None:
        """Return when every client has its answer, or standard input has ended."""
        self._poll.register(0, select.EPOLLIN | select.EPOLLHUP)
        while self._waiting:
            for number, _ in self._poll.poll():
                if number == 0:
                    self.failed += len(self._waiting)
                    return
                self._read(number)

    def _read(self, number: int) -> None:
        client = self._waiting[number]
        status = -1
        with suppress(OSError, ValueError):
            data = client.socket.recv(65536)
            client.received += data
            status = answered(client.received)
            if not status and data:
                return
        self.last = time.monotonic()
        self.first = self.first or self.last
        if status == 200:
            self.answered += 1
        else:
            self.failed += 1
        self._poll.unregister(number)
        client.socket.close()
        del self._waiting[number]


def main() -> None:
    """Send, report, wait, report."""
    port, count = (int(argument) for argument in sys.argv[1:])
    herd = Herd(port)
    herd.send(count)
    print(json.dumps({"sent": count - herd.failed, "failed": herd.failed}), flush=True)
    herd.wait()
    result = {
        "answered": herd.answered,
        "failed": herd.failed,
        "first": herd.first,
        "last": herd.last,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
