"""Keeps a valid certificate for every site that wants one.

It is told which sites there are, and looks at what is on disk: whose certificate is
missing, is for other hosts, comes from another authority or is near its end is due.  One
order is under way at a time, those first that have failed least often, so that a site
that cannot be proved keeps nobody waiting.  After a failure a site waits (see
:mod:`.backoff`); after one that would befall every site, they all do.

Nothing else waits for any of this: until there is a certificate, a site has none, or the
one it had.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from awesomeproxy.acme.backoff import Backoff
from awesomeproxy.acme.certificate import Certificate
from awesomeproxy.acme.errors import AcmeError
from awesomeproxy.acme.obtaining import obtain
from awesomeproxy.acme.status import State, Status
from awesomeproxy.acme.store import Store
from awesomeproxy.acme.threads import Threads
from awesomeproxy.model import Acme, Site
from awesomeproxy.proxy.clock import SteadyClock

log = Logger()

PACE = 3600.0  # seconds between looks, at the most: the time of day may be set meanwhile
JITTER = 0.1  # of a wait, added at random: nodes that start together shall not stay together
NO_AUTHORITY = "nothing says who issues certificates; add an [acme] table to the configuration"
STILL_DUE = (
    "what was issued is for other hosts, or about to end; see that this machine's clock is right"
)


@dataclass
class Want:
    """A site that wants a certificate."""

    hosts: tuple[str, ...]
    trouble: Backoff
    certificate: Certificate | None = None


class Keeper:
    """Obtains and renews certificates."""

    def __init__(
        self,
        reactor: Any,
        acme: Acme | None,
        path: Path,
        challenges: MutableMapping[bytes, bytes],
        *,
        on_issued: Callable[[str], None] = lambda site: None,
        clock: IReactorTime | None = None,
        now: Callable[[], float] = time.time,
        random: Callable[[], float] = random.random,
    ) -> None:
        """
        :param path: of the directory to keep everything in.
        :param challenges: what is served, by path, whichever site is asked for.
        :param on_issued: called with the site's name when its file is new.
        :param clock: for waits, instead of one that cannot be set back.
        :param now: the time of day, which certificates go by.
        :param random: from 0 to 1.
        """
        self.store = Store(path)
        self._reactor = reactor
        self._acme = acme
        self._challenges = challenges
        self._on_issued = on_issued
        self._clock = clock or SteadyClock(reactor)
        self._now = now
        self._random = random
        self.threads = Threads(reactor)
        self._wants: dict[str, Want] = {}
        self._common = Backoff(self._clock, random)  # what would befall every site
        self._running = False
        self._ordering = ""
        self._order: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None

    def __repr__(self) -> str:
        return f"<Keeper of {len(self._wants)} certificates, ordering {self._ordering or 'none'}>"

    # What is wanted

    def start(self) -> None:
        """Begin to order what is due; challenges are served from now on."""
        self._running = True
        try:
            self.store.tidy(self._wants, self._now())
        except OSError as error:
            log.error("{path}: cannot be tidied: {error}", path=self.store.path, error=error)
        self._look()

    def stop(self) -> None:
        """Order nothing any more; an order that is under way is abandoned."""
        self._running = False
        self._abandon()
        self._sleep(None)

    def configure(self, acme: Acme | None) -> None:
        """Take over what the configuration says now; what was wrong may be mended."""
        if acme != self._acme:
            self._acme = acme
            for want in self._wants.values():
                want.trouble.clear()
            self._abandon()
        self._common.clear()
        self._look()

    def define(self, site: Site) -> None:
        """Take over the definition, new or changed, of a site."""
        if not site.tls.acme:
            self.undefine(site.name)
            return
        want = self._wants.get(site.name)
        if want is not None and set(want.hosts) == set(site.hosts):
            return
        if self._ordering == site.name:
            self._abandon()
        self._wants[site.name] = Want(
            site.hosts, Backoff(self._clock, self._random), self._stored(site.name)
        )
        self._look()

    def undefine(self, name: str) -> None:
        """A site wants no certificate any more."""
        if self._wants.pop(name, None) is None:
            return
        if self._ordering == name:
            self._abandon()
        try:
            self.store.retire(name)
        except OSError as error:
            log.error("{site}: its certificate stays: {error}", site=name, error=error)
        self._look()

    def _stored(self, name: str) -> Certificate | None:
        try:
            return self.store.certificate(name)
        except AcmeError as error:
            log.error("{site}: {error}; another is ordered", site=name, error=error)
            return None

    def statuses(self) -> list[Status]:
        """How it stands with every site, by name."""
        return [self._status(name, want) for name, want in sorted(self._wants.items())]

    def status(self, name: str) -> Status | None:
        """How it stands with one site; None: it wants no certificate from here."""
        want = self._wants.get(name)
        return self._status(name, want) if want is not None else None

    def _status(self, name: str, want: Want) -> Status:
        wait = self._wait(want)
        error = want.trouble.error
        due = self._due(want)
        if due and not error:  # what befalls all troubles only who needs something
            error = self._common.error or (NO_AUTHORITY if self._acme is None else "")
        if name == self._ordering:
            state = State.ORDERING
        elif not due:
            state = State.VALID
        else:
            state = State.WAITING if error else State.QUEUED
        return Status(
            name,
            want.hosts,
            state,
            want.certificate.ends if want.certificate is not None else None,
            self._now() + wait if 0 < wait < inf else None,
            error,
            want.trouble.failures,
        )

    def renewed(self) -> set[str]:
        """The files of those certificates that will be renewed in time, as far as we know."""
        return {
            str(self.store.file(status.site))
            for status in self.statuses()
            if not status.troubled and self._acme is not None
        }

    # What is due

    def _renewal(self, want: Want) -> float:
        """Seconds until a site's certificate is to be renewed; 0: now, or there is none."""
        known, acme = want.certificate, self._acme
        if known is None or known.hosts != set(want.hosts):
            return 0.0
        if acme is None:
            return inf
        if known.directory != acme.directory:
            return 0.0
        return max(0.0, known.due(acme.renew_before) - self._now())

    def _due(self, want: Want) -> bool:
        return self._renewal(want) == 0

    def _wait(self, want: Want) -> float:
        """Seconds until something is to be done for a site."""
        if self._acme is None:
            return inf
        return max(self._renewal(want), want.trouble.left, self._common.left)

    def _look(self) -> None:
        """Begin the order that is due, or wait for the next."""
        if not self._running or self._order is not None:
            return
        self._sleep(None)
        waits = {name: self._wait(want) for name, want in self._wants.items()}
        due = [name for name, wait in waits.items() if wait == 0]
        if due:
            self._begin(min(due, key=lambda name: self._wants[name].trouble.failures))
        elif waits:
            wait = min(PACE, *waits.values())
            self._sleep(wait * (1 + JITTER * self._random()))

    def _sleep(self, wait: float | None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if wait is None else self._clock.callLater(wait, self._look)

    # Ordering

    def _begin(self, name: str) -> None:
        self._ordering = name
        order = Deferred.fromCoroutine(self._attempt(name, self._wants[name]))
        self._order = order
        order.addBoth(self._ended, order)

    def _ended(self, result: object, order: Deferred[None]) -> None:
        if isinstance(result, Failure):
            log.failure("{site}: the order has failed", result, site=self._ordering)
        if self._order is order:  # and was not abandoned
            self._order, self._ordering = None, ""
            self._look()

    def _abandon(self) -> None:
        order, self._order, self._ordering = self._order, None, ""
        if order is not None:
            order.cancel()

    async def _attempt(self, name: str, want: Want) -> None:
        acme = self._acme
        assert acme is not None
        try:
            want.certificate = await self._obtain(acme, name, want)
        except CancelledError:
            return
        except AcmeError as error:
            self._failed(name, want, error)
        except Exception as error:
            log.failure("{site}: the order of a certificate has failed", site=name)
            self._failed(name, want, AcmeError(f"{type(error).__name__}: {error}"))
        else:
            self._took(name, want)

    def _took(self, name: str, want: Want) -> None:
        self._common.clear()
        if self._due(want):  # to order the next at once would go on for ever
            self._failed(name, want, AcmeError(STILL_DUE))
        else:
            want.trouble.clear()
            log.info(
                "{site}: has a certificate for {hosts}", site=name, hosts=", ".join(want.hosts)
            )
        self._on_issued(name)

    def _failed(self, name: str, want: Want, error: AcmeError) -> None:
        told = (want.trouble.error, self._common.error)
        if error.common:
            wait = self._common.fail(error)
        else:
            self._common.clear()
            wait = want.trouble.fail(error)
        # Loudly once: the state stays to be seen, but a log is not the place to repeat it.
        (log.info if str(error) in told else log.error)(
            "{site}: {lacks}: {error}; next try in {wait:.0f} s",
            site=name,
            lacks=_lacks(want.certificate),
            error=error,
            wait=wait,
        )

    async def _obtain(self, acme: Acme, name: str, want: Want) -> Certificate:
        """A new certificate, on disk.

        :raise AcmeError: there is none.
        """
        twin = self._twin(want)
        if twin is not None:
            return await self.threads.call(self.store.copy, twin, name)
        chain, key = await obtain(
            self._reactor, self.threads, acme, self.store, self._challenges, want.hosts
        )
        return await self.threads.call(
            self.store.save_certificate, name, acme.directory, chain, key
        )

    def _twin(self, want: Want) -> str | None:
        """A site with the same hosts whose certificate is not due, if there is one.

        Sites may share their hosts and differ in their paths; authorities issue only a few
        certificates a week for the same hosts.
        """
        for name, other in self._wants.items():
            if set(other.hosts) == set(want.hosts) and not self._due(other):
                return name
        return None


def _lacks(certificate: Certificate | None) -> str:
    if certificate is None:
        return "there is no certificate"
    ends = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(certificate.ends))
    return f"there is no new certificate; the present one ends on {ends}"
