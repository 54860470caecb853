"""Opening connections to servers, whatever their addresses are.

A server that is named by a number is called directly; of one that has a name, all
addresses are tried, of either family (RFC 8305).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IAddress, IConnector
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.python.failure import Failure

from awesomeproxy.model import Server


def dial(
    reactor: Any,
    server: Server,
    protocol: Protocol,
    failed: Callable[[Failure], object],
    timeout: float,
) -> Callable[[], object]:
    """Connect ``protocol`` to ``server``.

    :param failed: called if that cannot be done, or is called off.
    :param timeout: seconds.
    :return: calls it off, while ``protocol`` is not connected.
    """
    factory = _Factory(protocol, failed)
    if server.scheme == "unix":
        connector = reactor.connectUNIX(server.path, factory, timeout=timeout)
        return connector.disconnect  # type: ignore[no-any-return]
    if ":" in server.host or server.host.replace(".", "").isdigit():
        connector = reactor.connectTCP(server.host, server.port, factory, timeout=timeout)
        return connector.disconnect  # type: ignore[no-any-return]
    endpoint = HostnameEndpoint(reactor, server.host, server.port, timeout=timeout)
    return endpoint.connect(factory).addErrback(failed).cancel


class _Factory(ClientFactory):
    noisy = False

    def __init__(self, protocol: Protocol, failed: Callable[[Failure], object]) -> None:
        self._protocol = protocol
        self._failed = failed

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._protocol

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        self._failed(reason)
