"""The node that carries out a migration is killed before each of its steps; another ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cluster_stage import Cluster, a_cluster
from daemon_stage import Failed, twisted_fixture, twisted_test
from stage_waiting import until_async
from test_cluster_nodes import becomes

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
    for node in (web2, web3):
        cluster.load(node, "blog", rate=10.0)
    await cluster.flows()
    at, other = "old", "new"
    for step in STEPS:
        (web1.directory / "deadly").write_text(f"{step} {web1.pid}\n")
        with pytest.raises((Unreachable, Failed)):
            await cluster.migrate(web1, "blog", other)
        await web1.exits()
        (web1.directory / "deadly").unlink()
        committed = steps.ORDER[step] > steps.ORDER["commit"]

        async def ended() -> bool:
            told = await web2.ask("migrations", site="blog", limit=1)
            return all(each["state"] in ("done", "rolled back") for each in told["migrations"])

        await until_async(ended, f"the end of what died before {step}")
        if committed:
            at, other = other, at
        assert await cluster.settled("blog") == at, step
        await cluster.flows()
        await web1.start()
        await becomes(cluster, "web1", "live")
        receipt = await cluster.pause(web3, "blog")
        assert len(receipt["workers"]) == 3
        await cluster.resume(web1, "blog")
    await cluster.flows()
    await cluster.passes()
