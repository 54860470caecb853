"""Waiting for what should happen at once, in the reactor that all tests share."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater

T = TypeVar("T")

reactor: Any = _reactor
HOST = "127.0.0.1"
PATIENCE = 20.0  # seconds until a test gives up


async def until(happened: Callable[[], T], what: str = "it") -> T:
    """Wait until ``happened`` answers with something true, and answer with that."""
    late = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < late, f"{what} has not happened in {PATIENCE:g} s"
        await deferLater(reactor, 0.005)
    return found


async def until_async(happened: Callable[[], Awaitable[T]], what: str = "it") -> T:
    """The same, of something that has to be awaited to be known."""
    late = time.monotonic() + PATIENCE
    while not (found := await happened()):
        assert time.monotonic() < late, f"{what} has not happened in {PATIENCE:g} s"
        await deferLater(reactor, 0.01)
    return found
