"""Nodes of a cluster, each a daemon in a network namespace with two cables: one to where the
Redis is, one to where clients and backends are.  Every byte at a backend is recorded.
"""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from daemon_stage import Daemon, Failed, Load
from history import ANY, History, promises, violations
from recorder import Door, Recorder
from space_stage import Bridge, Space
from stage_waiting import until, until_async
from twisted.internet.defer import Deferred, gatherResults

from awesomeproxy.control.client import Unreachable
from awesomeproxy.migrate.steps import ORDER
from bench.cable import Nature

SITES = ("blog", "shop", "news", "wiki")
BACKENDS = ("old", "new")
LEASE = 3.0  # seconds
REDIS = 6379
SENTINEL = 26379
METRICS = 9180  # port of the nodes' metrics pages
MASTER = "awesomeproxy"
HERE = Path(__file__).parent


@dataclass
class Node(Daemon):
    """A daemon in a namespace of its own."""

    space: Space = field(default_factory=Space.make)

    def script(self, site: str, step: str) -> Path:
        """What a deadly node runs before a step of a site's migration, if it is there."""
        return self.directory / f"script-{site}-{step}"

    def reaches(self, site: str, step: str, *, stays: bool = True) -> Path:
        """Have a deadly node make this file before such a step, and go on when it is gone.

        :param stays: else it goes on at once.
        """
        reached = self.directory / f"reached-{site}-{step}"
        stay = f"while [ -e {reached} ]; do sleep 0.05; done" if stays else ""
        self.script(site, step).write_text(f": >{reached}\n{stay}\n")
        return reached

    def forget(self) -> None:
        """Have no scripts any more."""
        for file in (*self.directory.glob("script-*"), *self.directory.glob("reached-*")):
            file.unlink()


