"""How a node finds the others: it waits for the registry, however long that takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from awesomeproxy.cluster.host import ClusterHost
from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.following import Change, View
from awesomeproxy.registry.interface import IRegistry

log = Logger()

TELL_EVERY = 10.0  # seconds between lines in the log that say what is waited for


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A registry that other nodes change, too, and those nodes."""

    registry: IRegistry
    view: View  # what it has, as far as this node has read it
    on_change: list[Callable[[Change], None]]  # told what is another in the view
    cluster: ICluster


async def enter(host: ClusterHost) -> Surroundings:
    """The registry and the cluster of a node that is configured to be in one.

    :raise RegistryError: it cannot be used, and waiting would not help.
    """
    # Not above: a node by itself need not have what Redis takes.
    from awesomeproxy.cluster.redis import Fellows
    from awesomeproxy.registry.redis import RedisRegistry

    settings = host.settings
    assert settings.cluster is not None
    where = ", ".join(f"{name}:{port}" for name, port in settings.cluster.addresses)
    state_dir = Path(settings.state_dir)
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    telling = LoopingCall(_tell, where)
    telling.clock = host.reactor
    telling.start(TELL_EVERY, now=False)
    try:
        opening: Deferred[RedisRegistry] = RedisRegistry.open(
            host.reactor, settings.cluster, settings.name, state_dir
        )
        registry = await opening
    finally:
        telling.stop()
    on_change: list[Any] = registry.on_change
    return Surroundings(registry, registry.view, on_change, Fellows(registry, host))


def _tell(where: str) -> None:
    log.error(
        "the registry at {where} cannot be reached; nothing is served before it is", where=where
    )
