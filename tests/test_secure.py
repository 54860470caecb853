"""TLS on the socket itself: nothing is lost, doubled, out of order, or left in the dark."""

from __future__ import annotations

import gc
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from OpenSSL import SSL
from plane_stage import Wire, eventually, reactor, turns, twisted_test
from secure_stage import TlsWire, authority
from tls_stage import Authority, client_trust
from twisted.internet.endpoints import clientFromString, connectProtocol, serverFromString
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure

from awesomeproxy.proxy.secure import RECORD, RECORDS, HandshakeFailed, Secure, TlsFailed, reason
from awesomeproxy.proxy.transport import eager
from awesomeproxy.tls.contexts import context, server_context
from awesomeproxy.tls.pairs import read_pair

__all__ = ["authority"]  # fixtures

HELLO_SIZE = 300  # bytes that a ClientHello has at the least


class Watched(SSL.Connection):
    """Counts what it is asked; can be told what to answer."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: list[str] = []
        self.fail: Exception | None = None  # once, when it is to read

    def recv(self, size: int, flags: int | None = None) -> bytes:
        if self.fail is not None:
            fail, self.fail = self.fail, None
            raise fail
        self.calls.append("recv")
        try:
            return super().recv(size, flags)
        except SSL.Error as problem:
            self.calls.append(type(problem).__name__)
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        self.calls.append("send")
        return super().send(data, flags)


class Ours(Wire):
    """The end under test."""

    def __init__(self, make: Callable[[socket.socket], SSL.Connection]) -> None:
        super().__init__()
        self._make = make
        self.shaken = False
        self.why: Failure | None = None
        self.reads: list[int] = []  # sizes of what came at a time

    def connectionMade(self) -> None:
        super().connectionMade()
        self.transport.secure(self._make(self.transport.socket), self._done)

    def _done(self) -> None:
        self.shaken = True

    def dataReceived(self, data: bytes) -> None:
        self.reads.append(len(data))
        super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.why = reason
        super().connectionLost(reason)


class Made(Factory):
    noisy = False

    def __init__(self, make: Callable[[], Wire]) -> None:
        self._make = make
        self.wires: list[Wire] = []

    def buildProtocol(self, addr: object) -> Wire:
        self.wires.append(self._make())
        return self.wires[-1]


class Pair:
    """A connection: ``ours``, and Python's TLS."""

    def __init__(self, ours: Any, peer: Any) -> None:
        self.ours: Ours = ours
        self.peer: TlsWire = peer

    async def shake(self) -> None:
        await eventually(
            lambda: (self.ours.shaken and self.peer.shaken) or self.ours.closed, "the handshake"
        )
        assert self.ours.shaken, self.ours.why
        assert isinstance(self.ours.transport, Secure)


class Meeting:
    """Makes connections of either kind."""

    def __init__(self, authority: Authority, tmp_path: Path) -> None:
        issued = authority.issue("blog.example")
        pair = read_pair(str(issued.certificate), str(issued.key))
        self.server = server_context(lambda _, offered: offered[0], pair)
        self.client = context(SSL.TLS_CLIENT_METHOD)
        self.theirs = client_trust(authority)
        self.serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.serving.load_cert_chain(issued.certificate, issued.key)
        self._path = tmp_path / "socket"

    def accept(self, sock: socket.socket) -> SSL.Connection:
        tls = Watched(self.server, sock)
        tls.set_accept_state()
        return tls

    def connect(self, sock: socket.socket) -> SSL.Connection:
        tls = Watched(self.client, sock)
        tls.set_connect_state()
        return tls

    @asynccontextmanager
    async def raw(
        self, kind: str, peer: Callable[[], Wire] | None = None, **more: Any
    ) -> AsyncIterator[Pair]:
        """A connection whose handshake is about to begin.

        :param kind: "tcp server", "tcp client" or "unix server"; what our end is.
        :param peer: makes the other end; None: Python's TLS, with ``more``.
        """
        fast: Any = eager(reactor)
        serves = "server" in kind
        listening, opening = (fast, reactor) if serves else (reactor, fast)

        def ours() -> Wire:
            return Ours(self.accept if serves else self.connect)

        def theirs() -> Wire:
            return TlsWire(self.theirs if serves else self.serving, server=not serves, **more)

        other = peer or theirs
        accepting = Made(ours if serves else other)
        where = f"unix:{self._path}" if "unix" in kind else "tcp:0:interface=127.0.0.1"
        port = await serverFromString(listening, where).listen(accepting)  # type: ignore[no-untyped-call]
        to = where if "unix" in kind else f"tcp:127.0.0.1:{port.getHost().port}"
        opened = (other if serves else ours)()
        await connectProtocol(clientFromString(opening, to), opened)  # type: ignore[no-untyped-call]
        await eventually(lambda: accepting.wires)
        accepted = accepting.wires[0]
        pair = Pair(accepted, opened) if serves else Pair(opened, accepted)
        try:
            yield pair
        finally:
            for wire in (opened, *accepting.wires):
                if not wire.closed:
                    wire.abort()
            await eventually(lambda: opened.closed and all(w.closed for w in accepting.wires))
            await port.stopListening()

    @asynccontextmanager
    async def pair(self, kind: str = "tcp server", **more: Any) -> AsyncIterator[Pair]:
        """A connection whose handshake is done."""
        async with self.raw(kind, **more) as pair:
            await pair.shake()
            yield pair


