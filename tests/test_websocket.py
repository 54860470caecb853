"""WebSockets: what passes, how they are parted, and when."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded
from hypothesis import given
from hypothesis import strategies as st
from plane_stage import (
    GET,
    LISTEN,
    Stage,
    Wire,
    eventually,
    one_request,
    stage,
    turns,
    twisted_test,
)
from twisted.internet.defer import Deferred
from websocket_stage import Speaker, Talk, talk
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from awesomeproxy.model import Drain, Mode
from awesomeproxy.proxy.websocket import Frames, close_frame, masked_close_frame

ASK = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
GOES = b"\x88\x02\x03\xf4"  # Close, 1012
SIZES = (0, 1, 125, 126, 127, 128, 65535, 65536, 65537)


def frame(data: bytes = b"hello", opcode: Opcode = Opcode.TEXT, *, mask: bool = False) -> bytes:
    """One frame, as the library writes it."""
    return Frame(opcode, data).serialize(mask=mask)


def read(data: bytes, *, mask: bool) -> Frame:
    """One frame, as the library reads it."""
    reader = StreamReader()
    reader.feed_data(data)
    parsing = Frame.parse(reader.read_exact, mask=mask)
    with pytest.raises(StopIteration) as parsed:
        next(parsing)
    found: Frame = parsed.value.value
    return found


# Frames


@pytest.mark.parametrize("mask", [False, True], ids=["bare", "masked"])
@pytest.mark.parametrize("size", SIZES)
def test_a_frame_ends_where_its_length_says(size: int, mask: bool) -> None:
    whole = frame(b"x" * size, mask=mask)
    for cut in {*range(20), len(whole) // 2, *range(len(whole) - 20, len(whole) + 1)}:
        if 0 <= cut <= len(whole):
            frames = Frames()
            assert frames.feed(whole[:cut]) == cut
            assert frames.between == (cut in (0, len(whole)))
            assert frames.feed(whole[cut:] + whole, to_end=True) == (len(whole) - cut or len(whole))
            assert frames.between


CONTROL = (Opcode.CLOSE, Opcode.PING, Opcode.PONG)
CHATTER = st.lists(
    st.one_of(
        st.builds(frame, st.binary(max_size=10), st.sampled_from(Opcode), mask=st.booleans()),
        st.builds(
            frame,
            st.sampled_from(SIZES).map(lambda size: b"y" * size),
            st.sampled_from([opcode for opcode in Opcode if opcode not in CONTROL]),
            mask=st.booleans(),
        ),
    ),
    max_size=6,
)


@given(CHATTER, st.lists(st.integers(0, 70_000)))
def test_it_does_not_matter_where_what_passes_is_cut(chatter: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(chatter)
    ends = set(accumulate(map(len, chatter), initial=0))
    frames = Frames()
    for start, end in pairwise(sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})):
        assert frames.between == (start in ends)
        assert frames.feed(whole[start:end]) == end - start
    assert frames.between
    assert frames.closed == any(one[0] & 0xF == Opcode.CLOSE for one in chatter)


@given(CHATTER, st.integers(0, 70_000))
def test_the_next_end_is_that_of_the_present_frame(chatter: list[bytes], cut: int) -> None:
    whole = b"".join(chatter)
    ends = list(accumulate(map(len, chatter), initial=0))
    cut %= len(whole) + 1
    frames = Frames()
    frames.feed(whole[:cut])
    if not frames.between:
        assert cut + frames.feed(whole[cut:], to_end=True) == min(e for e in ends if e >= cut)
    assert frames.between


def test_a_frame_of_any_length_is_passed_over_by_counting() -> None:
    frames = Frames()
    frames.feed(b"\x82\x7f" + (1 << 63).to_bytes(8, "big") + b"x" * 1000)
    assert repr(frames) == f"<Frames {(1 << 63) - 1000} bytes from the end of a frame>"
    assert not frames.between


def test_goodbye_is_said_when_its_frame_is_complete() -> None:
    frames = Frames()
    said = frame(b"\x03\xe8bye", Opcode.CLOSE, mask=True)
    frames.feed(said[:-1])
    assert not frames.closed
    frames.feed(said[-1:])
    assert frames.closed
    assert repr(frames) == "<Frames between frames, closed>"


@pytest.mark.parametrize("code", [1000, 1001, 1012])
def test_the_proxys_own_goodbyes_are_proper(code: int) -> None:
    for found in (
        read(close_frame(code), mask=False),
        read(masked_close_frame(code), mask=True),
    ):
        assert found.opcode is Opcode.CLOSE
        assert bytes(found.data) == code.to_bytes(2, "big")


# What passes


@twisted_test
async def test_compressed_messages_pass_untouched() -> None:
    async with talk() as t:
        client = await t.client(deflate=True)
        assert client.ws.extensions
        assert t.server.last.ws.extensions
        for message in (b"hello", b"hello" * 10_000, b""):
            client.text(message)
            assert await client.message() == message
        assert len(client.behind_head) < 1000


@twisted_test
async def test_pings_pass_between_the_parts_of_a_message() -> None:
    async with talk() as t:
        client = await t.client()
        client.text(b"one ", fin=False)
        client.ws.send_ping(b"there?")
        client.ws.send_continuation(b"and two", True)
        client.turn()
        heard = {(one.opcode, bytes(one.data), one.fin) for one in await client.hears(3)}
        assert heard == {
            (Opcode.TEXT, b"one ", False),
            (Opcode.PONG, b"there?", True),
            (Opcode.CONT, b"and two", True),
        }
        t.server.last.ws.send_ping(b"and you?")
        t.server.last.turn()
        pong = (await t.server.last.hears(4))[-1]
        assert (pong.opcode, bytes(pong.data)) == (Opcode.PONG, b"and you?")


@twisted_test
async def test_big_frames_pass() -> None:
    async with talk() as t:
        client = await t.client()
        for size in (65535, 65536, 5_000_000):
            client.text(b"x" * size)
            assert await client.message() == b"x" * size


@twisted_test
async def test_those_who_part_by_themselves_are_let() -> None:
    async with talk() as t:
        for first in ("client", "server"):
            client = await t.client()
            server = t.server.last
            one = client if first == "client" else server
            one.ws.send_close(4000, "enough")
            one.turn()
            await client.ended()
            await server.ended()
            for end in (client, server):
                assert end.ws.close_rcvd.code == 4000
                assert not end.reset
            await t.stage.quiet()
            assert t.stage.live.closed == 0


# Parted by the proxy


def told(client: Speaker, code: int = 1012) -> bool:
    """Whether a client was sent away with that code, in an orderly way."""
    ws = client.ws
    return client.lost and not client.reset and ws.close_code == code and bool(ws.close_sent)


@twisted_test
async def test_a_hold_sends_the_client_away_and_lets_the_server_finish() -> None:
    async with talk() as t:
        client = await t.client()
        server = t.server.last
        t.stage.place(Mode.HOLDING)
        await client.ended()
        await server.ended()
        assert told(client)
        assert server.ws.close_code == 1001
        assert server.ws.close_sent
        assert not server.reset
        assert client.behind_head == GOES
        await t.stage.drained()
        assert t.stage.live.observed().closed == 1


async def tunnel(s: Stage) -> tuple[Wire, Wire]:
    """A client and a server with a tunnel between them."""
    client = await s.connect(ASK)
    server = await s.origin.accept()
    await one_request(server)
    server.write(SWITCH)
    await client.answer()
    return client, server


@pytest.mark.parametrize("speaking", ["server", "client"])
@twisted_test
async def test_a_frame_under_way_is_finished_first_wherever_it_was(speaking: str) -> None:
    masked = speaking == "client"
    whole = frame(b"x" * 126, mask=masked)
    goodbye = (masked_close_frame(1001), GOES)  # as the server hears it, and the client
    async with stage(drain=Drain(tunnels=1.0)) as s:
        tunnels = [await tunnel(s) for _ in range(len(whole))]
        pairs = [ends if masked else ends[::-1] for ends in tunnels]
        for cut, (source, sink) in enumerate(pairs):
            source.write(whole[:cut])
            assert await sink.exactly(cut) == whole[:cut]
        s.place(Mode.HOLDING)
        for source, _ in pairs:
            await source.exactly(len(goodbye[masked]))  # towards it nothing was under way
        for cut, (source, sink) in enumerate(pairs):
            rest = whole[cut:] if cut else b""
            assert sink.buffer == b"" or not cut
            source.write(rest + frame(b"this is for nobody", mask=masked))
            assert await sink.exactly(len(rest)) == rest
            last = read(await sink.exactly(len(goodbye[not masked])), mask=masked)
            assert bytes(last.data) == (b"\x03\xe9" if masked else b"\x03\xf4")
        await turns()
        assert not any(end.buffer for ends in pairs for end in ends)
        await s.pass_time(1.5)
        await s.drained()


@twisted_test
async def test_a_frame_that_never_ends_is_waited_for_no_longer_than_for_a_moment() -> None:
    async with stage(drain=Drain(tunnels=5.0)) as s:
        client, server = await tunnel(s)
        server.write(frame()[:3])
        await client.exactly(3)
        s.place(Mode.HOLDING)
        await server.exactly(8)
        await s.pass_time(0.5)
        assert not client.closed
        await s.pass_time(1)
        assert await client.rest() == b""
        await s.drained()


@twisted_test
async def test_the_clients_connection_is_closed_when_both_have_said_goodbye() -> None:
    async with stage() as s:
        client, server = await tunnel(s)
        s.place(Mode.HOLDING)
        assert await client.exactly(4) == GOES
        await server.exactly(8)
        server.write(frame(b"\x03\xe9", Opcode.CLOSE))
        client.write(frame(b"late", mask=True))
        await turns()
        server.close()
        await eventually(lambda: server.closed)
        await turns(10)
        assert not client.closed
        assert client.buffer == b""
        client.write(frame(b"\x03\xf4", Opcode.CLOSE, mask=True))
        assert await client.rest() == b""
        assert not client.reset
        assert server.buffer == b""
        await s.drained()


@pytest.mark.parametrize("server_closes", [False, True])
@twisted_test
async def test_a_client_that_does_not_answer_is_not_waited_for(server_closes: bool) -> None:
    async with stage() as s:
        client, server = await tunnel(s)
        s.place(Mode.HOLDING)
        assert await client.exactly(4) == GOES
        if server_closes:
            server.close()
            await eventually(lambda: server.closed)
        await s.pass_time(1.5)
        assert await client.rest() == b""
        await s.drained()


@twisted_test
async def test_a_client_that_leaves_without_an_answer_takes_the_server_along() -> None:
    async with stage() as s:
        client, server = await tunnel(s)
        s.place(Mode.HOLDING)
        assert await client.exactly(4) == GOES
        client.abort()
        await server.exactly(8)
        assert await server.rest() == b""
        await s.drained()


@twisted_test
async def test_a_client_that_has_much_to_say_still_reads_why_it_has_to_go() -> None:
    """What it sends is read, though it goes nowhere: a reset would take the word away."""
    async with stage() as s:
        client, server = await tunnel(s)
        server.stop_reading()
        client.stop_reading()
        for _ in range(200):
            client.write(frame(b"x" * 60_000, mask=True))
        here: Any
        (here,) = s.live.connections
        await eventually(lambda: here.unsent)
        s.place(Mode.HOLDING)
        client.write(frame(b"\x03\xf4", Opcode.CLOSE, mask=True))
        await turns(50)
        server.abort()
        client.read_on()
        assert await client.rest() == GOES
        assert not client.reset
        await s.drained()


@pytest.mark.parametrize("first", ["client", "server"])
@twisted_test
async def test_a_handshake_that_has_begun_is_let_finish(first: str) -> None:
    async with stage() as s:
        client, server = await tunnel(s)
        ends: list[tuple[Wire, bool]] = [(client, True), (server, False)]
        if first == "server":
            ends.reverse()
        (one, mask), (other, other_mask) = ends
        said = frame(b"\x03\xe8", Opcode.CLOSE, mask=mask)
        one.write(said)
        assert await other.exactly(len(said)) == said
        s.place(Mode.HOLDING)
        await turns()
        answer = frame(b"\x03\xe8", Opcode.CLOSE, mask=other_mask)
        other.write(answer)
        assert await one.exactly(len(answer)) == answer
        server.close()
        assert await client.rest() == b""
        assert server.buffer == b""
        await s.drained()


@twisted_test
async def test_a_handshake_that_is_not_finished_is_finished_by_the_proxy() -> None:
    async with stage() as s:
        client, server = await tunnel(s)
        client.write(frame(b"\x03\xe8", Opcode.CLOSE, mask=True))
        await server.exactly(8)
        s.place(Mode.HOLDING)
        await s.pass_time(1.5)
        assert await client.rest() == GOES
        assert await server.rest() == b""
        await s.drained()


@twisted_test
async def test_one_that_neither_reads_nor_answers_is_closed_all_the_same() -> None:
    async with stage(drain=Drain(tunnels=5.0)) as s:
        client, server = await tunnel(s)
        client.stop_reading()
        server.write(frame(b"x" * 12_000_000))
        there: Any
        (there,) = s.plane.clients
        await eventually(lambda: there.unsent)
        s.place(Mode.HOLDING)
        await s.pass_time(10)
        await s.drained()


# When


async def settled(t: Talk) -> None:
    """Wait until those that were told to part have."""
    await eventually(lambda: not any(one.parting for one in t.stage.live.all_tunnels()), "parted")


@pytest.mark.parametrize("count", [1, 2, 9])
@twisted_test
async def test_they_are_told_evenly_and_the_last_in_time(count: int) -> None:
    async with talk(drain=Drain(tunnels=5.0)) as t:
        clients = [await t.client() for _ in range(count)]

        def left() -> int:
            return sum(not client.lost for client in clients)

        t.stage.place(Mode.HOLDING)
        for step in range(17):
            # The first at once, the last after 4 s, the rest between.
            share = (count - 1) * (1 - step * 0.25 / 4)
            await eventually(lambda: left() <= math.ceil(share), "those due told")  # noqa: B023
            await turns()
            assert left() >= math.floor(share)
            await t.stage.pass_time(0.25)
        await t.stage.drained()
        assert all(map(told, clients))
        assert t.stage.live.observed().closed == count


@twisted_test
async def test_what_cannot_be_told_stays_until_the_deadline() -> None:
    async with talk(drain=Drain(tunnels=5.0)) as t:
        s = t.stage
        client = await t.client()
        s.place(Mode.OPEN, "only0")
        other = await s.connect(ASK.replace(b"WebSocket", b"chat"))
        server = await s.origin.accept()
        await one_request(server)
        server.write(SWITCH.replace(b"websocket", b"chat"))
        await other.answer()
        s.place(Mode.HOLDING)
        await client.ended()
        await s.pass_time(4)
        other.write(b"still here")
        await server.exactly(10)
        await s.pass_time(2)
        assert await other.rest() == b""
        await s.drained()
        assert s.live.observed().closed == 2


@twisted_test
async def test_a_resume_leaves_alone_whoever_has_not_been_told() -> None:
    async with talk(drain=Drain(tunnels=5.0)) as t:
        clients = [await t.client() for _ in range(5)]
        t.stage.place(Mode.HOLDING)
        await turns()
        await t.stage.pass_time(1.75)
        t.stage.place()
        await settled(t)
        await t.stage.pass_time(10)
        stay = [client for client in clients if not client.lost]
        assert len(stay) == 3
        for client in stay:
            client.text(b"still here")
            assert await client.message() == b"still here"


@twisted_test
async def test_one_that_opens_during_the_drain_is_told_as_well() -> None:
    async with stage(drain=Drain(tunnels=5.0)) as s:
        client = await s.connect(ASK)
        server = await s.origin.accept()
        await one_request(server)
        s.place(Mode.HOLDING)
        await s.pass_time(30)
        server.write(SWITCH)
        await client.answer()
        assert await client.exactly(4) == GOES
        await s.pass_time(2)
        await s.drained()


@twisted_test
async def test_no_time_for_tunnels_is_none() -> None:
    async with talk(drain=Drain(tunnels=0.0)) as t:
        clients = [await t.client() for _ in range(3)]
        t.stage.place(Mode.HOLDING)
        await t.stage.drained()
        for client in clients:
            await client.ended()
            assert client.ws.close_code == 1012


@twisted_test
async def test_force_tells_all_and_waits_for_nobody() -> None:
    async with talk(drain=Drain(tunnels=30.0)) as t:
        clients = [await t.client() for _ in range(5)]
        t.stage.place(Mode.HOLDING)
        await turns()
        await settled(t)
        assert t.stage.plane.cut("blog") == 4
        await t.stage.drained()
        for client in clients:
            await client.ended()
            assert client.ws.close_code == 1012
        assert t.stage.live.observed().closed == 5


@twisted_test
async def test_those_of_a_removed_site_are_sent_away() -> None:
    async with talk(drain=Drain(tunnels=5.0)) as t:
        clients = [await t.client() for _ in range(3)]
        t.stage.plane.remove("blog")
        for _ in range(20):
            await t.stage.pass_time(0.25)
        for client in clients:
            await client.ended()
            assert told(client)


@twisted_test
async def test_those_of_a_stopping_proxy_are_sent_away() -> None:
    async with talk(drain=Drain(tunnels=5.0)) as t:
        clients = [await t.client() for _ in range(3)]
        stopped: list[Any] = []
        Deferred.fromCoroutine(t.stage.plane.stop(30.0)).addCallback(stopped.append)
        for _ in range(20):
            await t.stage.pass_time(0.25)
            await settled(t)
        await eventually(lambda: stopped, "the stop")
        assert all(map(told, clients))


@twisted_test
async def test_one_that_opens_while_the_proxy_stops_is_sent_away_as_well() -> None:
    async with stage() as s:
        client = await s.connect(ASK)
        server = await s.origin.accept()
        await one_request(server)
        stopped: list[Any] = []
        Deferred.fromCoroutine(s.plane.stop(30.0)).addCallback(stopped.append)
        await turns()
        server.write(SWITCH)
        await client.answer()
        assert await client.exactly(4) == GOES
        await s.pass_time(1.5)
        assert await client.rest() == b""
        await eventually(lambda: stopped, "the stop")


# Idle


@twisted_test
async def test_one_where_nothing_moves_is_sent_away() -> None:
    async with talk() as t:
        client = await t.client()
        patience = t.stage.site.timeouts.websocket
        for _ in range(2):
            await t.stage.pass_time(patience - 1)
            client.ws.send_ping(b"x")
            client.turn()
            await client.hears(1)
        await t.stage.pass_time(patience - 1)
        assert client.ws.close_code is None
        await t.stage.pass_time(2)
        await client.ended()
        assert told(client, 1001)
        await t.stage.quiet()


# In a stream of HTTP/2


class Streams:
    """A client that speaks HTTP/2, and WebSocket in its streams (RFC 8441)."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.h2 = H2Connection()
        self.h2.initiate_connection()
        self.statuses: dict[int, bytes] = {}
        self.said: dict[int, bytes] = defaultdict(bytes)
        self.ended: set[int] = set()

    def ask(self) -> int:
        """Ask for a WebSocket; return the number of its stream."""
        stream: int = self.h2.get_next_available_stream_id()
        head = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "http",
            ":path": "/chat",
            ":authority": "blog.example",
            "sec-websocket-version": "13",
        }
        self.h2.send_headers(stream, list(head.items()))
        self.turn()
        return stream

    def say(self, stream: int, data: bytes) -> None:
        self.h2.send_data(stream, data)
        self.turn()

    def turn(self) -> None:
        """Take note of what has come, and send what there is to send."""
        came, self.wire.buffer = self.wire.buffer, b""
        for event in self.h2.receive_data(came) if came else ():
            if isinstance(event, ResponseReceived):
                self.statuses[event.stream_id] = dict(event.headers)[b":status"]
            elif isinstance(event, DataReceived):
                self.said[event.stream_id] += event.data
            elif isinstance(event, StreamEnded):
                self.ended.add(event.stream_id)
        self.wire.write(self.h2.data_to_send())

    async def until(self, condition: Callable[[], object], what: str) -> None:
        def there() -> object:
            self.turn()
            return condition()

        await eventually(there, what)


