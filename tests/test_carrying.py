"""A migration that carries data: whatever a step does, the source serves, or the target does.

The engine is the real one, and so is the registry, in memory; movers, services and the node
follow a script.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from carrying_stage import DATA, MAX_PAUSE, PLAN, House, Told, a_house, migration
from daemon_stage import twisted_test
from twisted.internet.defer import Deferred

from awesomeproxy.migrate.plan import Member, Plan
from awesomeproxy.migrate.retreat import LOOK_EVERY, START_IN, UNDO_TARGET
from awesomeproxy.migrate.waiting import LEAVE_IN, LeftUnfinished, RolledBack
from awesomeproxy.model import Ledger, Mode, Placement
from awesomeproxy.movers.interface import MoverError
from awesomeproxy.registry.interface import Doubtful, Entry, RegistryError

BEFORE_THE_HOLD = ("check", "presync")
HELD = ("stop", "fence", "sync", "attach", "mount", "compare", "start")
LINES = {step: f"{step} data" for step in (*BEFORE_THE_HOLD, *HELD)} | {
    "mount": "mount n2",
    "compare": "verify data",
    "start": "start blog@two",
    "stop": "stop blog@one",
}
HOLDS = ["blog holding one", f"{DATA} holding n1"]
OPENS = [f"{DATA} open n1", "blog open one"]


async def ends(running: Deferred[Ledger], step: str = "") -> RolledBack:
    """A migration that was rolled back; nothing is left to happen."""
    assert running.called, "it waits for something"
    with pytest.raises(RolledBack) as caught:
        await running
    assert step in ("", caught.value.step)
    return caught.value


async def is_whole(house: House) -> None:
    """The source serves as before, here as in the registry; no timer is left."""
    assert house.is_at("blog", DATA) == ["open one", "open n1"]
    stored = await house.registry.placements()
    assert stored == house.placements
    assert not house.reactor.getDelayedCalls()


def undone(house: House, step: str, *then: str) -> None:
    """What was begun was undone, the last of it first, and all of it before the site opened.

    :param then: what was done between the two.
    """
    said = house.script.steps()
    if step in BEFORE_THE_HOLD:
        assert ("abandon data" in said) is (step != "check")  # by then nothing was done
        assert not {"blog holding one", "unfence data", "detach data"} & set(said)
        return
    begun = HELD[: HELD.index(step) + 1]
    wanted = ["stop blog@two"] if "start" in begun else []
    wanted += ["detach data"] if "attach" in begun else []
    wanted += ["unfence data"] if "fence" in begun else []
    wanted += ["start blog@one", *then, *OPENS, "abandon data"]
    assert said[-len(wanted) :] == wanted


# How it goes


@twisted_test
async def test_everything_is_done_in_its_order() -> None:
    """The source is fenced before the last of it is carried; the target starts before it serves."""
    house = await a_house()
    ledger = await migration(house).run()
    assert house.script.steps() == [
        *("check data", "presync data", *HOLDS),
        *("stop blog@one", "fence data", "sync data", "attach data", "mount n2"),
        *("verify data", "start blog@two", f"{DATA} holding n2", "blog holding two"),
        *(f"{DATA} open n2", "blog open two", "clean data"),
    ]
    assert (ledger.outcome, ledger.bytes_moved) == ("done", 110)
    assert (await house.entry()).state == "done"
    assert await house.registry.placements() == house.placements
    assert not house.reactor.getDelayedCalls()


# How it fails


@pytest.mark.parametrize("problem", [MoverError("no such luck"), ZeroDivisionError("no such luck")])
@pytest.mark.parametrize("step", [*BEFORE_THE_HOLD, *HELD])
@twisted_test
async def test_a_step_that_fails_is_undone(step: str, problem: Exception) -> None:
    """Whatever it raises."""
    house = await a_house()
    house.script.faults[LINES[step]] = [problem]
    failed = await ends(Deferred.fromCoroutine(migration(house).run()), step)
    assert "no such luck" in str(failed)
    undone(house, step)
    await is_whole(house)
    assert ((await house.entry()).state, (await house.entry()).step) == ("rolled back", step)


@pytest.mark.parametrize("step", [*BEFORE_THE_HOLD, *HELD])
@twisted_test
async def test_a_step_that_is_called_off_is_ended_and_undone(step: str) -> None:
    """It has ended before anything is undone."""
    house = await a_house()
    house.script.hangs = {LINES[step]}
    moving = migration(house)
    running = Deferred.fromCoroutine(moving.run())
    assert moving.step == step
    assert moving.stop("it was aborted")
    assert "it was aborted" in str(await ends(running, step))
    said = house.script.said
    assert said.index(f"end {LINES[step]}") == said.index(LINES[step]) + 1
    undone(house, step)
    await is_whole(house)


@twisted_test
async def test_a_step_that_is_called_off_twice_is_ended_once() -> None:
    """A second time would break off how it ends what it has started."""
    house = await a_house()
    ending: Deferred[None] = Deferred()
    house.script.hangs = {"sync"}
    house.script.ending = ending
    moving = migration(house)
    running = Deferred.fromCoroutine(moving.run())
    moving.stop("it was aborted")
    moving.stop("the daemon is stopping", leave=True)
    house.reactor.advance(MAX_PAUSE)
    assert house.script.said[-1] == "end sync data"
    ending.callback(None)
    assert "it was aborted" in str(await ends(running, "sync"))
    await is_whole(house)


@twisted_test
async def test_a_source_that_is_not_mounted_is_not_carried() -> None:
    """Nobody may have told; what was checked was the directory beneath it."""
    house = await a_house()
    house.gone = {"n1"}
    assert "n1 has lost it" in str(await ends(Deferred.fromCoroutine(migration(house).run())))
    assert house.script.said == ["check data"]
    await is_whole(house)


@twisted_test
async def test_a_target_that_is_lost_after_all_leads_back() -> None:
    """It was mounted, and is not any more when all is done but the commit."""
    house = await a_house()
    told = Told()
    told.at["commit"] = lambda: house.gone.add("n2")
    failed = await ends(Deferred.fromCoroutine(migration(house, told).run()), "commit")
    assert "n2 has lost it" in str(failed)
    assert {"stop blog@two", "detach data", "unfence data"} <= set(house.script.said)
    await is_whole(house)


@pytest.mark.parametrize("step", [*BEFORE_THE_HOLD, *HELD])
@twisted_test
async def test_a_source_that_is_lost_leads_back(step: str) -> None:
    """From the fence on that may be the mover's doing, unless somebody knows better."""
    house = await a_house()
    house.script.hangs = {LINES[step]}
    moving = migration(house)
    running = Deferred.fromCoroutine(moving.run())
    assert moving.step == step
    assert not moving.lost(DATA, "n2", "gone")
    fenced = step in HELD and step != "stop"
    assert moving.lost(DATA, "n1", "gone") is not fenced
    assert moving.lost(DATA, "n1", "gone", surely=True) is fenced
    assert "data cannot be used any more on n1: gone" in str(await ends(running, step))
    assert not moving.lost(DATA, "n1", "gone", surely=True)
    await is_whole(house)


