"""A migration is a transaction: it is done, or it was never there.

::

    check -> hold -> drain -> switch -> verify -> commit -> release -> clean
    '---------------- rolls back ----------------'  '-- rolls forward --'

The *commit* is one write to the registry: from then on the site is placed on the
target, whatever happens.  Anything that goes wrong before it -- the target is not well,
requests in flight do not finish, the pause takes longer than it may, an operator
resumes the site -- leads back: the source serves again, and the requests that were
held go there.  Such a migration has cost a wait and nothing else.

Every step is recorded in the journal before it begins, and the hold itself is recorded
together with the journal's entry.  A daemon that dies on the way finds the entry when it
starts again, and :func:`recover` takes it to the end that the commit decides.

A site that was paused before it is moved is still paused afterwards, until its pause is
over.  The placement that holds it says so, which is what recovery reads: a migration's own
hold ends with a resume (``then``) at no certain time (``expires``), as no pause does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from awesomeproxy.happenings import Once
from awesomeproxy.model import Ledger, Mode, Observed, Outcome, Placement, Site
from awesomeproxy.registry.interface import Entry, IRegistry, RegistryError

log = Logger()
T = TypeVar("T")

RELEASE_AT_MOST = 10.0  # seconds that the ledger waits for the last held request to go on
TRY_AGAIN = 1.0  # seconds between tries to write down an end that is already in effect

STEPS = (
    ("check", "see that a server of the target is well"),
    ("hold", "keep new requests waiting at the gate"),
    ("drain", "let requests in flight finish"),
    ("switch", "place the site on the target, still held"),
    ("verify", "try the target past the held gate"),
    ("commit", "record the target: from here on there is no way back"),
    ("release", "let the held requests go on, to the target"),
    ("clean", "close the connections to the source"),
)


class RolledBack(Exception):
    """The migration was undone; the message says why.

    ``step`` is how far it had come, and ``ledger`` what it did.
    """

    def __init__(self, reason: str, step: str = "", ledger: Ledger | None = None) -> None:
        super().__init__(reason)
        self.step = step
        self.ledger = ledger


class Host(Protocol):
    """What a migration asks of the node it runs on."""

    reactor: Any
    registry: IRegistry

    def site(self, name: str) -> Site:
        """The definition of a site."""

    def placement(self, name: str) -> Placement:
        """Where it is placed, as the registry says."""

    def adopt(self, placement: Placement) -> None:
        """Make every worker converge to ``placement``."""

    def observed(self, name: str) -> Observed:
        """What the workers report."""

    def changed(self, name: str) -> Deferred[Outcome]:
        """Fires when what is reported of a site may have changed."""

    def check(self, site: str, backend: str) -> Deferred[None]:
        """Ask a backend's servers, past the gate; fails if none of them is well."""

    def cut(self, site: str) -> int:
        """Break off what is in flight."""


Progress = Callable[[str, str], None]


