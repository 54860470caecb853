"""What the daemon can be told: one typed function a command.

They translate between JSON and the node, and say of every failure what was wrong and
what to do.  A command that fails with :class:`CommandFailed` has changed nothing.

Of two commands that cannot both have their way, on one site, the first has it, and the
other is told which that was: while a migration runs, or a pause waits for its drain, the
site is not migrated or removed.  Only ``resume`` comes before everything: it ends a pause
and rolls a migration back.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import wraps
from typing import Any, Literal

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from awesomeproxy import company, config, reloading
from awesomeproxy.composing import SOURCE, Adding, compose
from awesomeproxy.control.table import BadRequest, Call, CommandFailed, Table
from awesomeproxy.migrating import InTheWay, NotMigrating
from awesomeproxy.model import DATABASE, FILESYSTEM, Database, Placement, Site
from awesomeproxy.movers.interface import MoverError
from awesomeproxy.node import Node, Stopping
from awesomeproxy.pausing import NotDrained, Overtaken
from awesomeproxy.quantities import duration
from awesomeproxy.registry.interface import Conflict, RegistryError
from awesomeproxy.tables import table_of

Command = Callable[..., Coroutine[Any, Any, Any]]

HISTORY = 100  # migrations in which one is looked for that was like one that is planned

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
                await _catch_up(node)
                return await function(node, call, **params)
            except Stopping as stopping:
                raise CommandFailed(str(stopping)) from None
            except InTheWay as problem:
                raise CommandFailed(str(problem), winner_of(problem.winner)) from None
            except Conflict as conflict:
                raise CommandFailed(
                    f"somebody else was first: {conflict}", winner_of(conflict.stored)
                ) from None
            except (RegistryError, NotMigrating) as problem:
                raise CommandFailed(str(problem)) from None

        return table.command(name)(carry_out)

    return enter


async def _catch_up(node: Node) -> None:
    """Know what was done on other nodes, by whoever asks for the next thing here."""
    if not node.cluster.alone:
        with suppress(RegistryError):  # without it, what can be done can be done
            await node.registry.placements()  # it tells what is new before it answers


def site_named(node: Node, name: str) -> Site:
    """The site of that name; :class:`BadRequest` if there is none."""
    try:
        return node.sites[name]
    except KeyError:
        known = ", ".join(sorted(node.sites)) or "none"
        raise BadRequest(f"there is no site {name!r}; there are: {known}") from None


def definition_of(node: Node, name: str) -> Site | Database:
    """The site, or with ``database:`` before it the database, of that name."""
    if not name.startswith(DATABASE):
        return site_named(node, name)
    try:
        return node.databases[name.removeprefix(DATABASE)]
    except KeyError:
        known = ", ".join(sorted(node.databases)) or "none"
        raise BadRequest(
            f"there is no database {name.removeprefix(DATABASE)!r}; there are: {known}"
        ) from None


def check_duration(what: str, seconds: float) -> None:
    """:class:`BadRequest` if nothing can take so long."""
    try:
        _read_duration(seconds)
    except ValueError as problem:
        raise BadRequest(f"{what}: {problem}") from None


def winner_of(placement: Placement | None) -> Mapping[str, Any] | None:
    """What made a change that came first, for :class:`CommandFailed`."""
    return None if placement is None else asdict(placement)


def progress_of(
    node: Node, call: Call, name: str, command: str, **about: Any
) -> Callable[..., None]:
    """What tells the client, and everybody who watches, how far a command is."""

    def progress(step: str, message: str, **more: Any) -> None:
        call.progress(step, message, **more)
        more |= about
        node.emit(event="step", site=name, command=command, step=step, message=message, **more)

    return progress


# Traffic


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
    definition = definition_of(node, site)
    for name, seconds in (("timeout", timeout), ("deadline", deadline)):
        if seconds is not None:
            check_duration(f"pause: {name}", seconds)
    if then == "resume" and deadline is None:
        raise BadRequest("pause: then is for a pause that has an end; add a deadline (--for)")
    node.migrating.check_free(site)
    expires = None if deadline is None else node.cluster.now() + deadline
    progress = progress_of(node, call, site, "pause")
    try:
        if isinstance(definition, Database):
            for user in company.users(node, site):
                node.migrating.check_free(user)
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
            winner_of(winner),
        ) from None
    return receipt.as_json()


@changes("resume")
async def resume(node: Node, call: Call, site: str) -> Mapping[str, Any]:
    """Let a site's requests go on; calls off a pause or a migration under way."""
    definition_of(node, site)
    is_database = site.startswith(DATABASE)
    names = [site, *company.users(node, site)] if is_database else [site]
    held = Deferred.fromCoroutine(node.answering.held(names))  # nobody waits for that
    await node.migrating.make_way(site, "the site was resumed by 'resume'")
    if is_database:
        placement = await company.resume(node, site)
    else:
        placement = await node.pauses.resume(site, "resume")
    return {
        "site": site,
        "backend": placement.backend,
        "generation": placement.generation,
        "released": await held,
    }