@twisted_test
async def test_a_stream_is_parted_like_a_connection_and_the_next_is_held() -> None:
    async with talk(listen=replace(LISTEN, h2c=True)) as t:
        s = t.stage
        client = Streams(await s.connect())
        one, other = client.ask(), client.ask()
        for stream in (one, other):
            await client.until(lambda: client.statuses.get(stream) == b"200", "open")  # noqa: B023
            client.say(stream, frame(b"hello", mask=True))
            await client.until(lambda: client.said[stream] == frame(b"hello"), "echo")  # noqa: B023
        client.say(other, frame(b"half of it", mask=True)[:9])
        s.place(Mode.HOLDING)
        for _ in range(20):
            await s.pass_time(0.25)
            client.turn()
        for stream in (one, other):
            await client.until(lambda: stream in client.ended, "the end")  # noqa: B023
            assert client.said[stream] == frame(b"hello") + GOES
        assert t.server.all[-2].ws.close_code == 1001
        await s.drained()
        again = client.ask()
        await client.until(lambda: s.gate.waiting, "held")
        s.place()
        await client.until(lambda: client.statuses.get(again) == b"200", "open again")


# All together


@twisted_test
async def test_many_come_back_while_the_site_is_held_and_none_is_lost() -> None:
    count = 200
    async with talk(drain=Drain(tunnels=5.0)) as t:
        s = t.stage
        former = [await t.client(deflate=bool(number % 2)) for number in range(count)]
        back: list[Speaker] = []
        s.place(Mode.HOLDING)
        while len(back) < count:
            await s.pass_time(0.25)
            await settled(t)
            gone = count - len(s.live.all_tunnels())
            assert gone - len(back) <= count // 10, "too many at a time"
            back += [await t.client(wait=False) for _ in range(gone - len(back))]
        await s.drained()
        await eventually(lambda: all(map(told, former)), "all were told")
        await s.held(count)
        s.place()
        while s.gate.waiting:
            await s.pass_time(0.25)
        for number, client in enumerate(back):
            await eventually(lambda: client.ws.state.name == "OPEN", "open again")  # noqa: B023
            client.text(b"message %d" % number)
        for number, client in enumerate(back):
            assert await client.message() == b"message %d" % number
        assert (s.counters.failed, s.counters.refused, s.counters.ambiguous) == (0, 0, 0)
