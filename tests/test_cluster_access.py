"""Daemons whose registry takes only who has a password, and only over TLS."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

from cluster_stage import Cluster, an_empty_cluster
from daemon_stage import twisted_fixture, twisted_test
from stage_waiting import until
from test_redis_registry import DOCUMENTED
from tls_stage import Authority

TLS = 6380
WRONG, RIGHT = "wrong\n", "PASSWORD\n"


async def _cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with an_empty_cluster(tmp_path) as cluster:
        authority = Authority(tmp_path / "authority")
        issued = authority.issue("redis.test")
        rights = re.search(r"ACL SETUSER (.*)", DOCUMENTED.read_text())
        assert rights is not None
        files = {"cert": issued.certificate, "key": issued.key, "ca-cert": authority.ca_file}
        words = [word for name, path in files.items() for word in (f"--tls-{name}-file", str(path))]
        words += ["--tls-port", str(TLS), "--tls-auth-clients", "no", "--user", *rights[1].split()]
        redis = cluster.add_redis(*words)
        redis.start()
        await redis.answers()
        cluster.url = f"rediss://{redis.address}:{TLS}"
        cluster.more = "\n".join(
            [
                'user = "proxy"',
                f'password_file = "{tmp_path / "password"}"',
                f'tls = {{ ca_file = "{authority.ca_file}", name = "redis.test" }}',
            ]
        )
        yield cluster


cluster = twisted_fixture(_cluster)


@twisted_test
async def test_two_nodes_get_in_and_agree(cluster: Cluster) -> None:
    """Whose password is wrong says so, with the key that names it, and gets in when it is right."""
    password = cluster.directory / "password"
    password.write_text(WRONG)
    web1 = cluster.add_node("web1")
    web1.spawn()
    await until(lambda: "WRONGPASS" in web1.log, "a word of it")
    (line,) = (line for line in web1.log.splitlines() if "WRONGPASS" in line)
    assert "cannot be reached: it refuses user proxy" in line
    assert line.endswith("see cluster.password_file")
    password.write_text(RIGHT)
    await cluster.begin("web1", "web2")
    receipt = await cluster.pause(web1, "blog")
    assert {worker["node"] for worker in receipt["workers"]} == {"web1", "web2"}
    cluster.keeps_promises()
