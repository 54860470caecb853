"""Twisted's TCP and Unix transports, with eager writes.

Twisted queues what is written, arms EPOLLOUT, polls, writes and disarms: three
system calls beside the one that matters.  Here ``write`` first tries to send,
when nothing is queued before it, and leaves to Twisted only what the kernel did
not take.  Errors are left to Twisted as well: a send that fails is queued, and
the reactor finds the fault at its next turn, where losing a connection is safe.

:func:`eager` wraps a reactor so that endpoints made with it build such
transports, and that their events come through a :mod:`~awesomeproxy.proxy.hub`;
everything else about them is Twisted's own.  Each can begin to speak TLS at any time
(:meth:`EagerWrites.secure`); it becomes one of another class then, so that those that
never do are none the slower.
"""

from __future__ import annotations

# Twisted's own transports are largely untyped.
# mypy: disable-error-code="no-untyped-call, override, arg-type"
import socket
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet import tcp, unix
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from zope.interface import directlyProvides, providedBy

from awesomeproxy.proxy.hub import Hub
from awesomeproxy.proxy.permit import Permit
from awesomeproxy.proxy.secure import Secure

READ_AT_MOST = 64 * 1024  # bytes in one go

# Connections that may wait to be accepted, at the least: a client that finds no room tries
# again after a second, which is a long time for a request.  The kernel caps it (somaxconn).
BACKLOG = 4096


class EagerWrites:
    """Mixed into a Twisted connection: try to send before queueing."""

    socket: Any
    protocol: Any
    connected: int
    dataBuffer: bytes
    _tempDataLen: int
    _writeDisconnected: bool
    _aborting: bool
    _secured: type[Secure]  # what it becomes with TLS

    def secure(self, tls: SSL.Connection, done: Callable[[], object]) -> None:
        """Speak TLS from here on; nothing may have been written that is not sent.

        :param tls: on this connection's socket, in either role.
        :param done: called when the handshake is.  Until then nothing may be written; if it
            fails, the connection is lost, and the reason is a :exc:`HandshakeFailed`.
        """
        self.__class__ = self._secured  # type: ignore[assignment]
        self.begin(tls, done)  # type: ignore[attr-defined]

    def look(self, looker: Callable[[], Any] | None) -> None:
        """Call ``looker`` whenever something has come, instead of reading it.

        It returns None, or why the connection is lost.

        :param looker: None: read what comes again.
        """
        if looker is not None:
            self.doRead = looker  # type: ignore[method-assign]
        elif not self._aborting:
            self.__dict__.pop("doRead", None)

    def write(self, data: bytes) -> None:
        """Send ``data`` now as far as the kernel takes it; queue the rest."""
        if not self._tempDataLen and not self.dataBuffer and self.connected and data:
            if self._writeDisconnected or self._aborting:
                return
            try:
                sent = self.socket.send(data)
            except OSError:
                sent = 0  # would block, or an error that doWrite will meet
            if sent == len(data):
                return
            if sent:
                data = data[sent:]
        super().write(data)  # type: ignore[misc]

    def doRead(self) -> Any:
        """Hand what has arrived to the protocol."""
        try:
            data = self.socket.recv(READ_AT_MOST)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    @property
    def unsent(self) -> int:
        """How many bytes still wait for the peer to take them."""
        return len(self.dataBuffer) - self.offset + self._tempDataLen  # type: ignore[attr-defined, no-any-return]


class EagerServer(EagerWrites, tcp.Server):
    """An accepted TCP connection."""


class EagerClient(EagerWrites, tcp.Client):
    """A TCP connection that we opened."""


class SecureServer(Secure, EagerServer):
    """An accepted TCP connection that speaks TLS."""


class SecureClient(Secure, EagerClient):
    """A TCP connection that we opened, and that speaks TLS."""

    speaks_first = True


EagerServer._secured = SecureServer
EagerClient._secured = SecureClient


class EagerPort(tcp.Port):
    """A listening TCP socket."""

    transport = EagerServer


class EagerConnector(tcp.Connector):
    """Opens a TCP connection."""

    def _makeTransport(self) -> EagerClient:
        return EagerClient(self.host, self.port, self.bindAddress, self, self.reactor)


class EagerUNIXServer(EagerWrites, unix.Server):
    """An accepted Unix connection."""


class EagerUNIXClient(EagerWrites, unix.Client):
    """A Unix connection that we opened."""


class SecureUNIXServer(Secure, EagerUNIXServer):
    """An accepted Unix connection that speaks TLS."""


EagerUNIXServer._secured = SecureUNIXServer


class EagerUNIXPort(unix.Port):
    """A listening Unix socket."""

    transport = EagerUNIXServer


class EagerUNIXConnector(unix.Connector):
    """Opens a Unix connection."""

    def _makeTransport(self) -> EagerUNIXClient:
        return EagerUNIXClient(self.address, self, self.reactor, self.checkPID)


class EagerReactor:
    """A reactor whose stream connections write eagerly; the rest is the reactor's own."""

    def __init__(self, reactor: Any, permit: Permit | None = None) -> None:
        """
        :param permit: for how long they may; None: for ever.
        """
        self._reactor = reactor
        self._hub = Hub(reactor, permit)
        self.at_turn_end = self._hub.at_turn_end
        self.resume = self._hub.resume
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """As :meth:`IReactorTCP.listenTCP`, with room for a crowd."""
        listening = EagerPort(port, factory, max(backlog, BACKLOG), interface, self._hub)
        listening.startListening()
        return listening

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30,
        bindAddress: tuple[str, int] | None = None,
    ) -> Any:
        """As :meth:`IReactorTCP.connectTCP`."""
        connector = EagerConnector(host, port, factory, timeout, bindAddress, self._hub)
        connector.connect()
        return connector

    def listenUNIX(
        self,
        address: str,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> Any:
        """As :meth:`IReactorUNIX.listenUNIX`, with room for a crowd."""
        room = max(backlog, BACKLOG)
        listening = EagerUNIXPort(address, factory, room, mode, self._hub, wantPID)
        listening.startListening()
        return listening

    def connectUNIX(
        self, address: str, factory: Any, timeout: float = 30, checkPID: bool = False
    ) -> Any:
        """As :meth:`IReactorUNIX.connectUNIX`."""
        connector = EagerUNIXConnector(address, factory, timeout, self._hub, checkPID)
        connector.connect()
        return connector

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """As :meth:`IReactorSocket.adoptStreamPort`: a socket opened by a supervisor."""
        if addressFamily == socket.AF_UNIX:
            listening = EagerUNIXPort._fromListeningDescriptor(self._hub, fileDescriptor, factory)
        else:
            listening = EagerPort._fromListeningDescriptor(
                self._hub, fileDescriptor, addressFamily, factory
            )
        listening.startListening()
        return listening


def eager(reactor: Any, permit: Permit | None = None) -> EagerReactor:
    """``reactor``, with eager writes on the connections made through it.

    :param permit: for how long they are served; None: for ever.
    """
    return EagerReactor(reactor, permit)
