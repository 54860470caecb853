"""Networks that are cut, slow and lossy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster_stage import LEASE, Cluster, a_cluster, a_fixture
from daemon_stage import Failed, twisted_fixture, twisted_test
from stage_waiting import until_async
from test_cluster_nodes import LATER, SOON, becomes

from bench.cable import Nature

cluster = twisted_fixture(a_fixture())


async def _holding(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with a_cluster(tmp_path, loss="hold") as made:
        yield made


async def _far(tmp_path: Path) -> AsyncIterator[Cluster]:
    bad = Nature(delay=0.02, jitter=0.01, loss=0.02)
    async with a_cluster(tmp_path, natures={"web3": (bad, bad)}) as made:
        yield made


holding, far = twisted_fixture(_holding), twisted_fixture(_far)


async def pauses(cluster: Cluster, names: set[str], timeout: float) -> None:
    """A pause that these nodes are in, and its end."""
    web1 = cluster.nodes["web1"]
    receipt = await cluster.pause(web1, "blog", timeout=timeout)
    assert {worker["node"] for worker in receipt["workers"]} == names
    await cluster.resume(web1, "blog")


@twisted_test
async def test_cut_off_from_redis_a_node_serves_on(cluster: Cluster) -> None:
    web1, _, web3 = cluster.nodes.values()
    cluster.load_everywhere(["blog"])
    await cluster.flows()
    for silence in (False, True):  # the second time, nobody is told that nothing arrives
        if silence:
            web3.space.silence(cluster.registry)
        else:
            cluster.cut(web3, "registry")
        with pytest.raises(Failed, match="web3"):
            await cluster.pause(web1, "blog", timeout=SOON)
        await becomes(cluster, "web3", "gone")
        assert await web3.ask("status")
        assert (await web3.ask("node.list"))["trouble"]
        if silence:
            web3.space.silence(cluster.registry, off=False)
        else:
            cluster.cut(web3, "registry", off=False)
        await becomes(cluster, "web3", "live")
        await pauses(cluster, set(cluster.nodes), LATER)
        await cluster.flows()
    await cluster.passes()


@twisted_test
async def test_cut_off_from_redis_a_node_holds_and_is_left_out(holding: Cluster) -> None:
    web1, web2, web3 = holding.nodes.values()
    for node in (web1, web2, web3):
        holding.load(node, "blog")
    await holding.flows()
    holding.cut(web3, "registry")
    await pauses(holding, {"web1", "web2"}, LATER)

    async def held() -> bool:
        nodes = (await web3.site("blog"))["nodes"]
        return bool(nodes["web3"]["held"])

    await until_async(held, "requests that are held")
    holding.cut(web3, "registry", off=False)
    await becomes(holding, "web3", "live")
    await holding.flows()
    await pauses(holding, set(holding.nodes), LATER)
    await holding.passes()


@twisted_test
async def test_cut_off_from_clients_and_backends_a_node_is_in_every_pause(
    cluster: Cluster,
) -> None:
    web1, web2, web3 = cluster.nodes.values()
    for node in (web1, web2):
        cluster.load(node, "blog")
    await cluster.flows()
    cluster.cut(web3, "data")
    await pauses(cluster, set(cluster.nodes), LATER)
    cluster.cut(web3, "data", off=False)
    assert (await web3.get("/")).status == 200
    await cluster.passes()


@twisted_test
async def test_cut_off_from_everything_a_node_returns(cluster: Cluster) -> None:
    web1, web2, web3 = cluster.nodes.values()
    for node in (web1, web2):
        cluster.load(node, "blog")
    cluster.cut(web3, "all")
    with pytest.raises(Failed, match="web3"):
        await cluster.pause(web1, "blog", timeout=SOON + LEASE)
    cluster.cut(web3, "all", off=False)
    await becomes(cluster, "web3", "live")
    await pauses(cluster, set(cluster.nodes), LATER)
    assert (await web3.get("/")).status == 200
    await cluster.passes()


@twisted_test
async def test_far_away_over_a_bad_line(far: Cluster) -> None:
    """20 ms ± 10 each way, and of a hundred packets two are lost, from one of the nodes."""
    far.load_everywhere(["blog", "shop"], rate=5.0)
    await far.flows()
    at, other = "old", "new"
    for _ in range(8):
        await pauses(far, set(far.nodes), LATER)
        await far.migrate(far.nodes["web3"], "blog", other)
        at, other = other, at
    await far.flows()
    await far.passes()
