"""Many sites defined at once: all of them, or none if one is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from twisted.internet.task import deferLater

from awesomeproxy import config
from awesomeproxy.composing import Adding, misplaced
from awesomeproxy.migrating import Migrating
from awesomeproxy.model import Database, Placement, Settings, Site
from awesomeproxy.registry.interface import IRegistry
from awesomeproxy.together import together

AT_ONCE = 100  # are read in one turn of the reactor, and asked of the registry in a row


class Host(Protocol):
    """What is asked of the node."""

    reactor: Any
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
        new: dict[str, dict[str, Any]] = {}
        async for some in _batches(host, list(tables)):
            new |= {each: tables[each] for each in some if host.added.get(each) != tables[each]}
        adding = Adding(host.settings, host.sites.values(), new)
        async for some in _batches(host, list(new)):
            for name in some:
                adding.add(name, new[name])
        sites = adding.sites()
        wrong = misplaced(sites.values(), host.placements)
        if wrong:
            raise config.ConfigError(list(wrong.values()))
        result: dict[str, list[str]] = {"added": [], "changed": [], "unchanged": []}
        for name in tables:
            known = "changed" if name in host.sites else "added"
            result[known if name in new else "unchanged"].append(name)
        for name in result["changed"]:
            host.migrating.check_free(name)
        async for some in _batches(host, list(new)):
            await host.place([sites[name] for name in some])
            await together([host.registry.define(name, new[name]) for name in some], whole=True)
            for name in some:
                site = sites.pop(name)
                if host.added.get(name) != new[name] or host.sites.get(name) != site:
                    host.added[name] = new[name]
                    host.define(site)  # or, in a cluster, it has been heard of by now
    return result


async def _batches(host: Host, names: Sequence[str]) -> AsyncIterator[Sequence[str]]:
    """All of them, some at a time; in between, requests have their turn."""
    for start in range(0, len(names), AT_ONCE):
        yield names[start : start + AT_ONCE]
        await deferLater(host.reactor, 0)
