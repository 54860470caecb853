"""Servers behind TLS and HTTP/2: who is believed, what is shared, and what a failure costs."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from edge_stage import (
    Http2Server,
    SecureOrigin,
    answering_http2,
    gone,
    h2c,
    listening,
)
from h2.errors import ErrorCodes
from h2_wire import Client, ask
from plane_stage import (
    END,
    GET,
    LISTEN,
    OK,
    Origin,
    Stage,
    Wire,
    always,
    answering,
    eventually,
    ok,
    one_request,
    post,
    reactor,
    stage,
    turns,
    twisted_test,
)
from secure_stage import TlsWire, authority
from tls_stage import Authority
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogEvent, globalLogPublisher

from awesomeproxy.model import Backend, HealthCheck, Listen, Mode, Server, ServerTls
from awesomeproxy.proxy.health import Unwell, check
from awesomeproxy.proxy.multiplex import HIGHEST
from awesomeproxy.proxy.proxyprotocol import Ends, parse
from awesomeproxy.proxy.servers import LiveBackend, LiveServer

__all__ = ["authority"]  # fixtures

LOCAL = ip_network("127.0.0.0/8")
H2 = ("h2",)


@asynccontextmanager
async def behind(
    origin: SecureOrigin, scheme: str = "https", **backend: Any
) -> AsyncIterator[Stage]:
    """A plane in front of a server with TLS.

    :param backend: what is special about it; ``ca_file`` and what else begins with ``tls_``
        is for its TLS.
    """
    tls = ServerTls(**{name[4:]: backend.pop(name) for name in list(backend) if "tls_" in name})
    async with listening(origin):
        more = {"servers": (origin.at(scheme),), "tls": tls, **backend}
        async with stage(None, backend=more) as s:
            yield s


async def in_trouble(s: Stage) -> str:
    """Ask, and say why it cannot be answered; the request is held, and then given up."""
    client = await s.connect(GET)
    await eventually(lambda: s.live.observed().trouble, "trouble")
    trouble = s.live.observed().trouble
    client.abort()
    await s.quiet()
    return trouble


# Who is believed


@twisted_test
async def test_a_server_that_proves_who_it_is_is_asked(authority: Authority) -> None:
    """Its certificate is for the address of its URL, and from whom it should be."""
    origin = SecureOrigin(answering, authority.issue("127.0.0.1"))
    async with behind(origin, tls_ca_file=str(authority.ca_file)) as s:
        assert (await s.ask()).status == 200


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "for another host": ({"names": ("other.example",)}, "'other.example', not for 127.0.0.1"),
    "expired": ({"days": -1}, "expired"),
    "not valid yet": ({"began": -2}, "not valid yet"),
}


@pytest.mark.parametrize(("how", "words"), FAULTS.values(), ids=FAULTS)
@twisted_test
async def test_a_server_that_proves_something_else_is_not(
    how: dict[str, Any], words: str, authority: Authority
) -> None:
    """It gets no byte of a request, and what is wrong is said."""
    issued = authority.issue(*how.pop("names", ("127.0.0.1",)), **how)
    origin = SecureOrigin(answering, issued)
    async with behind(origin, tls_ca_file=str(authority.ca_file)) as s:
        assert words in await in_trouble(s)
        assert not origin.received


@twisted_test
async def test_a_server_whose_authority_is_unknown_is_not_asked(
    authority: Authority, tmp_path: Any
) -> None:
    """Only who is in the file may have signed for it."""
    stranger = Authority(tmp_path, "Stranger")
    origin = SecureOrigin(answering, stranger.issue("127.0.0.1"))
    async with behind(origin, tls_ca_file=str(authority.ca_file)) as s:
        assert "nobody who is trusted" in await in_trouble(s)
        assert not origin.received


@twisted_test
async def test_the_system_is_asked_whom_it_trusts(authority: Authority) -> None:
    """Without a file an authority of one's own is nobody."""
    origin = SecureOrigin(answering, authority.issue("127.0.0.1"))
    async with behind(origin) as s:
        assert "nobody who is trusted" in await in_trouble(s)
        assert not origin.received


