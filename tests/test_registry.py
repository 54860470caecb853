"""One contract for every embedded registry, and what the one in a file adds to it."""

from __future__ import annotations

import itertools
import os
import random
import resource
import secrets
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import LoggedFailures
from pytest_twisted import blockon, ensureDeferred  # type: ignore[import-untyped]
from redis_stage import Redis, redis
from stage_waiting import until
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults
from zope.interface import directlyProvides
from zope.interface.verify import verifyObject

from awesomeproxy.model import Cluster, Mode, Placement
from awesomeproxy.registry.interface import (
    Busy,
    Companion,
    Conflict,
    Entry,
    IRegistry,
    NotAllowed,
    RegistryError,
    Superseded,
)
from awesomeproxy.registry.local import LocalRegistry
from awesomeproxy.registry.memory import MemoryRegistry
from awesomeproxy.registry.redis import RedisRegistry

HOLD = Placement("blog", "web1", Mode.HOLDING, by="migrate to web2")
MOVED = replace(HOLD, backend="web2")
OPENED = Placement("blog", "web2", by="migrate to web2")
BACK = Placement("blog", "web1", by="rollback")

Registry = Any  # that provides IRegistry


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis for all tests here; each has keys of its own in it."""
    with redis(tmp_path_factory.mktemp("redis")) as started:
        yield started


class InTurn:
    """Two nodes' registries in one Redis, each asked every other time."""

    def __init__(self, *registries: RedisRegistry) -> None:
        self._both = registries
        self._next = itertools.cycle(registries)
        directlyProvides(self, IRegistry)

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Of the first: it hears of the other's changes, too."""
        return self._both[0].subscribe(callback)

    def close(self) -> Deferred[Any]:
        """Close both."""
        return gatherResults([each.close() for each in self._both])

    def __getattr__(self, name: str) -> Any:
        return getattr(next(self._next), name)


