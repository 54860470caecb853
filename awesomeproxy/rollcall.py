"""Who has drained what is held, of those that have to be waited for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from awesomeproxy.cluster.interface import ICluster, Member, Roll
from awesomeproxy.model import Placement

LOOK_EVERY = 1.0  # seconds between roll-calls, if nothing is heard of those that are missing
ADVICE = "(wait longer with --timeout, or cut them with --force)"
ANSWER_IN = 1.0  # seconds that nodes have to say what they wait for


async def call(cluster: ICluster, held: Sequence[Placement]) -> Roll:
    """Ask who has drained these placements, and wait for nobody whose lease is over.

    :raise Conflict: one of them was changed since.
    :raise Unreachable: it cannot be known now.
    """
    while True:
        roll: Roll = await cluster.roll(held)
        missing = {node for _, node in roll.missing}
        gone = [each.name for each in cluster.members() if each.state == "gone"]
        expired = [await cluster.expire(node) for node in gone if node in missing]
        if not any(expired):
            return roll


def patience(cluster: ICluster, left: float) -> float:
    """How many seconds to wait for news of those that are missing before the next call.

    :param left: seconds until it is too late.
    """
    return left if cluster.alone else min(left, LOOK_EVERY)


async def missing(cluster: ICluster, roll: Roll) -> str:
    """For people: who has not drained yet, and why."""
    if not roll.missing:
        return cluster.trouble() or "too few replicas of the registry had it"
    nodes = sorted({node for _, node in roll.missing})
    names = sorted({name for name, _ in roll.missing})
    members = {each.name: each for each in cluster.members()}
    there = [node for node in nodes if node not in members or members[node].state != "gone"]
    seen = await cluster.ask("observed", {"names": names}, ANSWER_IN, there) if there else {}
    texts = [_why(node, members.get(node), seen.get(node)) for node in nodes]
    if cluster.alone:
        return f"there were still {_load(seen[cluster.node])} {ADVICE}"
    return " and ".join(texts) + (f" {ADVICE}" if seen else "")


def _why(node: str, member: Member | None, seen: Sequence[Mapping[str, Any]] | None) -> str:
    if seen:
        return f"{node} still had {_load(seen)}"
    if member is None or member.state == "live":
        return f"{node} had not said that it has drained"
    return f"there was no word from {node}, {member.silence}"


def _load(seen: Sequence[Mapping[str, Any]]) -> str:
    requests, tunnels, connections = (
        sum(each[key] for each in seen) for key in ("in_flight", "tunnels", "connections")
    )
    return (
        f"{requests} requests in flight, {tunnels} upgraded connections and"
        f" {connections} connections to servers"
    )
