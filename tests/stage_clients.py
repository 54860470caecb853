"""Clients on the stage: connections that say what they are told, and keep what they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stage_waiting import until
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure


@dataclass
class Answer:
    """A response, and how its connection ended."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Talk(Protocol):
    """A client's connection: sends what it is told, keeps what it gets."""

    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.closed = False

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def ask(self, path: str, host: str = "blog.test", method: str = "GET", more: str = "") -> None:
        """Send a request without a body."""
        self.send(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode())

    async def gets(self, text: bytes, count: int = 1) -> None:
        """Wait until ``text`` has come so many times."""
        await until(
            lambda: self.data.count(text) >= count or self.closed, f"{text!r} in {self.data!r}"
        )
        assert self.data.count(text) >= count, f"closed before {text!r}: {self.data!r}"

    async def ends(self) -> Answer:
        """Wait for the end of the connection; the (only) answer."""
        await until(lambda: self.closed, f"the end after {self.data!r}")
        return self.answer()

    def answer(self) -> Answer:
        head, _, body = self.data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        fields = (line.partition(": ") for line in lines)
        status = int(first.split()[1]) if first else 0
        return Answer(status, {name.lower(): value for name, _, value in fields}, body)

    async def close(self) -> None:
        """Leave."""
        if not self.closed:
            self.transport.abortConnection()
        await until(lambda: self.closed, "leaving")
