"""A reload: the configuration file is read again, and the node converges to it.

What may fail comes first, and then nothing has changed; all the rest happens in one turn of
the reactor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from twisted.internet.defer import Deferred

from awesomeproxy import config
from awesomeproxy.composing import compose, misplaced
from awesomeproxy.files import affordable
from awesomeproxy.model import DATABASE, FILESYSTEM, Database, Outcome, Settings, Site
from awesomeproxy.node import Node

TABLES = ("nodes", "filesystems", "databases")  # of named tables, but for sites
ELSEWHERE = frozenset((*TABLES, "sites", "listen", "hooks", "tls", "acme"))
_CALLED = {"max_held": "hold.max_requests", "max_held_bytes": "hold.max_bytes"}
# What only a restart changes, and what it is called in the file.
FIXED = {key: f"node.{key}" for key in ("name", "state_dir", "control", "access_log")}
FIXED["cluster"] = "cluster"


async def reload(node: Node) -> dict[str, list[str]]:
    """Read a node's configuration file again, and have the node converge to it.

    :return: the names of sites ``added``, ``changed`` and ``removed``; what
        :func:`differences` says; the files of ``certificates`` that are used from now on, or
        no more; under ``restart`` the keys that have changed and need one; and under
        ``warnings`` what is wrong with certificates.
    :raise ConfigError, RegistryError, OSError, CannotListenError, Stopping: it cannot be;
        nothing has changed.
    """
    async with node.changing():
        settings = unchanged_kept(node.settings, config.load(node.path))
        misfits: dict[str, str] = {}
        if node.cluster.alone:
            sites = compose(settings, node.added)
        else:
            sites, misfits = node.membership.following.fitting(settings)
        _check(node, sites, settings)
        await node.place(sites.values())
        await node.place_filesystems(settings.filesystems.values())
        await node.place(settings.databases.values())
        async with (
            node.certifying.reading(settings.tls) as take,
            node.metrics.at(settings.metrics) as move_metrics,
        ):
            node.plane.access_log.reopen()
            await node.plane.listen(settings.listen, settings.databases.values())
            move_metrics()
            before, node.misfits = node.misfits, misfits
            result, known = _take_over(node, settings, sites, take())
            for name in (before.keys() ^ misfits.keys()) & node.sites.keys():
                node.adopt(node.placements[name])
    await known
    return result


def _check(node: Node, sites: Mapping[str, Site], settings: Settings) -> None:
    """Whether there may be these sites and settings instead of the present ones."""
    present: list[Site | Database] = [*node.sites.values(), *node.databases.values()]
    wanted: list[Site | Database] = [*sites.values(), *settings.databases.values()]
    unserved = misplaced(present, node.placements)
    wrong = misplaced(wanted, node.placements)
    problems = [problem for name, problem in wrong.items() if name not in unserved]
    for table, before, after, prefix in (
        ("sites", node.sites, sites, ""),
        ("databases", node.databases, settings.databases, DATABASE),
        ("filesystems", node.settings.filesystems, settings.filesystems, FILESYSTEM),
    ):
        problems += [
            f"{table}.{name}: it is being migrated to {migration.target}; reload when that is done"
            for name, defined in before.items()
            if (migration := node.moves.of(prefix + name)) and after.get(name) != defined
        ]
    if problems:
        raise config.ConfigError(problems)


def _take_over(
    node: Node, settings: Settings, sites: Mapping[str, Site], certificates: list[str]
) -> tuple[dict[str, list[str]], Deferred[Outcome]]:
    """All at once; the Deferred fires when it is known what is mounted."""
    result: dict[str, list[str]] = {"added": [], "changed": [], "removed": []}
    result["certificates"] = certificates
    before = node.settings
    kept = {key: getattr(before, key) for key in FIXED}
    result["restart"] = [
        called for key, called in FIXED.items() if getattr(settings, key) != kept[key]
    ]
    node.settings = replace(settings, **kept)
    result |= differences(before, node.settings)
    if settings.max_connections != before.max_connections:
        node.plane.max_connections = affordable(settings.max_connections)
    known = node.residence.configure(settings.filesystems)
    node.keeper.configure(settings.acme)
    node.plane.contexts.forget()  # the files they were made of may have changed
    for name in [name for name in node.sites if name not in sites]:
        node.undefine(name)
        result["removed"].append(name)
    for name, site in sites.items():
        if name not in node.sites:
            result["added"].append(name)
        elif site != node.sites[name]:
            result["changed"].append(name)
        else:
            continue
        node.define(site)
    for name in [name for name in node.databases if name not in settings.databases]:
        node.undefine_database(name)
    for name, database in settings.databases.items():
        if database != node.databases.get(name):
            node.define_database(database)
    result["warnings"] = list(node.certifying.certificates.problems)
    node.plane.held.max_requests = settings.max_held
    node.plane.held.max_bytes = settings.max_held_bytes
    node.emit(event="reloaded", **result)
    return result, known


def unchanged_kept(before: Settings, after: Settings) -> Settings:
    """``after``, with what has not changed of the sites as it is in ``before``.

    What is equal need not be in memory twice.
    """
    kept = before.sites
    sites = {
        name: kept[name] if kept.get(name) == site else site for name, site in after.sites.items()
    }
    return replace(after, sites=sites)


def differences(before: Settings, after: Settings) -> dict[str, list[str]]:
    """What has changed between two states of a file.

    :return: endpoints of listeners, under ``opened``, ``closed`` and ``relistened``, whose
        other keys have changed; and under ``keys`` those that have changed in other tables.
    """
    old = {listen.endpoint: listen for listen in before.listen}
    new = {listen.endpoint: listen for listen in after.listen}
    return {
        "opened": [endpoint for endpoint in new if endpoint not in old],
        "closed": [endpoint for endpoint in old if endpoint not in new],
        "relistened": [
            endpoint for endpoint, listen in new.items() if old.get(endpoint, listen) != listen
        ],
        "keys": list(_keys(before, after)),
    }


def _keys(before: Settings, after: Settings) -> Iterator[str]:
    for name in (field.name for field in fields(Settings) if field.name not in ELSEWHERE):
        if getattr(before, name) != getattr(after, name):
            yield f"node.{_CALLED.get(name, name)}"
    if before.hooks != after.hooks:
        yield "hooks"
    for table in TABLES:
        old, new = getattr(before, table), getattr(after, table)
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) != new.get(name):
                yield f"{table}.{name}"
    for table in ("tls", "acme"):
        yield from _of_table(table, getattr(before, table), getattr(after, table))


def _of_table(table: str, old: Any, new: Any) -> Iterator[str]:
    if old is None or new is None:
        if old is not new:
            yield table
        return
    for field in fields(old):
        if getattr(old, field.name) != getattr(new, field.name):
            yield f"{table}.{field.name}"
