"""Origins on the stage: servers that write down what reaches them, and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
from stage_waiting import HOST, reactor, until
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure


@dataclass
class Asked:
    """A request as it reached an origin."""

    method: str
    path: str
    headers: dict[str, str]
    at: float  # time.monotonic() of its first byte
    body: bytes = b""
    complete: bool = False


class OriginConnection(Protocol):
    """Reads requests with llhttp, and lets the origin answer each when it is complete."""

    transport: Any

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.parser = httptools.HttpRequestParser(self)
        self.asked: Asked | None = None
        self.upgraded = False
        self._at = 0.0

    def connectionMade(self) -> None:
        self.origin.connections.add(self)
        self.origin.connected += 1

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.origin.connections.discard(self)

    def dataReceived(self, data: bytes) -> None:
        self._at = time.monotonic()
        self.origin.bytes_at.append(self._at)
        if self.upgraded:
            self.transport.write(b"echo " + data)
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.upgraded = True

    def on_message_begin(self) -> None:
        self.asked = Asked("", "", {}, self._at)

    def on_url(self, url: bytes) -> None:
        assert self.asked is not None
        self.asked.path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self.asked is not None
        self.asked.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        assert self.asked is not None
        self.asked.method = self.parser.get_method().decode()
        self.origin.asked.append(self.asked)

    def on_body(self, body: bytes) -> None:
        assert self.asked is not None
        self.asked.body += body

    def on_message_complete(self) -> None:
        assert self.asked is not None
        self.asked.complete = True
        self.origin.answer(self, self.asked)

    def reply(self, body: bytes, status: str = "200 OK") -> None:
        self.transport.write(
            b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)
        )


class Origin(Factory):
    """A server that answers at once, or when it is told to, and keeps all it was asked.

    - ``/later`` is answered by :meth:`let_go`, not before; ``/begun`` ends with it;
    - ``/events`` is an event stream without an end, ``/upgrade`` echoes what comes after;
    - ``/health`` says how it is; ``/crash`` closes the connection without an answer;
    - anything else: ``NAME PATH``, after what ``work`` has done.
    """

    noisy = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections: set[OriginConnection] = set()
        self.connected = 0  # connections it has had
        self.asked: list[Asked] = []
        self.bytes_at: list[float] = []  # when bytes came, by time.monotonic()
        self.waiting: list[tuple[OriginConnection, Asked]] = []
        self.healthy = True
        self.delay = 0.0  # seconds before an answer
        self.work: Callable[[Asked], None] = lambda asked: None
        self.port = 0
        self._listening: Any = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def buildProtocol(self, addr: object) -> OriginConnection:
        return OriginConnection(self)

    def open(self) -> None:
        """Listen, the second time at the same place."""
        self._listening = reactor.listenTCP(self.port, self, backlog=1024, interface=HOST)
        self.port = self._listening.getHost().port

    async def close(self) -> None:
        """Refuse connections from now on, and end those that there are."""
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.stopListening()
        for connection in list(self.connections):
            connection.transport.abortConnection()
        await until(lambda: not self.connections, "the end of an origin's connections")

    def paths(self, method: str = "") -> list[str]:
        """What was asked for, but for health checks."""
        return [
            asked.path
            for asked in self.asked
            if asked.path != "/health" and method in ("", asked.method)
        ]

    async def has(self, path: str, count: int = 1) -> None:
        """Wait until a path has been asked for so many times."""
        await until(lambda: self.paths().count(path) >= count, f"{path} at {self.name}")

    def let_go(self) -> None:
        """Answer those who wait."""
        waiting, self.waiting = self.waiting, []
        for connection, asked in waiting:
            if asked.path == "/begun":
                connection.transport.write(b"0\r\n\r\n")
            else:
                connection.reply(f"{self.name} {asked.path}".encode())

    def answer(self, connection: OriginConnection, asked: Asked) -> None:
        path = asked.path.partition("?")[0]
        transport = connection.transport
        if path == "/later":
            self.waiting.append((connection, asked))
        elif path == "/begun":
            self.waiting.append((connection, asked))
            transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        elif path == "/events":
            transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"
            )
        elif path == "/upgrade":
            transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
            )
        elif path == "/health":
            connection.reply(b"", "200 OK" if self.healthy else "503 Service Unavailable")
        elif path == "/crash":
            transport.abortConnection()
        elif self.delay:
            reactor.callLater(self.delay, self._reply, connection, asked)
        else:
            self._reply(connection, asked)

    def _reply(self, connection: OriginConnection, asked: Asked) -> None:
        self.work(asked)
        if connection.transport.connected:
            connection.reply(f"{self.name} {asked.path}".encode())