@pytest.mark.parametrize("step", HELD)
@twisted_test
async def test_a_step_that_outlasts_the_pause_is_undone(step: str) -> None:
    """The pause is counted from the hold on, whichever step it is."""
    house = await a_house()
    house.script.hangs = {LINES[step]}
    running = Deferred.fromCoroutine(migration(house).run())
    house.reactor.advance(MAX_PAUSE - 0.1)
    assert house.is_at("blog")[0].startswith("holding")
    house.reactor.advance(0.1)
    assert f"longer than {MAX_PAUSE:g} s" in str(await ends(running, step))
    await is_whole(house)


@twisted_test
async def test_a_copy_may_take_longer_than_a_pause() -> None:
    """While nothing is held."""
    house = await a_house()
    house.script.hangs = {"presync"}
    moving = migration(house)
    running = Deferred.fromCoroutine(moving.run())
    house.reactor.advance(100 * MAX_PAUSE)
    assert house.is_at("blog") == ["open one"]
    moving.stop("enough")
    await ends(running, "presync")


@pytest.mark.parametrize("step", ["hold", "drain", "stop", "fence", "sync", "switch"])
@twisted_test
async def test_who_calls_it_off_between_two_steps_is_heard_before_the_next(step: str) -> None:
    """What it begins with is not begun any more."""
    house = await a_house()
    told = Told()
    moving = migration(house, told)
    told.at[step] = lambda: moving.stop("it was aborted")
    await ends(Deferred.fromCoroutine(moving.run()))
    assert not {f"{step} data", "fence data"} & set(house.script.said[-1:])
    assert "end" not in " ".join(house.script.said)  # nothing was begun to be ended at once
    await is_whole(house)


