"""The registry's time, by which holds end on all nodes."""

from __future__ import annotations

import time
from collections.abc import Callable

DRIFT = 1e-4  # seconds by which two clocks may come apart in a second; those of computers do less


class RegistryClock:
    """That time, from what the registry has said of it and this machine's monotonic clock."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.monotonic = monotonic
        self._offset = time.time() - monotonic()  # as good as any before it was asked
        self._taken: float | None = None
        self._within = 0.0  # seconds that the offset was off by at the most when it was taken

    def now(self) -> float:
        """Unix time of the registry."""
        return self.monotonic() + self._offset

    def take(self, sent: float, got: float, said: float) -> None:
        """Learn from an answer, if it says more exactly what time it is than what is known.

        :param sent: when it was asked, by the monotonic clock, and ...
        :param got: ... when the answer came.
        :param said: unix time, as the answer has it.
        """
        within = (got - sent) / 2
        if self._taken is not None and within > self._within + DRIFT * (got - self._taken):
            return
        self._taken, self._within = got, within
        self._offset = said - (sent + got) / 2
