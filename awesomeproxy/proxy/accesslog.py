"""The access log: one line a request, written in batches.

Fields, separated by single spaces; a quoted one can hold spaces::

    time client site backend server "METHOD target HTTP/v" status bytes held total id

``time`` is UTC with milliseconds; ``bytes`` is what was sent to the client of head and
body; ``held`` and ``total`` are seconds.  A status of 499 is a client that left before
it was answered.

A log that cannot be written (a full disk, a pipe nobody reads) does not stop traffic: a
bounded number of lines is kept, the rest are counted and the count is logged later.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

FLUSH_EVERY = 0.5  # seconds
FLUSH_AT = 64 * 1024  # bytes
KEEP_AT_MOST = 4 * 1024 * 1024  # bytes, while the log cannot be written
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK

log = Logger()


class AccessLog:
    """Appends lines to a file, to standard output (``-``), or nowhere."""

    def __init__(self, clock: IReactorTime, path: str) -> None:
        """
        :raise OSError: the file cannot be opened.
        """
        self._clock = clock
        self._path = path
        self._lines: list[bytes] = []
        self._size = 0
        self._lost = 0
        self._stuck = False  # it could not be written when last that was tried
        self._torn = False  # a line has been written in part
        self._call: IDelayedCall | None = None
        self._second = 0
        self._stamp = b""
        self._fd = -1
        self.enabled = bool(path)
        self.reopen()

    def reopen(self) -> None:
        """Open the file anew, as after it has been rotated away.

        :raise OSError: it cannot be opened; the old one stays in use.
        """
        if not self.enabled:
            return
        if self._path == "-":
            self._fd = 1
            return
        fd = os.open(self._path, FLAGS, 0o640)
        if self._fd >= 0:
            self.flush()
            os.close(self._fd)
        self._fd = fd

    def add(self, line: bytes, wall: Callable[[], float] = time.time) -> None:
        """Log one line; the time is put before it."""
        now = wall()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        line = b"%b.%03dZ %b\n" % (self._stamp, (now - second) * 1000, line)
        self._lines.append(line)
        self._size += len(line)
        if self._call is None:
            self._call = self._clock.callLater(FLUSH_EVERY, self._flush_later)
        elif self._size > FLUSH_AT and not self._stuck:
            self.flush()

    def _flush_later(self) -> None:
        self._call = None
        self.flush()
        if self._lines:
            self._call = self._clock.callLater(FLUSH_EVERY, self._flush_later)

    def flush(self) -> None:
        """Write what has been logged, as far as it can be written now."""
        if not self._lines:
            return
        data = b"".join(self._lines)
        written = self._write(data)
        rest = data[written:]
        self._stuck = bool(rest)
        if written:
            self._torn = data[written - 1 : written] != b"\n"
        if len(rest) > KEEP_AT_MOST:
            torn = rest.index(b"\n") + 1 if self._torn else 0
            self._lost += rest.count(b"\n", torn)
            rest = rest[:torn]
        elif not rest and self._lost:
            log.warn("{lost} lines of the access log could not be written", lost=self._lost)
            self._lost = 0
        self._lines = [rest] if rest else []
        self._size = len(rest)

    def _write(self, data: bytes) -> int:
        written = 0
        # Others write to standard output as well, so it is not ours to set O_NONBLOCK on;
        # but a pipe that is writable takes this much without blocking.
        size = select.PIPE_BUF if self._path == "-" else len(data)
        poll = select.poll()  # select() knows no descriptor above 1023
        poll.register(self._fd, select.POLLOUT)
        try:
            while written < len(data) and poll.poll(0):
                written += os.write(self._fd, data[written : written + size])
        except OSError:
            pass
        return written

    def close(self) -> None:
        """Write what there is and close the file."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self.flush()
        if self._fd > 2:
            os.close(self._fd)
            self._fd = -1
