"""An authority of its own for a test: Debian's ``pebble``, and what it looks at.

Pebble resolves names with the DNS server here, which knows every name as this machine
(but for those it is told to forget), and finds the proofs at a web server that serves
what it is given.  It forgets everything when it ends, as it is meant to.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon_stage import free_ports
from stage_waiting import HOST, reactor, until
from tls_stage import Authority
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.names.common import ResolverBase
from twisted.names.dns import A, DNSDatagramProtocol, Query, Record_A, RRHeader
from twisted.names.error import DNSNameError
from twisted.names.server import DNSServerFactory
from twisted.web.resource import Resource
from twisted.web.server import Site as WebSite

from awesomeproxy.acme.keeper import Keeper
from awesomeproxy.acme.status import State, Status
from awesomeproxy.model import Acme, Backend, Server, Site, SiteTls

PEBBLE = shutil.which("pebble") or "pebble (install Debian's package of that name)"
CHALLENGE = b"/.well-known/acme-challenge/"
ORIGIN = Backend("one", (Server("http", "127.0.0.1", 9),))


def a_site(name: str = "blog", *hosts: str, acme: bool = True) -> Site:
    """A site that wants a certificate."""
    return Site(name, hosts or (f"{name}.test",), "one", {"one": ORIGIN}, tls=SiteTls(acme=acme))


class Names(ResolverBase):
    """Every name is this machine, but for those that are not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: set[str] = set()

    def query(self, query: Query, timeout: Any = None) -> Deferred[Any]:
        name = query.name.name.decode().lower()
        if name in self.unknown:
            return _failed(DNSNameError())
        records = []
        if query.type == A:
            here = Record_A(HOST)  # type: ignore[no-untyped-call]
            records = [RRHeader(name, A, payload=here)]
        return _done((records, [], []))


def _done(value: Any) -> Deferred[Any]:
    done: Deferred[Any] = Deferred()
    done.callback(value)
    return done


def _failed(error: Exception) -> Deferred[Any]:
    failed: Deferred[Any] = Deferred()
    failed.errback(error)
    return failed


class Web(Resource):
    """Serves what it is given, by path."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.challenges: dict[bytes, bytes] = {}
        self.asked: list[bytes] = []

    def render_GET(self, request: Any) -> bytes:
        self.asked.append(request.path)
        body = self.challenges.get(request.path)
        if body is None:
            request.setResponseCode(404)
        return body or b"there is nothing"


@dataclass
class Pebble:
    """The authority, a process of its own."""

    directory: Path
    dns: int
    http: int
    validity: int = 0  # seconds that certificates are valid; 0: its own idea
    eab: dict[str, str] = field(default_factory=dict)  # MAC keys by key id; then one is needed
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.authority = Authority(self.directory / "server")
        self.ca_file = str(self.authority.ca_file)
        self.port = free_ports(1)[0]
        self.url = f"https://{HOST}:{self.port}/dir"

    def acme(self, **more: Any) -> Acme:
        """The settings to reach it."""
        how = {"directory": self.url, "ca_file": self.ca_file, "terms_agreed": True, **more}
        return Acme(**how)

    async def start(self, **environment: str) -> None:
        """Start it; a new process knows nobody."""
        issued = self.authority.issue(HOST)
        settings: dict[str, Any] = {
            "listenAddress": f"{HOST}:{self.port}",
            "managementListenAddress": "",
            "certificate": str(issued.certificate),
            "privateKey": str(issued.key),
            "httpPort": self.http,
            "tlsPort": 1,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": bool(self.eab),
        }
        if self.eab:
            settings["externalAccountMACKeys"] = self.eab
        if self.validity:
            settings["certificateValidityPeriod"] = self.validity
        config = self.directory / "pebble.json"
        config.write_text(json.dumps({"pebble": settings}))
        log = self.directory / "pebble.log"
        own = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [PEBBLE, "-config", str(config), "-dnsserver", f"{HOST}:{self.dns}"],
                env={**os.environ, **own, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        process = self.process
        await until(lambda: b"available at" in log.read_bytes() or process.poll(), "pebble")
        assert process.poll() is None, self.log

    @property
    def log(self) -> str:
        """What it has written."""
        return (self.directory / "pebble.log").read_text()

    async def stop(self) -> None:
        """End it."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            await until(lambda: process.poll() is not None, "the end of pebble")


@dataclass
class AcmeStage:
    """What a test has: an authority, the web it looks at, keepers, and a clock for waits."""

    directory: Path
    names: Names
    web: Web
    pebble: Pebble
    clock: Clock = field(default_factory=Clock)
    issued: list[str] = field(default_factory=list)
    keepers: list[Keeper] = field(default_factory=list)
    closing: list[Callable[[], Any]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """Where keepers keep what they keep."""
        return self.directory / "state" / "acme"

    def keeper(self, acme: Acme | None = None, *sites: Site, **how: Any) -> Keeper:
        """A keeper that runs; of the stage's authority if none is named."""
        keeper = Keeper(
            reactor,
            acme or self.pebble.acme(),
            self.state,
            self.web.challenges,
            on_issued=self.issued.append,
            clock=self.clock,
            random=lambda: 0.0,
            **how,
        )
        for site in sites:
            keeper.define(site)
        self.keepers.append(keeper)
        keeper.start()
        return keeper

    def file(self, site: str = "blog") -> Path:
        """Of a site's certificate."""
        return self.state / "certificates" / f"{site}.pem"

    async def comes(self, keeper: Keeper, state: State, site: str = "blog") -> Status:
        """Wait until it stands so with a site."""

        def look() -> Status | None:
            return next((each for each in keeper.statuses() if each.site == site), None)

        await until(
            lambda: (now := look()) is not None and now.state is state, f"{state}: {look()}"
        )
        status = look()
        assert status is not None
        return status

    async def close(self) -> None:
        """Leave nothing behind."""
        for keeper in self.keepers:
            keeper.stop()
        await self.pebble.stop()
        threads = [keeper.threads for keeper in self.keepers]
        await until(lambda: not any(each.running for each in threads), "the last answers")
        for close in reversed(self.closing):
            await maybeDeferred(close)


def _never() -> Any:
    raise AssertionError


async def an_acme_stage(tmp_path: Path) -> AsyncIterator[AcmeStage]:
    """A stage whose authority is not started yet."""
    names, web = Names(), Web()
    answers = DNSServerFactory(clients=[names])  # type: ignore[no-untyped-call]
    answers.noisy = False
    dns = reactor.listenUDP(0, DNSDatagramProtocol(answers), interface=HOST)  # type: ignore[no-untyped-call]
    site = WebSite(web)  # type: ignore[no-untyped-call]
    site.displayTracebacks = False
    site.noisy = False
    http = reactor.listenTCP(0, site, interface=HOST)
    pebble = Pebble(tmp_path, dns.getHost().port, http.getHost().port)
    stage = AcmeStage(tmp_path, names, web, pebble)
    stage.closing += [dns.stopListening, http.stopListening]
    yield stage
    await stage.close()
