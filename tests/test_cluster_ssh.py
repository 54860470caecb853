"""The node that moves sites between servers, which it reaches through ssh, is lost.

Another one undoes what it did.  What it had begun there, and what the network had kept of it,
changes nothing any more after that.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster_stage import Cluster, a_cluster
from daemon_stage import Failed, twisted_fixture, twisted_test
from ledger_stage import Ledger, Stand, begin, bulk, close
from servers_stage import Server, servers_on, ssh_tables
from ssh_stage import parent
from stage_waiting import until
from test_cluster_nodes import becomes
from twisted.internet.defer import Deferred

from awesomeproxy.control.client import Unreachable

# Stops a service only when the file is gone.
SLOWLY = """
[ "$2" = start ] || { : >"$0.reached"; while [ -e "$0" ]; do sleep 0.05; done; }; exec "$@"
"""
KEEPALIVE = 200  # bytes: more than ssh says to see whether the other side is there


@dataclass
class Provider:
    """Two servers, two nodes that move sites between them, and the sites."""

    cluster: Cluster
    one: Server
    sites: list[Ledger]
    slow: Path  # while it is there, services of the first server are not stopped

    def pids(self, *words: str) -> set[int]:
        """What runs on the first server with these words in its command."""
        found = set()
        for pid in self.one.pids():
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                found |= {pid} if {word.encode() for word in words} <= set(command) else set()
        return found

    def unread(self) -> int:
        """How many bytes have come to the first server's sshd, that it has not read."""
        told = self.one.run("ss", "-Htn", "sport", "=", ":22")
        return max(int(line.split()[1]) for line in told.splitlines())


async def _provider(tmp_path: Path) -> AsyncIterator[Provider]:
    async with a_cluster(tmp_path, ("web1", "web2"), deadly="web1") as cluster:
        net = cluster.data
        addresses = {"one": net.address(201), "two": net.address(202)}
        home = tmp_path / "servers"
        slow = tmp_path / "slow"
        async with servers_on(net.name, net.address(1), addresses, home) as (servers, keys):
            before = ("sh", "-c", SLOWLY, str(slow))
            stands = {
                backend: Stand(
                    server.name, server.address, server.directory, before, tuple(server.inside([]))
                )
                for backend, server in zip(("old", "new"), servers, strict=True)
            }
            sites = [Ledger(cluster, number, stands) for number in range(2)]
            try:
                await begin(sites, ssh_tables(servers, keys), ["web2"])
                yield Provider(cluster, servers[0], sites, slow)
            finally:
                slow.unlink(missing_ok=True)
                known = json.loads((tmp_path / "web1/state/cluster.json").read_text())
                await close(sites)
                for note in Path("/run").glob(f"awesomeproxy-{known['cluster']}*"):
                    note.unlink()


provider = twisted_fixture(_provider)


@twisted_test
async def test_another_node_withdraws_the_warrant_of_one_that_is_lost(provider: Provider) -> None:
    cluster = provider.cluster
    web1, web2 = cluster.nodes.values()
    await cluster.flows()
    await killed(provider)
    await web1.start()
    await becomes(cluster, "web1", "live")
    await cut_off(provider)
    moved, _ = provider.sites
    await cluster.migrate(web2, moved.name, "new")
    moved.at = "new"
    for site in provider.sites:
        site.is_well("in the end")
        await site.passes()


async def killed(provider: Provider) -> None:
    """It has a service stopped, which takes long, and rsync carry something."""
    cluster, (stopped, carried) = provider.cluster, provider.sites
    web1, web2 = cluster.nodes.values()
    provider.slow.touch()
    shutil.copy(bulk(cluster), carried.path("old") / "bulk")
    moving = [
        Deferred.fromCoroutine(cluster.migrate(web1, site.name, "new", max_pause=60.0))
        for site in provider.sites
    ]
    await until(lambda: len(carried.carriers()) == 3, "rsync")
    for pid in carried.carriers():
        os.kill(pid, signal.SIGSTOP)
    await until(provider.slow.with_suffix(".reached").exists, "the stop")
    await web1.kill()
    for each in moving:
        with pytest.raises((Unreachable, Failed)) as raised:
            await each
        assert raised.type is Unreachable, raised.value
    assert await carried.ended(web2) == "rolled back"
    # Only who sends is still there, on the source's node, and has nobody to send to.
    (sender,) = carried.carriers()
    os.kill(sender, signal.SIGCONT)
    await until(lambda: not carried.carriers(), "the end of rsync")
    await until(lambda: provider.pids("sh", "start"), "a start")
    provider.slow.unlink()
    assert await stopped.ended(web2) == "rolled back"
    for site in provider.sites:
        await site.cluster.flows(site=site.name)
        site.is_well("killed")


async def cut_off(provider: Provider) -> None:
    """What closes the source is on its way then, and comes when another node has opened it."""
    cluster, site = provider.cluster, provider.sites[0]
    web1, web2 = cluster.nodes.values()
    others = provider.pids("-ISc", site.name)
    reached = web1.reaches(site.name, "fence")
    moving = Deferred.fromCoroutine(cluster.migrate(web1, site.name, "new", max_pause=60.0))
    await until(reached.exists, "the step")
    residents = provider.pids("-ISc", site.name) - others
    sshd = {parent(pid) for pid in residents}
    for pid in sshd:
        os.kill(pid, signal.SIGSTOP)
    reached.unlink()
    web1.forget()
    await until(lambda: provider.unread() > KEEPALIVE, "the question")
    cluster.cut(web1, "all")
    assert await site.ended(web2) == "rolled back"
    await cluster.flows(site=site.name)
    told = sum(map(written, residents))
    for pid in sshd:
        os.kill(pid, signal.SIGCONT)
    await until(lambda: sum(map(written, residents)) > told, "an answer")
    site.is_well("cut off")
    cluster.cut(web1, "all", off=False)
    with pytest.raises(Failed):
        await moving
    await becomes(cluster, "web1", "live")
    assert await cluster.settled(site.name) == "old"
    await cluster.flows(site=site.name)
    site.is_well("back")


def written(pid: int) -> int:
    """How many bytes a process has written."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])