@twisted_test
async def test_a_target_that_never_gets_well_leads_back() -> None:
    """It is asked again for some time: it has just been started."""
    house = await a_house()
    house.ill = {"two"}
    running = Deferred.fromCoroutine(migration(house, max_pause=100.0).run())
    for _ in range(99):
        house.reactor.advance(0.1)
    assert house.is_at("blog") == ["holding two"]
    for _ in range(10):
        house.reactor.advance(0.1)
    assert "two is ill" in str(await ends(running, "verify"))
    placed_back = [f"{DATA} holding n1", "blog holding one"]
    undone(house, "start", *placed_back)
    await is_whole(house)


@twisted_test
async def test_who_writes_faster_than_can_be_copied_is_never_held() -> None:
    """And told how much there would be."""
    house = await a_house()
    house.script.sizes = [5_000_000]
    house.script.takes = 1.0
    told = Told()
    failed = str(await ends(Deferred.fromCoroutine(migration(house, told).run()), "presync"))
    assert "5,000,000 bytes" in failed
    assert "pause that may last 10 s" in failed
    assert "--max-pause" in failed
    assert "holding" not in " ".join(house.script.said)
    assert "5,000,000 are left" in told.text
    await is_whole(house)


@pytest.mark.parametrize("method", ["begin", "step", "hold", "commit", "place", "finish"])
@twisted_test
async def test_a_registry_that_fails_leaves_everything_whole(method: str) -> None:
    """Before the commit all is as it was; after it all has moved, and is written down later."""
    house = await a_house()
    house.registry.broken = {method}
    try:
        await migration(house).run()
    except RolledBack:
        assert method in ("hold", "commit")
    except RegistryError:
        assert method == "begin"
    else:
        assert method in ("step", "place", "finish")
        assert house.is_at("blog", DATA) == ["open two", "open n2"]
    assert ("unfence data" in house.script.said) is (method == "commit")
    house.registry.broken = set()
    house.reactor.advance(1)
    if method in ("begin", "hold", "commit"):
        await is_whole(house)
    assert await house.registry.unfinished() == []
    stored = await house.registry.placements()
    assert {name: (p.backend, p.mode) for name, p in stored.items()} == {
        name: (p.backend, p.mode) for name, p in house.placements.items()
    }


# What undoing may cost


@pytest.mark.parametrize("undo", ["detach data", "stop blog@two"])
@twisted_test
async def test_a_target_that_cannot_be_undone_keeps_the_source_waiting_for_a_moment(
    undo: str,
) -> None:
    """It is tried again when the source serves."""
    house = await a_house()
    house.script.faults["start blog@two"] = [MoverError("no")]
    told = Told()
    told.at["start"] = lambda: house.script.hangs.add(undo)
    moving = migration(house, told)
    running = Deferred.fromCoroutine(moving.run())
    house.reactor.advance(UNDO_TARGET - 0.1)
    assert house.is_at("blog") == ["holding one"]
    house.reactor.advance(0.1)
    assert house.is_at("blog") == ["open one"]
    assert house.script.steps()[-1].startswith(undo)  # again
    house.script.hangs.clear()
    moving.stop("", leave=True)
    house.reactor.advance(LEAVE_IN)
    await ends(running, "start")
    assert house.script.steps()[-1] == "abandon data"
    await is_whole(house)


@pytest.mark.parametrize(("undo", "step"), [("unfence data", "fence"), ("start blog@one", "stop")])
@twisted_test
async def test_the_source_is_unfenced_however_often_that_takes(undo: str, step: str) -> None:
    """The site is not opened before that."""
    house = await a_house()
    house.script.faults = {"sync": [MoverError("no")], undo: [MoverError("not yet")] * 5}
    told = Told()
    running = Deferred.fromCoroutine(migration(house, told).run())
    for _ in range(5):
        assert house.is_at("blog") == ["holding one"]
        house.reactor.advance(1)
    await ends(running, "sync")
    assert told.text.count(f"{step}: not yet") == 5
    await is_whole(house)


