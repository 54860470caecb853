"""Nodes that die, freeze, return, and are done without."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster_stage import LEASE, Cluster, Node, a_cluster, a_fixture
from daemon_stage import Failed, Talk, twisted_fixture, twisted_test
from stage_waiting import until_async

cluster = twisted_fixture(a_fixture())


async def _holding(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with a_cluster(tmp_path, loss="hold") as made:
        yield made


holding = twisted_fixture(_holding)

SOON = 2.0  # seconds that a pause may take which is not meant to succeed
LATER = 5 * LEASE  # and one that waits for a lease to be over


async def becomes(cluster: Cluster, name: str, *states: str) -> None:
    """Wait until the others see a node in one of these states."""
    other = next(node for node in cluster.nodes.values() if node.name != name and node.running)

    async def look() -> bool:
        return (await cluster.states(other)).get(name) in states

    await until_async(look, f"{name} is one of {states}")


class Waiting:
    """Clients of a node that have been answered once, and ask again while it is frozen.

    When it wakes, what they ask is the first that it finds.
    """

    def __init__(self, talks: list[Talk]) -> None:
        self._talks = talks

    @classmethod
    async def begin(cls, node: Node, count: int = 20) -> Waiting:
        waiting = cls([await node.connect() for _ in range(count)])
        waiting.ask("first")
        await waiting.answered(1)
        return waiting

    def __len__(self) -> int:
        return len(self._talks)

    def ask(self, name: str) -> None:
        for number, talk in enumerate(self._talks):
            talk.ask(f"/{name}/{number}")

    async def answered(self, times: int) -> None:
        for talk in self._talks:
            await talk.gets(b"blog on old", times)


@twisted_test
async def test_a_pause_waits_for_a_dead_node_until_it_is_back(cluster: Cluster) -> None:
    web1, web2, web3 = cluster.nodes.values()
    for node in (web1, web2):
        cluster.load(node, "blog")
    await cluster.flows()
    await web3.kill()
    with pytest.raises(Failed, match=r"web3.*the pause was undone"):
        await cluster.pause(web1, "blog", timeout=SOON)
    assert await cluster.settled("blog") == "old"
    await cluster.flows()
    await web3.start()
    receipt = await cluster.pause(web2, "blog")
    assert {worker["node"] for worker in receipt["workers"]} == set(cluster.nodes)
    await cluster.resume(web1, "blog")
    await cluster.flows()
    await cluster.passes()


@twisted_test
async def test_a_node_that_starts_holds_first(cluster: Cluster) -> None:
    """It was fenced while it was off, and what it knows is old."""
    web1, _, web3 = cluster.nodes.values()
    await web3.kill()
    with pytest.raises(Failed, match="its last word came"):
        await web1.ask("node.fence", node="web3")
    await becomes(cluster, "web3", "late", "gone")
    ended = await web1.command("node", "fence", "web3", "--yes")
    assert ended.out == "web3 is fenced: nothing waits for it any more\n"
    receipt = await cluster.pause(web1, "blog")
    assert {worker["node"] for worker in receipt["workers"]} == {"web1", "web2"}
    await web3.start()
    held = web3.fetch("/held")
    await web3.until_site("blog", held=1)
    cluster.keeps_promises()
    await cluster.resume(web3, "blog")
    assert (await held).status == 200
    assert (await cluster.states(web1))["web3"] == "live"


@twisted_test
async def test_one_that_has_left_can_be_forgotten(cluster: Cluster) -> None:
    web1, _, web3 = cluster.nodes.values()
    web3.signal(signal.SIGTERM)
    await web3.exits()
    await cluster.pause(web1, "blog", timeout=SOON)  # nobody waits for it
    assert (await cluster.states(web1))["web3"] == "left"
    assert (await web1.command("node", "remove", "web3")).status == 0
    assert "web3" not in await cluster.states(web1)
    ended = await web1.command("node", "remove", "web2")
    assert (ended.status, "web2 is live; stop it, or fence it" in ended.err) == (1, True)


@twisted_test
async def test_a_frozen_node_that_serves_on_fails_the_pause(cluster: Cluster) -> None:
    """It might serve: nothing but an operator goes around it.  When it wakes, all is well."""
    web1, web2, web3 = cluster.nodes.values()
    cluster.load(web2, "blog")
    await cluster.flows()
    web3.signal(signal.SIGSTOP)
    with pytest.raises(Failed, match="web3"):
        await cluster.pause(web1, "blog", timeout=2 * LEASE)
    assert (await cluster.states(web1))["web3"] == "gone"
    web3.signal(signal.SIGCONT)
    await becomes(cluster, "web3", "live")
    receipt = await cluster.pause(web1, "blog")
    assert len(receipt["workers"]) == 3
    await cluster.resume(web1, "blog")
    await cluster.passes()


@twisted_test
async def test_a_frozen_node_that_holds_by_itself_is_left_out(holding: Cluster) -> None:
    """It wakes during the pause, with requests that came meanwhile, and forwards not a byte."""
    web1, web2, web3 = holding.nodes.values()
    holding.load(web2, "blog")
    await holding.flows()
    clients = await Waiting.begin(web3)
    web3.signal(signal.SIGSTOP)
    clients.ask("meanwhile")
    receipt = await holding.pause(web1, "blog", timeout=LATER)
    assert {worker["node"] for worker in receipt["workers"]} == {"web1", "web2"}
    web3.signal(signal.SIGCONT)
    await becomes(holding, "web3", "live")
    await web3.until_site("blog", mode="holding")

    async def all_held() -> bool:
        nodes = (await web3.site("blog"))["nodes"]
        return bool(nodes["web3"]["held"] == len(clients))

    await until_async(all_held, "requests of clients that waited")
    holding.keeps_promises()
    await holding.resume(web2, "blog")
    await clients.answered(2)
    await holding.flows()
    await holding.passes()


@twisted_test
async def test_a_fenced_node_that_was_only_frozen_forwards_nothing(cluster: Cluster) -> None:
    """The operator was wrong about it."""
    web1, _, web3 = cluster.nodes.values()
    clients = await Waiting.begin(web3)
    web3.signal(signal.SIGSTOP)
    clients.ask("meanwhile")
    await becomes(cluster, "web3", "gone")
    await web1.ask("node.fence", node="web3")
    await cluster.pause(web1, "blog")
    web3.signal(signal.SIGCONT)
    await becomes(cluster, "web3", "live")
    cluster.keeps_promises()
    await cluster.resume(web1, "blog")
    await clients.answered(2)
