"""What the daemon can be told: one typed function a command.

They translate between JSON and the node, and say of every failure what was wrong and
what to do.  A command that fails with :class:`CommandFailed` has changed nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError

from awesomeproxy import __version__, config
from awesomeproxy.control.table import BadRequest, Call, CommandFailed, Table
from awesomeproxy.migrate.engine import STEPS, Migration, RolledBack
from awesomeproxy.model import Placement, Site
from awesomeproxy.node import Node, NotDrained, Overtaken
from awesomeproxy.proxy.health import Unwell
from awesomeproxy.registry.interface import Busy, Conflict, RegistryError
from awesomeproxy.tables import table_of

table = Table()


def _site(node: Node, name: str) -> Site:
    try:
        return node.sites[name]
    except KeyError:
        known = ", ".join(sorted(node.sites)) or "none"
        raise BadRequest(f"there is no site {name!r}; there are: {known}") from None


def _winner(placement: Placement | None) -> Mapping[str, Any] | None:
    return None if placement is None else asdict(placement)


def _idle(node: Node, name: str) -> None:
    migration = node.migrations.get(name)
    if migration is not None:
        raise CommandFailed(
            f"{name} is being migrated to {migration.target} ({migration.step}); wait for it,"
            f" or call it off with: awesomeproxy resume {name}",
            _winner(node.placements[name]),
        )


def _lost(conflict: Conflict) -> CommandFailed:
    return CommandFailed(f"somebody else was first: {conflict}", _winner(conflict.stored))


def _progress(node: Node, call: Call, name: str, command: str) -> Callable[[str, str], None]:
    def progress(step: str, message: str) -> None:
        call.progress(step, message)
        node.emit(event="step", site=name, command=command, step=step, message=message)

    return progress


# Traffic


@table.command("status")
async def status(node: Node, call: Call, site: str | None = None) -> Mapping[str, Any]:
    """The node and its sites."""
    names = sorted(node.sites) if site is None else [_site(node, site).name]
    plane = node.plane
    return {
        "node": {
            "name": node.settings.name,
            "version": __version__,
            "pid": node.pid,
            "uptime": round(time.time() - node.began, 3),
            "connections": len(plane.clients),
            "max_connections": plane.max_connections,
            "listen": [listen.endpoint for listen in node.settings.listen],
            "held": plane.held.requests,
            "registry": f"embedded, in {node.settings.state_dir}",
        },
        "sites": [_site_status(node, name) for name in names],
    }


def _site_status(node: Node, name: str) -> dict[str, Any]:
    site = node.sites[name]
    placement = node.placements[name]
    observed = node.observed(name)
    migration = node.migrations.get(name)
    return {
        "name": name,
        "hosts": list(site.hosts),
        "path": site.path,
        "backend": placement.backend,
        "mode": placement.mode.value,
        "state": observed.state,
        "generation": placement.generation,
        "by": placement.by,
        "expires": placement.expires,
        "in_flight": observed.in_flight,
        "held": observed.held,
        "held_bytes": observed.held_bytes,
        "tunnels": observed.tunnels,
        "connections": observed.connections,
        "trouble": observed.trouble,
        "backends": {backend: dict(servers) for backend, servers in observed.servers.items()},
        "counters": asdict(observed.counters),
        "migration": migration and {"target": migration.target, "step": migration.step},
    }


@table.command("pause")
async def pause(
    node: Node,
    call: Call,
    site: str,
    force: bool = False,
    timeout: float | None = None,
    deadline: float | None = None,
    then: Literal["refuse", "resume"] = "refuse",
) -> Mapping[str, Any]:
    """Hold a site; answers when nothing of it is in flight."""
    definition = _site(node, site)
    _idle(node, site)
    for name, seconds in (("timeout", timeout), ("deadline", deadline)):
        if seconds is not None and not 0 < seconds < 1e9:
            raise BadRequest(f"pause: {name} must be more than 0 seconds, not {seconds:g}")
    try:
        receipt = await node.hold(
            site,
            by="pause",
            timeout=definition.drain.time if timeout is None else timeout,
            force=force,
            expires=None if deadline is None else time.time() + deadline,
            then=then,
            progress=_progress(node, call, site, "pause"),
        )
    except NotDrained as problem:
        raise CommandFailed(
            f"{problem}; the pause was undone. Wait longer with --timeout, or cut them with --force"
        ) from None
    except Overtaken as problem:
        winner = problem.winner
        raise CommandFailed(
            f"{winner.by!r} has changed the site meanwhile (generation {winner.generation})",
            _winner(winner),
        ) from None
    except Conflict as conflict:
        raise _lost(conflict) from None
    return receipt.as_json()


@table.command("resume")
async def resume(node: Node, call: Call, site: str) -> Mapping[str, Any]:
    """Let a site's requests go on; calls off a pause or a migration under way."""
    _site(node, site)
    held = node.observed(site).held
    try:
        placement = await node.release(site, "resume")
    except Conflict as conflict:
        raise _lost(conflict) from None
    return {
        "site": site,
        "backend": placement.backend,
        "generation": placement.generation,
        "released": held,
    }