@pytest.mark.parametrize("recovers", [True, False])
@twisted_test
async def test_services_that_were_started_again_have_time_to_be_well(recovers: bool) -> None:
    """Nobody is sent there before, unless they never are."""
    house = await a_house(Placement("database:shop", "one"))
    house.script.faults["sync"] = [MoverError("no")]
    house.ill = {"one"}
    plan = Plan(PLAN.main, (*PLAN.along, Member("database:shop", "one", "one")))
    running = Deferred.fromCoroutine(migration(house, plan=plan).run())
    house.reactor.advance(START_IN - 0.1)
    assert house.is_at("blog") == ["holding one"]
    assert house.admitted == ["database:shop"]
    if recovers:
        house.ill.clear()
        house.reactor.advance(LOOK_EVERY)
    else:
        house.reactor.pump([0.1, 0.1])
    assert house.is_at("blog") == ["open one"]
    assert not house.admitted
    await ends(running, "sync")
    await is_whole(house)


@twisted_test
async def test_what_is_tidied_up_is_given_up_at_last() -> None:
    """It hurts nobody, and the site serves all the time."""
    house = await a_house()
    house.script.faults["clean"] = [MoverError("no")] * 100
    running = Deferred.fromCoroutine(migration(house).run())
    assert house.is_at("blog") == ["open two"]
    house.reactor.advance(1)
    house.reactor.advance(1)
    assert (await running).outcome == "done"
    assert house.script.said.count("clean data") == 3
    assert not house.reactor.getDelayedCalls()


# A daemon that stops


@pytest.mark.parametrize("step", [*BEFORE_THE_HOLD, *HELD])
@twisted_test
async def test_a_daemon_that_stops_rolls_back(step: str) -> None:
    """If it can, at once."""
    house = await a_house()
    house.script.hangs = {LINES[step]}
    moving = migration(house)
    running = Deferred.fromCoroutine(moving.run())
    moving.stop("the daemon is stopping", leave=True)
    await ends(running, step)
    await is_whole(house)


@pytest.mark.parametrize("hangs", [False, True])
@twisted_test
async def test_a_daemon_that_stops_leaves_what_it_cannot_undo_to_the_next(hangs: bool) -> None:
    """Still held, and still in the journal; it waits for that no longer than it said."""
    house = await a_house()
    house.script.faults["unfence"] = [] if hangs else [MoverError("no")] * 100
    house.script.hangs = {"sync"} | ({"unfence"} if hangs else set())
    moving = migration(house)
    running = Deferred.fromCoroutine(moving.run())
    moving.stop("the daemon is stopping", leave=True)
    if hangs:
        house.reactor.advance(LEAVE_IN - 0.1)
        assert not running.called
        house.reactor.advance(0.1)
    with pytest.raises(LeftUnfinished):
        await running
    assert house.is_at("blog") == ["holding one"]
    assert moving.ended.happened
    assert not house.reactor.getDelayedCalls()
    (entry,) = await house.registry.unfinished()
    house.script.hangs.clear()
    house.script.faults.clear()
    await ends(Deferred.fromCoroutine(migration(house, entry=entry).run()), "sync")
    await is_whole(house)


@twisted_test
async def test_a_daemon_that_stops_does_not_wait_for_tidying_up() -> None:
    """What is left lying about is no more than that."""
    house = await a_house()
    house.script.hangs = {"clean"}
    moving = migration(house)
    running = Deferred.fromCoroutine(moving.run())
    assert moving.step == "clean"
    assert not moving.stop("the daemon is stopping", leave=True)
    house.reactor.advance(LEAVE_IN)
    assert (await running).outcome == "done"
    assert not house.reactor.getDelayedCalls()


# What a crash leaves


