"""The end of a hold, when somebody else changes the site at that very moment."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from plane_stage import twisted_test
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from awesomeproxy.answering import plain
from awesomeproxy.cluster.alone import Alone
from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.happenings import Happenings
from awesomeproxy.model import Generation, Mode, Observed, Outcome, Placement, Receipt
from awesomeproxy.pausing import NotDrained, Pauses, Then
from awesomeproxy.registry.interface import (
    Doubtful,
    IRegistry,
    RegistryError,
    Unreachable,
)
from awesomeproxy.registry.memory import MemoryRegistry


class Slow:
    """A registry that writes when it is let."""

    def __init__(self, registry: IRegistry) -> None:
        self._registry = registry
        self.writing: Deferred[None] | None = None
        self.lost: list[type[RegistryError]] = []  # how the next writes end
        self.written = True  # though they are lost

    async def place(self, new: Placement, expected: Generation) -> Placement:
        if self.writing is not None:
            await self.writing
        lost = self.lost.pop(0) if self.lost else None
        if lost is None:
            return await self._registry.place(new, expected)
        if lost is Doubtful and self.written:
            await self._registry.place(new, expected)
        if lost is Doubtful:
            raise Doubtful("the registry was lost", made=lambda: self.written)
        raise lost("the registry was lost")


@dataclass
class Node:
    """A node with a site of which nothing is ever in flight."""

    registry: Any = field(default_factory=lambda: Slow(MemoryRegistry()))
    reactor: Any = field(default_factory=Clock)
    placed: Placement = field(default_factory=lambda: Placement("blog", "one", generation=0))
    in_flight: int = 0

    def __post_init__(self) -> None:
        self.changes: Happenings[str] = Happenings(self.reactor)
        self.cluster: ICluster = Alone(self, "node1")
        self.cluster.answers("observed", lambda names: [plain(self.observed("blog"))])
        self.pauses = Pauses(self)

    def placement(self, name: str) -> Placement:
        return self.placed

    def adopt(self, placement: Placement) -> None:
        self.placed = placement
        self.pauses.watch_expiry(placement)
        self.changes.fire("blog")

    def observed(self, name: str) -> Observed:
        now = self.placed
        return Observed(name, now.generation, now.backend, now.mode, in_flight=self.in_flight)

    def changed(self, name: str, timeout: float | None) -> Deferred[Outcome]:
        return self.changes.wait(name, timeout)

    def tell_changed(self, name: str) -> None:
        self.changes.fire(name)

    def elsewhere(self, name: str) -> str:
        return ""

    def cut(self, site: str) -> Deferred[int]:
        return succeed(0)

    def pause(self, expires: float | None, then: Then) -> Deferred[Receipt]:
        return Deferred.fromCoroutine(
            self.pauses.pause(
                "blog",
                by="pause",
                timeout=5,
                force=False,
                expires=expires,
                then=then,
                progress=lambda *_: None,
            )
        )


@twisted_test
async def test_a_hold_ends_when_its_time_is_over() -> None:
    node = Node()
    await node.pause(time.time() + 5, "resume")
    node.reactor.advance(6)
    assert (node.placed.mode, node.placed.by) == (Mode.OPEN, "the end of the pause")


@twisted_test
async def test_the_end_of_a_hold_does_not_end_the_one_that_follows_it() -> None:
    """Somebody pauses anew, and has a receipt for that, as the old hold's time is over."""
    node = Node()
    await node.pause(time.time() + 5, "resume")
    node.registry.writing = written = Deferred[None]()
    anew = node.pause(None, "refuse")
    node.reactor.advance(6)
    node.registry.writing = None
    written.callback(None)
    receipt = await anew
    assert (node.placed.mode, node.placed.generation) == (Mode.HOLDING, receipt.generation)
    assert node.placed.expires is None


@twisted_test
async def test_a_pause_that_cannot_be_undone_now_is_undone_later() -> None:
    """Who asked is told at once; the site goes on as soon as that can be recorded."""
    node = Node(in_flight=1)
    pausing = node.pause(None, "refuse")
    node.registry.lost = [Unreachable] * 3
    node.reactor.advance(6)
    with pytest.raises(NotDrained, match="still held: the registry was lost"):
        await pausing
    for _ in range(2):
        assert node.placed.mode is Mode.HOLDING
        node.reactor.advance(1)
    node.reactor.advance(1)
    assert (node.placed.mode, node.placed.by) == (Mode.OPEN, "pause (undone)")


@twisted_test
async def test_what_somebody_else_makes_of_it_meanwhile_stands() -> None:
    """A resume comes before the pause is undone, and another pause after that."""
    node = Node(in_flight=1)
    pausing = node.pause(None, "refuse")
    node.registry.lost = [Unreachable]
    node.reactor.advance(6)
    with pytest.raises(NotDrained):
        await pausing
    await node.pauses.resume("blog", "resume")
    node.in_flight = 0
    receipt = await node.pause(None, "refuse")
    node.reactor.advance(10)
    assert (node.placed.mode, node.placed.generation) == (Mode.HOLDING, receipt.generation)


@pytest.mark.parametrize("written", [True, False])
@twisted_test
async def test_a_hold_of_which_nothing_is_known_is_undone(written: bool) -> None:
    """Whether the registry has made it or not."""
    node = Node()
    node.registry.lost, node.registry.written = [Doubtful, Unreachable], written
    with pytest.raises(Doubtful):
        await node.pause(None, "refuse")
    node.reactor.advance(1)
    node.reactor.advance(1)
    assert (node.placed.mode, node.placed.by) == (Mode.OPEN, "pause (undone)")
    assert node.placed.generation == (2 if written else 1)


@twisted_test
async def test_a_hold_of_which_nothing_is_known_is_not_another_ones() -> None:
    """One that another node has placed meanwhile looks the same, and is not undone."""
    node = Node()
    node.registry.lost, node.registry.written = [Doubtful], False
    with pytest.raises(Doubtful):
        await node.pause(None, "refuse")
    hold = replace(node.placed, mode=Mode.HOLDING, by="pause")
    await node.registry.place(hold, 0)
    node.reactor.advance(1)
    stored = (await node.registry._registry.placements())["blog"]
    assert (stored.mode, stored.generation) == (Mode.HOLDING, 1)
