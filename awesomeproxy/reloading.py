"""What a reload has changed, beside the sites: in the words of the configuration file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from awesomeproxy.model import Settings

TABLES = ("nodes", "filesystems", "databases")  # of named tables, but for sites
ELSEWHERE = frozenset((*TABLES, "sites", "listen", "hooks", "tls", "acme"))
_CALLED = {"max_held": "hold.max_requests", "max_held_bytes": "hold.max_bytes"}


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