@pytest.fixture
def meeting(authority: Authority, tmp_path: Path) -> Meeting:
    return Meeting(authority, tmp_path)


KINDS = pytest.mark.parametrize("kind", ["tcp server", "tcp client", "unix server"])
VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


class Producer:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.calls = ""

    def pauseProducing(self) -> None:
        self.calls += "p"

    def resumeProducing(self) -> None:
        self.calls += "r"

    def stopProducing(self) -> None:
        self.calls += "s"


@contextmanager
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# Bytes


@VERSIONS
@KINDS
@twisted_test
async def test_bytes_pass_both_ways(kind: str, version: Any, meeting: Meeting) -> None:
    meeting.theirs.maximum_version = meeting.serving.maximum_version = version
    async with meeting.pair(kind) as pair:
        pair.peer.write(b"hello")
        assert await pair.ours.exactly(5) == b"hello"
        pair.ours.write(b"and hello")
        assert pair.ours.transport.unsent == 0
        assert await pair.peer.exactly(9) == b"and hello"
        assert b"hello" not in pair.peer.raw


@KINDS
@twisted_test
async def test_what_does_not_fit_follows_in_order(kind: str, meeting: Meeting) -> None:
    async with meeting.pair(kind) as pair:
        blocks = [b"%07d," % number * 10_000 for number in range(100)]
        for block in blocks:
            pair.ours.write(block)
        assert 0 < pair.ours.transport.unsent < 8_000_000
        assert await pair.peer.exactly(8_000_000) == b"".join(blocks)
        assert pair.ours.transport.unsent == 0
        pair.ours.write(b"and at once again")
        assert await pair.peer.exactly(17) == b"and at once again"


@KINDS
@twisted_test
async def test_much_that_comes_is_handed_on_in_order(kind: str, meeting: Meeting) -> None:
    async with meeting.pair(kind) as pair:
        data = b"".join(b"%07d," % number for number in range(500_000))
        pair.peer.write(data)
        assert await pair.ours.exactly(len(data)) == data


@pytest.mark.parametrize("seed", range(20))
@twisted_test
async def test_any_sizes_arrive_whole_and_in_order(seed: int, meeting: Meeting) -> None:
    random = Random(seed)
    async with meeting.pair() as pair:
        sent = {pair.ours: b"", pair.peer: b""}
        for number in range(random.randrange(16)):
            data = bytes([number]) * random.choice((0, 1, 1000, random.randrange(1_000_000)))
            wire: Any = random.choice((pair.ours, pair.peer))
            sent[wire] += data
            wire.write(data)
            await turns(random.randrange(3))
        assert await pair.ours.exactly(len(sent[pair.peer])) == sent[pair.peer]
        pair.ours.close()
        assert await pair.peer.rest() == sent[pair.ours]
        assert pair.peer.goodbye


