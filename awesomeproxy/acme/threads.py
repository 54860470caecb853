"""Calls that block, each in a thread that nobody has to wait for.

Twisted's thread pool joins its threads when the reactor stops, so that one call which
waits for an authority would hold up the end of the process; these are daemon threads,
and die with it.  A call that takes too long is left behind the same way: its thread goes
on until its own time-outs end it, and what it returns then is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, TimeoutError

from awesomeproxy.acme.errors import AcmeError

P = ParamSpec("P")
T = TypeVar("T")

TIME = 120.0  # seconds a call may take: a few requests, each of which has its own time-out
LIMIT = 8  # threads at one time: more are there only if calls that were left behind hang


class Threads:
    """Runs what blocks."""

    def __init__(self, reactor: Any, time: float = TIME) -> None:
        """
        :param time: seconds after which a call is left behind.
        """
        self._reactor = reactor
        self._time = time
        self.running = 0

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``function`` returns or raises, called in a thread.

        :raise AcmeError: it takes too long.  A cancelled call is left behind.
        """
        if self.running >= LIMIT:
            raise AcmeError(f"{self.running} earlier calls have not come back", common=True)
        self.running += 1
        result: Deferred[T] = Deferred()

        def leave(tell: Callable[[Any], None], outcome: Any) -> None:
            self.running -= 1
            tell(outcome)

        def run() -> None:
            tell: Callable[[Any], None]
            outcome: Any
            try:
                tell, outcome = result.callback, function(*args, **kwargs)
            except BaseException as error:
                tell, outcome = result.errback, error
            with suppress(OSError):  # the reactor may be gone
                self._reactor.callFromThread(leave, tell, outcome)

        threading.Thread(target=run, name="acme", daemon=True).start()
        result.addTimeout(self._time, self._reactor)
        try:
            return await result
        except TimeoutError:
            raise AcmeError(
                f"the authority has taken more than {self._time:g} s to answer", common=True
            ) from None
