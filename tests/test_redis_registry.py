"""What a registry in Redis adds to the contract: several nodes, and a Redis that goes and comes."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from cluster_stage import Cluster as Stage
from pytest_twisted import ensureDeferred  # type: ignore[import-untyped]
from redis_stage import Redis, Watched, free_port, redis, watched
from space_stage import Bridge
from stage_waiting import until
from tls_stage import Authority
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import capturedLogs

from awesomeproxy.model import Cluster, Mode, Placement
from awesomeproxy.registry.book import HISTORY
from awesomeproxy.registry.interface import Busy, Conflict, Doubtful, Superseded, Unreachable
from awesomeproxy.registry.redis import RedisRegistry
from awesomeproxy.registry.view import EPOCH
from bench.cable import ip

T = TypeVar("T")
BLOG = Placement("blog", "web1")
HOLD = replace(BLOG, mode=Mode.HOLDING)
DOCUMENTED = Path(__file__).parent.parent / "docs" / "registry.md"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    """One Redis."""
    with redis(tmp_path / "redis") as started:
        yield started


def cluster_of(*servers: Redis, **more: object) -> Cluster:
    """The configuration for it."""
    addresses = tuple(("127.0.0.1", each.port) for each in servers)
    return replace(Cluster(addresses, prefix="test"), **more)  # type: ignore[arg-type]


@asynccontextmanager
async def nodes(
    directory: Path, cluster: Cluster, count: int = 2, keep: int = HISTORY
) -> AsyncIterator[list[RedisRegistry]]:
    """The registries of as many nodes."""
    opened = []
    try:
        for number in range(1, count + 1):
            home = directory / f"web{number}"
            home.mkdir(exist_ok=True)
            opening = RedisRegistry.open(reactor, cluster, f"web{number}", home, keep=keep)
            opened.append(await opening)
        yield opened
    finally:
        await gatherResults([each.close() for each in opened])


async def trouble(cluster: Cluster, home: Path, text: str) -> None:
    """See that a registry cannot be opened for that reason."""
    opening = RedisRegistry(reactor, cluster, "web1", home)
    opening.link.start()
    try:
        await until(lambda: opening.link.problem != "it was not reached yet")
        assert text in opening.link.problem
    finally:
        await opening.close()


def deafen(registry: RedisRegistry) -> None:
    """Have a node hear of no change until it asks."""
    registry.link._channels[b"test:1:changes"] = lambda message: None


@ensureDeferred
async def test_what_one_changes_others_hear(server: Redis, tmp_path: Path) -> None:
    """It is in their copy before they ask, and they are told its name."""
    async with nodes(tmp_path, cluster_of(server)) as (one, two):
        told: list[str] = []
        two.subscribe(told.append)
        placed = await one.place(BLOG, 0)
        await one.define("blog", {"hosts": ["blog.test"]})
        await until(lambda: "blog" in two.view.definitions)
        assert two.view.placements == {"blog": placed}
        assert set(told) == {"blog"}
        assert await two.definitions() == {"blog": {"hosts": ["blog.test"]}}


@ensureDeferred
async def test_of_many_that_change_the_same_one_wins(server: Redis, tmp_path: Path) -> None:
    """Whoever comes second is told by whom it was changed, though it has not heard of it."""
    async with nodes(tmp_path, cluster_of(server), 3) as three:
        await three[0].place(BLOG, 0)
        for round_ in range(1, 20):
            tries = [each.place(replace(HOLD, by=each.node), round_) for each in three]
            outcomes = [await _settled(each) for each in tries]
            winners = [each for each in outcomes if isinstance(each, Placement)]
            losers = [each for each in outcomes if isinstance(each, Conflict)]
            assert (len(winners), len(losers)) == (1, 2)
            assert {each.stored for each in losers} == set(winners)


async def _settled(deferred: Deferred[Placement]) -> Placement | Exception:
    try:
        return await deferred
    except Exception as problem:
        return problem


@ensureDeferred
async def test_begins_on_several_nodes_have_numbers_of_their_own(
    server: Redis, tmp_path: Path
) -> None:
    """The journal is one for all."""
    async with nodes(tmp_path, cluster_of(server), 3) as three:
        names = [f"site{number}" for number in range(9)]
        for name in names:
            await three[0].place(Placement(name, "web1"), 0)
        begun = await gatherResults(
            [
                three[number % 3].begin(name, "web1", "web2", Placement(name, "web1"), 1)
                for number, name in enumerate(names)
            ]
        )
        assert sorted(each.id for each in begun) == list(range(1, 10))


@ensureDeferred
async def test_what_was_not_heard_is_read(server: Redis, tmp_path: Path) -> None:
    """A message that is lost is noticed at the next, and whatever was missed is there then."""
    async with nodes(tmp_path, cluster_of(server)) as (one, two):
        await one.place(BLOG, 0)
        await until(lambda: "blog" in two.view.placements)
        channel, missed = b"test:1:changes", list[str]()
        hear = two.link._channels[channel]
        two.link._channels[channel] = missed.append
        await one.place(Placement("shop", "web1"), 0)
        await until(lambda: missed)
        two.link._channels[channel] = hear
        await one.place(HOLD, 1)
        await until(lambda: set(two.view.placements) == {"blog", "shop"})
        assert two.counters["gaps"] == 1
        assert missed


@ensureDeferred
async def test_who_has_heard_nothing_begins_no_second_migration(
    server: Redis, tmp_path: Path
) -> None:
    """What it is told of what it has asked about is not all that it has to know."""
    async with nodes(tmp_path, cluster_of(server)) as (one, two):
        deafen(two)
        await one.place(BLOG, 0)
        entry = await one.begin("blog", "web1", "web2", HOLD, 1)
        with pytest.raises(Busy) as caught:
            await two.begin("blog", "web1", "web3", HOLD, 2)
        assert caught.value.entry == entry


@ensureDeferred
async def test_a_connection_that_only_listens_is_missed(tmp_path: Path) -> None:
    """Nothing is sent on it that could fail when something on the way has forgotten it."""
    stage = Stage(tmp_path, Bridge.lay(), Bridge.lay())
    try:
        server = stage.add_redis()
        server.start()
        await server.answers()
        cluster = Cluster(((server.address, server.port),), prefix="test", lease=3.0)
        async with nodes(tmp_path, cluster, count=1) as (one,):
            told = server.command("client", "list", "type", "pubsub")
            (port,) = re.findall(r"\baddr=[^ ]*:(\d+) ", told)
            lost = ("ipproto", "tcp", "dport", port, "blackhole")
            ip("-n", server.space.name, "rule", "add", "pref", "1", *lost)
            await until(lambda: one.link.counters["reconnects"], "the loss of the connection")
            await until(lambda: one.link.ready)
    finally:
        await stage.close()


@ensureDeferred
async def test_what_is_not_ours_changes_nothing(server: Redis, tmp_path: Path) -> None:
    """Neither on the channels nor in the records."""
    async with nodes(tmp_path, cluster_of(server)) as (one, two):
        placed = await one.place(BLOG, 0)
        await until(lambda: two.view.placements.get("blog") == placed)
        for garbage in ("", "0", "0 9", "0 9\nx", "0 9\nplacements/blog 9 {", "\xff"):
            server.ask("PUBLISH", "test:1:changes", garbage)
        await until(lambda: two.counters["gaps"])
        held = await one.place(HOLD, 1)
        await until(lambda: two.view.placements.get("blog") == held)


@ensureDeferred
async def test_a_change_whose_answer_is_lost_is_made_once(server: Redis, tmp_path: Path) -> None:
    """Whether Redis had it or not: it answers as if nothing had been."""
    async with nodes(tmp_path, cluster_of(server)) as (one, _):
        for generation in range(10):
            placing = one.place(HOLD if generation % 2 else BLOG, generation)
            await one.link._connections[1].ping() if generation % 3 == 0 else None
            one.link.renew("the test breaks it")
            assert (await placing).generation == generation + 1


async def unanswered(
    registry: RedisRegistry, server: Redis, change: Callable[[], Deferred[T]]
) -> T:
    """What a change comes to whose answer is lost, though Redis has made it."""
    version = ("HGET", "test:1:meta", "version")
    registry.link._connections[1].transport.pauseProducing()
    before = server.ask(*version)
    changing = change()
    await until(lambda: server.ask(*version) != before)
    registry.link.renew("the test breaks it")
    return await changing


@ensureDeferred
async def test_a_change_that_was_made_is_known_as_ones_own(server: Redis, tmp_path: Path) -> None:
    """Though its answer is lost: what it is refused for, then, is what it has made itself."""
    async with nodes(tmp_path, cluster_of(server)) as (one, _):

        async def doubtful(change: Callable[[], Deferred[T]]) -> T:
            return await unanswered(one, server, change)

        placed = await doubtful(lambda: one.place(BLOG, 0))
        assert placed.generation == 1
        entry = await doubtful(lambda: one.begin("blog", "web1", "web2", HOLD, 1))
        there = replace(HOLD, backend="web2")
        moved = await doubtful(lambda: one.commit(entry.id, there, 2))
        assert moved["blog"].generation == 3
        there = replace(BLOG, backend="web2")
        done = await doubtful(lambda: one.finish(entry.id, "done", there, 3))
        assert done["blog"].generation == 4


@ensureDeferred
async def test_what_was_in_doubt_is_known_when_the_registry_is_back(
    server: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as nobody has changed the same since, though it be to the same."""
    monkeypatch.setattr("awesomeproxy.registry.redis.PATIENCE", 0.1)
    async with nodes(tmp_path, cluster_of(server), 1) as (one,):
        await one.place(BLOG, 0)

        def hold() -> Deferred[Placement]:
            return one.place(HOLD, 1)

        one.link.on_lost.append(server.stop)
        with pytest.raises(Doubtful) as caught:
            await unanswered(one, server, hold)
        one.link.on_lost.remove(server.stop)
        server.start()
        await until(lambda: one.link.ready)
        assert caught.value.made()
        await one.place(HOLD, 2)
        assert not caught.value.made()


