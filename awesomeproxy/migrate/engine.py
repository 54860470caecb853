"""A migration is a transaction: it is done, or it was never there.

::

    check -> presync -> hold -> drain -> stop -> fence -> sync -> attach -> mount -> compare
    '--------------------------------- rolls back ------------------------------------------'
          -> start -> switch -> verify -> commit -> release -> clean
             '------ rolls back ------'   '---- rolls forward ----'

A site that has nothing to carry goes ``check, hold, drain, switch, verify, commit, release,
clean``.  If there is something (see :mod:`.carriage`), its data is copied while the site is
in use, round after round, until the rest of it fits into the pause; only then is the site
held, and the source closed to whoever else would write there.

The *commit* is one write to the registry: from then on everything is placed on the
target, whatever happens.  Anything that goes wrong before it -- the target is not well,
requests in flight do not finish, the pause takes longer than it may, an operator
resumes the site -- leads back: what was done is undone, the last step first, the source
serves again, and the requests that were held go there.  Such a migration has cost a wait
and nothing else.

Every step is recorded in the journal before it begins.  A daemon that dies on the way finds
the entry when it starts again.  If there was nothing to carry, :mod:`.recovery` takes it to
the end that the commit decides, before anything is served; otherwise a :class:`Migration`
undoes it, or cleans up after it, while the site is held and others are served.

A site that was paused before it is moved is still paused afterwards, until its pause is
over.  The placement that holds it says so, which is what recovery reads: a migration's own
hold ends with a resume (``then``) at no certain time (``expires``), as no pause does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from awesomeproxy.happenings import Once
from awesomeproxy.migrate.barrier import Barrier, Overtaken
from awesomeproxy.migrate.carriage import Carriage
from awesomeproxy.migrate.hooks import HookFailed, Hooks
from awesomeproxy.migrate.host import Host
from awesomeproxy.migrate.ledger import Account
from awesomeproxy.migrate.pace import Pace, Progress
from awesomeproxy.migrate.plan import Member, Plan
from awesomeproxy.migrate.prediction import Round, predict_all
from awesomeproxy.migrate.retreat import LOOK_EVERY, START_IN, Retreat
from awesomeproxy.migrate.steps import begun
from awesomeproxy.migrate.waiting import TRY_AGAIN, LeftUnfinished, RolledBack, Waiting, Work
from awesomeproxy.model import FILESYSTEM, Ledger, Placement
from awesomeproxy.registry.interface import Entry, NotAllowed, RegistryError, Superseded

log = Logger()

RELEASE_AT_MOST = 10.0  # seconds that the ledger waits for the last held request to go on


class Migration:
    """One move of a site, and of what comes along; see the module."""

    def __init__(
        self,
        host: Host,
        plan: Plan,
        *,
        max_pause: float,
        force: bool,
        by: str,
        progress: Progress,
        carriage: Callable[[int], Carriage] | None = None,
        hooks: Hooks | None = None,
        entry: Entry | None = None,
    ) -> None:
        """
        :param max_pause: seconds from the hold to the release, at the most.
        :param force: cut what is in flight when half of them are over.
        :param by: who moves it, for those who lose a race against it.
        :param progress: told each step as it begins, and how it goes on.
        :param carriage: makes what carries the data, given the migration's number.
        :param hooks: what is run before and after steps.
        :param entry: one that a dead daemon has left: it is only taken to its end.
        """
        self._host = host
        self.plan = plan
        self.target = plan.main.target
        self.ended = Once()
        self._max_pause = max_pause
        self._force = force
        self._by = by
        self._make_carriage = carriage
        self._hooks = hooks
        self._carriage: Carriage | None = None
        self._pace = Pace(host.reactor, plan.main.name, progress)
        self._waiting = Waiting(host.reactor, self._pace.trouble)
        self._left = entry
        self._barrier = Barrier(host, plan, by, entry)
        self._retreat = Retreat(host, plan, self._barrier, self._waiting, self._pace.trouble)
        self._held_at: float | None = None
        self._pause = 0.0
        self._account = Account(host, plan)

    def __repr__(self) -> str:
        main = self.plan.main
        return f"<Migration of {main.name} from {main.source} to {main.target}: {self.step}>"

    @property
    def site(self) -> str:
        """What it was asked for."""
        return self.plan.main.name

    @property
    def step(self) -> str:
        """The step that it is in; empty: it has not begun, or has ended."""
        return self._pace.step

    @property
    def can_be_stopped(self) -> bool:
        """Whether it is not too late to call it off."""
        return not self._waiting.final

    def placed(self, name: str) -> Placement | None:
        """What it has made of a member's placement; None: nothing yet."""
        return self._barrier.placed(name)

    def stop(self, reason: str, *, leave: bool = False) -> bool:
        """Roll back, for ``reason``; False if it is too late for that.

        :param leave: if undoing it cannot be done now, let the next daemon do it.
        """
        return self._waiting.stop(reason, leave=leave)

    def lost(self, filesystem: str, node: str, why: str, *, surely: bool = False) -> bool:
        """Roll back, if a filesystem is gone from where it is moved away before the commit.

        :param filesystem: named as its placement is.
        :param surely: it cannot be the fence that has done that.
        :return: whether it is rolled back for that.
        """
        leaving = {(each.name, each.source) for each in self.plan.moving}
        fenced = begun("fence", self.step) and not surely
        if self._waiting.final or fenced or (filesystem, node) not in leaving:
            return False
        name = filesystem.removeprefix(FILESYSTEM)
        return self.stop(f"the filesystem {name} cannot be used any more on {node}: {why}")

    async def run(self) -> Ledger:
        """Move the site.

        :raise RolledBack: something went wrong; the source serves as before.
        :raise Conflict, Busy: somebody else was first; nothing was begun.
        :raise LeftUnfinished: the daemon stops, or another node has taken it over.
        """
        self._account.begin()
        try:
            if self._left is not None:
                return await self._resume(self._left)
            try:
                await self._to_the_commit()
            except LeftUnfinished:
                raise
            except Superseded as problem:
                await self._hand_over()
                raise LeftUnfinished(str(problem)) from None
            except RegistryError as problem:
                if self._barrier.entry is None:
                    raise
                await self._roll_back(str(problem))
            except RolledBack as undone:
                await self._roll_back(str(undone))
            except Exception as problem:  # a fault of ours must not keep a site held
                log.failure("{site}: the migration has failed", site=self.site)
                await self._roll_back(f"a fault inside the daemon: {problem!r}")
            return await self._release()
        finally:
            self._waiting.end()
            self.ended.fire()

    async def _to_the_commit(self) -> None:
        self._pace.begin("check")  # which is what there is to call off during the first hook
        await self._hook("before", "check")
        if self._make_carriage is None:
            await self._check()
        else:
            await self._begin_open(self._make_carriage)
        if self._carriage is not None:
            await self._presync(self._carriage)
        await self._enter("hold")
        await self._hold()
        await self._drain()
        if self._carriage is not None:
            await self._carry(self._carriage)
        await self._switch()
        await self._enter("commit")
        if self._carriage is not None:
            await self._see_targets()
        await self._barrier.recheck(self._waiting.guard)
        self._waiting.final = True
        try:
            await self._waiting.endure(self._barrier.commit())
        except CancelledError:
            why = "it is not known whether it was committed"
            raise LeftUnfinished(why) from None

    # Steps, up to the commit

    async def _check(self) -> None:
        """Every backend that is to serve from now on has a server that is well."""
        for member in self.plan.members:
            if member.has_gate:
                await self._waiting.guard(self._host.check(member.name, member.target))

    async def _try(self) -> None:
        """The same of servers that may have just been started."""
        late = self._host.reactor.seconds() + START_IN
        while True:
            try:
                return await self._check()
            except RolledBack:
                if self._waiting.stopped or self._host.reactor.seconds() > late:
                    raise
            await deferLater(self._host.reactor, LOOK_EVERY)

    async def _begin_open(self, make: Callable[[int], Carriage]) -> None:
        """A migration that carries has its entry before anything is held."""
        entry = await self._barrier.begin()
        self._barrier.adopt()
        self._carriage = make(entry.id)
        self._record("check")  # once more, now that there is an entry
        await self._waiting.do(self._carriage.check())
        for member in self._filesystems():  # what was checked has to be it
            await self._waiting.guard(self._host.usable(member.name, member.source))

    async def _presync(self, carriage: Carriage) -> None:
        """Carry what there is, round after round, until a pause would be short enough."""
        rounds: list[list[Round]] = []
        now = self._host.reactor.seconds
        await self._enter("presync")
        while True:
            total = (await self._waiting.do(carriage.estimate())).pending
            began = now()
            rounds.append(await self._waiting.do(carriage.presync(self._pace.meter(total), now)))
            seconds = now() - began
            size = sum(each.size for each in rounds[-1])
            pending = sum(each.pending for each in rounds[-1])
            verdict = predict_all(rounds, self._max_pause)
            self._pace.say(
                f"round {len(rounds)}: {size:,} bytes in {seconds:.1f} s; {pending:,} are left,"
                f" which would take {verdict.predicted:.1f} s",
                predicted=round(verdict.predicted, 3),
            )
            if verdict.do == "refuse":
                raise RolledBack(verdict.why)
            if verdict.do == "hold":
                return

    async def _hold(self) -> None:
        await self._barrier.hold()
        self._account.begin()
        self._held_at = self._host.reactor.seconds()
        self._waiting.later(self._max_pause, self._overrun)

    def _overrun(self) -> None:
        if not self._waiting.final:
            self.stop(f"the pause took longer than {self._max_pause:g} s")

    async def _drain(self) -> None:
        cutting: IDelayedCall | None = None
        if self._force:
            cutting = self._waiting.later(self._max_pause / 2, self._barrier.cut)
        await self._enter("drain")
        try:
            await self._barrier.drain(self._waiting.guard)
        except Overtaken as problem:
            raise RolledBack(str(problem)) from None
        if cutting is not None and cutting.active():
            cutting.cancel()  # or it would cut those who try the target

    async def _carry(self, carriage: Carriage) -> None:
        """Everything that happens to the data in the pause."""
        await self._enter("stop")
        await self._waiting.do(carriage.stop_source())
        await self._enter("fence")
        await self._waiting.do(carriage.fence())
        await self._enter("sync")
        await self._waiting.do(carriage.sync(self._pace.meter(0)))
        await self._enter("attach")
        await self._waiting.do(carriage.attach())
        await self._enter("mount")
        for member in self._filesystems():
            await self._waiting.guard(self._host.mounted(member.name, member.target))
        await self._enter("compare")
        await self._waiting.do(carriage.verify())  # before services begin to write there
        await self._enter("start")
        await self._waiting.do(carriage.start_target())

    async def _switch(self) -> None:
        await self._enter("switch")
        self._barrier.switch()
        await self._enter("verify")
        if self._carriage is not None:
            await self._waiting.guard(self._host.trials.admit(self.plan))
            await self._try()
        else:
            await self._check()

    def _filesystems(self) -> list[Member]:
        return [member for member in self.plan.moving if not member.has_gate]

    async def _see_targets(self) -> None:
        """What was mounted there still is."""
        for member in self._filesystems():
            await self._waiting.guard(self._host.usable(member.name, member.target))

    # The end

    async def _release(self) -> Ledger:
        """Everything is on the target: let it be used."""
        self._host.trials.dismiss(self.plan)
        self._barrier.adopt()
        await self._enter("release")
        last = await self._barrier.open(self._barrier.forward(), self._by, self._opened)
        await self._enter("clean")
        await self._until_released()
        if self._carriage is not None:
            await self._waiting.tidy(self.step, self._carriage.clean)
        await self._enter("")
        ledger = await self._ledger("done", "")
        await self._write_end("done", last, "", ledger)
        return ledger

    def _opened(self) -> None:
        if self._held_at is not None:
            self._pause = self._host.reactor.seconds() - self._held_at

    async def _until_released(self) -> None:
        """Those held by this migration have gone on; so the ledger can tell.

        Who wants to stop the migration by now is not kept waiting for the sake of that.
        """
        late = self._host.reactor.seconds() + RELEASE_AT_MOST
        for waiting, every in (
            (self._barrier.waiting, 0.01),
            (self._barrier.waiting_elsewhere, 0.1),
        ):
            while not self._waiting.hurried and await waiting():
                if self._host.reactor.seconds() > late:
                    return
                await deferLater(self._host.reactor, every)

    async def _hand_over(self) -> None:
        """Another node ends it: do nothing any more but what that node and the registry say."""
        self._waiting.final = True
        if self._carriage is not None:
            self._carriage.begin_undoing()
        self._host.trials.dismiss(self.plan)
        try:
            await self._barrier.give_up()
        except RegistryError as problem:  # then it is heard of
            self._pace.trouble(self.step, problem)

    async def _roll_back(self, reason: str, reached: str = "") -> None:
        """The source serves again; then say so.

        :param reached: the last step that may have begun, if that is not known.
        """
        self._waiting.final = True
        step = self.step
        if self._barrier.entry is None:
            self._pace.begin("")
            raise RolledBack(reason, step, await self._ledger("rolled back", reason))
        self._pace.begin("roll back")
        self._host.trials.dismiss(self.plan)
        if self._carriage is not None:
            self._carriage.begin_undoing()
        await self._hook("before", "roll back")
        left: list[Work] = []
        if self._carriage is not None:
            left = await self._retreat.undo(self._carriage, reached or step)
        by = f"{self._by} (rolled back)"
        last = await self._barrier.open(self._barrier.back(), by, self._opened)
        await self._until_released()
        if self._carriage is not None:
            for undo in left:
                await self._waiting.tidy(self.step, undo)
            # Before the first round there is nothing to tidy up; but a dead daemon's journal
            # may say less than was done.
            if self._left is not None or begun("presync", step):
                await self._hook("before", "abandon")
                self._pace.begin("abandon")
                await self._waiting.tidy(self.step, self._carriage.abandon)
                await self._hook("after", "abandon")
        await self._hook("after", "roll back")
        self._pace.begin("")
        ledger = await self._ledger("rolled back", reason)
        await self._write_end("rolled back", last, reason, ledger)
        raise RolledBack(reason, step, ledger)

    async def _resume(self, entry: Entry) -> Ledger:
        """Take a migration that a dead daemon has left to the end that its commit decides."""
        if self._make_carriage is not None:
            self._carriage = self._make_carriage(entry.id)
        self._waiting.final = True
        self._by = "recovery after a crash"
        if entry.state == "committed":
            return await self._release()
        self._pace.take_up(entry.step)
        # Nobody waits for a step to be on the disk, only for the hold that precedes all of
        # those that change something: whatever comes behind that may have begun.
        reached = "verify" if begun("hold", entry.step) else entry.step
        await self._roll_back(f"the daemon died during the step {entry.step or 'hold'!r}", reached)
        raise AssertionError("a rollback ends with RolledBack")

    async def _write_end(
        self,
        state: Literal["done", "rolled back"],
        last: dict[str, Placement],
        reason: str,
        ledger: Ledger,
    ) -> None:
        """Close the journal's entry, if need be later; it is true already."""
        entry = self._barrier.entry
        assert entry is not None
        plain = json.loads(json.dumps(ledger.as_json()))
        try:
            await self._barrier.finish(state, last, reason, plain)
        except NotAllowed as problem:  # who has taken it over ends it in the same way
            log.info("{site}: {why}", site=self.site, why=problem)
        except RegistryError as problem:
            log.error(
                "{site}: the end of migration {id} ({state}) is not recorded yet: {problem}",
                site=self.site,
                id=entry.id,
                state=state,
                problem=problem,
            )
            if not self._waiting.leaving:  # the next daemon finds the entry
                self._host.reactor.callLater(TRY_AGAIN, self._write_later, state, reason, ledger)

    def _write_later(self, state: Any, reason: str, ledger: Ledger) -> None:
        # What was held in doubt may be known by now.
        last = self._barrier.stored() if state == "done" else self._barrier.back()
        writing = self._write_end(state, last, reason, ledger)
        deferred = Deferred.fromCoroutine(writing)
        deferred.addErrback(lambda failure: log.failure("journal", failure))

    # Progress

    async def _enter(self, step: str) -> None:
        """A step begins, with the hooks between it and the one before."""
        await self._hook("after", self.step)
        await self._hook("before", step)
        if self._barrier.entry is None or self._waiting.final or not step:
            self._pace.begin(step)
            return
        # Where another node may take it over, no step that changes something is begun before
        # it is known that none has.
        if self._carriage is not None and not self._host.cluster.alone and begun("hold", step):
            await self._waiting.guard(self._recorded(step))
        else:
            self._record(step)

    async def _hook(self, when: str, step: str) -> None:
        if self._hooks is None or not step:
            return
        number = self._barrier.entry.id if self._barrier.entry is not None else 0
        try:
            wait = self._waiting.endure if self._waiting.final else self._waiting.do
            await wait(self._hooks.run(when, step, number))
        except (HookFailed, CancelledError) as problem:
            self._pace.trouble(step, problem)

    def _record(self, step: str) -> None:
        """A step before the commit begins; the registry writes in turn, so this comes first.

        Requests wait, so nobody waits for the disk: every step up to the commit is undone
        in the same way, and if this cannot be written the commit cannot either.
        """
        self._recorded(step).addErrback(
            lambda failure: log.error(
                "{site}: the step {step!r} is not recorded: {why}",
                site=self.site,
                step=step,
                why=failure.getErrorMessage(),
            )
        )

    def _recorded(self, step: str) -> Deferred[None]:
        """The same; fires when that is written."""
        entry = self._barrier.entry
        assert entry is not None
        self._pace.begin(step)
        return self._host.registry.step(entry.id, step)

    async def _ledger(self, outcome: Literal["done", "rolled back"], reason: str) -> Ledger:
        return await self._account.ledger(
            outcome,
            reason,
            pause=self._pause,
            steps=self._pace.spent,
            bytes_moved=self._carriage.carried if self._carriage is not None else 0,
        )
