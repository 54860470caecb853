"""What every test is held to: it leaves nothing behind.

All tests share one running reactor.  A Deferred whose failure nobody looked at, a
delayed call, an open port or connection that one test leaves would pass unnoticed
there, or disturb another test.  Here it is an error of the test that left it.

A test in which failures are *meant* to be logged takes :func:`logged_failures`
and takes them out with ``flush``.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import blockon  # type: ignore[import-untyped]
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

# A connection that the test has closed needs a few turns of the reactor to be gone.
GRACE = 20


@implementer(ILogObserver)
class LoggedFailures:
    """The failures that were logged, by ``log.err``, a Logger, or a dying Deferred."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []

    def __call__(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        if failure is None and event.get("isError"):
            failure = event.get("failure")  # as log.err has it
        if failure is not None:
            self.failures.append(failure)

    def flush(self, *types: type[BaseException]) -> list[Failure]:
        """Take out, as expected, the failures of ``types`` (of any, if none is given)."""
        gc.collect()
        taken = [f for f in self.failures if isinstance(f.value, types or BaseException)]
        self.failures = [f for f in self.failures if f not in taken]
        return taken


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files of each kind, ``test_KIND_...``, evenly over the run.

    Those of a kind need the same, as whole servers, and are neighbours by name; at the same
    time they would want more processors than there are.
    """
    kinds: dict[str, list[Path]] = {}
    for path in dict.fromkeys(item.path for item in items):
        kinds.setdefault(path.stem.split("_")[1], []).append(path)
    alone = [path for paths in kinds.values() if len(paths) == 1 for path in paths]
    several = [paths for paths in kinds.values() if len(paths) > 1]
    places = {
        path: number / len(paths)
        for paths in [*several, alone]
        for number, path in enumerate(paths)
    }
    items.sort(key=lambda item: places[item.path])


def pytest_collection_finish() -> None:
    # All that has been imported stays: out of the way of the collection after each test.
    gc.collect()
    gc.freeze()


@pytest.fixture
def logged_failures() -> Iterator[LoggedFailures]:
    """The failures logged during the test."""
    logged = LoggedFailures()
    globalLogPublisher.addObserver(logged)
    yield logged
    globalLogPublisher.removeObserver(logged)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(logged_failures: LoggedFailures) -> Iterator[None]:
    """Fail a test that leaves failures, delayed calls, connections or ports behind."""
    from twisted.internet import reactor  # not before pytest-twisted has chosen it

    before = set(_in_reactor(reactor))
    yield
    for _ in range(GRACE):
        if before.issuperset(_in_reactor(reactor)):
            break
        blockon(deferLater(reactor, 0))
    gc.collect()
    left = [thing for thing in _in_reactor(reactor) if thing not in before]
    problems = [f"{type(f.value).__name__}: {f.value}" for f in logged_failures.failures]
    problems += [str(thing) for thing in left]
    for thing in left:
        _discard(reactor, thing)
    if problems:
        pytest.fail("the test left behind:\n  " + "\n  ".join(problems), pytrace=False)


def _in_reactor(reactor: Any) -> list[Any]:
    """Its delayed calls, ports and connections, but for those it has for itself."""
    selectables = dict.fromkeys([*reactor.getReaders(), *reactor.getWriters()])
    own = reactor._internalReaders
    return [*reactor.getDelayedCalls(), *(s for s in selectables if s not in own)]


def _discard(reactor: Any, thing: Any) -> None:
    if hasattr(thing, "cancel"):
        thing.cancel()
        return
    reactor.removeReader(thing)
    reactor.removeWriter(thing)
    with contextlib.suppress(Exception):  # what it does about that is not the point
        thing.connectionLost(Failure(ConnectionAborted()))  # type: ignore[no-untyped-call]
