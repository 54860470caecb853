"""Opening connections to servers: what comes first is done first, and what fails says why."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from plane_stage import OwnTime, Wire, eventually, reactor, turns, twisted_test
from secure_stage import TlsWire, authority
from tls_stage import Authority
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from awesomeproxy.model import Backend, Server, ServerTls
from awesomeproxy.proxy.dial import Handshake, dial
from awesomeproxy.proxy.transport import eager
from awesomeproxy.tls.verifying import ClientContexts, identity, server_name

__all__ = ["authority"]  # fixtures

V1 = b"PROXY TCP4 192.0.2.7 203.0.113.9 56324 443\r\n"
NAME = "app.example"


class Accepting(Factory):
    """A server whose connections are as ``make`` says."""

    noisy = False

    def __init__(self, make: Callable[[], Wire]) -> None:
        self._make = make
        self.wires: list[Any] = []

    def buildProtocol(self, addr: object) -> Wire:
        self.wires.append(self._make())
        return self.wires[-1]  # type: ignore[no-any-return]


class BehindHeader(TlsWire):
    """A server that takes so many bytes before the handshake."""

    def __init__(self, context: ssl.SSLContext, size: int) -> None:
        super().__init__(context, server=True)
        self.header = b""
        self._size = size

    def dataReceived(self, data: bytes) -> None:
        missing = self._size - len(self.header)
        self.header += data[:missing]
        if data[missing:]:
            super().dataReceived(data[missing:])


class Call:
    """One call of :func:`dial`, and what has come of it."""

    def __init__(self, time: Any, server: Server, timeout: float = 3, **more: Any) -> None:
        self.wire = Wire()
        self.failures: list[Failure] = []
        self.call_off = dial(eager(time), server, self.wire, self.failures.append, timeout, **more)

    @property
    def connected(self) -> bool:
        return self.wire.transport is not None

    @property
    def why(self) -> str:
        """What the one failure says."""
        (failure,) = self.failures
        return str(failure.value)

    async def over(self) -> None:
        await eventually(lambda: self.connected or self.failures, "a connection, or none")

    async def failed(self) -> str:
        await self.over()
        await turns()
        assert not self.connected
        return self.why


class Called:
    """A server, and calls to it."""

    def __init__(self, authority: Authority, accepting: Accepting, port: int) -> None:
        self.time = OwnTime()
        self.accepting = accepting
        self.calls: list[Call] = []
        self.server = Server("https", "127.0.0.1", port)
        self.tls = ServerTls(ca_file=str(authority.ca_file), name=NAME)

    @property
    def wire(self) -> Any:
        """The server's end of the only connection."""
        (wire,) = self.accepting.wires
        return wire

    def call(
        self, *, tls: ServerTls | None = None, server: Server | None = None, **more: Any
    ) -> Call:
        tls, server = tls or self.tls, server or self.server
        backend = Backend("app", (server,), tls=tls)
        handshake = Handshake(
            ClientContexts().get(backend, server),
            identity(tls, server) if tls.verify else "",
            server_name(tls, server),
            server.http2,
        )
        return self.dial(server, handshake=handshake, **more)

    def dial(self, server: Server | None = None, **more: Any) -> Call:
        self.calls.append(Call(self.time, server or self.server, **more))
        return self.calls[-1]

    async def pass_time(self, seconds: float) -> None:
        self.time.clock.advance(seconds)
        await turns()


@asynccontextmanager
async def serving(
    authority: Authority, make: Callable[[], Wire] | None = None, **more: Any
) -> AsyncIterator[Called]:
    """A server that speaks TLS, as Python does, or is what ``make`` makes."""

    def tls() -> Wire:
        return TlsWire(context(authority, **more), server=True)

    accepting = Accepting(make or tls)
    port = reactor.listenTCP(0, accepting, interface="127.0.0.1")
    called = Called(authority, accepting, port.getHost().port)
    try:
        yield called
    finally:
        for wire in (*accepting.wires, *(call.wire for call in called.calls)):
            if wire.transport is not None and not wire.closed:
                wire.abort()
        await eventually(lambda: all(wire.closed for wire in accepting.wires))
        await eventually(lambda: all(c.wire.closed for c in called.calls if c.connected))
        await port.stopListening()
        assert not called.time.clock.getDelayedCalls()
        assert all(len(call.failures) <= 1 for call in called.calls)