@dataclass
class RedisServer:
    """A Redis, or one of its sentinels, in a namespace of its own."""

    directory: Path
    space: Space
    address: str
    port: int
    words: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*self.space.inside, *self.words],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """``kill -9``."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def command(self, *words: str) -> str:
        """What it answers; empty if it does not."""
        argv = [*self.space.inside, "redis-cli", "-h", self.address, "-p", str(self.port), *words]
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=5)
            return done.stdout.strip()
        return ""

    async def answers(self) -> None:
        await until(lambda: self.command("ping") == "PONG", "Redis")


@dataclass
class Cluster:
    """All of it."""

    directory: Path
    registry: Bridge  # where the Redis is
    data: Bridge  # where clients and backends are
    loss: str = "serve"
    more: str = ""  # of [cluster]
    url: str = ""  # of the registry, if it is not reached as usual
    nodes: dict[str, Node] = field(default_factory=dict)
    redis: list[RedisServer] = field(default_factory=list)  # the first is the master at first
    sentinels: list[RedisServer] = field(default_factory=list)
    history: History = field(default_factory=History)
    recorder: Recorder = field(init=False)
    loads: list[Load] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=lambda: count(2))  # of addresses
    _load_numbers: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        ports = count(8000)
        doors = [
            Door(self.data.address(1), next(ports), site, backend)
            for site in SITES
            for backend in BACKENDS
        ]
        self.recorder = Recorder(self.directory / "record", doors)

    # Redis

    def add_redis(self, *words: str) -> RedisServer:
        """One more Redis; it is not started."""
        settings = ("--save", "", "--appendonly", "yes", "--repl-diskless-sync-delay", "0")
        made = self._server("redis", REDIS, ("redis-server", *settings, *words))
        self.redis.append(made)
        return made

    def _server(self, kind: str, port: int, words: Sequence[str]) -> RedisServer:
        number = next(self._numbers)
        directory = self.directory / f"{kind}{number}"
        directory.mkdir()
        space = Space.make()
        address = space.plug(self.registry, number)
        listen = ("--port", str(port), "--bind", address, "--protected-mode", "no")
        return RedisServer(directory, space, address, port, (*words, *listen))

    async def with_replica(self, sentinels: int = 3) -> None:
        """A master, a replica of it, and sentinels that watch them."""
        master, replica = self.add_redis(), self.add_redis()
        master.start()
        await master.answers()
        replica.words += ("--replicaof", master.address, str(REDIS))
        replica.start()
        await until(
            lambda: "master_link_status:up" in replica.command("info", "replication"), "the replica"
        )
        for _ in range(sentinels):
            sentinel = self._server("sentinel", SENTINEL, ())
            config = sentinel.directory / "sentinel.conf"
            config.write_text(
                f"sentinel monitor {MASTER} {master.address} {REDIS} 2\n"
                f"sentinel down-after-milliseconds {MASTER} 1000\n"
                f"sentinel failover-timeout {MASTER} 5000\n"
            )
            sentinel.words = ("redis-sentinel", str(config), *sentinel.words)
            sentinel.start()
            self.sentinels.append(sentinel)
        for sentinel in self.sentinels:
            await until(
                lambda sentinel=sentinel: all(  # type: ignore[misc]
                    f"{what}:{number}" in _parsed(sentinel.command("sentinel", "master", MASTER))
                    for what, number in (("num-slaves", 1), ("num-other-sentinels", sentinels - 1))
                ),
                "the sentinels",
            )

    # Nodes

    def add_node(
        self, name: str, to_registry: Nature | None = None, to_data: Nature | None = None
    ) -> Node:
        """A node that is configured and not started."""
        directory = self.directory / name
        directory.mkdir()
        number = next(self._numbers)
        node = Node(directory, 80, name=name)
        node.space.plug(self.registry, number, to_registry)
        node.host = node.space.plug(self.data, number, to_data)
        node.inside = node.space.inside
        metrics = f'metrics = "tcp:{METRICS}:interface={node.host}"'
        node.configure(node=f"{metrics}\n{self._table()}\n{self.more}")
        self.nodes[name] = node
        return node

    def _table(self) -> str:
        lines = [f'on_registry_loss = "{self.loss}"', f'lease = "{LEASE:g}s"']
        if self.sentinels:
            urls = [f"redis://{each.address}:{SENTINEL}" for each in self.sentinels]
            lines += [f"redis = {urls}".replace("'", '"'), f'master = "{MASTER}"', "replicas = 1"]
        else:
            url = self.url or f"redis://{self.redis[0].address}:{REDIS}"
            lines.append(f'redis = "{url}"')
        return "\n".join(["drain_time = 1.0", "[cluster]", *lines])

    async def begin(self, *names: str) -> None:
        """Start nodes of these names that do not run, and have them serve the sites."""
        for name in names:
            if name not in self.nodes:
                self.add_node(name)
            if not self.nodes[name].running:
                self.nodes[name].spawn()
        for name in names:
            await self.nodes[name].serves()
        first = self.nodes[names[0]]
        await first.ask("apply", sites=self.tables())
        for node in self.nodes.values():
            await self.knows(node)
        await until_async(lambda: self._all_live(first, set(names)), "all nodes")

    async def knows(self, node: Node) -> None:
        """Wait until a node serves all sites."""

        async def look() -> bool:
            sites = (await node.ask("status"))["sites"]
            return {site["name"] for site in sites} >= set(SITES)

        await until_async(look, f"the sites on {node.name}")

    async def _all_live(self, node: Node, names: set[str]) -> bool:
        return {
            name for name, state in (await self.states(node)).items() if state == "live"
        } >= names

    async def states(self, node: Node) -> dict[str, str]:
        """The nodes' states, as one of them says."""
        told = await node.ask("node.list")
        return {each["name"]: each["state"] for each in told["nodes"]}

    def tables(self) -> dict[str, dict[str, Any]]:
        """The sites' definitions."""
        urls = {(door.site, door.backend): door.url for door in self.recorder.doors}
        return {
            site: {
                "hosts": [f"{site}.test"],
                "backend": "old",
                "backends": {backend: {"servers": [urls[site, backend]]} for backend in BACKENDS},
                "hold": {"max_time": "60s"},
            }
            for site in SITES
        }

    def cut(self, node: Node, what: str, *, off: bool = True) -> None:
        """Pull a node's cable to the ``registry``, to the ``data``, or ``all``; or put it back."""
        for bridge, called in ((self.registry, "registry"), (self.data, "data")):
            if what in (called, "all"):
                node.space.cut(bridge, off=off)

    # Clients

    def load(self, node: Node, site: str, **how: Any) -> Load:
        """Requests for a site on a node; each has a path of its own."""
        how = {"rate": 20.0, "duration": 600.0, "timeout": 60.0, **how}
        path = how.pop("path", f"/{next(self._load_numbers)}")
        load = node.load(path=f"{path}/{{n}}", host=f"{site}.test", **how)
        self.loads.append(load)
        return load

    def load_everywhere(self, sites: Sequence[str] = SITES, **how: Any) -> None:
        """Requests for each of the sites on each node."""
        for node in self.nodes.values():
            for site in sites:
                self.load(node, site, **how)

    async def flows(self, requests: int = 3, site: str = "") -> None:
        """Wait until each load, or each for a site, goes on."""
        host = f"{site}.test"
        loads = [load for load in self.loads if not site or ("Host", host) in load.plan.headers]
        await gatherResults([Deferred.fromCoroutine(load.flows(requests)) for load in loads])

    async def passes(self) -> None:
        """Stop all loads: nothing has failed, was lost or came twice, no promise was broken."""
        for load in self.loads:
            await load.passes()
        self.loads.clear()
        self.keeps_promises()
        twice = {path: n for path, n in Counter(self.recorder.paths()).items() if n > 1}
        assert not twice

    def keeps_promises(self, at_least: int = 1) -> None:
        """See that no byte came where a receipt says that none will."""
        events = History(list(self.history.events))
        events.read(self.recorder, {node.host: node.name for node in self.nodes.values()})
        assert promises(events.events) >= at_least
        found = violations(events.events)
        assert not found, "\n".join(found[:20])

    # Operators

    async def pause(self, node: Node, site: str, **how: Any) -> dict[str, Any]:
        """A pause that is recorded; its receipt."""
        receipt: dict[str, Any] = await node.ask("pause", site=site, **how)
        self.history.receipt(site, ANY, receipt["generation"])
        return receipt

    async def resume(self, node: Node, site: str) -> None:
        """A resume that is recorded."""
        self.history.released(site)
        await node.ask("resume", site=site)

    async def migrate(self, node: Node, site: str, to: str, **how: Any) -> dict[str, Any]:
        """A migration that is recorded; its ledger."""
        self.history.released(site)
        ledger: dict[str, Any] = await node.ask("migrate", site=site, to=to, **how)
        self.history.receipt(site, ledger["source"], ledger["generation"])
        return ledger

    async def settled(self, site: str) -> str:
        """Wait until nothing is done to a site and all nodes that run say so; its backend."""
        running = [node for node in self.nodes.values() if node.running]

        async def look() -> str:
            told = [await node.site(site) for node in running]
            ways = {(each["backend"], each["mode"], each["generation"]) for each in told}
            is_idle = not any(each["migration"] for each in told)
            backend, mode, _ = next(iter(ways))
            return str(backend) if is_idle and len(ways) == 1 and mode == "open" else ""

        return await until_async(look, f"the rest of {site}")

    def any_node(self, chance: random.Random) -> Node:
        return chance.choice([node for node in self.nodes.values() if node.running])

    # Its end

    async def close(self) -> None:
        for load in self.loads:
            load.run.stop()
        for node in self.nodes.values():
            if node.running:
                await node.kill()
            for talk in node.talks:
                await talk.close()
        for load in self.loads:
            await load.stop()
        for server in (*self.sentinels, *self.redis):
            if server.process is not None:
                server.stop()
            server.space.close()
        for node in self.nodes.values():
            node.space.close()
        self.recorder.close()
        self.registry.close()
        self.data.close()


