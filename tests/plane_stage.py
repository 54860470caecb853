"""A data plane between scripted servers and raw clients, all on real sockets.

Time is the test's own: deadlines pass when :meth:`Stage.pass_time` says so, and not
because the machine is slow.  Sockets are served by the reactor as ever.  When a stage
is left, nothing may be: no client, no connection, nothing in flight, no delayed call.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from zope.interface import directlyProvides, providedBy

from awesomeproxy.model import Backend, Desired, Listen, Mode, Placement, Server, Site
from awesomeproxy.proxy.client import ClientConnection
from awesomeproxy.proxy.plane import Plane
from awesomeproxy.proxy.site import LiveSite

F = TypeVar("F", bound=Callable[..., Any])
twisted_test: Callable[[F], F] = pytest_twisted.ensureDeferred

GUARD = 30.0  # real seconds after which a test has hung; nothing is measured with it
END = b"\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: blog.example\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
reactor: Any = the_reactor
LISTEN = Listen("tcp:0:interface=127.0.0.1")


def post(body: bytes, *fields: bytes, method: bytes = b"POST") -> bytes:
    """A request with a body of known length."""
    lines = [method + b" / HTTP/1.1", b"Host: blog.example", *fields]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def ok(body: bytes, *fields: bytes) -> bytes:
    """A response with a body of known length."""
    lines = [b"HTTP/1.1 200 OK", *fields, b"Content-Length: %d" % len(body), b"", body]
    return b"\r\n".join(lines)


async def turns(count: int = 3) -> None:
    """Let the reactor turn: what is under way on the loopback arrives."""
    for _ in range(count):
        await deferLater(reactor, 0)


async def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Wait until ``condition`` is true."""
    limit = reactor.seconds() + GUARD
    while not condition():
        assert reactor.seconds() < limit, f"it has not come to pass: {what or condition}"
        await deferLater(reactor, 0.001)


class Lost(AssertionError):
    """A connection has ended before what was awaited came; says what did come."""


class Wire(Protocol):
    """One end of a connection, written to and read from as a test's script says."""

    transport: Any

    def __init__(self) -> None:
        self.buffer = b""
        self.all = b""  # whatever came
        self.closed = False
        self.reset = False  # closed, and not in an orderly way
        self._news: Deferred[None] | None = None
        self._gone: list[Deferred[None]] = []

    def connectionMade(self) -> None:
        if hasattr(self.transport.getPeer(), "port"):
            self.transport.setTcpNoDelay(True)  # kernels wait in their own time

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        self.all += data
        self._tell()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self.reset = reason.type is not connectionDone.type
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.callback(None)

    async def _more(self, wanted: str) -> None:
        if self.closed:
            raise Lost(f"closed before {wanted}; came: {self.buffer[-2000:]!r}")
        self._news = Deferred()
        late = reactor.callLater(GUARD, self._news.errback, Lost(f"{wanted} never came"))
        try:
            await self._news
        except Lost:
            raise Lost(f"{wanted} has not come; came: {self.buffer[-2000:]!r}") from None
        finally:
            if late.active():
                late.cancel()

    async def until(self, mark: bytes) -> bytes:
        """What comes up to ``mark``, with it."""
        while mark not in self.buffer:
            await self._more(repr(mark))
        head, _, self.buffer = self.buffer.partition(mark)
        return head + mark

    async def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        while len(self.buffer) < size:
            await self._more(f"{size} bytes")
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    async def rest(self) -> bytes:
        """All that comes until the connection is closed."""
        while not self.closed:
            await self._more("the end")
        data, self.buffer = self.buffer, b""
        return data

    async def answer(self, *, head_only: bool = False) -> Answer:
        """The next response, interim ones included."""
        head = await self.until(END)
        answer = Answer.of(head)
        if head_only or answer.status < 200 or answer.status in (204, 304):
            return answer
        if answer["transfer-encoding"] == "chunked":
            answer.body, answer.trailers = await self.chunked()
        elif answer["content-length"] is not None:
            answer.body = await self.exactly(int(answer["content-length"]))
        else:
            answer.body = await self.rest()
        return answer

    async def chunked(self) -> tuple[bytes, bytes]:
        """A chunked body, and the lines of its trailers."""
        body = b""
        while size := int((await self.until(b"\r\n")).split(b";")[0], 16):
            body += await self.exactly(size)
            assert await self.exactly(2) == b"\r\n"
        trailers = b""
        while (line := await self.until(b"\r\n")) != b"\r\n":
            trailers += line
        return body, trailers

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def close(self) -> None:
        """Close in an orderly way."""
        self.transport.loseConnection()

    def abort(self) -> None:
        """Reset the connection."""
        self.transport.abortConnection()

    def stop_reading(self) -> None:
        """Leave what comes in the kernel."""
        self.transport.pauseProducing()

    def read_on(self) -> None:
        self.transport.resumeProducing()


