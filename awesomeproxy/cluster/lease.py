"""For how long this node may serve without a word of the registry, and what it does then.

It says that it is there five times a lease.  What counts is when it *began* to say so: others
have seen that later at the earliest.  Without an answer

- after 0.6 of a lease it stops what it moves, since others may be about to take that over;
- a node that *holds* when it loses the registry holds everything before that, breaks off what
  is left after 0.85, and its permit ends at 0.9: others leave it out after 1.25;
- a node that *serves on* has a permit that only a frozen process can outlive.

A permit that has ended, because the process was frozen, is renewed only after the registry
was asked whether others have gone on without this node.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Literal

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from awesomeproxy.cluster.host import ClusterHost
from awesomeproxy.cluster.members import BEATS
from awesomeproxy.registry.interface import RegistryError

log = Logger()

STOP, CUT, PERMIT = 0.6, 0.85, 0.9  # of a lease, since the last beat that was answered
STEPS = 20  # looks in a lease
ASKING = 2.0  # seconds that the registry has to answer a node that was frozen
SILENT = "the registry does not answer"


class Lease:
    """This node's."""

    def __init__(
        self,
        host: ClusterHost,
        lease: float,
        loss: Literal["serve", "hold"],
        beat: Callable[[], Deferred[bool]],
        why: Callable[[], str],
        monotonic: Callable[[], float],
    ) -> None:
        """
        :param lease: in seconds.
        :param beat: says that this node is there, and answers whether it counts as there: it
            may be that it does only under another life, which it has by then.
        :param why: why beats are not answered, for people; empty: nothing is known of that.
        :param monotonic: the clock of the permit, in seconds.
        """
        self._host = host
        self._lease = lease
        self._holds = loss == "hold"
        self._beat = beat
        self._why = why
        self._monotonic = monotonic
        self._call: Any = None
        self._steps = 0
        self._beating: Deferred[None] | None = None
        self._waking = False
        self._woken = -inf  # when it was noticed that it was frozen
        self._asked_by = inf  # until when a node that was frozen waits for an answer
        self._stopped = False  # what it moves
        self._cut = False
        self.renewed = -inf  # when the last beat was begun that was answered
        self.counters = {"beats": 0, "lapses": 0}

    def __repr__(self) -> str:
        return f"<Lease of {self._lease:g} s, renewed {self.silence:.1f} s ago>"

    @property
    def silence(self) -> float:
        """Seconds since the last beat that was answered was begun."""
        return self._monotonic() - self.renewed

    def begin(self, joined: float) -> None:
        """This node is a member now.

        :param joined: when it began to become one, in monotonic seconds.
        """
        self.renew(joined)
        self._host.permit.on_lapse = self.woke
        if self._call is None:
            self._call = self._host.reactor.callLater(self._lease / STEPS, self._look)

    def end(self) -> None:
        """It is going to be none any more, and serves nothing."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._beating is not None:
            self._beating.cancel()
        self._host.permit.on_lapse = lambda: None
        self._host.permit.until = inf

    def renew(self, began: float) -> None:
        """The registry has answered what was begun then: it counts this node as there."""
        self.renewed = max(self.renewed, began)
        if self._holds:
            until = self.renewed + PERMIT * self._lease
        else:
            until = self._monotonic() + self._lease
        if self._host.permit.until < self._monotonic():
            self.woke()
        if self._monotonic() > until or (self._waking and began < self._woken):
            return  # the answer is as old as the question: ask again
        was_lapsed = self._waking
        self._stopped = self._cut = self._waking = False
        self._asked_by = inf
        self._host.permit.until = until
        self._host.withhold("")
        if was_lapsed:
            self._host.resume_serving()

    def beat(self) -> None:
        """Say that this node is there, unless that is being said."""
        if self._beating is None:
            self._beating = Deferred.fromCoroutine(self._renewing())
            self._beating.addErrback(self._no_answer)
            self._beating.addBoth(self._beaten)

    def woke(self) -> None:
        """The permit has ended before it was renewed: nothing is served until it is known why."""
        if self._waking:
            return
        self._waking = True
        self.counters["lapses"] += 1
        log.warn(
            "this node has not run for a while, and asks the registry before it serves anything"
        )
        self._woken = self._monotonic()
        self._asked_by = self._woken + ASKING
        self.beat()

    async def _renewing(self) -> None:
        began = self._monotonic()
        if await self._beat():
            self.counters["beats"] += 1
            self.renew(began)

    def _no_answer(self, failure: Any) -> None:
        if not failure.check(RegistryError, CancelledError):
            log.failure("a beat has failed", failure)

    def _beaten(self, _: object) -> None:
        self._beating = None

    def _look(self) -> None:
        self._call = self._host.reactor.callLater(self._lease / STEPS, self._look)
        self._steps += 1
        permit = self._host.permit
        if permit.until < self._monotonic() and not self._waking:
            self.woke()
        if self._waking:
            self._look_awake()
        else:
            self._look_at_silence()
        if self._waking or self._steps % (STEPS // BEATS) == 0:
            self.beat()

    def _look_at_silence(self) -> None:
        leases = self.silence / self._lease
        if not self._holds:
            self._host.permit.until = self._monotonic() + self._lease
        if leases >= STOP:
            self._stop()
        if self._holds and leases >= CUT:
            self._cut_off()

    def _look_awake(self) -> None:
        """Nobody answers a node that was frozen: it goes on by what it knows."""
        if self._monotonic() < self._asked_by:
            return
        self._waking = False
        self._asked_by = inf
        self._stop()
        if self._holds:
            self._cut_off()
        else:
            self._host.permit.until = self._monotonic() + self._lease
        self._host.resume_serving()

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            if self._holds:  # first, or what is rolled back would go on, and be cut soon
                self._host.withhold(self._why() or SILENT)
            self._host.lapse()

    def _cut_off(self) -> None:
        if not self._cut:
            self._cut = True
            self._host.cut_all()
            # Nothing is let on before the registry is back, so nothing needs a permit; and
            # clients have to be taken in, to wait.
            self._host.permit.until = inf
