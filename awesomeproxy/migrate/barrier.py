"""Everything a migration holds, as one door: held, drained, moved and opened together.

It remembers what was there before, so that it can lead back, and what it has placed itself,
so that it notices when somebody else has placed something since.  What it writes goes to
the registry in one transaction each time, together with the journal's entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from awesomeproxy import rollcall
from awesomeproxy.cluster.interface import Roll
from awesomeproxy.migrate.host import Host
from awesomeproxy.migrate.plan import Member, Plan
from awesomeproxy.migrate.recovery import is_own_hold
from awesomeproxy.model import Mode, Placement
from awesomeproxy.registry.interface import Doubtful, Entry, RegistryError, Unreachable

log = Logger()

ANSWER_IN = 1.0  # seconds that other nodes have to say whether they hold anything


class Overtaken(Exception):
    """Somebody else has placed something meanwhile; the message says what and who."""


class Barrier:
    """The members of a plan, and where they are."""

    def __init__(self, host: Host, plan: Plan, by: str, entry: Entry | None) -> None:
        """
        :param by: who holds it, for others.
        :param entry: the journal's, if a dead daemon has left it.
        """
        self._host = host
        self._plan = plan
        self._by = by
        self._before: dict[str, Placement] = {}  # what a rollback leads back to
        self._ours: dict[str, Placement] = {}  # what was placed last
        self._doubted = False  # it may be that a hold was placed after that
        self.entry = entry
        if entry is not None:
            self._remember(entry)

    def _remember(self, entry: Entry) -> None:
        generations = {entry.site: entry.generation}
        generations |= {each.site: each.generation for each in entry.along}
        self._ours = self.stored()
        for name, stored in self._ours.items():
            # A later change than the migration's own (an operator's resume) stands.
            opens = stored.generation == generations[name] and is_own_hold(stored)
            back = replace(stored, mode=Mode.OPEN, then="refuse") if opens else stored
            self._before[name] = back

    # To the target

    async def begin(self) -> Entry:
        """Have an entry in the journal, with nothing held yet.

        :raise Conflict, Busy: somebody else was first.
        """
        return await self._begin(self.stored())

    async def hold(self) -> None:
        """Hold all sites; databases and filesystems follow when those are drained.

        What is recorded takes effect on other nodes at once: if there are any, databases are
        recorded to be held only then.

        :raise Conflict, Busy: somebody else was first.
        """
        before = self.stored()
        later = set() if self._host.cluster.alone else {m.name for m in self._databases()}
        holds = {
            name: placement if name in later else self._held(placement)
            for name, placement in before.items()
        }
        if self.entry is None:
            await self._begin(holds)
            self._before = before
        else:
            self._before = before
            await self._hold(holds)
        self._adopt(self._sites())

    async def _hold(self, holds: dict[str, Placement]) -> None:
        assert self.entry is not None
        main, along = self._split(holds)
        registry = self._host.registry
        try:
            self._ours = await registry.hold(self.entry.id, main, main.generation, along)
        except Doubtful:
            self._doubted = True
            raise

    def _databases(self) -> list[Member]:
        return [member for member in self._plan.members if member.is_database]

    def _sites(self) -> list[Member]:
        return [member for member in self._plan.members if member.is_site]

    async def drain(self, wait: Callable[[Deferred[Any]], Any]) -> None:
        """Wait until nothing is in flight anywhere.

        Databases are held once their sites are drained: a request in flight may still need
        a connection to one.

        :param wait: waits for a Deferred, unless the migration is stopped.
        :raise Overtaken: it is not held any more.
        """
        others = [member for member in self._plan.members if not member.is_site]
        await self._until_drained(self._sites(), wait)
        for member in self._databases():
            await wait(self._host.poolers.quieten(member.name))
        if self._databases() and not self._host.cluster.alone:
            held = {name: self._held(placement) for name, placement in self._ours.items()}
            await wait(Deferred.fromCoroutine(self._hold(held)))
            self.adopt()
            others = list(self._plan.members)  # the sites have another generation now
        self._adopt(others)
        await self._until_drained(others, wait)

    async def recheck(self, wait: Callable[[Deferred[Any]], Any]) -> None:
        """See once more that nobody has anything in flight: a node may have come meanwhile.

        Here servers have been tried since, which is no matter of anybody else.
        """
        gated = [self._ours[member.name] for member in self._plan.members if member.has_gate]
        while not self._host.cluster.alone:
            news = self._host.changed(self._plan.main.name, rollcall.LOOK_EVERY)
            try:
                if (await wait(Deferred.fromCoroutine(self._roll(gated)))).complete:
                    return
                await wait(news)
            finally:
                news.cancel()

    async def _until_drained(
        self, members: Sequence[Member], wait: Callable[[Deferred[Any]], Any]
    ) -> None:
        """Wait until all nodes have drained those of ``members`` that have a gate."""
        host, gated = self._host, [member.name for member in members if member.has_gate]
        while gated:
            held = [self._still(name) for name in gated]
            waited = next((each.site for each in held if not self._drained(each)), gated[0])
            # Before it is asked, or what is heard meanwhile would be missed.
            news = host.changed(waited, None if host.cluster.alone else rollcall.LOOK_EVERY)
            try:
                if all(map(self._drained, held)):
                    roll = await wait(Deferred.fromCoroutine(self._roll(held)))
                    if roll.complete:
                        return
                await wait(news)
            finally:
                news.cancel()

    async def _roll(self, held: Sequence[Placement]) -> Roll:
        try:
            return await rollcall.call(self._host.cluster, held)
        except Unreachable as problem:  # for now
            log.warn("{site}: {why}", site=self._plan.main.name, why=problem)
            return Roll({}, firm=False)

    def cut(self) -> None:
        """Break off whatever is in flight."""
        for member in self._plan.members:
            if member.has_gate:
                self._host.cut(member.name)

    def switch(self) -> None:
        """Place what moves on its target, held as it is; this is not recorded yet."""
        for member in self._plan.moving:
            self._host.adopt(replace(self._ours[member.name], backend=member.target))

    async def commit(self) -> None:
        """Record that everything is on its target.

        :raise Conflict: somebody else has placed something meanwhile.
        """
        assert self.entry is not None
        moved = {
            member.name: replace(self._ours[member.name], backend=member.target)
            for member in self._plan.members
        }
        main, along = self._split(moved)
        self._ours = await self._host.registry.commit(self.entry.id, main, main.generation, along)

    # Open again

    def forward(self) -> dict[str, Placement]:
        """What everything is to be after the commit: as before, but on the target."""
        return {
            name: replace(self._before[name], backend=held.backend, generation=held.generation)
            for name, held in self._ours.items()
        }

    def back(self) -> dict[str, Placement]:
        """What everything is to be after a rollback: as before.

        What somebody else has changed since, or what was never held, stays.
        """
        last = self.stored()
        for name, ours in self._ours.items():
            stored = last[name]
            doubted = self._doubted and is_own_hold(stored) and stored.by == self._by
            if name in self._before and (doubted or stored.generation == ours.generation):
                last[name] = replace(self._before[name], generation=stored.generation)
        return last

    async def open(
        self, after: dict[str, Placement], by: str, opened: Callable[[], None]
    ) -> dict[str, Placement]:
        """Let the held requests go on, then record that they did.

        That they should is recorded already: the journal's entry says where everything is,
        and recovery would open it.  So requests need not wait for the disk once more, nor
        at all if it is full.

        :param after: see :meth:`forward` and :meth:`back`.
        :param by: who opens what is opened.
        :param opened: called when the requests are let go.
        :return: what is stored.
        """
        host = self._host
        for name, placement in after.items():
            if placement.mode is Mode.OPEN:
                after[name] = replace(placement, by=by)
        for member in self._plan.members:
            host.adopt(after[member.name])
        opened()
        for member in self._plan.members:
            if member.is_database:
                await host.poolers.awaken(member.name)
        opening = {name: each for name, each in after.items() if each.mode is Mode.OPEN}
        recording = [
            Deferred.fromCoroutine(self._record(placement)) for placement in opening.values()
        ]
        return after | dict(zip(opening, await gatherResults(recording), strict=True))

    async def _record(self, placement: Placement) -> Placement:
        """Record that something is open; if that cannot be, the journal's end will do it."""
        try:
            placement = await self._host.registry.place(placement, placement.generation)
        except RegistryError as problem:
            log.error("{site}: opening is not recorded: {why}", site=placement.site, why=problem)
        self._host.adopt(placement)
        return placement

    async def waiting(self) -> bool:
        """Whether requests that were held here still wait, though they need not."""
        return any(map(self._waits, self._plan.members))

    async def waiting_elsewhere(self) -> bool:
        """The same of the other nodes, as far as they answer."""
        cluster = self._host.cluster
        if cluster.alone:
            return False
        after = {
            name: placement.generation
            for name, placement in self.stored().items()
            if placement.mode is Mode.OPEN
        }
        answers = await cluster.ask("observed", {"names": list(after)}, ANSWER_IN)
        return any(
            seen["held"] or seen["generation"] < after[seen["site"]]
            for told in answers.values()
            for seen in told
        )

    def _waits(self, member: Member) -> bool:
        if not member.has_gate or self._host.placement(member.name).mode is not Mode.OPEN:
            return False
        try:
            return bool(self._host.observed(member.name).held)
        except KeyError:  # it is served no more
            return False

    async def give_up(self) -> None:
        """Everything is as the registry says, whoever has written that.

        :raise RegistryError: it cannot be asked.
        """
        placements = await self._host.registry.placements()
        for member in self._plan.members:
            self._host.adopt(placements[member.name])

    async def finish(
        self, state: Any, last: dict[str, Placement], reason: str, ledger: dict[str, Any]
    ) -> None:
        """Close the journal's entry; see :meth:`IRegistry.finish`.

        :raise RegistryError: it cannot be written.
        """
        assert self.entry is not None
        main, along = self._split(last)
        placed = await self._host.registry.finish(
            self.entry.id, state, main, main.generation, reason, ledger, along
        )
        for each in placed.values():
            self._host.adopt(each)

    # Placements

    def stored(self) -> dict[str, Placement]:
        """Where everything is, as the registry says."""
        return {member.name: self._stored(member.name) for member in self._plan.members}

    def placed(self, name: str) -> Placement | None:
        """What has become of a member for the migration's sake; None: nothing yet."""
        return self._stored(name) if self._before else None

    def _stored(self, name: str) -> Placement:
        # The host does not know of a hold that is written, but not adopted yet.
        known, ours = self._host.placement(name), self._ours.get(name)
        return known if ours is None or known.generation >= ours.generation else ours

    async def _begin(self, placements: dict[str, Placement]) -> Entry:
        main, along = self._split(placements)
        targets = [member.target for member in self._plan.along]
        self.entry = await self._host.registry.begin(
            main.site,
            self._plan.main.source,
            self._plan.main.target,
            main,
            main.generation,
            list(zip(along, targets, strict=True)),
        )
        generations = {main.site: self.entry.generation}
        generations |= {each.site: each.generation for each in self.entry.along}
        self._ours = {
            name: replace(placement, generation=generations[name])
            for name, placement in placements.items()
        }
        return self.entry

    def _held(self, before: Placement) -> Placement:
        paused = before.mode is Mode.HOLDING
        return replace(
            before,
            mode=Mode.HOLDING,
            by=self._by,
            then=before.then if paused else "resume",
            expires=before.expires if paused else None,
        )

    def _still(self, name: str) -> Placement:
        """The hold that was placed, if it still is what counts."""
        stored, hold = self._host.placement(name), self._ours[name]
        if stored.generation != hold.generation:
            raise Overtaken(f"{name} was changed by {stored.by!r} meanwhile")
        return hold

    def _drained(self, hold: Placement) -> bool:
        observed = self._host.observed(hold.site)
        return observed.drained and observed.generation >= hold.generation

    def _split(self, placements: dict[str, Placement]) -> tuple[Placement, list[Placement]]:
        along = [placements[member.name] for member in self._plan.along]
        return placements[self._plan.main.name], along

    def _adopt(self, members: Sequence[Member]) -> None:
        for member in members:
            self._host.adopt(self._ours[member.name])

    def adopt(self) -> None:
        """Have the workers hear of what was placed last."""
        self._adopt(self._plan.members)
