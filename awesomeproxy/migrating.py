"""Migrations as they are asked for: what may be begun now, and what becomes of the others.

Any node can be asked.  It carries out itself what it was asked to move; a migration that
another node has begun is called off by asking that node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Protocol

from awesomeproxy.cluster.interface import ICluster
from awesomeproxy.membership import Membership
from awesomeproxy.migrate import planning
from awesomeproxy.migrate.engine import Migration
from awesomeproxy.model import Ledger, Placement
from awesomeproxy.moving import Moves
from awesomeproxy.pausing import Pauses
from awesomeproxy.registry.interface import Entry

STOPPED_IN = 50.0  # seconds that another node has to roll a migration back


class InTheWay(Exception):
    """Something else goes on with it; the message says what, and what to do.

    ``winner`` is what that has made of the placement, if it has made anything yet.
    """

    def __init__(self, message: str, winner: Placement | None = None) -> None:
        super().__init__(message)
        self.winner = winner


class NotMigrating(Exception):
    """There is no migration to be called off."""


class Host(Protocol):
    """What is asked of the node."""

    cluster: ICluster
    moves: Moves
    pauses: Pauses
    membership: Membership

    def placement(self, name: str) -> Placement:
        """Where something is placed."""

    def changing(self) -> AbstractAsyncContextManager[None]:
        """Have nobody change what is defined."""


class Migrating:
    """Begins migrations, and calls them off wherever they run."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def entry_of(self, name: str) -> Entry | None:
        """The migration of another node that has to do with ``name``."""
        others = self._host.membership.others.values()
        return next((each for each in others if each.concerns(name)), None)

    def elsewhere(self, name: str) -> str:
        """Which migration another node has, that has to do with it; empty: none."""
        entry = self.entry_of(name)
        return "" if entry is None else f"{_moves(name, entry)} {_by(entry)}"

    def check_free(self, name: str) -> None:
        """See that no migration has to do with it.

        :raise InTheWay: one has.
        """
        if (migration := self._host.moves.of(name)) is not None:
            moves = _moves(name, migration)
            raise InTheWay(
                f"{moves} ({migration.step or 'ending'}); {way_out(migration)}",
                migration.placed(name),
            )
        if (entry := self.entry_of(name)) is not None:
            off = f", or call it off with: awesomeproxy abort {entry.site}"
            raise InTheWay(
                f"{_moves(name, entry)} {_by(entry)}; wait for it"
                + (off if entry.state == "running" else ""),
                self._host.placement(name),
            )

    def check_idle(self, name: str) -> None:
        """See that no migration has to do with it, and no pause waits for its drain.

        :raise InTheWay: one has.
        """
        self.check_free(name)
        if self._host.pauses.under_way(name):
            raise InTheWay(
                f"{name} is being paused; wait for it, or call it off with:"
                f" awesomeproxy resume {name}",
                self._host.placement(name),
            )

    async def migrate(
        self,
        site: str,
        to: str,
        *,
        databases: Mapping[str, str],
        max_pause: float,
        force: bool,
        by: str,
        progress: Callable[..., None],
    ) -> Ledger:
        """Move a site or a database, and wait for the end of that.

        :param databases: those to take along, each with its own target.
        :param max_pause: seconds from the hold to the release, at the most.
        :param force: cut what is in flight when half of them are over.
        :param by: who moves it, for those who lose a race against it.
        :param progress: told each step as it begins, and how it goes on.
        :raise Unmovable: it cannot be done like that.
        :raise InTheWay: something else goes on with it, or it is there already.
        :raise RolledBack, LeftUnfinished, RegistryError: as :meth:`Migration.run`.
        :raise Stopping: this daemon begins nothing any more.
        """
        async with self._host.changing():  # what a site's backends are
            plan = planning.make(self._host.moves.world(), site, to, databases)
            for member in plan.members:
                self.check_idle(member.name)
            if not plan.main.moves:
                raise InTheWay(f"{site} is on {to} already", self._host.placement(site))
            running = self._host.moves.begin(
                plan, max_pause=max_pause, force=force, by=by, progress=progress
            )
        return await running

    async def make_way(self, name: str, reason: str) -> None:
        """Have no migration hold it: one that has not committed is rolled back, another ends."""
        migration = self._host.moves.of(name)
        if migration is not None:
            migration.stop(reason)
            await migration.ended.wait()
        elif self.entry_of(name) is not None:
            with suppress(InTheWay, NotMigrating):  # then it has come to its end, or will not
                await self.stop(name, reason)

    async def stop(self, site: str, reason: str) -> str:
        """Call off the migration that has to do with ``site``, wherever it runs.

        :return: where it was to go.
        :raise NotMigrating: there is none.
        :raise InTheWay: it cannot be called off any more, or its node does not answer.
        """
        entry = self.entry_of(site)
        if self._host.moves.of(site) is not None or entry is None:
            answer = await self.stop_here(site, reason)
        else:
            params = {"site": site, "reason": reason}
            answers = await self._host.cluster.ask("stop", params, STOPPED_IN, [entry.owner])
            if entry.owner not in answers:
                raise InTheWay(
                    f"{self.elsewhere(site) or site}, and {entry.owner} does not answer; if it is"
                    " gone, another node takes the migration over",
                    self._host.placement(site),
                )
            answer = answers[entry.owner]
        if answer["problem"]:
            raise InTheWay(answer["problem"], self._host.placement(site))
        if not answer["target"]:
            raise NotMigrating(f"{site} is not being migrated")
        return str(answer["target"])

    async def stop_here(self, site: str, reason: str) -> dict[str, str]:
        """Call off a migration of this node's own.

        :return: its ``target``, empty if there is none; and under ``problem`` why it cannot
            be called off.
        """
        migration = self._host.moves.of(site)
        if migration is None:
            return {"target": "", "problem": ""}
        if not migration.stop(reason):
            return {
                "target": migration.target,
                "problem": f"{site} is past the point where its migration to {migration.target}"
                " can be called off; migrate it back when that has ended",
            }
        await migration.ended.wait()
        return {"target": migration.target, "problem": ""}


def way_out(migration: Migration) -> str:
    """What to do about a migration that is in the way."""
    off = f", or call it off with: awesomeproxy abort {migration.site}"
    return "wait for it" + (off if migration.can_be_stopped else "")


def _moves(name: str, moving: Migration | Entry) -> str:
    site = moving.site
    what = f"{name} is being migrated" if name == site else f"{name} goes along with {site}"
    return f"{what} to {moving.target}"


def _by(entry: Entry) -> str:
    return f"by node {entry.owner} ({entry.step or 'beginning'})"