@VERSIONS
@KINDS
@twisted_test
async def test_what_comes_byte_by_byte_is_understood(
    kind: str, version: Any, meeting: Meeting
) -> None:
    meeting.theirs.maximum_version = meeting.serving.maximum_version = version
    async with meeting.pair(kind, drip=1) as pair:
        pair.peer.write(b"one")
        assert await pair.ours.exactly(3) == b"one"
        pair.ours.write(b"two")
        assert await pair.peer.exactly(3) == b"two"


@twisted_test
async def test_a_request_takes_one_read_and_its_answer_one_write(meeting: Meeting) -> None:
    async with meeting.pair() as pair:
        pair.ours.transport.tls.calls.clear()
        for _ in range(3):
            pair.peer.write(b"x" * 500)
            await pair.ours.exactly(500)
            pair.ours.write(b"y" * RECORD)
            await pair.peer.exactly(RECORD)
        assert pair.ours.transport.tls.calls == ["recv", "send"] * 3


@twisted_test
async def test_nothing_is_kept_from_the_others_while_one_sends(meeting: Meeting) -> None:
    async with meeting.pair() as pair:
        pair.ours.stop_reading()
        pair.peer.write(b"x" * 1_000_000)
        await turns(10)
        pair.ours.read_on()
        await pair.ours.exactly(1_000_000)
        assert max(pair.ours.reads) == RECORDS * RECORD


@twisted_test
async def test_what_is_no_data_takes_turns_as_well(meeting: Meeting) -> None:
    async with meeting.pair("tcp client") as pair:
        calls = pair.ours.transport.tls.calls
        await eventually(lambda: len(calls) == 4)  # the two tickets of a server
        assert calls == ["recv", "WantReadError"] * 2


@twisted_test
async def test_a_write_does_not_take_all_the_time_there_is(meeting: Meeting) -> None:
    async with meeting.pair() as pair:
        pair.ours.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
        calls = pair.ours.transport.tls.calls
        calls.clear()
        pair.ours.write(b"x" * 1_000_000)
        assert len(calls) <= 8
        await pair.peer.exactly(1_000_000)


@twisted_test
async def test_reading_can_be_stopped_and_resumed(meeting: Meeting) -> None:
    async with meeting.pair() as pair:
        pair.ours.stop_reading()
        pair.peer.write(b"x" * 200_000)
        await turns(10)
        assert pair.ours.all == b""
        pair.ours.read_on()
        assert await pair.ours.exactly(200_000) == b"x" * 200_000


@twisted_test
async def test_whoever_stops_reading_in_the_middle_gets_no_more(meeting: Meeting) -> None:
    async with meeting.pair() as pair:
        received = pair.ours.dataReceived

        def once(data: bytes) -> None:
            received(data)
            pair.ours.stop_reading()

        pair.ours.dataReceived = once  # type: ignore[method-assign]
        for _ in range(10):
            pair.peer.write(b"x" * 100)
        await turns(10)
        assert pair.ours.reads == [100]
        pair.ours.read_on()
        await turns(10)
        assert pair.ours.reads == [100, 100]


@KINDS
@twisted_test
async def test_a_producer_is_stopped_and_started(kind: str, meeting: Meeting) -> None:
    async with meeting.pair(kind) as pair:
        producer = Producer()
        pair.ours.transport.registerProducer(producer, True)
        pair.ours.write(b"small")
        assert producer.calls == ""
        pair.peer.stop_reading()
        while "p" not in producer.calls:
            pair.ours.write(b"x" * 100_000)
        pair.peer.read_on()
        await eventually(lambda: producer.calls[-1] == "r")
        pair.peer.abort()
        await eventually(lambda: producer.calls[-1] == "s")


@twisted_test
async def test_a_read_that_has_to_write_first_goes_on_once_it_can(meeting: Meeting) -> None:
    async with meeting.pair() as pair:
        pair.ours.transport.tls.fail = SSL.WantWriteError()
        pair.peer.write(b"hello")
        assert await pair.ours.exactly(5) == b"hello"


@twisted_test
async def test_a_read_that_has_to_write_first_is_still_stopped_by_a_pause(meeting: Meeting) -> None:
    async with meeting.pair() as pair:
        pair.peer.stop_reading()
        while not pair.ours.transport.unsent:
            pair.ours.write(b"x" * 100_000)
        tls = pair.ours.transport.tls
        tls.fail = SSL.WantWriteError()
        pair.peer.write(b"hello")
        await eventually(lambda: tls.fail is None)
        pair.ours.stop_reading()
        pair.peer.read_on()
        await eventually(lambda: not pair.ours.transport.unsent)
        await turns(5)
        assert pair.ours.all == b""
        pair.ours.read_on()
        assert await pair.ours.exactly(5) == b"hello"


