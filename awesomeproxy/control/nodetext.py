"""What there is to show of nodes; as :mod:`awesomeproxy.control.render`, of which it is a part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awesomeproxy.control.text import Style, clean, duration, table

Json = Mapping[str, Any]

_NODES = (
    "NODE",
    "STATE",
    "LAST BEAT",
    "ON LOSS",
    "CONNECTIONS",
    "HELD",
    "IN FLIGHT",
    "VERSION",
    "REMARK",
)
_ON_EACH = ("NODE", "STATE", "GEN", "IN FLIGHT", "HELD", "TUNNELS", "TROUBLE")
_MEMBERS = ("live", "late", "gone")
_NUMBERS = ("LAST BEAT", "CONNECTIONS", "HELD", "IN FLIGHT")


def listing(result: Json, style: Style) -> str:
    """Every node with its state and load, and the registry."""
    me = result["node"]
    rows = [_node(node, me) for node in result["nodes"]]
    lines = [
        table(_NODES, rows, style, right=_NUMBERS, states=["STATE"]),
        clean(", ".join([f"registry: {result['registry']}", *_replicas(result)])),
    ]
    return "\n".join(lines + _trouble(result, style))


def _replicas(result: Json) -> list[str]:
    """How many replicas the registry has; nothing, if that is not known."""
    replicas = result["replicas"]
    if replicas is None or replicas["there"] is None:
        return []
    there, needed = replicas["there"], replicas["needed"]
    if needed:
        return [f"{there} of {needed} replicas"]
    return [f"{there} replicas" if there > 1 else f"{there or 'no'} replica"]


def _node(node: Json, me: str) -> list[object]:
    name, state = node["name"], node["state"]
    is_member = state in _MEMBERS
    load = ["-" if node[key] is None else node[key] for key in ("connections", "held", "in_flight")]
    remark = ""
    if state == "gone":
        remark = f"pauses wait for it; if it is off: awesomeproxy node fence {name}"
    elif is_member and node["connections"] is None:
        remark = "does not answer"
    beat = duration(node["silent"]) if is_member else "-"
    return [
        *(f"{name}*" if name == me else name, state, beat, node["loss"]),
        *load,
        *(node["version"], remark),
    ]


def summary(cluster: Json, style: Style) -> list[str]:
    """The line of ``status`` about the other nodes, and what is the matter with them."""
    nodes = cluster["nodes"]
    counts = [
        (state, [node["name"] for node in nodes if node["state"] == state]) for state in _MEMBERS
    ]
    told = [f"{len(names)} {state}" for state, names in counts if names]
    registry = [f"the registry has {count}" for count in _replicas(cluster)]
    lines = [clean("; ".join([f"cluster: {', '.join(told) or 'no nodes'}", *registry]))]
    lines += [
        style.paint(clean(f"{name} is {state}: pauses wait for it"), "red")
        for state, names in counts
        if state == "gone"
        for name in names
    ]
    silent = [name for name in cluster["silent"] if name not in dict(counts)["gone"]]
    if silent:
        lines.append(
            style.paint(clean(f"no answer from {', '.join(silent)}: not in the sums"), "yellow")
        )
    return lines + _trouble(cluster, style)


def _trouble(result: Json, style: Style) -> list[str]:
    trouble = result["trouble"]
    return [style.paint(clean(f"no pause can complete: {trouble}"), "red")] if trouble else []


def on_each(nodes: Json, style: Style) -> str:
    """How it stands with a site on each node that tells."""
    keys = ("state", "generation", "in_flight", "held", "tunnels", "trouble")
    rows = [[name, *(row[key] for key in keys)] for name, row in sorted(nodes.items())]
    right = ("GEN", "IN FLIGHT", "HELD", "TUNNELS")
    return table(_ON_EACH, rows, style, right=right, states=["STATE"])


def drained(result: Json, style: Style) -> str:
    """What has moved away from a node, or would, and what has not."""
    total = len(result["left"]) + sum(1 + len(_served(each)) for each in result["moved"])
    if not result["plan"]:
        return clean(f"{result['node']}: nothing that is served stands there")
    if not result["moved"] and not result["problems"]:
        lines = [_move(each) for each in result["plan"]]
        return "\n".join([*lines, f"{total} would be moved; nothing was done: this was a dry run"])
    lines = [f"{_move(each)}  {duration(each['pause'])}" for each in result["moved"]]
    if problems := result["problems"]:
        return "\n".join([*lines, *(style.paint(clean(each), "red") for each in problems)])
    return "\n".join([*lines, clean(f"{result['node']}: {total} moved; nothing is left there")])


def _move(each: Json) -> str:
    along = f", with {', '.join(each['along'])}" if each["along"] else ""
    return clean(f"{each['name']}: {each['source']} -> {each['target']}{along}")


def _served(each: Json) -> list[str]:
    return [name for name in each["along"] if not name.startswith("filesystem:")]


def fenced(result: Json, style: Style) -> str:
    """That nothing waits for a node any more."""
    return clean(f"{result['node']} is {result['state']}: nothing waits for it any more")


def removed(result: Json, style: Style) -> str:
    """That a node is known no more."""
    return clean(f"{result['node']} is forgotten")
