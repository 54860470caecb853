"""Which sites there are: the file's, those added by command, and both put together.

The configuration file comes first.  A command can add a site that the file does not have,
and backends to any site; the registry remembers these as tables with the file's keys.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
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
            problems += _misfits(sites[name], settings)
        if name in sites:
            problems += _homeless(sites[name], settings)
    if problems:
        raise config.ConfigError(problems)
    return sites


class Adding:
    """Sites that are to be added, or to be instead of others of their names."""

    def __init__(self, settings: Settings, present: Iterable[Site], names: Container[str]) -> None:
        """
        :param present: all that there are now.
        :param names: of all that are going to be added.
        """
        self._settings = settings
        self._claims = consistency.Claims(site for site in present if site.name not in names)
        self._problems: list[str] = []
        self._sites: dict[str, Site] = {}

    def add(self, name: str, table: Mapping[str, Any]) -> None:
        """One more; what is wrong with it is told in the end."""
        try:
            site = self._sites[name] = config.site_from_table(name, table, SOURCE)
        except config.ConfigError as problem:
            self._problems += problem.problems
            return
        self._problems += self._claims.overlaps(site)
        self._problems += (*_misfits(site, self._settings), *_homeless(site, self._settings))
        self._claims.add(site)

    def sites(self) -> dict[str, Site]:
        """All of them.

        :raise ConfigError: a table is wrong, or does not fit the node or the other sites.
        """
        if self._problems:
            raise config.ConfigError(self._problems)
        return self._sites


def fitting(settings: Settings, name: str, table: Mapping[str, Any]) -> tuple[Site, str]:
    """A site that another node has added, and why it does not fit this one; empty: it does.

    That it claims nothing which another site has, that node has seen to.

    :raise ConfigError: the table is wrong.
    """
    site = config.site_from_table(name, table, SOURCE)
    return site, "; ".join((*_misfits(site, settings), *_homeless(site, settings)))


def _misfits(site: Site, settings: Settings) -> Iterator[str]:
    if text := consistency.unissued(site, settings):
        yield f"sites.{site.name}.tls.acme: {text}"
    for index, text in consistency.unknown_databases(site, settings):
        yield f"sites.{site.name}.uses[{index}]: {text}"


def _homeless(site: Site, settings: Settings) -> Iterator[str]:
    for keys, text in consistency.homeless(site, settings):
        yield f"sites.{site.name}.{'.'.join(keys)}: {text}"


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