@pytest.mark.parametrize(
    ("tls", "asked"),
    [
        ({"tls_name": "inside.example"}, "inside.example"),
        ({"tls_name": "inside.example", "tls_sni": "front.example"}, "front.example"),
    ],
)
@twisted_test
async def test_a_name_may_be_set(tls: dict[str, Any], asked: str, authority: Authority) -> None:
    """The certificate is for that name, and so is the handshake unless it has one of its own."""
    origin = SecureOrigin(answering, authority.issue("inside.example"))
    async with behind(origin, tls_ca_file=str(authority.ca_file), **tls) as s:
        assert (await s.ask()).status == 200
        assert origin.names == [asked]


@twisted_test
async def test_an_address_is_no_name_to_ask_for(authority: Authority) -> None:
    """RFC 6066, section 3: a literal address is not in the handshake."""
    origin = SecureOrigin(answering, authority.issue("127.0.0.1"))
    async with behind(origin, tls_ca_file=str(authority.ca_file)) as s:
        assert (await s.ask()).status == 200
        assert origin.names == [None]


@twisted_test
async def test_a_server_may_want_to_know_us(authority: Authority) -> None:
    """Mutual TLS: with our certificate we are served."""
    own = authority.issue("proxy.example")
    origin = SecureOrigin(answering, authority.issue("127.0.0.1"), clients=authority)
    files = {"tls_certificate": str(own.certificate), "tls_key": str(own.key)}
    async with behind(origin, tls_ca_file=str(authority.ca_file), **files) as s:
        assert (await s.ask()).status == 200


@twisted_test
async def test_who_wants_to_know_us_turns_away_strangers(authority: Authority) -> None:
    """Without a certificate of our own no request is carried out there."""
    origin = SecureOrigin(answering, authority.issue("127.0.0.1"), clients=authority)
    async with behind(origin, tls_ca_file=str(authority.ca_file)) as s:
        answer = await s.ask()
        assert answer.status == 502
        assert not origin.received
        for _ in range(3):
            await s.ask()
        assert "certificate required" in str(s.live.observed().servers)


@twisted_test
async def test_a_file_that_is_missing_is_named(authority: Authority) -> None:
    """A certificate of our own that cannot be read holds the site, and is named."""
    origin = SecureOrigin(answering, authority.issue("127.0.0.1"))
    async with behind(origin, tls_certificate="/nowhere/own.pem") as s:
        assert "/nowhere/own.pem" in await in_trouble(s)
        assert not origin.wires


@twisted_test
async def test_to_verify_nothing_is_loud(authority: Authority, tmp_path: Any) -> None:
    """Whoever turns that off is served by anybody, and the log names the server."""
    origin = SecureOrigin(answering, Authority(tmp_path, "Stranger").issue("other.example"))
    events: list[LogEvent] = []
    observer: Any = events.append
    globalLogPublisher.addObserver(observer)
    try:
        async with behind(origin, tls_verify=False) as s:
            assert (await s.ask()).status == 200
    finally:
        globalLogPublisher.removeObserver(observer)
    said = [e for e in events if e.get("server") == origin.at().url]
    assert [e["log_level"].name for e in said] == ["warn"]
    assert "is not verified" in said[0]["log_format"]


@twisted_test
async def test_a_server_that_does_not_answer_a_handshake_is_given_up(authority: Authority) -> None:
    """The time to connect includes the handshake."""
    deaf = Origin(None)
    async with listening(deaf):
        server = Server("https", "127.0.0.1", deaf.number)
        async with stage(None, backend={"servers": (server,)}) as s:
            client = await s.connect(GET)
            await eventually(lambda: any(wire.all for wire in deaf.wires), "a handshake")
            assert not s.live.observed().trouble
            await s.pass_time(3.5)
            assert "handshake" in s.live.observed().trouble
            client.abort()


# What is shared


@twisted_test
async def test_connections_with_tls_are_pooled(authority: Authority) -> None:
    """One handshake serves many requests."""
    origin = SecureOrigin(answering, authority.issue("127.0.0.1"))
    async with behind(origin, tls_ca_file=str(authority.ca_file)) as s:
        for _ in range(5):
            assert (await s.ask()).status == 200
        assert len(origin.wires) == 1


