"""Trying what may fail: for how long, when again, and how it is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from twisted.internet.task import deferLater

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.shell import ShellError

T = TypeVar("T")

LONG = 7 * 86400.0  # seconds that a copy may take: it is for who has started it to end it
BUSY = 3.0  # seconds of patience where nobody waits
_EVERY = 0.05  # seconds between tries
# The second is what zfs says of a dataset whose receive has been ended just now.
_BUSY = ("busy", "dataset already exists")


async def while_busy(reactor: Any, action: Callable[[], Awaitable[T]], patience: float = BUSY) -> T:
    """What ``action`` returns, as soon as what it needs is not busy any more.

    A process that has been ended, here or at the other end of an ssh, lets go of what it had
    open a little later; and a filesystem in user space is free a little after its unmounting.

    :param patience: seconds until what is busy is taken to stay so.
    :raise ShellError: it has failed otherwise, or for too long.
    """
    return await while_passing(reactor, action, busy, patience)


def busy(problem: Exception) -> bool:
    """Whether a command has failed because somebody uses what it needs."""
    return isinstance(problem, ShellError) and any(word in str(problem) for word in _BUSY)


async def while_passing(
    reactor: Any,
    action: Callable[[], Awaitable[T]],
    passing: Callable[[Exception], bool],
    patience: float,
) -> T:
    """What ``action`` returns, which is tried again as long as it fails for what will pass.

    :param passing: whether a failure is one of those.
    :param patience: seconds until it is taken not to pass.
    :raise Exception: what it has failed with, otherwise or in the end.
    """
    late = reactor.seconds() + patience
    while True:
        try:
            return await action()
        except Exception as problem:
            if not passing(problem) or reactor.seconds() >= late:
                raise
        await deferLater(reactor, _EVERY)


@contextmanager
def explained() -> Iterator[None]:
    """What a command that failed has said is why the step has failed.

    :raise MoverError: in place of a ShellError.
    """
    try:
        yield
    except ShellError as problem:
        raise MoverError(str(problem)) from None