@ensureDeferred
async def test_a_connection_may_be_lost_before_the_last_is_made(
    server: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and is no fault of ours."""
    async with nodes(tmp_path, cluster_of(server), 1) as (one,):
        link, made = one.link, list[Any]()
        connect = link._master.endpoint(("127.0.0.1", server.port)).connect

        async def connected(factory: Any) -> Any:
            made.append(await connect(factory))
            if len(made) == 3:
                made[0].transport.abortConnection()
                await until(lambda: not made[0].connected)
            return made[-1]

        monkeypatch.setattr(link._master, "endpoint", lambda _: SimpleNamespace(connect=connected))
        with capturedLogs() as logged:
            link.renew("the test breaks it")
            await until(lambda: len(made) == 6 and link.ready)
        assert "Error" not in str(logged)


@ensureDeferred
async def test_a_redis_that_starts_anew_begins_an_epoch(server: Redis, tmp_path: Path) -> None:
    """Generations go on far above all that were given before, whichever are known."""
    async with nodes(tmp_path, cluster_of(server)) as registries:
        one, two = registries
        await one.place(BLOG, 0)
        server.stop(signal.SIGKILL)
        await until(lambda: not one.link.ready and not two.link.ready)
        placing = two.place(HOLD, 1)  # waits for it
        server.start()
        placed = await placing
        assert placed.generation == EPOCH + 1
        await until(lambda: one.view.placements["blog"] == placed)
        assert (one.link.epoch, two.link.epoch) == (1, 1)


@ensureDeferred
async def test_what_redis_has_lost_a_node_gives_back(server: Redis, tmp_path: Path) -> None:
    """It knows which of its records are newer than what the new epoch began with."""
    async with nodes(tmp_path, cluster_of(server)) as registries:
        one, two = registries
        await one.place(BLOG, 0)
        held = await one.place(HOLD, 1)
        await until(lambda: two.view.placements.get("blog") == held)
        # As if the replica that is the master now had not had the last change.
        record = server.ask("HGET", "test:1:placements", "blog")
        version, _, body = record.partition(" ")
        old = body.replace('"holding"', '"open"').replace('"generation":2', '"generation":1')
        server.ask("HSET", "test:1:placements", "blog", f"{int(version) - 1} {old}")
        server.ask("ZADD", "test:1:changes", str(int(version) - 1), "placements/blog")
        server.ask("HSET", "test:1:meta", "version", str(int(version) - 1), "run", "another")
        for each in registries:
            each.link.renew("the test breaks it")
        await until(lambda: '"holding"' in server.ask("HGET", "test:1:placements", "blog"))
        await until(lambda: one.link.ready and two.link.ready)
        assert one.counters["mended"] + two.counters["mended"] >= 1
        assert (await two.placements())["blog"] == held
        assert (await two.place(BLOG, 2)).generation == EPOCH + 1


@ensureDeferred
async def test_who_knows_more_gives_back_more(server: Redis, tmp_path: Path) -> None:
    """Though another node was faster, which knew of an earlier change of the same record."""
    async with nodes(tmp_path, cluster_of(server)) as (one, two):
        await one.place(BLOG, 0)
        await one.place(Placement("shop", "web1"), 0)
        await one.place(Placement("wiki", "web1"), 0)
        server.keep("test")
        held = await one.place(HOLD, 1)
        first = await one.begin("shop", "web1", "web2", Placement("shop", "web1"), 1)
        await until(lambda: two.view.placements.get("blog") == held)
        deafen(one)
        opened = await two.place(BLOG, 2)
        wiki = Placement("wiki", "web1")
        second = await two.begin("wiki", "web1", "web2", wiki, 1)
        await two.finish(second.id, "rolled back", wiki, 2, "it was tried")
        server.lose("test")
        one.link.renew("the test breaks it")
        await until(lambda: one.link.ready and two.link.epoch == 1 and two.link.ready)
        assert (await one.placements())["blog"] == opened
        assert await one.unfinished() == [first]
        third = await one.begin("blog", "web1", "web2", BLOG, 3)
        assert [each.id for each in await two.history(None, 9)] == [third.id, second.id, first.id]
        assert server.ask("ZRANGE", "test:1:finished", "0", "-1") == str(second.id)


@ensureDeferred
async def test_a_migration_that_is_long_forgotten_is_in_nobodys_way(
    server: Redis, tmp_path: Path
) -> None:
    """A node that was away does not hear how it ended, but sees that it has."""
    async with nodes(tmp_path, cluster_of(server), keep=2) as (one, two):
        generation = (await one.place(BLOG, 0)).generation
        for number in range(4):
            entry = await one.begin("blog", "web1", "web2", HOLD, generation)
            if not number:
                await until(lambda: 1 in two.view.entries)
                deafen(two)
            ended = await one.finish(entry.id, "rolled back", BLOG, entry.generation, "tried")
            generation = ended["blog"].generation
        two.link.renew("the test breaks it")
        await until(lambda: two.link.ready)
        assert await two.unfinished() == []
        await two.begin("blog", "web1", "web2", HOLD, generation)


@ensureDeferred
async def test_an_empty_redis_is_not_believed(server: Redis, tmp_path: Path) -> None:
    """A node that has seen the cluster's data does not begin from nothing."""
    async with nodes(tmp_path, cluster_of(server)) as (one, _):
        await one.place(BLOG, 0)
        known = dict(one.view.placements)
        server.ask("FLUSHALL")
        one.link.renew("the test breaks it")
        await until(lambda: "is empty, but this node belongs to" in one.link.problem)
        with pytest.raises(Unreachable, match="is empty"):
            await one.placements()
        assert one.view.placements == known


@ensureDeferred
async def test_a_cache_is_no_registry(server: Redis, tmp_path: Path) -> None:
    """A Redis that may drop any key when it is full might forget what is held."""
    server.ask("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
    await trouble(cluster_of(server), tmp_path, "set its maxmemory-policy to noeviction")


@ensureDeferred
async def test_a_node_knows_its_cluster_when_it_starts(server: Redis, tmp_path: Path) -> None:
    """Another one's data are not taken for its own."""
    async with nodes(tmp_path, cluster_of(server), 1) as (one,):
        await one.place(BLOG, 0)
    server.ask("FLUSHALL")
    other = tmp_path / "other"
    other.mkdir()
    async with nodes(other, cluster_of(server), 1):
        pass
    await trouble(cluster_of(server), tmp_path / "web1", "but this node belongs to cluster")


@ensureDeferred
async def test_a_migration_is_its_owners_alone(server: Redis, tmp_path: Path) -> None:
    """Of several heirs one gets it; who had it before may write nothing more."""
    async with nodes(tmp_path, cluster_of(server), 3) as three:
        for number, each in enumerate(three, 1):
            each.life = int(
                (await each.link.call("join", each.node, '{"state":"live"}')).split()[1]
            )
            assert each.life == 1, number
        one = three[0]
        await one.place(BLOG, 0)
        entry = await one.begin("blog", "web1", "web2", HOLD, 1)
        assert (entry.owner, entry.life) == ("web1", 1)
        tries = [each.take_over(entry.id, "web1", 1) for each in three[1:]]
        outcomes = [await _settled(each) for each in tries]  # type: ignore[arg-type]
        assert sum(isinstance(each, Superseded) for each in outcomes) == 1
        with pytest.raises(Superseded, match="was taken over by node web"):
            await one.step(entry.id, "drain")


@pytest.mark.parametrize("user", ["", "proxy"])
@ensureDeferred
async def test_who_has_a_password_says_it(tmp_path: Path, user: str) -> None:
    """As the default user, or as one of its own; a wrong one is told of, and tried again."""
    # Those that docs/registry.md says are needed.
    rights = re.search(r"ACL SETUSER \w+ (.*)", DOCUMENTED.read_text())
    assert rights is not None
    said = rights[1].replace("awesomeproxy:1:", "test:1:").replace("PASSWORD", "secret")
    with redis(tmp_path / "redis", "--user", user or "default", *said.split()) as server:
        file = tmp_path / "password"
        file.write_text("wrong\n")
        cluster = cluster_of(server, user=user, password_file=str(file))
        registry = RedisRegistry(reactor, cluster, "web1", tmp_path)
        registry.link.start()
        try:
            await until(lambda: f"refuses user {user or 'default'}" in registry.link.problem)
            file.write_text("secret\n")
            await until(lambda: registry.link.ready)
            await registry.place(BLOG, 0)
        finally:
            await registry.close()


@pytest.mark.parametrize("authority_known", [True, False])
@ensureDeferred
async def test_tls_is_verified(tmp_path: Path, authority_known: bool) -> None:
    """A certificate of somebody unknown ends the connection."""
    authority = Authority(tmp_path / "authority")
    issued = authority.issue("redis.test")
    trusted = authority if authority_known else Authority(tmp_path / "another")
    port = free_port()
    options = ("--tls-port", str(port), "--tls-auth-clients", "no")
    files = ("--tls-cert-file", str(issued.certificate), "--tls-key-file", str(issued.key))
    with redis(tmp_path / "redis", *options, *files):
        cluster = Cluster(
            (("127.0.0.1", port),),
            tls=True,
            verify_name="redis.test",
            ca_file=str(trusted.ca_file),
        )
        if not authority_known:
            await trouble(cluster, tmp_path, "certificate verify failed')]; see cluster.tls")
            return
        async with nodes(tmp_path, cluster, 1) as (one,):
            assert (await one.place(BLOG, 0)).generation == 1


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Watched]:
    """A master with a replica, and Sentinels."""
    with watched(tmp_path / "group") as started:
        yield started


@ensureDeferred
async def test_sentinels_are_followed(group: Watched, tmp_path: Path) -> None:
    """A change that is asked for while the master is dead is made on the next one."""
    cluster = cluster_of(*group.sentinels, master=group.name)
    async with nodes(tmp_path, cluster) as (one, two):
        await one.place(BLOG, 0)
        group.master.stop(signal.SIGKILL)
        await until(lambda: not one.link.ready)
        await until(lambda: one.link.ready and two.link.ready)
        placed = await one.place(HOLD, one.view.placements["blog"].generation)
        assert placed.generation == EPOCH + 1
        await until(lambda: two.view.placements.get("blog") == placed)


@ensureDeferred
async def test_what_a_fail_over_loses_a_node_gives_back(group: Watched, tmp_path: Path) -> None:
    """The replica had not had the last change when the master died."""
    cluster = cluster_of(*group.sentinels, master=group.name)
    async with nodes(tmp_path, cluster) as (one, two):
        await one.place(BLOG, 0)
        group.replica.until("master_link_status:up", "INFO", "replication")
        master, replica = group.master, group.replica
        replica.signal(signal.SIGSTOP)
        master.ask("CLIENT", "KILL", "TYPE", "replica")  # nothing more is on its way to it
        held = await one.place(HOLD, 1)
        await until(lambda: two.view.placements.get("blog") == held)
        master.stop(signal.SIGKILL)
        replica.signal(signal.SIGCONT)
        await until(lambda: not one.link.ready)
        await until(lambda: one.link.ready and two.link.ready)
        assert one.counters["mended"] + two.counters["mended"] >= 1
        assert (await one.placements())["blog"] == (await two.placements())["blog"] == held


@ensureDeferred
async def test_what_has_to_be_kept_waits_for_replicas(group: Watched, tmp_path: Path) -> None:
    """A commit is answered when a replica has it, and not before."""
    cluster = cluster_of(*group.sentinels, master=group.name, replicas=1)
    async with nodes(tmp_path, cluster, 1) as (one,):
        await one.place(BLOG, 0)
        entry = await one.begin("blog", "web1", "web2", HOLD, 1)
        group.replica.signal(signal.SIGSTOP)
        committing = one.commit(entry.id, replace(HOLD, backend="web2"), 2)
        await until(lambda: one.view.placements["blog"].backend == "web2")
        assert await one.link.copied() == 0
        assert not committing.called
        group.replica.signal(signal.SIGCONT)
        assert (await committing)["blog"].generation == 3
