"""How far a migration has come, and how long each of its steps took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from awesomeproxy.migrate.steps import WHAT

log = Logger()

Progress = Callable[..., None]  # told the step, what it does, and more by name


class Pace:
    """The steps of one migration, one at a time, told to who watches."""

    def __init__(self, reactor: Any, site: str, told: Progress) -> None:
        """
        :param site: what it was asked for.
        :param told: told each step as it begins, and how it goes on.
        """
        self._reactor = reactor
        self._site = site
        self._told = told
        self.step = ""
        self.spent: dict[str, float] = {}  # seconds, of those that have ended
        self._began = 0.0

    def __repr__(self) -> str:
        return f"<Pace: {self.step}>"

    def begin(self, step: str) -> None:
        """A step begins, and with it the one before has ended."""
        now = self._reactor.seconds()
        if self.step:
            spent = self.spent.get(self.step, 0.0) + now - self._began
            self.spent[self.step] = round(spent, 6)
        self.step, self._began = step, now
        if step:
            self._told(step, WHAT[step])

    def take_up(self, step: str) -> None:
        """The step in which somebody else has left it; how long that took is not known."""
        self.step, self._began = step, self._reactor.seconds()

    def say(self, what: str, **more: object) -> None:
        """Tell how the step goes on."""
        self._told(self.step, what, **more)

    def trouble(self, step: str, problem: Exception) -> None:
        """Tell what has failed, though it goes on."""
        log.error("{site}: {step}: {why}", site=self._site, step=step, why=problem)
        self._told(self.step, f"{step}: {problem}")

    def meter(self, total: int) -> Callable[[int], None]:
        """What is to be told how many bytes of the step's, of ``total``, are there."""
        step, began = self.step, self._reactor.seconds()

        def tell(size: int) -> None:
            seconds = self._reactor.seconds() - began
            rate = round(size / seconds) if seconds > 0 else 0
            self._told(step, "", bytes=size, total=max(total, size), rate=rate)

        return tell
