"""Databases in the data plane: listeners, gates, and what becomes of connections.

Servers are scripted, time is the test's own.  What real servers and clients make of it is in
``test_databases_real.py``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from plane_stage import (
    LISTEN,
    Lost,
    Origin,
    OwnTime,
    Wire,
    eventually,
    reactor,
    turns,
    twisted_test,
)
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IHalfCloseableProtocol
from zope.interface import implementer

from awesomeproxy.model import (
    Database,
    DatabaseBackend,
    DatabaseDrain,
    DatabaseRetry,
    DatabaseTimeouts,
    DesiredDatabase,
    HoldLimits,
    Mode,
    Observed,
    Placement,
    Server,
)
from awesomeproxy.proxy.livedatabase import LiveDatabase
from awesomeproxy.proxy.pgwire import error
from awesomeproxy.proxy.plane import Plane

NAME = "database:shop"
START = b"\0\0\0\x12\0\3\0\0user\0app\0\0"
SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"
READY, IN_TRANSACTION = b"Z\0\0\0\5I", b"Z\0\0\0\5T"
QUERY = b"Q\0\0\0\x08one\0"
TERMINATE = b"X\0\0\0\4"
BIG = 8 * 1024 * 1024


@dataclass
class Stage:
    """A plane with one database, ``shop``, before two servers, ``one`` and ``two``."""

    plane: Plane
    time: OwnTime
    origins: list[Origin]
    definition: Database
    changes: list[str]
    clients: list[Wire] = field(default_factory=list)
    generation: int = 1

    @property
    def live(self) -> LiveDatabase:
        return self.plane.databases["shop"]

    @property
    def seen(self) -> Observed:
        found = self.plane.observed(NAME)
        assert found is not None
        return found

    def place(self, mode: Mode = Mode.OPEN, backend: str = "one", **more: Any) -> None:
        self.generation += 1
        placement = Placement(NAME, backend, mode, self.generation, **more)
        self.plane.apply_database(DesiredDatabase(self.definition, placement))

    def define(self, **changes: Any) -> None:
        self.definition = replace(self.definition, **changes)
        self.plane.apply_database(DesiredDatabase(self.definition, self.live.placement))

    async def connect(self, data: bytes = b"", wire: Any = None) -> Any:
        port = self.plane.listening[0].port
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        wire = wire or Wire()
        await connectProtocol(endpoint, wire)  # type: ignore[no-untyped-call]
        self.clients.append(wire)
        if data:
            wire.write(data)
        return wire

    async def session(self, *, ready: bytes = READY) -> tuple[Wire, Wire]:
        """A client and its server, who have said hello."""
        client = await self.connect(START)
        server = await self.origins[0].accept()
        await server.exactly(len(START))
        server.write(ready)
        await client.exactly(len(ready))
        return client, server

    async def pass_time(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / 0.25))):
            self.time.clock.advance(min(seconds, 0.25))
            await turns(1)
        await turns()

    async def drained(self) -> None:
        await eventually(lambda: self.seen.drained, f"drained: {self.live!r}")

    async def held(self, count: int = 1) -> None:
        await eventually(lambda: self.seen.held == count, f"{count} held: {self.live!r}")


@contextlib.asynccontextmanager
async def stage(protocol: Any = "tcp", **more: Any) -> AsyncIterator[Stage]:
    origins = [Origin().listen(), Origin().listen()]
    backends = {
        name: DatabaseBackend(name, server_of(origin))
        for name, origin in zip(("one", "two"), origins, strict=True)
    }
    endpoint = "tcp:0:interface=127.0.0.1"
    more.setdefault("drain", DatabaseDrain(grace=0.0))
    definition = Database("shop", endpoint, "one", backends, protocol=protocol, **more)
    own: Any = OwnTime()
    changes: list[str] = []
    plane = Plane(own, clock=own, on_change=changes.append)
    plane.apply_database(DesiredDatabase(definition, Placement(NAME, "one")))
    await plane.listen([], [definition])
    found = Stage(plane, own, origins, definition, changes)
    try:
        yield found
    finally:
        for wire in found.clients:
            if not wire.closed:
                wire.abort()
        await turns()
        await plane.stop(0)
        for origin in origins:
            await origin.refuse()
        await eventually(lambda: not plane.links, "no connections")
    assert not plane.clients
    assert not plane.held.requests
    assert not len(plane.sweep)
    for live in plane.databases.values():
        assert not live.gate.in_flight
    assert not own.clock.getDelayedCalls()


def server_of(origin: Origin) -> Server:
    return Server("tcp", "127.0.0.1", origin.number)


# ---- Passing on ------------------------------------------------------------------------


@implementer(IHalfCloseableProtocol)
class Half(Wire):
    """An end that goes on when the other has nothing more to say."""

    ended = False

    def readConnectionLost(self) -> None:
        self.ended = True

    def writeConnectionLost(self) -> None:
        pass


@twisted_test
async def test_bytes_pass_both_ways_and_so_do_ends() -> None:
    """What either side says arrives, also after the other has said its last."""
    async with stage() as s:
        client = await s.connect(b"hello", Half())
        server = await s.origins[0].accept()
        assert await server.exactly(5) == b"hello"
        server.write(b"all there is")
        server.transport.loseWriteConnection()
        assert await client.exactly(12) == b"all there is"
        await eventually(lambda: client.ended)
        client.write(b"thanks")
        assert await server.exactly(6) == b"thanks"
        client.transport.loseWriteConnection()
        await eventually(lambda: server.closed and not s.seen.connections)
        assert (s.seen.counters.requests, s.seen.counters.failed) == (1, 0)
        client.abort()


@twisted_test
async def test_who_has_said_all_still_hears_the_answer() -> None:
    """A client that ends its side first gets what the server says after that."""
    async with stage() as s:
        client = await s.connect(b"hello", Half())
        await eventually(lambda: s.origins[0].wires)
        server = await s.origins[0].accept()
        server.stop_reading()
        client.transport.loseWriteConnection()
        await turns()
        server.write(b"bye")
        server.close()
        assert await client.exactly(3) == b"bye"
        await eventually(lambda: client.ended and not s.seen.connections)
        client.abort()


@twisted_test
async def test_the_end_of_a_server_is_the_clients() -> None:
    """What the server has said before arrives; a broken connection looks broken."""
    async with stage() as s:
        client = await s.connect(b"hello")
        server = await s.origins[0].accept()
        server.write(b"bye")
        server.close()
        assert await client.rest() == b"bye"
        assert not client.reset
        broken = await s.connect(b"hello")
        server = await s.origins[0].accept()
        server.abort()
        await eventually(lambda: broken.closed)
        assert broken.reset
        assert s.seen.counters.failed == 1


@twisted_test
async def test_the_slower_side_sets_the_pace() -> None:
    """What a client does not take stays with the server, not in memory; and all of it comes."""
    async with stage() as s:
        client = await s.connect(b"more")
        server = await s.origins[0].accept()
        client.stop_reading()
        server.write(bytes(BIG))
        (pipe,) = s.live.pipes
        await eventually(lambda: pipe.transport.unsent > 64 * 1024, "the client is full")
        for _ in range(20):
            await turns()
        assert pipe.transport.unsent < 512 * 1024
        client.read_on()
        assert len(await client.exactly(BIG)) == BIG
        server.stop_reading()
        client.write(bytes(BIG))
        await eventually(lambda: pipe.server is not None and pipe.server.transport.unsent > 65536)
        for _ in range(20):
            await turns()
        assert pipe.server is not None
        assert pipe.server.transport.unsent < 512 * 1024
        server.read_on()
        await server.exactly(BIG)


@twisted_test
async def test_silence_both_ways_has_an_end_if_that_is_wanted() -> None:
    """timeouts.idle closes what does not move, in the words of its protocol."""
    async with stage("postgres", timeouts=DatabaseTimeouts(idle=10.0)) as s:
        client, server = await s.session()
        await s.pass_time(9)
        server.write(READY)
        await client.exactly(len(READY))
        await s.pass_time(9)
        assert not client.closed
        await s.pass_time(2)
        assert await server.rest() == TERMINATE
        assert b"C57P01" in await client.rest()


@twisted_test
async def test_no_more_connections_than_may_be_reach_the_server() -> None:
    """Those over max_connections wait at the gate for one to end."""
    async with stage(max_connections=1) as s:
        first = await s.connect(b"first")
        await s.origins[0].accept()
        second = await s.connect(b"second")
        await s.held()
        first.abort()
        server = await s.origins[0].accept()
        assert await server.exactly(6) == b"second"
        second.abort()


# ---- Holding ---------------------------------------------------------------------------


@twisted_test
async def test_a_held_connection_is_accepted_and_goes_to_the_new_place() -> None:
    """Nothing of it is read, nor connected, until the release; then it goes on, in order."""
    async with stage() as s:
        s.place(Mode.HOLDING)
        assert s.seen.drained
        clients = [await s.connect(b"client %d" % number) for number in range(3)]
        await s.held(3)
        await s.pass_time(5)
        assert not any(origin.wires for origin in s.origins)
        s.place(Mode.OPEN, "two")
        for number in range(3):
            server = await s.origins[1].accept()
            assert await server.exactly(8) == b"client %d" % number
        assert not s.origins[0].wires
        assert (s.seen.counters.held, s.seen.counters.released) == (3, 3)
        assert s.seen.longest_wait == pytest.approx(5, abs=0.5)
        for client in clients:
            client.abort()


@twisted_test
async def test_a_client_that_leaves_while_held_is_never_connected() -> None:
    """It is dropped, also if it has left words behind, and counted."""
    async with stage() as s:
        s.place(Mode.HOLDING)
        client = await s.connect(b"words")
        await s.held()
        client.close()
        await turns()
        await s.pass_time(1.5)
        await s.held(0)
        assert s.seen.counters.departed == 1
        s.place(Mode.OPEN)
        await turns()
        assert not s.origins[0].wires


@pytest.mark.parametrize(
    ("protocol", "words"),
    [("tcp", b""), ("postgres", b"C57P03\0"), ("mysql", b"\xff\x1d\x04the database is being")],
)
@twisted_test
async def test_who_has_waited_too_long_is_told_in_its_words(protocol: str, words: bytes) -> None:
    """After hold.max_time a held client is told so, though it has said something itself."""
    async with stage(protocol, hold=HoldLimits(max_time=3.0)) as s:
        s.place(Mode.HOLDING)
        client = await s.connect(START)
        await s.held()
        await s.pass_time(3.5)
        assert words in await client.rest()
        assert not client.reset
        assert s.seen.counters.refused == 1


@twisted_test
async def test_no_more_are_held_than_may_be() -> None:
    """Over hold.max_requests a client is refused at once."""
    async with stage("postgres", hold=HoldLimits(max_requests=1)) as s:
        s.place(Mode.HOLDING)
        await s.connect()
        await s.held()
        assert await (await s.connect()).rest() == error("57P03", s.live.why_held())


@twisted_test
async def test_a_hold_that_outlives_its_deadline_refuses() -> None:
    """So it does even if nobody is there to tell it."""
    async with stage("postgres") as s:
        s.place(Mode.HOLDING, expires=time.time() + 2)
        client = await s.connect()
        await s.held()
        await s.pass_time(3)
        assert b"C57P03" in await client.rest()
        assert s.seen.state == "refusing"
        assert b"C57P03" in await (await s.connect()).rest()


@twisted_test
async def test_a_database_without_its_backend_is_held() -> None:
    """Where nobody knows the place, nothing is connected."""
    async with stage() as s:
        s.place(Mode.OPEN, "nowhere")
        await s.connect(b"x")
        await s.held()
        assert "'nowhere', which is not defined" in s.seen.trouble
        s.place(Mode.OPEN, "two")
        await s.origins[1].accept()


@twisted_test
async def test_an_older_generation_changes_nothing() -> None:
    """Of two placements the newer one counts."""
    async with stage() as s:
        s.place(Mode.HOLDING, "two")
        s.plane.apply_database(DesiredDatabase(s.definition, Placement(NAME, "one")))
        assert (s.seen.mode, s.seen.backend) == (Mode.HOLDING, "two")


# ---- Draining --------------------------------------------------------------------------


@twisted_test
async def test_an_idle_session_is_told_goodbye_and_nothing_passes_behind_it() -> None:
    """What the client says after the hold has begun is not heard by the server."""
    async with stage("postgres") as s:
        client, server = await s.session()
        s.place(Mode.HOLDING)
        client.write(QUERY)
        assert await server.rest() == TERMINATE
        await s.drained()
        client.write(QUERY)
        assert (await client.rest()).startswith(b"E")
        assert not client.reset
        assert s.seen.closed == 1


@twisted_test
async def test_a_session_in_a_transaction_may_end_it() -> None:
    """It is told goodbye as soon as the transaction is over, before anything more passes."""
    async with stage("postgres") as s:
        client, server = await s.session(ready=IN_TRANSACTION)
        s.place(Mode.HOLDING)
        client.write(QUERY)
        await server.exactly(len(QUERY))
        await s.pass_time(10)
        assert not s.seen.drained
        server.write(READY[:3])
        await turns()
        assert not client.closed
        server.write(READY[3:])
        assert await server.rest() == TERMINATE
        assert await client.exactly(len(READY)) == READY
        assert b"C57P01" in await client.rest()
        await s.drained()


@twisted_test
async def test_a_hold_that_is_undone_leaves_the_others_alone() -> None:
    """Sessions that were not over by then go on as if nothing had been."""
    async with stage("postgres") as s:
        client, server = await s.session(ready=IN_TRANSACTION)
        s.place(Mode.HOLDING)
        await s.pass_time(1)
        s.place(Mode.OPEN)
        server.write(READY)
        await client.exactly(len(READY))
        await s.pass_time(10)
        client.write(QUERY)
        assert await server.exactly(len(QUERY)) == QUERY


@twisted_test
async def test_a_grace_lets_clients_come_to_their_own_end() -> None:
    """Those that were idle for as long go at once; the others when it is over."""
    async with stage("postgres", drain=DatabaseDrain(grace=1.0)) as s:
        old, _ = await s.session()
        await s.pass_time(2)
        young, server = await s.session()
        s.place(Mode.HOLDING)
        assert b"C57P01" in await old.rest()
        young.write(QUERY)
        assert await server.exactly(len(QUERY)) == QUERY
        server.write(READY)
        await young.exactly(len(READY))
        await s.pass_time(0.5)
        assert not young.closed
        await s.pass_time(0.75)
        assert b"C57P01" in await young.rest()
        await s.drained()


@twisted_test
async def test_what_is_not_known_may_stay_for_a_while() -> None:
    """Connections of protocol tcp end by themselves, or are closed after drain.tunnels."""
    async with stage(drain=DatabaseDrain(grace=0.0, tunnels=5.0)) as s:
        client = await s.connect(b"hello")
        server = await s.origins[0].accept()
        s.place(Mode.HOLDING)
        assert s.seen.tunnels == 1
        await s.pass_time(4)
        server.write(b"still here")
        await client.until(b"here")
        await s.pass_time(1.5)
        assert await client.rest() == b""
        await s.drained()
        assert s.seen.closed == 1


@twisted_test
async def test_it_is_not_drained_before_the_server_has_closed() -> None:
    """A statement whose client has gone is still being worked on, as long as it takes."""
    async with stage("postgres") as s:
        client, server = await s.session()
        client.write(QUERY)
        await server.exactly(len(QUERY))
        server.stop_reading()  # it is at work
        client.abort()
        await eventually(lambda: not s.live.pipes)
        s.place(Mode.HOLDING)
        await s.pass_time(30)
        assert (s.seen.in_flight, s.seen.drained) == (1, False)
        server.read_on()
        await s.drained()


@twisted_test
async def test_a_server_that_does_not_close_is_not_waited_for_for_ever() -> None:
    """After a goodbye it has two seconds."""
    async with stage("postgres") as s:
        _client, server = await s.session()
        server.stop_reading()  # so that it does not hear the end
        s.place(Mode.HOLDING)
        await turns()
        assert s.seen.connections == 1
        await s.pass_time(2.5)
        await s.drained()


@twisted_test
async def test_force_cuts_whatever_is_left() -> None:
    """A client that is in the middle of a transaction is told why."""
    async with stage("postgres") as s:
        client, server = await s.session(ready=IN_TRANSACTION)
        s.place(Mode.HOLDING)
        assert s.plane.cut(NAME) == 1
        assert b"C57P01" in await client.rest()
        await eventually(lambda: server.closed)
        assert server.all == START  # no word of it
        await s.drained()
        assert s.seen.closed == 1


@twisted_test
async def test_a_connection_that_has_said_nothing_yet_waits_again() -> None:
    """Held between connecting and the first word, the client notices nothing."""
    async with stage("postgres") as s:
        client = await s.connect()
        await eventually(lambda: s.origins[0].wires, "connected")
        (link,) = s.live.links
        await eventually(lambda: link.ready)
        s.place(Mode.HOLDING)
        await s.held()
        await s.drained()
        client.write(START)
        s.place(Mode.OPEN, "two")
        assert await (await s.origins[1].accept()).exactly(len(START)) == START


@twisted_test
async def test_moving_without_a_hold_takes_sessions_along_when_they_are_idle() -> None:
    """Nobody stays at the old place for longer than for a transaction."""
    async with stage("postgres") as s:
        idle, _ = await s.session()
        busy, server = await s.session(ready=IN_TRANSACTION)
        s.place(Mode.OPEN, "two")
        assert b"C57P01" in await idle.rest()
        server.write(READY)
        assert b"C57P01" in await busy.rest()
        await s.connect(START)
        await s.origins[1].accept()


# ---- Servers that are not there --------------------------------------------------------


@twisted_test
async def test_a_server_that_refuses_is_waited_for() -> None:
    """Who comes is held, the server is knocked at, and all go on when it is back."""
    async with stage() as s:
        await s.origins[0].refuse()
        await s.connect(b"first")
        await s.held()
        await s.connect(b"second")
        await s.held(2)
        assert s.seen.state == "unreachable"
        assert s.seen.servers["one"] == {str(server_of(s.origins[0])): f"down: {s.seen.trouble}"}
        await s.pass_time(1)
        s.origins[0].listen()
        await s.pass_time(1)
        await eventually(lambda: s.seen.state == "open", "open again")
        assert await (await s.origins[0].accept()).exactly(5) == b"first"
        assert await (await s.origins[0].accept()).exactly(6) == b"second"


@twisted_test
async def test_a_server_that_stays_away_costs_its_budget() -> None:
    """After retry.budget a client is told that it cannot be reached."""
    async with stage("postgres", retry=DatabaseRetry(budget=2.0)) as s:
        await s.origins[0].refuse()
        client = await s.connect(START)
        await s.held()
        await s.pass_time(2.5)
        assert b"cannot be reached; try again" in await client.rest()
        s.place(Mode.OPEN, "two")
        await s.connect(START)
        await s.origins[1].accept()


@twisted_test
async def test_a_server_that_starts_is_waited_for() -> None:
    """Who is told that nobody is let in yet begins anew, with what it has begun with."""
    async with stage("postgres") as s:
        client = await s.connect(SSL_REQUEST)
        server = await s.origins[0].accept()
        server.write(b"N")
        await client.exactly(1)
        client.write(START)
        await server.exactly(len(SSL_REQUEST + START))
        server.write(error("57P03", "the database system is starting up"))
        await s.held()
        assert s.seen.state == "unreachable"
        await s.pass_time(1)
        server = await s.origins[0].accept()
        assert await server.exactly(len(START)) == START
        server.write(error("57P03", "the database system is starting up"))
        await s.held()
        s.place(Mode.HOLDING)
        s.place(Mode.OPEN, "two")
        server = await s.origins[1].accept()
        assert await server.exactly(len(START)) == START
        server.write(READY)
        assert await client.exactly(len(READY)) == READY
        client.write(QUERY)
        assert await server.exactly(len(QUERY)) == QUERY
        server.write(error("57P03", "the database system is shutting down"))
        assert b"shutting down" in await client.until(b"down\0\0")


@twisted_test
async def test_a_held_server_is_not_knocked_at() -> None:
    """Not a connection goes to the place of a held database."""
    async with stage() as s:
        await s.origins[0].refuse()
        await s.connect(b"x")
        await s.held()
        s.place(Mode.HOLDING)
        s.origins[0].wires.clear()
        s.origins[0].listen()
        await s.pass_time(3)
        assert not s.origins[0].wires
        assert s.seen.drained


# ---- Listeners -------------------------------------------------------------------------


@twisted_test
async def test_listeners_come_and_go_with_their_databases() -> None:
    """What stays is not disturbed, neither its port nor its connections."""
    async with stage() as s:
        client = await s.connect(b"hello")
        server = await s.origins[0].accept()
        (first,) = s.plane.listening
        await s.plane.listen(
            [LISTEN.__class__("tcp:0:interface=127.0.0.1:backlog=7")], [s.definition]
        )
        assert first in s.plane.listening
        assert len(s.plane.listening) == 2
        await s.plane.listen([], [s.definition])
        assert s.plane.listening == [first]
        client.write(b" again")
        await server.until(b"again")
        taken = replace(
            s.definition, name="other", endpoint=f"tcp:{first.port}:interface=127.0.0.1"
        )
        with pytest.raises(CannotListenError):
            await s.plane.listen([], [s.definition, taken])
        assert s.plane.listening == [first]
        await s.plane.listen([], [])
        assert s.plane.listening == []
        client.write(b" still")
        await server.until(b"still")


@twisted_test
async def test_a_removed_database_ends_its_sessions_and_is_waited_for() -> None:
    """Of one that comes back, the connections of the former are still to be drained."""
    async with stage("postgres") as s:
        idle, _ = await s.session()
        busy, server = await s.session(ready=IN_TRANSACTION)
        s.plane.remove_database("shop")
        assert s.plane.observed(NAME) is None
        assert s.plane.cut(NAME) == 0
        assert b"C57P01" in await idle.rest()
        late = await s.connect(START)
        assert await late.rest() == b""
        placement = Placement(NAME, "one", Mode.HOLDING, 9)
        s.plane.apply_database(DesiredDatabase(s.definition, placement))
        assert s.seen.in_flight == 1
        assert not s.seen.drained
        server.write(READY)
        assert b"C57P01" in await busy.rest()
        await s.drained()
        assert s.changes[-1] == NAME


@twisted_test
async def test_another_server_of_the_same_backend_gets_new_connections() -> None:
    """A changed definition is taken over; sessions leave the former server when they are idle."""
    async with stage("postgres") as s:
        client, _ = await s.session()
        s.define(backends={"one": DatabaseBackend("one", server_of(s.origins[1]))})
        assert b"C57P01" in await client.rest()
        await s.connect(START)
        await s.origins[1].accept()


@twisted_test
async def test_a_proxy_that_stops_ends_sessions_between_transactions() -> None:
    """Those that are in one may finish it, within the time there is."""
    async with stage("postgres") as s:
        idle, _ = await s.session()
        busy, server = await s.session(ready=IN_TRANSACTION)
        stopped: Deferred[None] = Deferred.fromCoroutine(s.plane.stop(20))
        assert b"C57P01" in await idle.rest()
        server.write(READY)
        assert b"C57P01" in await busy.rest()
        await stopped


@twisted_test
async def test_there_is_no_room_for_more_clients_than_may_be() -> None:
    """A connection too many is closed, and those there are stay."""
    async with stage() as s:
        client = await s.connect(b"x")
        await s.origins[0].accept()
        s.plane.max_connections = 1
        with pytest.raises(Lost):
            await (await s.connect()).exactly(1)
        assert not client.closed
