"""One connection of a client to a database, and the one to the server that carries it on.

A client that comes is counted at the gate, or it is held: accepted, but not read from, so
that whatever it says waits in the kernel.  When it is let go on, its server is dialled, and
from then on bytes pass both ways, the slower side setting the pace.  A server that cannot be
reached sends the client back into the line, at the place that it had.

A session (:mod:`awesomeproxy.proxy.dbsession`) listens to what passes.  When the database is
held and the session is between two transactions, both sides are told goodbye in their own
words, and nothing passes any more.  For the gate it is over when the server has closed its
side: it has taken the goodbye then, and whatever was said before that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from awesomeproxy.model import DatabaseBackend, Outcome
from awesomeproxy.proxy.dial import dial
from awesomeproxy.proxy.interfaces import ICarrier, IServerLink, IVisitor
from awesomeproxy.proxy.sockets import has_left
from awesomeproxy.proxy.sweep import NEVER
from awesomeproxy.proxy.tunnel import Source

if TYPE_CHECKING:
    from awesomeproxy.proxy.livedatabase import LiveDatabase

LINGER = 2.0  # seconds that a client may take to go that was told goodbye
PATIENCE = 2.0  # seconds that a server may take to close after a goodbye
LOOK_AGAIN = 1.0  # seconds between looks whether a held client is still there


@implementer(IVisitor, IHalfCloseableProtocol)
class Pipe(Protocol):
    """A client's connection; see the module."""

    transport: Any

    def __init__(self, database: LiveDatabase) -> None:
        self.database = database
        self.session = database.new_session()
        self.server: ServerEnd | None = None  # being dialled, or connected
        self.deadline = NEVER
        self.moved = 0.0  # when something has passed last
        self.stale = False  # the database has another place by now
        self.admitted = False  # it has passed a held gate, and may stay
        self._came = 0.0
        self._waiting: Deferred[Outcome] | None = None
        self._said = False  # something has passed
        self._leaving = False  # it has been told goodbye
        self._client_ended = False
        self._server_ended = False

    def __repr__(self) -> str:
        held = self._waiting is not None
        state = "leaving" if self._leaving else "held" if held else "open"
        return f"<Pipe to {self.database.name}: {state}>"

    def connectionMade(self) -> None:
        """A client has come."""
        database = self.database
        self.transport.pauseProducing()
        tune(self.transport)
        self._came = database.plane.seconds()
        database.came(self)
        if database.gate.enter():
            self._dial()
        elif database.lets_by(getattr(self.transport.getPeer(), "host", "")):
            self.admitted = True
            self._dial()
        else:
            self._wait(None)

    # Waiting

    def _wait(self, since: float | None) -> None:
        self.deadline = self.database.plane.seconds() + LOOK_AGAIN
        self._waiting = waiting = self.database.gate.wait(0, since)
        waiting.addCallback(self._waited)

    def _waited(self, outcome: Outcome) -> None:
        self._waiting = None
        self.deadline = NEVER
        if outcome is Outcome.RELEASED:
            self._dial()
        elif outcome is not Outcome.GONE:
            self._leave(self.session.refusal(self.database.why_held()))

    def _dial(self) -> None:
        self.server = ServerEnd(self)
        self.server.dial()

    def not_connected(self) -> None:
        """The server cannot be reached; back into the line."""
        self.server = None
        self._wait(self._came)

    def back_off(self) -> bool:
        """Wait in line again, if nothing was said to the server yet; return whether it waits."""
        server = self.server
        if server is None or self._said or self._leaving:
            return self._waiting is not None
        self._let_go(server)
        self._wait(self._came)
        return True

    def _let_go(self, server: ServerEnd) -> None:
        if server.ready:
            self.transport.unregisterProducer()
            self.transport.pauseProducing()
        self.server = None
        server.call_off()

    def _turned_away(self, server: ServerEnd) -> None:
        """The server lets nobody in yet: that is as if it could not be reached."""
        self._said = False
        self._let_go(server)
        self.database.unreachable("it takes connections, but lets nobody in yet")
        self._wait(self._came)

    # Passing on

    def server_ready(self, server: ServerEnd) -> None:
        """The server has taken the connection."""
        self.moved = self.database.plane.seconds()
        self._watch_idle()
        self.transport.registerProducer(Source(server.transport), True)
        server.transport.registerProducer(Source(self.transport), True)
        if self.session.opening:
            server.transport.write(self.session.opening)  # another server was told already
        self.transport.resumeProducing()
        self.database.settle(self)

    def dataReceived(self, data: bytes) -> None:
        """The client has spoken."""
        server = self.server
        if server is not None and not self._leaving:
            server.transport.write(data)
            self.session.from_client(data)
            self._moved()

    def from_server(self, data: bytes) -> None:
        """The server has spoken."""
        if self._leaving:
            return
        if self.server is not None and self.session.turned_away(data):
            self._turned_away(self.server)
            return
        self.transport.write(data)
        self.session.from_server(data)
        self._moved()

    def _moved(self) -> None:
        self._said = True
        self.moved = self.database.plane.seconds()
        self.database.settle(self)

    def readConnectionLost(self) -> None:
        """The client has nothing more to say."""
        self._client_ended = True
        server = self.server
        if self._leaving or server is None:
            self.transport.loseConnection()
            return
        self._said = True
        if self._server_ended:
            server.finish(PATIENCE)
            self._leave(b"")
        else:
            server.transport.unregisterProducer()
            server.transport.loseWriteConnection()

    def writeConnectionLost(self) -> None:
        """The client has been sent all."""

    def server_ended(self) -> None:
        """The server has nothing more to say."""
        self._server_ended = self._said = True
        self.transport.unregisterProducer()
        if self.session.halves and not self._client_ended:
            self.transport.loseWriteConnection()
        elif self.server is not None:
            self.server.finish(PATIENCE)
            self._leave(b"")

    def server_lost(self) -> None:
        """The server's connection has broken; which is as good as an end, after the client's."""
        self.server = None
        if self._leaving:
            return
        if self._client_ended:
            self._leave(b"")
        else:
            self.database.failed += 1
            self.abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client's connection is gone."""
        database, server, waiting = self.database, self.server, self._waiting
        self._leaving = True
        self.server = self._waiting = None
        database.left(self)
        if waiting is not None:
            waiting.cancel()
        elif server is None:
            return
        elif not server.ready or self.session.halves or self.session.opaque:
            server.abort()
        else:
            # It may work on what was said, and that is not over before it has closed.
            server.finish(PATIENCE if self.session.idle else None)

    @property
    def tunnel(self) -> bool:
        """Whether it is open, and nothing is known of what it carries."""
        return self.server is not None and self.session.opaque

    # Ending

    def part(self) -> None:
        """Say goodbye to both sides, which are between two transactions."""
        assert self.server is not None
        words = self.session.goodbye_to_client() if self.session.between else b""
        self.server.transport.write(self.session.goodbye_to_server())
        self.server.finish(PATIENCE)
        self._leave(words)

    def cut(self) -> None:
        """End it, whatever it is in the middle of."""
        server = self.server
        if server is not None and not self._leaving:
            self._leave(self.session.goodbye_to_client() if self.session.between else b"")
            server.abort()

    def _leave(self, words: bytes) -> None:
        """Say ``words`` to the client, and then nothing; what it still says is not heard.

        Closing on a client that speaks would reset its connection, and it might not even read
        why.
        """
        self._leaving = True
        self.server = None
        self.deadline = self.database.plane.seconds() + LINGER
        if not self.transport.connected:
            return
        self.transport.unregisterProducer()
        self.transport.write(words)
        if self._client_ended:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
            self.transport.resumeProducing()

    def expired(self, now: float) -> None:
        """A deadline has passed; which one depends on what is going on."""
        if self._leaving:
            self.abort()
        elif self._waiting is not None:
            self.deadline = now + LOOK_AGAIN
            if has_left(self.transport.socket):
                self.abort()
        elif self.server is not None and self.server.ready:
            self._watch_idle()
            if self.deadline <= now:
                self.part() if self.session.idle else self.cut()

    def _watch_idle(self) -> None:
        idle = self.database.definition.timeouts.idle
        self.deadline = self.moved + idle if idle else NEVER

    def idle_close(self) -> None:
        """The proxy stops; that sessions end is the database's to see to."""

    def abort(self) -> None:
        """Close at once."""
        self.transport.abortConnection()


