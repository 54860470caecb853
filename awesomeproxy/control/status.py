"""``status``: this node, the others, and how it stands with every site on all of them.

Each node tells what there is to tell of its own, which of a site that is open and at rest is
what it has counted, or where there are very many sites nothing; here that is added up.  A node
that says nothing for a second is named as silent, and its requests are in no sum.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from awesomeproxy import __version__, company
from awesomeproxy.answering import plain
from awesomeproxy.checking import unverified
from awesomeproxy.cluster.interface import MEMBERS
from awesomeproxy.control.commands import site_named, table
from awesomeproxy.control.table import Call
from awesomeproxy.model import DATABASE, Counters
from awesomeproxy.node import Node
from awesomeproxy.registry.interface import RegistryError

if TYPE_CHECKING:  # a node by itself need not have what Redis takes
    from awesomeproxy.registry.redis import RedisRegistry

ANSWER_TIME = 1.0  # seconds that other nodes have to say how it stands with them
# Sites and databases of which all nodes tell what they have counted: with 300 nodes these are
# some 12 MB, which come through Redis and take half a second to be added up.
COUNTED = 1_000
EXPIRES_SOON = 14 * 86_400.0  # seconds before its end, for which a certificate is warned of

Answers = Mapping[str, Mapping[str, Any]]  # by node: as :meth:`.Answering.status` says

_SUMS = ("in_flight", "held", "held_bytes", "tunnels", "connections")
_ROW = ("state", "generation", *_SUMS, "trouble")
# The more urgent comes first: what one node says is what the site's state is.
_STATES = ("refusing", "unreachable", "draining", "holding", "releasing", "open")


async def gathered(
    node: Node, names: Sequence[str] | None = None, *, counts: bool = False
) -> Answers:
    """What all nodes say that answer in time.

    :param names: what they are asked about; None: all that is not at rest.
    :param counts: what the others have counted is asked for, too; this node tells in any case.
    """
    own = node.answering.status(names, counts=True)
    if node.cluster.alone:
        return {node.cluster.node: own}
    params = {"names": names, "counts": counts}
    return {**await node.cluster.ask("status", params, ANSWER_TIME), node.cluster.node: own}


@table.command("status")
async def status(node: Node, call: Call, site: str | None = None) -> Mapping[str, Any]:
    """This node, the others, and the sites on all of them."""
    names = sorted(node.sites) if site is None else [site_named(node, site).name]
    databases = sorted(node.databases)
    asked = None if site is None else [site, *(DATABASE + name for name in databases)]
    everywhere = asked is not None or len(names) + len(databases) <= COUNTED
    answers = await gathered(node, asked, counts=everywhere)
    plane = node.plane
    return {
        "node": {
            "name": node.settings.name,
            "version": __version__,
            "pid": os.getpid(),
            "uptime": round(time.time() - node.began, 3),
            "connections": len(plane.clients),
            "max_connections": plane.max_connections,
            "listen": [listen.endpoint for listen in node.settings.listen],
            "held": plane.held.requests,
            "handshakes": {"done": plane.handshakes, "failed": plane.handshakes_failed},
            "bad_headers": plane.bad_headers.count,
            "registry": registry(node),
            "certificates": _certificates(node),
        },
        "cluster": None if node.cluster.alone else await cluster(node, answers),
        "counted": "everywhere" if everywhere or node.cluster.alone else "here",
        "sites": [_site_status(node, name, answers) for name in names if name in node.sites],
        "databases": [
            _database_status(node, name, answers) for name in databases if name in node.databases
        ],
        "filesystems": node.residence.status(),
    }


def registry(node: Node) -> str:
    """Where the records are, in words."""
    if node.cluster.alone:
        return f"embedded, in {node.settings.state_dir}"
    shared: RedisRegistry = node.registry  # type: ignore[assignment]
    where = shared.link.where.removeprefix("the registry at ")
    return f"Redis at {where}, epoch {shared.link.epoch}, version {shared.view.version}"


async def replicas(node: Node) -> dict[str, int | None] | None:
    """How many replicas of the registry must have what is to be kept, and how many have it; if
    none must, how many are there.  None where there can be none."""
    if node.settings.cluster is None:
        return None
    shared: RedisRegistry = node.registry  # type: ignore[assignment]
    there: int | None = shared.link.copies
    if not (needed := node.settings.cluster.replicas):
        try:
            there = await shared.link.replicas()
        except RegistryError:
            there = None
    return {"needed": needed, "there": there}


def _counters(node: Node) -> dict[str, float]:
    """What has become of this node's connection to the registry, since it was started."""
    shared: RedisRegistry = node.registry  # type: ignore[assignment]
    link = shared.link
    return {"lost": round(link.lost, 3), **link.counters, **shared.counters}


