"""What makes a node a member of a cluster: what the others and it have to do with each other.

It finds the others and joins them, holds everything when it may not serve, and tells what is
drained here.  What others change is followed; what they migrate is known here, and taken over
when they are gone.  A node by itself is nobody's member, and has nothing of all this.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.following import Change, Following
from awesomeproxy.following import Host as FollowingHost
from awesomeproxy.joining import Surroundings
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.migrate.planning import read
from awesomeproxy.model import FILESYSTEM, Generation, Mode, Observed, Placement, Settings
from awesomeproxy.moving import Moves
from awesomeproxy.proxy.permit import Permit
from awesomeproxy.proxy.plane import Plane
from awesomeproxy.registry.interface import Entry, IRegistry
from awesomeproxy.residence import Residence

log = Logger()
T = TypeVar("T")

ORPHAN_IN = 5.0  # seconds that the end of a migration may take to be recorded

Enter = Callable[["Membership"], Coroutine[Any, Any, Surroundings]]


class Host(FollowingHost, Protocol):
    """What membership asks of the node."""

    reactor: Any
    registry: IRegistry
    cluster: ICluster
    plane: Plane
    moves: Moves
    residence: Residence
    added: MutableMapping[str, dict[str, Any]]
    stopping: bool

    def served(self) -> list[str]:
        """All sites and databases, called as their placements are."""

    def moved(self, plan: Plan) -> None:
        """A migration has ended, one way or the other."""

    def emit(self, **event: Any) -> None:
        """Tell everybody who watches."""


class Membership:
    """A node's; the :class:`~awesomeproxy.cluster.host.ClusterHost` of its cluster."""

    following: Following  # once the others have been found

    def __init__(self, host: Host, enter: Enter) -> None:
        """
        :param enter: finds the cluster.
        """
        self._host = host
        self._enter = enter
        self._waiting: Deferred[Any] | None = None  # for the others, or to be one of them
        self.permit = Permit()
        self.withheld = ""  # why everything is held
        self.others: dict[int, Entry] = {}  # migrations of other nodes that have not ended
        self._orphans: dict[int, IDelayedCall] = {}
        self._reported: dict[str, Generation] = {}  # what the others were told is drained

    def __repr__(self) -> str:
        return f"<Membership of {self._host.settings.name}>"

    @property
    def reactor(self) -> Any:
        """The node's."""
        return self._host.reactor

    @property
    def settings(self) -> Settings:
        """The node's, as they are now."""
        return self._host.settings

    # Life

    async def find_others(self) -> None:
        """Let the node have the registry and the cluster, though it is no member yet.

        :raise CancelledError: it was stopped meanwhile.
        """
        host = self._host
        found = await self._wait(self._enter(self))
        host.registry, host.cluster = found.registry, found.cluster
        self.following = Following(host, self, found.view, host.settings.name)
        host.added = self.following.tables
        found.on_change.append(self.adopt_all)
        host.cluster.subscribe(self._heard_of)

    async def join(self) -> list[Entry]:
        """Become a member, with all that is to be held being held; nothing is served yet.

        :return: what this node was migrating when it died, and is to be taken up.
        :raise CancelledError: it was stopped meanwhile.
        """
        host = self._host
        self.following.take_over_all()
        await self._wait(host.cluster.join())
        left = await host.moves.recover(host.sites)
        await host.registry.placements()  # what was changed until this node was waited for
        self.following.take_over_all()
        return left

    async def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for what may take any time, unless the node is stopped."""
        self._waiting = Deferred.fromCoroutine(work)
        try:
            result: T = await self._waiting
        finally:
            self._waiting = None
        return result

    def stop(self) -> None:
        """Look for nobody any more, and take nothing up."""
        if self._waiting is not None:
            self._waiting.cancel()
        for orphan in self._orphans.values():
            orphan.cancel()
        self._orphans.clear()

    # What is heard

    def adopt_all(self, change: Change) -> None:
        """Take over what has changed in the registry, by whomever."""
        if self._is_built:  # or it will be read later
            self.following.take_over(change)

    @property
    def _is_built(self) -> bool:
        """Whether the node has come so far that it has something to serve with."""
        return hasattr(self._host, "plane")

    def _heard_of(self, what: str, name: str) -> None:
        """Something has happened in the cluster; see :meth:`ICluster.subscribe`."""
        host = self._host
        if what == "drained":
            host.tell_changed(name)
        elif what == "member":
            states = {each.name: each.state for each in host.cluster.members()}
            state = states.get(name, "removed")
            if state in ("gone", "fenced", "expired"):
                log.warn("the node {name} is {state}", name=name, state=state)
            host.emit(event="node", node=name, state=state)
            host.residence.look_after(name)

    # Migrations

    def own(self, entry: Entry) -> None:
        """A migration of this node's is in the journal.

        If nothing here knows of it, the registry was lost while it was begun.
        """
        host = self._host
        known = host.moves.of(entry.site) is not None or entry.site in host.moves.stuck
        if not (known or host.stopping or entry.id in self._orphans):
            call = host.reactor.callLater(ORPHAN_IN, self._take_up_orphan, entry.id)
            self._orphans[entry.id] = call

    def _take_up_orphan(self, number: int) -> None:
        del self._orphans[number]
        taking = Deferred.fromCoroutine(self._orphan(number))
        taking.addErrback(lambda failure: log.error("{why}", why=failure.getErrorMessage()))

    async def _orphan(self, number: int) -> None:
        host = self._host
        for entry in await host.registry.unfinished():
            alone = host.moves.of(entry.site) is None and not host.stopping
            if entry.id == number and entry.owner == host.settings.name and alone:
                taken = await host.registry.take_over(entry.id, entry.owner, entry.life)
                self.take_up([taken])

    def moved_elsewhere(self, entry: Entry) -> None:
        """A migration of another node has ended, one way or the other."""
        self._host.moved(read(entry))

    def take_up(self, entries: Sequence[Entry]) -> None:
        """Take migrations of another node, which are this one's now, to their ends."""
        for entry in entries:
            self.others.pop(entry.id, None)
        self._host.moves.take_up(entries)

    def lapse(self) -> None:
        """Nobody may be sure any more that this node is there: stop what it moves."""
        self._host.moves.lapse("the registry cannot be reached")

    # Serving

    def withhold(self, why: str) -> None:
        """Hold everything, whatever the registry says; empty: no more."""
        if why == self.withheld:
            return
        self.withheld = why
        if why:
            log.error("everything is held: {why}", why=why)
        else:
            log.info("nothing is held any more for want of the registry")
        for name in self._host.served():
            self._host.adopt(self._host.placements[name])

    def cut_all(self) -> int:
        """Break off all that is in flight here; return how much that was."""
        return self._host.plane.cut_all()

    def resume_serving(self) -> None:
        """The permit was renewed after it had lapsed."""
        if self._is_built:
            self._host.plane.resume()

    # What is drained

    def held(self) -> list[Observed]:
        """All that is to be held and is drained here, for the others to know."""
        return [
            observed
            for placement in self._host.placements.values()
            if (observed := self._drained(placement)) is not None
        ]

    def report(self, name: str) -> None:
        """Tell the others that a hold is drained here, once it is."""
        placement = self._host.placements.get(name)
        if self._host.cluster.alone or placement is None:
            return
        if (observed := self._drained(placement)) is None:
            self._reported.pop(name, None)
        elif self._reported.get(name) != placement.generation:
            self._reported[name] = placement.generation
            self._host.cluster.report(observed, {})

    def _drained(self, placement: Placement) -> Observed | None:
        """What there is to report of a hold; None: there is no hold, or it is not drained."""
        name, plane = placement.site, self._host.plane
        if placement.mode is not Mode.HOLDING or name.startswith(FILESYSTEM):
            return None
        observed = plane.observed(name)
        if observed is None:  # it is not served here
            return None if plane.is_leaving(name) else _none_of(placement)
        ready = observed.drained and observed.generation == placement.generation
        return observed if ready else None


def _none_of(placement: Placement) -> Observed:
    """What is reported of something held that is not served here: that nothing is in flight."""
    return Observed(placement.site, placement.generation, placement.backend, placement.mode)
