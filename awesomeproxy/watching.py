"""Who watches a node, and what they are told: events, as they happen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from awesomeproxy.model import Observed

Event = dict[str, Any]


class Watching:
    """All who watch.  As long as nobody does, nothing is kept for them."""

    def __init__(self, observed: Callable[[], Iterable[Observed]]) -> None:
        """
        :param observed: what there is to report of everything, for the first who watches.
        """
        self._observed = observed
        self._watchers: dict[object, Callable[[Event], None]] = {}
        self._states: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._watchers)

    def add(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Have ``callback`` called with every event; return what ends that."""
        if not self._watchers:  # nobody has kept it up to date
            self._states = {each.site: each.state for each in self._observed()}
        key = object()
        self._watchers[key] = callback
        return lambda: self._watchers.pop(key, None) and None

    def emit(self, **event: Any) -> None:
        """Tell everybody who watches."""
        if self._watchers:
            event["time"] = round(time.time(), 6)
            for callback in list(self._watchers.values()):
                callback(event)

    def look(self, observed: Observed) -> None:
        """Tell of a site or a database if its state is another than before."""
        if self._states.get(observed.site) == observed.state:
            return
        self._states[observed.site] = observed.state
        self.emit(
            event="state",
            site=observed.site,
            state=observed.state,
            generation=observed.generation,
            backend=observed.backend,
            held=observed.held,
            in_flight=observed.in_flight,
            trouble=observed.trouble,
        )

    def forget(self, name: str) -> None:
        """A site or a database is no more."""
        self._states.pop(name, None)