@dataclass
class Answer:
    """A response as a client got it."""

    head: bytes
    version: str
    status: int
    reason: str
    fields: list[tuple[str, str]]
    body: bytes = b""
    trailers: bytes = b""

    @classmethod
    def of(cls, head: bytes) -> Answer:
        """Taken apart; what is not a proper head fails."""
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        match = re.fullmatch(r"HTTP/(1\.[01]) ([0-9]{3}) (.*)", first)
        assert match, head
        fields = []
        for line in lines:
            name, colon, value = line.partition(": ")
            assert colon, line
            assert re.fullmatch(r"[A-Za-z0-9-]+", name), line
            fields.append((name.lower(), value))
        return cls(head, match[1], int(match[2]), match[3], fields)

    def __getitem__(self, name: str) -> str | None:
        """The one field of that (lower-case) name."""
        found = [value for key, value in self.fields if key == name]
        assert len(found) < 2, (name, found)
        return found[0] if found else None


class Origin(Factory):
    """A server that does what the test says: on each connection, or by itself."""

    noisy = False

    def __init__(self, script: Callable[[Wire], Any] | None = None) -> None:
        self.wires: list[Wire] = []
        self._fresh: list[Wire] = []
        self._script = script
        self.port: Any = None
        self.number = 0

    def buildProtocol(self, addr: object) -> Wire:
        wire = Wire()
        wire.factory = self
        self.wires.append(wire)
        self._fresh.append(wire)
        if self._script is not None:
            reactor.callLater(0, self._run, wire)
        return wire

    def _run(self, wire: Wire) -> None:
        assert self._script is not None
        running: Deferred[Any] = Deferred.fromCoroutine(self._script(wire))
        running.addErrback(_only_lost)

    async def accept(self) -> Wire:
        """The next connection on which something is said; those of a knock are left out."""
        await eventually(lambda: any(wire.all for wire in self._fresh), "a request to the server")
        wire = next(wire for wire in self._fresh if wire.all)
        self._fresh.remove(wire)
        return wire

    @property
    def received(self) -> bytes:
        """All bytes that have come on any connection."""
        return b"".join(wire.all for wire in self.wires)

    def listen(self) -> Origin:
        """Take connections, on the same port as before if there was one."""
        self.port = reactor.listenTCP(self.number, self, interface="127.0.0.1", backlog=500)
        self.number = self.port.getHost().port
        return self

    async def refuse(self) -> None:
        """Take no connections any more, and close what there is."""
        if self.port is not None:
            await self.port.stopListening()
            self.port = None
        for wire in self.wires:
            if not wire.closed:
                wire.abort()
        await eventually(lambda: all(wire.closed for wire in self.wires), "the server's end")

    @property
    def server(self) -> Server:
        return Server("http", "127.0.0.1", self.number)


def _only_lost(failure: Failure) -> None:
    failure.trap(Lost)  # type: ignore[no-untyped-call]


async def answering(wire: Wire, answer: bytes = OK) -> None:
    """A script: answer every request without a body, or with one of known length, alike."""
    while True:
        await one_request(wire)
        wire.write(answer)


async def one_request(wire: Wire) -> tuple[bytes, bytes]:
    """The head and the body of the next request."""
    head = await wire.until(END)
    if found := re.search(rb"(?im)^content-length: *([0-9]+)\r$", head):
        return head, await wire.exactly(int(found[1]))
    if re.search(rb"(?im)^transfer-encoding: *chunked\r$", head):
        body, _ = await wire.chunked()
        return head, body
    return head, b""


def always(answer: bytes) -> Callable[[Wire], Any]:
    """A script: give this answer to every request."""
    return lambda wire: answering(wire, answer)


def fields_of(head: bytes) -> dict[bytes, bytes]:
    """The fields of a head, by lower-case name; none may be there twice."""
    found: dict[bytes, bytes] = {}
    for line in head.removesuffix(END).split(b"\r\n")[1:]:
        name, _, value = line.partition(b": ")
        assert name.lower() not in found, line
        found[name.lower()] = value
    return found


class OwnTime:
    """The reactor, with a clock of its own for all that is not at once."""

    def __init__(self) -> None:
        self.clock = Clock()
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def seconds(self) -> float:
        return self.clock.seconds()

    def callLater(self, delay: float, function: Any, *args: Any, **named: Any) -> Any:
        clock = self.clock if delay else reactor
        return clock.callLater(delay, function, *args, **named)