@twisted_test
async def test_a_pause_closes_idle_connections_with_tls(authority: Authority) -> None:
    """After it there are none, and the server has been told goodbye."""
    origin = SecureOrigin(answering, authority.issue("127.0.0.1"))
    async with behind(origin, tls_ca_file=str(authority.ca_file)) as s:
        await s.ask()
        assert len(s.live.connections) == 1
        s.place(Mode.HOLDING)
        await s.drained()
        wire: Any = origin.wires[0]
        await gone(wire)
        assert wire.goodbye
        client = await s.connect(GET)
        await s.held()
        await turns(10)
        assert len(origin.wires) == 1
        s.place()
        assert (await client.answer()).status == 200


@twisted_test
async def test_long_bodies_pass_both_ways(authority: Authority) -> None:
    """Megabytes there and back arrive as they were."""

    async def script(wire: Wire) -> None:
        while True:
            _, body = await one_request(wire)
            wire.write(ok(body))

    body = bytes(range(256)) * 16_000
    origin = SecureOrigin(script, authority.issue("127.0.0.1"))
    async with behind(origin, tls_ca_file=str(authority.ca_file)) as s:
        answer = await s.ask(post(body))
        assert answer.body == body


@twisted_test
async def test_what_a_server_cuts_off_looks_cut_off(authority: Authority) -> None:
    """A body without a length that ends without a goodbye is not complete."""

    async def script(wire: Wire) -> None:
        await one_request(wire)
        wire.write(b"HTTP/1.1 200 OK\r\n\r\nhalf of")
        await eventually(lambda: not wire.transport.dataBuffer)
        wire.close()

    origin = SecureOrigin(script, authority.issue("127.0.0.1"))
    async with behind(origin, tls_ca_file=str(authority.ca_file)) as s:
        client = await s.connect(GET)
        rest = await client.rest()
        assert b"half of" in rest
        assert not rest.endswith(b"0\r\n\r\n")
        assert s.counters.failed == 1


# HTTP/2


@asynccontextmanager
async def talking(
    *scripts: Callable[[Wire], Any] | None, listen: Listen = LISTEN, **more: Any
) -> AsyncIterator[tuple[Stage, Origin]]:
    """A plane in front of one server that speaks HTTP/2 without TLS."""
    origin = Origin(scripts[0] if scripts else None)
    async with listening(origin):
        backend = {"servers": (h2c(origin),), **more.pop("backend", {})}
        async with stage(None, listen=listen, backend=backend, **more) as s:
            yield s, origin


@twisted_test
async def test_http2_is_spoken_over_tls(authority: Authority) -> None:
    """A server that agrees to it gets requests as streams of one connection."""
    origin = SecureOrigin(answering_http2, authority.issue("127.0.0.1"), alpn=H2)
    async with behind(origin, "h2", tls_ca_file=str(authority.ca_file)) as s:
        for body in (b"one", b"two", b"three"):
            assert (await s.ask(post(body))).body == body
        assert len(origin.wires) == 1


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)])
@twisted_test
async def test_a_server_that_does_not_agree_to_http2_is_not_asked(
    alpn: tuple[str, ...], authority: Authority
) -> None:
    """What to write instead is said."""
    origin = SecureOrigin(answering_http2, authority.issue("127.0.0.1"), alpn=alpn)
    async with behind(origin, "h2", tls_ca_file=str(authority.ca_file)) as s:
        trouble = await in_trouble(s)
        assert "https://" in trouble or "protocol" in trouble
        assert not origin.received


