"""A command makes sure that a node which is gone serves nothing; or it fails, or hangs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from cluster_stage import Cluster, Node, a_cluster
from daemon_stage import twisted_fixture, twisted_test
from ssh_stage import runs
from stage_waiting import until, until_async
from twisted.internet.defer import Deferred

NAMES = ("web1", "web2", "web3", "web4")
# Becomes what the file beside it says.
SWITCH = '#!/bin/sh\necho "$$ $*" >>"$0.log"\nexec sh "$0.does"\n'


@dataclass
class Switch:
    """What is to turn nodes off."""

    cluster: Cluster
    path: Path

    def does(self, script: str) -> None:
        self.path.with_suffix(".does").write_text(script)

    def calls(self) -> list[tuple[int, str]]:
        """The processes that it was, and for which node."""
        log = self.path.with_suffix(".log")
        lines = log.read_text().splitlines() if log.exists() else []
        return [(int(pid), node) for pid, node in (line.split() for line in lines)]

    async def says(self, node: Node, what: str) -> None:
        """Wait until it is told on a node what has become of it."""

        async def look() -> bool:
            return f"; fence_command {what}" in (await node.ask("node.list"))["trouble"]

        await until_async(look, f"that it {what}")


async def _switch(tmp_path: Path) -> AsyncIterator[Switch]:
    path = tmp_path / "switch"
    path.write_text(SWITCH)
    path.chmod(0o755)
    more = f'fence_command = ["{path}"]\nfence_time = "3s"'
    async with a_cluster(tmp_path, NAMES, more=more) as cluster:
        yield Switch(cluster, path)


switch = twisted_fixture(_switch)


@twisted_test
async def test_a_pause_waits_until_the_command_has_made_sure(switch: Switch) -> None:
    """Each node that waits runs it once; none of them does without the node before it is."""
    cluster = switch.cluster
    web1, web2, web3, web4 = cluster.nodes.values()
    for node in (web1, web2):
        cluster.load(node, "wiki")
    await cluster.flows()
    await web4.kill()
    switch.does("echo no such plug >&2; exit 3")
    pauses = [Deferred.fromCoroutine(cluster.pause(web1, "blog", timeout=100.0))]
    await switch.says(web1, "has failed: ")
    switch.does("exec sleep 600")
    pauses.append(Deferred.fromCoroutine(cluster.pause(web2, "shop", timeout=100.0)))
    await switch.says(web2, "runs")
    await switch.says(web2, "has failed: ")
    trouble = (await web2.ask("node.list"))["trouble"]
    assert "more than 3 s" in trouble
    assert "awesomeproxy node fence web4" in trouble
    assert "no such plug" in (await web1.ask("node.list"))["trouble"]
    assert not any(each.called for each in pauses)
    (_, hung) = (pid for pid, _ in switch.calls())
    await until(lambda: not runs(hung), "the end of one that hangs")
    switch.does("exit 0")
    pauses.append(Deferred.fromCoroutine(cluster.pause(web3, "news", timeout=100.0)))
    for pause in pauses:
        receipt = await pause
        assert {worker["node"] for worker in receipt["workers"]} == {"web1", "web2", "web3"}
    assert [node for _, node in switch.calls()] == ["web4"] * 3
    assert (await cluster.states(web1))["web4"] == "fenced"
    await web4.start()
    held = await web4.site("blog")
    assert held["mode"] == "holding"
    await cluster.passes()
