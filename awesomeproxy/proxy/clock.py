"""A clock that nobody can set back.

The reactor's own is the time of day, which steps when it is corrected; who has waited
longest, and for how long, must not depend on that.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer


@implementer(IReactorTime)
class SteadyClock:
    """The reactor's timers with monotonic seconds."""

    def __init__(self, reactor: Any) -> None:
        self.callLater = reactor.callLater
        self.getDelayedCalls = reactor.getDelayedCalls

    seconds = staticmethod(time.monotonic)
