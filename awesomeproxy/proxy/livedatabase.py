"""A database as a worker runs it: definition, placement, gate, connections and counters.

A connection counts in flight at the gate from the moment that its server is dialled until
that one has closed.  So the database is drained when nothing of it is open towards its
backend, and nothing its clients have said is still being worked on.

Connections do not end by themselves as requests do: pools keep them for ever.  When the
database is held, those whose session is between two transactions are told goodbye, after a
short grace in which clients that connect anew each time come to their own end.  Who is in a
transaction may finish it.  And those of which nothing is known are closed after a while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Factory, Protocol

from awesomeproxy.gate import Gate
from awesomeproxy.model import (
    DATABASE,
    Counters,
    Database,
    DatabaseBackend,
    DesiredDatabase,
    Mode,
    Observed,
    Placement,
    Ramp,
)
from awesomeproxy.proxy.dbsession import Session
from awesomeproxy.proxy.expiry import OVERDUE, Expiry
from awesomeproxy.proxy.knock import Knock
from awesomeproxy.proxy.mysqlwire import MysqlSession
from awesomeproxy.proxy.pgwire import PostgresSession
from awesomeproxy.proxy.pipe import Pipe, ServerEnd

if TYPE_CHECKING:
    from awesomeproxy.proxy.plane import Plane

SESSIONS = {"tcp": Session, "postgres": PostgresSession, "mysql": MysqlSession}


class LiveDatabase:
    """One database at work."""

    def __init__(
        self, plane: Plane, desired: DesiredDatabase, former: LiveDatabase | None = None
    ) -> None:
        """
        :param former: a removed database of the same name that still has connections.
        """
        self.plane = plane
        self.former = former
        self.definition = desired.database
        self.name = DATABASE + desired.database.name
        self.placement = desired.placement
        self.admits = desired.admits
        self.absent = desired.absent  # why it cannot be served where it is placed
        self.backend: DatabaseBackend | None = None  # where it is placed
        self.gate = Gate(plane.clock, total=plane.held, on_idle=self.check_drained)
        self.pipes: set[Pipe] = set()
        self.links: set[ServerEnd] = set()
        self.connections = 0  # of clients, since the start
        self.failed = 0
        self.closed = 0  # connections that were ended, since the last hold began
        self._parting = False  # sessions that are between transactions are ended
        self._closing = False  # and those of which nothing is known
        self._calls: list[IDelayedCall] = []
        self._knock: Knock | None = None
        self._expiry = Expiry(plane.reactor, self._refuse, plane.now)
        self._was_drained = False
        self._define(desired.database)
        self._place(desired.placement)

    def __repr__(self) -> str:
        return f"<LiveDatabase {self.name} on {self.placement.backend}: {self.gate!r}>"

    def new_session(self) -> Session:
        """What follows a new connection."""
        return SESSIONS[self.definition.protocol]()

    # Desired state

    def apply(self, desired: DesiredDatabase) -> None:
        """Converge to ``desired``; an older generation than the present one is ignored."""
        if desired.database != self.definition:
            self._define(desired.database)
            self._place(self.placement)
        if desired.placement.generation >= self.placement.generation:
            self.admits = desired.admits
            self.absent = desired.absent
            self._place(desired.placement)

    def close(self) -> None:
        """The database is gone, or the proxy stops: refuse what is held, part what can."""
        self._was_drained = False
        self._expiry.stop()
        self._stop_knocking()
        self.gate.close()
        self._stay()
        self._part()
        self._call(self.definition.drain.tunnels, self._close_tunnels)

    def _define(self, database: Database) -> None:
        self.definition = database
        self.gate.configure(
            database.hold,
            ramp=Ramp(),
            max_in_flight=database.max_connections,
            budget=database.retry.budget,
        )

    def _place(self, placement: Placement) -> None:
        before, self.placement = self.backend, placement
        self.backend = self.definition.backends.get(placement.backend)
        holds = placement.mode is Mode.HOLDING or self.backend is None or bool(self.absent)
        if holds:
            self._hold()
        if before != self.backend:
            # What the old place refused, the new one may take.
            self._stop_knocking()
            self.gate.reachable()
            self._leave_place()
        if not holds:
            self._open()
        self._expiry.watch(placement)
        self.plane.changed(self.name)

    def _leave_place(self) -> None:
        for pipe in list(self.pipes):
            if pipe.server is not None and pipe.server.backend != self.backend:
                pipe.stale = True
                if not pipe.back_off():
                    self.settle(pipe)

    def _hold(self) -> None:
        if self._knock is not None:
            self._knock.interrupt()
        if not self.gate.holding:
            self.closed = 0
            self._was_drained = False
            self.gate.hold()
            self._begin_parting()
        elif self.gate.refusing:
            self.gate.hold()

    def _begin_parting(self) -> None:
        drain = self.definition.drain
        long_ago = self.plane.seconds() - drain.grace
        for pipe in list(self.pipes):
            if not pipe.back_off() and pipe.moved <= long_ago:
                self._settle(pipe)
        self._call(drain.grace, self._part)
        self._call(drain.tunnels, self._close_tunnels)

    def _call(self, delay: float, function: Callable[[], None]) -> None:
        """Call ``function`` after ``delay``, if there is anything by then that it could end."""
        if not delay:
            function()
        elif self.links:
            self._calls.append(self.plane.clock.callLater(delay, function))

    def _part(self) -> None:
        self._parting = True
        for pipe in list(self.pipes):
            self._settle(pipe)

    def _close_tunnels(self) -> None:
        self._closing = True
        self._part()

    def settle(self, pipe: Pipe) -> None:
        """Something has passed: end it, if that is due and can be done now."""
        if self._parting or pipe.stale:
            self._settle(pipe)

    def _settle(self, pipe: Pipe) -> None:
        if pipe.server is None or not pipe.server.ready or (pipe.admitted and not pipe.stale):
            return
        if pipe.session.idle:
            self.closed += 1
            pipe.part()
        elif pipe.session.opaque and self._closing:
            self.closed += 1
            pipe.cut()

    def _stay(self) -> None:
        """Nobody has to go any more."""
        self._forget_calls()
        self._parting = self._closing = False

    def _forget_calls(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            if call.active():
                call.cancel()

    def lets_by(self, address: str) -> bool:
        """Whether a connection passes the held gate: a server at the new place is tried."""
        known = self.backend is not None and not self.absent
        if self.gate.holding and known and address in self.admits:
            self._was_drained = False  # it is not, from here on
            self.gate.in_flight += 1
            return True
        return False

    def _open(self) -> None:
        self._stay()
        for pipe in self.pipes:
            pipe.admitted = False  # as all others from here on
        if self.gate.holding:
            # What was unreachable before the hold may not be any more.
            self._stop_knocking()
            self.gate.reachable()
            self.gate.open()

    def _refuse(self) -> None:
        """The hold has outlived its deadline."""
        self.gate.refuse(OVERDUE)
        self.plane.changed(self.name)

    def cut(self) -> int:
        """End all connections at once; return how many there were."""
        count = 0
        for live in self._all():
            count += len(live.links)
            for pipe in list(live.pipes):
                pipe.cut()
            for link in list(live.links):
                link.abort()
        self.closed += count
        return count

    # Observed state

    def _all(self) -> list[LiveDatabase]:
        """This database and those it follows."""
        return [self, *(self.former._all() if self.former is not None else ())]

    @property
    def drained(self) -> bool:
        """Held, and nothing of it is open towards a backend."""
        return self.gate.holding and not self.in_flight

    def check_drained(self) -> None:
        """Something has ended: if that was the last of it, say so."""
        if self.gate.holding and not self._was_drained and self.drained:
            self._was_drained = True
            self.plane.changed(self.name)

    @property
    def in_flight(self) -> int:
        """Connections that have passed the gate and not ended."""
        return sum(live.gate.in_flight for live in self._all())

    def observed(self) -> Observed:
        """What there is to report; the words are those for sites."""
        gate = self.gate
        every = self._all()
        trouble = gate.trouble or gate.refusing or self.absent
        if self.backend is None:
            trouble = f"it is placed on {self.placement.backend!r}, which is not defined"
        return Observed(
            site=self.name,
            generation=self.placement.generation,
            backend=self.placement.backend,
            mode=Mode.HOLDING if gate.holding else Mode.OPEN,
            state=gate.state,
            in_flight=self.in_flight,
            held=gate.waiting,
            tunnels=sum(pipe.tunnel for live in every for pipe in live.pipes),
            connections=sum(len(live.links) for live in every),
            closed=self.closed,
            longest_wait=gate.longest_wait,
            counters=self.counters(),
            servers={
                name: {
                    str(backend.server): (
                        f"down: {gate.trouble}"
                        if gate.trouble and backend == self.backend
                        else "up"
                    )
                }
                for name, backend in self.definition.backends.items()
            },
            trouble=trouble,
        )

    def counters(self) -> Counters:
        """The counts of its connections."""
        gate = self.gate
        return Counters(
            requests=self.connections,
            held=gate.held,
            released=gate.released,
            departed=gate.departed,
            refused=gate.refused,
            failed=self.failed,
        )

    # What connections tell

    def came(self, pipe: Pipe) -> None:
        """A client has connected."""
        self.connections += 1
        self.pipes.add(pipe)
        self.plane.client_came(pipe)

    def left(self, pipe: Pipe) -> None:
        """A client's connection is closed."""
        self.pipes.discard(pipe)
        self.plane.client_left(pipe)

    def linked(self, link: ServerEnd) -> None:
        """A server is being dialled."""
        self.links.add(link)
        self.plane.links.add(link)
        self.plane.sweep.add(link)

    def unlinked(self, link: ServerEnd) -> None:
        """That is over, or the connection is closed."""
        self.links.discard(link)
        self.plane.links.discard(link)
        self.plane.sweep.remove(link)
        if not self.links:
            self._forget_calls()
        self.gate.leave()

    def why_held(self) -> str:
        """For a client that has waited in vain."""
        gate = self.gate
        if gate.holding or self.backend is None:
            return "the database is being moved or held; try again"
        if gate.trouble:
            return "the database's server cannot be reached; try again"
        return "the database has as many connections as it may; try again"

    def unreachable(self, why: str) -> None:
        """The server does not take connections: hold, and knock until it does."""
        self.gate.unreachable(why)
        if self._knock is None:
            self._knock = Knock(self)
            self.plane.changed(self.name)

    def reachable(self) -> None:
        """The server has taken a connection."""
        if self._knock is not None:
            self._stop_knocking()
            self.gate.reachable()
            self.plane.changed(self.name)

    def _stop_knocking(self) -> None:
        knock, self._knock = self._knock, None
        if knock is not None:
            knock.stop()


class DatabaseFactory(Factory):
    """Takes the connections of a database's listener."""

    noisy = False

    def __init__(self, plane: Plane, name: str) -> None:
        self.plane = plane
        self.name = name

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """A pipe; or none, which closes the connection, if there is no room for one."""
        plane = self.plane
        live = plane.databases.get(self.name)
        crowd = len(plane.clients) >= plane.max_connections
        if live is None or crowd or plane.sockets >= plane.max_sockets * 9 // 10:
            return None
        return Pipe(live)