# Handshakes


@KINDS
@twisted_test
async def test_garbage_fails_the_handshake_and_says_what_is_wrong(
    kind: str, meeting: Meeting
) -> None:
    async with meeting.raw(kind, Wire) as pair:
        pair.peer.write(b"GET / HTTP/1.1\r\nHost: blog.example\r\n\r\n")
        await eventually(lambda: pair.ours.closed)
        assert pair.ours.why is not None
        assert isinstance(pair.ours.why.value, HandshakeFailed)
        assert str(pair.ours.why.value) in ("http request", "wrong version number")
        assert not pair.ours.shaken
        assert pair.ours.all == b""


@pytest.mark.parametrize("cut", [0, 1, 5, 6, 100, HELLO_SIZE - 1])
@pytest.mark.parametrize("how", ["close", "abort"])
@twisted_test
async def test_a_client_may_leave_in_the_middle_of_its_hello(
    cut: int, how: str, meeting: Meeting
) -> None:
    hello = TlsWire(meeting.theirs)
    with pytest.raises(ssl.SSLWantReadError):
        hello.tls.do_handshake()
    data = hello._out.read()
    assert len(data) > HELLO_SIZE
    async with meeting.raw("tcp server", Wire) as pair:
        pair.peer.write(data[:cut])
        await turns()
        getattr(pair.peer, how)()
        await eventually(lambda: pair.ours.closed)
        assert pair.ours.why is not None
        assert isinstance(pair.ours.why.value, HandshakeFailed)
        assert not pair.ours.shaken


@KINDS
@pytest.mark.parametrize("how", ["close", "abort"])
@twisted_test
async def test_we_may_leave_in_the_middle_of_a_handshake(
    kind: str, how: str, meeting: Meeting
) -> None:
    async with meeting.raw(kind, Wire) as pair:
        await turns()
        getattr(pair.ours, how)()
        await pair.peer.rest()
        await eventually(lambda: pair.ours.closed)
        assert not pair.ours.shaken


@twisted_test
async def test_a_certificate_that_the_client_does_not_believe_fails_the_handshake(
    meeting: Meeting,
) -> None:
    meeting.theirs = ssl.create_default_context()
    async with meeting.raw("tcp server") as pair:
        await eventually(lambda: pair.peer.fault)
        pair.peer.close()
        await eventually(lambda: pair.ours.closed)
        assert pair.ours.why is not None
        assert "unknown ca" in str(pair.ours.why.value)


@twisted_test
async def test_what_fails_on_one_connection_leaves_the_others_alone(meeting: Meeting) -> None:
    async with meeting.pair() as one, meeting.pair("tcp client") as another:
        for _ in range(3):
            async with meeting.raw("tcp server", Wire) as bad:
                bad.peer.write(b"\x16\x03\x01\x00\x05 junk, and junk")
                await eventually(lambda: bad.ours.closed)
            async with meeting.pair() as broken:
                broken.peer.write_raw(b"\x17\x03\x03\x00\x20" + b"j" * 32)
                await eventually(lambda: broken.ours.closed)
                assert broken.ours.why is not None
                assert isinstance(broken.ours.why.value, TlsFailed)
            for pair in (one, another):
                assert pair.ours.transport.doRead() is None  # there is nothing to read
                pair.peer.write(b"hello")
                assert await pair.ours.exactly(5) == b"hello"
                pair.ours.write(b"hello")
                assert await pair.peer.exactly(5) == b"hello"


