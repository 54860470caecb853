"""More than the proxy wants: limits of each listener, and all sorts of clients at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from random import Random
from typing import Any

import pytest
from edge_stage import (
    GET,
    Edge,
    Http2Server,
    SecureOrigin,
    answering_http2,
    edge,
    h2c,
    listening,
)
from h2_frames import PREFACE, SETTINGS_ACK, Error, data, rst_stream, settings
from h2_wire import ask
from plane_stage import (
    Answer,
    Lost,
    Origin,
    Wire,
    answering,
    eventually,
    ok,
    one_request,
    post,
    turns,
    twisted_test,
)
from secure_stage import TlsWire, authority, place
from tls_stage import Authority, client_trust
from twisted.internet.defer import Deferred, gatherResults

from awesomeproxy.model import Backend, HoldLimits, Mode, ServerTls

__all__ = ["authority", "place"]  # fixtures

LOCAL = ip_network("127.0.0.0/8")
LIMITED = {"max_head": 2048, "max_target": 256, "max_headers": 10}


# Each listener has its own


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/" + "a" * 200, 5, 200),
        ("/" + "a" * 300, 1, 414),
        ("/", 11, 431),
        ("/", -1, 431),
    ],
    ids=["within", "target", "fields", "size"],
)
@twisted_test
async def test_limits_of_a_head_are_those_of_its_listener(
    path: str,
    fields: int,
    status: int,
    http2: bool,
    secure: bool,
    authority: Authority,
    place: Path,
) -> None:
    """The one with limits refuses what the other takes, in either version of HTTP."""
    more = [(f"x-{n}", "a") for n in range(fields)] if fields >= 0 else [("x-long", "a" * 2500)]
    limits = {"secure" if secure else "plain": LIMITED}
    async with edge(authority, place, answering, **limits) as on:  # type: ignore[arg-type]
        for limited in (True, False):
            over_tls = secure is limited
            if http2:
                client = await on.http2(secure=over_tls)
                client.send(ask(1, *more, path=path))
                found = (await client.response(1)).status
            else:
                lines = [f"GET {path} HTTP/1.1", "Host: blog.example"]
                head = "\r\n".join([*lines, *(f"{n}: {v}" for n, v in more), "", ""]).encode()
                wire: Wire = await on.tls(data=head) if over_tls else await on.plain(head)
                found = (await wire.answer()).status
            assert found == (status if limited else 200)


@twisted_test
async def test_a_client_is_counted_on_all_listeners_that_count(
    authority: Authority, place: Path
) -> None:
    """Its connections of either kind are one number, and when they end nothing is left of it."""
    few: dict[str, Any] = {"max_per_client": 3}
    async with edge(authority, place, answering, plain=few, secure=few) as on:
        for _ in range(3):
            kept = [await on.tls(data=GET), await on.plain(GET), (await on.http2()).wire]
            for wire in kept[:2]:
                assert (await wire.answer()).status == 200
            for late in (await on.tls(), await on.plain(GET)):
                answer = await late.answer()
                assert (answer.status, answer["connection"]) == (429, "close")
                await late.rest()
            for wire in kept:
                wire.abort()
            await eventually(lambda: not on.on.plane.clients)
            assert not len(on.on.plane.visits)


@twisted_test
async def test_who_came_in_time_is_served_however_many_come_later(
    authority: Authority, place: Path
) -> None:
    """There is room or not when a client comes: others do not take it during its handshake."""
    async with edge(authority, place, answering, plane={"max_connections": 1}) as on:
        first = TlsWire(client_trust(authority), "blog.example", drip=1)
        await on.connected(first, on.secure_port, GET)
        await eventually(lambda: on.on.plane.clients)
        late = [await on.tls(data=GET), await on.plain(GET)]
        assert not first.shaken
        for wire in late:
            assert (await wire.answer()).status == 503
        assert (await first.answer()).status == 200


# All sorts


class Crowd:
    """Clients that each do something else, and often stop in the middle of it."""

    def __init__(self, on: Edge, seed: int) -> None:
        self.on = on
        self.random = Random(seed)
        self.answers: list[int] = []

    def ways(self) -> list[Callable[[], Any]]:
        return [self.http1, self.http1, self.http2, self.http2, self.half, self.noise]

    async def one(self, number: int) -> None:
        way = self.random.choice(self.ways())
        with contextlib.suppress(Lost):
            await way()

    def cut(self, data_: bytes) -> bytes:
        return data_[: self.random.randrange(len(data_) + 1)]

    async def come(self, *alpn: str) -> Wire:
        """With TLS or without; with a PROXY header, as every client here."""
        source = f"192.0.2.{self.random.randrange(8)}"
        header = f"PROXY TCP4 {source} 127.0.0.1 5 80\r\n".encode()
        if self.random.random() < 0.5:
            return await self.on.plain(header)
        wire = TlsWire(client_trust(self.on.authority, *alpn), "blog.example", before=header)
        await self.on.connected(wire, self.on.secure_port)
        return wire

    async def http1(self) -> None:
        """Requests, some of which are left."""
        wire = await self.come()
        for _ in range(self.random.randrange(1, 4)):
            request = self.random.choice([GET, post(b"hello"), post(bytes(100_000))])
            if self.random.random() < 0.2:
                wire.write(self.cut(request))
                await turns(self.random.randrange(5))
                break
            wire.write(request)
            if self.random.random() < 0.2:
                break
            answer: Answer = await wire.answer()
            self.answers.append(answer.status)
        self.leave(wire)

    async def http2(self) -> None:
        """Streams, some of which are reset."""
        wire = await self.come("h2")
        wire.write(PREFACE + settings() + SETTINGS_ACK)
        for stream in range(1, 2 * self.random.randrange(2, 8), 2):
            body = self.random.random() < 0.5
            wire.write(ask(stream, method="POST" if body else "GET", end=not body))
            if body and self.random.random() < 0.8:
                wire.write(data(stream, b"hello", end=True))
            if self.random.random() < 0.3:
                await turns(self.random.randrange(3))
                wire.write(rst_stream(stream, Error.CANCEL))
        await turns(self.random.randrange(30))
        self.leave(wire)

    async def half(self) -> None:
        """A handshake, or a preface, that is not whole."""
        wire = await self.on.plain()
        header = b"PROXY TCP4 192.0.2.9 127.0.0.1 5 80\r\n"
        wire.write(self.cut(header + PREFACE + settings()))
        await turns(self.random.randrange(5))
        self.leave(wire)

    async def noise(self) -> None:
        """What is nothing at all."""
        wire = Wire()
        await self.on.connected(wire, self.on.secure_port)
        wire.write(b"PROXY UNKNOWN\r\n" + self.random.randbytes(200))
        await turns(self.random.randrange(5))
        self.leave(wire)

    def leave(self, wire: Wire) -> None:
        if not wire.closed:
            self.random.choice([wire.close, wire.abort])()


async def moody_http2(wire: Wire) -> None:
    """A server that refuses a stream now and then, and says goodbye after a while."""
    server = Http2Server(wire, most=5)
    for number in range(12):
        asked = await server.request(complete=False)
        if not asked.reset:
            if number % 4 == 3:
                server.reset(asked)
            else:
                server.answer(asked)
    server.leave(asked.stream)
    await wire.rest()


async def moody(wire: Wire) -> None:
    """A server that closes connections, now and then before it has answered."""
    for number in range(7):
        await one_request(wire)
        if number == 5:
            wire.abort()
        wire.write(ok(b"ok" * 1000))
    wire.close()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["http", "https", "h2c", "h2"])
@twisted_test
async def test_a_crowd_leaves_nothing_behind(
    kind: str, seed: int, authority: Authority, place: Path
) -> None:
    """Whatever clients, servers and operators do, in the end nothing is held or counted."""
    scripts = (moody_http2, answering_http2) if kind in ("h2", "h2c") else (moody, answering)
    issued = authority.issue("127.0.0.1")
    origins: list[Origin] = []
    for script in scripts:
        if kind in ("https", "h2"):
            alpn = ("h2",) if kind == "h2" else ()
            origins.append(SecureOrigin(script, issued, alpn=alpn))
        else:
            origins.append(Origin(script))
    proxied: dict[str, Any] = {"proxy_protocol": (LOCAL,), "max_per_client": 12}
    async with listening(*origins):
        servers = tuple(
            o.at(kind) if isinstance(o, SecureOrigin) else h2c(o) if kind == "h2c" else o.server
            for o in origins
        )
        tls = ServerTls(ca_file=str(authority.ca_file))
        backends = {
            "one": Backend("one", servers[:1], tls=tls),
            "two": Backend("two", servers, tls=tls),
        }
        plane = {"max_connections": 60}
        hold = HoldLimits(max_requests=40)
        async with edge(
            authority, place, None, plain=proxied, secure=proxied, plane=plane, hold=hold
        ) as on:
            on.on.define(backends={**on.on.site.backends, **backends})
            on.on.place(backend="two")
            crowd = Crowd(on, seed)
            for _ in range(8):
                going = [Deferred.fromCoroutine(crowd.one(n)) for n in range(25)]
                await turns(crowd.random.randrange(10))
                on.on.place(Mode.HOLDING)
                await turns(crowd.random.randrange(20))
                if crowd.random.random() < 0.3:
                    on.on.plane.cut("blog")
                backend = crowd.random.choice(["one", "two"])
                await on.on.pass_time(crowd.random.choice([0.0, 0.5]))
                on.on.place(backend=backend)
                settled: Any = gatherResults(going)
                while not settled.called:
                    await on.on.pass_time(0.25)
                await settled
            await on.on.pass_time(70)
            await on.on.quiet()
            await eventually(lambda: not on.on.plane.clients, "the end of all clients")
            assert crowd.answers.count(200) > len(crowd.answers) / 4