@pytest.fixture(params=["memory", "local", "redis", "redis in turn"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    """Each implementation, with a clock that stands still and a journal of five."""
    opened: Registry
    if request.param == "memory":
        opened = MemoryRegistry(now=lambda: 1e9, keep=5)
    elif request.param == "local":
        path = tmp_path / "registry.sqlite"
        opened = blockon(LocalRegistry.open(reactor, path, now=lambda: 1e9, keep=5))
    else:
        started: Redis = request.getfixturevalue("server")
        cluster = Cluster((("127.0.0.1", started.port),), prefix=secrets.token_hex(4))
        both = []
        for name in ["web1", "web2"][: 1 + ("in turn" in request.param)]:
            home = tmp_path / name
            home.mkdir()
            opening = RedisRegistry.open(reactor, cluster, name, home, now=lambda: 1e9, keep=5)
            both.append(blockon(opening))
        opened = both[0] if len(both) == 1 else InTurn(*both)
    yield opened
    blockon(opened.close())


async def refused(kind: type[RegistryError], answer: Deferred[Any]) -> str:
    """What it was refused with."""
    with pytest.raises(kind) as caught:
        await answer
    return str(caught.value)


async def told_of(registry: Registry, told: list[str], wanted: list[str]) -> None:
    """That subscribers are told of these; in a cluster perhaps late, and of two at once."""
    if isinstance(registry, InTurn):
        await until(lambda: set(wanted) <= set(told))
    else:
        assert told == wanted


async def begun(registry: Registry) -> Entry:
    """A running migration of the blog from web1 to web2, holding at generation 2."""
    await registry.place(Placement("blog", "web1"), 0)
    entry: Entry = await registry.begin("blog", "web1", "web2", HOLD, 1)
    return entry


# The contract: placements


def test_it_provides_the_interface(registry: Registry) -> None:
    """Every method of the interface is there and takes its arguments."""
    verifyObject(IRegistry, registry)


@ensureDeferred
async def test_it_starts_empty(registry: Registry) -> None:
    """Nothing is placed, defined or unfinished in a new registry."""
    assert await registry.placements() == {}
    assert await registry.definitions() == {}
    assert await registry.unfinished() == []
    assert await registry.history(None, 10) == []


@ensureDeferred
async def test_the_first_generation_is_one(registry: Registry) -> None:
    """A site that was not stored is placed at generation 1, whatever the new placement says."""
    placed = await registry.place(Placement("blog", "web1", generation=77), 0)
    assert placed == Placement("blog", "web1", generation=1)
    assert await registry.placements() == {"blog": placed}


@ensureDeferred
async def test_every_field_is_kept(registry: Registry) -> None:
    """What was placed is read back as it was placed."""
    hold = Placement("blög", "web1", Mode.HOLDING, 1, 'pause by "ann"', 1e9 + 0.1, "resume")
    assert await registry.place(hold, 0) == hold
    assert (await registry.placements())["blög"] == hold


@ensureDeferred
async def test_a_change_adds_one_to_the_generation(registry: Registry) -> None:
    """The new generation is the expected one and one more; other sites keep theirs."""
    await registry.place(Placement("blog", "web1"), 0)
    await registry.place(Placement("shop", "web1"), 0)
    for expected in range(1, 5):
        placed = await registry.place(Placement("blog", "web2"), expected)
        assert placed.generation == expected + 1
    assert (await registry.placements())["shop"].generation == 1


@ensureDeferred
async def test_the_loser_is_told_who_won(registry: Registry) -> None:
    """A change that expects an old generation fails, names who was first, changes nothing."""
    await registry.place(Placement("blog", "web1"), 0)
    won = await registry.place(replace(OPENED, mode=Mode.HOLDING), 1)
    with pytest.raises(Conflict) as caught:
        await registry.place(Placement("blog", "web3"), 1)
    assert caught.value.stored == won
    assert str(caught.value) == (
        'blog: generation 1 was expected, but it is at 2, changed by "migrate to web2"'
    )
    assert await registry.placements() == {"blog": won}


@pytest.mark.parametrize("expected", [-1, 1, 7])
@ensureDeferred
async def test_what_is_not_placed_cannot_be_expected(registry: Registry, expected: int) -> None:
    """A site that is not stored is at generation 0 and no other."""
    message = await refused(Conflict, registry.place(Placement("blog", "web1"), expected))
    assert message == f"blog: generation {expected} was expected, but it is not placed"


@ensureDeferred
async def test_of_many_at_once_one_wins(registry: Registry) -> None:
    """Of many that expect the same generation one succeeds, and all others name it."""
    await registry.place(Placement("blog", "web1"), 0)
    rivals = [Placement("blog", "web2", by=f"rival {number}") for number in range(30)]
    places = [registry.place(rival, 1) for rival in rivals]
    answers: list[tuple[bool, Any]] = await DeferredList(places, consumeErrors=True)
    (winner,) = [placed for won, placed in answers if won]
    lost = [failure.value for won, failure in answers if not won]
    assert len(lost) == 29
    assert all(conflict.stored == winner for conflict in lost)
    assert await registry.placements() == {"blog": winner}
    assert winner.generation == 2


@ensureDeferred
async def test_a_forgotten_site_is_gone(registry: Registry) -> None:
    """After forget the site is not placed, and forget needs the right generation."""
    await registry.place(Placement("blog", "web1"), 0)
    await refused(Conflict, registry.forget("blog", 2))
    await registry.forget("blog", 1)
    assert await registry.placements() == {}
    await refused(Conflict, registry.forget("blog", 1))


@ensureDeferred
async def test_a_forgotten_site_goes_on_from_where_it_was(registry: Registry) -> None:
    """A site placed again has a larger generation than it ever had before."""
    for expected in range(4):
        await registry.place(Placement("blog", "web1"), expected)
    await registry.forget("blog", 4)
    assert (await registry.place(Placement("blog", "web2"), 0)).generation == 5
    assert (await registry.place(Placement("blog", "web1"), 5)).generation == 6
    assert (await registry.place(Placement("shop", "web1"), 0)).generation == 1


@ensureDeferred
async def test_many_are_placed_at_once(registry: Registry) -> None:
    """Each as if it were placed by itself, and subscribers are told of each."""
    await registry.place(Placement("blog", "web1"), 0)
    await registry.forget("blog", 1)
    told: list[str] = []
    registry.subscribe(told.append)
    placed = await registry.place_new([Placement("blog", "web2"), Placement("shop", "web1")])
    assert placed == [Placement("blog", "web2", generation=2), Placement("shop", "web1")]
    assert await registry.placements() == {each.site: each for each in placed}
    await told_of(registry, told, ["blog", "shop"])


@ensureDeferred
async def test_of_many_none_is_placed_if_one_is_already(registry: Registry) -> None:
    """Whoever loses against somebody else has written nothing."""
    stored = await registry.place(Placement("shop", "web1"), 0)
    many = [Placement("blog", "web1"), Placement("shop", "web2")]
    message = await refused(Conflict, registry.place_new(many))
    assert message.startswith("shop: generation 0 was expected, but it is at 1")
    assert await registry.placements() == {"shop": stored}


# The contract: definitions


@ensureDeferred
async def test_definitions_come_back_as_they_were(registry: Registry) -> None:
    """A table of JSON values is read back equal, and the last one of a name counts."""
    table: dict[str, Any] = {"hosts": ["a.example", "ü"], "ramp": {"start": 3, "t": 0.2}, "x": None}
    await registry.define("blog", {"hosts": []})
    await registry.define("blog", table)
    await registry.define("shop", {})
    assert await registry.definitions() == {"blog": table, "shop": {}}
    await registry.undefine("blog")
    await registry.undefine("never defined")
    assert await registry.definitions() == {"shop": {}}


@ensureDeferred
async def test_a_definition_is_what_it_was_when_given(registry: Registry) -> None:
    """Changing the table after it was handed over, or the answer, changes nothing stored."""
    table: dict[str, Any] = {"hosts": ["a.example"]}
    defined = registry.define("blog", table)
    table["hosts"].append("b.example")
    await defined
    (await registry.definitions())["blog"]["hosts"].append("c.example")
    assert await registry.definitions() == {"blog": {"hosts": ["a.example"]}}


@pytest.mark.parametrize("value", [b"bytes", float("nan"), {1, 2}])
@ensureDeferred
async def test_what_is_not_json_is_not_defined(registry: Registry, value: object) -> None:
    """A table with anything that JSON has not is refused whole."""
    with pytest.raises((TypeError, ValueError)):
        await registry.define("blog", {"hosts": ["a.example"], "x": value})
    assert await registry.definitions() == {}


# The contract: migrations


@ensureDeferred
async def test_begin_holds_and_records(registry: Registry) -> None:
    """A migration begins with its hold placed and its entry running."""
    entry = await begun(registry)
    assert entry == Entry(1, "blog", "web1", "web2", generation=2, began=1e9)
    assert entry.unfinished
    assert await registry.unfinished() == [entry]
    assert await registry.placements() == {"blog": replace(HOLD, generation=2)}


@ensureDeferred
async def test_a_migration_that_is_done(registry: Registry) -> None:
    """Steps, commit and finish leave the site open on its target, and the ledger in history."""
    entry = await begun(registry)
    await registry.step(entry.id, "copy")
    await registry.step(entry.id, "switch")
    assert await registry.unfinished() == [replace(entry, step="switch")]
    moved = await registry.commit(entry.id, MOVED, 2)
    assert moved == {"blog": replace(MOVED, generation=3)}
    committed = replace(entry, step="switch", state="committed", generation=3)
    assert await registry.unfinished() == [committed]
    await registry.step(entry.id, "release")
    opened = await registry.finish(entry.id, "done", OPENED, 3, "", {"held": 3})
    assert opened == {"blog": replace(OPENED, generation=4)}
    assert await registry.placements() == opened
    assert await registry.unfinished() == []
    done = replace(committed, step="release", state="done", generation=4, ledger={"held": 3})
    assert await registry.history("blog", 10) == [done]


@ensureDeferred
async def test_a_migration_that_is_rolled_back(registry: Registry) -> None:
    """Before its commit it can end where it began, with the reason kept."""
    entry = await begun(registry)
    back = await registry.finish(entry.id, "rolled back", BACK, 2, "rsync failed")
    assert await registry.placements() == back
    (kept,) = await registry.history(None, 10)
    assert kept == replace(entry, state="rolled back", reason="rsync failed", generation=3)
    assert not kept.unfinished
    assert (await registry.begin("blog", "web1", "web2", HOLD, 3)).id == 2


def _begin(**changes: Any) -> Callable[[Registry, int], Deferred[Any]]:
    return lambda registry, _: registry.begin("blog", "web1", "web2", replace(HOLD, **changes), 1)


def _hold(**changes: Any) -> Callable[[Registry, int], Deferred[Any]]:
    return lambda registry, id: registry.hold(id, replace(HOLD, **changes), 2)


def _commit(**changes: Any) -> Callable[[Registry, int], Deferred[Any]]:
    return lambda registry, id: registry.commit(id, replace(MOVED, **changes), 2)


def _finish(state: Any, placement: Placement, expected: int) -> Callable[..., Deferred[Any]]:
    return lambda registry, id: registry.finish(id, state, placement, expected)


@pytest.mark.parametrize(
    ("reached", "call", "message"),
    [
        ("placed", _begin(backend="web2"), "would place blog on web2"),
        ("placed", _begin(site="shop"), "would place shop on web1"),
        ("running", _commit(mode=Mode.OPEN), "migration 1 of blog would open the gate"),
        ("running", _commit(backend="web1"), "may only place blog on web2"),
        ("running", _commit(site="shop"), "would place shop"),
        ("running", _finish("done", OPENED, 2), "is running: only one that is committed can"),
        ("running", _finish("rolled back", OPENED, 2), "may only place blog on web1"),
        ("running", _hold(backend="web2"), "may only place blog on web1"),
        ("committed", _hold(), "is committed: it holds nothing any more"),
        ("rolled back", _hold(), "is rolled back: it holds nothing any more"),
        ("committed", _commit(), "is committed: only one that is running can become committed"),
        ("committed", _finish("rolled back", BACK, 3), "is committed: only one that is running"),
        ("committed", _finish("done", BACK, 3), "may only place blog on web2"),
        ("done", _commit(), "is done"),
        ("done", _finish("done", OPENED, 4), "is done"),
        ("done", _finish("rolled back", BACK, 4), "is done"),
        ("done", lambda registry, id: registry.step(id, "copy"), "has no step 'copy' to begin"),
        ("rolled back", _commit(), "is rolled back"),
        ("rolled back", _finish("done", OPENED, 3), "is rolled back"),
        ("rolled back", _finish("rolled back", BACK, 3), "is rolled back"),
        ("rolled back", lambda registry, id: registry.step(id, "copy"), "is rolled back"),
        ("running", lambda registry, _: registry.step(9, "copy"), "migration 9: there is none"),
        ("running", lambda registry, _: registry.commit(9, MOVED, 2), "migration 9: there is none"),
    ],
)
@ensureDeferred
async def test_what_cannot_follow_is_refused(
    registry: Registry,
    reached: str,
    call: Callable[[Registry, int], Deferred[Any]],
    message: str,
) -> None:
    """A change out of order, or that does not fit the migration, is refused and changes nothing."""
    if reached == "placed":
        await registry.place(Placement("blog", "web1"), 0)
    else:
        await begun(registry)
    if reached in ("committed", "done"):
        await registry.commit(1, MOVED, 2)
    if reached == "done":
        await registry.finish(1, "done", OPENED, 3)
    if reached == "rolled back":
        await registry.finish(1, "rolled back", BACK, 2)
    before = await everything(registry)
    assert message in await refused(NotAllowed, call(registry, 1))
    assert await everything(registry) == before


async def everything(registry: Registry) -> list[Any]:
    """All that a registry can be asked."""
    return [
        await registry.placements(),
        await registry.definitions(),
        await registry.history(None, 100),
    ]


@ensureDeferred
async def test_a_lost_race_leaves_the_migration_as_it_was(registry: Registry) -> None:
    """Begin, commit and finish fail on a conflict, with the journal unchanged."""
    await registry.place(Placement("blog", "web1"), 0)
    await refused(Conflict, registry.begin("blog", "web1", "web2", HOLD, 7))
    assert await registry.history(None, 10) == []
    entry = await registry.begin("blog", "web1", "web2", HOLD, 1)
    await registry.place(Placement("blog", "web1", by="resume"), 2)
    message = await refused(Conflict, registry.commit(entry.id, MOVED, 2))
    assert message == 'blog: generation 2 was expected, but it is at 3, changed by "resume"'
    await refused(Conflict, registry.finish(entry.id, "rolled back", BACK, 2))
    assert await registry.unfinished() == [entry]
    await registry.finish(entry.id, "rolled back", BACK, 3)


@ensureDeferred
async def test_a_migration_may_hold_later(registry: Registry) -> None:
    """It can begin with an open site, which others may change, until it is held."""
    await registry.place(Placement("blog", "web1"), 0)
    entry = await registry.begin("blog", "web1", "web2", Placement("blog", "web1"), 1)
    assert (await registry.placements())["blog"] == Placement("blog", "web1", generation=2)
    await registry.place(Placement("blog", "web1", by="resume"), 2)
    await refused(Conflict, registry.hold(entry.id, HOLD, 2))
    held = await registry.hold(entry.id, HOLD, 3)
    assert held == {"blog": replace(HOLD, generation=4)}
    assert await registry.unfinished() == [replace(entry, generation=4, step="hold")]
    await registry.commit(entry.id, MOVED, 4)


# The contract: what comes along

SHOP = Placement("shop", "web1", Mode.HOLDING, 1)
DATA = Placement("database:shop", "db1", Mode.HOLDING, 1)


async def begun_with_others(registry: Registry) -> Entry:
    """A migration of the blog, which holds a site and moves a database along."""
    for name, backend in (("blog", "web1"), ("shop", "web1"), ("database:shop", "db1")):
        await registry.place(Placement(name, backend), 0)
    along = [(SHOP, "web1"), (DATA, "db2")]
    entry: Entry = await registry.begin("blog", "web1", "web2", HOLD, 1, along)
    return entry


@ensureDeferred
async def test_what_comes_along_is_moved_with_the_site(registry: Registry) -> None:
    """One begin holds, one commit moves and one finish opens the site and all of its company."""
    entry = await begun_with_others(registry)
    assert entry.along == (
        Companion("shop", "web1", "web1", 2),
        Companion("database:shop", "db1", "db2", 2),
    )
    placed = await registry.placements()
    assert {name: each.mode for name, each in placed.items()} == dict.fromkeys(
        ("blog", "shop", "database:shop"), Mode.HOLDING
    )
    moved = replace(DATA, backend="db2", generation=2)
    answered = await registry.commit(1, MOVED, 2, [replace(SHOP, generation=2), moved])
    placed = await registry.placements()
    assert answered == placed
    assert placed["database:shop"] == replace(moved, generation=3)
    assert placed["shop"] == replace(SHOP, generation=3)
    assert [each.generation for each in (await registry.unfinished())[0].along] == [3, 3]
    for name, found in (("blog", 1), ("shop", 1), ("database:shop", 1), ("web1", 0), ("sho", 0)):
        assert len(await registry.history(name, 10)) == found, name
    opened = [replace(each, mode=Mode.OPEN) for each in placed.values() if each.site != "blog"]
    await registry.finish(1, "done", OPENED, 3, along=opened)
    placed = await registry.placements()
    assert {name: (each.backend, each.mode) for name, each in placed.items()} == {
        "blog": ("web2", Mode.OPEN),
        "shop": ("web1", Mode.OPEN),
        "database:shop": ("db2", Mode.OPEN),
    }


@ensureDeferred
async def test_a_conflict_with_one_is_a_conflict_with_all(registry: Registry) -> None:
    """If anything of the company has been changed meanwhile, nothing is moved."""
    await begun_with_others(registry)
    await registry.place(replace(SHOP, mode=Mode.OPEN, by="resume"), 2)
    before = await everything(registry)
    along = [replace(SHOP, generation=2), replace(DATA, backend="db2", generation=2)]
    assert "shop: " in await refused(Conflict, registry.commit(1, MOVED, 2, along))
    assert await everything(registry) == before


@pytest.mark.parametrize(
    ("along", "message"),
    [
        ([], "says nothing of database:shop, shop"),
        ([SHOP, DATA], "may only place blog on web2 and shop on web1 and database:shop on db2"),
        ([SHOP, replace(DATA, backend="db2", mode=Mode.OPEN)], "would open the gate"),
    ],
)
@ensureDeferred
async def test_nothing_of_the_company_is_left_out(
    registry: Registry, along: list[Placement], message: str
) -> None:
    """A commit that does not fit what was begun is refused and changes nothing."""
    await begun_with_others(registry)
    before = await everything(registry)
    seen = [replace(each, generation=2) for each in along]
    assert message in await refused(NotAllowed, registry.commit(1, MOVED, 2, seen))
    assert await everything(registry) == before


@ensureDeferred
async def test_what_comes_along_is_not_moved_by_others(registry: Registry) -> None:
    """Until the migration is finished, its company has no other one, and is not forgotten."""
    await begun_with_others(registry)
    await refused(Busy, registry.begin("shop", "web1", "web2", SHOP, 2))
    await refused(Busy, registry.forget("database:shop", 2))


@ensureDeferred
async def test_a_site_has_one_migration_at_a_time(registry: Registry) -> None:
    """Until a migration is finished, another of that site is refused, and other sites may move."""
    entry = await begun(registry)
    message = await refused(Busy, registry.begin("blog", "web1", "web3", HOLD, 2))
    assert message == ("blog: migration 1 from web1 to web2 is running; wait until it is finished")
    await registry.commit(entry.id, MOVED, 2)
    await refused(Busy, registry.begin("blog", "web2", "web3", MOVED, 3))
    await registry.place(Placement("shop", "web1"), 0)
    other = await registry.begin("shop", "web1", "web2", replace(HOLD, site="shop"), 1)
    assert [e.id for e in await registry.unfinished()] == [entry.id, other.id]


@ensureDeferred
async def test_a_site_that_moves_is_not_forgotten(registry: Registry) -> None:
    """Forget is refused during a migration."""
    await begun(registry)
    await refused(Busy, registry.forget("blog", 2))
    assert "blog" in await registry.placements()


@ensureDeferred
async def test_history_is_newest_first_and_bounded(registry: Registry) -> None:
    """Only so many migrations are kept, by site or of all, but never is an unfinished one lost."""
    await registry.place(Placement("shop", "web1"), 0)
    await registry.begin("shop", "web1", "web2", replace(HOLD, site="shop"), 1)
    await registry.place(Placement("blog", "web1"), 0)
    for number in range(2, 12):
        expected = 2 * number - 3
        await registry.begin("blog", "web1", "web2", HOLD, expected)
        await registry.finish(number, "rolled back", BACK, expected + 1)
    assert [e.id for e in await registry.history("blog", 100)] == [11, 10, 9, 8, 7]
    assert [e.id for e in await registry.history(None, 100)] == [11, 10, 9, 8, 7, 1]
    assert [e.id for e in await registry.history(None, 2)] == [11, 10]
    assert [e.id for e in await registry.history("shop", 2)] == [1]
    assert await registry.history(None, 0) == []
    assert await registry.history("unknown", 2) == []


# The contract: subscriptions and closing


@ensureDeferred
async def test_subscribers_hear_of_each_change(registry: Registry) -> None:
    """Each change of a site is told by its name, until the subscription ends; no refusal is."""
    heard: list[str] = []
    unsubscribe = registry.subscribe(heard.append)
    entry = await begun(registry)
    await registry.commit(entry.id, MOVED, 2)
    await registry.finish(entry.id, "done", OPENED, 3)
    await told_of(registry, heard, ["blog"] * 4)
    heard.clear()
    await registry.define("shop", {})
    await registry.undefine("shop")
    await refused(Conflict, registry.forget("blog", 1))
    await registry.forget("blog", 4)
    await told_of(registry, heard, ["shop", "shop", "blog"])
    unsubscribe()
    unsubscribe()
    heard.clear()
    await registry.place(Placement("blog", "web1"), 0)
    assert heard == []


@ensureDeferred
async def test_a_subscriber_that_fails_harms_nobody(
    registry: Registry, logged_failures: LoggedFailures
) -> None:
    """The change is made and the other subscribers hear of it; the failure is logged."""
    heard: list[str] = []
    registry.subscribe(lambda site: print(1 / 0))
    registry.subscribe(heard.append)
    assert (await registry.place(Placement("blog", "web1"), 0)).generation == 1
    assert heard == ["blog"]
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


@ensureDeferred
async def test_a_migration_may_be_taken_over(registry: Registry) -> None:
    """In place of who has it, and of nobody else; not once it has ended."""
    entry = await begun(registry)
    assert await registry.take_over(entry.id, "", 0) == entry
    assert "taken over" in await refused(Superseded, registry.take_over(entry.id, "web9", 1))
    await registry.finish(entry.id, "rolled back", BACK, 2)
    assert "rolled back" in await refused(NotAllowed, registry.take_over(entry.id, "", 0))


@ensureDeferred
async def test_a_closed_registry_says_so(registry: Registry) -> None:
    """What was asked before is done, what is asked after fails, and it may be closed again."""
    last = registry.place(Placement("blog", "web1"), 0)
    closed = [registry.close(), registry.close()]
    assert "closed" in await refused(RegistryError, registry.placements())
    assert "closed" in await refused(RegistryError, registry.place(Placement("blog", "web1"), 1))
    assert (await last).generation == 1
    for waiter in closed:
        await waiter
    await registry.close()


# In a file


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[LocalRegistry]:
    """The registry at ``path``, closed afterwards."""
    registry = await LocalRegistry.open(reactor, path)
    try:
        yield registry
    finally:
        await registry.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a registry can be made."""
    return tmp_path / "registry.sqlite"


@pytest.fixture
def filled(path: Path) -> Path:
    """A registry with some of everything, closed."""
    blockon(Deferred.fromCoroutine(fill(path)))
    return path


async def fill(path: Path) -> None:
    async with opened(path) as registry:
        for number in range(60):
            await registry.place(Placement(f"site{number}", "web1"), 0)
        entry = await begun(registry)
        await registry.commit(entry.id, MOVED, 2)
        await registry.finish(entry.id, "done", OPENED, 3, "", {"held": 3})
        await registry.begin("blog", "web2", "web1", MOVED, 4)
        await registry.define("blog", {"hosts": ["a.example"]})
        await registry.forget("site7", 1)


async def content(path: Path) -> list[Any]:
    async with opened(path) as registry:
        return [*await everything(registry), await registry.unfinished()]


async def fails_to_open(path: Path) -> str:
    """What opening is refused with."""
    return await refused(RegistryError, LocalRegistry.open(reactor, path))


@ensureDeferred
async def test_it_survives_being_closed(filled: Path) -> None:
    """What was stored is there when the file is opened again, in this order of generations."""
    before = await content(filled)
    assert await content(filled) == before
    assert len(before[0]) == 60
    assert before[0]["blog"] == replace(MOVED, generation=5)
    async with opened(filled) as registry:
        assert (await registry.place(Placement("site7", "web2"), 0)).generation == 2


@ensureDeferred
async def test_closing_leaves_no_thread_and_no_file_behind(path: Path) -> None:
    """The thread is gone once close has fired, and so are the files beside the registry."""
    before = threading.enumerate()
    async with opened(path):
        assert len(threading.enumerate()) == len(before) + 1
    assert threading.enumerate() == before
    await fails_to_open(path.parent)
    assert threading.enumerate() == before
    assert {file.name for file in path.parent.iterdir()} == {"lock", "registry.sqlite"}


@ensureDeferred
async def test_an_open_that_is_cancelled_lets_go(path: Path) -> None:
    """Cancelling leaves neither the thread nor the lock."""
    before = threading.enumerate()
    opening = LocalRegistry.open(reactor, path)
    opening.cancel()
    with pytest.raises(CancelledError):
        await opening
    assert threading.enumerate() == before
    async with opened(path):
        pass


@ensureDeferred
async def test_a_cancelled_change_is_made_and_told(path: Path) -> None:
    """Whoever stops waiting for a change does not undo it, nor keep it from the subscribers."""
    async with opened(path) as registry:
        heard: list[str] = []
        registry.subscribe(heard.append)
        placing = registry.place(Placement("blog", "web1"), 0)
        placing.cancel()
        with pytest.raises(CancelledError):
            await placing
        assert "blog" in await registry.placements()
        assert heard == ["blog"]


@ensureDeferred
async def test_only_the_owner_can_read_it(path: Path) -> None:
    """The file and all beside it have mode 0600, even where an old file had another."""
    umask = os.umask(0)
    try:
        async with opened(path) as registry:
            await registry.place(Placement("blog", "web1"), 0)
            modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
            assert modes == {0o600}
        path.chmod(0o644)
        async with opened(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(umask)


@ensureDeferred
async def test_the_directory_is_made(tmp_path: Path) -> None:
    """A state directory that is not there yet is made, for the owner alone."""
    async with opened(tmp_path / "state" / "registry.sqlite"):
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


@ensureDeferred
async def test_a_second_process_is_refused(path: Path) -> None:
    """The state directory has one daemon; another is told the process id of the first."""
    async with opened(path) as registry:
        message = await fails_to_open(path)
        assert message == (
            f"{path.parent}: process {os.getpid()} is using this state directory; "
            "stop it, or set another state_dir"
        )
        await registry.place(Placement("blog", "web1"), 0)
    async with opened(path):
        pass


@ensureDeferred
async def test_an_empty_file_is_a_new_registry(path: Path) -> None:
    """A file without a byte is as good as none."""
    path.touch()
    async with opened(path) as registry:
        assert await registry.placements() == {}
        await registry.place(Placement("blog", "web1"), 0)
    assert len((await content(path))[0]) == 1


@ensureDeferred
async def test_what_was_left_half_made_is_made_again(path: Path) -> None:
    """A crash while the file was made leaves nothing that hinders the next start."""
    for suffix in (".new", ".new-journal", ".new-wal"):
        path.with_name(path.name + suffix).write_bytes(b"half")
    assert await content(path) == [{}, {}, [], []]
    assert {file.name for file in path.parent.iterdir()} == {"lock", "registry.sqlite"}


@ensureDeferred
async def test_the_journal_keeps_a_thousand(path: Path) -> None:
    """Unless told otherwise, the newest thousand migrations are kept."""
    async with opened(path) as registry:
        await registry.place(Placement("blog", "web1"), 0)
        for number in range(1, 1003):
            await registry.begin("blog", "web1", "web2", HOLD, 2 * number - 1)
            await registry.finish(number, "rolled back", BACK, 2 * number)
        history = await registry.history(None, 5000)
        assert [entry.id for entry in history] == list(range(1002, 2, -1))


# In a file that is not sound


@pytest.mark.parametrize("kept", [1, 50, 99, 100, 511, 4095, 4096, 4097, 8192, -4096, -4095, -1])
@ensureDeferred
async def test_a_file_cut_short_is_refused(filled: Path, kept: int) -> None:
    """A registry that has lost its end is refused, and left as it is."""
    filled.write_bytes(filled.read_bytes()[:kept])
    await refused_untouched(filled)


async def refused_untouched(path: Path) -> str:
    """The message with which a bad file is refused; it names the file and what to do."""
    before = path.read_bytes()
    message = await fails_to_open(path)
    assert path.read_bytes() == before
    assert message.startswith(f"{path}: it ")
    assert "Restore it from a backup, or move registry.sqlite and registry.sqlite-wal" in message
    return message


@pytest.mark.parametrize("offset", [*range(18), 47, 59, 60, 61, 62, 63, 68, 69, 70, 71])
@ensureDeferred
async def test_a_changed_header_is_refused(filled: Path, offset: int) -> None:
    """A wrong byte where the header says what the file is: refused, and left as it is."""
    data = bytearray(filled.read_bytes())
    data[offset] ^= 0x5A
    filled.write_bytes(data)
    await refused_untouched(filled)


@ensureDeferred
async def test_no_changed_byte_changes_what_is_read(filled: Path) -> None:
    """Wherever one bit has flipped, the file is refused untouched, or reads as it was written."""
    good, expected = filled.read_bytes(), await content(filled)
    chance = random.Random(2010)
    refusals = 0
    for offset in [*range(100), *(chance.randrange(100, len(good)) for _ in range(300))]:
        data = bytearray(good)
        data[offset] ^= 1 << chance.randrange(8)
        filled.write_bytes(data)
        try:
            found = await content(filled)
        except RegistryError:
            refusals += 1
            assert filled.read_bytes() == data
        else:
            assert found == expected
    assert refusals > 100


@ensureDeferred
async def test_a_changed_letter_in_a_row_is_refused(filled: Path) -> None:
    """A backend's name that is not what was written is noticed, though SQLite accepts it."""
    data = filled.read_bytes()
    filled.write_bytes(data.replace(b"site33web1", b"site33web9"))
    assert filled.read_bytes() != data
    message = await refused_untouched(filled)
    assert "it is damaged: the checksum of placement 'site33' is wrong" in message


@pytest.mark.parametrize("data", [b"{}\n", b"sites:\n" * 900, bytes(8192)])
@ensureDeferred
async def test_a_file_of_another_kind_is_refused(path: Path, data: bytes) -> None:
    """Text, or zeros, are no registry."""
    path.write_bytes(data)
    assert "it is not an SQLite database" in await refused_untouched(path)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("PRAGMA application_id = 7", "it is the SQLite database of another program"),
        ("PRAGMA user_version = 3", "it was written by a newer version (schema 3, this one kn"),
        ("PRAGMA user_version = 0", "its tables are not those of schema 2"),
        ("CREATE INDEX i ON placement (backend)", "its tables are not those of schema 2"),
        ("DROP TABLE forgotten", "its tables are not those of schema 2"),
        ("UPDATE placement SET backend = x'00'", "is not made of text and numbers"),
        ("UPDATE placement SET generation = 2", "the checksum of placement"),
    ],
)
@ensureDeferred
async def test_another_database_is_refused(filled: Path, statement: str, message: str) -> None:
    """A database of another program, a newer version, or a changed one: each is told apart."""
    db = sqlite3.connect(filled)
    db.execute(statement)
    db.commit()
    db.close()
    assert message in await refused_untouched(filled)