@implementer(IServerLink, IHalfCloseableProtocol)
class ServerEnd(Protocol):
    """The connection to a server, from the moment that it is dialled until it is closed."""

    transport: Any

    def __init__(self, pipe: Pipe) -> None:
        database = pipe.database
        assert database.backend is not None
        self.backend: DatabaseBackend = database.backend
        self.ready = False
        self.deadline = NEVER
        self._database = database
        self._pipe: Pipe | None = pipe  # None: nobody wants anything of it any more
        self._call_off: Callable[[], object] = lambda: None
        self._over = False

    def __repr__(self) -> str:
        return f"<ServerEnd at {self.backend.server}>"

    def dial(self) -> None:
        """Connect; the pipe is told whether that could be done."""
        database = self._database
        database.linked(self)
        timeout = database.definition.timeouts.connect
        server = self.backend.server
        self._call_off = dial(database.plane.eager, server, self, self._failed, timeout)

    def _failed(self, why: Failure) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            # Before it is counted out: who waits at the gate is not to run into the same.
            self._database.unreachable(why.getErrorMessage().rstrip("."))
            self._ended()
            pipe.not_connected()

    def call_off(self) -> None:
        """Nobody wants anything of it any more, and nothing was said to it."""
        self._pipe = None
        if self.ready:
            self.transport.abortConnection()
        else:
            self._call_off()
            self._ended()

    def _ended(self) -> None:
        if not self._over:
            self._over = True
            self._database.unlinked(self)

    def connectionMade(self) -> None:
        """It has taken the connection."""
        if self._pipe is None:
            self.transport.abortConnection()
            return
        self.ready = True
        tune(self.transport)
        self._database.reachable()
        self._pipe.server_ready(self)

    def dataReceived(self, data: bytes) -> None:
        """It has spoken."""
        if self._pipe is not None:
            self._pipe.from_server(data)

    def readConnectionLost(self) -> None:
        """It has nothing more to say."""
        if self._pipe is not None:
            self._pipe.server_ended()
        if self._pipe is None:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """It has been sent all."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is closed."""
        pipe, self._pipe = self._pipe, None
        self._ended()
        if pipe is not None:
            pipe.server_lost()

    def finish(self, patience: float | None) -> None:
        """Nobody wants anything of it any more; wait for it to close.

        :param patience: seconds that this may take; None: as long as it works.
        """
        self._pipe = None
        if patience is not None:
            self.deadline = self._database.plane.seconds() + patience
        if self.transport.connected:
            self.transport.unregisterProducer()
            self.transport.loseWriteConnection()
            self.transport.resumeProducing()

    def expired(self, now: float) -> None:
        """It does not close."""
        self.abort()

    def carriers(self) -> list[ICarrier]:
        """None: what it carries is no exchange."""
        return []

    def abort(self) -> None:
        """Close it now."""
        self.call_off()


def tune(transport: Any) -> None:
    """No waiting for more to send; and notice when the other side's machine is gone."""
    if hasattr(transport.getPeer(), "port"):
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
