"""What the daemon can be told: one typed function a command.

They translate between JSON and the node, and say of every failure what was wrong and
what to do.  A command that fails with :class:`CommandFailed` has changed nothing.

Of two commands that cannot both have their way, on one site, the first has it, and the
other is told which that was: while a migration runs, or a pause waits for its drain, the
site is not migrated or removed.  Only ``resume`` comes before everything: it ends a pause
and rolls a migration back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from functools import wraps
from typing import Any, Literal

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from awesomeproxy import __version__, company, config
from awesomeproxy.checking import unverified
from awesomeproxy.composing import SOURCE, compose
from awesomeproxy.control.table import BadRequest, Call, CommandFailed, Table
from awesomeproxy.migrate import planning, steps
from awesomeproxy.migrate.engine import LeftUnfinished, Migration, RolledBack
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.migrate.planning import Unmovable, read
from awesomeproxy.model import DATABASE, FILESYSTEM, Database, Placement, Site
from awesomeproxy.movers.interface import Estimate, MoverError
from awesomeproxy.movers.shell import ShellError
from awesomeproxy.node import Node, Stopping
from awesomeproxy.pausing import NotDrained, Overtaken
from awesomeproxy.proxy.health import Unwell
from awesomeproxy.quantities import duration
from awesomeproxy.registry.interface import Conflict, RegistryError
from awesomeproxy.tables import table_of

Command = Callable[..., Coroutine[Any, Any, Any]]

HISTORY = 100  # migrations in which one is looked for that was like one that is planned
EXPIRES_SOON = 14 * 86_400.0  # seconds before its end, for which a certificate is warned of

_read_duration = duration()

log = Logger()
table = Table()


def changes(name: str) -> Callable[[Command], Command]:
    """Enter a command that changes something: not of a daemon that stops."""

    def enter(function: Command) -> Command:
        @wraps(function)
        async def carry_out(node: Node, call: Call, /, **params: Any) -> Any:
            try:
                if node.stopping and name != "resume":
                    raise Stopping
                return await function(node, call, **params)
            except Stopping as stopping:
                raise CommandFailed(str(stopping)) from None
            except Conflict as conflict:
                raise CommandFailed(
                    f"somebody else was first: {conflict}", _winner(conflict.stored)
                ) from None
            except RegistryError as problem:
                raise CommandFailed(str(problem)) from None

        return table.command(name)(carry_out)

    return enter


def _site(node: Node, name: str) -> Site:
    try:
        return node.sites[name]
    except KeyError:
        known = ", ".join(sorted(node.sites)) or "none"
        raise BadRequest(f"there is no site {name!r}; there are: {known}") from None


def _known(node: Node, name: str) -> Site | Database:
    """The site, or with ``database:`` before it the database, of that name."""
    if not name.startswith(DATABASE):
        return _site(node, name)
    try:
        return node.databases[name.removeprefix(DATABASE)]
    except KeyError:
        known = ", ".join(sorted(node.databases)) or "none"
        raise BadRequest(
            f"there is no database {name.removeprefix(DATABASE)!r}; there are: {known}"
        ) from None


def _check_duration(what: str, seconds: float) -> None:
    try:
        _read_duration(seconds)
    except ValueError as problem:
        raise BadRequest(f"{what}: {problem}") from None


def _winner(placement: Placement | None) -> Mapping[str, Any] | None:
    return None if placement is None else asdict(placement)


def _not_migrating(node: Node, name: str) -> None:
    migration = node.moves.of(name)
    if migration is not None:
        site, target = migration.site, migration.target
        moves = f"{name} is being migrated" if name == site else f"{name} goes along with {site}"
        raise CommandFailed(
            f"{moves} to {target} ({migration.step or 'ending'}); {way_out(migration)}",
            _winner(migration.placed(name)),
        )


def way_out(migration: Migration) -> str:
    """What to do about a migration that is in the way."""
    off = f", or call it off with: awesomeproxy abort {migration.site}"
    return "wait for it" + (off if migration.can_be_stopped else "")


def _idle(node: Node, name: str) -> None:
    _not_migrating(node, name)
    if node.pauses.under_way(name):
        raise CommandFailed(
            f"{name} is being paused; wait for it, or call it off with: awesomeproxy resume {name}",
            _winner(node.placements[name]),
        )


def _progress(node: Node, call: Call, name: str, command: str, **about: Any) -> Callable[..., None]:
    def progress(step: str, message: str, **more: Any) -> None:
        call.progress(step, message, **more)
        more |= about
        node.emit(event="step", site=name, command=command, step=step, message=message, **more)

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
            "handshakes": {"done": plane.handshakes, "failed": plane.handshakes_failed},
            "bad_headers": plane.bad_headers.count,
            "registry": f"embedded, in {node.settings.state_dir}",
            "certificates": _certificates(node),
        },
        "sites": [_site_status(node, name) for name in names],
        "databases": [_database_status(node, name) for name in sorted(node.databases)],
        "filesystems": node.residence.status(),
    }


def _certificates(node: Node) -> dict[str, Any]:
    certificates = node.certifying.certificates
    expiring = certificates.expiring(time.time(), EXPIRES_SOON)
    renewed = node.keeper.renewed()  # even those that live for a week only are no news then
    return {
        "count": len(certificates),
        "problems": list(certificates.problems),
        "expiring": [one for one in expiring if one["source"] not in renewed],
    }


def _site_status(node: Node, name: str) -> dict[str, Any]:
    site = node.sites[name]
    placement = node.placements[name]
    observed = node.observed(name)
    migration = node.moves.of(name)
    certificate = node.keeper.status(name)
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
        "warnings": list(unverified(site)),
        "backends": {backend: dict(servers) for backend, servers in observed.servers.items()},
        "counters": asdict(observed.counters),
        "migration": migration and {"target": migration.target, "step": migration.step},
        "acme": certificate and certificate.as_json(),
    }


def _database_status(node: Node, name: str) -> dict[str, Any]:
    database = node.databases[name]
    placed = DATABASE + name
    placement, observed = node.placements[placed], node.observed(placed)
    migration = node.moves.of(placed)
    return {
        "name": name,
        "endpoint": database.endpoint,
        "protocol": database.protocol,
        "backend": placement.backend,
        "server": database.backends[placement.backend].server.url
        if placement.backend in database.backends
        else "",
        "mode": placement.mode.value,
        "state": observed.state,
        "generation": placement.generation,
        "by": placement.by,
        "connections": observed.in_flight,
        "held": observed.held,
        "trouble": observed.trouble,
        "sites": company.users(node, placed),
        "counters": asdict(observed.counters),
        "migration": migration and {"target": migration.target, "step": migration.step},
    }


@changes("pause")
async def pause(
    node: Node,
    call: Call,
    site: str,
    force: bool = False,
    timeout: float | None = None,
    deadline: float | None = None,
    then: Literal["refuse", "resume"] = "refuse",
) -> Mapping[str, Any]:
    """Hold a site, or a database with all that use it; answers when nothing is in flight."""
    definition = _known(node, site)
    for name, seconds in (("timeout", timeout), ("deadline", deadline)):
        if seconds is not None:
            _check_duration(f"pause: {name}", seconds)
    if then == "resume" and deadline is None:
        raise BadRequest("pause: then is for a pause that has an end; add a deadline (--for)")
    _not_migrating(node, site)
    expires = None if deadline is None else time.time() + deadline
    progress = _progress(node, call, site, "pause")
    try:
        if isinstance(definition, Database):
            for user in company.users(node, site):
                _not_migrating(node, user)
            receipt = await company.pause(
                node,
                site,
                timeout=timeout,
                force=force,
                expires=expires,
                then=then,
                progress=progress,
            )
        else:
            receipt = await node.pauses.pause(
                site,
                by="pause",
                timeout=definition.drain.time if timeout is None else timeout,
                force=force,
                expires=expires,
                then=then,
                progress=progress,
            )
    except (NotDrained, MoverError) as problem:
        raise CommandFailed(str(problem)) from None
    except Overtaken as problem:
        winner = problem.winner
        raise CommandFailed(
            f"{winner.by!r} has changed the site meanwhile (generation {winner.generation})",
            _winner(winner),
        ) from None
    return receipt.as_json()


@changes("resume")
async def resume(node: Node, call: Call, site: str) -> Mapping[str, Any]:
    """Let a site's requests go on; calls off a pause or a migration under way."""
    _known(node, site)
    is_database = site.startswith(DATABASE)
    held = company.held(node, site) if is_database else node.observed(site).held
    placement = await node.release(site, "resume")
    return {
        "site": site,
        "backend": placement.backend,
        "generation": placement.generation,
        "released": held,
    }


