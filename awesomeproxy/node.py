"""One node: the registry says what should be, the workers are told, and report what is.

This is where the parts meet.  A placement changes in one way only: the registry is
asked, with the generation that was seen; what it answers is *adopted*, which means that
the data plane is told and everybody who watches hears of it.  So nothing takes effect
that is not written down, and whoever loses a race is told who has won it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger

from awesomeproxy import config
from awesomeproxy.happenings import Happenings
from awesomeproxy.migrate.engine import Migration, recover
from awesomeproxy.model import (
    Desired,
    Mode,
    Observed,
    Outcome,
    Placement,
    Receipt,
    Report,
    Settings,
    Site,
)
from awesomeproxy.proxy.health import Unwell, check
from awesomeproxy.proxy.plane import Plane
from awesomeproxy.registry.interface import IRegistry
from awesomeproxy.registry.local import LocalRegistry

log = Logger()

CHECK_TIMEOUT = 2.0  # seconds, of a server that has no health check configured
CUT_GRACE = 2.0  # seconds that cut connections may take to be gone


class NotDrained(Exception):
    """What was in flight has not finished in time."""


class Overtaken(Exception):
    """Somebody else has changed the placement: ``winner``."""

    def __init__(self, winner: Placement) -> None:
        self.winner = winner
        super().__init__(f"{winner.site}: changed meanwhile by {winner.by!r}")


class Node:
    """The daemon: registry, data plane, and what goes on between them."""

    registry: IRegistry
    plane: Plane

    def __init__(self, reactor: Any, path: str, settings: Settings) -> None:
        """
        :param path: the configuration file, to be read again at a reload.
        :param settings: what it says now.
        """
        self.reactor = reactor
        self.path = path
        self.settings = settings
        self.sites: dict[str, Site] = {}
        self.added: dict[str, dict[str, Any]] = {}  # tables of what was added by command
        self.placements: dict[str, Placement] = {}
        self.migrations: dict[str, Migration] = {}
        self.began = time.time()
        self._on_change: Happenings[str] = Happenings(reactor)
        self._watchers: dict[object, Callable[[dict[str, Any]], None]] = {}
        self._states: dict[str, str] = {}
        self._expiries: dict[str, IDelayedCall] = {}
        self._control: IListeningPort | None = None
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Node {self.settings.name}: {len(self.sites)} sites>"

    # Life

    async def start(self, listen_control: Callable[[str], Deferred[IListeningPort]]) -> None:
        """Take up where the registry says things were left, then serve.

        :param listen_control: opens the control socket at a path.
        :raise RegistryError, OSError, CannotListenError, ControlSocketError: it cannot
            be started; the message says why.
        """
        settings = self.settings
        self.registry = await LocalRegistry.open(
            self.reactor, Path(settings.state_dir) / "registry.sqlite"
        )
        for entry, state in await recover(self.registry):
            log.warn(
                "{site}: the migration from {source} to {target} was cut off: {state}",
                site=entry.site,
                source=entry.source,
                target=entry.target,
                state=state,
            )
        self.added = await self.registry.definitions()
        self.placements = await self.registry.placements()
        self.plane = Plane(
            self.reactor,
            name=settings.name,
            access_log=settings.access_log,
            max_connections=self._affordable(settings.max_connections),
            max_held=settings.max_held,
            max_held_bytes=settings.max_held_bytes,
            on_change=self._changed,
        )
        for site in self.compose(settings, self.added).values():
            await self.define(site)
        self._control = await listen_control(settings.control)
        await self.plane.listen(settings.listen)
        log.info(
            "{name} serves {count} sites on {addresses}",
            name=settings.name,
            count=len(self.sites),
            addresses=", ".join(listen.endpoint for listen in settings.listen),
        )

    async def stop(self) -> None:
        """Stop accepting, finish what is in flight within ``drain_time``, let go of all."""
        self._stopping = True
        for migration in list(self.migrations.values()):
            migration.stop("the daemon is stopping")
            await migration.ended.wait()
        if hasattr(self, "plane"):
            await self.plane.stop(self.settings.drain_time)
        self._on_change.fire_all(Outcome.REFUSED)
        for call in self._expiries.values():
            call.cancel()
        self._expiries.clear()
        if self._control is not None:
            await maybeDeferred(self._control.stopListening)
        if hasattr(self, "registry"):
            await self.registry.close()

    def _affordable(self, wanted: int) -> int:
        """How many clients the limit of open files leaves room for."""
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        # A fifth is for connections to servers and for everything else.
        room = (hard - 64) * 4 // 5
        if wanted > room:
            log.warn(
                "max_connections is {wanted}, but the limit of open files ({hard}) leaves room"
                " for {room}; raise LimitNOFILE (systemd) or ulimit -n",
                wanted=wanted,
                hard=hard,
                room=room,
            )
        return min(wanted, room)

    # Definitions

    def compose(self, settings: Settings, added: Mapping[str, dict[str, Any]]) -> dict[str, Site]:
        """All sites: the file's, those added by command, and the file's with added backends.

        :raise ConfigError: they do not go together.
        """
        sites = dict(settings.sites)
        source = "added by command"
        for name, table in added.items():
            if "hosts" in table:
                if name not in settings.sites:
                    sites[name] = config.site_from_table(name, table, source)
            elif name in sites:
                backends = {
                    backend: config.backend_from_table(backend, entry, source)
                    for backend, entry in table["backends"].items()
                }
                site = sites[name]
                sites[name] = replace(site, backends={**backends, **site.backends})
        problems = []
        for name, site in sites.items():
            placement = self.placements.get(name)
            if placement is not None and placement.backend not in site.backends:
                problems.append(
                    f"sites.{name}.backends: {placement.backend!r} is missing, and the site is"
                    f" placed there; migrate it to another backend first"
                )
        for name in added:
            if name in sites and name not in settings.sites:
                others = [other for other in sites.values() if other.name != name]
                problems.extend(config.overlaps(sites[name], others))
        if problems:
            raise config.ConfigError(problems)
        return sites

    async def define(self, site: Site) -> None:
        """Take over a definition, new or changed; a new site is placed where it says."""
        self.sites[site.name] = site
        placement = self.placements.get(site.name)
        if placement is None:
            placement = await self.registry.place(Placement(site.name, site.backend), 0)
        self.adopt(placement)

    def undefine(self, name: str) -> None:
        """A site is served no more; where it is placed stays known."""
        self.sites.pop(name, None)
        self.plane.remove(name)
        self._states.pop(name, None)
        call = self._expiries.pop(name, None)
        if call is not None:
            call.cancel()
        self.emit(event="removed", site=name)

    async def reload(self) -> dict[str, list[str]]:
        """Read the configuration file again and converge to it.

        :return: the names of sites ``added``, ``changed`` and ``removed``, and under
            ``restart`` the keys that have changed and need one.
        :raise ConfigError, OSError, CannotListenError: it cannot be; nothing has changed.
        """
        settings = config.load(self.path)
        sites = self.compose(settings, self.added)
        busy = [name for name in self.migrations if sites.get(name) != self.sites.get(name)]
        if busy:
            raise config.ConfigError(
                f"sites.{name}: it is being migrated; reload when that is done" for name in busy
            )
        await self.plane.listen(settings.listen)
        self.plane.access_log.reopen()
        result: dict[str, list[str]] = {"added": [], "changed": [], "removed": []}
        for name in [name for name in self.sites if name not in sites]:
            self.undefine(name)
            result["removed"].append(name)
        for name, site in sites.items():
            if name not in self.sites:
                result["added"].append(name)
            elif site != self.sites[name]:
                result["changed"].append(name)
            else:
                continue
            await self.define(site)
        fixed = ("name", "state_dir", "control", "access_log")
        result["restart"] = [
            f"node.{key}" for key in fixed if getattr(settings, key) != getattr(self.settings, key)
        ]
        self.settings = replace(settings, **{key: getattr(self.settings, key) for key in fixed})
        self.plane.max_connections = self._affordable(settings.max_connections)
        self.plane.held.max_requests = settings.max_held
        self.plane.held.max_bytes = settings.max_held_bytes
        self.emit(event="reloaded", **result)
        return result

    # Desired and observed

    def site(self, name: str) -> Site:
        """The definition of a site."""
        return self.sites[name]

    def placement(self, name: str) -> Placement:
        """Where a site is placed."""
        return self.placements[name]

    def adopt(self, placement: Placement) -> None:
        """Make the workers converge to ``placement``; an older one than known is ignored."""
        name = placement.site
        known = self.placements.get(name)
        if known is not None and known.generation > placement.generation:
            return
        self.placements[name] = placement
        site = self.sites.get(name)
        if site is None:
            return
        self.plane.apply(Desired(site, placement))
        self._watch_expiry(placement)
        if placement != known:
            self.emit(
                event="placed",
                site=name,
                backend=placement.backend,
                by=placement.by,
                mode=placement.mode.value,
                generation=placement.generation,
            )

    def observed(self, name: str) -> Observed:
        """What the workers report of a site.

        :raise KeyError: there is no such site.
        """
        observed = self.plane.observed(name)
        if observed is None:
            raise KeyError(name)
        return observed

    def changed(self, name: str) -> Deferred[Outcome]:
        """Fires when what is reported of a site may have changed."""
        return self._on_change.wait(name)

    def cut(self, name: str) -> int:
        """Break off what is in flight for a site; return how many requests that were."""
        return self.plane.cut(name)

    def check(self, site: str, backend: str) -> Deferred[None]:
        """Ask a backend's servers past the gate; fails unless one of them is well."""
        return Deferred.fromCoroutine(self._check(self.sites[site], backend))

    async def _check(self, site: Site, backend: str) -> None:
        config = site.backends[backend]
        timeout = config.health.timeout if config.health is not None else CHECK_TIMEOUT
        host = site.hosts[0].removeprefix("*.")
        results = await DeferredList(
            [
                check(self.reactor, server, config.health, host, timeout)
                for server in config.servers
            ],
            consumeErrors=True,
        )
        if not any(success for success, _ in results):
            why = "; ".join(
                f"{server}: {getattr(failure, 'value', failure)}"
                for server, (_, failure) in zip(config.servers, results, strict=True)
            )
            raise Unwell(f"no server of {backend} is well: {why}")

    async def hold(
        self,
        name: str,
        *,
        by: str,
        timeout: float,
        force: bool,
        expires: float | None,
        then: Literal["refuse", "resume"],
        progress: Callable[[str, str], None],
    ) -> Receipt:
        """Hold a site until nothing of it is in flight anywhere.

        :param timeout: seconds that requests in flight may take to finish.
        :param force: cut them then, instead of undoing the hold.
        :param expires: unix time at which the hold ends, with what ``then`` says.
        :raise NotDrained: they have not finished; the site is as it was.
        :raise Overtaken: somebody else has changed the placement meanwhile.
        :raise Conflict: somebody else was first.
        """
        began = self.reactor.seconds()
        before = self.placements[name]
        wanted = replace(before, mode=Mode.HOLDING, by=by, expires=expires, then=then)
        mine = before.mode is not Mode.HOLDING
        hold = before
        if mine or (before.expires, before.then) != (expires, then):
            hold = await self.registry.place(wanted, before.generation)
            self.adopt(hold)
        progress("drain", "let requests in flight finish")
        closed = 0
        try:
            await self._drained(hold, timeout)
        except NotDrained as problem:
            if not force:
                if mine:
                    await self._open(hold, before)
                    raise
                raise NotDrained(f"{problem}; the site was held before and still is") from None
            closed = self.cut(name)
            progress("cut", f"cut {closed} that did not finish")
            await self._drained(hold, CUT_GRACE)
        observed = self.observed(name)
        report = Report(
            node=self.settings.name,
            worker="daemon",
            generation=observed.generation,
            in_flight=observed.in_flight,
            connections=observed.connections,
            held=observed.held,
        )
        return Receipt(
            site=name,
            backend=hold.backend,
            generation=hold.generation,
            drained_in=round(self.reactor.seconds() - began, 6),
            workers=(report,),
            closed=closed,
        )

    async def release(self, name: str, by: str) -> Placement:
        """Open a site's gate, whatever state it is in.

        A migration that has not committed is rolled back by it, a pause that still
        drains is called off.

        :raise Conflict: somebody else was first.
        """
        migration = self.migrations.get(name)
        if migration is not None:
            migration.stop(f"the site was resumed by {by!r}")
            await migration.ended.wait()
        placement = self.placements[name]
        if placement.mode is Mode.OPEN:
            return placement
        return await self._open(placement, replace(placement, by=by, expires=None))

    async def _open(self, held: Placement, after: Placement) -> Placement:
        placed = await self.registry.place(replace(after, mode=Mode.OPEN), held.generation)
        self.adopt(placed)
        return placed

    async def _drained(self, hold: Placement, timeout: float) -> None:
        """Wait until a site is drained at the generation of ``hold``."""
        name = hold.site
        deadline = self.reactor.seconds() + timeout
        while True:
            stored = self.placements[name]
            if stored.generation != hold.generation:
                raise Overtaken(stored)
            observed = self.observed(name)
            if observed.drained and observed.generation >= hold.generation:
                return
            left = deadline - self.reactor.seconds()
            if left <= 0:
                raise NotDrained(
                    f"after {timeout:g} s there were still {observed.in_flight} requests in"
                    f" flight, {observed.tunnels} upgraded connections and"
                    f" {observed.connections} connections to servers"
                )
            await self._on_change.wait(name, left)

    def _watch_expiry(self, placement: Placement) -> None:
        """A hold that was to end with a resume: end it."""
        name = placement.site
        call = self._expiries.pop(name, None)
        if call is not None:
            call.cancel()
        if (
            placement.mode is Mode.HOLDING
            and placement.expires is not None
            and placement.then == "resume"
            and name not in self.migrations
        ):
            delay = max(0.0, placement.expires - time.time())
            self._expiries[name] = self.reactor.callLater(delay, self._expired, name)

    def _expired(self, name: str) -> None:
        del self._expiries[name]
        deferred = Deferred.fromCoroutine(self.release(name, "the end of the pause"))
        deferred.addErrback(
            lambda failure: log.failure("{site}: could not be resumed", failure, site=name)
        )

    # Watching

    def watch(self, callback: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Have ``callback`` called with every event; return what ends that."""
        key = object()
        self._watchers[key] = callback
        return lambda: self._watchers.pop(key, None) and None

    def emit(self, **event: Any) -> None:
        """Tell everybody who watches."""
        if self._watchers:
            event["time"] = round(time.time(), 6)
            for callback in list(self._watchers.values()):
                callback(event)

    def _changed(self, name: str) -> None:
        self._on_change.fire(name)
        if not self._watchers:
            return
        observed = self.plane.observed(name)
        if observed is None or self._states.get(name) == observed.state:
            return
        self._states[name] = observed.state
        self.emit(
            event="state",
            site=name,
            state=observed.state,
            generation=observed.generation,
            backend=observed.backend,
            held=observed.held,
            in_flight=observed.in_flight,
            trouble=observed.trouble,
        )

    @property
    def pid(self) -> int:
        """Of this process."""
        return os.getpid()
