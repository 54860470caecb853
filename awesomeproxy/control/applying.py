"""``apply``: have the sites that a file says, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awesomeproxy import config
from awesomeproxy.control.commands import changes, remove_site, said
from awesomeproxy.control.table import BadRequest, Call, CommandFailed
from awesomeproxy.defining import define_all
from awesomeproxy.model import Mode
from awesomeproxy.node import Node


@changes("apply")
async def apply(
    node: Node, call: Call, sites: dict[str, dict[str, Any]], remove: bool = False
) -> Mapping[str, Any]:
    """Define each of ``sites`` that is new or another; all of them, or none.

    :param remove: have no others, but for those of the configuration file.
    """
    superfluous = _superfluous(node, sites) if remove else []
    for name in superfluous:  # before anything is changed
        _check_removable(node, name)
    try:
        done = await define_all(node, sites)
    except config.ConfigError as problem:
        raise BadRequest(said(problem)) from None
    async with node.changing():
        removed = [name for name in superfluous if name in node.added]
        for name in removed:
            node.migrating.check_idle(name)
            await remove_site(node, name)
    return {**done, "removed": removed}


def _superfluous(node: Node, sites: Mapping[str, Any]) -> list[str]:
    """What was added by command and is not among ``sites``."""
    return sorted(set(node.added) - set(sites) - set(node.settings.sites))


def _check_removable(node: Node, name: str) -> None:
    node.migrating.check_idle(name)
    placement = node.placements[name]
    if placement.mode is not Mode.OPEN:
        raise CommandFailed(
            f"{name} is held by {placement.by!r}, and would be removed; say first:"
            f" awesomeproxy resume {name}"
        )