@twisted_test
async def test_a_client_may_not_negotiate_again(meeting: Meeting) -> None:
    theirs = SSL.Context(SSL.TLS_CLIENT_METHOD)
    theirs.set_max_proto_version(SSL.TLS1_2_VERSION)
    tls = SSL.Connection(theirs)
    tls.set_connect_state()

    class Client(Wire):
        def flush(self) -> None:
            with suppress(SSL.WantReadError):
                self.write(tls.bio_read(1 << 16))

    async with meeting.raw("tcp server", Client) as pair:
        client: Any = pair.peer
        while True:
            try:
                tls.do_handshake()
                break
            except SSL.WantReadError:
                client.flush()
                tls.bio_write(await client.exactly(max(1, len(client.buffer))))
        client.flush()
        await eventually(lambda: pair.ours.shaken)
        assert tls.renegotiate()
        with pytest.raises(SSL.WantReadError):
            tls.do_handshake()
        client.flush()
        await eventually(lambda: client.buffer or client.closed)
        if client.buffer:
            tls.bio_write(client.buffer)
        with pytest.raises(SSL.Error, match="no renegotiation"):
            tls.do_handshake()


# Ends


@KINDS
@twisted_test
async def test_closing_sends_what_is_left_and_says_goodbye(kind: str, meeting: Meeting) -> None:
    async with meeting.pair(kind) as pair:
        pair.peer.write(b"behind the tickets of a server")
        await pair.ours.exactly(30)
        pair.peer.stop_reading()
        pair.ours.write(b"x" * 5_000_000)
        pair.ours.close()
        await turns(5)
        assert not pair.ours.closed
        pair.peer.read_on()
        assert len(await pair.peer.rest()) == 5_000_000
        assert pair.peer.goodbye
        assert not pair.peer.reset


@KINDS
@twisted_test
async def test_closing_half_says_goodbye_and_reads_on(kind: str, meeting: Meeting) -> None:
    async with meeting.pair(kind, half_closeable=True) as pair:
        pair.ours.write(b"x" * 5_000_000)
        pair.ours.transport.loseWriteConnection()
        assert len(await pair.peer.end()) == 5_000_000
        assert pair.peer.goodbye
        pair.peer.write(b"still there")
        assert await pair.ours.exactly(11) == b"still there"
        pair.ours.write(b"too late")
        assert pair.ours.transport.unsent == 0
        pair.ours.close()
        await eventually(lambda: pair.ours.closed)


@KINDS
@twisted_test
async def test_aborting_says_no_goodbye(kind: str, meeting: Meeting) -> None:
    async with meeting.pair(kind) as pair:
        pair.ours.write(b"begun")
        pair.ours.abort()
        pair.ours.write(b"too late")
        await pair.peer.rest()
        assert not pair.peer.goodbye
        assert b"late" not in pair.peer.all


@VERSIONS
@KINDS
@twisted_test
async def test_a_goodbye_is_a_proper_end_and_is_returned(
    kind: str, version: Any, meeting: Meeting
) -> None:
    meeting.theirs.maximum_version = meeting.serving.maximum_version = version
    async with meeting.pair(kind) as pair:
        pair.peer.write(b"the last words")
        pair.peer.say_goodbye()
        await eventually(lambda: pair.ours.closed)
        assert pair.ours.all == b"the last words"
        assert pair.ours.why is not None
        assert isinstance(pair.ours.why.value, ConnectionDone)
        await pair.peer.rest()
        assert pair.peer.goodbye


@pytest.mark.parametrize("under_way", ["queued", "produced"])
@twisted_test
async def test_what_a_goodbye_cuts_off_does_not_look_complete(
    under_way: str, meeting: Meeting
) -> None:
    async with meeting.pair() as pair:
        pair.peer.stop_reading()
        if under_way == "queued":
            pair.ours.write(b"x" * 8_000_000)
            assert pair.ours.transport.unsent
        else:
            pair.ours.write(b"the beginning")
            pair.ours.transport.registerProducer(Producer(), True)
        pair.peer.say_goodbye()
        await eventually(lambda: pair.ours.closed)
        pair.peer.read_on()
        await pair.peer.rest()
        assert not pair.peer.goodbye


@twisted_test
async def test_whoever_aborts_at_a_goodbye_returns_none(meeting: Meeting) -> None:
    async with meeting.pair() as pair:
        pair.ours.dataReceived = lambda data: pair.ours.abort()  # type: ignore[method-assign]
        pair.ours.stop_reading()
        pair.peer.write(b"x" * 5000)
        pair.peer.say_goodbye()
        await turns(10)
        pair.ours.read_on()
        await pair.peer.rest()
        assert not pair.peer.goodbye
        assert pair.peer.reset


