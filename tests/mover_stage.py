"""A mover's steps, each done by a mover that was made for it alone, since it keeps nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

ONE, TWO = "one", "two"
STEPS = ("check", "presync", "fence", "sync", "attach", "verify")
UNDO = ("detach", "unfence", "abandon")


class MoverStage(ABC):
    """Something that is moved between the sides ``one`` and ``two``."""

    @abstractmethod
    def mover(self, *how: Any, **more: Any) -> Any:
        """A new mover of it, for a migration of some number."""

    async def step(self, name: str, migration: int, **how: Any) -> int | None:
        """Do one step; how many bytes it has carried, if it carries."""
        mover = self.mover(migration, **how)
        if name in ("presync", "sync"):
            carried: int = await getattr(mover, name)(lambda size: None)
            return carried
        await getattr(mover, name)()
        return None

    async def carry(self, migration: int, last: str = STEPS[-1], **how: Any) -> None:
        """All steps up to ``last``."""
        for name in STEPS[: STEPS.index(last) + 1]:
            await self.step(name, migration, **how)

    async def move(self, migration: int, **how: Any) -> None:
        """All of a migration that succeeds."""
        await self.carry(migration, **how)
        await self.step("clean", migration, **how)

    async def undo(self, migration: int, **how: Any) -> None:
        """All that undoes a migration."""
        for name in UNDO:
            await self.step(name, migration, **how)
