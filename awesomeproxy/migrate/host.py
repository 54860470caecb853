"""What a migration asks of the node it runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.model import Counters, Observed, Outcome, Placement
from awesomeproxy.registry.interface import IRegistry

# By site: the counters, and the longest wait of a request that went on, in seconds.
Counts = Mapping[str, tuple[Counters, float]]
Counted = Mapping[str, Counts]  # by node


class Trials(Protocol):
    """Those who are going to use held databases try them."""

    def admit(self, plan: Plan) -> Deferred[None]:
        """Let the servers that sites are going to have connect to held databases."""

    def dismiss(self, plan: Plan) -> None:
        """Let nobody past them any more."""


class Poolers(Protocol):
    """They stand in front of databases."""

    def quieten(self, database: str) -> Deferred[None]:
        """Have the pooler of a database, if there is one, keep its clients waiting."""

    def awaken(self, database: str) -> Deferred[None]:
        """Have it let them go on, which is tried again and never fails; nothing happens if it
        does already."""


class Host(Protocol):
    """The node, as a migration sees it.  Names are those of placements."""

    reactor: Any
    registry: IRegistry
    cluster: ICluster

    def placement(self, name: str) -> Placement:
        """Where it is placed, as the registry says."""

    def adopt(self, placement: Placement) -> None:
        """Make every worker converge to ``placement``."""

    def observed(self, name: str) -> Observed:
        """What the workers report of a site or a database."""

    def changed(self, name: str, timeout: float | None = None) -> Deferred[Outcome]:
        """Fires when what is reported here or elsewhere may have changed, or ``timeout``
        seconds are over."""

    def check(self, site: str, backend: str) -> Deferred[None]:
        """Ask a backend's servers, past the gate; fails if none of them is well."""

    def mounted(self, filesystem: str, node: str) -> Deferred[None]:
        """Fires when a filesystem is mounted on a node; fails if that cannot be known."""

    def usable(self, filesystem: str, node: str) -> Deferred[None]:
        """Look whether a filesystem is mounted on a node, writable; fails if it is not."""

    @property
    def poolers(self) -> Poolers:
        """Those in front of databases."""

    @property
    def trials(self) -> Trials:
        """Those of held databases."""

    def cut(self, site: str) -> Deferred[int]:
        """Break off what is in flight, on all nodes; fires with how much that was."""

    def counted(self, names: Sequence[str]) -> Deferred[Counted]:
        """What has become of the requests of some, on each node that says so; never fails."""
