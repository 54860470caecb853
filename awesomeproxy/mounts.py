"""Tells when a filesystem is mounted, and when it is not any more; without polling.

The kernel says when its mount table has changed (:mod:`.mounttable`), but not what.  So in
a thread it is looked what is at the paths that are watched now, which costs next to nothing.
Where that does not tell all, because something may be hidden or the kernel is too old, the
table is read from its beginning; with 100,000 mounts that takes a tenth of a second or two.
A change meanwhile, or just after, makes for one more look.

Between two looks there is a rest, several times as long as what the last one has cost with
the reading: however busily others mount, the watcher uses only a small part of one core.

What is told is the state, not what has happened: if something is unmounted and mounted
again at once, that may be told as two changes or as none.  Who waits looks first::

    if not mounts.mounted("blog"):
        await mounts.on_mount.wait("blog", timeout=60)

Where there is no such table, the paths themselves are looked at, every few seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from awesomeproxy.happenings import Happenings, Once
from awesomeproxy.model import Outcome
from awesomeproxy.mountinfo import Mounting, MountState, Sight, Watchlist
from awesomeproxy.mounttable import TABLE, Alarm, look, read_paths, read_table

log = Logger()

REST = 4.0  # times the CPU time of a look or reading: then it has at most a fifth of a core
LEAST_REST = 0.02  # seconds; who is at a path all the time is in the way of its unmounting
RETRY = 1.0  # seconds until the next try when the table cannot be read
LOOK_EVERY = 5.0  # seconds between looks where there is no table
UNKNOWN = MountState(False, why="it has not been looked at yet")

_Read = Callable[[Watchlist, Sight], Sight]
OnChange = Callable[[str, MountState], object]


class Mounts:
    """The filesystems that are watched, and how it stands with them."""

    def __init__(
        self,
        reactor: Any,
        filesystems: Mapping[str, Mounting],
        on_change: OnChange = lambda name, state: None,
        table: str = TABLE,
    ) -> None:
        """
        :param filesystems: those to watch, by name.
        :param on_change: called with a name and its state whenever that is another than before,
            and when it is known for the first time.
        :param table: the file that has the mount table.
        """
        self._reactor = reactor
        self._on_change = on_change
        self._table = table
        self._watchlist = Watchlist(filesystems)
        self._states = dict.fromkeys(filesystems, UNKNOWN)
        self._last = Sight({})
        self.on_mount = _Known(reactor, self._states)
        self.on_unmount = _Known(reactor, self._states)
        self.looks = 0  # how often it was looked
        self.readings = 0  # how often the table was read for that
        self._alarm: Alarm | None = None
        self._polling: LoopingCall | None = None
        self._looked = Once()
        self._running = False
        self._busy = False  # looking, or resting after it
        self._again = False
        self._rest: Any = None
        self._problem = ""  # the table could not be read

    def __repr__(self) -> str:
        count = sum(state.mounted for state in self._states.values())
        return f"<Mounts: {count} of {len(self._states)} mounted>"

    # What is watched

    def start(self) -> Deferred[Outcome]:
        """Begin to watch.

        :return: fires when all states are known; ``REFUSED``: it was stopped before that.
        """
        self._running = True
        if self._looked.happened:
            self._looked = Once()
        try:
            self._alarm = Alarm(self._table, self._look)
        except FileNotFoundError:
            self._polling = LoopingCall(self._look)
            self._polling.clock = self._reactor
            self._polling.start(LOOK_EVERY, now=False)
        else:
            self._reactor.addReader(self._alarm)
        # Not before: what changes from now on is told, and what changed before is read.
        self._look()
        return self._looked.wait()

    def stop(self) -> None:
        """Watch no longer; who waits is told ``REFUSED``."""
        self._running = False
        if self._alarm is not None:
            self._reactor.removeReader(self._alarm)
            self._alarm.close()
            self._alarm = None
        if self._polling is not None:
            self._polling.stop()
            self._polling = None
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
            self._busy = False
        self._looked.fire(Outcome.REFUSED)
        self.on_mount.fire_all(Outcome.REFUSED)
        self.on_unmount.fire_all(Outcome.REFUSED)

    def watch(self, filesystems: Mapping[str, Mounting]) -> Deferred[Outcome]:
        """Watch these instead.  Who waits for one that is not among them is told ``REFUSED``.

        The state of those that are new, or are now something else, is unknown at first, and
        they do not count as mounted.

        :return: as :meth:`start` does.
        """
        before, self._watchlist = self._watchlist.filesystems, Watchlist(filesystems)
        self._last = Sight({})  # the same name may be another path now
        for name in before.keys() - filesystems.keys():
            del self._states[name]
        for name, each in filesystems.items():
            if before.get(name) != each:
                self._states[name] = UNKNOWN
        for name in before.keys() - filesystems.keys():
            self.on_mount.fire(name, Outcome.REFUSED)
            self.on_unmount.fire(name, Outcome.REFUSED)
        if self._running:
            if self._looked.happened:
                self._looked = Once()
            self._look()
        return self._looked.wait()

    # How it stands

    def mounted(self, name: str) -> bool:
        """Whether a filesystem is mounted, as far as is known.

        :raise KeyError: it is not watched.
        """
        return self._states[name].mounted

    def state(self, name: str) -> MountState:
        """How it stands with a filesystem, as far as is known.

        :raise KeyError: it is not watched.
        """
        return self._states[name]

    def states(self) -> dict[str, MountState]:
        """How it stands with all of them."""
        return dict(self._states)

    # Looking

    def _look(self) -> None:
        """Look; once more afterwards if that is under way."""
        if self._busy:
            self._again = True
            return
        self._busy, self._again = True, False
        self.looks += 1
        read = self._by_table if self._alarm is not None else self._by_paths
        # A daemon's thread of its own: the reactor's may all be waiting for something.
        threading.Thread(
            target=self._read, args=(read, self._watchlist, self._last), name="mounts", daemon=True
        ).start()

    def _by_table(self, watchlist: Watchlist, last: Sight) -> Sight:
        # Not after the reading: what changes between them has to be seen the next time.
        places = look(self._table, watchlist)
        sight = watchlist.seen(places, last)
        if sight is None:
            self.readings += 1
            sight = watchlist.read(read_table(self._table, watchlist), places)
        return sight

    def _by_paths(self, watchlist: Watchlist, last: Sight) -> Sight:
        return Sight(read_paths(watchlist))

    def _read(self, read: _Read, watchlist: Watchlist, last: Sight) -> None:
        began = time.thread_time()
        result: Sight | Failure
        try:
            result = read(watchlist, last)
        except Exception:
            result = Failure()  # type: ignore[no-untyped-call]
        cost = time.thread_time() - began
        with suppress(OSError):  # the reactor may be gone
            self._reactor.callFromThread(self._took, watchlist, result, cost)

    def _took(self, watchlist: Watchlist, result: Sight | Failure, cost: float) -> None:
        if not self._running:
            self._busy = False
            return
        rest = max(cost * REST, LEAST_REST)
        if isinstance(result, Failure):
            # What was known last stays: nothing says that it is not so any more.
            told, self._problem = self._problem, result.getErrorMessage()
            if self._problem != told:
                log.error(
                    "{table}: what is mounted cannot be read: {problem}; trying again",
                    table=self._table,
                    problem=self._problem,
                )
            self._again, rest = True, RETRY
        else:
            self._problem = ""
        self._rest = self._reactor.callLater(rest, self._rested)
        if watchlist is not self._watchlist:  # and another look has been asked for
            return
        if not isinstance(result, Failure):
            self._last = result
            self._take(result.states)
            if watchlist is self._watchlist:  # still, whatever was done by those who were told
                self._looked.fire()

    def _rested(self) -> None:
        self._rest = None
        self._busy = False
        if self._again:
            self._look()

    def _take(self, states: Mapping[str, MountState]) -> None:
        before = dict(self._states)
        changed = [name for name, state in states.items() if state != before[name]]
        # All of it is known before the first is told, who may well look at the rest.
        self._states.update(states)
        for name in changed:
            if not self._running or self._states.get(name) is not states[name]:
                continue  # watched no more, or not as it was: one who was told has seen to that
            self._tell(name, before[name], states[name])

    def _tell(self, name: str, before: MountState, now: MountState) -> None:
        log.info("{name}: {state}", name=name, state=now.why or "is mounted")
        try:
            self._on_change(name, now)
        except Exception:  # the others have nothing to do with it
            log.failure("{name}: telling of its state has failed", name=name)
        if now.mounted and not before.mounted:
            self.on_mount.fire(name)
        elif not now.mounted and (before.mounted or before is UNKNOWN):
            self.on_unmount.fire(name)


class _Known(Happenings[str]):
    """Happenings of what is watched; a wait for anything else is ``REFUSED``."""

    def __init__(self, clock: IReactorTime, names: Container[str]) -> None:
        super().__init__(clock)
        self._names = names

    def wait(self, key: str, timeout: float | None = None) -> Deferred[Outcome]:
        if key not in self._names:
            return succeed(Outcome.REFUSED)
        return super().wait(key, timeout)
