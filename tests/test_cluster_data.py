"""The node that moves sites with their data is killed at each step; another ends what it began.

Each site's files and rows are in a directory that rsync carries, and are written all the time.
"""

from __future__ import annotations

import filecmp
import os
import shlex
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cluster_stage import Node, a_cluster
from daemon_stage import Failed, twisted_fixture, twisted_test
from ledger_stage import Ledger, Stand, begin, bulk, close
from stage_waiting import until
from test_cluster_nodes import becomes
from twisted.internet.defer import Deferred, gatherResults

from awesomeproxy.control.client import Unreachable
from awesomeproxy.migrate.steps import ORDER

NODES = {"old": "web1", "new": "web2"}  # where backends stand
COUNT = 6  # sites that are moved at the same time, and are at different steps when their node dies


async def _sites(tmp_path: Path) -> AsyncIterator[list[Ledger]]:
    async with a_cluster(tmp_path, deadly="web1") as cluster:
        # It is in the test's own network, whichever node has it run.
        network = ("nsenter", f"--net=/proc/{os.getpid()}/ns/net", "--")
        address = cluster.data.address(1)
        stands = {
            name: Stand(node, address, cluster.directory, network) for name, node in NODES.items()
        }
        sites = [Ledger(cluster, number, stands) for number in range(COUNT)]
        try:
            await begin(sites, "[nodes.web1]\n[nodes.web2]", ("web2", "web3"))
            yield sites
        finally:
            await close(sites)


sites = twisted_fixture(_sites)


@dataclass
class Moment:
    """When it dies: before a step, or while rsync runs in it."""

    site: Ledger
    step: str
    carrying: bool = False
    moving: Deferred[Any] = field(init=False)

    @property
    def committed(self) -> bool:
        return ORDER[self.step] > ORDER["commit"]

    def __str__(self) -> str:
        return f"{'in' if self.carrying else 'before'} {self.step}"

    def begin(self, node: Node) -> None:
        """Have the node begin the migration, which gets to this moment and no further."""
        site = self.site
        self._reached = node.reaches(site.name, self.step, stays=not self.carrying)
        if self.carrying:  # it is in the source before the first round, or behind the last one
            copy = ["cp", str(bulk(site.cluster)), str(site.path(site.at) / "bulk")]
            if self.step == "sync":
                node.script(site.name, "drain").write_text(shlex.join(copy))
            else:
                subprocess.run(copy, check=True)
        moving = site.cluster.migrate(node, site.name, site.other, max_pause=60.0)
        self.moving = Deferred.fromCoroutine(moving)

    async def comes(self) -> None:
        """Wait for it; rsync, if it runs, is as slow as can be from then on."""
        await until(lambda: self._reached.exists() or self.moving.called, str(self))
        if self.carrying:  # one sends, one compares, one writes
            await until(lambda: len(self.site.carriers()) == 3, f"rsync {self}")
            for pid in self.site.carriers():
                os.kill(pid, signal.SIGSTOP)

    async def passed(self, node: Node) -> None:
        """Another node has led it to the end that it should have, as a node tells."""
        site = self.site
        if self.step != "check":  # before which there is nothing
            state = await site.ended(node)
            assert state == ("done" if self.committed else "rolled back"), self
        if self.committed:
            site.at = site.other
        assert await site.cluster.settled(site.name) == site.at, self
        await site.cluster.flows(site=site.name)  # which write there
        site.is_well(str(self))


async def all_die(node: Node, moments: list[Moment]) -> None:
    """Kill it when all of them have come."""
    for each in moments:
        each.begin(node)
    # At once, or rsync may be through while another is waited for.
    await gatherResults([Deferred.fromCoroutine(each.comes()) for each in moments])
    await node.kill()
    for each in moments:
        with pytest.raises((Unreachable, Failed)) as raised:
            await each.moving
        assert raised.type is Unreachable, raised.value
        assert bool(each.site.carriers()) == each.carrying, each
    node.forget()


@twisted_test
async def test_killed_at_each_moment(sites: list[Ledger]) -> None:
    cluster = sites[0].cluster
    web1, web2, _ = cluster.nodes.values()
    moments = [Moment(sites[n % COUNT], step) for n, step in enumerate(ORDER)]
    moments += [Moment(sites[-2], "presync", True), Moment(sites[-1], "sync", True)]
    await cluster.flows()
    while moments:
        await all_die(web1, moments[:COUNT])
        for each in moments[:COUNT]:
            await each.passed(web2)
        del moments[:COUNT]
        await web1.start()
        await becomes(cluster, "web1", "live")
    for site in sites[-2:]:
        await cluster.migrate(web1, site.name, site.other)
        site.at = site.other
        assert filecmp.cmp(site.path(site.at) / "bulk", bulk(cluster), shallow=False)
    for site in sites:
        await site.passes()