@twisted_test
async def test_a_server_that_speaks_http1_is_no_http2_server() -> None:
    """No request is lost on it: it is sent none."""
    async with talking(always(b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")) as (s, origin):
        assert "not HTTP/2" in await in_trouble(s)
        assert b"blog.example" not in origin.received
        assert s.counters.ambiguous == s.counters.failed == 0


@twisted_test
async def test_a_server_that_says_nothing_is_given_up() -> None:
    """The time to connect includes a server's first words."""
    async with talking(None) as (s, origin):
        client = await s.connect(GET)
        await origin.accept()
        assert not s.live.observed().trouble
        await s.pass_time(3.5)
        assert "not said a word" in s.live.observed().trouble
        client.abort()


@twisted_test
async def test_a_server_that_hangs_up_at_once_is_given_up() -> None:
    """Nothing was sent there that could have been lost."""

    async def script(wire: Wire) -> None:
        wire.close()

    async with talking(script) as (s, _):
        assert "before it had said a word" in await in_trouble(s)
        assert s.counters.ambiguous == s.counters.failed == 0


@twisted_test
async def test_a_server_that_takes_no_streams_is_given_up() -> None:
    """It is not asked over and over on ever more connections."""

    async def script(wire: Wire) -> None:
        server = Http2Server(wire, most=0)
        await server.request()

    async with talking(script) as (s, origin):
        assert "takes no streams" in await in_trouble(s)
        assert not any(b"blog.example" in wire.all for wire in origin.wires)


@twisted_test
async def test_a_pause_does_not_wait_for_a_servers_first_words() -> None:
    """Nothing was sent yet: the request waits at the gate."""
    async with talking(None) as (s, origin):
        client = await s.connect(GET)
        wire = await origin.accept()
        s.place(Mode.HOLDING)
        await s.drained()
        assert s.gate.waiting == 1
        await gone(wire)
        s.place()
        server = Http2Server(await origin.accept())
        server.answer(await server.request())
        assert (await client.answer()).status == 200


@twisted_test
async def test_no_server_gets_more_streams_than_it_takes() -> None:
    """More requests than that are spread over more connections, and none is refused."""
    async with talking(None) as (s, origin):
        clients = [await s.connect(post(b"%d" % n)) for n in range(20)]
        wires: list[Http2Server] = []
        while sum(len(each.asked) for each in wires) < 20:
            fresh = [wire for wire in origin.wires if all(each.wire is not wire for each in wires)]
            wires += [Http2Server(wire, most=3) for wire in fresh if wire.all]
            for each in wires:
                if each.wire.buffer:
                    await each.hear()
            await turns(1)
        assert [len(each.asked) for each in wires if len(each.asked) > 3] == []
        assert len(wires) == 7
        for each in wires:
            for asked in list(each.asked.values()):
                while not asked.complete:
                    await each.hear()
                each.answer(asked, asked.body)
        answers = [(await client.answer()).body for client in clients]
        assert answers == [b"%d" % n for n in range(20)]
        assert s.counters.retried == 0


@twisted_test
async def test_a_connection_whose_numbers_are_used_up_is_replaced() -> None:
    """RFC 9113, section 5.1.1: identifiers of streams cannot be used twice."""
    async with talking(answering_http2) as (s, origin):
        assert (await s.ask()).status == 200
        session: Any = next(iter(s.live.connections))
        session._h2.highest_outbound_stream_id = HIGHEST - 2
        assert (await s.ask()).status == 200
        assert len(origin.wires) == 1
        assert (await s.ask()).status == 200
        assert len(origin.wires) == 2


@twisted_test
async def test_a_connection_gone_dead_is_given_no_more() -> None:
    """A server that has said nothing at all for the time of a response is called anew."""
    async with talking() as (s, origin):
        client = await s.connect(GET)
        server = Http2Server(await origin.accept())
        await server.request()
        await s.pass_time(61)
        assert (await client.answer()).status == 504
        again = await s.connect(GET)
        server = Http2Server(await origin.accept())
        server.answer(await server.request())
        assert (await again.answer()).status == 200
        assert len(origin.wires) == 2


# What a failure costs


@pytest.mark.parametrize("request_", [GET, post(b"body")], ids=["GET", "POST"])
@twisted_test
async def test_what_a_goodbye_leaves_out_is_sent_again(request_: bytes) -> None:
    """RFC 9113, section 6.8: a stream above the last one was not looked at, whatever its method."""
    async with talking() as (s, origin):
        client = await s.connect(request_)
        first = Http2Server(await origin.accept())
        await first.request()
        first.leave(0)
        second = Http2Server(await origin.accept())
        asked = await second.request()
        second.answer(asked, asked.body or b"ok")
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"body" if b"POST" in request_ else b"ok")
        assert s.counters.retried == 1
        assert s.counters.ambiguous == 0


@twisted_test
async def test_what_a_goodbye_lets_go_on_does() -> None:
    """Streams up to the last one are answered, new ones go elsewhere, and then it is closed."""
    async with talking() as (s, origin):
        client = await s.connect(GET)
        first = Http2Server(await origin.accept())
        asked = await first.request()
        first.leave(asked.stream)
        await turns(10)
        other = await s.connect(GET)
        second = Http2Server(await origin.accept())
        second.answer(await second.request(), b"second")
        assert (await other.answer()).body == b"second"
        assert not first.wire.closed
        # A library that has said goodbye says no more; the frames are written by hand.
        first.wire.write(b"\0\0\1\1\4" + asked.stream.to_bytes(4, "big") + b"\x88")
        first.wire.write(b"\0\0\5\0\1" + asked.stream.to_bytes(4, "big") + b"first")
        assert (await client.answer()).body == b"first"
        await gone(first.wire)
        assert s.counters.retried == 0


@pytest.mark.parametrize("request_", [GET, post(b"body")], ids=["GET", "POST"])
@twisted_test
async def test_a_refused_stream_is_sent_again(request_: bytes) -> None:
    """REFUSED_STREAM says that nothing has happened."""
    async with talking() as (s, origin):
        client = await s.connect(request_)
        server = Http2Server(await origin.accept())
        server.reset(await server.request())
        server.answer(await server.request())
        assert (await client.answer()).status == 200
        assert s.counters.retried == 1


@twisted_test
async def test_a_server_that_always_refuses_is_not_asked_for_ever() -> None:
    """After ``retry.attempts`` the client is told."""
    async with talking() as (s, origin):
        client = await s.connect(post(b"body"))
        server = Http2Server(await origin.accept())
        for _ in range(s.site.retry.attempts):
            server.reset(await server.request())
        answer = await client.answer()
        assert answer.status == 502
        assert b"refused" in answer.body


@pytest.mark.parametrize(
    ("request_", "status"), [(GET, 200), (post(b"body"), 502)], ids=["GET", "POST"]
)
@twisted_test
async def test_a_server_that_dies_before_it_answers(request_: bytes, status: int) -> None:
    """What may have been carried out is only sent again if that is as good as once."""
    async with talking() as (s, origin):
        client = await s.connect(request_)
        server = Http2Server(await origin.accept())
        await server.request()
        server.wire.abort()
        if status == 200:
            server = Http2Server(await origin.accept())
            server.answer(await server.request())
        assert (await client.answer()).status == status
        assert s.counters.ambiguous == (status == 502)


@pytest.mark.parametrize("how", ["reset", "abort", "close"])
@twisted_test
async def test_a_server_that_dies_in_the_middle_of_an_answer(how: str) -> None:
    """The client's is cut off where the server's was, visibly."""
    async with talking() as (s, origin):
        client = await s.connect(GET)
        server = Http2Server(await origin.accept())
        asked = await server.request()
        server.head(asked)
        server.body(asked, b"half of", end=False)
        await client.until(b"half of")
        if how == "reset":
            server.reset(asked, ErrorCodes.INTERNAL_ERROR)
        else:
            getattr(server.wire, how)()
        assert b"0\r\n" not in await client.rest()
        assert s.counters.failed == 1


@twisted_test
async def test_one_stream_that_fails_leaves_the_others_alone() -> None:
    """A reset ends one request, and the rest of the connection goes on."""
    async with talking() as (s, origin):
        clients = [await s.connect(post(b"%d" % n)) for n in range(5)]
        server = Http2Server(await origin.accept())
        asked = [await server.request() for _ in clients]
        server.reset(asked[2], ErrorCodes.INTERNAL_ERROR)
        for each in asked[:2] + asked[3:]:
            server.answer(each)
        statuses = [(await client.answer()).status for client in clients]
        assert sorted(statuses) == [200, 200, 200, 200, 502]


@twisted_test
async def test_a_stream_that_is_answered_early_does_not_stay_open() -> None:
    """A server that wants no more of a body is told that no more will come."""
    async with talking() as (s, origin):
        client = await s.connect(post(b"the whole body")[:-5])
        server = Http2Server(await origin.accept())
        asked = await server.request(complete=False)
        server.head(asked, end=True)
        assert (await client.answer()).status == 200
        while not asked.reset:
            await server.hear()


# Health


def live_server(server: Server, tls: ServerTls | None = None) -> LiveServer:
    """A server as the data plane has it."""
    tls = tls or ServerTls()
    return LiveServer(server, LiveBackend(Backend("b", (server,), tls=tls)))


CHECK = HealthCheck(path="/up")


async def unwell(s: Stage, server: LiveServer, health: HealthCheck | None = CHECK) -> str:
    """Why a server is not well, or nothing."""
    try:
        await check(s.plane, server, health, "blog.example", 1.0)
    except Unwell as why:
        return str(why)
    return ""


@twisted_test
async def test_a_server_with_tls_is_asked_how_it_is_over_tls(authority: Authority) -> None:
    """A check verifies who answers as requests do."""
    origin = SecureOrigin(answering, authority.issue("127.0.0.1"))
    stranger = SecureOrigin(answering, authority.issue("other.example"))
    tls = ServerTls(ca_file=str(authority.ca_file))
    async with listening(origin, stranger), stage(None) as s:
        assert not await unwell(s, live_server(origin.at(), tls))
        assert origin.received.startswith(b"GET /up HTTP/1.1\r\n")
        assert "not for 127.0.0.1" in await unwell(s, live_server(stranger.at(), tls))
        assert not stranger.received


@pytest.mark.parametrize("secure", [False, True], ids=["h2c", "h2"])
@pytest.mark.parametrize(("status", "words"), [("200", ""), ("503", "it answered 503")])
@twisted_test
async def test_a_server_that_speaks_http2_is_asked_how_it_is_in_http2(
    status: str, words: str, secure: bool, authority: Authority
) -> None:
    """What it answers to GET counts, as with HTTP/1.1."""
    heads = []

    async def script(wire: Wire) -> None:
        server = Http2Server(wire)
        asked = await server.request()
        heads.append(asked.fields)
        server.h2.send_headers(asked.stream, [(":status", status)], end_stream=True)
        server._write()

    origin: Origin = Origin(script)
    if secure:
        origin = SecureOrigin(script, authority.issue("127.0.0.1"), alpn=H2)
    async with listening(origin), stage(None) as s:
        server = origin.at("h2") if isinstance(origin, SecureOrigin) else h2c(origin)
        tls = ServerTls(ca_file=str(authority.ca_file))
        assert await unwell(s, live_server(server, tls)) == words
        assert heads[0][":path"] == "/up"
        assert heads[0][":authority"] == "blog.example"


@twisted_test
async def test_a_knock_waits_for_the_first_words_of_http2() -> None:
    """That the kernel takes a connection does not say that a server is there."""
    greets, says_no = Origin(answering_http2), Origin(always(b"HTTP/1.1 400 No\r\n\r\n"))
    async with listening(greets, says_no), stage(None) as s:
        assert not await unwell(s, live_server(h2c(greets)), None)
        assert "not well-formed" in await unwell(s, live_server(h2c(says_no)), None)


@twisted_test
async def test_a_server_that_comes_back_gets_what_was_held_for_it() -> None:
    """Requests that found nobody go there once somebody speaks HTTP/2 again."""
    async with talking(answering_http2) as (s, origin):
        await origin.refuse()
        client = await s.connect(post(b"body"))
        await s.held()
        assert s.live.observed().trouble
        origin.listen()
        await s.pass_time(1)
        assert (await client.answer()).body == b"body"
        assert not s.live.observed().trouble


# PROXY headers to servers


class Announced(TlsWire):
    """A server's end with TLS, that takes a PROXY header first."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context, server=True)
        self.header = b""
        self._headed = False

    def dataReceived(self, data: bytes) -> None:
        if not self._headed:
            self.header += data
            header = parse(self.header)
            if header is None:
                return
            self._headed = True
            self.header, data = self.header[: header.length], self.header[header.length :]
        if data:
            super().dataReceived(data)


class AnnouncedOrigin(SecureOrigin):
    """Such a server."""

    def buildProtocol(self, addr: object) -> Wire:
        wire = Announced(self.context)
        self.wires.append(wire)
        if self._script is not None:
            reactor.callLater(0, self._run, wire)
        return wire


async def announced(wire: Wire) -> Ends:
    """Take the PROXY header that has come first."""
    await eventually(lambda: b"GET " in wire.buffer, "a request")
    header = parse(wire.buffer)
    assert header is not None
    assert header.ends is not None
    await wire.exactly(header.length)
    return header.ends


@twisted_test
async def test_a_server_is_told_of_the_client_in_version_1() -> None:
    """The line has both addresses of the client's connection, and comes first."""
    async with stage(backend={"send_proxy": "v1"}) as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        line = await server.until(b"\r\n")
        ends = client.transport.getHost().port, s.plane.listening[0].port
        assert line == b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n" % ends
        assert (await server.until(END)).startswith(b"GET / HTTP/1.1\r\n")
        server.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_server_is_told_of_the_client_in_version_2() -> None:
    """The same in binary."""
    async with stage(backend={"send_proxy": "v2"}) as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        ends = await announced(server)
        assert (ends.source, ends.source_port) == ("127.0.0.1", client.transport.getHost().port)
        assert ends.destination_port == s.plane.listening[0].port
        assert (await server.until(END)).startswith(b"GET / HTTP/1.1\r\n")
        server.write(OK)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("version", ["v1", "v2"])
@twisted_test
async def test_a_server_is_told_what_we_were_told(version: Any) -> None:
    """The client of the proxy in front is named, not that proxy."""
    listen = replace(LISTEN, proxy_protocol=(LOCAL,))
    async with stage(listen=listen, backend={"send_proxy": version}) as s:
        client = await s.connect(b"PROXY TCP6 2001:db8::7 2001:db8::1 4000 443\r\n" + GET)
        server = await s.origin.accept()
        ends = await announced(server)
        assert ip_address(ends.source) == ip_address("2001:db8::7")
        assert (ends.source_port, ends.destination_port) == (4000, 443)
        await server.until(END)
        server.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_connection_that_was_announced_is_for_one_client_alone() -> None:
    """Nobody else's request is sent on it."""
    async with stage(answering, backend={"send_proxy": "v1"}) as s:

        async def script(wire: Wire) -> None:
            await wire.until(b"\r\n")
            await answering(wire)

        s.origin._script = script
        for _ in range(3):
            assert (await s.ask()).status == 200
        await eventually(lambda: not s.live.connections, "the end of the connections")
        assert len(s.origin.wires) == 3


@pytest.mark.parametrize("version", ["v1", "v2"])
@twisted_test
async def test_the_header_comes_before_the_handshake(version: Any, authority: Authority) -> None:
    """A server with TLS learns whose connection it is before it answers a hello."""
    origin = AnnouncedOrigin(answering, authority.issue("127.0.0.1"))
    more = {"send_proxy": version, "tls_ca_file": str(authority.ca_file)}
    async with behind(origin, **more) as s:
        assert (await s.ask()).status == 200
        wire: Any = origin.wires[0]
        header = parse(wire.header)
        assert header is not None
        assert header.ends is not None
        assert header.ends.source == "127.0.0.1"
        assert header.ends.destination_port == s.plane.listening[0].port


@pytest.mark.parametrize(
    ("version", "header"),
    [("v1", b"PROXY UNKNOWN\r\n"), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")],
)
@twisted_test
async def test_a_check_is_the_proxys_own(version: Any, header: bytes) -> None:
    """It comes with a header, too, and speaks for nobody."""
    health = HealthCheck(path="/up", interval=2.0, timeout=1.0)
    async with stage(None, backend={"send_proxy": version, "health": health}) as s:
        await s.pass_time(health.interval)
        await eventually(lambda: s.origin.received.endswith(END), "a check")
        assert s.origin.received.startswith(header + b"GET /up HTTP/1.1\r\n")


# Holding


@twisted_test
async def test_a_drain_waits_for_streams_in_flight() -> None:
    """They are answered, the connection is closed with the last, and then it has drained."""
    async with talking() as (s, origin):
        clients = [await s.connect(post(b"%d" % n)) for n in range(3)]
        server = Http2Server(await origin.accept())
        asked = [await server.request() for _ in clients]
        s.place(Mode.HOLDING)
        late = await s.connect(post(b"late"))
        await s.held()
        for number, each in enumerate(asked):
            assert s.live.observed().in_flight == 3 - number
            assert not s.live.drained
            server.answer(each, each.body)
            await eventually(lambda n=number: s.gate.in_flight == 2 - n)  # type: ignore[misc]
        await s.drained()
        await gone(server.wire)
        assert [(await client.answer()).body for client in clients] == [b"0", b"1", b"2"]
        assert len(server.asked) == 0
        s.place()
        server = Http2Server(await origin.accept())
        asked_late = await server.request()
        server.answer(asked_late, asked_late.body)
        assert (await late.answer()).body == b"late"


@twisted_test
async def test_a_server_is_told_goodbye_at_a_pause() -> None:
    """GOAWAY, and nothing of the site's is connected to it."""
    async with talking() as (s, origin):
        client = await s.connect(GET)
        server = Http2Server(await origin.accept())
        server.answer(await server.request())
        await client.answer()
        s.place(Mode.HOLDING)
        await s.drained()
        while server.goodbye is None:
            await server.hear()
        assert server.goodbye.error_code == ErrorCodes.NO_ERROR
        await gone(server.wire)


@twisted_test
async def test_to_force_a_pause_cuts_streams() -> None:
    """What can be sent again waits at the gate; what may have been carried out is ambiguous."""
    async with talking() as (s, origin):
        get, send = await s.connect(GET), await s.connect(post(b"body"))
        server = Http2Server(await origin.accept())
        asked = [await server.request(), await server.request()]
        s.place(Mode.HOLDING)
        assert s.plane.cut("blog") == 2
        await s.drained()
        assert s.gate.waiting == 1
        assert (await send.answer()).status == 502
        assert s.counters.ambiguous == 1
        while not all(each.reset for each in asked):
            await server.hear()
        await gone(server.wire)
        s.place()
        server = Http2Server(await origin.accept())
        server.answer(await server.request())
        assert (await get.answer()).status == 200


@twisted_test
async def test_fifty_pauses_lose_and_double_nothing() -> None:
    """Streams of several clients, over fifty pauses, reach servers exactly once."""
    seen: list[str] = []

    async def script(wire: Wire) -> None:
        server = Http2Server(wire, most=10)
        while True:
            asked = await server.request()
            seen.append(asked.fields["x-number"])
            server.answer(asked, asked.fields["x-number"].encode())

    clients, streams, stopped = 4, 8, False
    listen = replace(LISTEN, h2c=True)

    async def go(s: Stage, name: int) -> int:
        client = Client(await s.connect(), s)
        await client.greet()
        number, sent = -1, 0
        while not stopped:
            numbers = [number := number + 2 for _ in range(streams)]
            for each in numbers:
                method = "POST" if each % 4 == 1 else "GET"
                client.send(ask(each, ("x-number", f"{name}-{each}"), method=method))
            for each in numbers:
                response = await client.response(each)
                assert (response.status, response.body) == (200, f"{name}-{each}".encode())
            sent += len(numbers)
        client.wire.abort()
        return sent

    async with talking(script, listen=listen) as (s, origin):
        going: Any = gatherResults([Deferred.fromCoroutine(go(s, n)) for n in range(clients)])
        for _ in range(50):
            before = len(seen)
            await eventually(lambda b=before: len(seen) > b + 10, "traffic")  # type: ignore[misc]
            s.place(Mode.HOLDING)
            await s.drained()
            reached, connected = len(seen), len(origin.wires)
            await eventually(lambda: s.gate.waiting == clients * streams, "all to be held")
            await turns(3)
            assert (len(seen), len(origin.wires)) == (reached, connected)
            s.place()
        stopped = True
        sent = sum(await going)
        assert len(seen) == len(set(seen)) == sent
        counters = s.counters
        assert counters.refused == counters.failed == counters.ambiguous == counters.retried == 0
