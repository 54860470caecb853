"""Nodes that hold while the registry has too few replicas."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster_stage import METRICS, Cluster, an_empty_cluster
from daemon_stage import Failed, twisted_fixture, twisted_test
from metrics_stage import told_at
from stage_waiting import until, until_async
from test_cluster_nodes import LATER, SOON

TOO_FEW = "0 of 1 replicas of the registry have what was written last"


async def _cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with an_empty_cluster(tmp_path, "hold", "replicas = 1") as cluster:
        await cluster.with_replica(sentinels=0)
        await cluster.begin("web1", "web2")
        yield cluster


cluster = twisted_fixture(_cluster)


@twisted_test
async def test_all_is_held_while_the_replica_is_away(cluster: Cluster) -> None:
    """And who is started meanwhile serves nothing."""
    web1, web2 = cluster.nodes.values()
    _, replica = cluster.redis
    cluster.load_everywhere(["blog"], rate=5.0)
    await cluster.flows()
    replica.stop()
    for node in (web1, web2):

        async def held(name: str = node.name) -> bool:
            rows = (await cluster.nodes[name].site("blog"))["nodes"]
            return bool(rows[name]["held"])

        await until_async(held, f"requests held by {node.name}")
        assert TOO_FEW in (await node.ask("node.list"))["trouble"]
        told = await told_at(METRICS, node.host)
        assert (told["withheld"], told["pause_possible"], told["registry_up"]) == (1, 0, 1)
    said = (await web1.command("status")).out
    assert f"no pause can complete: {TOO_FEW}" in said
    with pytest.raises(Failed, match=TOO_FEW):
        await cluster.pause(web1, "shop", timeout=SOON)
    web3 = cluster.add_node("web3")
    web3.spawn()
    await until(lambda: f"{TOO_FEW}; see" in web3.log, "a word of it")
    assert "nothing is served before" in web3.log
    web3.signal(signal.SIGTERM)
    await web3.exits()
    web3.spawn()
    await until(lambda: "nothing is served before" in web3.log, "a word of it")
    replica.start()
    await web3.serves()
    await cluster.flows()
    receipt = await cluster.pause(web2, "blog", timeout=LATER)
    assert {worker["node"] for worker in receipt["workers"]} == set(cluster.nodes)
    await cluster.resume(web3, "blog")
    await cluster.passes()
