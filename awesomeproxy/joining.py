"""How a node finds the others: it waits for the registry, however long that takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zope.interface import Attribute

from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.following import Change, View
from awesomeproxy.registry.interface import IRegistry


class IFollowed(IRegistry):
    """A registry that other nodes change, too."""

    view: View = Attribute("What it has, as far as this node has read it.")
    on_change: list[Callable[[Change], None]] = Attribute("Told what is another in the view.")


async def enter(node: Any) -> tuple[IFollowed, ICluster]:
    """The registry and the cluster of a node that is configured to be in one.

    :raise RegistryError: it cannot be used, and waiting would not help.
    """
    raise NotImplementedError
