"""TLS towards clients: certificates by name, and HTTP/1.1 as it is without TLS."""

from __future__ import annotations

import ssl
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID
from edge_stage import GET, Edge, edge, gone
from h2_wire import ask
from plane_stage import (
    END,
    Wire,
    answering,
    eventually,
    ok,
    one_request,
    post,
    turns,
    twisted_test,
)
from secure_stage import TlsWire, authority
from tls_stage import Authority, Issued, client_trust, private

from awesomeproxy.model import Mode

BLOCK = bytes(range(256)) * 64
LONG = 24 * 1024 * 1024  # bytes; far more than sockets and TLS keep
BOUND = 512 * 1024  # bytes of a body that the proxy may keep
__all__ = ["authority"]  # fixtures


@pytest.fixture
def place(authority: Authority, tmp_path: Path) -> Path:
    """A directory with the certificates of two sites and of names below one."""
    authority.issue("blog.example", path=tmp_path / "blog.crt")
    authority.issue("shop.example", path=tmp_path / "shop.crt")
    authority.issue("*.wide.example", path=tmp_path / "wide.crt")
    return tmp_path


def shown(wire: TlsWire) -> x509.Certificate:
    """The certificate that the proxy has shown."""
    der = wire.tls.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def names(wire: TlsWire) -> list[str]:
    """Whom it is for."""
    found: Any = shown(wire).extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    return list(found.value.get_values_for_type(x509.DNSName))


def replaced(authority: Authority, path: Path, *hosts: str) -> Issued:
    """A new certificate in the place of one that is in use."""
    fresh = authority.issue(*hosts)
    private(path.with_suffix(".key"), fresh.key.read_bytes())
    private(path, fresh.certificate.read_bytes())
    return fresh


async def refused(on: Edge, name: str | None, context: ssl.SSLContext | None = None) -> TlsWire:
    """A client whose handshake fails."""
    wire = TlsWire(context or client_trust(on.authority), name)
    await on.connected(wire, on.secure_port)
    await gone(wire)
    assert not wire.shaken or not wire.all
    return wire


# Which certificate


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("blog.example", "blog.example"),
        ("BLOG.example", "blog.example"),
        ("shop.example", "shop.example"),
        ("a.wide.example", "*.wide.example"),
        ("stranger.example", "shop.example"),
        (None, "shop.example"),
    ],
)
@twisted_test
async def test_a_client_gets_the_certificate_of_the_name_it_asks_for(
    name: str | None, wanted: str, authority: Authority, place: Path
) -> None:
    """The exact name's, else the wildcard's, else the default."""
    async with edge(authority, place, default="shop.example") as on:
        assert names(await on.tls(name)) == [wanted]


@pytest.mark.parametrize("name", ["stranger.example", "wide.example", "a.b.wide.example", None])
@twisted_test
async def test_without_a_default_a_strangers_name_gets_none(
    name: str | None, authority: Authority, place: Path
) -> None:
    """Never another site's certificate: the handshake fails, and is counted."""
    async with edge(authority, place) as on:
        wire = await refused(on, name)
        assert wire.fault is not None
        assert on.on.plane.handshakes_failed == 1


@twisted_test
async def test_a_refusal_disturbs_nobody(authority: Authority, place: Path) -> None:
    """Whoever gets no certificate leaves the others as they were."""
    async with edge(authority, place, answering) as on:
        client = await on.tls(data=GET)
        assert (await client.answer()).status == 200
        for _ in range(20):
            await refused(on, "stranger.example")
        client.write(GET)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("offered", "http2", "agreed"),
    [
        ((), True, None),
        (("http/1.1",), True, "http/1.1"),
        (("h2", "http/1.1"), True, "h2"),
        (("http/1.1", "h2"), True, "h2"),
        (("h2", "http/1.1"), False, "http/1.1"),
    ],
)
@twisted_test
async def test_what_is_agreed_on_is_spoken(
    offered: tuple[str, ...], http2: bool, agreed: str | None, authority: Authority, place: Path
) -> None:
    """HTTP/2 with those who offer it, if the listener does; else HTTP/1.1."""
    async with edge(authority, place, answering, secure={"http2": http2}) as on:
        if agreed == "h2":
            client = await on.http2()
            client.send(ask(1))
            assert (await client.response()).status == 200
        else:
            wire = await on.tls(alpn=offered, data=GET)
            assert wire.tls.selected_alpn_protocol() == agreed
            assert (await wire.answer()).status == 200


