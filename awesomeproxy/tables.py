"""Definitions the other way round: a :class:`~awesomeproxy.model.Site` as a table.

The table has the configuration file's keys and reads back to the same site.  What is at
its default is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from awesomeproxy.model import Backend, HealthCheck, Server, Site

HIDDEN = "hidden"  # shown for a secret; too short to be one, should it come back


def table_of(site: Site) -> dict[str, Any]:
    """The definition of ``site`` as JSON values; its bypass's secret is not shown."""
    table: dict[str, Any] = _table(site)
    if "secret" in table.get("bypass", {}):
        table["bypass"]["secret"] = HIDDEN
    return table


def _table(value: Any) -> dict[str, Any]:
    table = {}
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if field.name == "name" and isinstance(value, Site | Backend):
            continue  # it is the key of the table
        is_check = isinstance(value, HealthCheck)
        # A check with nothing but defaults is still a check, which no table would not be.
        if found == field.default and not (is_check and field.name == "path"):
            continue
        if is_check and field.name == "status":
            table[field.name] = f"{found[0]}-{found[1]}"
        else:
            table[field.name] = _plain(found)
    return table


def _plain(value: Any) -> Any:
    if isinstance(value, Server | IPv4Network | IPv6Network):
        return str(value)
    if dataclasses.is_dataclass(value):
        return _table(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
