"""The Redis is restarted, gone for long, emptied, or another one after a fail-over."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster_stage import LEASE, MASTER, METRICS, Cluster, RedisServer, a_cluster, a_fixture
from daemon_stage import Failed, twisted_fixture, twisted_test
from fault_stage import sleep
from metrics_stage import told_at
from stage_waiting import until, until_async
from test_cluster_nodes import LATER, SOON

cluster = twisted_fixture(a_fixture())


async def _holding(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with a_cluster(tmp_path, loss="hold") as made:
        yield made


async def _replicated(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with a_cluster(tmp_path, replica=True) as made:
        yield made


holding, replicated = twisted_fixture(_holding), twisted_fixture(_replicated)


async def agree(cluster: Cluster) -> None:
    """Wait until no node has any trouble with the registry, and pause with all of them."""
    web1, web2, _ = cluster.nodes.values()

    async def well() -> bool:
        told = [await node.ask("node.list") for node in cluster.nodes.values()]
        return not any(each["trouble"] for each in told) and all(
            [set((await cluster.states(node)).values()) == {"live"} for node in (web1, web2)]
        )

    await until_async(well, "the registry on all nodes")
    receipt = await cluster.pause(web1, "blog", timeout=LATER)
    assert {worker["node"] for worker in receipt["workers"]} == set(cluster.nodes)
    await cluster.resume(web2, "blog")


async def lost(cluster: Cluster) -> None:
    """Wait until all nodes know that the registry is not there."""

    async def known() -> bool:
        told = [await node.ask("node.list") for node in cluster.nodes.values()]
        return all(each["trouble"] for each in told)

    await until_async(known, "the loss of the registry on all nodes")


@twisted_test
async def test_a_restart_is_got_over(cluster: Cluster) -> None:
    web1, *_ = cluster.nodes.values()
    (redis,) = cluster.redis
    cluster.load_everywhere(["blog", "shop"])
    await cluster.flows()
    receipt = await cluster.pause(web1, "shop")
    await sleep(1.2)  # until it is on the disk: that comes every second
    redis.stop()
    redis.start()
    await redis.answers()
    await agree(cluster)
    held = await web1.site("shop")
    assert held["mode"] == "holding"
    assert held["generation"] >= receipt["generation"]
    await cluster.resume(web1, "shop")
    await cluster.flows()
    await cluster.passes()


@twisted_test
async def test_without_it_nodes_serve_on_and_no_pause_completes(cluster: Cluster) -> None:
    web1, *_ = cluster.nodes.values()
    (redis,) = cluster.redis
    cluster.load_everywhere(["blog"])
    await cluster.flows()
    redis.signal(signal.SIGSTOP)
    await lost(cluster)
    with pytest.raises(Failed):
        await cluster.pause(web1, "blog", timeout=SOON)
    await sleep(30.0)
    await cluster.flows()
    told = await told_at(METRICS, web1.host)
    assert told["registry_up"] == told["pause_possible"] == told["withheld"] == 0
    assert told["registry_lost_seconds"] >= 20
    redis.signal(signal.SIGCONT)
    await agree(cluster)
    told = await told_at(METRICS, web1.host)
    assert told["registry_up"] == told["pause_possible"] == 1
    assert told["registry_lost_seconds"] == 0
    assert told["registry_reconnects_total"] >= 1
    assert told["cluster_nodes{state=live}"] == 3
    assert await cluster.settled("blog") == "old"
    await cluster.flows()
    await cluster.passes()


@twisted_test
async def test_without_it_nodes_that_hold_do_so_until_it_is_back(holding: Cluster) -> None:
    (redis,) = holding.redis
    holding.load_everywhere(["blog"], rate=5.0)
    await holding.flows()
    redis.signal(signal.SIGSTOP)
    await lost(holding)
    for node in holding.nodes.values():

        async def held(node: object = node) -> bool:
            rows = (await holding.nodes[node.name].site("blog"))["nodes"]  # type: ignore[attr-defined]
            return bool(rows[node.name]["held"])  # type: ignore[attr-defined]

        await until_async(held, f"requests held by {node.name}")
    await sleep(2 * LEASE)
    for node in holding.nodes.values():
        assert (await told_at(METRICS, node.host))["withheld"] == 1
    redis.signal(signal.SIGCONT)
    await agree(holding)
    await holding.flows()
    await holding.passes()


@twisted_test
async def test_an_empty_one_is_not_obeyed(cluster: Cluster) -> None:
    """What it says is not that there are no sites, and nothing is held any less."""
    web1, web2, _ = cluster.nodes.values()
    (redis,) = cluster.redis
    await cluster.pause(web1, "shop")
    redis.stop()
    for file in redis.directory.glob("appendonlydir/*"):
        file.unlink()
    redis.start()
    await redis.answers()
    await lost(cluster)
    cluster.load(web2, "blog")
    await cluster.flows()
    assert (await web2.site("shop"))["mode"] == "holding"
    assert "empty" in (await web1.ask("node.list"))["trouble"]
    await cluster.passes()


async def fails_over(cluster: Cluster, to: RedisServer) -> None:
    sentinel = cluster.sentinels[0]

    def found() -> bool:
        return to.address in sentinel.command("sentinel", "get-master-addr-by-name", MASTER)

    await until(found, "the fail-over")


@twisted_test
async def test_a_fail_over_during_a_pause_and_a_migration(replicated: Cluster) -> None:
    cluster = replicated
    web1, web2, web3 = cluster.nodes.values()
    master, replica = cluster.redis
    cluster.load_everywhere(["blog", "shop", "news"], rate=5.0)
    await cluster.flows()
    await cluster.pause(web1, "shop")
    talk = await web3.connect()  # what the others wait for
    talk.ask("/1", "news.test", "POST", "Content-Length: 5\r\n")
    await web1.until_site("news", in_flight=1)
    pausing = web2.ask("pause", site="news", timeout=60.0)
    moving = web1.ask("migrate", site="blog", to="new")
    await web1.until_site("news", state="draining")
    await moving
    master.stop()
    await fails_over(cluster, replica)
    talk.send(b"12345")
    await talk.gets(b"news on old")
    master.words += ("--replicaof", replica.address, "6379")
    master.start()  # without a replica there is no receipt
    receipt = await pausing
    cluster.history.receipt("news", "", receipt["generation"])
    assert {worker["node"] for worker in receipt["workers"]} == set(cluster.nodes)
    await agree(cluster)
    for node in cluster.nodes.values():
        assert (await node.site("shop"))["mode"] == "holding"
    await cluster.resume(web3, "news")
    await cluster.resume(web2, "shop")
    await cluster.flows()
    await cluster.passes()


@twisted_test
async def test_a_fail_over_that_loses_the_newest_writes(replicated: Cluster) -> None:
    """The replica stands still while the master is written to, and takes over without that."""
    cluster = replicated
    web1, web2, _ = cluster.nodes.values()
    master, replica = cluster.redis
    cluster.load_everywhere(["blog", "shop"], rate=5.0)
    await cluster.flows()
    before = await cluster.pause(web1, "shop")
    replica.signal(signal.SIGSTOP)
    with pytest.raises(Failed):  # held, but there is nobody to have it in case
        await cluster.pause(web1, "blog", timeout=SOON)
    assert (await web1.ask("node.list"))["replicas"] == {"needed": 1, "there": 0}
    table = {**cluster.tables()["blog"], "hosts": ["more.test"]}
    await web2.ask("site.add", name="more", definition=table)
    master.stop()
    replica.signal(signal.SIGCONT)
    await fails_over(cluster, replica)
    master.words += ("--replicaof", replica.address, "6379")
    master.start()
    await agree(cluster)
    assert await cluster.settled("blog") == "old"
    assert await cluster.settled("more") == "old"  # a node that knew it has told
    held = await web2.site("shop")
    assert (held["mode"], held["generation"] >= before["generation"]) == ("holding", True)
    await cluster.resume(web2, "shop")
    await cluster.flows()
    await cluster.passes()
