"""Many sites defined at once: all of them, or none if one is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from twisted.internet.defer import gatherResults

from awesomeproxy import config
from awesomeproxy.composing import adding, misplaced
from awesomeproxy.migrating import Migrating
from awesomeproxy.model import Database, Placement, Settings, Site
from awesomeproxy.registry.interface import IRegistry

AT_ONCE = 100  # that are asked of the registry before the first has been answered


class Host(Protocol):
    """What is asked of the node."""

    registry: IRegistry
    settings: Settings
    sites: dict[str, Site]
    added: MutableMapping[str, dict[str, Any]]
    placements: dict[str, Placement]
    migrating: Migrating

    def changing(self) -> AbstractAsyncContextManager[None]:
        """Have nobody else change what is defined."""

    async def place(self, defined: Iterable[Site | Database]) -> None:
        """Place those that are new."""

    def define(self, site: Site) -> None:
        """Serve it."""


async def define_all(host: Host, tables: Mapping[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Define each site that is new or differs.

    :param tables: as in the configuration file, by the name of the site.
    :return: the names that were ``added``, ``changed`` and ``unchanged``.
    :raise ConfigError, InTheWay: nothing was changed.
    :raise RegistryError: some may be defined, and others not; it can be asked for again.
    :raise Stopping: this daemon changes nothing any more.
    """
    async with host.changing():
        problems = [
            f"sites.{name}: is in the configuration file; change it there and reload"
            for name in tables
            if name in host.settings.sites
        ]
        if problems:
            raise config.ConfigError(problems)
        new = {name: table for name, table in tables.items() if host.added.get(name) != table}
        sites = adding(host.settings, host.sites.values(), new)
        wrong = misplaced([sites[name] for name in new], host.placements)
        if wrong:
            raise config.ConfigError(list(wrong.values()))
        result: dict[str, list[str]] = {"added": [], "changed": [], "unchanged": []}
        for name in tables:
            known = "changed" if name in host.sites else "added"
            result[known if name in new else "unchanged"].append(name)
        for name in result["changed"]:
            host.migrating.check_free(name)
        await host.place(sites[name] for name in new)
        names = list(new)
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            await gatherResults(
                [host.registry.define(name, new[name]) for name in some], consumeErrors=True
            )
            for name in some:
                host.added[name] = new[name]
                host.define(sites[name])
    return result
