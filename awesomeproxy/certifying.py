"""Keeps a node's certificates as their files are.

Looks at the files every few seconds, in a thread, and whenever it is told that there is
something new.  One look at a time: what has been read is taken before it is read again,
or not at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from awesomeproxy.model import Tls
from awesomeproxy.tls.certificates import Certificates, Reading

log = Logger()


class Certifying:
    """Looks after the files of a node's certificates."""

    def __init__(
        self,
        reactor: Any,
        settings: Tls,
        extra: tuple[str, ...] = (),
        emit: Callable[..., None] = lambda **event: None,
    ) -> None:
        """
        :param extra: further places to look for certificates; they need not exist.
        :param emit: tells everybody who watches, of what is in use and what is wrong.
        """
        self.certificates = Certificates(settings, extra)
        self._reactor = reactor
        self._emit = emit
        self._one = DeferredLock()
        self._stopping = False
        self._hurried = False
        self._timer: IDelayedCall | None = None

    async def start(self) -> None:
        """Read all there is, and go on looking whether it changes."""
        await self._look()
        self._wait()

    async def stop(self) -> None:
        """Look no more; a look that is under way comes to its end."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._one.acquire()
        self._one.release()

    def hurry(self) -> None:
        """Look now, because something is new; if that is being done, look again after it."""
        self._hurried = True
        if self._timer is not None:
            self._timer.reset(0)

    async def _look(self) -> None:
        async with self.reading() as take:
            take()

    @asynccontextmanager
    async def reading(self, settings: Tls | None = None) -> AsyncIterator[Callable[[], list[str]]]:
        """Read what has changed; nothing else is read until what comes out of it is decided.

        :param settings: those that shall be used from now on; None: the present ones.
        :return: what to call to use what was read; if it is not called, nothing has changed.
            It returns the files of certificates that are used from then on, or no more.
        """
        await self._one.acquire()
        try:
            pool = self._reactor.getThreadPool()
            read = self.certificates.read
            found: Reading = await deferToThreadPool(self._reactor, pool, read, settings)
            yield lambda: self._take(found)
        finally:
            self._one.release()

    def _take(self, reading: Reading) -> list[str]:
        certificates = self.certificates
        used = certificates.pairs()
        before = certificates.version, certificates.problems
        for problem in certificates.take(reading):
            log.error("{problem}", problem=problem)
        if certificates.version != before[0]:
            log.info("certificates in use: {count}", count=len(certificates))
        if (certificates.version, certificates.problems) != before:
            self._emit(
                event="certificates",
                count=len(certificates),
                problems=list(certificates.problems),
            )
        now = certificates.pairs()
        return sorted(path for path in used | now if used.get(path) is not now.get(path))

    def _wait(self) -> None:
        if not self._stopping:
            pause = 0.0 if self._hurried else self.certificates.settings.check_every
            self._timer = self._reactor.callLater(pause, self._due)

    def _due(self) -> None:
        self._timer = None
        self._hurried = False
        looking = Deferred.fromCoroutine(self._look())
        looking.addErrback(lambda failure: log.failure("certificates cannot be looked at", failure))
        looking.addCallback(lambda _: self._wait())