@table.command("migrate")
async def migrate(
    node: Node,
    call: Call,
    site: str,
    to: str,
    dry_run: bool = False,
    max_pause: float = 20.0,
    force: bool = False,
) -> Mapping[str, Any]:
    """Move a site to another backend; answers with the ledger, or with the plan."""
    definition = _site(node, site)
    if to not in definition.backends:
        known = ", ".join(sorted(definition.backends))
        raise BadRequest(f"{site} has no backend {to!r}; it has: {known}")
    if not 0 < max_pause < 1e6:
        raise BadRequest(f"migrate: max_pause must be more than 0 seconds, not {max_pause:g}")
    if dry_run:
        return await _plan(node, site, to)
    _idle(node, site)
    if node.placements[site].backend == to:
        raise CommandFailed(f"{site} is on {to} already", _winner(node.placements[site]))
    migration = Migration(
        node,
        site,
        to,
        max_pause=max_pause,
        force=force,
        by=f"migrate to {to}",
        progress=_progress(node, call, site, "migrate"),
    )
    node.migrations[site] = migration
    try:
        ledger = await migration.run()
    except RolledBack as undone:
        raise CommandFailed(
            f"the migration to {to} was rolled back in the step {undone.step!r}: {undone};"
            f" {site} is served by {node.placements[site].backend}"
        ) from None
    except Conflict as conflict:
        raise _lost(conflict) from None
    except Busy as busy:
        raise CommandFailed(str(busy)) from None
    finally:
        del node.migrations[site]
    return ledger.as_json()


async def _plan(node: Node, site: str, to: str) -> Mapping[str, Any]:
    problems = []
    source = node.placements[site].backend
    if source == to:
        problems.append(f"{site} is on {to} already")
    if site in node.migrations:
        problems.append(f"{site} is being migrated to {node.migrations[site].target}")
    try:
        await node.check(site, to)
    except Unwell as unwell:
        problems.append(str(unwell))
    return {
        "site": site,
        "source": source,
        "target": to,
        "plan": [{"step": step, "what": what} for step, what in STEPS],
        "problems": problems,
    }


@table.command("migrations")
async def migrations(
    node: Node, call: Call, site: str | None = None, limit: int = 20
) -> Mapping[str, Any]:
    """Past and running migrations, the newest first."""
    keys = ("id", "site", "source", "target", "state", "step", "reason", "began", "ledger")
    entries = await node.registry.history(site, limit)
    return {"migrations": [{key: getattr(entry, key) for key in keys} for entry in entries]}


@table.command("watch")
async def watch(node: Node, call: Call, site: str | None = None) -> None:
    """Events, until the client leaves."""
    if site is not None:
        _site(node, site)

    def tell(event: dict[str, Any]) -> None:
        if site is None or event.get("site") in (site, None):
            call.event(**event)

    forever: Deferred[None] = Deferred()
    stop = node.watch(tell)
    try:
        await forever
    finally:
        stop()


