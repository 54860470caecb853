"""Tables whose mover decides which keys they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

from awesomeproxy import addresses
from awesomeproxy.movers import finding
from awesomeproxy.movers.kind import Kind
from awesomeproxy.shapes import Shape, Spot, Structure

T = TypeVar("T")


def anything(value: object) -> object:
    """A reader for what is for a mover that is not known: whatever is there will do."""
    return value


@dataclass(frozen=True)
class ByMover(Structure[T]):
    """A table with a key ``mover``; ``shape`` has all of its keys, given the mover's kind."""

    carries: Literal["filesystem", "database"]
    shape: Callable[[Kind | None], Shape[T]]

    def read(self, value: object, spot: Spot, **given: object) -> T:
        name = value.get("mover") if isinstance(value, Mapping) else None
        kind: Kind | None = None
        with suppress(ValueError):  # told when the key itself is read
            if addresses.optional_name(name):
                kind = self._find(str(name), spot.at("mover"))
        return self.shape(kind).read(value, spot, **given)

    def _find(self, name: str, spot: Spot) -> Kind | None:
        try:
            kind = finding.find(name)
        except ValueError as problem:
            spot.wrong(str(problem))
            return None
        if kind is not None and kind.carries == self.carries:
            return kind
        right = " or ".join(f'"{each}"' for each in finding.names(self.carries))
        wrong = "is not a mover" if kind is None else f"is a mover of {kind.carries}s"
        spot.wrong(f'"{name}" {wrong}; write {right}')
        return None
