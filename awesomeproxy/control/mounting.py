"""Commands about filesystems: what a node cannot see for itself it is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.task import deferLater

from awesomeproxy.control.commands import changes
from awesomeproxy.control.table import BadRequest, Call, CommandFailed
from awesomeproxy.migrating import way_out
from awesomeproxy.model import FILESYSTEM, Mode, Placement
from awesomeproxy.node import Node
from awesomeproxy.residence import Elsewhere


@changes("mounted")
async def mounted(context: Node, call: Call, filesystem: str, node: str) -> Mapping[str, Any]:
    """A filesystem is mounted on a node: what lives in it is served there from now on."""
    _check_known(context, filesystem, node)
    _refuse_moving(context, filesystem)
    try:
        return _told(context, filesystem, await context.residence.mounted(filesystem, node))
    except Elsewhere as problem:
        raise CommandFailed(str(problem)) from None


@changes("unmounted")
async def unmounted(context: Node, call: Call, filesystem: str, node: str) -> Mapping[str, Any]:
    """A filesystem is not mounted on a node any more: what lives in it is held.

    Before the commit that calls off a migration from there.
    """
    _check_known(context, filesystem, node)
    moving = context.moves.of(FILESYSTEM + filesystem)
    if moving and moving.lost(FILESYSTEM + filesystem, node, "it is not mounted", surely=True):
        await moving.ended.wait()
        await deferLater(context.reactor, 0)  # and it is not among those that run any more
    _refuse_moving(context, filesystem)
    return _told(context, filesystem, await context.residence.unmounted(filesystem, node))


def _refuse_moving(context: Node, filesystem: str) -> None:
    if migration := context.moves.of(FILESYSTEM + filesystem):
        raise CommandFailed(
            f"{filesystem} is being moved with {migration.site}; {way_out(migration)}"
        )


def _check_known(context: Node, filesystem: str, node: str) -> None:
    known = context.settings.filesystems
    if filesystem not in known:
        names = ", ".join(sorted(known)) or "none"
        raise BadRequest(f"there is no filesystem {filesystem!r}; there are: {names}")
    places = known[filesystem].places
    if node not in places:
        raise BadRequest(
            f"{filesystem} has no place on {node!r}; it has: {', '.join(sorted(places))}"
        )
    if context.residence.lookout.sees(filesystem, node):
        raise CommandFailed(
            f"{filesystem} is looked for on {node} by the daemon itself, in the mount table;"
            " nobody has to tell"
        )


def _told(context: Node, filesystem: str, where: Placement) -> Mapping[str, Any]:
    lodgers = [site.name for site in context.sites.values() if site.filesystem == filesystem]
    return {
        "filesystem": filesystem,
        "node": where.backend,
        "state": "mounted" if where.mode is Mode.OPEN else "not mounted",
        "generation": where.generation,
        "sites": sorted(lodgers),
    }