@twisted_test
async def test_an_answer_to_the_last_words_is_sent_before_the_end(meeting: Meeting) -> None:
    async with meeting.pair() as pair:
        received = pair.ours.dataReceived

        def answer(data: bytes) -> None:
            received(data)
            pair.ours.write(b"y" * 5_000_000)
            pair.ours.close()

        pair.ours.dataReceived = answer  # type: ignore[method-assign]
        pair.ours.stop_reading()
        pair.peer.write(b"x" * 5000)  # who sends so much is read from again at once
        pair.peer.say_goodbye()
        await turns(10)
        pair.ours.read_on()
        assert len(await pair.peer.rest()) == 5_000_000
        assert pair.peer.goodbye


@KINDS
@twisted_test
async def test_an_end_without_a_goodbye_is_no_proper_one(kind: str, meeting: Meeting) -> None:
    async with meeting.pair(kind) as pair:
        pair.peer.write(b"the last wor")
        pair.peer.close()
        await eventually(lambda: pair.ours.closed)
        assert pair.ours.all == b"the last wor"
        assert pair.ours.why is not None
        assert isinstance(pair.ours.why.value, ConnectionLost)


@KINDS
@twisted_test
async def test_a_record_that_is_cut_short_is_no_proper_end(kind: str, meeting: Meeting) -> None:
    async with meeting.pair(kind) as pair:
        pair.peer.write_raw(b"\x17\x03\x03\x00\x20half of it")
        await turns(5)
        pair.peer.close()
        await eventually(lambda: pair.ours.closed)
        assert pair.ours.why is not None
        assert isinstance(pair.ours.why.value, ConnectionLost)
        assert pair.ours.all == b""


@KINDS
@twisted_test
async def test_a_record_that_was_changed_breaks_the_connection(kind: str, meeting: Meeting) -> None:
    async with meeting.pair(kind) as pair:
        pair.peer.write_raw(b"\x17\x03\x03\x00\x20" + b"j" * 32)
        await eventually(lambda: pair.ours.closed)
        assert pair.ours.why is not None
        assert isinstance(pair.ours.why.value, TlsFailed)
        assert not isinstance(pair.ours.why.value, HandshakeFailed)
        assert "bad record mac" in str(pair.ours.why.value)


@twisted_test
async def test_a_write_that_fails_is_noticed_at_a_safe_time(meeting: Meeting) -> None:
    async with meeting.pair() as pair:
        pair.ours.stop_reading()  # only writing can tell
        pair.peer.abort()
        await eventually(lambda: pair.peer.closed)
        for _ in range(3):
            pair.ours.write(b"x" * 100_000)
            assert not pair.ours.closed  # not while it is being written to
        await eventually(lambda: pair.ours.closed)
        assert pair.ours.reset


@twisted_test
async def test_after_the_end_nothing_touches_the_socket(meeting: Meeting) -> None:
    async with meeting.pair() as pair:
        pair.peer.abort()
        await eventually(lambda: pair.ours.closed)
        pair.ours.write(b"too late")
        assert pair.ours.transport.unsent == 0
        assert pair.ours.transport.tls is None
        pair.ours.close()
        pair.ours.abort()


@pytest.mark.parametrize("how", ["close", "abort", "peer"])
@twisted_test
async def test_nothing_keeps_a_connection_that_is_closed(how: str, meeting: Meeting) -> None:
    with no_collection():
        async with meeting.pair() as pair:
            dead = weakref.ref(pair.ours.transport.tls)
            if how == "peer":
                pair.peer.close()
            else:
                getattr(pair.ours, how)()
            await eventually(lambda: pair.ours.closed)
            await turns(3)
            assert dead() is None


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (SSL.SysCallError(-1, "Unexpected EOF"), "the connection was closed"),
        (SSL.SysCallError(104, "ECONNRESET"), "Connection reset by peer"),
        (SSL.Error([("SSL routines", "", "bad thing"), ("", "", "other")]), "bad thing, other"),
        (SSL.Error("in a callback's words"), "in a callback's words"),
        (SSL.Error([]), "TLS failed"),
        (SSL.Error(), "TLS failed"),
    ],
)
def test_it_is_said_what_was_wrong(problem: SSL.Error, words: str) -> None:
    assert reason(problem) == words
