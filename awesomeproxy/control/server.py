"""The control socket's server: a table of commands behind a Unix socket."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime, IReactorUNIX
from twisted.internet.protocol import Factory
from zope.interface import implementer

from awesomeproxy.control.connection import ControlProtocol, Limits, Served
from awesomeproxy.control.listening import open_port
from awesomeproxy.control.table import Table


def listen(
    reactor: IReactorUNIX,
    path: str,
    table: Table,
    context: Any,
    limits: Limits | None = None,
) -> Deferred[IListeningPort]:
    """Serve ``table`` on the Unix socket ``path``.

    The Deferred fires with the port.  Its ``stopListening`` also closes the connections that
    are open, and waits until they are; stop the port when the commands that matter are done.

    :param context: what every command is called with, first.
    :raises ControlSocketError: through the Deferred, if the socket cannot be opened.
    """
    served = Served(IReactorTime(reactor), table, context, limits or Limits())
    return maybeDeferred(
        lambda: ControlPort(open_port(reactor, path, ControlFactory(served)), served)
    )


class ControlFactory(Factory):
    """Makes a connection for each client."""

    noisy = False

    def __init__(self, served: Served) -> None:
        self._served = served

    def buildProtocol(self, addr: IAddress | None) -> ControlProtocol:
        """A connection of its own, with all that they share."""
        return ControlProtocol(self._served)


@implementer(IListeningPort)
class ControlPort:
    """The listening socket together with its connections: they are stopped as one."""

    def __init__(self, port: IListeningPort, served: Served) -> None:
        self._port = port
        self._served = served

    def __repr__(self) -> str:
        return f"<ControlPort {self.getHost()}, {len(self._served.connections)} connections>"

    def startListening(self) -> None:
        """Nothing: :func:`listen` hands out a port that listens."""

    async def _stop(self) -> None:
        await maybeDeferred(self._port.stopListening)
        leaving = list(self._served.connections)
        for connection in leaving:
            connection.close()
        await DeferredList([connection.gone for connection in leaving])

    def stopListening(self) -> Deferred[None]:
        """Listen no more, close every connection; fires when that is done."""
        return Deferred.fromCoroutine(self._stop())

    def getHost(self) -> IAddress:
        """The address of the socket."""
        return self._port.getHost()
