"""One client's connection to the control socket: a line at a time.

A connection may run several commands at once; each is answered when it is done,
by its id.  A client that leaves takes only its ``watch`` with it: every other
command changes something and goes on to its defined end, told or untold.

Nothing here grows without a bound.  A line has a longest length, a connection a
number of commands, the socket a number of connections.  A client that does not
read its answers is not read from, so it cannot ask for more of them; what is
sent unasked for, progress and events, is queued up to a bound, and then the
client is dropped with a last error that says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTime, IUNIXTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from awesomeproxy.control import protocol
from awesomeproxy.control.protocol import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    OVERLOADED,
    BadLine,
    Lines,
    LineTooLong,
    Request,
    RequestId,
    RpcError,
)
from awesomeproxy.control.table import Call, Table

log = Logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the clients of one control socket may ask for."""

    connections: int = 64
    commands: int = 16  # at once, per connection
    line: int = protocol.LINE_MAX  # bytes of a request
    queue: int = 1024 * 1024  # bytes of progress and events that a client has not read
    grace: float = 5.0  # seconds for a client that is dropped to read why


@dataclass(slots=True)
class Served:
    """What all connections of one control socket share."""

    clock: IReactorTime
    table: Table
    context: Any  # what every command is called with, first
    limits: Limits
    connections: set[ControlProtocol] = field(default_factory=set)


@dataclass(slots=True)
class Running:
    """A command that has not been answered yet."""

    method: str
    done: Deferred[None]

    @property
    def ends_with_client(self) -> bool:
        """Whether the command has no purpose without its client."""
        return self.method == "watch"


class IControlTransport(IUNIXTransport, IConsumer, IPushProducer):
    """What a connection of a Unix port is, in the interfaces' words."""

    def abortConnection() -> None:
        """Close at once, written or not."""


@implementer(IPushProducer)
class ControlProtocol(Protocol):
    """One client's connection."""

    transport: IControlTransport

    def __init__(self, served: Served) -> None:
        self._served = served
        self.gone: Deferred[None] = Deferred()
        self._lines = Lines(served.limits.line)
        self._waiting: deque[bytes] = deque()  # lines read but not yet looked at
        self._running: dict[RequestId, Running] = {}
        self._unread: deque[bytes] = deque()  # lines to be sent when the client reads again
        self._unread_bytes = 0
        self._paused = False
        self._overflown = False
        self._closing = False

    def __repr__(self) -> str:
        commands = ", ".join(running.method for running in self._running.values()) or "idle"
        return f"<ControlProtocol {commands}{', closing' if self._closing else ''}>"

    def connectionMade(self) -> None:
        """Take the connection in, if there is room for it."""
        full = len(self._served.connections) >= self._served.limits.connections
        self._served.connections.add(self)
        self.transport.registerProducer(self, True)
        if full:
            self._drop(
                f"the control socket has {self._served.limits.connections} connections, "
                "as many as it takes; close some, or try again"
            )

    def dataReceived(self, data: bytes) -> None:
        """Cut ``data`` into lines and look at each."""
        if self._closing:
            return
        too_long = ""
        try:
            self._waiting.extend(self._lines.feed(data))
        except LineTooLong as problem:
            too_long = str(problem)
        self._work()
        if too_long:
            self._drop(f"{too_long}; send less at once", INVALID_REQUEST)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Let go of what only the client cared for."""
        self._closing = True
        self._waiting.clear()
        self._unread.clear()
        self._served.connections.discard(self)
        self._cancel_watches()
        self.gone.callback(None)

    def close(self) -> None:
        """Close after what has been written; at once for a client that does not read it."""
        if self._closing:
            return
        self._closing = True
        self._cancel_watches()
        for line in self._unread:
            self.transport.write(line)
        self._unread.clear()
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        clock = self._served.clock
        abort = clock.callLater(self._served.limits.grace, self.transport.abortConnection)

        def left(_: None) -> None:
            if abort.active():
                abort.cancel()

        self.gone.addCallback(left)

    # What the client sends

    def _work(self) -> None:
        while self._waiting and not self._paused and not self._closing:
            line = self._waiting.popleft()
            if line.strip():
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            request = protocol.read_request(line)
            self._check_room(request)
        except BadLine as error:
            self._send(protocol.error_line(error.id, error))
            return
        running = Running(request.method, Deferred.fromCoroutine(self._carry_out(request)))
        self._running[request.id] = running
        running.done.addBoth(lambda _: self._running.pop(request.id))

    def _check_room(self, request: Request) -> None:
        if request.id in self._running:
            raise BadLine(
                None,
                INVALID_REQUEST,
                f"the id {request.id!r} is that of a command still running; choose another",
            )
        if len(self._running) >= self._served.limits.commands:
            raise BadLine(
                request.id,
                OVERLOADED,
                f"this connection runs {len(self._running)} commands, as many as it may; "
                "wait for one to be answered",
            )

    async def _carry_out(self, request: Request) -> None:
        served = self._served
        call = Call(request.id, self._notify)
        try:
            result = await served.table.start(served.context, request.method, request.params, call)
            answer = protocol.result_line(request.id, result)
        except RpcError as error:
            answer = protocol.error_line(request.id, error)
        except CancelledError:
            if not self._closing:
                log.warn("command {method} was cancelled", method=request.method)
            answer = protocol.error_line(request.id, _internal(request, "it was cancelled"))
        except Exception as problem:
            log.failure("command {method} failed inside", method=request.method)
            answer = protocol.error_line(request.id, _internal(request, repr(problem)))
        self._send(answer)

    # What the client is sent

    def _send(self, line: bytes) -> None:
        if self._closing:
            return
        if self._paused or self._unread:
            self._unread.append(line)
            self._unread_bytes += len(line)
        else:
            self.transport.write(line)

    def _notify(self, method: str, params: Mapping[str, Any]) -> None:
        if self._overflown:
            return
        line = protocol.notification_line(method, params)
        if self._paused and self._unread_bytes + len(line) > self._served.limits.queue:
            self._overflown = True
            # On a turn of its own: the coroutine that is speaking cannot be cancelled.
            self._served.clock.callLater(
                0,
                self._drop,
                f"this client has not read {self._unread_bytes} bytes, as many as are kept "
                "for it; connect again and read faster",
            )
        else:
            self._send(line)

    def _drop(self, message: str, code: int = OVERLOADED) -> None:
        if self._closing:
            return
        watches: list[RequestId | None] = [
            id for id, running in self._running.items() if running.ends_with_client
        ]
        self._unread.clear()  # what it has not read so far is the reason, not the remedy
        for id in watches or [None]:
            self._unread.append(protocol.error_line(id, RpcError(code, message)))
        self.close()

    def _cancel_watches(self) -> None:
        for running in list(self._running.values()):
            if running.ends_with_client:
                running.done.cancel()

    # IPushProducer: the transport says whether the client reads

    def pauseProducing(self) -> None:
        """The client does not read: neither send it more, nor take more from it."""
        self._paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The client has read: send what has been kept for it, then look at what it asks."""
        self._paused = False
        while self._unread and not self._paused:
            line = self._unread.popleft()
            self._unread_bytes -= len(line)
            self.transport.write(line)
        self._work()
        if not self._paused and not self._closing:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The connection is being lost; :meth:`connectionLost` does what is to be done."""


def _internal(request: Request, what: str) -> RpcError:
    return RpcError(
        INTERNAL_ERROR,
        f"{request.method} failed inside the daemon: {what}; "
        "look at its log, and at `awesomeproxy status` for what is the case now",
    )
