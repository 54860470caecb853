"""What comes before HTTP: PROXY headers, TLS, the choice of a version, and too many clients."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived
from plane_stage import (
    GET,
    Answer,
    Stage,
    Wire,
    answering,
    eventually,
    fields_of,
    one_request,
    reactor,
    stage,
    turns,
    twisted_test,
)
from secure_stage import TlsWire, authority, place
from tls_stage import Authority, client_trust
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.logger import capturedLogs, formatEvent

from awesomeproxy.model import Listen, ListenTimeouts, Tls
from awesomeproxy.proxy import doorstep
from awesomeproxy.proxy.doorstep import PREFACE, Visits
from awesomeproxy.proxy.proxyprotocol import parse
from awesomeproxy.tls.certificates import Certificates

__all__ = ["authority", "place"]  # fixtures

HERE = "tcp:0:interface=127.0.0.1"
TLS = Listen(HERE, tls=True)
H2C = Listen(HERE, h2c=True)
US = (ip_network("127.0.0.0/8"),)
PROXIED = Listen(HERE, proxy_protocol=US)
V1 = b"PROXY TCP4 192.0.2.7 203.0.113.9 56324 80\r\n"
V2_LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
V2 = (
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24"
    + bytes(15)
    + b"\x01"
    + bytes(15)
    + b"\x02\x01\x02\0\x50"
)


class Door:
    """A stage whose server answers, and whose clients may have to shake hands."""

    def __init__(self, stage: Stage, authority: Authority) -> None:
        self.stage = stage
        self.plane = stage.plane
        self._authority = authority

    async def tls(self, *protocols: str, name: str | None = "blog.example", **more: Any) -> TlsWire:
        """A client that speaks TLS; its handshake is under way."""
        client = TlsWire(client_trust(self._authority, *protocols), name, **more)
        await self._open(client)
        return client

    async def ready(self, *protocols: str, **more: Any) -> TlsWire:
        """The same; its handshake is done."""
        client = await self.tls(*protocols, **more)
        await client.ready()
        return client

    async def plain(self, data: bytes = b"") -> Wire:
        return await self.stage.connect(data)

    async def _open(self, client: Wire) -> None:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.plane.listening[0].port)
        self.stage.clients.append(client)
        await connectProtocol(endpoint, client)  # type: ignore[no-untyped-call]

    async def forwarded(self) -> dict[bytes, bytes]:
        """The fields of the next request that comes to the server."""
        server = await self.stage.origin.accept()
        head, _ = await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return fields_of(head)


@contextlib.asynccontextmanager
async def door(
    listen: Listen, authority: Authority, place: Path, script: Any = None, **plane: Any
) -> AsyncIterator[Door]:
    certificates = Certificates(Tls((str(place),)))
    assert certificates.take(certificates.read()) == []
    plane["certificates"] = certificates
    async with stage(script, listen=listen, plane=plane) as found:
        yield Door(found, authority)
    assert not len(found.plane.visits)


# TLS


@twisted_test
async def test_a_request_over_tls_is_answered_over_tls(authority: Authority, place: Path) -> None:
    async with door(TLS, authority, place) as at:
        client = await at.tls()
        client.write(GET)
        fields = await at.forwarded()
        assert fields[b"x-forwarded-proto"] == b"https"
        assert fields[b"x-forwarded-for"] == b"127.0.0.1"
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"ok")
        assert at.plane.handshakes == 1
        assert at.plane.handshakes_failed == 0


@twisted_test
async def test_a_connection_over_tls_is_kept_and_carries_large_bodies(
    authority: Authority, place: Path
) -> None:
    async def echo(wire: Wire) -> None:
        while True:
            _, body = await one_request(wire)
            wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with door(TLS, authority, place, echo) as at:
        client = await at.tls()
        for size in (0, 1, 100_000, 3_000_000):
            body = bytes(range(250)) * (size // 250) + b"x" * (size % 250)
            client.write(
                b"PUT / HTTP/1.1\r\nHost: blog.example\r\nContent-Length: %d\r\n\r\n" % size + body
            )
            assert (await client.answer()).body == body
        assert at.plane.handshakes == 1


@pytest.mark.parametrize(
    ("offered", "http2", "chosen"),
    [
        (("h2", "http/1.1"), True, "h2"),
        (("http/1.1", "h2"), True, "h2"),
        (("h2", "http/1.1"), False, "http/1.1"),
        (("http/1.1",), True, "http/1.1"),
        ((), True, None),
    ],
)
@twisted_test
async def test_the_version_of_http_is_agreed_on_in_the_handshake(
    offered: tuple[str, ...], http2: bool, chosen: str | None, authority: Authority, place: Path
) -> None:
    async with door(Listen(HERE, tls=True, http2=http2), authority, place, answering) as at:
        client = await at.ready(*offered)
        assert client.tls.selected_alpn_protocol() == chosen
        if chosen == "h2":
            assert_http2(await client.exactly(9))
        else:
            client.write(GET)
            assert (await client.answer()).status == 200


@twisted_test
async def test_the_name_that_was_asked_for_is_known(authority: Authority, place: Path) -> None:
    async with door(TLS, authority, place, answering) as at:
        client = await at.tls(name="BLOG.example")
        client.write(GET)
        await client.answer()
        (visitor,) = at.plane.clients
        arrival = visitor.arrival  # type: ignore[attr-defined]
        assert arrival.server_name == "blog.example"
        assert arrival.tls
        assert arrival.port == client.transport.getHost().port
        assert arrival.local_port == client.transport.getPeer().port


@pytest.mark.parametrize("drip", [1, 7])
@twisted_test
async def test_a_handshake_may_come_byte_by_byte(
    drip: int, authority: Authority, place: Path
) -> None:
    async with door(TLS, authority, place, answering) as at:
        client = await at.ready("http/1.1", drip=drip)
        client.write(GET)
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_handshake_has_one_deadline_that_trickling_does_not_move(
    authority: Authority, place: Path
) -> None:
    listen = Listen(HERE, tls=True, timeouts=ListenTimeouts(handshake=4, head=100))
    async with door(listen, authority, place) as at:
        client = await at.plain()
        for byte in b"\x16\x03\x01":
            client.write(bytes([byte]))
            await at.stage.pass_time(1)
        assert not client.closed
        await at.stage.pass_time(2)
        await eventually(lambda: client.closed)
        assert at.plane.handshakes_failed == 1
        assert at.plane.handshakes == 0


@twisted_test
async def test_whoever_says_nothing_is_sent_away_and_is_no_failed_handshake(
    authority: Authority, place: Path
) -> None:
    async with door(TLS, authority, place) as at:
        patient, looking = await at.plain(), await at.plain()
        looking.close()
        await eventually(lambda: len(at.plane.clients) == 1)
        await at.stage.pass_time(TLS.timeouts.handshake + 1)
        await eventually(lambda: patient.closed)
        assert at.plane.handshakes_failed == 0


@twisted_test
async def test_others_are_served_while_many_dawdle(authority: Authority, place: Path) -> None:
    async with door(TLS, authority, place, answering) as at:
        for number in range(40):
            await at.plain(b"\x16\x03\x01\x02\x00\x01"[: number % 6])
        client = await at.ready()
        client.write(GET)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05xxxxx", b"\0" * 100]
)
@twisted_test
async def test_what_is_no_handshake_is_closed(
    first: bytes, authority: Authority, place: Path
) -> None:
    async with door(TLS, authority, place) as at:
        client = await at.plain(first)
        assert b"HTTP" not in await client.rest()
        await eventually(lambda: at.plane.handshakes_failed == 1)
        assert at.stage.origin.received == b""


@twisted_test
async def test_a_name_that_is_not_known_gets_no_certificate(
    authority: Authority, place: Path
) -> None:
    authority.issue("other.example", path=place / "other.crt")
    try:
        async with door(TLS, authority, place) as at:
            client = await at.tls(name="stranger.example")
            await eventually(lambda: client.fault or client.closed)
            assert not client.shaken
            await eventually(lambda: at.plane.handshakes_failed == 1)
    finally:
        (place / "other.crt").unlink()


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("stage_", ["connected", "hello", "shaken", "head", "held"])
@twisted_test
async def test_a_client_may_leave_at_any_stage(
    stage_: str, how: str, authority: Authority, place: Path
) -> None:
    async with door(TLS, authority, place) as at:
        if stage_ == "connected":
            client: Wire = await at.plain()
        elif stage_ == "hello":
            client = await at.plain(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        else:
            client = await at.ready()
            if stage_ == "head":
                client.write(GET[:20])
            elif stage_ == "held":
                client.write(GET)
                await at.stage.origin.accept()
        await eventually(lambda: len(at.plane.clients) == 1)
        await turns()
        getattr(client, how)()
        await eventually(lambda: not at.plane.clients)


@twisted_test
async def test_nothing_keeps_one_that_has_left_in_the_middle(
    authority: Authority, place: Path
) -> None:
    async with door(TLS, authority, place) as at:
        gc.collect()
        gc.disable()
        try:
            for first in (b"", b"\x16\x03\x01\x02\x00\x01"):
                client = await at.plain(first)
                await eventually(lambda: at.plane.clients)
                await turns()
                (visitor,) = (weakref.ref(visitor) for visitor in at.plane.clients)
                client.abort()
                await eventually(lambda: not at.plane.clients)
                await turns()
                assert visitor() is None
        finally:
            gc.enable()


# The end of the proxy


@twisted_test
async def test_whoever_has_said_nothing_is_closed_when_the_proxy_stops(
    authority: Authority, place: Path
) -> None:
    async with door(TLS, authority, place) as at:
        client = await at.plain()
        await eventually(lambda: at.plane.clients)
        await at.plane.stop(100)
        await eventually(lambda: client.closed)
        assert not client.reset


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
@twisted_test
async def test_whoever_has_begun_a_handshake_when_the_proxy_stops_is_answered(
    protocol: str, authority: Authority, place: Path
) -> None:
    async with door(TLS, authority, place, answering) as at:
        client = await at.tls(protocol, drip=10)
        await eventually(lambda: at.plane.clients)
        await turns(5)
        stopped = Deferred.fromCoroutine(at.plane.stop(100))
        await client.ready()
        if protocol == "h2":
            client.write(in_http2().data_to_send())
            kind = -1
            while kind != 1:  # HEADERS, among goodbyes that the library would stop at
                head = await client.exactly(9)
                kind, payload = head[3], await client.exactly(int.from_bytes(head[:3], "big"))
            assert b"\x88" in payload[:4]  # :status 200 (RFC 7541, appendix A)
        else:
            client.write(GET)
            answer = await client.answer()
            assert answer.status == 200
            assert answer["connection"] == "close"
        client.close()
        await stopped


@twisted_test
async def test_whoever_has_just_begun_a_handshake_when_the_proxy_stops_is_not_closed(
    authority: Authority, place: Path
) -> None:
    async with door(TLS, authority, place) as at:
        client = await at.plain()
        await eventually(lambda: at.plane.clients)
        client.transport.socket.send(b"\x16\x03\x01\x02")  # which nobody has read yet
        stopped = Deferred.fromCoroutine(at.plane.stop(100))
        await turns(10)
        assert not client.closed
        client.close()
        await stopped


# PROXY headers


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (V1, b"192.0.2.7"),
        (V2, b"::1"),
        (V2_LOCAL, b"127.0.0.1"),
        (b"PROXY UNKNOWN\r\n", b"127.0.0.1"),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:203.0.113.9 56324 80\r\n", b"192.0.2.7"),
    ],
    ids=["v1", "v2", "local", "unknown", "mapped"],
)
@twisted_test
async def test_a_header_says_whose_connection_it_is(
    header: bytes, address: bytes, authority: Authority, place: Path
) -> None:
    async with door(PROXIED, authority, place) as at:
        client = await at.plain(header + GET)
        assert (await at.forwarded())[b"x-forwarded-for"] == address
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_header_may_be_split_anywhere(authority: Authority, place: Path) -> None:
    async with door(PROXIED, authority, place, answering) as at:
        for header in (V1, V2):
            for cut in range(len(header) + 3):
                data = header + GET
                client = await at.plain(data[:cut])
                await turns(2)
                client.write(data[cut:])
                assert (await client.answer()).status == 200, cut
                (visitor,) = at.plane.clients
                assert visitor.address in ("192.0.2.7", "::1")  # type: ignore[attr-defined]
                client.abort()
                await eventually(lambda: not at.plane.clients)


@twisted_test
async def test_a_header_is_not_looked_at_again_before_more_has_come(
    authority: Authority, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[bytes] = []

    def watched(data: bytes) -> Any:
        looks.append(data)
        return parse(data)

    monkeypatch.setattr(doorstep, "parse", watched)
    async with door(PROXIED, authority, place, answering) as at:
        client = await at.plain(V1[:10])
        await turns(50)
        assert looks == [V1[:10]]
        client.write(V1[10:] + GET)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("drip", [0, 1])
@pytest.mark.parametrize("header", [V1, V2])
@twisted_test
async def test_a_handshake_follows_the_header(
    header: bytes, drip: int, authority: Authority, place: Path
) -> None:
    listen = Listen(HERE, tls=True, proxy_protocol=US)
    async with door(listen, authority, place) as at:
        client = await at.tls(before=header, drip=drip)
        client.write(GET)
        fields = await at.forwarded()
        assert fields[b"x-forwarded-for"] in (b"192.0.2.7", b"::1")
        assert fields[b"x-forwarded-proto"] == b"https"
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    "data",
    [
        GET,
        b"PROXY TCP4 1.2.3.4\r\n" + GET,
        b"\r\n\r\n\0\r\nQUIT\n\x99" + GET,
        b"\x16\x03\x01",
        V1[:-2],
    ],
    ids=["none", "v1", "v2", "TLS", "no end"],
)
@twisted_test
async def test_whoever_must_send_a_header_and_sends_something_else_is_closed(
    data: bytes, authority: Authority, place: Path
) -> None:
    async with door(PROXIED, authority, place) as at:
        client = await at.plain(data)
        if data == V1[:-2]:
            await eventually(lambda: at.plane.clients)
            await at.stage.pass_time(PROXIED.timeouts.handshake + 1)
        assert await client.rest() == b""
        await eventually(lambda: not at.plane.clients)
        assert at.stage.origin.received == b""


@twisted_test
async def test_headers_that_are_none_are_counted_and_logged_now_and_then(
    authority: Authority, place: Path
) -> None:
    async with door(PROXIED, authority, place) as at:
        with capturedLogs() as logs:
            for _ in range(3):
                await (await at.plain(GET)).rest()
            await at.stage.pass_time(1)
            await (await at.plain(GET)).rest()
        said = [formatEvent(event) for event in logs if "PROXY" in event["log_format"]]
        assert ["(1 of" in said[0], "(3 of" in said[1], len(said)] == [True, True, 2]
        assert "127.0.0.1 begins without a header" in said[0]
        assert at.plane.bad_headers.count == 4


@twisted_test
async def test_a_header_from_anybody_else_is_none(authority: Authority, place: Path) -> None:
    listen = Listen(HERE, proxy_protocol=(ip_network("192.0.2.0/24"),))
    async with door(listen, authority, place, answering) as at:
        client = await at.plain(V1 + GET)
        assert (await client.answer()).status == 400
        client = await at.plain(GET)
        assert (await client.answer()).status == 200
        assert (await at.stage.origin.accept()).all.count(b"192.0.2.7") == 0


@twisted_test
async def test_an_end_in_the_middle_of_a_header_is_one(authority: Authority, place: Path) -> None:
    async with door(PROXIED, authority, place) as at:
        for cut in (0, 1, len(V1) - 1, len(V1)):
            client = await at.plain(V1[:cut])
            client.close()
            assert await client.rest() == b""
            await eventually(lambda: not at.plane.clients)


# HTTP/2 or not


def assert_http2(frame: bytes) -> None:
    """The head of a SETTINGS frame."""
    assert frame[3:9] == b"\x04\0\0\0\0\0", frame


def in_http2() -> H2Connection:
    """The library, with a request to be sent."""
    speaker = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    speaker.initiate_connection()
    speaker.send_headers(
        1,
        [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "blog.example")],
        end_stream=True,
    )
    return speaker


async def ask_http2(client: Wire) -> tuple[int, bytes]:
    """One request in HTTP/2; the status of its answer, and its body."""
    speaker = in_http2()
    client.write(speaker.data_to_send())
    status, body = 0, b""
    while True:
        for event in speaker.receive_data(await client.exactly(max(1, len(client.buffer)))):
            if isinstance(event, ResponseReceived):
                status = int(dict(event.headers)[b":status"])
            elif isinstance(event, DataReceived):
                body += event.data
                if event.stream_ended is not None:
                    return status, body
        client.write(speaker.data_to_send())


@pytest.mark.parametrize("at_once", [True, False])
@twisted_test
async def test_whoever_begins_with_http2_speaks_it(
    at_once: bool, authority: Authority, place: Path
) -> None:
    async with door(H2C, authority, place, answering) as at:
        if at_once:
            client = await at.plain()
            assert await ask_http2(client) == (200, b"ok")
            return
        client = await at.plain()
        for byte in PREFACE + bytes.fromhex("000000040000000000"):
            client.write(bytes([byte]))
            await turns(1)
        assert_http2(await client.exactly(9))


@pytest.mark.parametrize(
    "method", [b"GET", b"P", b"PR", b"PRI", b"PUT", b"POST", b"PROPFIND", b"PRIX"]
)
@twisted_test
async def test_whoever_begins_with_something_else_speaks_http1(
    method: bytes, authority: Authority, place: Path
) -> None:
    async with door(H2C, authority, place) as at:
        client = await at.plain()
        for byte in b"%b / HTTP/1.1\r\nHost: blog.example\r\nContent-Length: 0\r\n\r\n" % method:
            client.write(bytes([byte]))
            await turns(1)
        answer = await client.answer() if method in (b"P", b"PR", b"PRI", b"PRIX") else None
        if answer is None:
            await at.forwarded()
            answer = await client.answer()
            assert answer.status == 200
        else:
            assert answer.status in (400, 501, 505)


@pytest.mark.parametrize("data", [b"", b"P", PREFACE[:-1]])
@twisted_test
async def test_whoever_does_not_say_which_is_sent_away(
    data: bytes, authority: Authority, place: Path
) -> None:
    async with door(H2C, authority, place) as at:
        client = await at.plain(data)
        await eventually(lambda: at.plane.clients)
        await at.stage.pass_time(H2C.timeouts.handshake + 1)
        assert await client.rest() == b""


# Too many


@pytest.mark.parametrize("kind", ["plain", "tls", "h2", "h2c"])
@twisted_test
async def test_a_client_too_many_is_told_so(kind: str, authority: Authority, place: Path) -> None:
    listen = Listen(HERE, tls=kind in ("tls", "h2"), h2c=kind == "h2c")
    async with door(listen, authority, place, answering, max_connections=2) as at:
        for _ in range(2):
            client = await at.ready("http/1.1") if listen.tls else await at.plain()
            client.write(GET)
            assert (await client.answer()).status == 200
        late: Wire
        if kind == "tls":
            late = await at.ready("http/1.1")
            answer = await late.answer()
        elif kind == "plain":
            late = await at.plain()
            answer = await late.answer()
        else:
            late = await at.ready("h2") if kind == "h2" else await at.plain()
            assert (await ask_http2(late))[0] == 503
            return
        assert_refused(answer, 503)


def assert_refused(answer: Answer, status: int) -> None:
    assert answer.status == status
    assert answer["retry-after"]
    assert answer["connection"] == "close"


@twisted_test
async def test_more_than_can_be_told_so_are_closed_at_once(
    authority: Authority, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorstep, "TURNED_AWAY", 1)
    async with door(TLS, authority, place, max_connections=1) as at:
        first, second = await at.plain(), await at.plain()
        await eventually(lambda: len(at.plane.clients) == 2)
        third = await at.plain()
        await eventually(lambda: third.closed)
        assert not first.closed
        assert not second.closed


@pytest.mark.parametrize("kind", ["plain", "tls"])
@twisted_test
async def test_an_address_has_only_so_many_connections(
    kind: str, authority: Authority, place: Path
) -> None:
    listen = Listen(HERE, tls=kind == "tls", max_per_client=2)

    async def come() -> Wire:
        return await at.ready("http/1.1") if listen.tls else await at.plain()

    async with door(listen, authority, place, answering) as at:
        clients = [await come() for _ in range(2)]
        for client in clients:
            client.write(GET)
            assert (await client.answer()).status == 200
        late = await come()
        assert_refused(await late.answer(), 429)
        late.close()
        clients[0].close()
        await eventually(lambda: len(at.plane.clients) == 1)
        again = await come()
        again.write(GET)
        assert (await again.answer()).status == 200


@pytest.mark.parametrize("kind", ["h2", "h2c"])
@twisted_test
async def test_a_connection_too_many_is_told_so_in_http2(
    kind: str, authority: Authority, place: Path
) -> None:
    listen = Listen(HERE, tls=kind == "h2", h2c=kind == "h2c", max_per_client=1)
    async with door(listen, authority, place, answering) as at:
        first = await at.ready("h2") if listen.tls else await at.plain()
        assert (await ask_http2(first))[0] == 200
        second = await at.ready("h2") if listen.tls else await at.plain()
        assert (await ask_http2(second))[0] == 429


@twisted_test
async def test_it_is_the_address_of_the_header_that_counts(
    authority: Authority, place: Path
) -> None:
    listen = Listen(HERE, proxy_protocol=US, max_per_client=1)
    async with door(listen, authority, place, answering) as at:
        for header, status in ((V1, 200), (V2, 200), (V1, 429), (V2_LOCAL, 200)):
            client = await at.plain(header)
            if status == 200:
                client.write(GET)
            assert (await client.answer()).status == status
        assert len(at.plane.visits) == 3


@twisted_test
async def test_those_on_the_doorstep_count_as_well(authority: Authority, place: Path) -> None:
    listen = Listen(HERE, tls=True, max_per_client=1)
    async with door(listen, authority, place) as at:
        silent = await at.plain()
        await eventually(lambda: at.plane.clients)
        late = await at.ready()
        assert_refused(await late.answer(), 429)
        silent.abort()
        late.abort()
        await eventually(lambda: not at.plane.clients)
        assert not len(at.plane.visits)


def test_visits_are_forgotten_when_all_have_left() -> None:
    visits = Visits()
    assert [visits.enter("a"), visits.enter("a"), visits.enter("b")] == [1, 2, 1]
    assert len(visits) == 2
    for address in ("a", "b", "a"):
        visits.leave(address)
    assert not len(visits)
