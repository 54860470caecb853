"""All that has to be carried, stopped and started for one migration, as one thing.

A :class:`Carriage` has a mover for each filesystem and database that goes to another node,
and the services of the backends on both sides.  What may go on at the same time does; where
the order matters, databases come before those that use them, and what lives in a
filesystem is stopped before that is fenced.

It knows neither gates nor the journal.  Like its movers it can be made anew after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from awesomeproxy.migrate.prediction import Round
from awesomeproxy.model import Service
from awesomeproxy.movers.interface import Estimate, MoverError
from awesomeproxy.movers.shell import Shell, ShellError
from awesomeproxy.movers.warrant import Warrant
from awesomeproxy.together import together

T = TypeVar("T")

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Stand:
    """A backend's service on its node."""

    backend: str  # for people
    service: Service
    shell: Shell

    async def start(self) -> None:
        """Start it.

        :raise MoverError: the command has failed.
        """
        await self._run("start", self.service.start)

    async def stop(self) -> None:
        """Stop it.

        :raise MoverError: the command has failed.
        """
        await self._run("stop", self.service.stop)

    async def _run(self, verb: str, argv: Sequence[str]) -> None:
        if not argv:
            return
        try:
            # One that stops it may still run when it is to be started again, or vice versa.
            time, patience = self.service.time, self.service.time / 2
            await self.shell.run(*argv, time=time, end_only=True, patience=patience)
        except ShellError as problem:
            raise MoverError(f"{self.backend}: cannot {verb} its service: {problem}") from None


class Carriage:
    """What a migration carries."""

    def __init__(
        self,
        movers: Sequence[Any],
        leaving: Sequence[Stand],
        arriving: Sequence[Stand],
        warrant: Warrant,
    ) -> None:
        """
        :param movers: what carries each thing (IMover); what is used by others comes first.
        :param leaving: the services at the source, in the same order.
        :param arriving: those at the target.
        :param warrant: under which their commands are carried out.
        """
        self._movers = movers
        self._leaving = leaving
        self._arriving = arriving
        self._warrant = warrant
        self.has_services = bool(leaving)
        self.carried = 0  # bytes

    def begin_undoing(self) -> None:
        """From now on nothing is done any more but what undoes and tidies up."""
        self._warrant.withdraw()

    async def check(self) -> None:
        """Refuse what cannot be moved.

        :raise MoverError: here and in all other steps: why it cannot be done.
        """
        await self._all(lambda mover: mover.check())

    async def estimate(self) -> Estimate:
        """How much there is of all of it."""
        found: list[Estimate] = await self._all(lambda mover: mover.estimate())
        return Estimate(sum(each.whole for each in found), sum(each.pending for each in found))

    async def presync(self, progress: Progress, now: Callable[[], float]) -> list[Round]:
        """One round for everything; return what it was for each thing.

        :param now: tells the time, in seconds.
        """
        began = now()
        took: dict[int, float] = {}

        async def carry(mover: Any, told: Progress) -> int:
            size: int = await mover.presync(told)
            took[id(mover)] = now() - began
            return size

        sizes = await self._carry(carry, progress)
        left: list[Estimate] = await self._all(lambda mover: mover.estimate())
        return [
            Round(size, took[id(mover)], estimate.pending)
            for mover, size, estimate in zip(self._movers, sizes, left, strict=True)
        ]

    async def stop_source(self) -> None:
        """Stop the services at the source."""
        for stand in reversed(self._leaving):
            await stand.stop()

    async def start_source(self) -> None:
        """Undo that."""
        for stand in self._leaving:
            await stand.start()

    async def fence(self) -> None:
        """Let nothing write to the source any more."""
        for mover in self._movers[::-1]:
            await mover.fence()

    async def unfence(self) -> None:
        """Undo that."""
        for mover in self._movers:
            await mover.unfence()

    async def sync(self, progress: Progress) -> int:
        """Carry the last of it; return how many bytes that were."""
        return sum(await self._carry(lambda mover, told: mover.sync(told), progress))

    async def attach(self) -> None:
        """Make the target usable."""
        await self._all(lambda mover: mover.attach())

    async def detach(self) -> None:
        """Undo that."""
        await self._each(lambda mover: mover.detach())

    async def start_target(self) -> None:
        """Start the services at the target."""
        for stand in self._arriving:
            await stand.start()

    async def stop_target(self) -> None:
        """Undo that."""
        for stand in reversed(self._arriving):
            await stand.stop()

    async def verify(self) -> None:
        """See that what has arrived is what has left."""
        await self._all(lambda mover: mover.verify())

    async def clean(self) -> None:
        """Tidy up after the commit."""
        await self._each(lambda mover: mover.clean())

    async def abandon(self) -> None:
        """Tidy up after a rollback."""
        await self._each(lambda mover: mover.abandon())

    async def _carry(
        self, step: Callable[[Any, Progress], Coroutine[Any, Any, int]], progress: Progress
    ) -> list[int]:
        carried = [0] * len(self._movers)

        def told(index: int) -> Progress:
            def tell(size: int) -> None:
                carried[index] = size
                progress(sum(carried))

            return tell

        numbers = {id(mover): index for index, mover in enumerate(self._movers)}
        sizes: list[int] = await self._all(lambda mover: step(mover, told(numbers[id(mover)])))
        self.carried += sum(sizes)
        return sizes

    async def _all(self, step: Callable[[Any], Coroutine[Any, Any, T]]) -> list[T]:
        """``step`` of every mover at the same time; the first failure ends the others."""
        return await together([step(mover) for mover in self._movers])

    async def _each(self, step: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        """The same of what undoes or tidies up: one that cannot keeps no other from it."""
        await together([step(mover) for mover in self._movers], whole=True)
