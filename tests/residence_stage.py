"""A node with filesystems: it does what a test says, and its mount table is a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from carrying_stage import Broken
from stage_waiting import reactor
from twisted.internet.defer import Deferred, fail, succeed

from awesomeproxy.model import (
    DATABASE,
    FILESYSTEM,
    Backend,
    Database,
    DatabaseBackend,
    Filesystem,
    Mode,
    Placement,
    Reach,
    Server,
    Site,
)
from awesomeproxy.movers.shell import Shell
from awesomeproxy.registry.memory import MemoryRegistry
from awesomeproxy.residence import Residence


@dataclass(frozen=True)
class Path:
    """Where a filesystem is on one node."""

    path: str


def a_site(name: str, *nodes: str, filesystem: str = "data") -> Site:
    """A site with a backend ``on-NODE`` on each of ``nodes``."""
    backends = {f"on-{node}": Backend(f"on-{node}", (), node=node) for node in nodes}
    return Site(name, (f"{name}.test",), f"on-{nodes[0]}", backends, filesystem=filesystem)


def a_database(name: str, *nodes: str) -> Database:
    """The same, a database."""
    server = Server("tcp", "127.0.0.1", 1)
    backends = {f"on-{node}": DatabaseBackend(f"on-{node}", server, node=node) for node in nodes}
    return Database(name, "tcp:1", f"on-{nodes[0]}", backends, filesystem="data")


@dataclass
class Neighbours:
    """The other nodes, and how it stands with them."""

    states: dict[str, str] = field(default_factory=dict)

    def members(self) -> list[Any]:
        return [SimpleNamespace(name=name, state=state) for name, state in self.states.items()]


@dataclass
class House:
    """The node, as residence sees it."""

    table: str
    reactor: Any = reactor
    registry: Any = field(default_factory=lambda: Broken(MemoryRegistry()))
    cluster: Any = field(default_factory=Neighbours)
    sites: dict[str, Site] = field(default_factory=dict)
    databases: dict[str, Database] = field(default_factory=dict)
    placements: dict[str, Placement] = field(default_factory=dict)
    travelling: set[str] = field(default_factory=set)
    remote: set[str] = field(default_factory=set)  # nodes that are somewhere else
    ill: set[str] = field(default_factory=set)  # backends
    checks: list[str] = field(default_factory=list)
    asked: list[Deferred[None]] = field(default_factory=list)  # answers of the next checks
    events: list[dict[str, Any]] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    served: list[str] = field(default_factory=list)  # each time a site could be used

    def __post_init__(self) -> None:
        self.residence = Residence(self, self.table)

    async def add(self, *sites: Site) -> None:
        """Serve more sites."""
        for site in sites:
            first = await self.registry.place(Placement(site.name, site.backend), 0)
            self.placements[site.name] = first
            self.sites[site.name] = site

    async def add_database(self, database: Database) -> None:
        """Serve a database, too."""
        name = DATABASE + database.name
        first = await self.registry.place(Placement(name, database.backend), 0)
        self.placements[name] = first
        self.databases[database.name] = database

    async def begin(
        self,
        paths: Mapping[str, str],
        node: str,
        mode: Mode = Mode.OPEN,
        mount_point: bool = True,
    ) -> None:
        """Have a filesystem ``data`` recorded on ``node``, with a path on each of ``paths``."""
        first = await self.registry.place(Placement(FILESYSTEM + "data", node, mode), 0)
        self.placements[first.site] = first
        await self.residence.start({"data": self.filesystem(paths, mount_point)})
        self.residence.begin()

    def filesystem(self, paths: Mapping[str, str], mount_point: bool = True) -> Filesystem:
        """One called ``data``."""
        places = {node: Path(path) for node, path in paths.items()}
        return Filesystem("data", "scripted", next(iter(paths)), places, None, mount_point)

    def placement(self, name: str) -> Placement:
        return self.placements[name]

    def adopt(self, placement: Placement) -> None:
        if self.placements[placement.site].generation > placement.generation:
            return
        self.placements[placement.site] = placement
        if placement.site.startswith(FILESYSTEM):
            self.residence.placed(placement.site.removeprefix(FILESYSTEM))
        elif not self.absent(placement.site):
            self.served.append(f"{placement.site} {placement.backend}")

    def absent(self, name: str) -> str:
        """Why a site or a database cannot be served."""
        known: dict[str, Any] = {**self.sites}
        known |= {DATABASE + database.name: database for database in self.databases.values()}
        return self.residence.absent(known[name], self.placements[name])

    def where(self, filesystem: str = "data") -> str:
        """Where it is recorded."""
        found = self.placements[FILESYSTEM + filesystem]
        return f"{found.mode} {found.backend}"

    def check(self, site: str, backend: str) -> Deferred[None]:
        self.checks.append(f"{site} {backend}")
        if self.asked:
            return self.asked.pop(0)
        return fail(ValueError(f"{backend} is ill")) if backend in self.ill else succeed(None)

    def moving(self, name: str) -> bool:
        return name in self.travelling

    def lost(self, filesystem: str, node: str, why: str) -> None:
        self.losses.append(f"{filesystem} {node}: {why}")

    def shell(self, node: str) -> Shell:
        return Shell(reactor, Reach(node, "nowhere" if node in self.remote else ""))

    def emit(self, **event: Any) -> None:
        self.events.append(event)
