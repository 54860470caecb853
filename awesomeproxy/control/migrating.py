"""Commands about migrations: moving, what that would be, calling it off, and what there was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from awesomeproxy.control.commands import (
    changes,
    check_duration,
    definition_of,
    progress_of,
    table,
    winner_of,
)
from awesomeproxy.control.table import BadRequest, Call, CommandFailed
from awesomeproxy.migrate import planning, steps
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.migrate.planning import Unmovable, read
from awesomeproxy.migrate.waiting import LeftUnfinished, RolledBack
from awesomeproxy.migrating import InTheWay, NotMigrating
from awesomeproxy.model import Ledger
from awesomeproxy.movers.interface import Estimate, MoverError
from awesomeproxy.movers.shell import ShellError
from awesomeproxy.node import Node
from awesomeproxy.proxy.health import Unwell

HISTORY = 100  # migrations in which one is looked for that was like one that is planned


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
    check_duration("migrate: max_pause", max_pause)
    if dry_run:
        return await _foreseen(node, planned(node, site, to, databases or {}), max_pause)
    ledger = await move(
        node,
        site,
        to,
        databases or {},
        max_pause=max_pause,
        force=force,
        by=f"migrate to {to}",
        progress=lambda plan: progress_of(node, call, site, "migrate", along=plan.companions),
    )
    return ledger.as_json()


async def move(
    node: Node,
    site: str,
    to: str,
    databases: Mapping[str, str],
    *,
    max_pause: float,
    force: bool,
    by: str,
    progress: Callable[[Plan], Callable[..., None]],
) -> Ledger:
    """Carry out one migration; :class:`CommandFailed` if it was rolled back.

    :param progress: what tells how far the migration of a plan is.
    """
    plan = planned(node, site, to, databases)
    try:
        return await node.migrating.migrate(
            site,
            to,
            databases=databases,
            max_pause=max_pause,
            force=force,
            by=by,
            progress=progress(plan),
        )
    except Unmovable as problem:
        raise CommandFailed(str(problem)) from None
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


def planned(node: Node, site: str, to: str, databases: Mapping[str, str]) -> Plan:
    """What a migration would move and hold."""
    definition = definition_of(node, site)
    if to not in definition.backends:
        known = ", ".join(sorted(definition.backends))
        raise BadRequest(f"{site} has no backend {to!r}; it has: {known}")
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
            node.migrating.check_idle(member.name)
        carrying = node.moves.loader(plan) is not None
        if not main.moves:  # and if it is held, not a byte goes there
            problems.append(f"{main.name} is on {main.target} already")
        elif carrying:
            estimate = await node.moves.foresee(plan)
        else:
            await node.check(main.name, main.target)
    except (InTheWay, Unmovable, MoverError, ShellError, Unwell) as problem:
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
    try:
        target = await node.migrating.stop(site, "it was aborted")
    except NotMigrating as problem:
        definition_of(node, site)
        raise CommandFailed(str(problem), winner_of(node.placements[site])) from None
    return {
        "site": site,
        "was": f"the migration to {target}",
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