async def crashed(house: House, step: str) -> Entry:
    """Leave a migration as a daemon does that dies in ``step``."""
    seen = dict(house.placements)
    entry: Entry = await house.registry.begin(
        "blog", "one", "two", seen["blog"], 1, [(seen[DATA], "n2")]
    )
    await house.registry.step(entry.id, step)
    if step not in BEFORE_THE_HOLD:
        blog, data = (
            replace(
                seen[name],
                mode=Mode.HOLDING,
                generation=2,
                then="resume" if seen[name].mode is Mode.OPEN else seen[name].then,
            )
            for name in ("blog", DATA)
        )
        await house.registry.hold(entry.id, blog, 2, [data])
        await house.registry.step(entry.id, step)
    if step in ("commit", "release", "clean"):
        moved = [
            replace(each, backend=where, generation=3)
            for each, where in ((blog, "two"), (data, "n2"))
        ]
        await house.registry.commit(entry.id, moved[0], 3, moved[1:])
    house.placements = await house.registry.placements()
    (entry,) = await house.registry.unfinished()
    return entry


@pytest.mark.parametrize("step", [*BEFORE_THE_HOLD, "hold", "drain", *HELD, "switch", "verify"])
@twisted_test
async def test_what_a_crash_leaves_before_the_commit_is_undone(step: str) -> None:
    """Once it was held anything may have begun, whether or not that was written down."""
    house = await a_house()
    entry = await crashed(house, step)
    house.reactor.advance(86400.0)
    failed = await ends(Deferred.fromCoroutine(migration(house, entry=entry).run()), step)
    assert failed.ledger is not None
    assert set(failed.ledger.steps.values()) == {0.0}  # the step has not taken all that time
    assert f"died during the step '{step}'" in str(failed)
    if step in BEFORE_THE_HOLD:
        assert house.script.said == ["abandon data"]
    else:
        assert house.script.said == [
            *("stop blog@two", "detach data", "unfence data", "start blog@one"),
            *(*OPENS, "abandon data"),
        ]
    await is_whole(house)
    assert (await house.entry()).state == "rolled back"


@pytest.mark.parametrize("step", ["commit", "release", "clean"])
@twisted_test
async def test_what_a_crash_leaves_after_the_commit_goes_on(step: str) -> None:
    """On the target, where it is opened and tidied up."""
    house = await a_house()
    entry = await crashed(house, step)
    ledger = await migration(house, entry=entry).run()
    assert ledger.outcome == "done"
    assert house.script.said == [f"{DATA} open n2", "blog open two", "clean data"]
    assert (await house.entry()).state == "done"
    assert await house.registry.placements() == house.placements


@twisted_test
async def test_what_was_paused_before_a_crash_is_paused_after_it() -> None:
    """Until the end of its own pause."""
    house = await a_house()
    paused = replace(house.placements["blog"], mode=Mode.HOLDING, expires=9e9, then="resume")
    house.placements["blog"] = replace(paused, generation=1)
    entry = await crashed(house, "sync")
    await ends(Deferred.fromCoroutine(migration(house, entry=entry).run()))
    assert house.is_at("blog", DATA) == ["holding one", "open n1"]
    assert house.placements["blog"].expires == 9e9


@twisted_test
async def test_a_site_that_is_served_no_more_is_undone_all_the_same() -> None:
    """Somebody else may live in its filesystem."""
    house = await a_house()
    entry = await crashed(house, "sync")
    house.unserved = {"blog"}
    await ends(Deferred.fromCoroutine(migration(house, entry=entry).run()), "sync")
    assert "unfence data" in house.script.said
    assert (await house.entry()).state == "rolled back"


# Company

SHOP = "database:shop"
COMPANY = Plan(
    Member("blog", "one", "two"),
    (Member(DATA, "n1", "n2"), Member(SHOP, "d1", "d2"), Member("news", "one", "one")),
)


async def company(**modes: Mode) -> House:
    return await a_house(
        Placement(SHOP, "d1", modes.get("shop", Mode.OPEN)),
        Placement("news", "one", modes.get("news", Mode.OPEN)),
    )


@twisted_test
async def test_sites_are_drained_before_their_database_is_held() -> None:
    """A request in flight may need one more connection; and the database goes on first."""
    house = await company()
    house.busy = {"news"}
    moving = migration(house, plan=COMPANY, movers=("data", "shop"))
    running = Deferred.fromCoroutine(moving.run())
    assert house.is_at("blog", "news", SHOP) == ["holding one", "holding one", "open d1"]
    house.leave("news")
    assert (await running).outcome == "done"
    said = house.script.steps()
    assert said.index(f"quieten {SHOP}") < said.index(f"{SHOP} holding d1")
    assert (
        said.index(f"{SHOP} open d2") < said.index("blog open two") < said.index(f"awaken {SHOP}")
    )
    assert house.is_at("blog", "news", SHOP) == ["open two", "open one", "open d2"]


