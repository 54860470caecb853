"""The way back of a migration that has something to carry: the source is used again.

What was done is undone, the last first.  What happens at the target hurts nobody while the
source serves, so nobody waits for that long; but the source has to be open and started.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from awesomeproxy.migrate.barrier import Barrier
from awesomeproxy.migrate.carriage import Carriage
from awesomeproxy.migrate.host import Host
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.migrate.steps import begun
from awesomeproxy.migrate.waiting import Trouble, Waiting, Work
from awesomeproxy.model import Mode

START_IN = 10.0  # seconds in which a service that was started has to be well
LOOK_EVERY = 0.1  # seconds between questions whether it is
UNDO_TARGET = 5.0  # seconds that undoing may take at a target before the source serves again


class Retreat:
    """What a rollback does to data and services."""

    def __init__(
        self, host: Host, plan: Plan, barrier: Barrier, waiting: Waiting, trouble: Trouble
    ) -> None:
        self._host = host
        self._plan = plan
        self._barrier = barrier
        self._waiting = waiting
        self._trouble = trouble

    async def undo(self, carriage: Carriage, step: str) -> list[Work]:
        """Undo what was done; return what could not be undone at the target.

        :param step: the last that may have begun.
        :raise LeftUnfinished: the daemon stops, and the source is not open yet.
        """
        left: list[Work] = []
        for name, undo in (("start", carriage.stop_target), ("attach", carriage.detach)):
            if begun(name, step):
                undoing = Deferred.fromCoroutine(undo())
                try:
                    await undoing.addTimeout(UNDO_TARGET, self._host.reactor)
                except Exception as problem:
                    self._trouble(name, problem)
                    left.append(undo)
        for name, undo in (("fence", carriage.unfence), ("stop", carriage.start_source)):
            if begun(name, step):
                await self._waiting.until_done(name, undo)
        if begun("stop", step) and carriage.has_services:
            await self._revive()
        return left

    async def _revive(self) -> None:
        """Give services that were started again at the source the time to be well.

        If they are not in the end, the source serves nevertheless: there the data is.
        """
        self._barrier.adopt()  # or who tries a database would come to the target
        try:
            await self._waiting.endure(self._until_well())
        except Exception as problem:
            self._trouble("stop", problem)
        self._host.trials.dismiss(self._plan)

    async def _until_well(self) -> None:
        back, late = self._barrier.back(), self._host.reactor.seconds() + START_IN
        await self._host.trials.admit(self._plan.reversed())
        for member in self._plan.moving:
            # Who was paused before is not asked anything.
            while member.has_gate and back[member.name].mode is Mode.OPEN:
                try:
                    await self._host.check(member.name, member.source)
                    break
                except CancelledError:
                    raise
                except Exception:
                    if self._host.reactor.seconds() > late:
                        raise
                await deferLater(self._host.reactor, LOOK_EVERY)