# Certificates that change


@twisted_test
async def test_a_new_certificate_is_for_new_connections(authority: Authority, place: Path) -> None:
    """Those there are go on with the one they have, and none of them is dropped."""
    async with edge(authority, place) as on:
        idle, busy = await on.tls(), await on.tls(data=GET)
        server = await on.on.origin.accept()
        await one_request(server)
        http2 = await on.http2()
        before = shown(idle)
        replaced(authority, place / "blog.crt", "blog.example")
        assert await on.take_certificates() == []
        after = shown(await on.tls())
        assert after.serial_number != before.serial_number
        server.write(ok(b"under the old"))
        assert (await busy.answer()).body == b"under the old"
        for wire in (idle, busy):
            wire.write(GET)
            await one_request(server)
            server.write(ok(b"still"))
            assert (await wire.answer()).body == b"still"
        http2.send(ask(1))
        await one_request(server)
        server.write(ok(b"still"))
        assert (await http2.response()).body == b"still"


@twisted_test
async def test_a_handshake_under_way_may_see_a_change(authority: Authority, place: Path) -> None:
    """It ends with one certificate or the other."""
    async with edge(authority, place, answering) as on:
        wire = TlsWire(client_trust(authority), "blog.example", drip=16)
        await on.connected(wire, on.secure_port)
        await turns(5)
        replaced(authority, place / "blog.crt", "blog.example")
        await on.take_certificates()
        await wire.ready()
        wire.write(GET)
        assert (await wire.answer()).status == 200


@twisted_test
async def test_a_broken_certificate_changes_nothing(authority: Authority, place: Path) -> None:
    """The one before it stays in use, and the problem is told."""
    async with edge(authority, place, answering) as on:
        before = shown(await on.tls())
        (place / "blog.crt").write_text("half of a certifi")
        (problem,) = await on.take_certificates()
        assert "blog.crt" in problem
        wire = await on.tls(data=GET)
        assert shown(wire) == before
        assert (await wire.answer()).status == 200


@twisted_test
async def test_a_certificate_that_is_taken_away_is_not_shown(
    authority: Authority, place: Path
) -> None:
    """Its connections go on; new ones are refused."""
    async with edge(authority, place, answering) as on:
        wire = await on.tls()
        (place / "blog.crt").unlink()
        (place / "blog.key").unlink()
        await on.take_certificates()
        await refused(on, "blog.example")
        wire.write(GET)
        assert (await wire.answer()).status == 200


# How it is spoken


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@twisted_test
async def test_versions_that_are_spoken(
    version: ssl.TLSVersion, authority: Authority, place: Path
) -> None:
    """TLS 1.2 and 1.3."""
    async with edge(authority, place, answering) as on:
        context = client_trust(authority)
        context.minimum_version = context.maximum_version = version
        wire = await on.tls(context=context, data=GET)
        assert (await wire.answer()).status == 200


@twisted_test
async def test_older_versions_are_not_spoken(authority: Authority, place: Path) -> None:
    """Whoever offers TLS 1.1 at the most is refused."""
    async with edge(authority, place) as on:
        context = client_trust(authority)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        wire = await refused(on, "blog.example", context)
        assert b"\x15\x03" in bytes(wire.raw[:2])  # an alert


