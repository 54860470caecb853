"""Which sites there are: the file's, those added by command, and both put together.

The configuration file comes first.  A command can add a site that the file does not have,
and backends to any site; the registry remembers these as tables with the file's keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from awesomeproxy import config, consistency
from awesomeproxy.model import DATABASE, Backend, Database, Placement, Settings, Site

SOURCE = "added by command"  # what errors call the tables that are not in the file


def compose(settings: Settings, added: Mapping[str, Mapping[str, Any]]) -> dict[str, Site]:
    """All sites, by name.

    :param added: the tables of what was added by command: whole sites, which have
        ``hosts``, and such as have nothing but ``backends``, for a site of the file.
    :raise ConfigError: a table is wrong, two sites claim the same, one wants certificates
        that nobody issues, uses a database that is not there, or is nowhere.
    """
    sites = dict(settings.sites)
    for name, table in added.items():
        if name in settings.sites:
            # The file's backends win, as the file's site does.
            backends = {**_backends(table), **sites[name].backends}
            sites[name] = replace(sites[name], backends=backends)
        elif "hosts" in table:
            sites[name] = config.site_from_table(name, table, SOURCE)
    problems: list[str] = []
    claims = consistency.Claims(sites.values())
    for name in added:
        if name in sites and name not in settings.sites:
            problems += claims.overlaps(sites[name])
            if text := consistency.unissued(sites[name], settings):
                problems.append(f"sites.{name}.tls.acme: {text}")
            problems += [
                f"sites.{name}.uses[{index}]: {text}"
                for index, text in consistency.unknown_databases(sites[name], settings)
            ]
        if name in sites:
            problems += [
                f"sites.{name}.{'.'.join(keys)}: {text}"
                for keys, text in consistency.homeless(sites[name], settings)
            ]
    if problems:
        raise config.ConfigError(problems)
    return sites


def _backends(table: Mapping[str, Any]) -> dict[str, Backend]:
    return {
        name: config.backend_from_table(name, backend, SOURCE)
        for name, backend in table.get("backends", {}).items()
    }


def misplaced(
    defined: Iterable[Site | Database], placements: Mapping[str, Placement]
) -> dict[str, str]:
    """What is placed on a backend it does not have, and what to do about it.

    The keys are as the placements are called.
    """
    problems = {}
    for each in defined:
        kind = "database" if isinstance(each, Database) else "site"
        name = DATABASE + each.name if kind == "database" else each.name
        if name in placements and placements[name].backend not in each.backends:
            problems[name] = (
                f"{kind}s.{each.name}.backends: {placements[name].backend!r} is missing, and the"
                f" {kind} is placed there; add it, or migrate the {kind} to another backend first"
            )
    return problems
