"""The data plane of one worker: listeners, clients, sites.

It is told what should be with :meth:`Plane.apply`, and says what is with
:meth:`Plane.observed`; that is all the control plane has to do with it.  A change worth
looking at is announced to ``on_change`` with the site's name, never with what changed:
who wants to know looks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime
from twisted.internet.protocol import Factory, Protocol

from awesomeproxy.gate import HeldTotal
from awesomeproxy.happenings import Once
from awesomeproxy.model import (
    DATABASE,
    Database,
    Desired,
    DesiredDatabase,
    Listen,
    Observed,
    Outcome,
)
from awesomeproxy.proxy.accesslog import AccessLog
from awesomeproxy.proxy.arrival import Arrival
from awesomeproxy.proxy.clock import SteadyClock
from awesomeproxy.proxy.doorstep import ClientFactory, Visits
from awesomeproxy.proxy.exchange import Exchange
from awesomeproxy.proxy.heads import Origin, RequestIds
from awesomeproxy.proxy.interfaces import IServerLink, IVisitor
from awesomeproxy.proxy.livedatabase import DatabaseFactory, LiveDatabase
from awesomeproxy.proxy.permit import Permit
from awesomeproxy.proxy.rarely import Rarely
from awesomeproxy.proxy.requests import Request
from awesomeproxy.proxy.router import Router
from awesomeproxy.proxy.site import LiveSite
from awesomeproxy.proxy.sweep import Sweep
from awesomeproxy.proxy.transport import eager
from awesomeproxy.tls.certificates import Certificates
from awesomeproxy.tls.verifying import ClientContexts


class Plane:
    """Carries the traffic of all sites of a worker."""

    def __init__(
        self,
        reactor: Any,
        *,
        name: str = "awesomeproxy",
        access_log: str = "",
        max_connections: int = 16_000,
        max_sockets: int = 1 << 30,
        max_held: int = 50_000,
        max_held_bytes: int = 1024 * 1024 * 1024,
        permit: Permit | None = None,
        certificates: Certificates | None = None,
        clock: IReactorTime | None = None,
        now: Callable[[], float] = time.time,
        on_change: Callable[[str], None] = lambda site: None,
    ) -> None:
        """
        :param name: the node's, for the Via field.
        :param max_connections: of clients.
        :param max_sockets: of clients and to servers, together.
        :param max_held: requests held, all sites together; ``max_held_bytes`` likewise.
        :param permit: for how long anything may be served; None: for ever.
        :param certificates: for listeners with TLS.
        :param clock: for deadlines, instead of one that cannot be set back.
        :param now: the time that holds end by.
        :raise OSError: the access log cannot be opened.
        """
        self.reactor = reactor
        self.now = now
        self.certificates = certificates
        self.permit = permit or Permit()
        self.eager = eager(reactor, self.permit)
        self.clock = clock or SteadyClock(reactor)
        self.seconds: Callable[[], float] = self.clock.seconds
        self.sweep = Sweep(self.clock)
        self.held = HeldTotal(max_held, max_held_bytes, self.permit)
        self.max_connections = max_connections
        self.max_sockets = max_sockets
        self.access_log = AccessLog(reactor, access_log)
        self.request_id = RequestIds()
        # The node's name may not be unique, and a request must be known when it returns.
        self.via_token = f"{name}-{os.urandom(3).hex()}".encode()
        self.via = {  # by the version in which a request has come (RFC 9110, section 7.6.3)
            version: b"%b %b" % (version, self.via_token) for version in (b"1.0", b"1.1", b"2.0")
        }
        self.router: Router[LiveSite] = Router()
        self.sites: dict[str, LiveSite] = {}
        self._removed: dict[str, LiveSite] = {}  # while something of them is in flight
        self.databases: dict[str, LiveDatabase] = {}
        self._removed_databases: dict[str, LiveDatabase] = {}  # while they have connections
        self.clients: set[IVisitor] = set()
        self.contexts = ClientContexts()  # for servers
        self.visits = Visits()
        self.handshakes = 0
        self.handshakes_failed = 0
        self.bad_headers = Rarely()  # of the PROXY protocol
        self.links: set[IServerLink] = set()
        self.challenges: dict[bytes, bytes] = {}  # target -> what proves a name to be ours
        self.https_port = 443  # where those are sent who shall come with TLS; see ``listen``
        self.stopping = False
        self._on_change = on_change
        self._ports: dict[str, IListeningPort] = {}
        self._doors: dict[str, _Door] = {}
        self._empty: Once | None = None

    # Desired and observed

    def apply(self, desired: Desired) -> None:
        """Converge to what one site should be; once it stops, the next worker will."""
        if self.stopping:
            return
        name = desired.site.name
        live = self.sites.get(name)
        if live is None:
            live = self.sites[name] = LiveSite(self, desired, self._removed.pop(name, None))
            self.router.add(live)
            return
        before = live.site
        live.apply(desired)
        if (before.hosts, before.path) != (desired.site.hosts, desired.site.path):
            self.router.remove(live, before)
            self.router.add(live)

    def remove(self, name: str) -> None:
        """A site is no more."""
        live = self.sites.pop(name, None)
        if live is not None:
            self.router.remove(live, live.site)
            live.close()
            if not live.drained:
                self._removed[name] = live

    def apply_database(self, desired: DesiredDatabase) -> None:
        """Converge to what one database should be; once it stops, the next worker will."""
        if self.stopping:
            return
        name = desired.database.name
        live = self.databases.get(name)
        if live is None:
            former = self._removed_databases.pop(name, None)
            self.databases[name] = LiveDatabase(self, desired, former)
        else:
            live.apply(desired)

    def remove_database(self, name: str) -> None:
        """A database is no more."""
        live = self.databases.pop(name, None)
        if live is not None:
            live.close()
            if not live.drained:
                self._removed_databases[name] = live

    def _live(self, name: str) -> LiveSite | LiveDatabase | None:
        """What is placed under ``name``, if anything is."""
        if name.startswith(DATABASE):
            return self.databases.get(name.removeprefix(DATABASE))
        return self.sites.get(name)

    def is_leaving(self, name: str) -> bool:
        """Whether something is left of a site or database that is no more."""
        if name.startswith(DATABASE):
            return name.removeprefix(DATABASE) in self._removed_databases
        return name in self._removed

    def observed(self, name: str) -> Observed | None:
        """What there is to report of one site or database, called as its placement is."""
        live = self._live(name)
        return live.observed() if live is not None else None

    def cut(self, name: str) -> int:
        """Break off whatever is in flight for it; return how much that was."""
        live = self._live(name)
        return live.cut() if live is not None else 0

    def cut_all(self) -> int:
        """The same for everything, and for what is left of what is no more."""
        sites = [*self.sites.values(), *self._removed.values()]
        databases = [*self.databases.values(), *self._removed_databases.values()]
        return sum(site.cut() for site in sites) + sum(each.cut() for each in databases)

    def changed(self, name: str) -> None:
        """Something about a site or a database has changed that others may wait for."""
        if name.startswith(DATABASE):
            self._forget_former(name.removeprefix(DATABASE))
            self._on_change(name)
            return
        live = self.sites.get(name)
        if live is not None and live.former is not None and live.former.drained:
            live.former = None
        elif name in self._removed and self._removed[name].drained:
            del self._removed[name]
        self._on_change(name)

    def _forget_former(self, name: str) -> None:
        live = self.databases.get(name)
        if live is not None and live.former is not None and live.former.drained:
            live.former = None
        elif name in self._removed_databases and self._removed_databases[name].drained:
            del self._removed_databases[name]

    def resume(self) -> None:
        """The permit was renewed after it had lapsed: serve again."""
        self.eager.resume()
        every: list[LiveSite | LiveDatabase] = [*self.sites.values(), *self.databases.values()]
        for live in every:
            live.gate.resume()

    # Listening

    async def listen(self, listens: Iterable[Listen], databases: Iterable[Database] = ()) -> None:
        """Listen where these say, and nowhere else; what stays is not disturbed.

        :raise OSError, CannotListenError: an address cannot be had; nothing has changed.
        """
        wanted = {listen.endpoint: listen for listen in listens}
        factories: dict[str, Factory] = {
            text: ClientFactory(self, listen) for text, listen in wanted.items()
        }
        for database in databases:
            factories[database.endpoint] = DatabaseFactory(self, database.name)
        fresh: dict[str, tuple[IListeningPort, _Door]] = {}
        try:
            for text, factory in factories.items():
                if text not in self._ports:
                    door = _Door(factory)
                    endpoint = serverFromString(self.eager, text)  # type: ignore[no-untyped-call]
                    fresh[text] = (await endpoint.listen(door), door)
        except BaseException:
            for port, _ in fresh.values():
                await _stopped(port)
            raise
        for text, (port, door) in fresh.items():
            self._ports[text], self._doors[text] = port, door
        for text, factory in factories.items():
            self._doors[text].behind = factory
        for text in set(self._ports) - set(factories):
            del self._doors[text]
            await _stopped(self._ports.pop(text))
        if wanted:  # or it is about to stop
            encrypted = [self._ports[text].getHost() for text, each in wanted.items() if each.tls]
            ports = [host.port for host in encrypted if hasattr(host, "port")]
            self.https_port = 443 if 443 in ports or not ports else ports[0]

    @property
    def listening(self) -> list[Any]:
        """The addresses that are listened on."""
        return [port.getHost() for port in self._ports.values()]

    async def stop(self, deadline: float) -> None:
        """Stop accepting, answer what is held, and wait for what is in flight.

        :param deadline: seconds after which what is left is cut.
        """
        self.stopping = True
        await self.listen(())
        for site in self.sites.values():
            site.stop_holding()
            site.part_tunnels(deadline)
        for database in self.databases.values():
            database.close()
        for client in list(self.clients):
            client.idle_close()
        self._empty = Once()
        if not self.clients:
            self._empty.fire()
        late = self.reactor.callLater(deadline, self._empty.fire, Outcome.TIMED_OUT)
        await self._empty.wait()
        if late.active():
            late.cancel()
        gone = Once()
        self._empty = gone
        for client in list(self.clients):
            client.abort()
        for live in (*self.sites.values(), *self._removed.values()):
            live.close()
        self.cut_all()
        if not self.clients:
            gone.fire()
        await gone.wait()
        self.access_log.close()

    # What connections ask

    def origin(self, arrival: Arrival, listen: Listen) -> Origin:
        """The fields that say where a client's requests come from."""
        trusted = False
        if listen.trusted_proxies:
            with contextlib.suppress(ValueError):  # a Unix socket has no address
                trusted = any(ip_address(arrival.address) in n for n in listen.trusted_proxies)
        return Origin(arrival.address.encode(), trusted, b"https" if arrival.tls else b"http")

    @property
    def sockets(self) -> int:
        """How many connections there are, of clients and to servers."""
        return len(self.clients) + len(self.links)

    @property
    def crowded(self) -> bool:
        """Whether there is no file descriptor for one more."""
        return self.sockets >= self.max_sockets

    def client_came(self, client: IVisitor) -> None:
        """Take a connection in."""
        self.clients.add(client)
        self.sweep.add(client)

    def client_left(self, client: IVisitor) -> None:
        """Forget a connection."""
        self.clients.discard(client)
        self.sweep.remove(client)
        if self._empty is not None and not self.clients:
            self._empty.fire()

    def log(self, exchange: Exchange, now: float) -> None:
        """Write an exchange that has ended to the access log."""
        if self.access_log.enabled:
            request = exchange.request
            server = exchange.server
            self.access_log.add(
                b'%b %b %b "%b %b HTTP/%b" %d %d %.3f %.3f %b'
                % (
                    exchange.address,
                    exchange.site.name,
                    server.label if server is not None else b"- -",
                    request.method,
                    request.target,
                    request.version,
                    exchange.status,
                    exchange.bytes_sent,
                    exchange.held,
                    now - exchange.started,
                    request.request_id,
                )
            )

    def log_refused(
        self, address: bytes, status: int, size: int, request: Request | None = None
    ) -> None:
        """Write a request that was answered before it had a site to the access log."""
        if self.access_log.enabled:
            line = identity = b"-"
            if request is not None:
                line = b"%b %b HTTP/%b" % (request.method, request.target, request.version)
                identity = request.request_id
            self.access_log.add(
                b'%b - - - "%b" %d %d 0.000 0.000 %b' % (address, line, status, size, identity)
            )


class _Door(Factory):
    """Stays as long as its port does; what is behind it may change."""

    noisy = False

    def __init__(self, behind: Factory) -> None:
        self.behind = behind

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        return self.behind.buildProtocol(addr)  # type: ignore[return-value]


async def _stopped(port: IListeningPort) -> None:
    stopped = port.stopListening()
    if isinstance(stopped, Deferred):
        await stopped
