"""Three nodes that all serve: whatever is asked of whichever, they agree."""

from __future__ import annotations

import random

import pytest
from cluster_stage import SITES, Cluster, a_fixture
from daemon_stage import Failed, twisted_fixture, twisted_test
from stage_waiting import until_async
from twisted.internet.defer import Deferred, DeferredList, gatherResults

cluster = twisted_fixture(a_fixture())

CHANGES = 60
NODES = "".join(f'[nodes.{name}]\nssh = "{name}"\n' for name in ("web1", "web2"))


@twisted_test
async def test_sixty_migrations_and_pauses_under_load(cluster: Cluster) -> None:
    """Of nodes by chance, one after the other for each site, and all sites at once."""
    chance = random.Random(5)
    everyone = set(cluster.nodes)
    cluster.load_everywhere(rate=6.0)
    await cluster.flows()

    async def operate(site: str) -> None:
        at, other = "old", "new"
        for _ in range(CHANGES // len(SITES)):
            if chance.random() < 0.5:
                ledger = await cluster.migrate(cluster.any_node(chance), site, other)
                assert (ledger["source"], ledger["outcome"]) == (at, "done")
                at, other = other, at
            else:
                receipt = await cluster.pause(cluster.any_node(chance), site)
                assert {worker["node"] for worker in receipt["workers"]} == everyone
                await cluster.resume(cluster.any_node(chance), site)
            await cluster.flows(1, site)

    await gatherResults([Deferred.fromCoroutine(operate(site)) for site in SITES])
    await cluster.flows()
    await cluster.passes()


@twisted_test
async def test_of_two_at_once_one_wins_and_the_other_is_told(cluster: Cluster) -> None:
    web1, web2, _ = cluster.nodes.values()
    for to in ("new", "old", "new", "old"):
        ends = await DeferredList(
            [node.ask("migrate", site="blog", to=to) for node in (web1, web2)], consumeErrors=True
        )
        (ledger,) = [end for success, end in ends if success]
        (loser,) = [end for success, end in ends if not success]
        assert ledger["target"] == to
        assert loser.check(Failed)
        for node in cluster.nodes.values():
            await node.until_site("blog", backend=to, mode="open", migration=None)


@twisted_test
async def test_any_node_tells_of_all(cluster: Cluster) -> None:
    web1, web2, web3 = cluster.nodes.values()
    await cluster.pause(web1, "blog")
    asked = [node.fetch("/x") for node in cluster.nodes.values()]
    for node in (web1, web2, web3):
        told = await node.until_site("blog", held=3, state="holding")
        assert {name: row["held"] for name, row in told["nodes"].items()} == dict.fromkeys(
            cluster.nodes, 1
        )
    await cluster.resume(web3, "blog")
    for answer in asked:
        assert (await answer).status == 200
    (blog, *_) = (await web2.ask("status"))["sites"]
    assert (blog["name"], blog["counters"]["requests"]) == ("blog", 3)
    ended = await web2.command("node", "list")
    assert [line.split()[:2] for line in ended.out.splitlines()[1:4]] == [
        ["web1", "live"],
        ["web2*", "live"],
        ["web3", "live"],
    ]
    assert ended.out.endswith(", no replica\n")
    cluster.keeps_promises()


@twisted_test
async def test_a_site_is_added_and_removed_on_all(cluster: Cluster) -> None:
    web1, web2, web3 = cluster.nodes.values()
    table = {**cluster.tables()["blog"], "hosts": ["more.test"]}
    await web1.ask("site.add", name="more", definition=table)
    await web3.until_site("blog", mode="open")

    async def answers(status: int) -> bool:
        return all(
            [(await node.get("/", host="more.test")).status == status for node in (web2, web3)]
        )

    await until_async(lambda: answers(200), "the site on all nodes")
    await web2.ask("site.remove", name="more")
    await until_async(lambda: answers(404), "its end on all nodes")


@twisted_test
async def test_a_node_is_drained_under_load(cluster: Cluster) -> None:
    """Of one node, by another, two at a time; each site moves once."""
    web1, web2, _ = cluster.nodes.values()
    tables = cluster.tables()
    for table in tables.values():
        for name, backend in table["backends"].items():
            backend["node"] = {"old": "web1", "new": "web2"}[name]
    for node in cluster.nodes.values():
        node.config.write_text(node.text + NODES)
        await node.ask("reload")
    await web1.ask("apply", sites=tables)
    cluster.load_everywhere(rate=6.0)
    await cluster.flows()
    for site in SITES:
        cluster.history.released(site)
    drained = await web2.ask("node.drain", node="web1", at_once=2)
    assert sorted(each["name"] for each in drained["moved"]) == sorted(SITES)
    for site in SITES:
        cluster.history.receipt(site, "old", 0)
        assert await cluster.settled(site) == "new"
    await cluster.flows()
    await cluster.passes()


@pytest.mark.parametrize("who", ["web1", "web2"])
@twisted_test
async def test_a_migration_is_called_off_from_any_node(cluster: Cluster, who: str) -> None:
    """It waits for what a third node has in flight."""
    web1, _, web3 = cluster.nodes.values()
    talk = await web3.connect()
    talk.ask("/", method="POST", more="Content-Length: 5\r\n")
    await web1.until_site("blog", in_flight=1)
    moving = web1.ask("migrate", site="blog", to="new", max_pause=30.0)
    await web1.until_site("blog", state="draining")
    await cluster.nodes[who].ask("abort", site="blog")
    with pytest.raises(Failed, match="rolled back"):
        await moving
    talk.send(b"12345")
    await talk.gets(b"blog on old")
    assert await cluster.settled("blog") == "old"
