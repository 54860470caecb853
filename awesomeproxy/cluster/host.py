"""What is asked of a node by what makes it one of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from awesomeproxy.model import Observed, Settings
from awesomeproxy.proxy.permit import Permit
from awesomeproxy.registry.interface import Entry


class ClusterHost(Protocol):
    """The node."""

    permit: Permit

    @property
    def reactor(self) -> Any:
        """The node's."""

    @property
    def settings(self) -> Settings:
        """The node's, as they are now."""

    def held(self) -> list[Observed]:
        """All that is to be held and is drained here, for the others to know."""

    def withhold(self, why: str) -> None:
        """Hold everything, whatever the registry says; empty: no more.  May be repeated."""

    def cut_all(self) -> int:
        """Break off all that is in flight here; return how much that was."""

    def resume_serving(self) -> None:
        """The permit was renewed after it had lapsed."""

    def take_up(self, entries: Sequence[Entry]) -> None:
        """Take migrations of another node, which are this one's now, to their ends."""

    def lapse(self) -> None:
        """Nobody may be sure any more that this node is there: stop what it moves."""
