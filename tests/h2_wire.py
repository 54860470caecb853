"""A client that speaks HTTP/2 frame by frame, so that tests read as transcripts.

It sends what it is told and judges nothing of that.  What it gets it keeps in order in
:attr:`Client.came`; a test asks for the frame it expects next, and anything that rules
this out -- an error, the end of the connection -- fails it with what came instead.

That *nothing* comes is not waited for: :meth:`Client.settled` sends a PING, and whatever
the server had to say before it has come when the PING returns.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import hpack
from h2_frames import (
    FRAME,
    PREFACE,
    SETTINGS_ACK,
    WINDOW,
    Error,
    Frame,
    Setting,
    Type,
    data,
    headers,
    ping,
    settings,
)
from h2_hpack import block
from plane_stage import Lost, Stage, Wire, always, ok, stage, turns

from awesomeproxy.model import Listen

H2C = Listen("tcp:0:interface=127.0.0.1", h2c=True)
HELLO = b"hello, you"
Script = Callable[[Wire], Any]
Fields = list[tuple[str, str]]


def request(
    *more: tuple[str, str],
    method: str = "GET",
    path: str = "/",
    scheme: str = "http",
    authority: str = "blog.example",
) -> Fields:
    """The fields of a request that is in order."""
    return [
        (":method", method),
        (":scheme", scheme),
        (":path", path),
        (":authority", authority),
        *more,
    ]


def but(*changed: tuple[str, str | None], more: Fields | None = None) -> Fields:
    """The fields of a request, with some changed, or left out."""
    changes = dict(changed)
    kept = [(name, changes.get(name, value)) for name, value in request()]
    return [(name, value) for name, value in kept if value is not None] + (more or [])


def ask(stream: int, *more: tuple[str, str], end: bool = True, **pseudo: str) -> bytes:
    """The HEADERS of such a request; all there is of it, if it is the ``end``."""
    return headers(stream, block(request(*more, **pseudo)), end=end)


@dataclass
class Response:
    """A response, as it came on a stream."""

    status: int = 0
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    interim: list[Fields] = field(default_factory=list)

    def __getitem__(self, name: str) -> str | None:
        """The one field of that name."""
        found = [value for key, value in self.fields if key == name]
        assert len(found) < 2, (name, found)
        return found[0] if found else None


class Client:
    """One connection."""

    def __init__(self, wire: Wire, on: Stage) -> None:
        self.wire = wire
        self.stage = on
        self.came: list[Frame] = []
        self.settings: dict[int, int] = {}  # the server's
        self.room: defaultdict[int, int] = defaultdict(self._initial_window)  # to send in
        self.room[0] = WINDOW
        self._unread: list[Frame] = []
        self.decoder = hpack.Decoder()
        self._pings = 0

    def _initial_window(self) -> int:
        return self.settings.get(Setting.INITIAL_WINDOW_SIZE, WINDOW)

    # Saying

    def send(self, *frames: bytes) -> None:
        """Send frames, in one write."""
        self.wire.write(b"".join(frames))

    async def greet(self, *pairs: tuple[int, int]) -> None:
        """Begin the connection, and wait until both sides have agreed on how."""
        self.send(PREFACE, settings(*pairs))
        first = await self.next()
        assert (first.type, first.ack) == (Type.SETTINGS, False), first
        self.send(SETTINGS_ACK)
        assert (await self.until(Type.SETTINGS)).ack

    async def agree(self, *pairs: tuple[int, int]) -> None:
        """Change settings, and wait until the server has done so."""
        self.send(settings(*pairs))
        assert (await self.until(Type.SETTINGS)).ack

    async def upload(self, stream: int, body: bytes, *, end: bool = True) -> None:
        """Send a body as the server's windows allow."""
        while body:
            size = self._sendable(stream, len(body))
            if not size:
                await self.until(Type.WINDOW_UPDATE)
                continue
            part, body = body[:size], body[size:]
            self._put(stream, part)
        if end:
            self.send(data(stream, end=True))

    async def fill(self, stream: int, most: int = 1 << 24) -> int:
        """Send until the windows are used up and stay so; return how much was sent."""
        sent = idle = 0
        while idle < 5 and sent < most:
            size = self._sendable(stream, most)
            if size:
                self._put(stream, bytes(size))
            sent += size
            idle = 0 if size else idle + 1
            await self.settled()
        return sent

    def _sendable(self, stream: int, wanted: int) -> int:
        return max(0, min(self.room[0], self.room[stream], FRAME, wanted))

    def _put(self, stream: int, part: bytes) -> None:
        self.room[0] -= len(part)
        self.room[stream] -= len(part)
        self.send(data(stream, part))

    # Hearing

    async def next(self) -> Frame:
        """The next frame, whatever it is."""
        return self._unread.pop(0) if self._unread else await self._arrive()

    async def until(self, type_: int, stream: int | None = None) -> Frame:
        """The next frame of that type; others stay unread.

        :param stream: it is on this one, and what comes before it there is passed over.
        """
        wanted = Type(type_).name
        if stream is None:
            return await self._find(lambda frame: frame.type == type_, wanted)
        while (frame := await self.on(stream)).type != type_:
            assert frame.type != Type.RST_STREAM, f"no {wanted}, but {frame}"
        return frame

    async def on(self, stream: int) -> Frame:
        """The next frame on a stream that is no WINDOW_UPDATE."""
        return await self._find(
            lambda frame: frame.stream == stream and frame.type != Type.WINDOW_UPDATE,
            f"something on stream {stream}",
        )

    async def content(self, stream: int, size: int) -> bytes:
        """The next bytes of DATA on a stream, in however many frames they come."""
        said = b""
        while len(said) < size:
            said += (await self.until(Type.DATA, stream)).content
        return said

    async def settled(self) -> list[Frame]:
        """What is unread once the server has had its say; WINDOW_UPDATEs aside."""
        for _ in range(3):
            await turns()
            await self._round_trip()
        return [frame for frame in self._unread if frame.type != Type.WINDOW_UPDATE]

    async def _round_trip(self) -> None:
        self._pings += 1
        opaque = b"%08d" % self._pings
        self.send(ping(opaque))
        await self._find(
            lambda frame: frame.type == Type.PING and frame.payload == opaque,
            "the return of a PING",
        )

    async def response(self, stream: int = 1) -> Response:
        """The whole response to the request of a stream."""
        response = Response()
        while True:
            frame = await self.on(stream)
            assert frame.type in (Type.HEADERS, Type.DATA), f"no response: {frame}"
            if frame.type == Type.DATA:
                assert response.status, "DATA without HEADERS"
                response.body += frame.content
            elif response.status:
                assert frame.ends_stream, "a second HEADERS that is not the end"
                response.trailers = frame.fields
            else:
                self._head(response, frame)
            if frame.ends_stream:
                return response

    def _head(self, response: Response, frame: Frame) -> None:
        (name, status), *fields = frame.fields
        assert name == ":status", frame.fields
        assert not any(name.startswith(":") for name, _ in fields), fields
        if status[0] == "1":
            assert not frame.ends_stream
            response.interim.append(frame.fields)
        else:
            response.status = int(status)
            response.fields = fields

    # What errors look like

    async def stream_error(self, stream: int, *codes: Error) -> None:
        """The stream is reset so, and the connection lives."""
        while (frame := await self.on(stream)).type != Type.RST_STREAM:
            pass  # a server may answer before it resets (section 8.1.1)
        assert frame.error in codes, frame
        await self.settled()

    async def connection_error(self, *codes: Error) -> None:
        """The connection ends so: with a GOAWAY that says why, and in an orderly way."""
        frame = await self.until(Type.GOAWAY)
        assert frame.error in codes, frame
        assert frame.stream == 0
        await self.end()

    async def error(self, stream: int, *codes: Error) -> None:
        """Either of both, where both are allowed (RFC 9113, section 5.4)."""
        frame = await self._find(
            lambda frame: (
                frame.type == Type.GOAWAY
                or (frame.type == Type.RST_STREAM and frame.stream == stream)
            ),
            "an error",
        )
        assert frame.error in codes, frame
        if frame.type == Type.GOAWAY:
            await self.end()
        else:
            await self.settled()

    async def end(self) -> None:
        """The connection is closed by the server, and not reset."""
        await self.wire.rest()
        assert not self.wire.reset, "the connection was reset"

    # How it comes

    async def _find(self, wanted: Callable[[Frame], bool], what: str) -> Frame:
        at = 0
        while True:
            if at == len(self._unread):
                try:
                    self._unread.append(await self._arrive())
                except Lost as lost:
                    came = ", ".join(map(str, self.came[-20:]))
                    raise Lost(f"no {what}: {str(lost)[:80]}; came: {came}") from None
            frame = self._unread[at]
            if wanted(frame):
                return self._unread.pop(at)
            assert frame.type != Type.GOAWAY or not frame.error, f"no {what}, but {frame}"
            at += 1

    async def _arrive(self) -> Frame:
        frame = await self._frame()
        if frame.type == Type.HEADERS:
            fragments = frame.content
            last = frame
            while not last.flags & 0x4:
                last = await self._frame()
                assert (last.type, last.stream) == (Type.CONTINUATION, frame.stream), last
                fragments += last.content
            frame.fields = [
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in self.decoder.decode(fragments, raw=True)
            ]
        elif frame.type == Type.SETTINGS:
            self.settings.update(frame.settings)
        elif frame.type == Type.WINDOW_UPDATE:
            self.room[frame.stream] += frame.number
        return frame

    async def _frame(self) -> Frame:
        head = await self.wire.exactly(9)
        payload = await self.wire.exactly(int.from_bytes(head[:3], "big"))
        stream = int.from_bytes(head[5:], "big")
        frame = Frame(head[3], head[4], stream, payload)
        self.came.append(frame)
        return frame


async def knock(s: Stage) -> Client:
    """A connection on which nothing has been said."""
    return Client(await s.connect(), s)


async def greeted(s: Stage, *pairs: tuple[int, int]) -> Client:
    """A connection that is ready, with these settings of the client."""
    client = await knock(s)
    await client.greet(*pairs)
    return client


@contextlib.asynccontextmanager
async def conversation(
    *scripts: Script | None,
    pairs: tuple[tuple[int, int], ...] = (),
    listen: Listen = H2C,
    **more: Any,
) -> AsyncIterator[Client]:
    """A connection that is ready; the server behind the proxy answers all requests alike.

    :param scripts: what else the servers do; None: the test does it by hand.
    :param pairs: settings of the client.
    """
    async with stage(*(scripts or (always(ok(HELLO)),)), listen=listen, **more) as s:
        yield await greeted(s, *pairs)
