"""Commands about nodes: who they are, emptying one, and doing without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awesomeproxy import draining
from awesomeproxy.cluster.interface import MEMBERS, Member
from awesomeproxy.control.commands import changes, check_duration, progress_of, table
from awesomeproxy.control.migrating import move
from awesomeproxy.control.status import gathered, members, registry, replicas
from awesomeproxy.control.table import BadRequest, Call, CommandFailed
from awesomeproxy.migrate.plan import Plan
from awesomeproxy.model import Database, Ledger, Site
from awesomeproxy.node import Node

MOST_AT_ONCE = 64  # migrations


@table.command("node.list")
async def node_list(context: Node, call: Call) -> Mapping[str, Any]:
    """All nodes, and how it stands with the registry that they share."""
    return {
        "node": context.cluster.node,
        "nodes": members(context, await gathered(context)),
        "registry": registry(context),
        "replicas": await replicas(context),
        "trouble": context.cluster.trouble(),
    }


@changes("node.fence")
async def node_fence(
    context: Node, call: Call, node: str, force: bool = False
) -> Mapping[str, Any]:
    """Nobody waits for a node any more; whoever asks has made sure that it serves nothing."""
    member = _member(context, node)
    if node == context.cluster.node:
        raise CommandFailed(f"{node} is the node that you ask; stop its daemon, or ask another")
    if member.state not in MEMBERS:
        raise CommandFailed(f"{node} is {member.state} already; nothing waits for it")
    if member.state == "live" and not force:
        raise CommandFailed(
            f"{node} is alive: its last word came {member.silent:.1f} s ago; stop its daemon,"
            " or if you are sure that it serves nothing say --force"
        )
    fenced = await context.cluster.fence(node, "node fence")
    return {"node": fenced.name, "life": fenced.life, "state": fenced.state}


@changes("node.remove")
async def node_remove(context: Node, call: Call, node: str) -> Mapping[str, Any]:
    """A node that is none any more is forgotten."""
    member = _member(context, node)
    if member.state in MEMBERS:
        raise CommandFailed(f"{node} is {member.state}; stop it, or fence it")
    await context.cluster.remove(node)
    return {"node": node}


@changes("node.drain")
async def node_drain(
    context: Node,
    call: Call,
    node: str,
    to: str = "",
    at_once: int = 1,
    max_pause: float = 20.0,
    dry_run: bool = False,
) -> Mapping[str, Any]:
    """All that stands on a node moves away; answers when it has, or when one does not.

    ``problems`` says what has failed; what has moved until then stays where it is.
    """
    if not 1 <= at_once <= MOST_AT_ONCE:
        raise BadRequest(f"node.drain: at_once must be from 1 to {MOST_AT_ONCE}, not {at_once}")
    if to == node:
        raise BadRequest(f"{node} is what is to be emptied; name another node with --to")
    check_duration("node.drain: max_pause", max_pause)
    _check_known(context, node)
    try:
        drain = draining.plan(context.moves.world(), node, to)
    except draining.Undecided as undecided:
        raise CommandFailed(str(undecided)) from None
    total = len(drain.left)
    answer = {
        "node": node,
        "plan": [_line(plan) for plan in drain.plans],
        "moved": [],
        "left": drain.left,
        "problems": [],
    }
    if dry_run:
        return answer

    async def migrate(plan: Plan) -> Ledger:
        return await move(
            context,
            plan.main.name,
            plan.main.target,
            {},
            max_pause=max_pause,
            force=False,
            by=f"node drain {node}",
            progress=lambda plan: progress_of(
                context, call, plan.main.name, "node drain", along=plan.companions
            ),
        )

    def moved(plan: Plan, ledger: Ledger) -> None:
        done = total - len(drain.left)
        line = f"{plan.main.name}: {plan.main.source} -> {plan.main.target}"
        call.progress("moved", f"{line}  {ledger.pause:.2f} s  ({done} of {total})")

    await drain.run(migrate, at_once, moved)
    answer["moved"] = [_line(plan) | {"pause": ledger.pause} for plan, ledger in drain.moved]
    answer["left"] = drain.left
    if failed := drain.failed:
        answer["problems"] = [
            f"stopped at {failed.name}: {failed.reason}; {total - len(drain.left)} of {total}"
            f" have moved, {len(drain.left)} are on {node}"
        ]
    return answer


def _line(plan: Plan) -> dict[str, Any]:
    main = plan.main
    return {
        "name": main.name,
        "source": main.source,
        "target": main.target,
        "along": [member.name for member in plan.along if member.moves],
    }


def _member(context: Node, name: str) -> Member:
    members = {member.name: member for member in context.cluster.members()}
    if name not in members:
        raise BadRequest(f"there is no node {name!r}; there are: {', '.join(sorted(members))}")
    return members[name]


def _check_known(context: Node, node: str) -> None:
    """Whether anybody has heard of it: a word misspelt would be found empty."""
    members = {member.name for member in context.cluster.members()}
    defined: list[Site | Database] = [*context.sites.values(), *context.databases.values()]
    standing = {backend.node for each in defined for backend in each.backends.values()}
    known = (members | set(context.settings.nodes) | standing) - {""}
    if node not in known:
        raise BadRequest(f"there is no node {node!r}; there are: {', '.join(sorted(known))}")