# Definitions


@table.command("reload")
async def reload(node: Node, call: Call) -> Mapping[str, Any]:
    """Read the configuration file again."""
    try:
        return await node.reload()
    except (config.ConfigError, RegistryError, CannotListenError, OSError) as problem:
        raise CommandFailed(f"nothing has changed: {problem}") from None


@table.command("site.show")
async def site_show(node: Node, call: Call, name: str) -> Mapping[str, Any]:
    """A site's definition and placement."""
    site = _site(node, name)
    return {
        "site": name,
        "source": "file" if name in node.settings.sites else "command",
        "definition": table_of(site),
        "placement": asdict(node.placements[name]),
    }


@table.command("site.add")
async def site_add(
    node: Node, call: Call, name: str, definition: dict[str, Any]
) -> Mapping[str, Any]:
    """A new site, remembered by the registry."""
    if name in node.sites:
        raise CommandFailed(f"there is a site {name!r} already; remove it first")
    try:
        config.site_from_table(name, definition, "definition")
        sites = node.compose(node.settings, {**node.added, name: definition})
    except config.ConfigError as problem:
        raise BadRequest(str(problem)) from None
    await node.registry.define(name, definition)
    node.added[name] = definition
    await node.define(sites[name])
    return {"site": name, "generation": node.placements[name].generation}


@table.command("site.remove")
async def site_remove(node: Node, call: Call, name: str) -> Mapping[str, Any]:
    """A site that was added by command is served no more."""
    _site(node, name)
    if name in node.settings.sites:
        raise CommandFailed(f"{name} is in the configuration file; remove it there and reload")
    _idle(node, name)
    try:
        await node.registry.forget(name, node.placements[name].generation)
    except Conflict as conflict:
        raise _lost(conflict) from None
    await node.registry.undefine(name)
    del node.added[name]
    del node.placements[name]
    node.undefine(name)
    return {"site": name}


@table.command("backend.add")
async def backend_add(
    node: Node, call: Call, site: str, name: str, definition: dict[str, Any]
) -> Mapping[str, Any]:
    """One more place that a site can be moved to."""
    present = _site(node, site)
    if name in present.backends:
        raise CommandFailed(f"{site} has a backend {name!r} already; remove it first")
    return await _change_backends(node, site, {name: definition}, drop=None)


@table.command("backend.remove")
async def backend_remove(node: Node, call: Call, site: str, name: str) -> Mapping[str, Any]:
    """A place that a site is not on, and can be moved to no more."""
    present = _site(node, site)
    if name not in present.backends:
        known = ", ".join(sorted(present.backends))
        raise BadRequest(f"{site} has no backend {name!r}; it has: {known}")
    if name == node.placements[site].backend:
        raise CommandFailed(f"{site} is placed on {name}; migrate it to another backend first")
    if name not in node.added.get(site, {}).get("backends", {}):
        raise CommandFailed(
            f"the backend {name} of {site} is in the configuration file; remove it there and reload"
        )
    return await _change_backends(node, site, {}, drop=name)


async def _change_backends(
    node: Node, site: str, more: dict[str, Any], drop: str | None
) -> Mapping[str, Any]:
    _idle(node, site)
    before = node.added.get(site, {})
    backends = {**before.get("backends", {}), **more}
    if drop is not None:
        del backends[drop]
    definition = {**before, "backends": backends}
    if before.get("backend") == drop and drop is not None:
        definition["backend"] = node.placements[site].backend
    try:
        sites = node.compose(node.settings, {**node.added, site: definition})
    except config.ConfigError as problem:
        raise BadRequest(str(problem)) from None
    await node.registry.define(site, definition)
    node.added[site] = definition
    await node.define(sites[site])
    return {"site": site, "generation": node.placements[site].generation}
