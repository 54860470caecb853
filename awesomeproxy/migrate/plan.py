"""What is held and moved in one migration, decided before anything is done.

A site that moves takes the filesystem it lives in along, if its new backend stands on
another node, and with that whatever else lives there; and the databases it was asked to
take.  Of a database that moves, all sites that use it are held, and no others.
"""

from __future__ import annotations

from dataclasses import dataclass

from awesomeproxy.model import DATABASE, FILESYSTEM


@dataclass(frozen=True, slots=True)
class Member:
    """What is held, and moved unless ``source`` is ``target``; named as its placement is."""

    name: str
    source: str
    target: str

    def reversed(self) -> Member:
        """The way back."""
        return Member(self.name, self.target, self.source)

    @property
    def moves(self) -> bool:
        """Whether it is somewhere else afterwards."""
        return self.source != self.target

    @property
    def is_site(self) -> bool:
        """Whether it has requests, rather than connections or files."""
        return ":" not in self.name

    @property
    def is_database(self) -> bool:
        """Whether it has connections."""
        return self.name.startswith(DATABASE)

    @property
    def has_gate(self) -> bool:
        """Whether anything of it can be in flight."""
        return not self.name.startswith(FILESYSTEM)


@dataclass(frozen=True, slots=True)
class Plan:
    """All members of a migration; ``main`` is the one that it was asked for."""

    main: Member
    along: tuple[Member, ...] = ()

    def reversed(self) -> Plan:
        """The way back."""
        return Plan(self.main.reversed(), tuple(member.reversed() for member in self.along))

    @property
    def members(self) -> tuple[Member, ...]:
        """All of them, what the others use before those who use it."""
        everything = (self.main, *self.along)
        return tuple(sorted(everything, key=lambda member: (member.has_gate, member.is_site)))

    @property
    def moving(self) -> tuple[Member, ...]:
        """Those that are somewhere else afterwards."""
        return tuple(member for member in self.members if member.moves)

    @property
    def companions(self) -> list[str]:
        """The names of those that come along."""
        return [member.name for member in self.along]
