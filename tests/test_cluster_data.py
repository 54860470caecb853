"""The node that moves a site with its data is killed before each step; another ends it.

The site's files and rows are in a directory that rsync carries, and are written all the time.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster_stage import HERE, Cluster, Node, a_cluster
from daemon_stage import Failed, Load, twisted_fixture, twisted_test
from stage_waiting import until_async
from test_cluster_nodes import becomes

from awesomeproxy.control.client import Unreachable

# The site is held from "drain" on; those between "start" and "commit" undo what "commit" does.
BEFORE = ("presync", "drain", "stop", "fence", "sync", "attach", "compare", "start", "commit")
STEPS = (*BEFORE, "release", "clean")
NODES = {"old": "web1", "new": "web2"}  # where backends stand
PORTS = {"old": 9001, "new": 9002}


@dataclass
class Site:
    """A site in a directory, which each node can see."""

    cluster: Cluster

    def path(self, backend: str) -> Path:
        return self.cluster.directory / f"www-{backend}"

    def tables(self) -> str:
        """Of its filesystem, for each node's file."""
        lines = ["[nodes.web1]", "[nodes.web2]", "[filesystems.www]", 'mover = "rsync"']
        lines.append('node = "web1"')
        lines += [f'on.{node}.path = "{self.path(name)}"' for name, node in NODES.items()]
        return "\n".join(lines)

    def definition(self) -> dict[str, Any]:
        address = self.cluster.data.address(1)
        return {
            "hosts": ["ledger.test"],
            "backend": "old",
            "filesystem": "www",
            "hold": {"max_time": "120s"},
            "backends": {
                name: {
                    "node": node,
                    "servers": [f"http://{address}:{PORTS[name]}"],
                    "service": {act: self.service(name, act) for act in ("start", "stop")},
                    "health": {"path": "/health", "interval": "500ms"},
                }
                for name, node in NODES.items()
            },
        }

    def service(self, backend: str, act: str) -> list[str]:
        """The same from whichever node it is run: it is in the test's own network."""
        network = ["nsenter", f"--net=/proc/{os.getpid()}/ns/net", "--"]
        pidfile = str(self.cluster.directory / f"{backend}.pid")
        port, address = str(PORTS[backend]), self.cluster.data.address(1)
        app = [sys.executable, str(HERE / "ledger_app.py"), str(self.path(backend)), address, port]
        return [*network, str(HERE / "service.sh"), act, pidfile, port, *app]

    def is_open(self, backend: str) -> bool:
        """Whether anybody can write there."""
        return not os.statvfs(self.path(backend)).f_flag & os.ST_RDONLY

    def runs(self, backend: str) -> bool:
        return (self.cluster.directory / f"{backend}.pid").exists()

    def rows(self, backend: str) -> Counter[str]:
        with closing(sqlite3.connect(self.path(backend) / "rows", timeout=60)) as rows:
            return Counter(name for (name,) in rows.execute("SELECT name FROM written"))

    def files(self, backend: str) -> set[str]:
        return set(os.listdir(self.path(backend) / "files"))

    async def begin(self) -> None:
        (self.path("old") / "files").mkdir(parents=True)
        with closing(sqlite3.connect(self.path("old") / "rows")) as rows:
            rows.execute("CREATE TABLE written (name TEXT)")
        subprocess.run(self.service("old", "start"), check=True)
        nodes = list(self.cluster.nodes.values())
        for node in nodes:
            node.config.write_text(node.config.read_text() + "\n" + self.tables())
            await node.ask("reload")
        await nodes[0].ask("site.add", name="ledger", definition=self.definition())
        for node in nodes:
            await node.until_site("ledger", backend="old", mode="open")

    def close(self) -> None:
        for name in NODES:
            subprocess.run(self.service(name, "stop"), check=False)
            while not subprocess.run(
                ["umount", "-l", self.path(name)], capture_output=True, check=False
            ).returncode:
                pass


async def _site(tmp_path: Path) -> AsyncIterator[Site]:
    async with a_cluster(tmp_path, deadly="web1") as cluster:
        site = Site(cluster)
        try:
            await site.begin()
            yield site
        finally:
            for node in cluster.nodes.values():
                if node.running:
                    await node.kill()  # or it would start again what is stopped
            site.close()


site = twisted_fixture(_site)


@twisted_test
async def test_killed_before_each_step(site: Site) -> None:
    cluster = site.cluster
    web1, web2, web3 = cluster.nodes.values()
    loads = {
        node.name: cluster.load(node, "ledger", method="POST", rate=10.0, path=f"/{node.name}")
        for node in (web2, web3)
    }
    await cluster.flows()
    at, other = "old", "new"
    for step in STEPS:
        await dies(cluster, web1, step, other)
        committed = step not in BEFORE
        newest = await ended(web2, step)
        assert newest["state"] == ("done" if committed else "rolled back"), step
        if committed:
            at, other = other, at
        assert await cluster.settled("ledger") == at, step
        await cluster.flows()  # which write there
        assert (site.is_open(at), site.runs(at)) == (True, True), step
        assert not site.runs(other), step
        assert not site.path(other).exists() or not site.is_open(other), step
        await web1.start()
        await becomes(cluster, "web1", "live")
    await passes(site, at, loads)


async def dies(cluster: Cluster, node: Node, step: str, to: str) -> None:
    """Have a node begin the migration and die before the step."""
    deadly = node.directory / "deadly"
    deadly.write_text(f"{step} {node.pid}\n")
    with pytest.raises((Unreachable, Failed)) as raised:
        await cluster.migrate(node, "ledger", to, max_pause=60.0)
    assert raised.type is Unreachable, raised.value
    await node.exits()
    deadly.unlink()


async def ended(node: Node, step: str) -> dict[str, Any]:
    """Wait for the end of the newest migration, as a node tells it."""

    async def look() -> dict[str, Any] | None:
        told = await node.ask("migrations", site="ledger", limit=1)
        newest: dict[str, Any] = told["migrations"][0]
        return newest if newest["state"] in ("done", "rolled back") else None

    found = await until_async(look, f"the end of what died before {step}")
    assert found is not None
    return found


async def passes(site: Site, at: str, loads: dict[str, Load]) -> None:
    """Nothing failed; what was acknowledged is there, row and file, and nothing is twice."""
    written: set[str] = set()
    for name, load in loads.items():
        result = await load.passes()
        written |= {f"{name}-{number}" for number in result.acknowledged()}
    rows = site.rows(at)
    assert set(rows.values()) == {1}
    assert set(rows) == site.files(at) == written
