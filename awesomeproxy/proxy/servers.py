"""A backend's servers as the data plane sees them: who is up, and whose turn it is.

Two things take a server out.  The *active* check of :mod:`awesomeproxy.proxy.health`
sets :attr:`LiveServer.healthy`.  The *passive* one counts connections that could not
be opened or broke: after ``max_fails`` in a row the server is passed over for
``fail_timeout`` seconds -- unless it is the only one, when passing it over would help
nobody.

Connections are pooled per server, the one used last on top, so that the rest can
grow old and be closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from OpenSSL import SSL
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from awesomeproxy.model import Backend, Server
from awesomeproxy.proxy.dial import Handshake, dial
from awesomeproxy.proxy.proxyprotocol import Ends, header
from awesomeproxy.tls.pairs import PairError
from awesomeproxy.tls.verifying import identity, server_name

if TYPE_CHECKING:
    from awesomeproxy.proxy.plane import Plane
    from awesomeproxy.proxy.session import ServerSession
    from awesomeproxy.proxy.upstream import ServerConnection


MOST = 100  # streams of a session, if the server would take more


class LiveServer:
    """One server of a backend: its pool, and what is known of its health."""

    __slots__ = (
        "_label",
        "backend",
        "busy",
        "down_until",
        "fails",
        "healthy",
        "idle",
        "most_streams",
        "server",
        "sessions",
        "trouble",
    )

    def __init__(self, server: Server, backend: LiveBackend) -> None:
        self.server = server
        self.backend = backend
        self._label = b""
        # No lists before there is something in them: there may be very many servers.
        self.idle: list[ServerConnection] | tuple[()] = ()
        self.sessions: list[ServerSession] | tuple[()] = ()  # in HTTP/2, with room or not
        self.most_streams = MOST  # of a session, as far as is known
        self.busy = 0  # connections that carry a request, or are being opened for one
        self.healthy = True
        self.fails = 0
        self.down_until = 0.0
        self.trouble = ""

    def __repr__(self) -> str:
        return f"<LiveServer {self.server}: {self.busy} busy, {len(self.idle)} idle>"

    def dial(
        self,
        plane: Plane,
        protocol: Protocol,
        failed: Callable[[Failure], object],
        timeout: float,
        ends: Ends | None = None,
    ) -> Callable[[], object]:
        """Open a connection; see :func:`awesomeproxy.proxy.dial.dial`.

        :param ends: of the client's connection, for a server that wants to be told.
        """
        config = self.backend.config
        preface = header(config.send_proxy, ends) if config.send_proxy else b""
        if not self.server.tls:
            return dial(plane.eager, self.server, protocol, failed, timeout, preface=preface)
        try:
            context = plane.contexts.get(config, self.server)
        except (PairError, SSL.Error) as problem:
            failed(Failure(problem))  # type: ignore[no-untyped-call]
            return lambda: None
        tls = config.tls
        handshake = Handshake(
            context,
            identity(tls, self.server) if tls.verify else "",
            server_name(tls, self.server),
            self.server.http2,
        )
        return dial(
            plane.eager,
            self.server,
            protocol,
            failed,
            timeout,
            handshake=handshake,
            preface=preface,
        )

    def recover(self) -> None:
        """It has been asked, out of turn, and is well: what was known against it is over."""
        self.healthy = True
        self.trouble = ""
        self.fails = 0
        self.down_until = 0.0

    def usable(self, now: float) -> bool:
        """Whether it should be given requests."""
        return self.healthy and self.down_until <= now

    @property
    def label(self) -> bytes:
        """Its backend and its URL, as they are in the access log."""
        if not self._label:
            self._label = f"{self.backend.config.name} {self.server.url}".encode()
        return self._label

    def keep(self, connection: ServerConnection) -> None:
        """Have one more idle connection."""
        if self.idle:
            self.idle.append(connection)
        else:
            self.idle = [connection]

    def forget(self, connection: ServerConnection) -> None:
        """It is idle no more, if it was."""
        if self.idle and connection in self.idle:
            self.idle.remove(connection)

    def take(self, now: float) -> ServerConnection | None:
        """An idle connection, for a request that can be sent again if it proves dead."""
        while self.idle:
            connection = self.idle.pop()
            if connection.deadline > now:
                return connection
            connection.close()
        return None

    def take_proved(self, now: float, oldest: float) -> ServerConnection | None:
        """An idle connection that the server has not closed, as far as can be known.

        :param oldest: take none that has been idle since before then.
        """
        while self.idle and self.idle[-1].idle_since >= oldest:
            connection = self.idle.pop()
            if connection.deadline > now and connection.open:
                return connection
            connection.close()
        return None

    def failed(self, now: float, why: str) -> None:
        """It did not take a connection, or broke one before it answered."""
        self.trouble = why
        self.fails += 1
        config = self.backend.config
        if self.fails >= config.max_fails and len(config.servers) > 1:
            self.down_until = now + config.fail_timeout

    def worked(self) -> None:
        """It answered."""
        self.fails = 0
        self.trouble = ""

    def describe(self, now: float) -> str:
        """``up``, or ``down: why``."""
        if not self.usable(now) or self.fails:
            return f"down: {self.trouble}"
        return "up"


class LiveBackend:
    """A backend and its servers."""

    __slots__ = ("_only", "_turn", "config", "retired", "servers")

    def __init__(self, config: Backend) -> None:
        self.config = config
        self.servers = tuple(LiveServer(server, self) for server in config.servers)
        self.retired = False  # connections are not kept any more
        self._only = self.servers[0] if len(self.servers) == 1 else None
        self._turn = 0

    def __repr__(self) -> str:
        return f"<LiveBackend {self.config.name}: {self.servers}>"

    def choose(self, now: float, tried: frozenset[LiveServer]) -> LiveServer | None:
        """The server whose turn it is, or None if no other is left to try."""
        if self._only is not None:
            return self._only if self._only.healthy and self._only not in tried else None
        usable = [s for s in self.servers if s not in tried and s.usable(now)]
        if not usable:
            # Passed over is still better than not at all; found unhealthy is not.
            usable = [s for s in self.servers if s not in tried and s.healthy]
            if not usable:
                return None
        self._turn += 1
        if self.config.balance == "least_connections":
            least = min(server.busy for server in usable)
            usable = [server for server in usable if server.busy == least]
        return usable[self._turn % len(usable)]

    def close_idle(self) -> None:
        """Close every connection that carries nothing."""
        for server in self.servers:
            while server.idle:
                server.idle.pop().close()
            for session in list(server.sessions):
                session.close_if_idle()

    def retire(self) -> None:
        """Close what is idle now, and every other connection when it gets idle."""
        self.retired = True
        self.close_idle()
