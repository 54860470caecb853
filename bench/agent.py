"""Many nodes in one process: the registry, the cluster and the pauses are real, the traffic not.

What is held has drained at once, so that what is measured is how long it takes to agree.  It
is told what to do on standard input, a line of JSON each, and answers on standard output:

``{"do": "pause"}`` has the first node pause the site, ``resume`` open it again;
``{"do": "opened", "generation": N}`` says when the last of its nodes had opened it.  All times
are those of the clock that all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver

from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.cluster.redis import Fellows
from awesomeproxy.happenings import Happenings
from awesomeproxy.model import Cluster, Generation, Mode, Observed, Outcome, Placement, Settings
from awesomeproxy.pausing import Pauses
from awesomeproxy.proxy.permit import Permit
from awesomeproxy.registry.interface import Entry
from awesomeproxy.registry.redis import RedisRegistry

SITE = "bench"
TIMEOUT = 60.0  # seconds of a pause

reactor: Any = _reactor


class Agent:
    """One node; what its cluster and its pauses ask of one."""

    cluster: ICluster
    registry: Any  # a RedisRegistry

    def __init__(self, settings: Settings) -> None:
        self.reactor = reactor
        self.settings = settings
        self.permit = Permit()
        self.placements: dict[str, Placement] = {}
        self.opened_at: tuple[Generation, float] = (0, 0.0)
        self._happenings: Happenings[str] = Happenings(reactor)
        self.pauses = Pauses(self)

    async def start(self) -> None:
        """Join."""
        cluster, directory = self.settings.cluster, Path(self.settings.state_dir)
        assert cluster is not None
        directory.mkdir()
        self.registry = await RedisRegistry.open(reactor, cluster, self.settings.name, directory)
        fellows = Fellows(self.registry, self)
        self.cluster = fellows
        self.registry.on_change.append(self.adopt_all)
        self.cluster.subscribe(self._happened)
        self._adopt_known()
        await fellows.join()

    def _happened(self, what: str, name: str) -> None:
        if what == "drained":
            self.tell_changed(name)

    # What the cluster asks

    def adopt_all(self, change: Any) -> None:
        """Placements have changed."""
        for name in change.placements:
            if (placement := self.registry.view.placements.get(name)) is not None:
                self.adopt(placement)

    def _adopt_known(self) -> None:
        for placement in self.registry.view.placements.values():
            self.adopt(placement)

    def held(self) -> list[Observed]:
        """What is held here, and has drained."""
        placed = self.placements.values()
        return [self.observed(each.site) for each in placed if each.mode is Mode.HOLDING]

    def withhold(self, why: str) -> None:
        """There is nothing to be held."""

    def cut_all(self) -> int:
        """Or to be cut."""
        return 0

    def resume_serving(self) -> None:
        """Or to go on."""

    def take_up(self, entries: Sequence[Entry]) -> None:
        """Nobody migrates."""

    def lapse(self) -> None:
        """Nor is there a migration of its own."""

    # What pauses ask

    def placement(self, name: str) -> Placement:
        """Where a site is placed."""
        return self.placements[name]

    def adopt(self, placement: Placement) -> None:
        """Take over a placement: what is held has drained."""
        name = placement.site
        known = self.placements.get(name)
        if known is not None and known.generation >= placement.generation:
            return
        self.placements[name] = placement
        if placement.mode is Mode.HOLDING:
            self.cluster.report(self.observed(name), {})
        else:
            self.opened_at = placement.generation, time.monotonic()
        self.tell_changed(name)

    def observed(self, name: str) -> Observed:
        """What workers would report."""
        placement = self.placements[name]
        state = "holding" if placement.mode is Mode.HOLDING else "open"
        return Observed(name, placement.generation, placement.backend, placement.mode, state)

    def changed(self, name: str, timeout: float) -> Deferred[Outcome]:
        """Fires when something may have changed."""
        return self._happenings.wait(name, timeout)

    def tell_changed(self, name: str) -> None:
        """Something may have."""
        self._happenings.fire(name)

    def elsewhere(self, name: str) -> str:
        """Nobody migrates."""
        return ""

    def cut(self, site: str) -> Deferred[int]:
        """Nothing is in flight."""
        return succeed(0)

    def ambiguous(self, site: str) -> Deferred[int]:
        """Nothing was."""
        return succeed(0)


class Orders(LineOnlyReceiver):
    """Standard input and output."""

    delimiter = b"\n"
    MAX_LENGTH = 1 << 20

    def __init__(self, agents: Sequence[Agent]) -> None:
        self._agents = agents

    def lineReceived(self, line: bytes) -> None:
        """Do what a line says, and answer."""
        order = json.loads(line)
        doing = Deferred.fromCoroutine(self._do(order.pop("do"), order))
        doing.addCallbacks(self.say, lambda failure: self.say({"error": str(failure.value)}))

    async def _do(self, what: str, order: Mapping[str, Any]) -> dict[str, Any]:
        first = self._agents[0]
        if what == "place":
            (placed,) = await first.registry.place_new([Placement(SITE, "one")])
            first.adopt(placed)
            return {"generation": placed.generation}
        if what == "opened":
            return {"at": await self._opened(order["generation"])}
        asked = time.monotonic()
        if what == "pause":
            receipt = await first.pauses.pause(
                SITE,
                by="bench",
                timeout=TIMEOUT,
                force=False,
                expires=None,
                then="refuse",
                progress=lambda step, message: None,
            )
            took = time.monotonic() - asked
            return {"took": took, "nodes": len({each.node for each in receipt.workers})}
        placement = await first.pauses.resume(SITE, "bench")
        return {"asked": asked, "generation": placement.generation}

    async def _opened(self, generation: Generation) -> float:
        for agent in self._agents:
            while agent.opened_at[0] < generation:
                await agent.changed(SITE, TIMEOUT)
        return max(agent.opened_at[1] for agent in self._agents)

    def say(self, answer: Mapping[str, Any]) -> None:
        """Answer."""
        self.sendLine(json.dumps(answer).encode())  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Any = None) -> None:
        """Whoever gives orders is gone."""
        if reactor.running:
            reactor.stop()


def main(directory: str, host: str, port: str, names: Sequence[str]) -> None:
    """Run nodes of these names until standard input ends."""
    cluster = Cluster(addresses=((host, int(port)),))
    agents = [Agent(_settings(name, str(Path(directory) / name), cluster)) for name in names]
    orders = Orders(agents)
    StandardIO(orders)  # type: ignore[no-untyped-call]
    starting = gatherResults([Deferred.fromCoroutine(agent.start()) for agent in agents])
    starting.addCallbacks(
        lambda _: orders.say({"ready": len(agents)}),
        lambda failure: orders.say({"error": failure.getTraceback()}),
    )
    reactor.run()


def _settings(name: str, directory: str, cluster: Cluster) -> Settings:
    return Settings(
        name=name,
        state_dir=directory,
        control="",
        access_log="",
        listen=(),
        sites={},
        cluster=cluster,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
