"""Two who speak WebSocket, with the frame layer of a real library, on real sockets.

What is said and heard is the library's business (``websockets``, its part without I/O);
here it is given the reactor's connections.  Every byte that came behind the heads of the
handshake is kept, to be compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from plane_stage import GUARD, Stage, eventually, reactor, stage
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN, State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from awesomeproxy.model import Server

END = b"\r\n\r\n"
URI = "ws://blog.example/chat"
DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
UNBOUNDED = 1 << 40


class Speaker(Protocol):
    """One end; ``ws`` is the library's."""

    transport: Any

    def __init__(self, ws: Any, heard: Callable[[Speaker, Frame], None] | None = None) -> None:
        self.ws = ws
        self.frames: list[Frame] = []
        self.came = b""  # all of it
        self.sent = b""
        self.lost = False
        self.reset = False
        self._heard = heard

    def dataReceived(self, data: bytes) -> None:
        self.came += data
        # The library answers a goodbye before it tells what came before, if that came with it.
        step = 1 if len(data) < 4096 else len(data) - 1
        for at in range(0, len(data), step):
            self.ws.receive_data(data[at : at + step])
            self.turn()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        self.reset = reason.type is not connectionDone.type
        self.ws.receive_eof()
        self.turn()

    @property
    def behind_head(self) -> bytes:
        """What came behind the head of the handshake."""
        return self.came.partition(END)[2]

    def turn(self) -> None:
        """Take note of what has come, and send what there is to send."""
        for event in self.ws.events_received():
            if isinstance(event, Request):
                self.ws.send_response(self.ws.accept(event))
            elif isinstance(event, Frame):
                self.frames.append(event)
                if self._heard is not None and self.ws.state is OPEN:
                    self._heard(self, event)
            else:
                assert isinstance(event, Response)
        for data in self.ws.data_to_send():
            if self.lost:
                continue
            if data:
                self.sent += data
                self.transport.write(data)
            else:
                self.transport.loseWriteConnection()

    async def hears(self, count: int) -> list[Frame]:
        """Wait for so many frames, and take them."""
        await eventually(lambda: len(self.frames) >= count, f"{count} frames: {self.frames}")
        frames, self.frames = self.frames[:count], self.frames[count:]
        return frames

    async def message(self) -> bytes:
        """Wait for a whole message, and take it."""
        parts = []
        while True:
            (frame,) = await self.hears(1)
            if frame.opcode in DATA:
                parts.append(bytes(frame.data))
                if frame.fin:
                    return b"".join(parts)

    def text(self, message: bytes, *, fin: bool = True) -> None:
        """Say something."""
        self.ws.send_text(message, fin)
        self.turn()

    async def ended(self) -> None:
        """Wait for the end of the connection."""
        await eventually(lambda: self.lost, "the end")


def echo(speaker: Speaker, frame: Frame) -> None:
    """Say everything again, frame for frame."""
    if frame.opcode in DATA:
        send = {
            Opcode.TEXT: speaker.ws.send_text,
            Opcode.BINARY: speaker.ws.send_binary,
            Opcode.CONT: speaker.ws.send_continuation,
        }[frame.opcode]
        send(bytes(frame.data), frame.fin)


class Speakers(Factory):
    """A server of WebSockets."""

    noisy = False

    def __init__(self, heard: Callable[[Speaker, Frame], None] | None = echo) -> None:
        self.all: list[Speaker] = []
        self._heard = heard
        self.port = reactor.listenTCP(0, self, interface="127.0.0.1", backlog=500)
        self.number = self.port.getHost().port

    def buildProtocol(self, addr: object) -> Speaker:
        extensions = [ServerPerMessageDeflateFactory()]
        ws = ServerProtocol(extensions=extensions, max_size=UNBOUNDED)
        speaker = Speaker(ws, self._heard)
        self.all.append(speaker)
        return speaker

    @property
    def server(self) -> Server:
        return Server("http", "127.0.0.1", self.number)

    @property
    def last(self) -> Speaker:
        """The one that a client has got last."""
        return [speaker for speaker in self.all if speaker.came][-1]

    async def stop(self) -> None:
        await self.port.stopListening()
        for speaker in self.all:
            if not speaker.lost:
                speaker.transport.abortConnection()
        await eventually(lambda: all(speaker.lost for speaker in self.all), "the server's end")


async def speak(
    port: int,
    *,
    deflate: bool = False,
    wait: bool = True,
    heard: Callable[[Speaker, Frame], None] | None = None,
) -> Speaker:
    """A client with an open WebSocket; without ``wait``, with one that was asked for."""
    extensions = [ClientPerMessageDeflateFactory()] if deflate else None
    ws = ClientProtocol(parse_uri(URI), extensions=extensions, max_size=UNBOUNDED)
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port, timeout=int(GUARD))
    speaker: Speaker = await connectProtocol(endpoint, Speaker(ws, heard))  # type: ignore[no-untyped-call]
    ws.send_request(ws.connect())
    speaker.turn()
    if wait:
        await eventually(lambda: ws.state is not State.CONNECTING, "the handshake")
        assert ws.state is OPEN, ws.handshake_exc
    return speaker


class Talk:
    """A stage whose server speaks WebSocket, and the clients that speak to it."""

    def __init__(self, on: Stage, server: Speakers) -> None:
        self.stage = on
        self.server = server
        self.clients: list[Speaker] = []

    async def client(self, **how: Any) -> Speaker:
        client = await speak(self.stage.plane.listening[0].port, **how)
        self.clients.append(client)
        return client


@contextlib.asynccontextmanager
async def talk(
    heard: Callable[[Speaker, Frame], None] | None = echo, **site: Any
) -> AsyncIterator[Talk]:
    """A plane in front of a server that says again whatever it hears."""
    server = Speakers(heard)
    try:
        async with stage(backend={"servers": (server.server,)}, **site) as on:
            found = Talk(on, server)
            yield found
            for client in found.clients:
                if not client.lost:
                    client.transport.abortConnection()
            await eventually(lambda: all(c.lost for c in found.clients), "the clients' end")
    finally:
        await server.stop()