def context(
    authority: Authority,
    names: tuple[str, ...] = (NAME,),
    alpn: str = "http/1.1",
    **issued: Any,
) -> ssl.SSLContext:
    """A server's."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = authority.issue(*names, **issued)
    made.load_cert_chain(files.certificate, files.key)
    made.set_alpn_protocols([alpn])
    return made


@twisted_test
async def test_a_server_is_spoken_to_once_it_has_proved_who_it_is(authority: Authority) -> None:
    async with serving(authority) as at:
        call = at.call()
        await call.over()
        call.wire.write(b"hello")
        assert await at.wire.exactly(5) == b"hello"
        at.wire.write(b"and hello")
        assert await call.wire.exactly(9) == b"and hello"
        assert b"hello" not in at.wire.raw
        assert not call.failures


@pytest.mark.parametrize(
    ("name", "sni", "asked"),
    [(NAME, "", NAME), (NAME, "other.example", "other.example"), ("127.0.0.1", "", None)],
)
@twisted_test
async def test_a_server_is_asked_for_a_name(
    name: str, sni: str, asked: str | None, authority: Authority
) -> None:
    theirs = context(authority, (NAME, "127.0.0.1"))
    names: list[str | None] = []
    theirs.sni_callback = lambda _, name, __: names.append(name)
    async with serving(authority, lambda: TlsWire(theirs, server=True)) as at:
        call = at.call(tls=replace(at.tls, name=name, sni=sni))
        await call.over()
        assert call.connected
        assert names == [asked]


@twisted_test
async def test_a_server_that_has_a_name_speaks_to_the_protocol_itself(
    authority: Authority,
) -> None:
    async with serving(authority) as at:
        server = replace(at.server, host="localhost")
        for call in (at.dial(server), at.dial(server, preface=V1), at.call(server=server)):
            await call.over()
            assert call.wire.transport.protocol is call.wire


@twisted_test
async def test_a_header_comes_before_the_handshake(authority: Authority) -> None:
    theirs = context(authority)
    async with serving(authority, lambda: BehindHeader(theirs, len(V1))) as at:
        call = at.call(preface=V1)
        await call.over()
        call.wire.write(b"hello")
        assert await at.wire.exactly(5) == b"hello"
        assert at.wire.header == V1


@twisted_test
async def test_a_header_comes_before_all_else_without_tls_as_well(authority: Authority) -> None:
    async with serving(authority, Wire) as at:
        call = at.dial(preface=V1)
        await call.over()
        call.wire.write(b"hello")
        assert await at.wire.exactly(len(V1) + 5) == V1 + b"hello"


@twisted_test
async def test_a_handshake_may_come_byte_by_byte(authority: Authority) -> None:
    theirs = context(authority)
    async with serving(authority, lambda: TlsWire(theirs, server=True, drip=1)) as at:
        call = at.call()
        await call.over()
        at.wire.write(b"hello")
        assert await call.wire.exactly(5) == b"hello"


@twisted_test
async def test_a_server_in_http2_has_to_agree_to_it(authority: Authority) -> None:
    async with serving(authority, alpn="h2") as at:
        call = at.call(server=replace(at.server, scheme="h2"))
        await call.over()
        assert call.connected
    async with serving(authority) as at:
        call = at.call(server=replace(at.server, scheme="h2"))
        assert (await call.failed()) == (
            "it does not speak HTTP/2; write https:// instead of h2://"
        )
        await eventually(lambda: at.wire.closed)


# Servers that are not who they should be


@twisted_test
async def test_a_certificate_for_another_name_is_not_enough(authority: Authority) -> None:
    async with serving(authority, names=("x.example",)) as at:
        call = at.call()
        assert (await call.failed()) == (
            "its certificate is for 'x.example', not for app.example;"
            " if that is the right server, put the name into tls.name"
        )
        await eventually(lambda: at.wire.closed)
        assert at.wire.all == b""


@twisted_test
async def test_a_certificate_that_has_expired_is_not_enough(authority: Authority) -> None:
    async with serving(authority, days=-1) as at:
        assert (await at.call().failed()) == (
            "the TLS handshake with it failed: its certificate has expired; renew it there"
        )


@twisted_test
async def test_a_certificate_of_a_stranger_is_not_enough(
    authority: Authority, tmp_path: Any
) -> None:
    async with serving(Authority(tmp_path / "stranger")) as at:
        call = at.call(tls=replace(at.tls, ca_file=str(authority.ca_file)))
        assert (await call.failed()) == (
            "the TLS handshake with it failed: nobody who is trusted has signed its certificate;"
            " name who has in tls.ca_file"
        )


@twisted_test
async def test_whoever_need_not_prove_anything_need_not(
    authority: Authority, tmp_path: Any
) -> None:
    async with serving(Authority(tmp_path / "stranger"), names=("x.example",)) as at:
        call = at.call(tls=ServerTls(verify=False))
        await call.over()
        assert call.connected


def says(data: bytes) -> Callable[[], Wire]:
    class Says(Wire):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.write(data)

    return Says


class Closes(Wire):
    def connectionMade(self) -> None:
        super().connectionMade()
        self.close()


class Resets(Wire):
    def dataReceived(self, data: bytes) -> None:
        self.abort()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "it does not speak TLS"),
        (says(b"220 mail.example ESMTP\r\n"), "it does not speak TLS"),
        (Closes, "the connection was closed"),
        (Resets, "Connection reset by peer"),
    ],
    ids=["HTTP", "SMTP", "closes", "resets"],
)
@twisted_test
async def test_it_is_said_what_a_server_does_instead_of_a_handshake(
    make: Callable[[], Wire], why: str, authority: Authority
) -> None:
    async with serving(authority, make) as at:
        told = await at.call().failed()
        assert told in (
            f"the TLS handshake with it failed: {why}",
            "the TLS handshake with it failed: Connection reset by peer",
        )


@twisted_test
async def test_it_is_said_that_a_server_is_too_old(authority: Authority) -> None:
    theirs = context(authority)
    theirs.set_ciphers("AES128-SHA")
    theirs.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(authority, lambda: TlsWire(theirs, server=True)) as at:
        assert "it has not agreed to any of our ciphers" in await at.call().failed()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@twisted_test
async def test_a_server_gets_a_certificate_of_ours_if_there_is_one(
    version: ssl.TLSVersion, authority: Authority
) -> None:
    theirs = context(authority)
    theirs.maximum_version = version
    theirs.verify_mode = ssl.CERT_REQUIRED
    theirs.load_verify_locations(authority.ca_file)
    ours = authority.issue("proxy.example")
    async with serving(authority, lambda: TlsWire(theirs, server=True)) as at:
        tls = replace(at.tls, certificate=str(ours.certificate), key=str(ours.key))
        call = at.call(tls=tls)
        await call.over()
        call.wire.write(b"hello")
        assert await at.wire.exactly(5) == b"hello"
        shown = at.wire.tls.getpeercert()
        assert shown["subjectAltName"] == (("DNS", "proxy.example"),)


@pytest.mark.parametrize("cut", [1, 5, 100, 500])
@twisted_test
async def test_a_server_may_break_off_anywhere(cut: int, authority: Authority) -> None:
    theirs = context(authority)

    class BreaksOff(TlsWire):
        def _send(self) -> None:
            self._to_send += self._out.read()
            self.transport.write(bytes(self._to_send[:cut]))
            if self._to_send:
                self.transport.loseConnection()

    async with serving(authority, lambda: BreaksOff(theirs, server=True)) as at:
        assert "the TLS handshake with it failed" in await at.call().failed()


@twisted_test
async def test_a_port_that_nobody_listens_on_refuses(authority: Authority) -> None:
    async with serving(authority) as at:
        unused = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        server = replace(at.server, port=unused.getHost().port)
        await unused.stopListening()
        assert "refused" in await at.call(server=server).failed()


# Time


@twisted_test
async def test_a_server_that_says_nothing_is_given_up(authority: Authority) -> None:
    async with serving(authority, Wire) as at:
        call = at.call(timeout=3)
        await eventually(lambda: at.accepting.wires and at.wire.all)
        await at.pass_time(2.9)
        assert not call.failures
        await at.pass_time(0.2)
        assert (await call.failed()) == "it has not finished the TLS handshake within 3 s"
        await eventually(lambda: at.wire.closed)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@twisted_test
async def test_a_server_whose_kernel_says_nothing_is_given_up(
    host: str, authority: Authority
) -> None:
    async with serving(authority) as at:
        call = at.call(server=replace(at.server, host=host), timeout=3)
        at.time.clock.advance(3.1)  # before anything can have come
        assert "timeout" in await call.failed()


@twisted_test
async def test_a_deadline_that_was_met_has_no_effect(authority: Authority) -> None:
    async with serving(authority) as at:
        call = at.call(timeout=3)
        await call.over()
        await at.pass_time(10)
        call.wire.write(b"hello")
        assert await at.wire.exactly(5) == b"hello"


# Called off


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("turned", range(6))
@pytest.mark.parametrize("kind", ["plain", "header", "tls"])
@twisted_test
async def test_a_call_can_be_called_off_at_any_time(
    kind: str, turned: int, host: str, authority: Authority
) -> None:
    theirs = context(authority)
    async with serving(authority, lambda: TlsWire(theirs, server=True, drip=100)) as at:
        server = replace(at.server, host=host)
        if kind == "tls":
            call = at.call(server=server)
        else:
            call = at.dial(server, preface=V1 if kind == "header" else b"")
        await turns(turned)
        connected = call.connected
        call.call_off()
        call.call_off()
        if connected:
            assert not call.failures
            return
        assert len(call.failures) == 1
        await turns(10)
        assert not call.connected
        await eventually(lambda: all(wire.closed for wire in at.accepting.wires))


@twisted_test
async def test_a_call_that_is_called_off_in_the_handshake_ends_it(authority: Authority) -> None:
    async with serving(authority, Wire) as at:
        call = at.call()
        await eventually(lambda: at.accepting.wires and at.wire.all)
        call.call_off()
        assert len(call.failures) == 1
        await eventually(lambda: at.wire.closed)
        assert not call.connected
