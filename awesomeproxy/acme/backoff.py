"""How long to wait after a failure, and then after the next.

A minute, then twice as long each time, up to twelve hours: an authority counts failed
attempts and shuts out for a week who has too many (Let's Encrypt allows five failed
validations of an account and host an hour).
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from awesomeproxy.acme.errors import AcmeError

SHORTEST = 60.0
LONGEST = 12 * 3600.0
LONGEST_ASKED = 7 * 86400.0  # whatever Retry-After says: a slip there is not to be for ever


def after(failures: int, error: AcmeError, random: float) -> float:
    """Seconds to wait after so many ``failures`` in a row, the last of which was ``error``.

    :param random: from 0 to 1, so that not all come back at the same moment.
    """
    doublings = 60 if error.lasting else min(failures - 1, 60)
    wait: float = min(SHORTEST * 2.0**doublings, LONGEST) * (1 - random / 4)
    return max(wait, min(error.retry_after, LONGEST_ASKED))


class Backoff:
    """Failures in a row, and the wait after the latest."""

    def __init__(self, clock: IReactorTime, random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._until = 0.0
        self.failures = 0
        self.error = ""  # of the latest failure; empty: the latest was none

    @property
    def left(self) -> float:
        """Seconds still to wait."""
        return max(0.0, self._until - self._clock.seconds()) if self.failures else 0.0

    def fail(self, error: AcmeError) -> float:
        """Take a failure in; return the seconds to wait."""
        self.failures += 1
        self.error = str(error)
        wait = after(self.failures, error, self._random())
        self._until = self._clock.seconds() + wait
        return wait

    def clear(self) -> None:
        """Begin anew: it has gone well, or something has changed that may help."""
        self.failures = 0
        self.error = ""
