"""What goes where when a node is emptied, and what happens when one of it does not go."""

from __future__ import annotations

import pytest
from daemon_stage import twisted_test
from test_planning import BLOG, NEWS, SHOP, USER, database, site, world
from twisted.internet.defer import Deferred

from awesomeproxy.draining import Draining, Failure, Undecided, plan
from awesomeproxy.migrate.plan import Member, Plan
from awesomeproxy.model import Ledger

A, B, C = (site(name, here="n1", there="n2") for name in "abc")


def targets(draining: Draining) -> list[str]:
    return [f"{each.main.name} to {each.main.target}" for each in draining.plans]


def test_all_that_is_served_from_the_node_goes_to_its_only_other_backend() -> None:
    elsewhere = site("elsewhere", there="n2", here="n1")
    moved = plan(world(USER, SHOP, A, elsewhere), "n1")
    assert targets(moved) == ["a to there", "user to there", "database:shop to second"]


def test_what_lives_together_goes_together_once() -> None:
    lodger = database("shop", "data", first="n1", second="n2")
    moved = plan(world(BLOG, NEWS, lodger), "n1")
    assert targets(moved) == ["blog to two"]
    assert sorted(moved.left) == ["blog", "database:shop", "news"]


def test_of_several_backends_one_is_chosen_by_its_node() -> None:
    choice = site("choice", one="n1", two="n2", three="n3")
    with pytest.raises(Undecided, match=r"choice: it has the backends two, three on another node"):
        plan(world(choice), "n1")
    assert targets(plan(world(choice), "n1", "n3")) == ["choice to three"]


def test_all_that_has_nowhere_to_go_is_told_and_nothing_else_is_planned() -> None:
    nowhere, unknown = site("nowhere", one="n1"), site("unknown", one="n1", two="")
    with pytest.raises(Undecided) as caught:
        plan(world(A, nowhere, unknown), "n1")
    assert caught.value.problems == [
        f"{name}: it has no backend on another node; add one, or remove it"
        for name in ("nowhere", "unknown")
    ]


def test_an_empty_node_needs_nothing() -> None:
    assert plan(world(A), "n9").plans == []


def ledger(plan: Plan) -> Ledger:
    member: Member = plan.main
    return Ledger(member.name, member.source, member.target, 2, "done")


class Migrations:
    """Migrations that end when the test says so."""

    def __init__(self) -> None:
        self.begun: dict[str, Deferred[Ledger]] = {}
        self.plans: dict[str, Plan] = {}

    def migrate(self, plan: Plan) -> Deferred[Ledger]:
        name = plan.main.name
        self.plans[name] = plan
        self.begun[name] = Deferred()
        return self.begun[name]

    def done(self, name: str) -> None:
        self.begun.pop(name).callback(ledger(self.plans[name]))

    def fails(self, name: str, why: str) -> None:
        self.begun.pop(name).errback(RuntimeError(why))


@twisted_test
async def test_so_many_run_at_once_and_no_more() -> None:
    migrations, moved = Migrations(), plan(world(A, B, C), "n1")
    told: list[str] = []
    run = Deferred.fromCoroutine(
        moved.run(migrations.migrate, 2, lambda plan, ledger: told.append(plan.main.name))
    )
    assert list(migrations.begun) == ["a", "b"]
    migrations.done("b")
    assert list(migrations.begun) == ["a", "c"]
    migrations.done("a")
    migrations.done("c")
    await run
    assert told == ["b", "a", "c"]
    assert (moved.failed, moved.left) == (None, [])


@twisted_test
async def test_the_first_that_fails_ends_it_and_what_runs_ends_first() -> None:
    migrations, moved = Migrations(), plan(world(A, B, C), "n1")
    run = Deferred.fromCoroutine(moved.run(migrations.migrate, 2))
    migrations.fails("a", "no disk")
    assert list(migrations.begun) == ["b"]
    assert not run.called
    migrations.done("b")
    await run
    assert moved.failed == Failure("a", "no disk")
    assert moved.left == ["a", "c"]
