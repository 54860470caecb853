"""``apply``: have the sites that a file says, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import gatherResults

from awesomeproxy import config
from awesomeproxy.composing import compose, misplaced
from awesomeproxy.control.commands import changes, check_idle, remove_site, said
from awesomeproxy.control.table import BadRequest, Call, CommandFailed
from awesomeproxy.model import Mode
from awesomeproxy.node import Node


@changes("apply")
async def apply(
    node: Node, call: Call, sites: dict[str, dict[str, Any]], remove: bool = False
) -> Mapping[str, Any]:
    """Define each of ``sites`` that is new or another; all of them, or none.

    :param remove: have no others, but for those of the configuration file.
    """
    async with node.changing():
        for name in sorted(set(sites) & set(node.settings.sites)):
            raise CommandFailed(
                f"{name} is in the configuration file; change it there and reload, or remove it"
                " there first"
            )
        superfluous = sorted(set(node.added) - set(sites) - set(node.settings.sites))
        if remove:
            for name in superfluous:  # before anything is changed
                _check_removable(node, name)
        done = await _define(node, sites)
        removed = superfluous if remove else []
        for name in removed:
            await remove_site(node, name)
    return {**done, "removed": removed}


async def _define(node: Node, sites: Mapping[str, dict[str, Any]]) -> dict[str, list[str]]:
    done: dict[str, list[str]] = {"added": [], "changed": [], "unchanged": []}
    for name, table in sites.items():
        what = "unchanged" if node.added.get(name) == table else "changed"
        done[what if name in node.added else "added"].append(name)
    new = {name: sites[name] for name in (*done["added"], *done["changed"])}
    added = {**node.added, **new}
    try:
        composed = compose(node.settings, added)
    except config.ConfigError as problem:
        raise BadRequest(said(problem)) from None
    defined = [composed[name] for name in new if name in composed]
    if problems := misplaced(defined, node.placements):
        raise CommandFailed("; ".join(problems.values()))
    await node.place(defined)
    await gatherResults([node.registry.define(name, table) for name, table in new.items()])
    node.added = added
    for site in defined:
        node.define(site)
    return done


def _check_removable(node: Node, name: str) -> None:
    check_idle(node, name)
    placement = node.placements[name]
    if placement.mode is not Mode.OPEN:
        raise CommandFailed(
            f"{name} is held by {placement.by!r}, and would be removed; say first:"
            f" awesomeproxy resume {name}"
        )
