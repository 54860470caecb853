"""Pauses: a site is held until nothing of it is in flight, or the hold is undone.

Everything that opens or holds a site, except a migration, goes through one :class:`Pauses`,
and what it writes to the registry it writes in turn.  So of two operators there is always
one who came first:

- a pause that meets another one under way joins it: both wait for the same drain, and the
  last of them to give up undoes what the first has begun; if that was at another node, the
  hold is placed anew before there is a receipt, so that nobody undoes it who has not placed it;
- a resume ends a pause in any state, and who still waits for the drain is told who ended
  it (:class:`Overtaken`);
- a hold may have an end (``expires``), after which the site is resumed or, by the worker,
  refuses what comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import random
from typing import Any, Literal, Protocol

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from awesomeproxy import rollcall
from awesomeproxy.cluster.interface import ICluster, Roll
from awesomeproxy.happenings import Once
from awesomeproxy.model import Generation, Mode, Observed, Outcome, Placement, Receipt
from awesomeproxy.registry.interface import (
    Conflict,
    Doubtful,
    IRegistry,
    RegistryError,
    Unreachable,
)
from awesomeproxy.undoing import Undoing

log = Logger()

CUT_GRACE = 2.0  # seconds that cut connections may take to be gone
TRY_AGAIN = 1.0  # seconds between tries to end a hold whose time is over

Then = Literal["refuse", "resume"]


class NotDrained(Exception):
    """The pause has failed; the message says why, and what the site is now."""


class Overtaken(Exception):
    """Somebody else has changed the placement: ``winner``."""

    def __init__(self, winner: Placement) -> None:
        self.winner = winner
        super().__init__(f"{winner.site}: changed meanwhile by {winner.by!r}")


class _Stuck(Exception):
    """Why a drain has not come to its end."""


class Host(Protocol):
    """What pauses ask of the node they run on."""

    reactor: Any
    registry: IRegistry
    cluster: ICluster

    def placement(self, name: str) -> Placement:
        """Where a site is placed, as the registry says."""

    def adopt(self, placement: Placement) -> None:
        """Make every worker converge to ``placement``."""

    def observed(self, name: str) -> Observed:
        """What the workers report; KeyError if the site is not served any more."""

    def changed(self, name: str, timeout: float) -> Deferred[Outcome]:
        """Fires when what is reported of a site here or elsewhere may have changed, or time
        is up."""

    def tell_changed(self, name: str) -> None:
        """Have those look who wait for a change of a site."""

    def elsewhere(self, name: str) -> str:
        """Which migration another node has, that has to do with it; empty: none."""

    def cut(self, site: str) -> Deferred[int]:
        """Break off what is in flight, on all nodes; answer with how much that was."""


@dataclass
class UnderWay:
    """The pauses of one site that wait for its drain."""

    before: Placement  # what undoing them leads back to
    placed: Generation = 0  # that of the hold that this node has placed for them
    waiting: int = 0
    called_off: str = ""  # why, if they have to give up
    ended: Once = field(default_factory=Once)


class Pauses:
    """Holds sites and lets them go on."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._turn = DeferredLock()
        self._under_way: dict[str, UnderWay] = {}
        self._expiries: dict[str, IDelayedCall] = {}
        self._undoing = Undoing(host)

    def under_way(self, name: str) -> bool:
        """Whether a pause of the site waits for its drain."""
        return name in self._under_way

    async def pause(
        self,
        name: str,
        *,
        by: str,
        timeout: float,
        force: bool,
        expires: float | None,
        then: Then,
        progress: Callable[[str, str], None],
    ) -> Receipt:
        """Hold a site until nothing of it is in flight anywhere.

        :param timeout: seconds that requests in flight may take to finish.
        :param force: cut them then, instead of undoing the hold.
        :param expires: unix time at which the hold ends, with what ``then`` says.
        :raise NotDrained: they have not finished; the site is as it was.
        :raise Overtaken: somebody else has changed the placement meanwhile.
        :raise RegistryError: the hold could not be recorded, and has not begun.
        """
        host = self._host
        began = host.reactor.seconds()
        pauses = self._under_way.setdefault(name, UnderWay(host.placement(name)))
        pauses.waiting += 1
        try:
            hold = await self._hold(name, pauses, by, expires, then)
            progress("drain", "let requests in flight finish")
            try:
                try:
                    hold, roll = await self._drained(hold, pauses, timeout)
                except _Stuck:
                    if not force or pauses.called_off:
                        raise
                    progress("cut", f"cut {await host.cut(name)} that did not finish")
                    hold, roll = await self._drained(hold, pauses, CUT_GRACE)
                if not host.cluster.alone and hold.generation != pauses.placed:
                    hold = await self._take_over(hold, pauses, by)
                    hold, roll = await self._drained(hold, pauses, timeout)
            except _Stuck as stuck:
                raise NotDrained(f"{stuck}; {await self._undo(name, pauses, by)}") from None
            pauses.before = hold  # whoever still waits does not undo this one
        finally:
            pauses.waiting -= 1
            if not pauses.waiting:
                del self._under_way[name]
                pauses.ended.fire()
        workers = roll.reports[name]
        return Receipt(
            site=name,
            backend=hold.backend,
            generation=hold.generation,
            drained_in=round(host.reactor.seconds() - began, 6),
            workers=workers,
            closed=sum(report.closed for report in workers),
            ambiguous=sum(report.ambiguous for report in workers),
        )

    async def resume(self, name: str, by: str, generation: Generation | None = None) -> Placement:
        """Open a site's gate, whatever state it is in.

        :param generation: only if nobody has changed it since.
        :raise RegistryError: that could not be recorded; the site is as it was.
        """
        await self._turn.acquire()
        try:
            placement = self._host.placement(name)
            if placement.mode is Mode.OPEN or generation not in (None, placement.generation):
                return placement
            after = replace(placement, mode=Mode.OPEN, by=by, expires=None, then="refuse")
            return await self._place(after, placement)
        finally:
            self._turn.release()

    async def call_off(self, why: str) -> None:
        """End every pause that is under way, and undo it."""
        for name, pauses in list(self._under_way.items()):
            pauses.called_off = why
            self._host.tell_changed(name)
            await pauses.ended.wait()

    # A pause's steps

    async def _hold(
        self, name: str, pauses: UnderWay, by: str, expires: float | None, then: Then
    ) -> Placement:
        await self._turn.acquire()
        try:
            seen = self._host.placement(name)
            if seen.mode is Mode.HOLDING and (seen.expires, seen.then) == (expires, then):
                self._undoing.forget(name)
                return seen
            wanted = replace(seen, mode=Mode.HOLDING, by=by, expires=expires, then=then)
            try:
                hold = await self._place(wanted, seen)
                pauses.placed = hold.generation
                return hold
            except Doubtful as doubt:
                undone = replace(seen, by=f"{by} (undone)")
                self._undoing.later(seen, undone, doubt)
                raise
        finally:
            self._turn.release()

    async def _take_over(self, hold: Placement, pauses: UnderWay, by: str) -> Placement:
        """Place a hold anew that another node has placed, whose pause might yet undo it."""
        await self._turn.acquire()
        try:
            seen = self._still(hold, pauses)
            placed = await self._place(replace(seen, by=by), seen)
        except Conflict as conflict:
            raise Overtaken(conflict.stored or hold) from None
        finally:
            self._turn.release()
        pauses.placed = placed.generation
        return placed

    async def _place(self, wanted: Placement, seen: Placement) -> Placement:
        placed = await self._host.registry.place(wanted, seen.generation)
        self._undoing.forget(wanted.site)  # whatever that was, it is not there any more
        self._host.adopt(placed)
        return placed

    async def _drained(
        self, hold: Placement, pauses: UnderWay, timeout: float
    ) -> tuple[Placement, Roll]:
        """Wait until a site is drained everywhere; answer with the placement at which it is,
        and who has said so."""
        host, name = self._host, hold.site
        deadline = host.reactor.seconds() + timeout
        while True:
            stored = self._still(hold, pauses)
            left = deadline - host.reactor.seconds()
            # Before it is asked, or what is heard meanwhile would be missed.
            news = host.changed(name, rollcall.patience(host.cluster, left))
            try:
                if left <= 0 or _drained_at(host.observed(name), stored):
                    roll = host.elsewhere(name) or await self._roll(stored)
                    if self._still(hold, pauses) != stored:
                        continue
                    if isinstance(roll, Roll) and roll.complete:
                        return stored, roll
                    if left <= 0:
                        if isinstance(roll, Roll):
                            roll = await rollcall.missing(host.cluster, roll)
                        raise _Stuck(f"after {timeout:g} s {roll}")
                await news
            finally:
                news.cancel()

    async def _roll(self, stored: Placement) -> Roll | str:
        """Who has drained it, or why that is not known."""
        try:
            return await rollcall.call(self._host.cluster, [stored])
        except Conflict:  # which will be heard of
            return "somebody else was changing the site"
        except Unreachable as problem:
            return str(problem)

    def _still(self, hold: Placement, pauses: UnderWay) -> Placement:
        """The placement as it is now, if that still is what holds the site."""
        name = hold.site
        stored = self._host.placement(name)
        try:
            self._host.observed(name)
        except KeyError:
            raise _Stuck("the site was removed meanwhile") from None
        if (stored.mode, stored.backend) != (hold.mode, hold.backend):
            raise Overtaken(stored)
        if pauses.called_off:
            raise _Stuck(pauses.called_off)
        return stored

    async def _undo(self, name: str, pauses: UnderWay, by: str) -> str:
        """Go back to what was before; answer with what the site is now."""
        await self._turn.acquire()
        try:
            if pauses.waiting > 1 and not pauses.called_off:
                return "it is still held for another pause that waits, too"
            before, seen = pauses.before, self._host.placement(name)
            if seen.mode is not Mode.HOLDING:
                raise Overtaken(seen)
            if seen != before and pauses.waiting == 1:
                if seen.generation != pauses.placed:
                    return "it is still held for a pause at another node"
                after = replace(
                    seen,
                    mode=before.mode,
                    by=f"{by} (undone)",
                    expires=before.expires,
                    then=before.then,
                )
                try:
                    await self._place(after, seen)
                except Conflict as conflict:
                    raise Overtaken(conflict.stored or pauses.before) from None
                except RegistryError as problem:
                    self._undoing.later(seen, after)
                    return f"but that is not undone yet, the site is still held: {problem}"
            held = before.mode is Mode.HOLDING
            return "the site is held, as it was before" if held else "the pause was undone"
        finally:
            self._turn.release()

    # The end of a hold

    def watch_expiry(self, placement: Placement) -> None:
        """Resume a site when the hold that ``placement`` says is over, if that is its end."""
        name = placement.site
        self.forget_expiry(name)
        expires = placement.expires
        if placement.mode is Mode.HOLDING and expires is not None and placement.then == "resume":
            left = max(0.0, expires - self._host.cluster.now())
            if not self._host.cluster.alone:  # all nodes will try, of which one is enough
                left += random()
            self._expire_in(name, left, placement.generation)

    def forget_expiry(self, name: str) -> None:
        """The site's hold, if there is one, ends by itself no more."""
        call = self._expiries.pop(name, None)
        if call is not None:
            call.cancel()

    def forget_expiries(self) -> None:
        """No hold ends by itself any more; the next daemon will see to it."""
        self._undoing.stop()
        for name in list(self._expiries):
            self.forget_expiry(name)

    def _expire_in(self, name: str, delay: float, generation: Generation) -> None:
        call = self._host.reactor.callLater(delay, self._expired, name, generation)
        self._expiries[name] = call

    def _expired(self, name: str, generation: Generation) -> None:
        del self._expiries[name]
        # Who has paused it anew by the time it is our turn does not want this end.
        resumed = self.resume(name, "the end of the pause", generation)
        deferred = Deferred.fromCoroutine(resumed)
        deferred.addErrback(self._not_resumed, name, generation)

    def _not_resumed(self, failure: Failure, name: str, generation: Generation) -> None:
        if isinstance(failure.value, Conflict):
            return  # somebody else has changed the site, and watches what it is now
        if not isinstance(failure.value, RegistryError):
            log.failure("{site}: cannot be resumed", failure, site=name)
            return
        log.error("{site}: cannot be resumed yet: {why}", site=name, why=failure.value)
        if name not in self._expiries:
            self._expire_in(name, TRY_AGAIN, generation)


def _drained_at(observed: Observed, placement: Placement) -> bool:
    return observed.drained and observed.generation >= placement.generation
