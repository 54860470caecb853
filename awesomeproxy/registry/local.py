"""The registry of a node by itself: an SQLite file in the state directory.

A thread of its own does all that touches the file, one thing after the other,
so that the reactor never waits for a disk.  What the reactor asks goes in on a
queue; what the thread has done comes back as a call in the reactor, first to
the subscribers and then to whoever asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from awesomeproxy.registry.book import HISTORY, Book
from awesomeproxy.registry.booked import BookedRegistry, Care, R
from awesomeproxy.registry.interface import RegistryError
from awesomeproxy.registry.statefile import StateFile


class LocalRegistry(BookedRegistry):
    """The registry in a file; made by :meth:`open`."""

    def __init__(
        self,
        reactor: Any,
        thread: ThreadPool,
        trigger: object,
        file: StateFile,
        now: Callable[[], float],
        keep: int,
    ) -> None:
        super().__init__(Book(file.store, now, keep))
        self._reactor = reactor
        self._thread = thread
        self._trigger = trigger  # stops the thread when the reactor is stopped
        self._file = file
        self._open = True
        self._closers: list[Deferred[None]] = []  # those who wait for it to be closed

    @classmethod
    def open(
        cls,
        reactor: Any,
        path: str | os.PathLike[str],
        now: Callable[[], float] = time.time,
        keep: int = HISTORY,
    ) -> Deferred[LocalRegistry]:
        """Open the registry at ``path``; where there is none, or an empty file, make one.

        ``reactor`` is the running reactor (IReactorCore and IReactorFromThreads),
        ``now`` answers with unix time, ``keep`` is how many migrations are
        remembered.

        Fails with :class:`.interface.RegistryError` if another process has the
        directory, or if the file is not a sound registry, which is then left
        as it is.
        """
        return Deferred.fromCoroutine(cls._opened(reactor, Path(path), now, keep))

    @classmethod
    async def _opened(
        cls, reactor: Any, path: Path, now: Callable[[], float], keep: int
    ) -> LocalRegistry:
        thread = ThreadPool(1, 1, "registry")
        thread.start()
        # A thread that nobody stops would keep the process from ending.
        trigger = reactor.addSystemEventTrigger("during", "shutdown", thread.stop)
        files: list[StateFile] = []
        try:
            await deferToThreadPool(reactor, thread, lambda: files.append(StateFile.open(path)))
        except BaseException:
            reactor.removeSystemEventTrigger(trigger)
            thread.stop()
            for file in files:  # opened after all, for someone who has cancelled
                file.close()
            raise
        return cls(reactor, thread, trigger, files[0], now, keep)

    def _read(self, work: Callable[[], R]) -> Deferred[R]:
        if not self._open:
            return fail(self._closed())
        return self._in_thread(lambda: self._file.read(work))

    def _write(self, care: Care, sites: Sequence[str], work: Callable[[], R]) -> Deferred[R]:
        if not self._open:
            return fail(self._closed())

        def change() -> R:
            result = self._file.write(care, work)
            if sites:
                self._reactor.callFromThread(self._tell, sites)
            return result

        return self._in_thread(change)

    def close(self) -> Deferred[None]:
        if not self._open and not self._closers:
            return succeed(None)
        closed: Deferred[None] = Deferred()
        self._closers.append(closed)
        if self._open:
            self._open = False
            # The thread comes to this after everything that was asked before.
            self._in_thread(self._file.close).addBoth(self._done)
        return closed

    def _done(self, result: Any) -> None:
        """The file is closed: let go of the thread, and tell those who wait for that."""
        if not self._thread.joined:
            self._reactor.removeSystemEventTrigger(self._trigger)
            self._thread.stop()
        closers, self._closers = self._closers, []
        for closed in closers:
            closed.callback(result)

    def _in_thread(self, work: Callable[[], R]) -> Deferred[R]:
        return deferToThreadPool(self._reactor, self._thread, work)

    def _closed(self) -> RegistryError:
        return RegistryError(f"{self._file.path}: the registry is closed")
