"""A site as a worker runs it: definition, placement, gate, backends and counters."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING

from awesomeproxy.gate import Gate
from awesomeproxy.model import Backend, Counters, Desired, Mode, Observed, Placement, Site
from awesomeproxy.proxy.expiry import OVERDUE, Expiry
from awesomeproxy.proxy.health import Checks, Probe
from awesomeproxy.proxy.interfaces import IClient, IServerLink
from awesomeproxy.proxy.servers import LiveBackend
from awesomeproxy.proxy.stagger import Stagger

if TYPE_CHECKING:
    from awesomeproxy.proxy.plane import Plane
    from awesomeproxy.proxy.tunnel import Tunnel


NONE: Mapping[str, list[Checks]] = MappingProxyType({})


class LiveSite:
    """One site at work."""

    __slots__ = (
        "_ambiguous_before",
        "_checks",
        "_expiry",
        "_probe",
        "_stagger",
        "_was_drained",
        "absent",
        "ambiguous",
        "backend",
        "backends",
        "bypass_field",
        "closed",
        "connections",
        "failed",
        "former",
        "gate",
        "guarded",
        "hsts",
        "name",
        "placement",
        "plane",
        "requests",
        "retried",
        "site",
        "tunnels",
    )

    def __init__(self, plane: Plane, desired: Desired, former: LiveSite | None = None) -> None:
        """
        :param former: a removed site of the same name that still has requests in flight.
            Whoever pauses the site wants none of them at its backend either.
        """
        self.plane = plane
        self.former = former
        self.site = desired.site
        self.name = desired.site.name.encode()
        self.placement = desired.placement
        self.absent = desired.absent  # why it cannot be served where it is placed
        self.gate = Gate(plane.clock, total=plane.held, on_idle=self._gate_idle)
        self.backends: dict[str, LiveBackend] = {}
        self.backend: LiveBackend | None = None  # where it is placed
        # Sets, as dicts: an empty one is a third of the size, and there may be very many sites.
        self.connections: dict[IServerLink, None] = {}
        self.tunnels: dict[Tunnel, None] | tuple[()] = ()  # and most never have one
        self.requests = 0
        self.retried = 0
        self.ambiguous = 0
        self.failed = 0
        self.guarded = False  # not everything that is asked of it is to be let to the gate
        self.hsts = b""  # what browsers are told of TLS (RFC 6797)
        self.bypass_field = b""  # the name of the header that lets by, in lower case
        self.closed = 0  # requests and tunnels cut since the last hold began
        # None of these before it is needed: there may be very many sites.
        self._checks: Mapping[str, list[Checks]] = NONE
        self._probe: Probe | None = None
        self._stagger: Stagger | None = None
        self._expiry: Expiry | None = None
        self._was_drained = False
        self._ambiguous_before = 0  # when the last hold began
        self._define(desired.site)
        self._place(desired.placement, desired.absent)

    def __repr__(self) -> str:
        return f"<LiveSite {self.site.name} on {self.placement.backend}: {self.gate!r}>"

    @property
    def host(self) -> str:
        """A host name for requests of the proxy's own."""
        return self.site.hosts[0].removeprefix("*.")

    # Desired state

    def apply(self, desired: Desired) -> None:
        """Converge to ``desired``; an older generation than the present one is ignored."""
        if desired.site != self.site:
            self._define(desired.site)
            self._place(self.placement, self.absent)
        if desired.placement.generation >= self.placement.generation:
            self._place(desired.placement, desired.absent)

    def stop_holding(self) -> None:
        """The proxy stops: refuse what is held; what can still pass may."""
        if self.gate.holding or self.gate.trouble:
            self.gate.close()

    def close(self) -> None:
        """The site is gone: refuse what is held, let what is in flight finish, part tunnels."""
        self._was_drained = False
        self.gate.close()
        self._stop_probe()
        if self._expiry is not None:
            self._expiry.stop()
        self._stagger_tunnels(self.site.drain.tunnels)
        for name in list(self.backends):
            self._drop(name)

    def _define(self, site: Site) -> None:
        self.site = site
        self.bypass_field = site.bypass.header.lower().encode() if site.bypass.secret else b""
        access, tls = site.access, site.tls
        self.guarded = bool(access.allow or access.deny or tls.redirect or site.max_body)
        self.hsts = b"max-age=%d" % tls.hsts if tls.hsts else b""
        if tls.hsts_subdomains:
            self.hsts += b"; includeSubDomains"
        self.gate.configure(
            site.hold,
            ramp=site.ramp,
            max_in_flight=site.max_in_flight,
            budget=site.retry.budget,
        )
        for name in list(self.backends):
            if site.backends.get(name) != self.backends[name].config:
                self._drop(name)
        for name, config in site.backends.items():
            if name not in self.backends:
                self._add(name, config)

    def _add(self, name: str, config: Backend) -> None:
        backend = self.backends[name] = LiveBackend(config)
        if config.health is not None:
            checks = [Checks(self, server, config.health) for server in backend.servers]
            self._checks = {**self._checks, name: checks}

    def _drop(self, name: str) -> None:
        self.backends.pop(name).retire()
        for check in self._checks.get(name, ()):
            check.stop()
        self._checks = {key: checks for key, checks in self._checks.items() if key != name} or NONE

    def _place(self, placement: Placement, absent: str) -> None:
        before, self.placement = self.backend, placement
        self.absent = absent
        self.backend = self.backends.get(placement.backend)
        holds = placement.mode is Mode.HOLDING or self.backend is None or bool(absent)
        if holds:
            self._hold()
        if before is not self.backend:
            # What the old place refused, the new one may take.
            self._stop_probe()
            self.gate.reachable()
            if before is not None:
                before.close_idle()
        if not holds:
            self._open()
        if self._expiry is None and placement.expires is not None:
            self._expiry = Expiry(self.plane.reactor, self._refuse, self.plane.now)
        if self._expiry is not None:
            self._expiry.watch(placement)
        self.plane.changed(self.site.name)

    def _hold(self) -> None:
        if not self.gate.holding:
            self.closed = 0
            self._ambiguous_before = self.ambiguous
            self._was_drained = False
            self.gate.hold()
            self._stagger_tunnels(self.site.drain.tunnels)
        elif self.gate.refusing:
            self.gate.hold()
        if self._probe is not None:
            self._probe.interrupt()
        if self.backend is not None:
            self.backend.close_idle()
            for check in self._checks.get(self.backend.config.name, ()):
                check.interrupt()
        self._call_off_connecting()

    def _call_off_connecting(self) -> None:
        """What waits for a connection to be opened, and was sent to nobody, waits at the gate."""
        for link in list(self.connections):
            for carrier in link.carriers():
                exchange = carrier.exchange
                if exchange is not None and not carrier.ready and not exchange.sends:
                    exchange.call_off(carrier)

    def _refuse(self) -> None:
        """The hold has outlived its deadline."""
        self.gate.refuse(OVERDUE)
        self.plane.changed(self.site.name)

    def _open(self) -> None:
        self._stop_staggering()
        if self.gate.holding:
            # What was unreachable before the hold may not be any more.
            self._stop_probe()
            self.gate.reachable()
            self.gate.open()

    def all_tunnels(self) -> list[Tunnel]:
        """What has been upgraded, here and at those it follows."""
        return [tunnel for live in self._all() for tunnel in live.tunnels]

    def tunnel_opened(self, tunnel: Tunnel, *, bypass: bool) -> None:
        """A request has led to a tunnel.

        :param bypass: it was let by: the operator's own, who may try the new place with it.
        """
        self.tunnels = self.tunnels or {}
        self.tunnels[tunnel] = None
        if self.plane.stopping or (self.gate.holding and not bypass):
            self._stagger_tunnels(self.site.drain.tunnels)

    def tunnel_closed(self, tunnel: Tunnel) -> None:
        """It is no more."""
        if self.tunnels:
            self.tunnels.pop(tunnel, None)

    def part_tunnels(self, deadline: float) -> None:
        """The proxy stops: tell those that can be told; the rest may stay until the deadline.

        :param deadline: seconds after which everything is closed.
        """
        self._stagger_tunnels(min(self.site.drain.tunnels, deadline), deadline)

    def _stagger_tunnels(self, told: float, closed: float | None = None) -> None:
        if self._stagger is None and self.all_tunnels():
            self._stagger = Stagger(self, self.plane.clock)
        if self._stagger is not None:
            self._stagger.start(told, closed)

    def _stop_staggering(self) -> None:
        if self._stagger is not None:
            self._stagger.stop()

    def close_tunnels(self) -> int:
        """Close what has been upgraded now; return how many there were."""
        self._stop_staggering()
        tunnels = self.all_tunnels()
        for tunnel in tunnels:
            self.closed += not tunnel.parting
            tunnel.cut()
        return len(tunnels)

    def cut(self) -> int:
        """Break off whatever is in flight, as ``--force`` asks; return how much that was."""
        count = self.close_tunnels()
        for link in [link for live in self._all() for link in live.connections]:
            carriers = link.carriers()
            for carrier in carriers:
                if carrier.exchange is not None:
                    self.closed += 1
                    count += 1
                    carrier.exchange.break_off(carrier)
            if not carriers:
                link.abort()
        return count

    # Observed state

    def _all(self) -> list[LiveSite]:
        """This site and those it follows."""
        return [self, *(self.former._all() if self.former is not None else ())]

    @property
    def drained(self) -> bool:
        """Held, and nothing of it is left towards a backend."""
        return self.gate.holding and not any(
            live.gate.in_flight or live.tunnels or live.connections for live in self._all()
        )

    def check_drained(self) -> None:
        """Something has ended: if that was the last of it, say so."""
        if self.gate.holding and not self._was_drained and self.drained:
            self._was_drained = True
            self.plane.changed(self.site.name)

    def _gate_idle(self) -> None:
        if self.backend is not None:
            self.backend.close_idle()
        self.check_drained()

    @property
    def in_flight(self) -> int:
        """Requests that have passed the gate and not ended."""
        return sum(live.gate.in_flight for live in self._all())

    def observed(self) -> Observed:
        """What there is to report."""
        gate = self.gate
        now = self.plane.seconds()
        backend = self.backend
        every = self._all()
        return Observed(
            site=self.site.name,
            generation=self.placement.generation,
            backend=self.placement.backend,
            mode=Mode.HOLDING if gate.holding else Mode.OPEN,
            state=gate.state,
            in_flight=self.in_flight,
            held=gate.waiting,
            held_bytes=gate.waiting_bytes,
            tunnels=sum(len(live.tunnels) for live in every),
            connections=sum(len(live.connections) for live in every),
            closed=self.closed,
            ambiguous=self.ambiguous - self._ambiguous_before,
            longest_wait=gate.longest_wait,
            counters=self.counters(),
            servers={
                name: {str(server.server): server.describe(now) for server in live.servers}
                for name, live in self.backends.items()
            },
            trouble=gate.trouble
            or gate.refusing
            or self.absent
            or ("" if backend else self.why_unreachable()),
        )

    def counters(self) -> Counters:
        """The site's counts."""
        gate = self.gate
        return Counters(
            requests=self.requests,
            held=gate.held,
            released=gate.released,
            departed=gate.departed,
            refused=gate.refused,
            retried=self.retried,
            ambiguous=self.ambiguous,
            failed=self.failed,
        )

    # What exchanges ask

    def welcomes(self, address: str) -> bool:
        """Whether clients of that address may ask for the site."""
        access = self.site.access
        if not access.allow and not access.deny:
            return True
        try:
            found = ip_address(address)
        except ValueError:  # a Unix socket has no address: who may use it is its directory's
            return True
        if any(found in network for network in access.deny):
            return False
        return not access.allow or any(found in network for network in access.allow)

    def lets_by(self, secret: bytes | None, client: IClient | None) -> bool:
        """Whether a request passes the held gate: the operator tries the new place.

        :param secret: what the request had in the field :attr:`bypass_field`.
        """
        bypass = self.site.bypass
        if not self.gate.holding or client is None or self.backend is None or self.absent:
            return False
        if secret is not None and hmac.compare_digest(secret, bypass.secret.encode()):
            self._was_drained = False  # it is not, from here on
            return True
        if not bypass.networks:
            return False
        try:
            address = ip_address(client.address)
        except ValueError:
            return False
        if any(address in network for network in bypass.networks):
            self._was_drained = False
            return True
        return False

    def why_unreachable(self) -> str:
        """Why there is no server to send a request to."""
        if self.backend is None:
            return f"the site is placed on {self.placement.backend!r}, which is not defined"
        troubles = [f"{s.server}: {s.trouble}" for s in self.backend.servers if s.trouble]
        return "; ".join(troubles) or "no server is healthy"

    def why_held(self, how: str) -> str:
        """For an answer: what the request had to wait for."""
        gate = self.gate
        if self.backend is None:
            what = "The site's servers are not known"
        elif self.absent:
            what = "The site's files are not there"
        elif gate.refusing:
            what = "The site takes no requests for now"
        elif gate.holding:
            what = "The site is paused"
        elif gate.trouble:
            what = "The site's server cannot be reached"
        else:
            what = "The site is busy"
        return f"{what}; the request was held {how}. Try again."

    def unreachable(self, why: str) -> None:
        """No server takes connections: hold, and knock until one does."""
        self.gate.unreachable(why)
        if self._probe is None:
            self._probe = Probe(self)
            self.plane.changed(self.site.name)

    def reachable(self) -> None:
        """A server has taken a connection."""
        if self._probe is not None:
            self._stop_probe()
            for server in self.backend.servers if self.backend is not None else ():
                server.worked()
                server.down_until = 0.0
            self.gate.reachable()
            self.plane.changed(self.site.name)

    def server_back(self, backend: LiveBackend) -> None:
        """The active check has found a server well again."""
        if backend is self.backend:
            self.reachable()

    def quiet(self, backend: LiveBackend) -> bool:
        """Whether nothing may be sent to ``backend``: the site is held there, or all are."""
        return self.plane.permit.lapsed or (self.gate.holding and backend is self.backend)

    def _stop_probe(self) -> None:
        if self._probe is not None:
            self._probe.stop()
            self._probe = None
