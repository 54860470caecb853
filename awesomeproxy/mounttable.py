"""The kernel's mount table: when it changes, and what is in it.

That it has changed the kernel says by an exceptional condition (``EPOLLPRI``, with
``EPOLLERR``) of ``/proc/self/mountinfo`` (proc_pid_mounts(5)).  To a reactor that would be
an error.  So the table is put in an epoll descriptor of our own, and the reactor watches
that one: it is readable once for each change, or for several.

The kernel gives the table a page at a time, and it may change between two pages.  What was
opened later knows of that, by the same condition, and then it is read again.

Most changes have nothing to do with what is watched.  So before the table is read it is
looked (:mod:`.mountpoint`) whether there is anything new at the paths.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from awesomeproxy.mountinfo import Mount, Mounting, MountState, Place, Watchlist
from awesomeproxy.mountpoint import Look

TABLE = "/proc/self/mountinfo"
TRIES = 2  # readings in a row of a table that changes meanwhile; the last is taken as it is


@implementer(IReadDescriptor)
class Alarm:
    """Goes off when the mount table has changed.

    The kernel tells each opened table once of a change.  The reactor, asking whether this is
    readable, has it told already: that alone counts, whatever the epoll descriptor has to say
    afterwards.
    """

    def __init__(self, table: str, ring: Callable[[], object]) -> None:
        """
        :param ring: called at each change.
        :raise OSError: ``table`` is not there, or cannot be opened.
        """
        self._ring = ring
        self._file = os.open(table, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._epoll = select.epoll()
            self._epoll.register(self._file, select.EPOLLPRI)
        except OSError:
            os.close(self._file)
            raise

    def fileno(self) -> int:
        """The epoll descriptor's; -1 once it is closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def logPrefix(self) -> str:
        """Where log lines come from."""
        return "mounts"

    def doRead(self) -> None:
        """There was a change."""
        self._epoll.poll(0)  # lest it stay readable, should the kernel not look again by itself
        self._ring()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends."""
        self.close()

    def close(self) -> None:
        """Let go of the descriptors; again is nothing."""
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._file)


def look(table: str, watchlist: Watchlist) -> dict[str, Place]:
    """What is at the paths, if that can be told of all of them without the table; or nothing.

    :param table: of the process in whose mount namespace they are.
    """
    try:
        there = Look(os.path.dirname(table))
        return {name: there.at(way) for name, way in watchlist.ways.items()}
    except OSError:
        return {}


def read_table(path: str, watchlist: Watchlist) -> list[Mount]:
    """What matters of the table, as it was at one moment if it does not change all the time.

    It blocks, and takes a tenth of a second or two for 100,000 mounts.

    :raise OSError: it cannot be read.
    """
    for _ in range(TRIES):
        mounts: list[Mount] = []
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for lines in _parts(file):
                mounts += watchlist.sift(lines)
            changes = select.poll()
            changes.register(file, select.POLLPRI)  # since it was opened
            if not changes.poll(0):
                break
        finally:
            os.close(file)
    return mounts


def _parts(file: int) -> Iterator[list[bytes]]:
    rest = b""
    while part := os.read(file, 1 << 16):  # the kernel gives a page at a time
        lines = (rest + part).split(b"\n")
        rest = lines.pop()
        yield lines


def read_paths(watchlist: Watchlist) -> dict[str, MountState]:
    """The states by the mount points, where there is no table; it blocks."""
    return {name: _look_at(each) for name, each in watchlist.filesystems.items()}


def _look_at(wanted: Mounting) -> MountState:
    if not os.path.ismount(wanted.path):
        return MountState(False, why=f"nothing is mounted on {wanted.path}")
    if wanted.source:
        why = f"whether it is {wanted.source} that is mounted on {wanted.path} cannot be told here"
        return MountState(False, why=why)
    return MountState(True, read_only=bool(os.statvfs(wanted.path).f_flag & os.ST_RDONLY))
