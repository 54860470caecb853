"""Several nodes in one process, over one registry in memory.

They are whole nodes, with data planes and sockets; only what is between them is not there.
Each hears of what another has changed in a later turn of the reactor, and a test can have
one that hears and says nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from plane_stage import reactor
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from zope.interface import implementer

from awesomeproxy import config
from awesomeproxy.cluster.alone import reported
from awesomeproxy.cluster.interface import MEMBERS, ICluster, Member, Roll
from awesomeproxy.following import Everything
from awesomeproxy.joining import Surroundings
from awesomeproxy.membership import Membership
from awesomeproxy.model import Cluster, Observed, Placement, Receipt, Report
from awesomeproxy.node import Node
from awesomeproxy.registry.book import Book
from awesomeproxy.registry.interface import Conflict, Entry, NotAllowed
from awesomeproxy.registry.memory import MemoryRegistry, MemoryStore

READS = ("placements", "definitions", "unfinished", "history", "subscribe", "close")


class Store(MemoryStore):
    """Records, and who it is that changes them now."""

    me = ("", 0)


class SharedView:
    """What the registry has; every node has read all of it."""

    version = 0

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    @property
    def placements(self) -> Mapping[str, Placement]:
        return {each.site: each for each in self._store.placements()}

    @property
    def definitions(self) -> Mapping[str, str]:
        return self._store.definitions()

    @property
    def entries(self) -> Mapping[int, Entry]:
        return {each.id: each for each in self._store.entries(None, unfinished=True, limit=-1)}


class Shared:
    """What the nodes have in common."""

    def __init__(self) -> None:
        self.registry = MemoryRegistry()
        self.store = Store()
        self.registry._book = Book(self.store, time.time)
        self.nodes: dict[str, Fellow] = {}
        self.states: dict[str, Any] = {}
        self.lives: dict[str, int] = {}
        self.silent: set[str] = set()  # who hears and says nothing
        self.reports: dict[tuple[str, int], dict[str, Report]] = {}

    @property
    def members(self) -> list[str]:
        return [name for name, state in self.states.items() if state in MEMBERS]

    def changed(self) -> None:
        """Something was written: everybody hears of it, in a moment."""
        for fellow in self.nodes.values():
            reactor.callLater(0, fellow.hear)

    def tell(self, what: str, name: str) -> None:
        for fellow in self.nodes.values():
            for callback in fellow.callbacks:
                reactor.callLater(0, callback, what, name)

    def become(self, node: str, state: str) -> None:
        """Have the others see a node so."""
        self.states[node] = state
        self.tell("member", node)


async def _none() -> int:
    return 0


class FollowedRegistry:
    """The registry as one node has it."""

    def __init__(self, shared: Shared, name: str) -> None:
        self._shared = shared
        self._name = name
        self.view = SharedView(shared.store)
        self.link = SimpleNamespace(where="the registry at nowhere", lost=0.0, epoch=0)
        self.link.counters = self.counters = dict[str, int]()
        self.link.replicas, self.link.copies = _none, 0
        self.on_change: list[Callable[[Any], None]] = []

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            self._shared.store.me = (self._name, 1)
            answer = getattr(self._shared.registry, method)(*args, **named)
            if method not in READS:
                self._shared.changed()
            return answer

        return call

    def close(self) -> Deferred[None]:
        return succeed(None)


@implementer(ICluster)
class Fellow:
    """The cluster as one node has it."""

    alone = False
    identity = "fake"
    counters: ClassVar[Mapping[str, int]] = {}

    def __init__(self, shared: Shared, registry: FollowedRegistry, host: Membership) -> None:
        self._shared = shared
        self._registry = registry
        self._host = host
        self.node = host.settings.name
        self._functions: dict[str, Callable[..., Any]] = {}
        self.callbacks: list[Callable[[str, str], None]] = []
        self.asked: list[str] = []

    @property
    def is_silent(self) -> bool:
        return self.node in self._shared.silent

    def hear(self) -> None:
        if not self.is_silent and self.node in self._shared.nodes:
            view = self._registry.view
            change = Everything(
                list(view.placements),
                list({**dict.fromkeys(self._host.following.tables), **view.definitions}),
                list({**dict.fromkeys(self._host.others), **view.entries}),
            )
            for callback in self._registry.on_change:
                callback(change)

    async def join(self) -> None:
        self._shared.nodes[self.node] = self
        self._shared.states[self.node] = "live"
        self._shared.lives[self.node] = self._shared.lives.get(self.node, 0) + 1
        for observed in self._host.held():
            self.report(observed, {})

    async def leave(self) -> None:
        self._shared.nodes.pop(self.node, None)
        self._shared.become(self.node, "left")

    def now(self) -> float:
        return time.time()

    def members(self) -> list[Member]:
        lives = self._shared.lives
        return [
            Member(name, lives[name], state, "hold", 10.0, 20.0 * (state == "gone"), "", "", 0.0)
            for name, state in self._shared.states.items()
        ]

    def report(self, observed: Observed, more: Mapping[str, Any]) -> None:
        if self.is_silent:
            return
        reports = self._shared.reports.setdefault((observed.site, observed.generation), {})
        reports[self.node] = reported(self.node, observed)
        if reports.keys() >= set(self._shared.members):
            self._shared.tell("drained", observed.site)

    def roll(self, held: Sequence[Placement]) -> Deferred[Roll]:
        placements = self._registry.view.placements
        reports, missing = {}, []
        for each in held:
            stored = placements[each.site]
            if stored.generation != each.generation:
                return fail(Conflict(each.site, each.generation, stored))
            told = self._shared.reports.get((each.site, each.generation), {})
            reports[each.site] = tuple(told[name] for name in self._shared.members if name in told)
            missing += [(each.site, name) for name in self._shared.members if name not in told]
        return succeed(Roll(reports, tuple(missing)))

    def ask(
        self,
        question: str,
        params: Mapping[str, Any],
        timeout: float,
        nodes: Sequence[str] | None = None,
    ) -> Deferred[dict[str, Any]]:
        return Deferred.fromCoroutine(self._ask(question, params, nodes))

    async def _ask(
        self, question: str, params: Mapping[str, Any], nodes: Sequence[str] | None
    ) -> dict[str, Any]:
        self.asked.append(question)
        return {
            name: await maybeDeferred(fellow._functions[question], **params)
            for name, fellow in self._shared.nodes.items()
            if not fellow.is_silent and (nodes is None or name in nodes)
        }

    def answers(self, question: str, function: Callable[..., Any]) -> None:
        self._functions[question] = function

    def fence(self, node: str, why: str) -> Deferred[Member]:
        self._shared.become(node, "fenced")
        return succeed(next(each for each in self.members() if each.name == node))

    def expire(self, node: str) -> Deferred[bool]:
        if self._shared.states[node] != "gone":
            return succeed(False)
        self._shared.become(node, "expired")
        return succeed(True)

    def remove(self, node: str) -> Deferred[None]:
        return fail(NotAllowed("not here"))

    def trouble(self) -> str:
        return ""

    def subscribe(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)


class Nodes:
    """The nodes of a test, by name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.shared = Shared()
        self.nodes: dict[str, Node] = {}

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    async def start(self, name: str, more: str = "") -> Node:
        """Start a node.

        :param more: what else its configuration has.
        """
        state = self._directory / name
        state.mkdir(exist_ok=True)
        text = (
            f'[node]\nname = "{name}"\nstate_dir = "{state}"\ndrain_time = "1s"\n'
            f'[[listen]]\nendpoint = "tcp:0:interface=127.0.0.1"\n{more}'
        )
        settings = replace(config.parse(text, "test"), cluster=Cluster((("127.0.0.1", 1),)))
        node = self.nodes[name] = Node(reactor, "test", settings, self._enter)
        await node.start(lambda path: succeed(_NoPort()))  # type: ignore[arg-type]
        return node

    async def _enter(self, host: Membership) -> Surroundings:
        registry = FollowedRegistry(self.shared, host.settings.name)
        cluster: ICluster = Fellow(self.shared, registry, host)
        any_registry: Any = registry
        return Surroundings(any_registry, registry.view, registry.on_change, cluster)

    def port(self, name: str) -> int:
        """Where a node listens."""
        found: int = self.nodes[name].plane.listening[0].port
        return found

    async def stop(self, name: str) -> None:
        """Stop a node."""
        await self.nodes.pop(name).stop()


class _NoPort:
    def stopListening(self) -> None:
        """There is nothing to be stopped."""


@contextlib.asynccontextmanager
async def some_nodes(directory: Path, *names: str, more: str = "") -> AsyncIterator[Nodes]:
    """A cluster of nodes with these names, and this in their configuration."""
    found = Nodes(directory)
    try:
        for name in names:
            await found.start(name, more)
        yield found
    finally:
        for name in list(found.nodes):
            await found.stop(name)


def pause(node: Node, site: str, timeout: float = 20.0, **more: Any) -> Deferred[Receipt]:
    """Have a node pause a site."""
    wanted: dict[str, Any] = {"force": False, "expires": None, "then": "refuse", **more}
    wanted |= {"by": "pause", "progress": lambda *_, **__: None}
    return Deferred.fromCoroutine(node.pauses.pause(site, timeout=timeout, **wanted))