def _parsed(answer: str) -> set[str]:
    """The pairs of lines of redis-cli as ``name:value``."""
    lines = answer.splitlines()
    return {f"{name}:{value}" for name, value in zip(lines[::2], lines[1::2], strict=False)}


@asynccontextmanager
async def an_empty_cluster(
    directory: Path, loss: str = "serve", more: str = ""
) -> AsyncIterator[Cluster]:
    """A cluster without a Redis or a node; in the end it is closed.

    :param more: of each node's [cluster].
    """
    cluster = Cluster(directory, Bridge.lay(), Bridge.lay(), loss, more)
    try:
        yield cluster
    finally:
        await cluster.close()


@asynccontextmanager
async def a_cluster(
    directory: Path,
    names: Sequence[str] = ("web1", "web2", "web3"),
    *,
    loss: str = "serve",
    replica: bool = False,
    natures: Mapping[str, tuple[Nature | None, Nature | None]] = {},
    deadly: str = "",
    mounts: bool = False,
    more: str = "",
) -> AsyncIterator[Cluster]:
    """A cluster that serves.

    :param replica: with one, and sentinels.
    :param natures: of a node's cables, to the registry and to clients and backends.
    :param deadly: a node that can be killed before a step: see :meth:`Node.script`.
    :param mounts: each node has a mount table of its own.
    :param more: of each node's [cluster].
    """
    async with an_empty_cluster(directory, loss, more) as cluster:
        if replica:
            await cluster.with_replica()
        else:
            cluster.add_redis().start()
            await cluster.redis[0].answers()
        for name in names:
            node = cluster.add_node(name, *natures.get(name, (None, None)))
            if mounts:
                node.inside += ("unshare", "--mount", "--propagation", "private", "--")
            if name == deadly:
                node.config.write_text(node.text + _hooks(node.directory))
        await cluster.begin(*names)
        yield cluster


def _hooks(scripts: Path) -> str:
    words = f'["{HERE / "deadly.sh"}", "{scripts}"]'
    return "\n".join(f'[[hooks]]\nstep = "{step}"\ncommand = {words}' for step in ORDER)


def a_fixture(**how: Any) -> Callable[[Path], AsyncIterator[Cluster]]:
    """For ``cluster = twisted_fixture(a_fixture())``."""

    async def fixture(tmp_path: Path) -> AsyncIterator[Cluster]:
        async with a_cluster(tmp_path, **how) as cluster:
            yield cluster

    return fixture


__all__ = [
    "Cluster",
    "Failed",
    "Node",
    "Unreachable",
    "a_cluster",
    "a_fixture",
    "an_empty_cluster",
]