@dataclass
class Stage:
    """A plane with one site, ``blog``, and all that is around it."""

    plane: Plane
    time: OwnTime
    origins: list[Origin]
    site: Site
    clients: list[Wire] = field(default_factory=list)
    generation: int = 1

    @property
    def origin(self) -> Origin:
        """The first server."""
        return self.origins[0]

    @property
    def live(self) -> LiveSite:
        return self.plane.sites["blog"]

    @property
    def client(self) -> ClientConnection:
        """The only client, as the plane has it."""
        (there,) = self.plane.clients
        assert isinstance(there, ClientConnection)
        return there

    @property
    def gate(self) -> Any:
        return self.live.gate

    @property
    def counters(self) -> Any:
        return self.live.counters()

    def place(self, mode: Mode = Mode.OPEN, backend: str = "", **more: Any) -> None:
        """Apply the next placement of the site."""
        self.generation += 1
        backend = backend or self.live.placement.backend
        placement = Placement("blog", backend, mode, self.generation, **more)
        self.plane.apply(Desired(self.site, placement))

    def define(self, **changes: Any) -> None:
        """Apply a new definition of the site."""
        self.site = replace(self.site, **changes)
        self.plane.apply(Desired(self.site, self.live.placement))

    async def connect(self, data: bytes = b"") -> Wire:
        """A client; ``data`` is sent at once."""
        port = self.plane.listening[0].port
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        wire: Wire = await connectProtocol(endpoint, Wire())  # type: ignore[no-untyped-call]
        self.clients.append(wire)
        if data:
            wire.write(data)
        return wire

    async def ask(self, request: bytes = GET, *, head_only: bool = False) -> Answer:
        """One request on a connection of its own, and its answer."""
        client = await self.connect(request)
        answer = await client.answer(head_only=head_only)
        client.abort()
        return answer

    async def exchange(self, response: bytes = OK, request: bytes = GET) -> Answer:
        """One request that the server, awaited on a connection of its own, answers so."""
        client = await self.connect(request)
        server = await self.origin.accept()
        await one_request(server)
        server.write(response)
        answer = await client.answer(head_only=request.startswith(b"HEAD"))
        client.abort()
        return answer

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, and what it brings about happen."""
        steps = max(1, round(seconds / 0.25))
        for _ in range(steps):
            self.time.clock.advance(seconds / steps)
            await turns(1)
        await turns()

    async def resolving(self, condition: Callable[[], object]) -> None:
        """Let time pass slowly, as names are looked up in threads, until ``condition`` is true."""
        while not condition():
            self.time.clock.advance(0.01)
            await deferLater(reactor, 0.002)

    async def held(self, count: int = 1) -> None:
        """Wait until so many requests are held."""
        await eventually(lambda: self.gate.waiting == count, f"{count} held")

    async def drained(self) -> None:
        """Wait until nothing of the site is left towards its backend."""
        await eventually(lambda: self.live.drained, f"drained: {self.live!r}")

    async def quiet(self) -> None:
        """Wait until nothing of any site is under way."""
        await eventually(
            lambda: all(
                not live.gate.in_flight and not live.gate.waiting and not live.tunnels
                for live in self.plane.sites.values()
            ),
            f"quiet: {self.plane.sites}",
        )


@contextlib.asynccontextmanager
async def stage(
    *scripts: Callable[[Wire], Any] | None,
    listen: Listen = LISTEN,
    backend: Iterable[tuple[str, Any]] | dict[str, Any] = (),
    plane: dict[str, Any] | None = None,
    **site: Any,
) -> AsyncIterator[Stage]:
    """A plane in front of one server for each script (None: the test does it by hand).

    All servers are one backend, ``here``; each is also one of its own, ``only0`` and so on,
    which is never checked.

    :param backend: what is special about the backend.
    :param plane: what is special about the plane; likewise ``site``, for the site.
    """
    origins = [Origin(script).listen() for script in scripts or (None,)]
    more = dict(backend)
    servers = more.pop("servers", tuple(origin.server for origin in origins))
    backends = {"here": Backend("here", servers, **more)}
    more.pop("health", None)
    for number, origin in enumerate(origins):
        backends[f"only{number}"] = Backend(f"only{number}", (origin.server,), **more)
    definition = Site("blog", ("blog.example",), "here", backends, **site)
    time: Any = OwnTime()
    data_plane = Plane(time, clock=time, **(plane or {}))
    data_plane.apply(Desired(definition, Placement("blog", "here")))
    await data_plane.listen([listen])
    found = Stage(data_plane, time, origins, definition)
    try:
        yield found
    finally:
        for wire in found.clients:
            if not wire.closed:
                wire.abort()
        sites = list(data_plane.sites.values())
        await turns()
        await data_plane.stop(0)
        for origin in origins:
            await origin.refuse()
        await eventually(lambda: all(wire.closed for wire in found.clients), "the clients' end")
        await eventually(lambda: not any(live.connections for live in sites), "no connections")
    assert not data_plane.clients
    assert not data_plane.held.requests
    assert not data_plane.held.bytes
    assert not len(data_plane.sweep)
    for live in sites:
        assert not live.gate.in_flight, live
        assert not live.gate.waiting, live
        assert not live.tunnels, live
        assert all(not s.busy for b in live.backends.values() for s in b.servers), live.backends
    assert not time.clock.getDelayedCalls()