@pytest.mark.parametrize("change", [False, True], ids=["same", "changed"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@twisted_test
async def test_a_session_can_be_resumed(
    version: ssl.TLSVersion, change: bool, authority: Authority, place: Path
) -> None:
    """A client that comes again is spared the handshake, also if the certificate has changed."""
    async with edge(authority, place, answering) as on:
        context = client_trust(authority)
        context.minimum_version = context.maximum_version = version
        first = await on.tls(context=context, data=GET)
        assert (await first.answer()).status == 200
        if change:
            replaced(authority, place / "blog.crt", "blog.example")
            await on.take_certificates()
        again = TlsWire(context, "blog.example")
        again.tls.session = first.tls.session
        await on.connected(again, on.secure_port)
        await again.ready()
        assert again.tls.session_reused
        again.write(GET)
        assert (await again.answer()).status == 200


@pytest.mark.parametrize(
    ("version", "status"), [(ssl.TLSVersion.TLSv1_2, 421), (ssl.TLSVersion.TLSv1_3, 200)]
)
@twisted_test
async def test_a_session_of_another_name_opens_no_other_site(
    version: ssl.TLSVersion, status: int, authority: Authority, place: Path
) -> None:
    """In TLS 1.2 the name is that of the session, in 1.3 the handshake's (RFC 8446, 4.6.1)."""
    async with edge(authority, place, answering) as on:
        context = client_trust(authority)
        context.minimum_version = context.maximum_version = version
        first = await on.tls("shop.example", context=context, data=GET)
        assert (await first.answer()).status == 421
        again = TlsWire(context, "blog.example")
        again.tls.session = first.tls.session
        await on.connected(again, on.secure_port)
        await again.ready()
        again.write(GET)
        assert (await again.answer()).status == status


# What HTTP does with it


@twisted_test
async def test_a_request_is_held_and_let_go(authority: Authority, place: Path) -> None:
    """A pause is a slow answer over TLS, too."""
    async with edge(authority, place, answering) as on:
        on.on.place(Mode.HOLDING)
        wire = await on.tls(data=post(b"body"))
        await on.on.held()
        await on.on.pass_time(2)
        assert not on.on.origin.received
        on.on.place()
        answer = await wire.answer()
        assert (answer.status, answer["x-awesomeproxy-held"]) == (200, "2.000")


@pytest.mark.parametrize("how", ["abort", "close", "goodbye"])
@twisted_test
async def test_a_client_that_leaves_while_held_is_noticed(
    how: str, authority: Authority, place: Path
) -> None:
    """Its request goes nowhere, and it is counted as departed."""
    async with edge(authority, place, answering) as on:
        on.on.place(Mode.HOLDING)
        wire = await on.tls(data=post(b"body"))
        await on.on.held()
        if how == "goodbye":
            wire.say_goodbye()
        else:
            getattr(wire, how)()
        await eventually(lambda: on.on.counters.departed == 1, "its leaving")
        on.on.place()
        await turns(5)
        assert not on.on.origin.received


@twisted_test
async def test_a_client_that_leaves_with_its_body_in_the_kernel_is_noticed(
    authority: Authority, place: Path
) -> None:
    """Nothing is read of it while it is held; the kernel is asked instead."""
    async with edge(authority, place, answering) as on:
        on.on.place(Mode.HOLDING)
        wire = await on.tls(data=b"PUT / HTTP/1.1\r\nHost: blog.example\r\nContent-Length: 9999999")
        wire.write(END + bytes(1 << 20))
        await on.on.held()
        await turns(20)
        wire.abort()
        await on.on.pass_time(2.5)
        assert on.on.counters.departed == 1


class Pump:
    """Writes a body as fast as it is taken."""

    def __init__(self, wire: Wire, size: int) -> None:
        self._wire = wire
        self.left = size
        wire.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.left -= len(BLOCK)
        self._wire.write(BLOCK)
        if self.left <= 0:
            self._wire.transport.unregisterProducer()

    def stopProducing(self) -> None:
        pass


async def emptied(wire: Wire, size: int) -> None:
    """Take so many bytes, as they were sent, off a connection."""
    while size:
        await eventually(lambda: wire.buffer or wire.closed, "more of a body")
        assert wire.buffer, "it has ended early"
        part, wire.buffer, wire.all = wire.buffer, b"", b""
        at = -size % len(BLOCK)
        wanted = (BLOCK * (len(part) // len(BLOCK) + 2))[at : at + len(part)]
        assert part == wanted
        size -= len(part)


@twisted_test
async def test_a_long_response_is_not_kept_for_a_slow_client(
    authority: Authority, place: Path
) -> None:
    """The server is stopped while the client takes nothing, and all of it arrives."""
    async with edge(authority, place) as on:
        wire = await on.tls(data=GET)
        server = await on.on.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LONG)
        await wire.until(END)
        wire.stop_reading()
        pump = Pump(server, LONG)
        (there,) = on.on.plane.clients
        transport: Any = there.transport
        await eventually(lambda: transport.unsent)
        await turns(50)
        assert pump.left > LONG / 2
        assert transport.unsent < BOUND
        wire.read_on()
        await emptied(wire, LONG)


@twisted_test
async def test_a_long_request_is_not_kept_for_a_slow_server(
    authority: Authority, place: Path
) -> None:
    """The client is stopped while the server takes nothing, and all of it arrives."""
    async with edge(authority, place) as on:
        head = b"PUT / HTTP/1.1\r\nHost: blog.example\r\nContent-Length: %d\r\n\r\n" % LONG
        wire = await on.tls(data=head)
        server = await on.on.origin.accept()
        await server.until(END)
        server.stop_reading()
        pump = Pump(wire, LONG)
        (connection,) = on.on.live.connections
        transport: Any = connection.transport
        await eventually(lambda: transport.unsent)
        await turns(50)
        assert pump.left > LONG / 4
        assert transport.unsent < BOUND
        server.read_on()
        await emptied(server, LONG)
        server.write(ok(b"taken"))
        assert (await wire.answer()).body == b"taken"


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"],
    ids=["length", "chunks"],
)
@twisted_test
async def test_what_is_cut_off_says_no_goodbye(
    head: bytes, authority: Authority, place: Path
) -> None:
    """RFC 9112, section 9.8: an end without close_notify is not complete."""
    async with edge(authority, place) as on:
        wire = await on.tls(data=GET)
        server = await on.on.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n5\r\nhello\r\n")
        await wire.until(b"hello")
        server.abort()
        await gone(wire)
        assert not wire.goodbye


@twisted_test
async def test_a_body_without_a_length_that_is_whole_ends_with_a_goodbye(
    authority: Authority, place: Path
) -> None:
    """Who speaks HTTP/1.0 knows by it that nothing is missing."""

    async def script(wire: Wire) -> None:
        await one_request(wire)
        wire.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        wire.close()

    async with edge(authority, place, script) as on:
        wire = await on.tls(data=b"GET / HTTP/1.0\r\nHost: blog.example\r\n\r\n")
        assert (await wire.end()).endswith(b"\r\n\r\nall of it")
        assert wire.goodbye


@twisted_test
async def test_a_body_without_a_length_that_is_cut_off_ends_without_one(
    authority: Authority, place: Path
) -> None:
    """Who speaks HTTP/1.0 knows by that, and nothing else, that something is missing."""
    async with edge(authority, place) as on:
        wire = await on.tls(data=b"GET / HTTP/1.0\r\nHost: blog.example\r\n\r\n")
        server = await on.on.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")
        await wire.until(b"half of it")
        server.abort()
        await gone(wire)
        assert not wire.goodbye


@twisted_test
async def test_requests_may_come_together(authority: Authority, place: Path) -> None:
    """Pipelined in one record or many, they are answered in order."""

    async def script(wire: Wire) -> None:
        while True:
            _, body = await one_request(wire)
            wire.write(ok(body))

    async with edge(authority, place, script) as on:
        for drip in (0, 7):
            wire = TlsWire(client_trust(authority), "blog.example", drip=drip)
            await on.connected(wire, on.secure_port)
            wire.write(b"".join(post(b"%d" % n) for n in range(10)))
            answers = [(await wire.answer()).body for _ in range(10)]
            assert answers == [b"%d" % n for n in range(10)]
            wire.abort()


@twisted_test
async def test_a_client_that_has_said_goodbye_has_left(authority: Authority, place: Path) -> None:
    """As without TLS: who sends no more is gone; what was sent is still carried out once."""
    async with edge(authority, place) as on:
        wire = await on.tls(data=post(b"body"))
        server = await on.on.origin.accept()
        wire.say_goodbye()
        _, body = await one_request(server)
        assert body == b"body"
        await gone(wire)
        assert on.on.gate.in_flight == 1
        server.write(ok(b"done"))
        await on.on.quiet()
        assert len(on.on.origin.wires) == 1


@twisted_test
async def test_the_end_of_a_connection_is_said(authority: Authority, place: Path) -> None:
    """A connection that is closed behind an answer ends with a goodbye."""
    async with edge(authority, place, answering) as on:
        request = b"GET / HTTP/1.1\r\nHost: blog.example\r\nConnection: close\r\n\r\n"
        wire = await on.tls(data=request)
        assert (await wire.answer()).status == 200
        await gone(wire)
        assert wire.goodbye


@twisted_test
async def test_an_idle_connection_is_closed_with_a_goodbye(
    authority: Authority, place: Path
) -> None:
    """After ``timeouts.idle``, as without TLS."""
    async with edge(authority, place, answering) as on:
        wire = await on.tls(data=GET)
        assert (await wire.answer()).status == 200
        await on.on.pass_time(76)
        await gone(wire)
        assert wire.goodbye
