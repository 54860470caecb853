"""The processes of the demo: started, watched, and ended with it, whatever happens.

What a process says is kept, the last lines of it: if it dies unasked they tell why.
A session of its own keeps a Ctrl-C in the terminal away from it; should the demo itself
be killed, the kernel ends it (``setpriv --pdeathsig``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from awesomeproxy.happenings import Once
from awesomeproxy.model import Outcome

TAIL = 15  # lines that are shown of a process that has died
PATIENCE = 20.0  # seconds for a process to be ready
GRACE = 5.0  # seconds to end, when asked
SHIELD = (("setsid",), ("setpriv", "--pdeathsig", "TERM", "--"))  # both execute the rest


class ChildFailed(Exception):
    """A process has died unasked, or does not get ready; with the last it said."""


class Child(ProcessProtocol):
    """One process."""

    def __init__(
        self,
        reactor: Any,
        name: str,
        arguments: Sequence[str],
        ready: str,
        on_death: Callable[[ChildFailed], None],
    ) -> None:
        """Start it.

        :param arguments: of the Python interpreter.
        :param ready: what it says when it is ready.
        :param on_death: told when it dies unasked.
        """
        self.name = name
        self.ended = Once()
        self._reactor = reactor
        self._ready_word = ready
        self._ready = Once()
        self._on_death = on_death
        self._lines: deque[str] = deque(maxlen=TAIL)
        self._rest = ""
        self._asked = False  # to end
        shield = [word for command in SHIELD if shutil.which(command[0]) for word in command]
        command = [*shield, sys.executable, *arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._process = reactor.spawnProcess(self, command[0], command, environment)

    def __repr__(self) -> str:
        state = "ended" if self.ended.happened else "ready" if self._ready.happened else "starting"
        return f"<Child {self.name}: {state}>"

    async def ready(self) -> None:
        """Wait until it is ready.

        :raises ChildFailed: if it does not get so.
        """
        late = self._reactor.callLater(PATIENCE, self._ready.fire, Outcome.TIMED_OUT)
        outcome = await self._ready.wait()
        if late.active():
            late.cancel()
        if outcome is Outcome.GONE:
            raise CancelledError
        if outcome is not Outcome.RELEASED:
            self._asked = True  # its death is told here
            why = "has died" if outcome is Outcome.REFUSED else f"is not ready after {PATIENCE:g} s"
            raise self._failure(why)

    async def kill(self) -> None:
        """Kill it, as a power cut would; nothing is left to it to finish."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Ask it to end, and kill it if it does not."""
        late = self._reactor.callLater(GRACE, self._signal, signal.SIGKILL)
        await self._end(signal.SIGTERM)
        if late.active():
            late.cancel()

    async def _end(self, number: signal.Signals) -> None:
        self._asked = True
        self._signal(number)
        await self.ended.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self._process.signalProcess(int(number))

    def _failure(self, why: str) -> ChildFailed:
        said = (
            "\n  ".join(["the last it said:", *self._lines]) if self._lines else "it said nothing"
        )
        return ChildFailed(f"{self.name} {why}; {said}")

    # What the reactor tells of it

    def outReceived(self, data: bytes) -> None:
        """It says something."""
        *lines, self._rest = (self._rest + data.decode("utf-8", "replace")).split("\n")
        self._lines.extend(lines)
        if any(self._ready_word in line for line in lines):
            self._ready.fire()

    def errReceived(self, data: bytes) -> None:
        """It complains; that is kept as well."""
        self.outReceived(data)

    def processEnded(self, reason: Failure) -> None:
        """It has ended, and all that it said is here."""
        was_ready = self._ready.happened
        self._ready.fire(Outcome.REFUSED)
        self.ended.fire()
        if was_ready and not self._asked:
            self._on_death(self._failure(f"has died unasked ({reason.getErrorMessage()})"))
