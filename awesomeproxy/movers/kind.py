"""What a mover says of itself before it is used, to whoever reads the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from awesomeproxy.shapes import Shape


@dataclass(frozen=True)
class Kind:
    """A way of moving things, found by its name among the entry points.

    An entry point of the group ``awesomeproxy.movers`` names one of these.
    """

    carries: Literal["filesystem", "database"]
    make: Callable[[Any], Any]  # given a Job, an IMover; see :mod:`.interface`
    place: Shape[Any]  # the keys that say where the thing is on one node
    options: Shape[Any] = field(default_factory=lambda: Shape(dict, {}))
    mount_point: bool = False  # the paths of its filesystems are mount points
    live: bool = True  # whether there is a presync, so that the pause does not carry it all
    about: Mapping[str, str] = field(default_factory=dict)  # what each key means, for the docs
