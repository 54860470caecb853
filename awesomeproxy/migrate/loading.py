"""Loads a carriage: which movers and services a plan needs, made of what is configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from awesomeproxy.migrate.carriage import Carriage, Stand
from awesomeproxy.migrate.plan import Member, Plan
from awesomeproxy.migrate.planning import Unmovable, World
from awesomeproxy.model import DATABASE, FILESYSTEM, Service
from awesomeproxy.movers import finding
from awesomeproxy.movers.interface import Job, Place
from awesomeproxy.movers.shell import Shell
from awesomeproxy.movers.warrant import Warrant

Loader = Callable[[int], Carriage]
Maker = Callable[[int, Warrant], Any]


class Loading:
    """Makes carriages."""

    def __init__(
        self,
        reactor: Any,
        world: World,
        shell: Callable[[str], Shell],
        scratch: str,
        identity: str,
    ) -> None:
        """
        :param shell: what runs commands on a node.
        :param scratch: a directory for what movers have to keep.
        :param identity: what no other daemon has, for files on nodes.
        """
        self._reactor = reactor
        self._world = world
        self._shell = shell
        self._scratch = scratch
        self._identity = identity

    def loader(self, plan: Plan) -> Loader | None:
        """What makes the carriage of ``plan``, given the migration's number.

        None if there is nothing to carry, to stop or to start.

        :raise Unmovable: something is not configured that would have to be carried.
        """
        makers = list(self._makers(plan))
        leaving = list(self._stands(plan, "source"))
        arriving = list(self._stands(plan, "target"))
        if not makers and not leaving and not arriving:
            return None

        def load(number: int) -> Carriage:
            warrant = Warrant(f"awesomeproxy-{self._identity}-{number}")
            source, target = (
                [replace(stand, shell=stand.shell.under(warrant)) for stand in side]
                for side in (leaving, arriving)
            )
            movers = [make(number, warrant) for make in makers]
            return Carriage(movers, source, target, warrant)

        return load

    def _makers(self, plan: Plan) -> Iterator[Maker]:
        travelling = {m.name.removeprefix(FILESYSTEM) for m in plan.moving if not m.has_gate}
        for member in plan.moving:
            if not member.has_gate:
                yield self._filesystem(member)
            elif member.is_database:
                database = self._world.definition(member.name)
                if database is None:
                    raise Unmovable(f"{member.name} is not defined; add [databases.NAME] for it")
                if database.mover and database.filesystem not in travelling:
                    yield self._database(member)

    def _filesystem(self, member: Member) -> Maker:
        name = member.name.removeprefix(FILESYSTEM)
        filesystem = self._world.filesystems.get(name)
        if filesystem is None:
            raise Unmovable(f"the filesystem {name} is not defined; add [filesystems.{name}]")

        def place(node: str) -> Place:
            if node not in filesystem.places:
                raise Unmovable(
                    f"the filesystem {name} has no place on the node {node!r}; "
                    f"add [filesystems.{name}.on.{node}]"
                )
            return Place(node, self._shell(node), filesystem.places[node])

        return self._maker(
            name, filesystem.mover, place(member.source), place(member.target), filesystem.options
        )

    def _database(self, member: Member) -> Maker:
        name = member.name.removeprefix(DATABASE)
        database = self._world.databases[name]

        def place(backend: str) -> Place:
            found = database.backends.get(backend)
            if found is None:
                raise Unmovable(
                    f"the database {name} has no backend {backend!r}; "
                    f"add [databases.{name}.backends.{backend}]"
                )
            address = (found.server.host, found.server.port)
            return Place(found.node, self._shell(found.node), found.place, address)

        return self._maker(
            name, database.mover, place(member.source), place(member.target), database.options
        )

    def _maker(self, name: str, mover: str, source: Place, target: Place, options: Any) -> Maker:
        kind = finding.find(mover)
        if kind is None:
            raise Unmovable(f"{name}: there is no mover {mover!r}; install the package that has it")
        if options is None:
            options = kind.options.make()

        def make(number: int, warrant: Warrant) -> Any:
            one, two = (
                replace(place, shell=place.shell.under(warrant)) for place in (source, target)
            )
            return kind.make(Job(name, number, one, two, options, self._reactor, self._scratch))

        return make

    def _stands(self, plan: Plan, side: str) -> Iterator[Stand]:
        for member in plan.moving:
            definition = self._world.definition(member.name)
            backend = definition and definition.backends.get(getattr(member, side))
            if backend is not None and backend.service != Service():
                shell = self._shell(backend.node)
                yield Stand(f"{member.name} on {backend.name}", backend.service, shell)