@changes("migrate")
async def migrate(
    node: Node,
    call: Call,
    site: str,
    to: str,
    databases: dict[str, str] | None = None,
    dry_run: bool = False,
    max_pause: float = 20.0,
    force: bool = False,
) -> Mapping[str, Any]:
    """Move a site or a database; answers with the ledger, or with the plan."""
    async with node.changing():  # what a site's backends are
        definition = _known(node, site)
        if to not in definition.backends:
            known = ", ".join(sorted(definition.backends))
            raise BadRequest(f"{site} has no backend {to!r}; it has: {known}")
        _check_duration("migrate: max_pause", max_pause)
        plan = _planned(node, site, to, databases or {})
        if not dry_run:
            for member in plan.members:
                _idle(node, member.name)
            if not plan.main.moves:
                raise CommandFailed(f"{site} is on {to} already", _winner(node.placements[site]))
            try:
                running = node.moves.begin(
                    plan,
                    max_pause=max_pause,
                    force=force,
                    by=f"migrate to {to}",
                    progress=_progress(node, call, site, "migrate", along=plan.companions),
                )
            except Unmovable as problem:
                raise CommandFailed(str(problem)) from None
    if dry_run:
        return await _foreseen(node, plan, max_pause)
    try:
        ledger = await running
    except LeftUnfinished as left:
        raise CommandFailed(
            f"the migration to {to} is being undone, but that is not done yet: {left};"
            " the daemon that is started next goes on with it"
        ) from None
    except RolledBack as undone:
        failed = CommandFailed(
            f"the migration to {to} was rolled back in the step {undone.step!r}: {undone};"
            f" {site} is served by {node.placements[site].backend}"
        )
        if undone.ledger is not None:
            failed.data = {**(failed.data or {}), "ledger": undone.ledger.as_json()}
        raise failed from None
    return ledger.as_json()


