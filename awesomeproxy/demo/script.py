"""What is played: how much load there is, and what happens under it, and when.

Every moment is seconds since the beginning of an act, so that the load, which is open
loop, and what the operator does keep step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PAUSE = 4.5  # the part of the first act in which a paused site's backend is restarted
DOWN = 1.0  # seconds that a killed backend stays away before it is started again
LIFE = 3.5  # of the second act: from one kill to the next


@dataclass(frozen=True, slots=True)
class Script:
    """One way to play it.  Times are seconds.

    The first act is ``POST``: ``migrations``, one ``every`` so often, and then, if
    ``restarts``, a kill and restart of the backend while the site is paused.  The second
    act is ``PUT``, with as many ``kills`` under full traffic.
    """

    rate: float = 150.0  # requests a second
    think: tuple[float, float] = (0.005, 0.02)  # that a request takes, at least and at most
    migrations: int = 7
    every: float = 1.5
    restarts: bool = True
    kills: int = 2

    @property
    def first(self) -> float:
        """How long the first act lasts."""
        return self.every * (self.migrations + 1) + (PAUSE if self.restarts else 0.0)

    @property
    def second(self) -> float:
        """How long the second act lasts; 0 if there is none."""
        return LIFE * self.kills + 1.0 if self.kills else 0.0


DEMO = Script()
REFERENCE = Script(rate=10.0, think=(3.0, 3.0), migrations=11, every=15.0, restarts=False, kills=0)
FILM = Script(rate=14.0, think=(0.5, 0.7), migrations=4, every=3.0, restarts=False, kills=0)


def changed(script: Script, **values: float | int | None) -> Script:
    """``script`` with those ``values`` that are given."""
    given = {name: value for name, value in values.items() if value is not None}
    return replace(script, **given)  # type: ignore[arg-type]