@ensureDeferred
async def test_a_directory_is_refused(path: Path) -> None:
    """A directory in the place of the file is named as what it is."""
    path.mkdir()
    assert f"{path}: it is not a regular file" in await fails_to_open(path)
    assert path.is_dir()


@ensureDeferred
async def test_a_pipe_is_refused(path: Path) -> None:
    """A pipe in the place of the file is not waited for."""
    os.mkfifo(path)
    assert f"{path}: it is not a regular file" in await fails_to_open(path)


@ensureDeferred
async def test_changes_without_their_file_are_refused(path: Path, tmp_path: Path) -> None:
    """A write-ahead log whose file is gone is not applied to a new one, nor thrown away."""
    async with opened(path) as registry:
        await registry.place(Placement("blog", "web1"), 0)
        after_crash = tmp_path / "copy" / "registry.sqlite"
        after_crash.parent.mkdir()
        log = after_crash.with_name("registry.sqlite-wal")
        shutil.copy(path.with_name(log.name), log)
    before = log.read_bytes()
    message = await fails_to_open(after_crash)
    assert "missing or empty, but its newest changes are in registry.sqlite-wal" in message
    assert log.read_bytes() == before
    assert not after_crash.exists()


@ensureDeferred
async def test_a_bad_file_with_changes_beside_it_is_left_alone(path: Path, tmp_path: Path) -> None:
    """After a crash, the changes that were not yet in a file that is bad stay beside it."""
    after_crash = tmp_path / "copy" / "registry.sqlite"
    log = after_crash.with_name("registry.sqlite-wal")
    after_crash.parent.mkdir()
    async with opened(path) as registry:
        await registry.place(Placement("blog", "web1"), 0)
        shutil.copy(path, after_crash)
        shutil.copy(path.with_name(log.name), log)
    with open(after_crash, "r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(b"\xff" * 64)
    before = log.read_bytes()
    await refused_untouched(after_crash)
    assert log.read_bytes() == before


# In a place that cannot be written


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A directory, and the rights of a user without privileges: root can write anywhere."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        try:
            if root:
                os.chown(directory, 65534, -1)
                os.seteuid(65534)
            yield directory
        finally:
            if root:
                os.seteuid(0)
            directory.chmod(0o700)


@pytest.mark.parametrize("made_before", [False, True])
@ensureDeferred
async def test_a_readonly_directory_is_refused(made_before: bool) -> None:
    """A state directory that cannot be written is named, with why and what it should be."""
    with as_nobody() as directory:
        path = directory / "registry.sqlite"
        if made_before:
            await content(path)
        directory.chmod(0o500)
        message = await fails_to_open(path)
        assert message.startswith(f"{directory}: the state directory cannot be written: ")
        assert "must be a directory that belongs to the user of the daemon" in message


@ensureDeferred
async def test_an_unreadable_file_is_refused() -> None:
    """A file that may not be read is named, with why."""
    with as_nobody() as directory:
        path = directory / "registry.sqlite"
        await content(path)
        path.chmod(0)
        message = await fails_to_open(path)
        assert message.startswith(f"{path}: it cannot be read: Permission denied")


@ensureDeferred
async def test_a_state_directory_that_is_a_file_is_refused(path: Path) -> None:
    """A file in the place of the directory is named."""
    path.touch()
    message = await fails_to_open(path / "registry.sqlite")
    assert message.startswith(f"{path}: the state directory cannot be written: ")


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    """The kernel refuses to write further than ``size`` bytes into any file."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))


@ensureDeferred
async def test_a_change_that_cannot_be_written_changes_nothing(filled: Path) -> None:
    """When a write fails the change fails with why, nobody is told, and later ones succeed."""
    async with opened(filled) as registry:
        await registry.place(Placement("shop", "web1"), 0)
        before = await everything(registry)
        heard: list[str] = []
        registry.subscribe(heard.append)
        with no_file_grows_beyond(filled.with_name("registry.sqlite-wal").stat().st_size):
            answers = [
                await refused(RegistryError, registry.place(Placement("shop", "web2"), 1)),
                await refused(RegistryError, registry.begin("shop", "web1", "x", HOLD, 1)),
                await refused(RegistryError, registry.define("shop", {})),
            ]
        place, begin, define = answers
        assert place.startswith(f"{filled}: it cannot be written, and nothing was changed: ")
        assert "would place blog" in begin
        assert define.startswith(f"{filled}: it cannot be written, and nothing was changed: ")
        assert await everything(registry) == before
        assert heard == []
        assert (await registry.place(Placement("shop", "web2"), 1)).generation == 2
    assert (await content(filled))[0]["shop"].generation == 2


# After a crash

NEVER_CLOSED = """
import sys
from twisted.internet import task
from twisted.internet.defer import Deferred
from awesomeproxy.model import Placement
from awesomeproxy.registry.local import LocalRegistry

async def place(reactor):
    registry = await LocalRegistry.open(reactor, sys.argv[1])
    await registry.place(Placement("blog", "web1"), 0)

task.react(lambda reactor: Deferred.fromCoroutine(place(reactor)))
"""


@ensureDeferred
async def test_a_process_that_forgets_to_close_it_can_end(path: Path) -> None:
    """When the reactor stops the thread ends, and what was acknowledged is there."""
    subprocess.run([sys.executable, "-c", NEVER_CLOSED, str(path)], check=True, timeout=60)
    assert "blog" in (await content(path))[0]


CHANGES_FOR_EVER = """
import os, sys
from twisted.internet import task
from twisted.internet.defer import Deferred
from awesomeproxy.model import Cluster, Mode, Placement
from awesomeproxy.registry.local import LocalRegistry

def acknowledge(changed):
    os.write(1, b"%d\\n" % changed.generation)
    return changed

async def change(reactor):
    registry = await LocalRegistry.open(reactor, sys.argv[1])
    at = (await registry.placements()).get("blog")
    at = at or acknowledge(await registry.place(Placement("blog", "web1"), 0))
    for left in await registry.unfinished():
        state, backend = ("rolled back", left.source)
        if left.state == "committed":
            state, backend = ("done", left.target)
        after = Placement("blog", backend)
        placed = await registry.finish(left.id, state, after, at.generation)
        at = acknowledge(placed["blog"])
    while True:
        source, target = at.backend, {"web1": "web2", "web2": "web1"}[at.backend]
        at = acknowledge(await registry.place(Placement("blog", source), at.generation))
        hold = Placement("blog", source, Mode.HOLDING)
        entry = acknowledge(await registry.begin("blog", source, target, hold, at.generation))
        await registry.step(entry.id, "copy")
        moved = Placement("blog", target, Mode.HOLDING)
        placed = await registry.commit(entry.id, moved, entry.generation)
        at = acknowledge(placed["blog"])
        await registry.step(entry.id, "release")
        at = Placement("blog", target)
        placed = await registry.finish(entry.id, "done", at, entry.generation + 1)
        at = acknowledge(placed["blog"])

task.react(lambda reactor: Deferred.fromCoroutine(change(reactor)))
"""


@ensureDeferred
async def test_after_a_kill_it_is_where_it_said_it_was(path: Path) -> None:
    """Killed at any point, it has all that it acknowledged, and a journal that fits."""
    chance = random.Random(2010)
    acknowledged = 0
    for round_ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", CHANGES_FOR_EVER, str(path)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            for _ in range(chance.randrange(1, 80) + 200 * (round_ % 2)):
                assert child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().split()
        assert child.returncode == -signal.SIGKILL
        acknowledged = int(rest[-1]) if rest else acknowledged
        async with opened(path) as registry:
            at = (await registry.placements())["blog"]
            unfinished = await registry.unfinished()
        assert acknowledged <= at.generation
        acknowledged = at.generation
        for entry in unfinished:
            backend = entry.target if entry.state == "committed" else entry.source
            assert at == Placement("blog", backend, Mode.HOLDING, entry.generation)
        assert len(unfinished) <= 1
        assert (at.mode is Mode.HOLDING) == bool(unfinished)
