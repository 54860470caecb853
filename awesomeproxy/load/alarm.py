"""A timer finer than the reactor's.

``epoll_wait`` counts in milliseconds and rounds up, so ``callLater`` is late by half
a millisecond on average.  That is as much as a whole request through the proxy takes,
and in an open loop it would be added to every latency: the client would measure
itself.  Linux has timers that are files (``timerfd_create(2)``) and count in
nanoseconds; the reactor reads them like a socket.

Python has them as ``os.timerfd_create`` since 3.13; before, the C library is asked.
Where there are none, ``callLater`` has to do.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

_CLOCK_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK | TFD_CLOEXEC are the same bits


class Alarm(Protocol):
    """Wakes once, some time after it has been set; to set it again moves it."""

    finest: float  # seconds below which it is not worth setting

    def set(self, seconds: float) -> None:
        """Wake in ``seconds``."""

    def cancel(self) -> None:
        """Never wake again."""


def alarm(reactor: Any, wake: Callable[[], None]) -> Alarm:
    """The finest alarm there is."""
    if IReactorFDSet.providedBy(reactor):
        try:
            return KernelAlarm(reactor, wake)
        except (AttributeError, OSError):
            pass
    return ReactorAlarm(reactor, wake)


@implementer(IReadDescriptor)
class KernelAlarm:
    """An alarm that is a file descriptor."""

    finest = 0.0002

    def __init__(self, reactor: Any, wake: Callable[[], None]) -> None:
        """:raises AttributeError, OSError: if the system has no such timers."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._reactor = reactor
        self._wake = wake
        self._when = (ctypes.c_long * 4)()  # struct itimerspec: interval, then first expiry
        reactor.addReader(self)

    def set(self, seconds: float) -> None:
        """Wake in ``seconds``."""
        whole = int(seconds)
        self._when[2] = whole
        self._when[3] = max(1, int((seconds - whole) * 1e9))  # all zero would disarm it
        self._libc.timerfd_settime(self._fd, 0, self._when, None)

    def cancel(self) -> None:
        """Close it."""
        if self._fd >= 0:
            self._reactor.removeReader(self)
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """The descriptor the reactor polls."""
        return self._fd

    def doRead(self) -> None:
        """It has expired."""
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set anew since the poll
        self._wake()

    def logPrefix(self) -> str:
        """What the reactor calls it in an error."""
        return "alarm"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has dropped it, after an error."""
        self.cancel()


class ReactorAlarm:
    """An alarm that is a delayed call."""

    finest = 0.001

    def __init__(self, reactor: Any, wake: Callable[[], None]) -> None:
        self._reactor = reactor
        self._wake = wake
        self._call: IDelayedCall | None = None

    def set(self, seconds: float) -> None:
        """Wake in ``seconds``."""
        self.cancel()
        self._call = self._reactor.callLater(seconds, self._wake)

    def cancel(self) -> None:
        """Forget it."""
        if self._call is not None and self._call.active():
            self._call.cancel()
