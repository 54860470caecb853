"""Several things done at the same time, and what becomes of the others when one fails."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.python.failure import Failure

T = TypeVar("T")
Work = Coroutine[Any, Any, T] | Deferred[T]


async def together(work: Sequence[Work[T]], *, whole: bool = False) -> list[T]:
    """What all of ``work`` returns, done at the same time.

    The first that fails, or a cancellation, ends the others; nothing is left running.

    :param whole: a failure does not end the others; it is raised when they have ended.
    """
    all_of_it = _Together(work, whole)
    await all_of_it
    problems = sorted(all_of_it.problems, key=lambda each: isinstance(each, CancelledError))
    if problems:
        raise problems[0]
    return [all_of_it.results[index] for index in range(len(work))]


class _Together(Deferred[None]):
    """Fires when all have ended.

    None is cancelled twice: that would break off how it ends what it has started.
    """

    def __init__(self, work: Sequence[Work[Any]], whole: bool) -> None:
        super().__init__()
        self._whole = whole
        self.results: dict[int, Any] = {}
        self.problems: list[BaseException] = []
        self._left = len(work)
        self._ended = False
        self._running = [ensureDeferred(each) for each in work]
        for index, each in enumerate(self._running):
            each.addCallbacks(self._done, self._failed, callbackArgs=(index,))
        if not work:
            self.callback(None)

    def cancel(self) -> None:
        """End all of them, and wait for that."""
        if not self._ended:
            self._ended = True
            for each in self._running:
                each.cancel()

    def _done(self, result: Any, index: int) -> None:
        self.results[index] = result
        self._one_less()

    def _failed(self, failure: Failure) -> None:
        assert failure.value is not None
        self.problems.append(failure.value)
        if not self._whole:
            self.cancel()
        self._one_less()

    def _one_less(self) -> None:
        self._left -= 1
        if not self._left:
            self.callback(None)
