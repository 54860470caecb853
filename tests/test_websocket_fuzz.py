"""What one end of a WebSocket gets wrong, or only just right, is the other end's to judge.

Each case is played to a real library directly, and then through the proxy: the library
must see the same bytes and come to the same judgement, and whoever played it must see
that, and the end of the connection, in the same way.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import re
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from plane_stage import END, Origin, Wire, eventually, reactor, stage, turns, twisted_test
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from websocket_cases import BYE, CASES, Case, Piece
from websocket_stage import Speaker, Speakers, echo, speak
from websockets.frames import CloseCode, Frame, Opcode
from websockets.streams import StreamReader

KEY = b"MTIzNDU2Nzg5MDEyMzQ1Ng=="
ASK = (
    b"GET /chat HTTP/1.1\r\nHost: blog.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n"
)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


# The two ends


class Judge:
    """Says everything again, and will not have text that is none."""

    def __init__(self) -> None:
        self._decoders: dict[Speaker, Any] = {}

    def __call__(self, speaker: Speaker, frame: Frame) -> None:
        if frame.opcode is Opcode.TEXT:
            self._decoders[speaker] = codecs.getincrementaldecoder("utf-8")()
        elif frame.opcode is Opcode.BINARY:
            self._decoders.pop(speaker, None)
        if frame.opcode in (Opcode.TEXT, Opcode.CONT) and speaker in self._decoders:
            try:
                self._decoders[speaker].decode(bytes(frame.data), frame.fin)
            except UnicodeDecodeError:
                speaker.ws.fail(CloseCode.INVALID_DATA)
                return
        echo(speaker, frame)


class Uninflated:
    """Takes compressed frames for what they are."""

    name = "uninflated"

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        return replace(frame, rsv1=False)


def frames_in(data: bytes) -> list[tuple[int, bytes]]:
    """The frames of a client, as the library reads them: unmasked."""
    reader = StreamReader()
    reader.feed_data(data)
    found = []
    while True:
        parsing = Frame.parse(reader.read_exact, mask=True, extensions=EXTENSIONS)
        try:
            next(parsing)
        except StopIteration as parsed:
            found.append((int(parsed.value.opcode), bytes(parsed.value.data)))
        else:
            return found


EXTENSIONS: Any = [Uninflated()]


@dataclass
class Seen:
    """How a case was taken."""

    answer: Any  # by who played it
    reset: bool
    frames: list[Frame]  # by the library, as far as it followed
    judgement: tuple[Any, ...]


def judgement(speaker: Speaker) -> tuple[Any, ...]:
    ws = speaker.ws
    wrong = repr(ws.parser_exc) if ws.parser_exc is not None else ""
    return (ws.close_rcvd, ws.close_sent, ws.close_rcvd_then_sent, wrong, speaker.reset)


async def play(wire: Wire, writes: list[bytes]) -> None:
    for data in writes:
        if wire.closed:
            return
        wire.write(data)
        if len(writes) > 1:
            await turns(2)


async def everything(wire: Wire, speaker: Speaker, whole: bytes) -> None:
    """Wait until all has come that was sent, either way."""

    def come() -> bool:
        return speaker.behind_head == whole and wire.buffer == speaker.sent.partition(END)[2]

    await eventually(come, "all of it")


async def to_a_server(port: int, server: Speakers, case: Case) -> Seen:
    """Play a case as a client."""
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    wire: Wire = await connectProtocol(endpoint, Wire())  # type: ignore[no-untyped-call]
    wire.write(ASK + (DEFLATE if case.deflate else b"") + b"\r\n")
    assert b" 101 " in await wire.until(END)
    speaker = server.last
    writes = case.writes(mask=True)
    await play(wire, writes)
    whole = b"".join(writes)
    if case.breaks_off:
        await everything(wire, speaker, whole)
        wire.close()
    answer = await wire.rest()
    await speaker.ended()
    # What is sent when the server has said goodbye may be read by nobody.
    assert whole.startswith(speaker.behind_head)
    if speaker.ws.close_sent is None:
        assert speaker.behind_head == whole
    assert answer == speaker.sent.partition(END)[2]
    return Seen(answer, wire.reset, speaker.frames, judgement(speaker))


async def to_a_client(port: int, server: Origin, case: Case) -> Seen:
    """Play a case as a server."""
    asking = Deferred.fromCoroutine(speak(port, deflate=case.deflate, heard=Judge()))
    wire = await server.accept()
    head = await wire.until(END)
    key = re.search(rb"(?i)sec-websocket-key: (.*)\r", head)
    assert key
    accept = base64.b64encode(hashlib.sha1(key[1] + GUID).digest())
    wire.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept, DEFLATE if case.deflate else b"")
    )
    speaker = await asking
    writes = case.writes(mask=False)
    await play(wire, writes)
    whole = b"".join(writes)

    def said_goodbye() -> bool:
        return any(opcode == Opcode.CLOSE for opcode, _ in frames_in(wire.buffer))

    if case.breaks_off:
        await everything(wire, speaker, whole)
    else:
        await eventually(said_goodbye, "goodbye")
    wire.close()
    answer = await wire.rest()
    await speaker.ended()
    assert speaker.behind_head == whole
    assert answer == speaker.sent.partition(END)[2]
    return Seen(frames_in(answer), wire.reset, speaker.frames, judgement(speaker))


async def compared_at_a_server(case: Case) -> None:
    """A client's case, with a proxy between and without."""
    server = Speakers(Judge())
    try:
        direct = await to_a_server(server.number, server, case)
        async with stage(backend={"servers": (server.server,)}) as s:
            assert await to_a_server(s.plane.listening[0].port, server, case) == direct
            await s.quiet()
    finally:
        await server.stop()


async def compared_at_a_client(case: Case) -> None:
    """A server's case, with a proxy between and without."""
    async with stage() as s:
        direct = await to_a_client(s.origin.number, s.origin, case)
        assert await to_a_client(s.plane.listening[0].port, s.origin, case) == direct
        await s.quiet()


@pytest.mark.parametrize("name", CASES)
@twisted_test
async def test_a_server_judges_a_client_as_it_would_without_a_proxy(name: str) -> None:
    await compared_at_a_server(CASES[name])


@pytest.mark.parametrize("name", CASES)
@twisted_test
async def test_a_client_judges_a_server_as_it_would_without_a_proxy(name: str) -> None:
    await compared_at_a_client(CASES[name])


def made_up(seed: int) -> Case:
    """A script that nobody has thought of, always the same for a seed."""
    chance = Random(seed)
    pieces = [
        Piece(
            chance.choice([0, 0, 1, 1, 2, 9, 10, chance.randrange(16)]),
            chance.choice([b"", "Grüße".encode(), chance.randbytes(chance.choice([3, 125, 999]))]),
            fin=chance.random() < 0.6,
            rsv=chance.choice([0] * 20 + [1, 4]),
            form=chance.choice([0, 0, 8]),
        )
        for _ in range(chance.randrange(1, 12))
    ]
    deflate = chance.random() < 0.3
    return Case((*pieces, BYE), chop=chance.choice([0, 0, 5, 100]), deflate=deflate)


@pytest.mark.parametrize("seed", range(40))
@twisted_test
async def test_nor_does_it_matter_for_scripts_that_nobody_has_thought_of(seed: int) -> None:
    await compared_at_a_server(made_up(seed))
    await compared_at_a_client(made_up(seed))