class Migration:
    """One move of a site; see the module."""

    def __init__(
        self,
        host: Host,
        site: str,
        target: str,
        *,
        max_pause: float,
        force: bool,
        by: str,
        progress: Progress,
    ) -> None:
        """
        :param max_pause: seconds from the hold to the release, at the most.
        :param force: cut what is in flight when half of them are over.
        :param by: who moves it, for those who lose a race against it.
        :param progress: told each step as it begins.
        """
        self._host = host
        self.site = site
        self.source = host.placement(site).backend
        self.target = target
        self.step = ""
        self.ended = Once()
        self._max_pause = max_pause
        self._force = force
        self._by = by
        self._progress = progress
        self._stopped = ""  # why it has to be rolled back
        self._final = False  # nothing stops it any more
        self._hurried = False  # but somebody waits for its end
        self._waiting: Deferred[Any] | None = None
        self._timers: list[IDelayedCall] = []
        self._entry: Entry | None = None
        self._before: Placement | None = None
        self._committed: Placement | None = None
        self._held_at = 0.0
        self._pause = 0.0
        self._steps: dict[str, float] = {}
        self._step_began = 0.0
        self._counters = host.observed(site).counters

    def stop(self, reason: str) -> bool:
        """Roll back, for ``reason``; False if it is too late for that."""
        if self._final:
            self._hurried = True
            return False
        self._stopped = self._stopped or reason
        if self._waiting is not None:
            self._waiting.cancel()
        return True

    async def run(self) -> Ledger:
        """Move the site.

        :raise RolledBack: something went wrong; the source serves as before.
        :raise Conflict, Busy: somebody else was first; nothing was begun.
        """
        try:
            try:
                await self._to_the_commit()
            except RegistryError as problem:
                if self._entry is None:
                    raise
                await self._roll_back(str(problem))
            except RolledBack as undone:
                await self._roll_back(str(undone))
            except Exception as problem:  # a fault of ours must not keep a site held
                log.failure("{site}: the migration has failed", site=self.site)
                await self._roll_back(f"a fault inside the daemon: {problem!r}")
            finally:
                for timer in self._timers:
                    if timer.active():
                        timer.cancel()
            return await self._release()
        finally:
            self.ended.fire()

    async def _to_the_commit(self) -> None:
        host, name = self._host, self.site
        self._begin("check")
        await self._guard(host.check(name, self.target))

        self._begin("hold")
        before = self._before = host.placement(name)
        paused = before.mode is Mode.HOLDING
        hold = replace(
            before,
            mode=Mode.HOLDING,
            by=self._by,
            then=before.then if paused else "resume",
            expires=before.expires if paused else None,
        )
        entry = await host.registry.begin(name, self.source, self.target, hold, before.generation)
        self._entry = entry
        cutting: IDelayedCall | None = None
        self._counters = host.observed(name).counters
        self._held_at = host.reactor.seconds()
        self._later(self._max_pause, self.stop, f"the pause took longer than {self._max_pause:g} s")
        if self._force:
            cutting = self._later(self._max_pause / 2, host.cut, name)
        hold = replace(hold, generation=entry.generation)
        host.adopt(hold)

        self._record("drain")
        while not self._drained(hold):
            await self._guard(host.changed(name))
        if cutting is not None and cutting.active():
            cutting.cancel()  # or it would cut those who try the target

        self._record("switch")
        host.adopt(replace(hold, backend=self.target))

        self._record("verify")
        await self._guard(host.check(name, self.target))

        self._record("commit")
        self._final = True
        self._committed = await host.registry.commit(
            entry.id, replace(hold, backend=self.target), hold.generation
        )

    def _drained(self, hold: Placement) -> bool:
        stored = self._host.placement(self.site)
        if stored.generation != hold.generation:
            raise RolledBack(f"the site was changed by {stored.by!r} meanwhile")
        observed = self._host.observed(self.site)
        return observed.drained and observed.generation >= hold.generation

    async def _release(self) -> Ledger:
        host = self._host
        held, before = self._committed, self._before
        assert held is not None
        assert before is not None
        host.adopt(held)
        after = replace(
            held, mode=before.mode, expires=before.expires, then=before.then, by=self._by
        )
        self._begin("release")
        if after.mode is Mode.OPEN:
            after = await self._reopen(after, held)
        else:
            self._pause = host.reactor.seconds() - self._held_at
        self._begin("clean")
        if after.mode is Mode.OPEN:
            await self._until_released()
        self._begin("")
        ledger = self._ledger("done", "")
        await self._write_end("done", after, "", ledger)
        return ledger

    async def _reopen(self, after: Placement, held: Placement) -> Placement:
        """Let the held requests go on, then record that they did.

        That they should is recorded already: the journal's entry says where the site is,
        and recovery would open it.  So requests need not wait for the disk once more, nor
        at all if it is full.
        """
        host = self._host
        after = replace(after, generation=held.generation)
        host.adopt(after)
        self._pause = host.reactor.seconds() - self._held_at
        try:
            after = await host.registry.place(after, held.generation)
        except RegistryError as problem:
            log.error("{site}: opening is not recorded: {why}", site=self.site, why=problem)
        host.adopt(after)
        return after

    async def _until_released(self) -> None:
        """Those held by this migration have gone on; so the ledger can tell.

        Who wants to stop the migration by now is not kept waiting for the sake of that.
        """
        late = self._host.reactor.seconds() + RELEASE_AT_MOST
        while self._host.observed(self.site).held and not self._hurried:
            if self._host.reactor.seconds() > late:
                return
            wait: Deferred[None] = Deferred()
            self._host.reactor.callLater(0.01, wait.callback, None)
            await wait

    async def _roll_back(self, reason: str) -> None:
        """The source serves again; then say so."""
        self._final = True
        step = self.step
        if self._entry is None:
            self._begin("")
            raise RolledBack(reason, step, self._ledger("rolled back", reason))
        assert self._before is not None
        host = self._host
        self._begin("roll back")
        back = host.placement(self.site)
        if back.generation == self._entry.generation:  # else somebody has changed it since
            if self._before.mode is Mode.OPEN:
                open_again = replace(self._before, by=f"{self._by} (rolled back)")
                back = await self._reopen(open_again, back)
            else:
                back = replace(self._before, generation=back.generation)
                host.adopt(back)
        self._pause = self._pause or host.reactor.seconds() - self._held_at
        if back.mode is Mode.OPEN:
            await self._until_released()
        self._begin("")
        ledger = self._ledger("rolled back", reason)
        await self._write_end("rolled back", back, reason, ledger)
        raise RolledBack(reason, step, ledger)

    async def _write_end(
        self, state: Literal["done", "rolled back"], last: Placement, reason: str, ledger: Ledger
    ) -> None:
        """Close the journal's entry, if need be later; it is true already."""
        host, entry = self._host, self._entry
        assert entry is not None
        plain = json.loads(json.dumps(ledger.as_json()))
        try:
            placed = await host.registry.finish(
                entry.id, state, last, last.generation, reason, plain
            )
            host.adopt(placed)
        except RegistryError as problem:
            log.error(
                "{site}: the end of migration {id} ({state}) is not recorded yet: {problem}",
                site=self.site,
                id=entry.id,
                state=state,
                problem=problem,
            )
            host.reactor.callLater(TRY_AGAIN, self._write_later, state, last, reason, ledger)

    def _write_later(self, state: Any, last: Placement, reason: str, ledger: Ledger) -> None:
        stored = self._host.placement(self.site)
        deferred = Deferred.fromCoroutine(self._write_end(state, stored, reason, ledger))
        deferred.addErrback(lambda failure: log.failure("journal", failure))

    # Steps

    def _begin(self, step: str) -> None:
        """A step begins, and with it the one before has ended."""
        now = self._host.reactor.seconds()
        if self.step:
            self._steps[self.step] = round(now - self._step_began, 6)
        self.step, self._step_began = step, now
        if step:
            self._progress(step, dict(STEPS).get(step, "let the source serve again"))

    def _record(self, step: str) -> None:
        """A step before the commit begins; the registry writes in turn, so this comes first.

        Requests wait, so nobody waits for the disk: every step up to the commit is undone
        in the same way, and if this cannot be written the commit cannot either.
        """
        assert self._entry is not None
        self._begin(step)
        recorded = self._host.registry.step(self._entry.id, step)
        recorded.addErrback(
            lambda failure: log.error(
                "{site}: the step {step!r} is not recorded: {why}",
                site=self.site,
                step=step,
                why=failure.getErrorMessage(),
            )
        )

    async def _guard(self, deferred: Deferred[T]) -> T:
        """Wait for ``deferred``, unless the migration is stopped meanwhile."""
        self._waiting = deferred
        try:
            result = await deferred
        except CancelledError:
            raise RolledBack(self._stopped or "cancelled") from None
        except RegistryError:
            raise
        except Exception as problem:
            raise RolledBack(self._stopped or str(problem)) from problem
        finally:
            self._waiting = None
        if self._stopped:
            raise RolledBack(self._stopped)
        return result

    def _later(self, delay: float, function: Callable[..., Any], *args: Any) -> IDelayedCall:
        timer: IDelayedCall = self._host.reactor.callLater(delay, function, *args)
        self._timers.append(timer)
        return timer

    def _ledger(self, outcome: Any, reason: str) -> Ledger:
        observed = self._host.observed(self.site)
        counts = observed.counters.since(self._counters)
        return Ledger(
            site=self.site,
            source=self.source,
            target=self.target,
            generation=self._host.placement(self.site).generation,
            outcome=outcome,
            reason=reason,
            **asdict(counts),
            longest_added_wait=round(observed.longest_wait, 6) if counts.released else 0.0,
            pause=round(self._pause, 6),
            steps=dict(self._steps),
        )


async def recover(registry: IRegistry) -> list[tuple[Entry, str]]:
    """Take every migration that a crash has left to its end; before anything is served.

    :return: the entries, and what has become of each.
    """
    ended: list[tuple[Entry, str]] = []
    placements = await registry.placements()
    for entry in await registry.unfinished():
        stored = placements[entry.site]
        forward = entry.state == "committed"
        # A later change than the migration's own (an operator's resume) stands.
        mine = stored.generation == entry.generation
        own_hold = stored.then == "resume" and stored.expires is None
        mode = Mode.OPEN if mine and own_hold else stored.mode
        last = replace(
            stored,
            backend=entry.target if forward else entry.source,
            mode=mode,
            then="refuse" if mode is Mode.OPEN else stored.then,
            by="recovery after a crash",
        )
        reason = "" if forward else f"the daemon died during the step {entry.step or 'hold'!r}"
        state: Literal["done", "rolled back"] = "done" if forward else "rolled back"
        await registry.finish(entry.id, state, last, stored.generation, reason)
        ended.append((entry, state))
    return ended
