"""Opening connections to servers, whatever their addresses are and whatever comes first.

A server that is named by a number is called directly; of one that has a name, all
addresses are tried, of either family (RFC 8305).  A PROXY header may have to be sent, and
a TLS handshake to be done, in which the server proves who it is.  Only when all of that
is over does a protocol get its connection; what fails before, fails with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IAddress, IConnector, IDelayedCall
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from awesomeproxy.model import Server
from awesomeproxy.proxy.secure import HandshakeFailed, reason
from awesomeproxy.tls.verifying import Unverified, verify_peer

# What OpenSSL says, in words that lead somewhere.
WORDS = {
    "wrong version number": "it does not speak TLS",
    "tlsv1 alert protocol version": "it speaks no version of TLS from 1.2 on",
    "tls alert handshake failure": (
        "it has not agreed to any of our ciphers, or wants a certificate from us"
    ),
}


class Unfit(error.ConnectError):
    """A server that can be reached, and yet is not the one that is needed."""

    def __init__(self, why: str) -> None:
        super().__init__(string=why)  # type: ignore[no-untyped-call]
        self.why = why

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True, slots=True)
class Handshake:
    """How the TLS handshake with a server is done."""

    context: SSL.Context
    name: str  # what its certificate must be for; empty: it is not looked at
    sni: bytes | None  # what it is asked for
    http2: bool  # whether it has to agree to HTTP/2


def dial(
    reactor: Any,
    server: Server,
    protocol: Protocol,
    failed: Callable[[Failure], object],
    timeout: float,
    *,
    handshake: Handshake | None = None,
    preface: bytes = b"",
) -> Callable[[], object]:
    """Connect ``protocol`` to ``server``.

    :param reactor: an eager one, if there is a handshake to do.
    :param failed: called if that cannot be done, or is called off.
    :param timeout: seconds.
    :param preface: sent before all else.
    :return: calls it off, while ``protocol`` is not connected.
    """
    named = server.scheme != "unix" and not _is_number(server.host)
    if handshake is None and not preface and not named:
        return _connect(reactor, server, _Factory(protocol, failed), timeout)
    calling = _Calling(reactor, protocol, failed, timeout, handshake, preface)
    calling.call_off_connecting = lambda: None  # it may fail before it is known how
    call_off = _connect(reactor, server, _Factory(calling, calling.failed), timeout)
    if calling.call_off_connecting is not None:
        calling.call_off_connecting = call_off
    return calling.call_off


def _is_number(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _connect(
    reactor: Any, server: Server, factory: _Factory, timeout: float
) -> Callable[[], object]:
    if server.scheme == "unix":
        connector = reactor.connectUNIX(server.path, factory, timeout=timeout)
        return connector.disconnect  # type: ignore[no-any-return]
    if _is_number(server.host):
        connector = reactor.connectTCP(server.host, server.port, factory, timeout=timeout)
        return connector.disconnect  # type: ignore[no-any-return]
    endpoint = HostnameEndpoint(reactor, server.host, server.port, timeout=timeout)
    return endpoint.connect(factory).addErrback(factory.failed).cancel


class _Calling(Protocol):
    """Stands for a protocol until the server is known to be who it should be.

    What Twisted's endpoints put between a connection and its protocol goes with it.
    """

    transport: Any

    def __init__(
        self,
        reactor: Any,
        protocol: Protocol,
        failed: Callable[[Failure], object],
        timeout: float,
        handshake: Handshake | None,
        preface: bytes,
    ) -> None:
        self._protocol = protocol
        self._failed: Callable[[Failure], object] | None = failed
        self._handshake = handshake
        self._preface = preface
        self._tls: SSL.Connection | None = None
        self._timeout = timeout
        self._late: IDelayedCall | None = None
        if handshake is not None:
            self._late = reactor.callLater(timeout, self._too_late)
        self.call_off_connecting: Callable[[], object] | None = None

    def connectionMade(self) -> None:
        """The server's kernel has taken the connection."""
        self.call_off_connecting = None
        if self._failed is None:
            self.transport.abortConnection()
            return
        if self._preface:
            self.transport.write(self._preface)
        handshake = self._handshake
        if handshake is None:
            self._hand_over()
            return
        self._tls = SSL.Connection(handshake.context, self.transport.socket)
        if handshake.sni is not None:
            self._tls.set_tlsext_host_name(handshake.sni)
        self._tls.set_connect_state()
        self.transport.setTcpNoDelay(True)
        self.transport.secure(self._tls, self._shaken)

    def _shaken(self) -> None:
        """The handshake is done: is it whom we have called?"""
        handshake, tls = self._handshake, self._tls
        assert handshake is not None
        assert tls is not None
        try:
            if handshake.name:
                verify_peer(tls, handshake.name)
            if handshake.http2 and tls.get_alpn_proto_negotiated() != b"h2":
                raise Unverified("it does not speak HTTP/2; write https:// instead of h2://")
        except Unverified as fault:
            self.failed(Failure(Unfit(reason(fault))))  # type: ignore[no-untyped-call]
            self.transport.abortConnection()
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        self._end()
        self._failed = None
        self.transport.protocol = self._protocol
        self._protocol.makeConnection(self.transport)  # type: ignore[no-untyped-call]

    def _too_late(self) -> None:
        self._late = None
        if self.call_off_connecting is not None:
            self.failed(Failure(error.TimeoutError()))  # type: ignore[no-untyped-call]
            self.call_off_connecting()
        else:
            why = f"it has not finished the TLS handshake within {self._timeout:g} s"
            self.failed(Failure(Unfit(why)))  # type: ignore[no-untyped-call]
            self.transport.abortConnection()

    def connectionLost(self, why: Failure = connectionDone) -> None:
        """It was closed before it came to that."""
        words = str(why.value)
        if isinstance(why.value, HandshakeFailed):
            words = f"the TLS handshake with it failed: {WORDS.get(words, words)}"
        self.failed(Failure(Unfit(words)))  # type: ignore[no-untyped-call]

    def call_off(self) -> None:
        """Nobody wants it any more."""
        if self.call_off_connecting is not None:
            self.call_off_connecting()
        elif self._failed is not None:
            self.failed(Failure(error.UserError()))  # type: ignore[no-untyped-call]
            self.transport.abortConnection()

    def failed(self, why: Failure) -> None:
        """It cannot be had."""
        self._end()
        failed, self._failed = self._failed, None
        if failed is not None:
            failed(why)

    def _end(self) -> None:
        self._tls = None
        late, self._late = self._late, None
        if late is not None:
            late.cancel()


class _Factory(ClientFactory):
    noisy = False

    def __init__(self, protocol: Protocol, failed: Callable[[Failure], object]) -> None:
        self._protocol = protocol
        self.failed = failed

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._protocol

    def clientConnectionFailed(self, connector: IConnector, why: Failure) -> None:
        self.failed(why)
