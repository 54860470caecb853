"""Many sites: none of them costs more because there are others.

What is counted here is looks at sites, not time: with a look at every other site for each,
there would be some hundred times as many.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from config_stage import SETTINGS, SITE
from hypothesis import given
from hypothesis import strategies as st
from plane_stage import GET, always, ok, stage, twisted_test
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock, deferLater

from awesomeproxy import config, consistency
from awesomeproxy.composing import compose
from awesomeproxy.defining import AT_ONCE, define_all
from awesomeproxy.model import Backend, Desired, HealthCheck, Placement, Server, Site
from awesomeproxy.node import Node
from awesomeproxy.proxy.health import Checks
from awesomeproxy.proxy.router import Router
from awesomeproxy.proxy.servers import LiveBackend
from awesomeproxy.quantities import show
from awesomeproxy.registry.booked import Care, R
from awesomeproxy.registry.interface import Unreachable
from awesomeproxy.registry.memory import MemoryRegistry
from awesomeproxy.reloading import unchanged_kept
from awesomeproxy.shapes import Spot

MANY = 300


class Counted(Site):
    """A site that counts how often anybody asks for the hosts of one."""

    looks = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "hosts":
            Counted.looks += 1
        return super().__getattribute__(name)


def counted(number: int, **more: Any) -> Counted:
    """One of many, with a host of its own."""
    host = more.pop("host", f"s{number}.example")
    return Counted(f"s{number}", (host,), "old", SITE.backends, **more)


class Live:
    """What a router finds."""

    def __init__(self, site: Site) -> None:
        self.site = site


@pytest.fixture(autouse=True)
def _none_yet() -> Iterator[None]:
    Counted.looks = 0
    yield
    Counted.looks = 0


# How often others are looked at


def test_a_file_with_many_sites_is_checked_with_a_few_looks_at_each() -> None:
    sites = {site.name: site for site in map(counted, range(MANY))}
    spot = Spot("f.toml")
    consistency.check_file(replace(SETTINGS, sites=sites), spot)
    assert not spot.marred
    assert 0 < Counted.looks <= 10 * MANY


def test_many_sites_added_by_command_are_checked_with_a_few_looks_at_each() -> None:
    sites = {site.name: site for site in map(counted, range(MANY))}
    backends = {"a": {"servers": ["http://10.0.0.2"]}}
    added = {
        f"more{number}": {"hosts": [f"m{number}.example"], "backend": "a", "backends": backends}
        for number in range(MANY)
    }
    assert len(compose(replace(SETTINGS, sites=sites), added)) == 2 * MANY
    assert 0 < Counted.looks <= 10 * MANY


@pytest.mark.parametrize("shared", [False, True])
def test_sites_that_come_and_go_are_routed_with_a_few_looks_at_each(shared: bool) -> None:
    more: dict[str, Any] = {"host": "s.example"} if shared else {}
    router: Router[Live] = Router()
    lives = [Live(counted(number, path=f"/{number}", **more)) for number in range(MANY)]
    for live in lives:
        router.add(live)
        host = live.site.hosts[0].encode()
        assert router.find(host, live.site.path.encode() + b"/x") is live
    for live in lives:
        router.remove(live, live.site)
        assert router.find(b"s.example", live.site.path.encode()) is None
    assert 0 < Counted.looks <= 10 * MANY


@twisted_test
async def test_a_data_plane_looks_at_each_of_many_sites_a_few_times() -> None:
    async with stage(always(ok(b"here"))) as s:
        backends = {"old": Backend("old", (s.origins[0].server,))}
        sites = [replace(counted(number), backends=backends) for number in range(MANY)]
        Counted.looks = 0
        for site in sites:
            s.plane.apply(Desired(site, Placement(site.name, "old")))
        for site in sites[1:]:
            s.plane.remove(site.name)
        assert 0 < Counted.looks <= 10 * MANY
        client = await s.connect(GET.replace(b"blog", b"s0"))
        assert (await client.answer()).body == b"here"


class Writes(MemoryRegistry):
    """A registry that counts what would be a transaction, and wait for a disk."""

    count = 0

    def _write(self, care: Care, sites: Sequence[str], work: Callable[[], R]) -> Deferred[R]:
        self.count += 1
        return super()._write(care, sites, work)


@twisted_test
async def test_sites_that_are_new_are_placed_in_one_transaction() -> None:
    node = Node(reactor, "f.toml", SETTINGS)
    registry = node.registry = Writes()
    node.placements = {"s0": await registry.place(Placement("s0", "new"), 0)}
    await node.place(counted(number) for number in range(MANY))
    assert registry.count == 2
    assert node.placements == await registry.placements()
    assert len(node.placements) == MANY
    assert node.placements["s0"].backend == "new"
    await node.place(counted(number) for number in range(MANY))
    assert registry.count == 2


@twisted_test
async def test_requests_have_their_turn_while_many_sites_are_defined() -> None:
    """Of all turns of the reactor none reads and records more than a few of them."""
    node = Node(reactor, "f.toml", SETTINGS)
    node.registry = MemoryRegistry()
    fresh: list[int] = []  # sites that were defined since the last turn
    defined = 0

    def define(site: Site) -> None:
        nonlocal defined
        node.sites[site.name] = site
        defined += 1

    async def turns() -> None:
        before = 0
        while before < MANY:
            fresh.append(defined - before)
            before = defined
            await deferLater(reactor, 0)

    node.define = define  # type: ignore[method-assign]
    taking_turns = Deferred.fromCoroutine(turns())
    tables = {
        f"s{number}": {
            "hosts": [f"s{number}.example"],
            "backend": "one",
            "backends": {"one": {"servers": ["http://127.0.0.1"]}},
        }
        for number in range(MANY)
    }
    result = await define_all(node, tables)
    await taking_turns
    assert len(result["added"]) == len(node.sites) == len(node.added) == MANY
    assert max(fresh) == AT_ONCE < MANY
    assert (await define_all(node, tables))["unchanged"] == list(tables)


class Lost(MemoryRegistry):
    """A registry that is lost when a site is defined there."""

    def define(self, name: str, table: dict[str, Any]) -> Deferred[None]:
        return fail(Unreachable("it is gone"))


@twisted_test
async def test_a_registry_that_is_lost_meanwhile_is_an_error_of_the_registry() -> None:
    """So that whoever asked is told why."""
    node = Node(reactor, "f.toml", SETTINGS)
    node.registry = Lost()
    servers = {"one": {"servers": ["http://127.0.0.1"]}}
    table = {"hosts": ["x.example"], "backend": "one", "backends": servers}
    with pytest.raises(Unreachable, match="gone"):
        await define_all(node, {"s1": table, "s2": {**table, "hosts": ["b.example"]}})


# The same answers as without an index

HOSTS = st.lists(
    st.sampled_from(["a.x", "b.x", "*.x", "*.b.x", "c.b.x"]), min_size=1, max_size=3, unique=True
)
PATHS = st.sampled_from(["/", "/a", "/a/b", "/a/bc", "/b"])


@st.composite
def some_sites(draw: st.DrawFn) -> list[Site]:
    """Sites that may well collide."""
    return [
        Site(f"s{number}", tuple(draw(HOSTS)), "old", SITE.backends, path=draw(PATHS))
        for number in range(draw(st.integers(0, 6)))
    ]


def pairwise(site: Site, others: Iterable[Site]) -> list[str]:
    """What ``site`` and any of ``others`` both claim, by looking at all of them."""
    return [
        f"{show(host)} with path {show(site.path)} is claimed by site {show(other.name)} and "
        f"by site {show(site.name)}; give one of them another host or path"
        for other in others
        if other.name != site.name and other.path == site.path
        for host in site.hosts
        if host in other.hosts
    ]


@given(some_sites())
def test_claims_overlap_where_two_sites_do(sites: list[Site]) -> None:
    claims = consistency.Claims(sites)
    for site in sites:
        assert list(claims.overlaps(site)) == pairwise(site, sites)


def looked_for(lives: Iterable[Live], host: str, path: str) -> Live | None:
    """The site for a request, by looking at all: the nearest host, then the longest path."""

    def rank(live: Live) -> tuple[int, int]:
        nearness = max(
            (len(name) + (name == host) for name in live.site.hosts if matches(name, host)),
            default=0,
        )
        prefix = live.site.path.rstrip("/")
        fits = path == prefix or path.startswith(prefix + "/")
        return (nearness, len(prefix)) if fits else (0, 0)

    best = max(lives, key=rank, default=None)
    return best if best is not None and rank(best)[0] else None


def matches(name: str, host: str) -> bool:
    """Whether a site's host, or wildcard, is for a request's."""
    return name == host or (name.startswith("*.") and host.endswith(name[1:]))


@given(
    some_sites(),
    st.lists(st.integers(0, 5)),
    st.sampled_from(["a.x", "b.x", "c.b.x", "d.b.x", "e.x", "y"]),
    st.sampled_from(["/", "/a", "/a/", "/a/b", "/a/b/c/d", "/a/bc", "/a/bcd", "/b", "//", "/c/a"]),
)
def test_a_router_finds_what_looking_at_all_sites_does(
    sites: list[Site], gone: list[int], host: str, path: str
) -> None:
    lives: list[Live] = []
    router: Router[Live] = Router()
    for site in sites:
        if not pairwise(site, [live.site for live in lives]):
            lives.append(Live(site))
            router.add(lives[-1])
    assert router.find(host.encode(), path.encode()) is looked_for(lives, host, path)
    for number in gone:
        if number < len(lives):
            live = lives.pop(number)
            router.remove(live, live.site)
            found = router.find(host.encode(), path.encode() + b"?q")
            assert found is looked_for(lives, host, path)


def test_sites_that_change_places_are_both_found() -> None:
    one, two = (Live(replace(SITE, name=name, hosts=(name,))) for name in ("one", "two"))
    router = Router([one, two])
    for live, host in ((one, "two"), (two, "one")):
        before, live.site = live.site, replace(live.site, hosts=(host,))
        router.remove(live, before)
        router.add(live)
    assert router.find(b"one", b"/") is two
    assert router.find(b"two", b"/") is one


KEYS = st.lists(st.sampled_from("ab"), max_size=3)


@given(st.lists(KEYS, max_size=4), KEYS)
def test_a_place_is_marred_by_what_is_wrong_there_or_below(
    wrong: list[list[str]], keys: list[str]
) -> None:
    top = Spot("f.toml")

    def at(way: Iterable[str]) -> Spot:
        spot = top
        for key in way:
            spot = spot.at(key)
        return spot

    for each in wrong:
        at(each).wrong("is wrong")
    assert at(keys).marred == any(each[: len(keys)] == keys for each in wrong)


# What is kept, and when


def test_what_a_reload_has_not_changed_is_not_kept_twice() -> None:
    before = replace(SETTINGS, sites={"a": SITE, "b": replace(SITE, name="b")})
    read = {"a": replace(SITE), "b": replace(SITE, name="b", path="/b"), "c": SITE}
    after = unchanged_kept(before, replace(SETTINGS, sites=read, drain_time=1.0))
    assert after == replace(SETTINGS, sites=read, drain_time=1.0)
    assert after.sites["a"] is before.sites["a"]


def test_garbage_is_collected_again_after_a_file_was_read(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text("not toml")
    with pytest.raises(config.ConfigError):
        config.load(str(path))
    assert gc.isenabled()


def test_health_checks_that_begin_together_are_spread_over_their_interval() -> None:
    clock = Clock()
    site: Any = SimpleNamespace(plane=SimpleNamespace(reactor=clock))
    health = HealthCheck(interval=2.0)
    backend = LiveBackend(Backend("a", (Server("http", "a", 80),), health=health))
    checks = [Checks(site, backend.servers[0], health) for _ in range(1000)]
    instants = [call.getTime() for call in clock.getDelayedCalls()]
    for tenth in range(10):
        begun = sum(0.2 * tenth <= instant < 0.2 * (tenth + 1) for instant in instants)
        assert 20 < begun < 300, f"{begun} of 1000 begin in one tenth of the interval"
    for check in checks:
        check.stop()
