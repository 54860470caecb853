"""PostgreSQL: logical replication while the database is in use, or a dump while requests wait.

Replication: the first ``presync`` makes the target as the source is, without rows, and
subscribes it to the source; PostgreSQL copies the tables and goes on with what changes.
Later rounds wait until the target has what the source had when they began.  The ``fence``
closes the source and notes how far its log has come; ``sync`` waits for the target to have
confirmed that, and carries what has no rows (:mod:`.postgres_contents`).  Nothing may have
changed the definition of the database in between: if something has, the migration fails.

A dump: all of it happens in ``sync``.

Either way the target has the mover's name until ``attach`` gives it its own, and the source
has the mover's name from ``sync`` on (:mod:`.postgres_door`).  After the commit it stays so
and nobody can connect to it; it is dropped when the database moves back there.

What tells the two methods apart after a crash is whether there is a subscription.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from zope.interface import implementer

from awesomeproxy.movers import postgres_contents as contents
from awesomeproxy.movers.interface import Estimate, IMover, Job, Kind, MoverError, Progress
from awesomeproxy.movers.postgres_door import (
    LEFT,
    SOURCE,
    TARGET,
    Door,
    Found,
    SourceDoor,
    forget,
    hidden_name,
    notes,
    transaction,
)
from awesomeproxy.movers.postgres_refusals import (
    check_replication,
    check_server,
    check_source,
    check_target,
    check_tools,
)
from awesomeproxy.movers.postgres_replication import Replication
from awesomeproxy.movers.postgres_server import LONG, MAINTENANCE, PostgresServer, ident, literal
from awesomeproxy.movers.postgres_settings import ABOUT, OPTIONS, PLACE, PostgresOptions
from awesomeproxy.movers.shell import ShellError
from awesomeproxy.movers.trying import while_passing

FULL = "No space left on device"  # as a server says it that speaks English
ROOM_IN = 10.0  # seconds in which there has to be room to tidy up


@implementer(IMover)
class PostgresMover:
    """Moves one database; see the module."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.options: PostgresOptions = job.options
        digest = hashlib.sha256(job.name.encode()).hexdigest()[:8]
        tag = f"awesomeproxy_{job.migration}_{digest}"  # as slots may be called
        self.source = PostgresServer(job.source, tag)
        self.target = PostgresServer(job.target, tag)
        self.replication = Replication(self.source, self.target, tag, job.reactor)
        database = job.source.settings.database
        self.old = SourceDoor(self.source, database, hidden_name(database, job.migration, SOURCE))
        database = job.target.settings.database
        self.new = Door(self.target, database, hidden_name(database, job.migration, TARGET))
        self._schema = Path(job.scratch) / f"{tag}.schema"

    async def check(self) -> None:
        name = self.old.name
        versions = [await check_server(server) for server in (self.source, self.target)]
        if versions[0] > versions[1]:
            raise MoverError(
                f"PostgreSQL on {self.target.node} is version {versions[1]}, older than that on "
                f"{self.source.node}, which is {versions[0]}; update it"
            )
        await check_tools(self.source, "pg_dump", versions[0])
        await check_tools(self.target, "pg_restore", versions[1])
        shown, _ = await self.old.find()
        if shown is None:
            raise MoverError(f"there is no database {name!r} on {self.source.node}")
        if not shown.allowed:
            raise MoverError(
                f"{name!r} on {self.source.node} takes no connections; "
                "ALTER DATABASE ... ALLOW_CONNECTIONS true"
            )
        taken, _ = await self.new.find()
        if taken is not None and not (
            taken.allowed and await contents.empty(self.target, self.new.name)
        ):
            raise MoverError(
                f"there is a database {self.new.name!r} on {self.target.node} already, and it is "
                "not empty; drop it or rename it"
            )
        await check_source(self.source, name)
        await check_target(self.source, name, self.target)
        if await self._replicates():
            await check_replication(self.source, name, self.target)
        await self._check_room()

    async def estimate(self) -> Estimate:
        whole = await self._size()
        lag = await self.replication.lag() if await self.replication.subscribed() else None
        return Estimate(whole, whole if lag is None else lag.size)

    async def presync(self, progress: Progress) -> int:
        if not await self._replicates():
            return 0
        carried = 0
        if not await self.replication.subscribed():
            await self._begin()
        lsn = await self.replication.position()
        _, hidden = await self.new.find()
        if hidden is not None and not hidden.note("copied"):
            carried = await self.replication.copied(self.new.hidden, progress)
            await self.target.run(self.new.hidden, "ANALYZE", time=LONG)
            await self.target.run(MAINTENANCE, *notes(self.new.hidden, copied="yes"))
        lag = await self.replication.lag(lsn)
        await self.replication.caught_up(lsn, lambda size: progress(carried + size))
        return carried + (lag.size if lag is not None else 0)

    async def fence(self) -> None:
        await self.old.fence(self.replication.tag, self.job.migration)

    async def unfence(self) -> None:
        await self.source.end_sessions()
        await self.old.unfence(self.job.migration)

    async def sync(self, progress: Progress) -> int:
        shown, hidden = await self.old.find()
        found = hidden or shown
        lsn = found.note("fence") if found is not None else ""
        if found is None or not lsn:
            raise MoverError(f"{self.old.name!r} on {self.source.node} is not fenced")
        if await self.replication.subscribed():
            lag = await self.replication.lag(lsn)
            await self._catch_up(lsn, progress)
            size = lag.size if lag is not None else 0
            if changed := contents.difference(
                self._schema.read_text(), await contents.schema(self.source, self.old.hidden)
            ):
                raise MoverError(
                    f"the definition of {self.old.name!r} has changed during the migration: "
                    f"{changed}; try again"
                )
            await contents.carry_sequences(*self._pair())
            await contents.carry_views(*self._pair())
        elif await self._replicates():
            raise MoverError(f"{self.old.name!r} is not being replicated; it has to be, first")
        else:
            await self.old.withdraw()
            await self._make_target()
            source, name, target, new = self._pair()
            size = await source.pipe(name, target, new, *contents.WHOLE, progress=progress)
        await contents.carry_properties(self.source, found, self.target, self.new.hidden)
        return size

    async def attach(self) -> None:
        await self.replication.unsubscribe(self.new.hidden)
        await self.replication.drop_slots("")
        await self.new.show()

    async def detach(self) -> None:
        await self.target.end_sessions()
        shown, _ = await self.new.find()
        if (
            shown is not None
            and shown.note("migration") == str(self.job.migration)
            and shown.note("part") == TARGET
        ):
            await self.new.hide()

    async def verify(self) -> None:
        source, name, target, _ = self._pair()
        full = self.options.checksum == "full"
        await contents.compare(source, name, target, self.new.name, full=full)

    async def clean(self) -> None:
        await self.replication.drop_slots("")
        _, hidden = await self.old.find()
        if hidden is not None and hidden.note("part") == SOURCE:
            await self.replication.unpublish(hidden.name)
            await self.old.shut(hidden, part=LEFT, database=self.job.name)
        shown, _ = await self.new.find()
        if shown is not None and shown.note("migration") == str(self.job.migration):
            await self.target.run(MAINTENANCE, *transaction(*forget(shown.name)))
            if not self._schema.exists():  # a dump; replication has had its own
                await self.target.run(shown.name, "ANALYZE", time=LONG)
        self._schema.unlink(missing_ok=True)

    async def abandon(self) -> None:
        problem: MoverError | None = None
        for undo in (self._abandon_target, self._abandon_source):  # though one of them is dead
            try:
                await self._with_room(undo)
            except MoverError as failed:
                problem = problem or failed
        if problem is not None:
            raise problem
        # Only now: it says which slots may have been left.
        shown, _ = await self.old.find()
        if shown is not None and shown.note("migration") == str(self.job.migration):
            await self.source.run(MAINTENANCE, *transaction(*forget(shown.name)))
        self._schema.unlink(missing_ok=True)

    async def _with_room(self, undo: Callable[[], Awaitable[None]]) -> None:
        """Do ``undo``, though a copy that fails on a full disk takes and frees its room by turns.

        Even what only reads may have to write a page before; it must work when called again.
        """
        await while_passing(self.job.reactor, undo, lambda problem: FULL in str(problem), ROOM_IN)

    async def _abandon_target(self) -> None:
        """Drop the target, if it is still ours."""
        await self.target.end_sessions()
        _, hidden = await self.new.find()
        if hidden is None:
            return
        if not hidden.allowed:
            opening = f"ALTER DATABASE {ident(hidden.name)} ALLOW_CONNECTIONS true"
            await self.target.run(MAINTENANCE, opening)
        await self.replication.unsubscribe(hidden.name)
        await contents.make_room(self.target, hidden.name)
        await self.new.drop(hidden.name)

    async def _abandon_source(self) -> None:
        """Let nothing be kept for the target any more."""
        await self.source.end_sessions()
        shown, hidden = await self.old.find()
        found = shown or hidden
        ours = found is not None and found.note("migration") == str(self.job.migration)
        await self.replication.drop_slots(found.note("system") if found and ours else "")
        if found is not None and found.allowed:
            await self.replication.unpublish(found.name)

    async def _begin(self) -> None:
        """Make the target, and have PostgreSQL copy."""
        name = self.old.name
        await check_replication(self.source, name, self.target)
        await self._abandon_target()
        await self._abandon_source()
        await self._make_target()
        # What is dumped next may have more: then that is found in the end, too.
        self._schema.write_text(await contents.schema(self.source, name))
        await self.source.pipe(name, self.target, self.new.hidden, *contents.SCHEMA)
        await contents.empty_tables(self.target, self.new.hidden)
        query = "SELECT system_identifier::text AS number FROM pg_control_system()"
        number = (await self.target.row(MAINTENANCE, query))["number"]
        written = notes(name, migration=str(self.job.migration), system=number)
        await self.source.run(MAINTENANCE, *transaction(*written))
        await self.replication.begin(name, self.new.hidden)

    async def _make_target(self) -> None:
        """Make an empty database, in place of what is not needed any more."""
        for kept in await self._kept():
            await self.new.drop(kept.name)
        shown, _ = await self.new.find()
        if shown is not None:
            if not await contents.empty(self.target, shown.name):
                raise MoverError(f"{shown.name!r} on {self.target.node} is not empty any more")
            await self.new.drop(shown.name)
        await self.new.drop(self.new.hidden)
        await contents.create(self.source, await self.old.reach(), self.target, self.new.hidden)
        written = notes(self.new.hidden, migration=str(self.job.migration), part=TARGET)
        await self.target.run(MAINTENANCE, *transaction(*written))

    async def _kept(self) -> list[Found]:
        """What an earlier migration has left on the target's server when it moved away."""
        return [
            each
            for each in await self.new.all()
            if each.note("part") == LEFT
            and each.note("database") == self.job.name
            and not each.allowed  # else somebody has taken it into use
        ]

    async def _catch_up(self, lsn: str, progress: Progress) -> None:
        """Let the target have all up to the fence, and hide the source."""
        shown, _ = await self.old.find()
        # Its sender is left alone, which came in before the fence; but it may be lost.
        there = shown is not None and await self.replication.caught_up(lsn, progress, may_lose=True)
        await self.replication.stop(self.new.hidden)
        await self.old.withdraw()
        if not there:
            await self.replication.resume(self.new.hidden, self.old.hidden)
            await self.replication.caught_up(lsn, progress)
            await self.replication.stop(self.new.hidden)

    async def _replicates(self) -> bool:
        """Whether it is, or is going to be, replicated."""
        if self.options.method != "auto":
            return self.options.method == "replicate"
        return await self.replication.subscribed() or await self._size() >= self.options.dump_below

    async def _size(self) -> int:
        query = f"SELECT pg_database_size({literal(await self.old.reach())}) AS size"
        return int((await self.source.row(MAINTENANCE, query))["size"])

    async def _check_room(self) -> None:
        """Refuse a target's disk that is too small, if the node can see it."""
        if self.target.settings.host:
            return
        query = "SELECT current_setting('data_directory') AS data"
        data = (await self.target.row(MAINTENANCE, query))["data"]
        argv = ("df", "--output=avail", "--block-size=1", "--", data)
        try:
            free = int((await self.job.target.shell.run(*argv)).split()[-1])
        except ShellError:  # the directory is another user's
            return
        for kept in await self._kept():
            query = f"SELECT pg_database_size({kept.oid}::oid) AS size"
            free += int((await self.target.row(MAINTENANCE, query))["size"])
        if (size := await self._size()) > free:
            raise MoverError(
                f"{self.old.name!r} has {size} bytes, and there is only room for {free} in {data} "
                f"on {self.target.node}; make room"
            )

    def _pair(self) -> tuple[PostgresServer, str, PostgresServer, str]:
        return self.source, self.old.hidden, self.target, self.new.hidden


POSTGRES = Kind(
    carries="database",
    make=PostgresMover,
    place=PLACE,
    options=OPTIONS,
    about=ABOUT,
)