@pytest.mark.parametrize("fails", [False, True])
@twisted_test
async def test_who_was_paused_before_is_paused_afterwards(fails: bool) -> None:
    """Also if the migration is rolled back; all the others go on."""
    house = await company(shop=Mode.HOLDING, news=Mode.HOLDING)
    if fails:
        house.ill = {"two"}
    running = Deferred.fromCoroutine(migration(house, plan=COMPANY, max_pause=100.0).run())
    if fails:
        for _ in range(110):
            house.reactor.advance(0.1)
        await ends(running, "verify")
    else:
        await running
    place, database = ("one", "d1") if fails else ("two", "d2")
    assert house.is_at("blog", "news", SHOP) == [
        *(f"open {place}", "holding one", f"holding {database}"),
    ]
    assert await house.registry.placements() == house.placements
    assert house.admitted == []  # nobody passes the gate that stays closed


@twisted_test
async def test_a_member_that_somebody_else_has_changed_leads_back() -> None:
    """What they made of it stays."""
    house = await company()
    house.busy = {"blog"}
    running = Deferred.fromCoroutine(migration(house, plan=COMPANY).run())
    seen = house.placements["news"]
    house.adopt(await house.registry.place(replace(seen, by="other", expires=7e9), seen.generation))
    house.leave("blog")
    assert "news was changed by 'other'" in str(await ends(running, "drain"))
    assert house.is_at("blog", "news", SHOP) == ["open one", "holding one", "open d1"]
    assert house.placements["news"].expires == 7e9


@pytest.mark.parametrize("entered", ["drain", "drained"])
@twisted_test
async def test_what_is_not_held_before_the_sites_are_drained_goes_back_with_them(
    entered: str,
) -> None:
    """The holds of all are written by then; the next migration is not kept from beginning."""
    house = await company()
    told = Told()
    moving = migration(house, told, plan=COMPANY, movers=("data", "shop"))
    if entered == "drain":  # it has not begun to wait
        told.at["drain"] = lambda: moving.stop("it was aborted")
    else:
        house.busy = {"news"}
    running = Deferred.fromCoroutine(moving.run())
    moving.stop("it was aborted")
    assert "it was aborted" in str(await ends(running, "drain"))
    assert f"{SHOP} holding d1" not in house.script.said
    assert f"{DATA} holding n1" not in house.script.said
    assert house.is_at("news", SHOP) == ["open one", "open d1"]
    await is_whole(house)
    assert (await house.entry()).state == "rolled back"
    house.busy.clear()
    assert (await migration(house, plan=COMPANY, movers=("data", "shop")).run()).outcome == "done"


# A registry that is lost while it is asked


class Doubting:
    """A registry that holds, and is lost before it can say so."""

    def __init__(self, house: House, heard: bool) -> None:
        self._house = house
        self._registry = house.registry
        self._heard = heard  # at once: the node follows what is written
        self.placed: dict[str, Placement] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    async def _hold(self, *args: Any) -> None:
        self.placed = await self._registry.hold(*args)
        if self._heard:
            self.hear()
        raise Doubtful("the registry was lost")

    def hold(self, *args: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(self._hold(*args))

    def hear(self) -> None:
        for placement in self.placed.values():
            self._house.adopt(placement)


@pytest.mark.parametrize("heard", [True, False])
@twisted_test
async def test_a_hold_of_which_nothing_is_known_is_not_left(heard: bool) -> None:
    """The migration is undone, and when the hold turns up it is as well."""
    house = await a_house()
    house.registry = registry = Doubting(house, heard)
    with pytest.raises(RolledBack, match="the registry was lost"):
        await migration(house).run()
    if not heard:
        registry.hear()
        assert house.is_at("blog") == ["holding one"]
        house.reactor.advance(1)
    assert house.is_at("blog") == ["open one"]
    assert (await house.entry()).state == "rolled back"
