"""The node that carries out migrations is killed before each of their steps; another ends them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster_stage import SITES, Cluster, a_cluster
from daemon_stage import Failed, twisted_fixture, twisted_test
from stage_waiting import until, until_async
from test_cluster_nodes import becomes
from twisted.internet.defer import Deferred

from awesomeproxy.control.client import Unreachable
from awesomeproxy.migrate import steps

STEPS = [step.name for step in steps.of(False)]


async def _cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with a_cluster(tmp_path, deadly="web1") as made:
        yield made


cluster = twisted_fixture(_cluster)


@twisted_test
async def test_killed_before_each_step(cluster: Cluster) -> None:
    web1, web2, web3 = cluster.nodes.values()
    for site in SITES:
        for node in (web2, web3):
            cluster.load(node, site, rate=5.0)
    await cluster.flows()
    left = list(STEPS)
    while left:
        dying = dict(zip(SITES, left, strict=False))
        del left[: len(dying)]
        reached = [web1.reaches(site, step) for site, step in dying.items()]
        migrations = [cluster.migrate(web1, site, "new") for site in dying]
        moving = list(map(Deferred.fromCoroutine, migrations))
        await until(lambda reached=reached: all(each.exists() for each in reached), "the steps")  # type: ignore[misc]
        await web1.kill()
        for each in moving:
            with pytest.raises((Unreachable, Failed)):
                await each
        web1.forget()
        for site, step in dying.items():
            await ends(cluster, site, step)
        await web1.start()
        await becomes(cluster, "web1", "live")
        for site in dying:
            receipt = await cluster.pause(web3, site)
            assert len(receipt["workers"]) == 3
            await cluster.resume(web1, site)
    await cluster.flows()
    await cluster.passes()


async def ends(cluster: Cluster, site: str, step: str) -> None:
    """Another node ends the migration as it should, and the site is served."""
    node = cluster.nodes["web2"]

    async def ended() -> bool:
        told = await node.ask("migrations", site=site, limit=1)
        return all(each["state"] in ("done", "rolled back") for each in told["migrations"])

    await until_async(ended, f"the end of what died before {step}")
    committed = steps.ORDER[step] > steps.ORDER["commit"]
    assert await cluster.settled(site) == ("new" if committed else "old"), step
    await cluster.flows(site=site)
