"""What a migration waits for, and what may break that off.

Until the commit it may be stopped at any time, and whatever it waits for is cancelled then.
What it does from there on, or to undo itself, is *final*: it is done however often that takes,
and nothing but the end of the daemon breaks it off, which leaves it to whoever comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater

from awesomeproxy.model import Ledger
from awesomeproxy.registry.interface import RegistryError

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, None]]
Trouble = Callable[[str, Exception], None]  # told what could not be done, and why

TRY_AGAIN = 1.0  # seconds between tries of what has to be done in the end
TIDY_TRIES = 3  # of what hurts nobody if it is not done
LEAVE_IN = 10.0  # seconds that a daemon which stops gives what it still has to be done


class RolledBack(Exception):
    """The migration was undone; the message says why.

    ``step`` is how far it had come, and ``ledger`` what it did.
    """

    def __init__(self, reason: str, step: str = "", ledger: Ledger | None = None) -> None:
        super().__init__(reason)
        self.step = step
        self.ledger = ledger


class LeftUnfinished(Exception):
    """The migration is ended by somebody else: the daemon stops before it could be, or another
    node has taken it over."""


class Waiting:
    """How one migration waits."""

    def __init__(self, reactor: Any, trouble: Trouble) -> None:
        """
        :param trouble: told the step and the problem, if what is final has failed.
        """
        self._reactor = reactor
        self._trouble = trouble
        self.stopped = ""  # why it has to be rolled back
        self.final = False  # nothing stops it any more
        self.hurried = False  # but somebody waits for its end
        self.leaving = False  # and need not see it: the daemon stops
        self._for: Deferred[Any] | None = None
        self._enduring: Deferred[Any] | None = None  # what nothing but the daemon's end stops
        self._timers: list[IDelayedCall] = []

    def __repr__(self) -> str:
        return f"<Waiting: {'final' if self.final else self.stopped or 'may be stopped'}>"

    def stop(self, reason: str, *, leave: bool = False) -> bool:
        """Roll back, for ``reason``; False if it is too late for that.

        :param leave: if undoing it cannot be done now, let the next daemon do it.
        """
        if leave and not self.leaving:
            self.leaving = True
            self.later(LEAVE_IN, self._give_up)
        if self.final:
            self.hurried = True
            return False
        if not self.stopped:  # a second time would break off how the step ends
            self.stopped = reason
            if self._for is not None:
                self._for.cancel()
        return True

    def _give_up(self) -> None:
        self.later(TRY_AGAIN, self._give_up)  # there may be more
        if self._enduring is not None:
            self._enduring.cancel()

    def later(self, delay: float, function: Callable[..., Any], *args: Any) -> IDelayedCall:
        """Call it in ``delay`` seconds, unless the migration has ended by then."""
        timer: IDelayedCall = self._reactor.callLater(delay, function, *args)
        self._timers.append(timer)
        return timer

    def end(self) -> None:
        """Call nothing later any more."""
        for timer in self._timers:
            if timer.active():
                timer.cancel()

    # Until the commit

    async def guard(self, deferred: Deferred[T]) -> T:
        """Wait for ``deferred``, unless the migration is stopped meanwhile.

        :raise RolledBack: it is, or that has failed.
        :raise RegistryError: that has failed for the registry's sake.
        """
        self._for = deferred
        try:
            if self.stopped:
                deferred.cancel()
            result = await deferred
        except CancelledError:
            raise RolledBack(self.stopped or "cancelled") from None
        except RegistryError:
            raise
        except Exception as problem:
            raise RolledBack(self.stopped or str(problem)) from problem
        finally:
            self._for = None
        if self.stopped:
            raise RolledBack(self.stopped)
        return result

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """The same of what is not begun if it is stopped already."""
        if self.stopped:
            work.close()
            raise RolledBack(self.stopped)
        return await self.guard(Deferred.fromCoroutine(work))

    # What is final

    async def endure(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what has to be done though the migration may be stopped, but for a time."""
        self._enduring = Deferred.fromCoroutine(work)
        try:
            result: T = await self._enduring
        finally:
            self._enduring = None
        return result

    async def until_done(self, step: str, work: Work) -> None:
        """Do what has to be done, however often that takes.

        :raise LeftUnfinished: the daemon stops.
        """
        while True:
            try:
                return await self.endure(work())
            except Exception as problem:
                self._trouble(step, problem)
                if self.leaving:
                    raise LeftUnfinished(str(problem)) from None
            await deferLater(self._reactor, TRY_AGAIN)

    async def tidy(self, step: str, work: Work) -> None:
        """Do what would be good to be done, but hurts nobody if it is not."""
        for number in range(TIDY_TRIES):
            try:
                return await self.endure(work())
            except Exception as problem:
                self._trouble(step, problem)
                if self.hurried or number + 1 == TIDY_TRIES:
                    return
            await deferLater(self._reactor, TRY_AGAIN)
