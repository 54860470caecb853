"""A backend that writes down every byte that reaches it: when, for which site, from whom.

It is a process of its own, on the clock that all processes of a machine share.  Each server
that it is has a port and belongs to one backend of one site, so that a byte is known to be
for that site before a line of a request has been read.  It answers, too: at once, or later
if the path begins with ``/slow/``.

Lines of the record: ``bytes NANOSECONDS SITE BACKEND ADDRESS COUNT`` for each that arrive
together, ``asked NANOSECONDS SITE BACKEND ADDRESS METHOD PATH`` for each request.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SLOW = 0.08  # seconds


@dataclass(frozen=True, slots=True)
class Door:
    """A server: its address, and whose it is."""

    address: str
    port: int
    site: str
    backend: str

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"


class Recorder:
    """The process, and what it has written."""

    def __init__(self, path: Path, doors: Sequence[Door], inside: Sequence[str] = ()) -> None:
        """
        :param path: the file of its record.
        :param inside: what runs a command where it should listen.
        """
        self.path = path
        self.doors = list(doors)
        told = json.dumps([asdict(door) for door in doors])
        words = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, __file__, str(path), told]
        self._process = subprocess.Popen([*inside, *words], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def lines(self, kind: str) -> list[list[str]]:
        """The words of the lines that begin with ``kind``, without that."""
        words = (line.split(" ") for line in self.path.read_text().splitlines())
        return [rest for first, *rest in words if first == kind]

    def paths(self) -> list[str]:
        """What was asked for, as often as it was."""
        return [words[-1] for words in self.lines("asked")]


class _Served(asyncio.Protocol):
    def __init__(self, door: Door, record: int) -> None:
        self._door = door
        self._record = record
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._source = transport.get_extra_info("peername")[0]

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._write(f"bytes {now}", len(data))
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            first, *fields = self._buffer[:end].decode("latin-1").split("\r\n")
            named = dict(field.lower().split(":", 1) for field in fields)
            whole = end + 4 + int(named.get("content-length", 0))
            if len(self._buffer) < whole:
                return
            self._buffer = self._buffer[whole:]
            method, path, _ = first.split(" ")
            self._write(f"asked {now}", method, path)
            if path.startswith("/slow/"):
                asyncio.get_running_loop().call_later(SLOW, self._answer)
            else:
                self._answer()

    def _answer(self) -> None:
        body = f"{self._door.site} on {self._door.backend}\n".encode()
        if not self._transport.is_closing():
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )

    def _write(self, what: str, *more: object) -> None:
        words = [what, self._door.site, self._door.backend, self._source, *map(str, more)]
        os.write(self._record, f"{' '.join(words)}\n".encode())


async def _serve(path: str, doors: list[Door]) -> None:
    record = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    loop = asyncio.get_running_loop()
    for door in doors:

        def served(door: Door = door) -> _Served:
            return _Served(door, record)

        await loop.create_server(served, door.address, door.port, backlog=1000)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], [Door(**each) for each in json.loads(sys.argv[2])]))
