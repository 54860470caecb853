"""Is a backend well?  Asked once, past the gate, before anything goes there."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import DeferredList
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol

from awesomeproxy.model import DATABASE, Server
from awesomeproxy.proxy.health import Unwell, check
from awesomeproxy.proxy.plane import Plane
from awesomeproxy.proxy.site import LiveSite

CHECK_TIMEOUT = 2.0  # seconds, of a server that has no health check configured


async def check_backend(plane: Plane, name: str, backend: str) -> None:
    """Ask the servers of a site's backend, or of a database's.

    :param name: what its placement is called.
    :raise Unwell: none of them is well.
    """
    if name.startswith(DATABASE):
        database = plane.databases[name.removeprefix(DATABASE)].definition
        await _connect(plane.reactor, database.backends[backend].server)
    else:
        await _ask(plane, plane.sites[name], backend)


async def _ask(plane: Plane, live: LiveSite, backend: str) -> None:
    health, servers = live.backends[backend].config.health, live.backends[backend].servers
    timeout = CHECK_TIMEOUT if health is None else health.timeout
    results = await DeferredList(
        [check(plane, server, health, live.host, timeout) for server in servers],
        consumeErrors=True,
    )
    for server, (success, _) in zip(servers, results, strict=True):
        if success:  # or held requests would wait for its health to rise in its own time
            server.recover()
    if not any(success for success, _ in results):
        why = "; ".join(
            f"{server.server}: {getattr(failure, 'value', failure)}"
            for server, (_, failure) in zip(servers, results, strict=True)
        )
        raise Unwell(f"no server of {backend} is well: {why}")


async def _connect(reactor: Any, server: Server) -> None:
    """See that a server takes connections; nothing is said to it."""
    endpoint: Any
    if server.path:
        endpoint = UNIXClientEndpoint(  # type: ignore[no-untyped-call]
            reactor, server.path, CHECK_TIMEOUT
        )
    else:
        endpoint = HostnameEndpoint(reactor, server.host.encode(), server.port, CHECK_TIMEOUT)
    try:
        protocol = await connectProtocol(endpoint, Protocol())  # type: ignore[no-untyped-call]
    except Exception as problem:
        raise Unwell(f"{server}: {problem}") from None
    protocol.transport.abortConnection()
