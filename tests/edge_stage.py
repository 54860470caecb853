"""A data plane at the edge: TLS towards clients and servers, and either HTTP on both sides.

An :class:`Edge` is a :class:`~plane_stage.Stage` with a plain listener and one with TLS,
whose certificates a test authority has issued.  Servers with TLS are
:class:`SecureOrigin`; servers that speak HTTP/2 are scripted with :class:`Http2Server`,
whether over TLS or not.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes
from h2_wire import Client
from plane_stage import Origin, Stage, Wire, eventually, reactor, stage
from secure_stage import TlsWire
from tls_stage import Authority, Issued, client_trust
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from awesomeproxy.model import Listen, Server, Tls
from awesomeproxy.tls.certificates import Certificates

PLAIN = Listen("tcp:0:interface=127.0.0.1", h2c=True)
SECURE = Listen("tcp:port=0:interface=127.0.0.1", tls=True)
GET = b"GET / HTTP/1.1\r\nHost: blog.example\r\n\r\n"


@dataclass
class Edge:
    """A stage, and the ways in that it has."""

    on: Stage
    certificates: Certificates
    authority: Authority
    wires: list[Wire] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Where clients come without TLS."""
        return int(self.on.plane.listening[0].port)

    @property
    def secure_port(self) -> int:
        """Where they come with TLS."""
        return int(self.on.plane.listening[1].port)

    async def plain(self, data: bytes = b"") -> Wire:
        """A client without TLS."""
        wire = Wire()
        await self.connected(wire, self.port, data)
        return wire

    async def tls(
        self,
        name: str | None = "blog.example",
        *,
        alpn: tuple[str, ...] = (),
        data: bytes = b"",
        context: ssl.SSLContext | None = None,
        before: bytes = b"",
    ) -> TlsWire:
        """A client whose TLS handshake is done."""
        wire = TlsWire(context or client_trust(self.authority, *alpn), name, before=before)
        await self.connected(wire, self.secure_port)
        await wire.ready()
        if data:
            wire.write(data)
        return wire

    async def http2(self, name: str | None = "blog.example", *, secure: bool = True) -> Client:
        """A client that speaks HTTP/2, after its first words."""
        wire = await self.tls(name, alpn=("h2",)) if secure else await self.plain()
        client = Client(wire, self.on)
        await client.greet()
        return client

    async def connected(self, wire: Wire, port: int, data: bytes = b"") -> None:
        """Connect ``wire``."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        await connectProtocol(endpoint, wire)  # type: ignore[no-untyped-call]
        self.on.clients.append(wire)
        if data:
            wire.write(data)

    async def take_certificates(self) -> list[str]:
        """What the node does every few seconds: read the files and use what they hold."""
        return self.certificates.take(self.certificates.read())


@contextlib.asynccontextmanager
async def edge(
    authority: Authority,
    place: Path,
    *scripts: Callable[[Wire], Any] | None,
    plain: dict[str, Any] | None = None,
    secure: dict[str, Any] | None = None,
    default: str = "",
    plane: dict[str, Any] | None = None,
    **site: Any,
) -> AsyncIterator[Edge]:
    """An edge; for the rest see :func:`plane_stage.stage`.

    :param place: the directory of the certificates.
    :param plain: what is special about the plain listener; likewise ``secure``.
    :param default: the name whose certificate those get that ask for no known one.
    """
    certificates = Certificates(Tls((str(place),), default))
    certificates.take(certificates.read())
    listens = [replace(PLAIN, **(plain or {})), replace(SECURE, **(secure or {}))]
    more = {"certificates": certificates, **(plane or {})}
    async with stage(*scripts, listen=listens[0], plane=more, **site) as on:
        await on.plane.listen(listens)
        yield Edge(on, certificates, authority)
        assert not len(on.plane.visits), "connections of a client are still counted"


class SecureOrigin(Origin):
    """A server that comes with TLS."""

    def __init__(
        self,
        script: Callable[[Wire], Any] | None,
        issued: Issued,
        *,
        alpn: tuple[str, ...] = (),
        clients: Authority | None = None,
    ) -> None:
        """
        :param alpn: the protocols that it agrees to; none: it takes no part in that.
        :param clients: the authority of those it wants to know; None: it takes all.
        """
        super().__init__(script)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(issued.certificate, issued.key)
        if alpn:
            context.set_alpn_protocols(alpn)
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients.ca_file)
        self.names: list[str | None] = []  # that were asked for
        context.sni_callback = lambda tls, name, context: self.names.append(name)
        self.context = context

    def buildProtocol(self, addr: object) -> Wire:
        wire = TlsWire(self.context, server=True)
        wire.factory = self
        self.wires.append(wire)
        self._fresh.append(wire)
        if self._script is not None:
            reactor.callLater(0, self._run, wire)
        return wire

    def at(self, scheme: Any = "https", host: str = "127.0.0.1") -> Server:
        """Its address, under one of those it may be known by."""
        return Server(scheme, host, self.number)


@contextlib.asynccontextmanager
async def listening(*origins: Origin) -> AsyncIterator[None]:
    """Servers that listen meanwhile."""
    for origin in origins:
        origin.listen()
    try:
        yield
    finally:
        for origin in origins:
            await origin.refuse()


@dataclass
class Asked:
    """A request, as it came on a stream of a server."""

    stream: int
    fields: dict[str, str]
    body: bytes = b""
    complete: bool = False
    reset: bool = False


class Http2Server:
    """A server's end of a connection that speaks HTTP/2."""

    def __init__(self, wire: Wire, *, most: int | None = None, greet: bool = True) -> None:
        """
        :param most: streams at one time; None: it does not say.
        :param greet: whether it says how it speaks as soon as it can.
        """
        self.wire = wire
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        if most is not None:
            self.h2.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = most
            self.h2.local_settings.acknowledge()
        self.asked: dict[int, Asked] = {}
        self.goodbye: ConnectionTerminated | None = None
        self._fresh: list[Asked] = []
        if greet:
            self.greet()

    def greet(self) -> None:
        """Say how it speaks."""
        self.h2.initiate_connection()
        self._write()

    def _write(self) -> None:
        self.wire.write(self.h2.data_to_send())

    async def hear(self) -> list[Event]:
        """Take in what comes next, which may be nothing but talk between the two."""
        while not self.wire.buffer:
            await self.wire._more("something of HTTP/2")
        data, self.wire.buffer = self.wire.buffer, b""
        events = self.h2.receive_data(data)
        for event in events:
            self._take(event)
        if not self.wire.closed:
            self._write()
        return events

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            asked = Asked(event.stream_id, {str(n): str(v) for n, v in event.headers})
            self.asked[asked.stream] = asked
            self._fresh.append(asked)
        elif isinstance(event, DataReceived):
            if event.stream_id in self.asked:
                self.asked[event.stream_id].body += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded) and event.stream_id in self.asked:
            self.asked[event.stream_id].complete = True
        elif isinstance(event, StreamReset) and event.stream_id in self.asked:
            self.asked[event.stream_id].reset = True
        elif isinstance(event, ConnectionTerminated):
            self.goodbye = event

    async def request(self, *, complete: bool = True) -> Asked:
        """The next request; with all of its body unless that may be still to come."""
        while not self._fresh:
            await self.hear()
        asked = self._fresh.pop(0)
        while complete and not (asked.complete or asked.reset):
            await self.hear()
        return asked

    def head(self, asked: Asked, *fields: tuple[str, str], end: bool = False) -> None:
        """Answer, and have the body follow."""
        self.h2.send_headers(asked.stream, [(":status", "200"), *fields], end_stream=end)
        self._write()

    def body(self, asked: Asked, body: bytes, *, end: bool = True) -> None:
        """What follows."""
        self.h2.send_data(asked.stream, body, end_stream=end)
        self._write()
        if end:
            self.asked.pop(asked.stream, None)

    def answer(self, asked: Asked, body: bytes = b"ok") -> None:
        """Answer, and be done with it."""
        self.head(asked, ("content-length", str(len(body))))
        self.body(asked, body)

    def reset(self, asked: Asked, code: ErrorCodes = ErrorCodes.REFUSED_STREAM) -> None:
        """Do not answer."""
        self.h2.reset_stream(asked.stream, code)
        self.asked.pop(asked.stream, None)
        self._write()

    def leave(self, last: int) -> None:
        """Say goodbye: what comes behind a stream was not looked at."""
        self.h2.close_connection(ErrorCodes.NO_ERROR, last_stream_id=last)
        self._write()


async def answering_http2(wire: Wire) -> None:
    """A script: answer every request, with what was sent along if that is little, or ``ok``."""
    server = Http2Server(wire)
    while True:
        asked = await server.request()
        if not asked.reset:
            server.answer(asked, asked.body if 0 < len(asked.body) < 1000 else b"ok")


def h2c(origin: Origin) -> Server:
    """A server that speaks HTTP/2 without TLS."""
    return Server("h2c", "127.0.0.1", origin.number)


async def gone(wire: Wire) -> None:
    """Wait until a connection is closed."""
    await eventually(lambda: wire.closed, "the end of a connection")
