"""Transports that write at once: nothing is lost, doubled or out of order."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from plane_stage import Wire, eventually, reactor, turns, twisted_test
from twisted.internet.endpoints import clientFromString, connectProtocol, serverFromString
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure

from awesomeproxy.proxy.hub import AT_ONCE
from awesomeproxy.proxy.transport import EagerWrites, eager


class Ends:
    """Both ends of a connection; ``eager`` is the one under test."""

    def __init__(self, eager: Wire, other: Wire, close: Callable[[], Any]) -> None:
        self.eager = eager
        self.other = other
        self._close = close

    async def close(self) -> None:
        for wire in (self.eager, self.other):
            if not wire.closed:
                wire.abort()
        await eventually(lambda: self.eager.closed and self.other.closed)
        await self._close()


async def ends(kind: str, tmp_path: Path | None = None) -> Ends:
    """A connection, accepted or opened by the eager side, over TCP or a Unix socket."""
    accepted: list[Wire] = []

    class Accept(Factory):
        noisy = False

        def buildProtocol(self, addr: object) -> Wire:
            accepted.append(Wire())
            return accepted[-1]

    fast: Any = eager(reactor)
    listening, opening = (fast, reactor) if "server" in kind else (reactor, fast)
    if "unix" in kind:
        assert tmp_path is not None
        where = f"unix:{tmp_path / 'socket'}"
        port = await serverFromString(listening, where).listen(Accept())  # type: ignore[no-untyped-call]
        to = where
    else:
        where = "tcp:0:interface=127.0.0.1"
        port = await serverFromString(listening, where).listen(Accept())  # type: ignore[no-untyped-call]
        to = f"tcp:127.0.0.1:{port.getHost().port}"
    client: Wire = await connectProtocol(clientFromString(opening, to), Wire())  # type: ignore[no-untyped-call]
    await eventually(lambda: accepted)
    one, other = (accepted[0], client) if "server" in kind else (client, accepted[0])
    assert isinstance(one.transport, EagerWrites)
    assert not isinstance(other.transport, EagerWrites)
    return Ends(one, other, port.stopListening)


KINDS = pytest.mark.parametrize("kind", ["tcp server", "tcp client", "unix server", "unix client"])


@KINDS
@twisted_test
async def test_what_fits_is_sent_at_once(kind: str, tmp_path: Path) -> None:
    pair = await ends(kind, tmp_path)
    pair.eager.write(b"hello")
    assert pair.eager.transport.unsent == 0
    assert pair.other.transport.socket.recv(5, socket.MSG_PEEK) == b"hello"
    assert await pair.other.exactly(5) == b"hello"
    await pair.close()


@KINDS
@twisted_test
async def test_what_does_not_fit_follows_in_order(kind: str, tmp_path: Path) -> None:
    pair = await ends(kind, tmp_path)
    blocks = [b"%07d," % number * 10_000 for number in range(100)]
    for block in blocks:
        pair.eager.write(block)
    assert 0 < pair.eager.transport.unsent < 8_000_000
    assert await pair.other.exactly(8_000_000) == b"".join(blocks)
    assert pair.eager.transport.unsent == 0
    pair.eager.write(b"and at once again")
    assert await pair.other.exactly(17) == b"and at once again"
    await pair.close()


@pytest.mark.parametrize("seed", range(20))
@twisted_test
async def test_any_sizes_arrive_whole_and_in_order(seed: int) -> None:
    random = Random(seed)
    pair = await ends("tcp server")
    sent = b""
    for number in range(random.randrange(12)):
        data = bytes([number]) * random.choice((0, 1, 1000, random.randrange(1_000_000)))
        sent += data
        pair.eager.write(data)
        await turns(random.randrange(3))
    pair.eager.close()
    assert await pair.other.rest() == sent
    assert not pair.other.reset
    await pair.close()


@KINDS
@twisted_test
async def test_closing_sends_what_is_left(kind: str, tmp_path: Path) -> None:
    pair = await ends(kind, tmp_path)
    pair.eager.write(b"x" * 5_000_000)
    pair.eager.close()
    assert len(await pair.other.rest()) == 5_000_000
    assert not pair.other.reset
    await pair.close()


@KINDS
@twisted_test
async def test_closing_half_sends_what_is_left_and_reads_on(kind: str, tmp_path: Path) -> None:
    pair = await ends(kind, tmp_path)
    pair.eager.write(b"x" * 5_000_000)
    pair.eager.transport.loseWriteConnection()
    assert len(await pair.other.rest()) == 5_000_000
    await pair.close()


@twisted_test
async def test_nothing_is_written_after_half_of_it_is_closed() -> None:
    pair = await ends("tcp server")
    pair.other.stop_reading()
    pair.eager.write(b"one")
    pair.eager.transport.loseWriteConnection()
    await turns(5)
    pair.eager.write(b"two")
    assert pair.eager.transport.unsent == 0
    pair.other.read_on()
    assert await pair.other.rest() == b"one"
    await pair.close()


@KINDS
@twisted_test
async def test_nothing_is_written_once_it_is_aborted(kind: str, tmp_path: Path) -> None:
    pair = await ends(kind, tmp_path)
    pair.eager.abort()
    pair.eager.write(b"too late")
    assert await pair.other.rest() == b""
    await pair.close()


@KINDS
@twisted_test
async def test_nothing_is_written_once_it_is_closed(kind: str, tmp_path: Path) -> None:
    pair = await ends(kind, tmp_path)
    pair.other.abort()
    await eventually(lambda: pair.eager.closed)
    pair.eager.write(b"too late")
    assert pair.eager.transport.unsent == 0
    await pair.close()


@twisted_test
async def test_a_write_that_fails_is_noticed_at_a_safe_time() -> None:
    pair = await ends("tcp server")
    pair.eager.stop_reading()  # only writing can tell
    pair.other.abort()
    await eventually(lambda: pair.other.closed)
    for _ in range(3):
        pair.eager.write(b"x" * 100_000)
        assert not pair.eager.closed  # not while it is being written to
    await eventually(lambda: pair.eager.closed)
    assert pair.eager.reset
    await pair.close()


@KINDS
@twisted_test
async def test_a_producer_is_stopped_and_started(kind: str, tmp_path: Path) -> None:
    class Producer:
        calls = ""

        def pauseProducing(self) -> None:
            self.calls += "p"

        def resumeProducing(self) -> None:
            self.calls += "r"

        def stopProducing(self) -> None:
            self.calls += "s"

    pair = await ends(kind, tmp_path)
    producer = Producer()
    pair.eager.transport.registerProducer(producer, True)
    pair.eager.write(b"small")
    assert producer.calls == ""
    pair.other.stop_reading()
    while "p" not in producer.calls:
        pair.eager.write(b"x" * 100_000)
    pair.other.read_on()
    await eventually(lambda: producer.calls[-1] == "r")
    pair.other.abort()
    await eventually(lambda: producer.calls[-1] == "s")
    await pair.close()


@twisted_test
async def test_reading_can_be_stopped_and_resumed() -> None:
    pair = await ends("tcp server")
    pair.eager.stop_reading()
    pair.other.write(b"hello")
    await turns(10)
    assert pair.eager.all == b""
    pair.eager.read_on()
    assert await pair.eager.exactly(5) == b"hello"
    await pair.close()


@pytest.mark.parametrize("where", ["dataReceived", "connectionLost"])
@twisted_test
async def test_a_fault_of_one_connection_is_logged_and_closes_it_alone(
    where: str, logged_failures: Any
) -> None:
    fast: Any = eager(reactor)
    accepted: list[Wire] = []

    class Faulty(Wire):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            if data == b"fault" and where == "dataReceived":
                raise RuntimeError("as the test wants it")

        def connectionLost(self, reason: Failure = connectionDone) -> None:
            super().connectionLost(reason)
            if self.all == b"fault" and where == "connectionLost":
                raise RuntimeError("as the test wants it")

    class Accept(Factory):
        noisy = False

        def buildProtocol(self, addr: object) -> Wire:
            accepted.append(Faulty())
            return accepted[-1]

    port = fast.listenTCP(0, Accept(), interface="127.0.0.1")
    to = f"tcp:127.0.0.1:{port.getHost().port}"
    clients = [await connectProtocol(clientFromString(reactor, to), Wire()) for _ in range(2)]  # type: ignore[no-untyped-call]
    await eventually(lambda: len(accepted) == 2)
    clients[0].write(b"fault")
    clients[1].write(b"fine")
    await eventually(lambda: sorted(wire.all for wire in accepted) == [b"fault", b"fine"])
    clients[0].close()
    await clients[0].rest()
    await eventually(lambda: any(wire.closed for wire in accepted))
    await turns(5)
    assert len(logged_failures.flush(RuntimeError)) == 1
    assert sum(wire.closed for wire in accepted) == 1
    clients[1].abort()
    await eventually(lambda: all(wire.closed for wire in accepted))
    await port.stopListening()


@twisted_test
async def test_many_connections_are_served_in_turn() -> None:
    fast: Any = eager(reactor)

    class Echo(Wire):
        def dataReceived(self, data: bytes) -> None:
            self.write(data)

    class Accept(Factory):
        noisy = False

        def buildProtocol(self, addr: object) -> Wire:
            return Echo()

    count = AT_ONCE + 50
    port = fast.listenTCP(0, Accept(), interface="127.0.0.1", backlog=500)
    to = f"tcp:127.0.0.1:{port.getHost().port}"
    clients = [await connectProtocol(clientFromString(reactor, to), Wire()) for _ in range(count)]  # type: ignore[no-untyped-call]
    for round_ in range(3):
        for number, client in enumerate(clients):
            client.write(b"%08d" % (number + round_))
        for number, client in enumerate(clients):
            assert await client.exactly(8) == b"%08d" % (number + round_)
    for client in clients:
        client.abort()
    await eventually(lambda: all(client.closed for client in clients))
    await port.stopListening()
    await turns(20)