def _planned(node: Node, site: str, to: str, databases: Mapping[str, str]) -> Plan:
    try:
        return planning.make(node.moves.world(), site, to, databases)
    except Unmovable as problem:
        raise CommandFailed(str(problem)) from None


async def _foreseen(node: Node, plan: Plan, max_pause: float) -> Mapping[str, Any]:
    """What a migration would do, and what is in its way."""
    problems = []
    main = plan.main
    estimate: Estimate | None = None
    carrying = False
    try:
        for member in plan.members:
            _idle(node, member.name)
        carrying = node.moves.loader(plan) is not None
        if not main.moves:  # and if it is held, not a byte goes there
            problems.append(f"{main.name} is on {main.target} already")
        elif carrying:
            estimate = await node.moves.foresee(plan)
        else:
            await node.check(main.name, main.target)
    except (CommandFailed, Unmovable, MoverError, ShellError, Unwell) as problem:
        problems.append(str(problem))
    before = planning.precedent(plan, await node.registry.history(main.name, HISTORY))
    return {
        "site": main.name,
        "source": main.source,
        "target": main.target,
        "along": _along(plan),
        "estimate": estimate and {"whole": estimate.whole, "pending": estimate.pending},
        "pause": {
            "predicted": before and before.ledger and before.ledger["pause"],
            "migration": before and before.id,
            "at_most": max_pause,
        },
        "plan": [{"step": step.name, "what": step.what} for step in steps.of(carrying)],
        "problems": problems,
    }


@changes("abort")
async def abort(node: Node, call: Call, site: str) -> Mapping[str, Any]:
    """Call off a migration that has not committed yet; its site is as it was before."""
    migration = node.moves.of(site)
    if migration is None:
        _known(node, site)
        raise CommandFailed(f"{site} is not being migrated", _winner(node.placements[site]))
    if not migration.stop("it was aborted"):
        raise CommandFailed(
            f"{site} is past the point where its migration to {migration.target} can be called"
            " off; migrate it back when that has ended",
            _winner(node.placements[site]),
        )
    await migration.ended.wait()
    return {
        "site": site,
        "was": f"the migration to {migration.target}",
        "backend": node.placements[site].backend,
    }


@table.command("migrations")
async def migrations(
    node: Node, call: Call, site: str | None = None, limit: int = 20
) -> Mapping[str, Any]:
    """Past and running migrations, the newest first."""
    keys = ("id", "site", "source", "target", "state", "step", "reason", "began", "ledger")
    entries = await node.registry.history(site, limit)
    return {
        "migrations": [
            {key: getattr(entry, key) for key in keys} | {"along": _along(read(entry))}
            for entry in entries
        ]
    }


def _along(plan: Plan) -> list[dict[str, str]]:
    return [asdict(member) for member in plan.along]


@table.command("watch")
async def watch(node: Node, call: Call, site: str | None = None) -> None:
    """Events, until the client leaves."""
    filesystems = {FILESYSTEM + name for name in node.settings.filesystems}
    if site is not None and site not in filesystems:
        _known(node, site)

    def tell(event: dict[str, Any]) -> None:
        if site is None or event.get("site") in (site, None) or site in event.get("along", ()):
            call.event(**event)

    forever: Deferred[None] = Deferred()
    stop = node.watching.add(tell)
    try:
        await forever
    finally:
        stop()


