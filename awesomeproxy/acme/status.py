"""How it stands with one site's certificate, for operators."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any


class State(enum.StrEnum):
    """What goes on with it."""

    VALID = "valid"  # there is one, and it is not due
    ORDERING = "ordering"  # one is being obtained
    QUEUED = "queued"  # one is to be obtained; one is ordered at a time
    WAITING = "waiting"  # it could not be obtained, and will be tried again


@dataclass(frozen=True, slots=True)
class Status:
    """The certificate of one site.  Times are unix times."""

    site: str
    names: tuple[str, ...]  # the hosts it is for, or is to be for
    state: State
    not_after: float | None  # the end of the certificate there is
    next_look: float | None  # when it is renewed, or tried again; None: now, or never
    error: str = ""  # why it could not be obtained
    failures: int = 0  # in a row

    @property
    def troubled(self) -> bool:
        """Whether somebody should have a look."""
        return bool(self.error)

    def as_json(self) -> dict[str, Any]:
        """The status as plain JSON values."""
        return asdict(self)
