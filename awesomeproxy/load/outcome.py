"""How a request of the load client ended: exactly one of these for each."""

from __future__ import annotations

import enum


class RequestOutcome(enum.IntEnum):
    """What became of one request.  The numbers are what the result's arrays hold."""

    UNFINISHED = 0  # not ended when the run was cut short, or not ended yet
    OK = 1  # a whole response with an expected status and body
    STATUS = 2  # a whole response with another status
    WRONG_BODY = 3  # an expected status, but not the expected body
    REFUSED = 4  # no connection could be opened for it
    RESET = 5  # the connection ended before the first byte of a response
    TRUNCATED = 6  # the connection ended in the middle of a response
    TIMED_OUT = 7  # no whole response in time, counted from when it was due
    MALFORMED = 8  # what came back is not HTTP

    @property
    def word(self) -> str:
        """The outcome as people and scripts read it."""
        return self.name.lower().replace("_", " ")

    @property
    def answered(self) -> bool:
        """A whole response came, whatever it said; such a request has a latency."""
        return self in _ANSWERED

    @property
    def failed(self) -> bool:
        """It ended, and not as expected."""
        return self > RequestOutcome.OK


_ANSWERED = frozenset({RequestOutcome.OK, RequestOutcome.STATUS, RequestOutcome.WRONG_BODY})
