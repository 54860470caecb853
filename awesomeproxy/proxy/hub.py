"""One descriptor in the reactor for all connections of the data plane.

For every event of every descriptor, Twisted's reactor sets up a logging context.  For a
connection that carries thousands of requests a second that costs more than parsing
them.  A hub is an epoll descriptor of its own, which is itself readable when something
in it is ready: the reactor watches that one, and the hub then serves all that is ready.

To the transports it is the reactor they add themselves to.  What they do with their
sockets, and what happens when one is lost, is as Twisted has it.

A hub serves as long as its :class:`~.permit.Permit` says.  Then it leaves the reactor until
it is resumed; what is ready by then is still ready.
"""

from __future__ import annotations

# Twisted's Failure is untyped.
# mypy: disable-error-code="no-untyped-call"
import contextlib
import select
from collections.abc import Callable
from time import monotonic
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure

from awesomeproxy.proxy.permit import Permit

log = Logger()

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR
AT_ONCE = 256  # events that are served before the reactor's other work gets its turn


class Hub:
    """Reads and writes for those who have added themselves; see the module."""

    def __init__(self, reactor: Any, permit: Permit | None = None) -> None:
        """
        :param permit: for how long it may serve; None: for ever.
        """
        self._reactor = reactor
        self._permit = permit or Permit()
        self._lapsed = False
        self._epoll = select.epoll()
        self._members: dict[int, Any] = {}
        self._interest: dict[int, int] = {}
        self.callLater: Callable[..., Any] = reactor.callLater
        self._serving = False
        self._at_end: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        return f"<Hub of {len(self._members)}>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    # What transports ask of a reactor

    def addReader(self, member: Any) -> None:
        """Call ``member.doRead`` whenever it is readable."""
        self._want(member, READ)

    def addWriter(self, member: Any) -> None:
        """Call ``member.doWrite`` whenever it is writable."""
        self._want(member, WRITE)

    def removeReader(self, member: Any) -> None:
        """Stop that."""
        self._want_no_more(member, READ)

    def removeWriter(self, member: Any) -> None:
        """Stop that."""
        self._want_no_more(member, WRITE)

    def _want(self, member: Any, what: int) -> None:
        fd = member.fileno()
        interest = self._interest.get(fd)
        if interest is None:
            self._epoll.register(fd, what)
            if not self._members and not self._lapsed:
                self._reactor.addReader(self)
            self._members[fd] = member
            self._interest[fd] = what
        elif not interest & what:
            self._interest[fd] = interest | what
            self._epoll.modify(fd, interest | what)

    def _want_no_more(self, member: Any, what: int) -> None:
        fd = member.fileno()
        if fd == -1:
            fd = next((fd for fd, other in self._members.items() if other is member), -1)
        interest = self._interest.get(fd)
        if interest is None or not interest & what:
            return
        interest &= ~what
        if interest:
            self._interest[fd] = interest
            self._epoll.modify(fd, interest)
            return
        del self._interest[fd], self._members[fd]
        with contextlib.suppress(OSError):  # closed already, and with that unregistered
            self._epoll.unregister(fd)
        if not self._members:
            self._reactor.removeReader(self)

    def at_turn_end(self, function: Callable[[], object]) -> None:
        """Call ``function`` once all that is ready has been served; at once if nothing is.

        What many events contribute to can so be sent in one go.
        """
        if self._serving:
            self._at_end.append(function)
        else:
            function()

    # What the reactor asks of a selectable

    def fileno(self) -> int:
        """The epoll descriptor's."""
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """What is logged from here on comes from the data plane."""
        return "proxy"

    def doRead(self) -> None:
        """Serve all that is ready."""
        self._serving = True
        try:
            self._serve()
        finally:
            self._serving = False
        if self._at_end and not self._lapsed:
            at_end, self._at_end = self._at_end, []
            for function in at_end:
                try:
                    function()
                except Exception:  # the others have nothing to do with it
                    log.failure("at the end of a turn")

    def resume(self) -> None:
        """The permit was renewed: serve again."""
        if self._lapsed:
            self._lapsed = False
            if self._members:
                self._reactor.addReader(self)
            self.doRead()

    def _lapse(self) -> None:
        self._lapsed = True
        self._reactor.removeReader(self)
        self._permit.on_lapse()

    def _serve(self) -> None:
        members, until = self._members, self._permit.until
        for fd, event in self._epoll.poll(0, AT_ONCE):
            if monotonic() > until:
                return self._lapse()
            member = members.get(fd)
            if member is None:
                continue  # lost while another was served
            why: Any = None
            reading = False
            if event & GONE and not event & READ:
                reading = bool(self._interest[fd] & READ)
                why = ConnectionDone() if reading else ConnectionLost()
            else:
                try:
                    if event & READ:
                        reading = True
                        why = member.doRead()
                    if event & WRITE and not why:
                        reading = False
                        why = member.doWrite()
                except Exception as problem:
                    log.failure("in {member}", member=member)
                    why = problem
            if why:
                try:
                    self._lose(member, why, reading)
                except Exception:  # the others have nothing to do with it
                    log.failure("in {member}", member=member)

    def _lose(self, member: Any, why: Exception, reading: bool) -> None:
        self.removeReader(member)
        if isinstance(why, ConnectionDone) and reading:
            member.readConnectionLost(Failure(why))
        else:
            self.removeWriter(member)
            member.connectionLost(Failure(why))

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends, and lets go of all that it has."""
        for member in list(self._members.values()):
            self.removeReader(member)
            self.removeWriter(member)
            member.connectionLost(reason)