@table.command("certificates")
async def certificates(node: Node, call: Call) -> Mapping[str, Any]:
    """Every certificate that was found, usable or not, and how it stands with those issued."""
    return {
        "certificates": node.certifying.certificates.listing(),
        "acme": [status.as_json() for status in node.keeper.statuses()],
    }


# Definitions


@changes("reload")
async def reload(node: Node, call: Call) -> Mapping[str, Any]:
    """Read the configuration file again."""
    try:
        return await node.reload()
    except config.ConfigError as problem:
        raise CommandFailed(_said(problem)) from None
    except (RegistryError, CannotListenError, OSError) as problem:
        raise CommandFailed(str(problem)) from None


def _said(problem: config.ConfigError) -> str:
    """All that is wrong, in one line."""
    return "; ".join(problem.problems)


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


@changes("site.add")
async def site_add(
    node: Node, call: Call, name: str, definition: dict[str, Any]
) -> Mapping[str, Any]:
    """A new site, remembered by the registry."""
    async with node.changing():
        if name in node.sites:
            raise CommandFailed(f"there is a site {name!r} already; remove it first")
        try:
            config.site_from_table(name, definition, "definition")
        except config.ConfigError as problem:
            raise BadRequest(_said(problem)) from None
        return await _define(node, name, definition)


@changes("site.remove")
async def site_remove(node: Node, call: Call, name: str) -> Mapping[str, Any]:
    """A site that was added by command is served no more."""
    async with node.changing():
        _site(node, name)
        if name in node.settings.sites:
            raise CommandFailed(f"{name} is in the configuration file; remove it there and reload")
        _idle(node, name)
        await node.registry.undefine(name)
        del node.added[name]
        node.undefine(name)
        try:
            await node.registry.forget(name, node.placements[name].generation)
            del node.placements[name]
        except RegistryError as problem:  # it is removed all the same
            log.warn("{site}: where it was placed stays known: {why}", site=name, why=problem)
    return {"site": name}


@changes("backend.add")
async def backend_add(
    node: Node, call: Call, site: str, name: str, definition: dict[str, Any]
) -> Mapping[str, Any]:
    """One more place that a site can be moved to."""
    async with node.changing():
        if name in _site(node, site).backends:
            raise CommandFailed(f"{site} has a backend {name!r} already; remove it first")
        _not_migrating(node, site)
        try:
            config.backend_from_table(name, definition, "definition")
        except config.ConfigError as problem:
            raise BadRequest(_said(problem)) from None
        before = node.added.get(site, {})
        backends = {**before.get("backends", {}), name: definition}
        return await _define(node, site, {**before, "backends": backends})


@changes("backend.remove")
async def backend_remove(node: Node, call: Call, site: str, name: str) -> Mapping[str, Any]:
    """A place that a site is not on, and can be moved to no more."""
    async with node.changing():
        present = _site(node, site)
        if name not in present.backends:
            known = ", ".join(sorted(present.backends))
            raise BadRequest(f"{site} has no backend {name!r}; it has: {known}")
        _not_migrating(node, site)
        placed = node.placements[site].backend
        if name == placed:
            raise CommandFailed(f"{site} is placed on {name}; migrate it to another backend first")
        before = node.added.get(site, {})
        if name not in before.get("backends", {}) or _in_file(node, site, name):
            raise CommandFailed(
                f"the backend {name} of {site} is in the configuration file;"
                " remove it there and reload"
            )
        backends = {key: table for key, table in before["backends"].items() if key != name}
        definition = {**before, "backends": backends}
        if before.get("backend") == name:  # where the site started
            definition["backend"] = placed
        return await _define(node, site, definition)


def _in_file(node: Node, site: str, backend: str) -> bool:
    return site in node.settings.sites and backend in node.settings.sites[site].backends


async def _define(node: Node, name: str, table: dict[str, Any]) -> Mapping[str, Any]:
    """Record ``table`` for a site, new or not, and take it over."""
    added = {**node.added, name: table}
    try:
        site = compose(node.settings, added)[name]
    except config.ConfigError as problem:
        raise BadRequest(_said(problem).replace(f"{SOURCE}: ", "")) from None
    await node.place([site])
    await node.registry.define(name, table)
    node.added = added
    node.define(site)
    return {"site": name, "generation": node.placements[name].generation}
