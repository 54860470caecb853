"""What anybody can bring about as often as they like, and is to be logged all the same."""

from __future__ import annotations

INTERVAL = 1.0  # seconds from one line to the next, at the least


class Rarely:
    """Counts what happens, and says when it may be told."""

    def __init__(self) -> None:
        self.count = 0  # since the start
        self._told = 0
        self._quiet_until = float("-inf")

    def happened(self, now: float) -> int:
        """It has happened; return how often since it was last told, or 0: do not tell it now.

        :param now: seconds of a clock that is not set back.
        """
        self.count += 1
        if now < self._quiet_until:
            return 0
        self._quiet_until = now + INTERVAL
        since, self._told = self.count - self._told, self.count
        return since
