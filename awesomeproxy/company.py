"""A database is held together with the sites that use it, and goes on before they do.

Sites come first when it is held: a request in flight may need one more connection.  A
PgBouncer in front of it waits between the two.  Those sites that were held for the
database's sake go on with it; one that was paused for itself stays so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.logger import Logger

from awesomeproxy.model import DATABASE, Database, Mode, Placement, Receipt, Site
from awesomeproxy.pausing import Pauses, Then
from awesomeproxy.poolers import Poolers

log = Logger()


class Host(Protocol):
    """What is asked of the node."""

    sites: dict[str, Site]
    databases: dict[str, Database]
    pauses: Pauses
    poolers: Poolers

    def placement(self, name: str) -> Placement:
        """Where something is placed."""


def users(host: Host, name: str) -> list[str]:
    """The sites that use the database which is placed as ``name``."""
    database = name.removeprefix(DATABASE)
    return [site.name for site in host.sites.values() if database in site.uses]


async def pause(
    host: Host,
    name: str,
    *,
    timeout: float | None,
    force: bool,
    expires: float | None,
    then: Then,
    progress: Callable[..., None],
) -> Receipt:
    """Hold a database and the sites that use it; see :meth:`Pauses.pause`.

    :param timeout: seconds for each of them; None: what its own ``drain.time`` says.
    """
    by = _by(name)

    async def hold(held: str, patience: float, who: str) -> Receipt:
        return await host.pauses.pause(
            held,
            by=who,
            timeout=patience if timeout is None else timeout,
            force=force,
            expires=expires,
            then=then,
            progress=progress,
        )

    database = host.databases[name.removeprefix(DATABASE)]
    held: list[str] = []
    try:
        for site in users(host, name):
            if host.placement(site).mode is Mode.OPEN:
                held.append(site)
                progress("hold", f"hold {site}, which uses it")
                await hold(site, host.sites[site].drain.time, by)
        await host.poolers.quieten(name)
        return await hold(name, database.drain.time, "pause")
    except BaseException:
        await _let_go(host, name, held)
        raise


async def resume(host: Host, name: str) -> Placement:
    """Let a database go on, and the sites that were held for its sake.

    :raise RegistryError: that could not be recorded.
    """
    placement = await host.pauses.resume(name, "resume")
    await _let_go(host, name, users(host, name))
    return placement


async def _let_go(host: Host, name: str, sites: list[str]) -> None:
    try:
        await host.poolers.wake(name)
    except Exception as problem:
        log.error("{name}: {why}", name=name, why=problem)
    for site in sites:
        if host.placement(site).by == _by(name):
            await host.pauses.resume(site, f"resume of {name}")


def _by(name: str) -> str:
    return f"pause of {name}"
