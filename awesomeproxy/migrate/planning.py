"""Which plan a migration has, from what is configured and where everything is now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from awesomeproxy.migrate.plan import Member, Plan
from awesomeproxy.model import DATABASE, FILESYSTEM, Database, Filesystem, Mode, Placement, Site
from awesomeproxy.registry.interface import Entry


class Unmovable(Exception):
    """It cannot be moved like that; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class World:
    """All definitions, and where everything is."""

    sites: Mapping[str, Site]
    databases: Mapping[str, Database]
    filesystems: Mapping[str, Filesystem]
    placements: Mapping[str, Placement]

    def definition(self, name: str) -> Any:
        """The site or database that is placed as ``name``; None if there is none."""
        if name.startswith(DATABASE):
            return self.databases.get(name.removeprefix(DATABASE))
        return self.sites.get(name)


@dataclass
class _Making:
    world: World
    chosen: Mapping[str, str]  # where those go that were asked for
    members: dict[str, Member] = field(default_factory=dict)

    def move(self, name: str, target: str) -> None:
        """``name``, a site or a database, goes to ``target``, with all that this entails."""
        if name in self.members and self.members[name].moves:
            if self.members[name].target != target:
                raise Unmovable(
                    f"{name} would go to {self.members[name].target} and to {target}; "
                    "name one of them"
                )
            return
        definition = self.world.definition(name)
        if definition is None:
            raise Unmovable(f"there is no {name}; name one that is configured")
        if target not in definition.backends:
            known = ", ".join(sorted(definition.backends))
            raise Unmovable(f"{name} has no backend {target!r}; it has: {known}")
        source = self.world.placements[name].backend
        self.members[name] = Member(name, source, target)
        if name.startswith(DATABASE):
            for site in self.world.sites.values():
                if name.removeprefix(DATABASE) in site.uses:
                    self.hold(site.name)
        if not definition.filesystem:
            return
        if source not in definition.backends:
            raise Unmovable(
                f"{name} is placed on {source}, which is not defined; its data cannot be found"
            )
        here, there = definition.backends[source].node, definition.backends[target].node
        if here != there:
            self.move_filesystem(definition.filesystem, here, there)

    def hold(self, name: str) -> None:
        """A site stays where it is, but has to wait."""
        if name not in self.members:
            where = self.world.placements[name].backend
            self.members[name] = Member(name, where, where)

    def move_filesystem(self, name: str, here: str, there: str) -> None:
        """A filesystem goes from node to node, and what lives in it has to go along."""
        placed = FILESYSTEM + name
        if placed in self.members:
            return
        where = self.world.placements[placed]
        recorded = where.backend
        if where.mode is Mode.HOLDING:
            raise Unmovable(
                f"the filesystem {name} is not mounted on {recorded}; mount it first, and if nobody"
                f" sees that, say: awesomeproxy mounted {name} --node {recorded}"
            )
        if recorded != here:
            raise Unmovable(
                f"the filesystem {name} is recorded on {recorded}, not on {here}; "
                f"see to it there, or say: awesomeproxy mounted {name} --node {here}"
            )
        self.members[placed] = Member(placed, here, there)
        lodgers: list[Site | Database] = [
            *self.world.sites.values(),
            *self.world.databases.values(),
        ]
        for each in lodgers:
            if each.filesystem == name:
                lodger = each.name if isinstance(each, Site) else DATABASE + each.name
                self.follow(lodger, here, there)

    def follow(self, name: str, here: str, there: str) -> None:
        """What lives in a filesystem goes where that goes."""
        definition = self.world.definition(name)
        now = self.world.placements[name].backend
        if now in definition.backends and definition.backends[now].node != here:
            raise Unmovable(f"{name} lives in the same filesystem, but is on {now}; move it first")
        choices = [each.name for each in definition.backends.values() if each.node == there]
        if self.chosen.get(name) in choices:
            choices = [self.chosen[name]]
        member = self.members.get(name)
        if member is not None and member.moves:
            return
        if len(choices) != 1:
            raise Unmovable(
                f"{name} lives in the same filesystem, and has {len(choices) or 'no'} backends on"
                f" {there}; it needs one there to go along"
            )
        self.move(name, choices[0])


def make(world: World, name: str, target: str, databases: Mapping[str, str]) -> Plan:
    """The plan by which ``name`` goes to its backend ``target``.

    :param databases: those to take along, each with its own target.
    :raise Unmovable: it cannot be done like that.
    """
    chosen = {DATABASE + database: backend for database, backend in databases.items()}
    for each, backend in chosen.items():
        if each in world.placements and world.placements[each].backend == backend:
            raise Unmovable(f"{each} is on {backend} already; leave it out")
    making = _Making(world, chosen)
    making.move(name, target)
    for each, backend in chosen.items():
        making.move(each, backend)
    main = making.members.pop(name)
    return Plan(main, tuple(making.members.values()))


def read(entry: Entry) -> Plan:
    """The plan of a migration in the journal."""
    along = tuple(Member(each.site, each.source, each.target) for each in entry.along)
    return Plan(Member(entry.site, entry.source, entry.target), along)


def precedent(plan: Plan, entries: Iterable[Entry]) -> Entry | None:
    """The first of ``entries`` that has moved the same things to its end; None: none has.

    It may have been the way back.  One that outlived its daemon does not count: nobody has
    measured its pause.
    """
    wanted = {member.name for member in plan.moving}
    for entry in entries:
        measured = entry.state == "done" and entry.ledger is not None and entry.ledger["pause"] > 0
        if measured and {member.name for member in read(entry).moving} == wanted:
            return entry
    return None