async def cluster(node: Node, answers: Answers) -> dict[str, Any]:
    """The nodes, and whether they can agree on anything."""
    return {
        "nodes": members(node, answers),
        "counters": _counters(node),
        "replicas": await replicas(node),
        "trouble": node.cluster.trouble(),
        "silent": [
            member.name
            for member in node.cluster.members()
            if member.state in MEMBERS and member.name not in answers
        ],
    }


def members(node: Node, answers: Answers) -> list[dict[str, Any]]:
    """All nodes with what they have told; null where they have not."""
    return [
        {**asdict(member), **_load(answers.get(member.name))} for member in node.cluster.members()
    ]


def _load(told: Mapping[str, Any] | None) -> dict[str, Any]:
    if told is None:
        return dict.fromkeys(("connections", "held", "in_flight"))
    in_flight = sum(row["in_flight"] for row in told["sites"].values())
    return {"connections": told["connections"], "held": told["held"], "in_flight": in_flight}


def _certificates(node: Node) -> dict[str, Any]:
    certificates = node.certifying.certificates
    expiring = certificates.expiring(time.time(), EXPIRES_SOON)
    renewed = node.keeper.renewed()  # even those that live for a week only are no news then
    return {
        "count": len(certificates),
        "problems": list(certificates.problems),
        "expiring": [one for one in expiring if one["source"] not in renewed],
    }


def _site_status(node: Node, name: str, answers: Answers) -> dict[str, Any]:
    site = node.sites[name]
    placement = node.placements[name]
    observed = node.observed(name)
    certificate = node.keeper.status(name)
    return {
        "name": name,
        "hosts": list(site.hosts),
        "path": site.path,
        "backend": placement.backend,
        "mode": placement.mode.value,
        "generation": placement.generation,
        "by": placement.by,
        "expires": placement.expires,
        **_summed(node, name, answers),
        "warnings": list(unverified(site)),
        "backends": {backend: dict(servers) for backend, servers in observed.servers.items()},
        "migration": _migration(node, name),
        "acme": certificate and certificate.as_json(),
    }


def _database_status(node: Node, name: str, answers: Answers) -> dict[str, Any]:
    database = node.databases[name]
    placed = DATABASE + name
    placement = node.placements[placed]
    summed = _summed(node, placed, answers)
    return {
        "name": name,
        "endpoint": database.endpoint,
        "protocol": database.protocol,
        "backend": placement.backend,
        "server": database.backends[placement.backend].server.url
        if placement.backend in database.backends
        else "",
        "mode": placement.mode.value,
        "generation": placement.generation,
        "by": placement.by,
        "connections": summed["in_flight"],
        **{key: summed[key] for key in ("state", "held", "trouble", "counters", "nodes")},
        "sites": company.users(node, placed),
        "migration": _migration(node, placed),
    }


def _migration(node: Node, name: str) -> dict[str, str] | None:
    """The migration that has to do with it; with the ``node``, if another carries it out."""
    if (own := node.moves.of(name)) is not None:
        return {"target": own.target, "step": own.step}
    if (entry := node.migrating.entry_of(name)) is not None:
        return {"target": entry.target, "step": entry.step, "node": entry.owner}
    return None


def _summed(node: Node, name: str, answers: Answers) -> dict[str, Any]:
    """How it stands with a site on all nodes; ``nodes`` has what each has told."""
    rows = {other: row for other, told in answers.items() if (row := told["sites"].get(name))}
    rows[node.cluster.node] = plain(node.observed(name))
    states = [row["state"] for row in rows.values()]
    troubles = dict.fromkeys(row["trouble"] for row in rows.values() if row["trouble"])
    counts = [told["counts"][name] for told in answers.values() if name in told["counts"]]
    return {
        "state": min(states, key=_STATES.index),
        **{key: sum(row[key] for row in rows.values()) for key in _SUMS},
        "trouble": "; ".join(troubles),
        "counters": asdict(Counters.summed(counts)),
        "nodes": {other: {key: row[key] for key in _ROW} for other, row in rows.items()},
    }
