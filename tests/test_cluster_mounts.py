"""A site whose filesystem is mounted on one of the nodes, and then on another."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from cluster_stage import Cluster, Node, a_cluster
from daemon_stage import twisted_fixture, twisted_test
from stage_waiting import until_async
from test_cluster_nodes import becomes

NODES = {"old": "web1", "new": "web2"}  # where backends stand


async def _cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Each node has a mount table of its own."""
    async with a_cluster(tmp_path, mounts=True) as made:
        yield made


cluster = twisted_fixture(_cluster)


def point(node: Node) -> str:
    return str(node.directory / "www")


def mount(node: Node, what: str = "mount") -> None:
    argv = (
        ["mount", "-t", "tmpfs", "tmpfs", point(node)] if what == "mount" else [what, point(node)]
    )
    subprocess.run(["nsenter", f"--target={node.pid}", "--mount", "--", *argv], check=True)


@twisted_test
async def test_a_site_follows_its_filesystem_from_a_lost_node(cluster: Cluster) -> None:
    web1, web2, web3 = cluster.nodes.values()
    for node in cluster.nodes.values():
        Path(point(node)).mkdir()
        node.config.write_text(node.text + tables(web1, web2))
        await node.ask("reload")
    mount(web1)
    sites = cluster.tables()
    blog = sites["blog"]
    blog["filesystem"] = "www"
    for name, backend in blog["backends"].items():
        backend["node"] = NODES[name]
    await web1.ask("apply", sites=sites)
    await web3.until_site("blog", backend="old", state="open")
    for node in (web2, web3):
        cluster.load(node, "blog", rate=10.0)
    await cluster.flows()
    await web1.kill()
    await becomes(cluster, "web1", "gone")
    await web2.ask("node.fence", node="web1")

    async def held() -> bool:
        nodes = (await web3.site("blog"))["nodes"]
        return all(nodes[node.name]["held"] for node in (web2, web3))

    await until_async(held, "requests that are held on both nodes")
    mount(web2)
    await web3.until_site("blog", backend="new", state="open")
    await cluster.flows()
    for load in cluster.loads:
        await load.passes()
    cluster.loads.clear()


def tables(one: Node, two: Node) -> str:
    lines = [f'[nodes.{node.name}]\nssh = "{node.name}"' for node in (one, two)]
    lines += ['[filesystems.www]\nmover = "rsync"\nmount_point = true\nnode = "web1"']
    lines += [f'on.{node.name}.path = "{point(node)}"' for node in (one, two)]
    return "\n".join(lines)
