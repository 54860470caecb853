"""What is moved and held in one migration; decided from values alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from awesomeproxy.migrate.plan import Member, Plan
from awesomeproxy.migrate.planning import Unmovable, World, make, precedent, read
from awesomeproxy.model import (
    Backend,
    Database,
    DatabaseBackend,
    Filesystem,
    Mode,
    Placement,
    Server,
    Site,
)
from awesomeproxy.registry.interface import Companion, Entry

SERVER = Server("tcp", "h", 1)


def site(name: str, filesystem: str = "", uses: tuple[str, ...] = (), **nodes: str) -> Site:
    """One whose backends stand on ``nodes``; it is on the first."""
    backends = {each: Backend(each, (), node=node) for each, node in nodes.items()}
    first = next(iter(nodes))
    return Site(name, (f"{name}.test",), first, backends, filesystem=filesystem, uses=uses)


def database(name: str, filesystem: str = "", **nodes: str) -> Database:
    backends = {each: DatabaseBackend(each, SERVER, node) for each, node in nodes.items()}
    return Database(name, "tcp:1", next(iter(nodes)), backends, filesystem=filesystem)


def world(*things: Site | Database, placed: Mapping[str, str] | None = None) -> World:
    """Everything where it starts, but for what is ``placed``; filesystem ``data`` is on n1."""
    sites = {each.name: each for each in things if isinstance(each, Site)}
    databases = {each.name: each for each in things if isinstance(each, Database)}
    where = {name: each.backend for name, each in sites.items()}
    where |= {f"database:{name}": each.backend for name, each in databases.items()}
    where |= {"filesystem:data": "n1", **(placed or {})}
    filesystems = {"data": Filesystem("data", "rsync", "n1", {"n1": None, "n2": None})}
    placements = {name: Placement(name, backend) for name, backend in where.items()}
    return World(sites, databases, filesystems, placements)


BLOG = site("blog", "data", one="n1", two="n2")
NEWS = site("news", "data", uno="n1", dos="n2")
SHOP = database("shop", first="n1", second="n2")
USER = site("user", "", ("shop",), here="n1", there="n2")


def moves(plan: Plan) -> list[str]:
    return [f"{each.name} {each.source} {each.target}" for each in plan.members]


def test_a_site_without_a_filesystem_moves_alone() -> None:
    """Whatever node its backends stand on."""
    plan = make(world(USER, SHOP), "user", "there", {})
    assert plan == Plan(Member("user", "here", "there"))


def test_a_site_takes_its_filesystem_along_and_whoever_lives_there() -> None:
    """What others use comes before those who use it."""
    lodger = database("shop", "data", first="n1", second="n2")
    plan = make(world(BLOG, NEWS, lodger, USER), "blog", "two", {})
    assert moves(plan) == [
        "filesystem:data n1 n2",
        "database:shop first second",
        *("blog one two", "news uno dos", "user here here"),
    ]
    assert plan.main.name == "blog"
    assert [each.name for each in plan.moving] == [
        *("filesystem:data", "database:shop", "blog", "news"),
    ]


def test_a_filesystem_stays_with_a_move_on_its_node() -> None:
    """From one port to another, say."""
    near = site("blog", "data", one="n1", near="n1", two="n2")
    assert moves(make(world(near, NEWS), "blog", "near", {})) == ["blog one near"]


def test_a_database_holds_those_who_use_it_and_no_others() -> None:
    """They stay where they are."""
    plan = make(world(USER, BLOG, SHOP), "database:shop", "second", {})
    assert moves(plan) == ["database:shop first second", "user here here"]
    assert [each.name for each in plan.moving] == ["database:shop"]


def test_a_site_takes_the_databases_along_that_it_was_asked_to() -> None:
    """Others that use them are held."""
    other = site("other", "", ("shop",), here="n1")
    plan = make(world(USER, other, SHOP), "user", "there", {"shop": "second"})
    assert moves(plan) == [
        *("database:shop first second", "user here there", "other here here"),
    ]


def test_of_several_backends_on_a_node_the_one_that_was_named_is_taken() -> None:
    """Where none was, nobody knows which."""
    lodger = database("shop", "data", first="n1", second="n2", third="n2")
    plan = make(world(BLOG, lodger), "blog", "two", {"shop": "third"})
    assert "database:shop first third" in moves(plan)
    with pytest.raises(Unmovable, match="has 2 backends on n2; it needs one there"):
        make(world(BLOG, lodger), "blog", "two", {})


@pytest.mark.parametrize(
    ("there", "name", "target", "databases", "said"),
    [
        (world(USER, SHOP), "user", "there", {"nosuch": "a"}, "there is no database:nosuch"),
        (
            *(world(USER, SHOP), "user", "there", {"shop": "third"}),
            "database:shop has no backend 'third'; it has: first, second",
        ),
        (world(USER, SHOP), "user", "there", {"shop": "first"}, "is on first already; leave"),
        (
            *(world(BLOG, database("shop", "data", a="n1", b="n2", c="n3")), "blog", "two"),
            *({"shop": "c"}, "database:shop would go to b and to c; name one of them"),
        ),
        (
            *(world(BLOG, placed={"blog": "gone"}), "blog", "two", {}),
            "blog is placed on gone, which is not defined; its data cannot be found",
        ),
        (
            *(world(BLOG, placed={"filesystem:data": "n2"}), "blog", "two", {}),
            "data is recorded on n2, not on n1; see to it there, or say: awesomeproxy mounted"
            " data --node n1",
        ),
        (
            *(world(BLOG, NEWS, placed={"news": "dos"}), "blog", "two", {}),
            "news lives in the same filesystem, but is on dos; move it first",
        ),
        (
            *(world(BLOG, site("news", "data", uno="n1")), "blog", "two", {}),
            "news lives in the same filesystem, and has no backends on n2",
        ),
    ],
)
def test_what_cannot_be_moved_is_told(
    there: World, name: str, target: str, databases: dict[str, str], said: str
) -> None:
    """With what to do about it."""
    with pytest.raises(Unmovable) as caught:
        make(there, name, target, databases)
    assert said in str(caught.value)


def test_a_filesystem_that_is_not_mounted_is_not_moved() -> None:
    """Nobody knows what would be copied."""
    there = world(BLOG)
    placed = there.placements["filesystem:data"]
    placements = {**there.placements, placed.site: replace(placed, mode=Mode.HOLDING)}
    with pytest.raises(Unmovable, match="data is not mounted on n1; mount it first"):
        make(replace(there, placements=placements), "blog", "two", {})


def test_a_plan_is_read_from_the_journal() -> None:
    """As it was made."""
    plan = make(world(BLOG, NEWS), "blog", "two", {})
    along = tuple(Companion(each.name, each.source, each.target, 1) for each in plan.along)
    assert read(Entry(1, "blog", "one", "two", 1, along=along)) == plan


def test_a_precedent_has_moved_the_same_things_to_its_end() -> None:
    """There or back, whatever was only held; nobody has measured one that outlived its daemon."""
    plan = Plan(Member("blog", "one", "two"), (Member("database:shop", "d1", "d2"),))
    shop, news = Companion("database:shop", "d2", "d1", 3), Companion("news", "one", "one", 3)
    back = Entry(7, "blog", "two", "one", 9, state="done", ledger={"pause": 0.3}, along=(shop,))
    assert precedent(plan, [back]) == back
    with_news = replace(back, id=8, along=(news, shop))
    assert precedent(plan, [with_news, back]) == with_news
    for other in (
        replace(back, state="rolled back"),
        replace(back, along=()),
        replace(back, along=(news,)),
        replace(back, ledger=None),
        replace(back, ledger={"pause": 0.0}),
    ):
        assert precedent(plan, [other]) is None
        assert precedent(plan, [other, back]) == back