@table.command("watch")
async def watch(node: Node, call: Call, site: str | None = None) -> None:
    """Events, until the client leaves."""
    filesystems = {FILESYSTEM + name for name in node.settings.filesystems}
    if site is not None and site not in filesystems:
        definition_of(node, site)

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
        return await reloading.reload(node)
    except config.ConfigError as problem:
        raise CommandFailed(said(problem)) from None
    except (RegistryError, CannotListenError, OSError) as problem:
        raise CommandFailed(str(problem)) from None


def said(problem: config.ConfigError) -> str:
    """All that is wrong, in one line."""
    return "; ".join(problem.problems)


@table.command("site.show")
async def site_show(node: Node, call: Call, name: str) -> Mapping[str, Any]:
    """A site's definition and placement."""
    site = site_named(node, name)
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
            raise BadRequest(said(problem)) from None
        return await _define(node, name, definition)


@changes("site.remove")
async def site_remove(node: Node, call: Call, name: str) -> Mapping[str, Any]:
    """A site that was added by command is served no more."""
    async with node.changing():
        site_named(node, name)
        if name in node.settings.sites:
            raise CommandFailed(f"{name} is in the configuration file; remove it there and reload")
        node.migrating.check_idle(name)
        await remove_site(node, name)
    return {"site": name}


async def remove_site(node: Node, name: str) -> None:
    """Serve a site no more that was added by a command, and has nothing to do with a change."""
    placed = node.placements[name].generation
    await node.registry.undefine(name)  # of which this node may have heard by then
    node.added.pop(name, None)
    node.undefine(name)
    try:
        await node.registry.forget(name, placed)
        node.placements.pop(name, None)
    except RegistryError as problem:  # it is removed all the same
        log.warn("{site}: where it was placed stays known: {why}", site=name, why=problem)


@changes("backend.add")
async def backend_add(
    node: Node, call: Call, site: str, name: str, definition: dict[str, Any]
) -> Mapping[str, Any]:
    """One more place that a site can be moved to."""
    async with node.changing():
        if name in site_named(node, site).backends:
            raise CommandFailed(f"{site} has a backend {name!r} already; remove it first")
        node.migrating.check_free(site)
        try:
            config.backend_from_table(name, definition, "definition")
        except config.ConfigError as problem:
            raise BadRequest(said(problem)) from None
        before = node.added.get(site, {})
        backends = {**before.get("backends", {}), name: definition}
        return await _define(node, site, {**before, "backends": backends})


@changes("backend.remove")
async def backend_remove(node: Node, call: Call, site: str, name: str) -> Mapping[str, Any]:
    """A place that a site is not on, and can be moved to no more."""
    async with node.changing():
        present = site_named(node, site)
        if name not in present.backends:
            known = ", ".join(sorted(present.backends))
            raise BadRequest(f"{site} has no backend {name!r}; it has: {known}")
        node.migrating.check_free(site)
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
    alone = {name: table}  # what is wrong with another site is no reason to refuse this one
    try:
        if name in node.settings.sites:
            site = compose(node.settings, alone)[name]
        else:
            adding = Adding(node.settings, node.sites.values(), alone)
            adding.add(name, table)
            site = adding.sites()[name]
    except config.ConfigError as problem:
        raise BadRequest(said(problem).replace(f"{SOURCE}: ", "")) from None
    await node.place([site])
    await node.registry.define(name, table)
    node.added[name] = table  # those of others may have come meanwhile
    node.define(site)
    return {"site": name, "generation": node.placements[name].generation}
