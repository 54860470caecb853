"""MariaDB databases: one that follows and takes over, or a dump while requests wait.

Two ways lead to the same end.  ``replicate`` has a copy follow the database while it is in
use (:mod:`~awesomeproxy.movers.mariadb_following`), so that the pause only carries what was
written last.  ``dump`` carries all of it in the pause, which is right for what is small, and
for tables that only lie still then.  ``auto`` dumps what is smaller than ``dump_below``.

The fence is that the database goes (:mod:`~awesomeproxy.movers.mariadb_closing`).  Closed, it
is a database under another name with a record of all that it had; copied, that is a closed
database on the target; and to attach it is to open it there.

Names of what a mover makes on a server say whose they are: ``awesomeproxy_``, the number of
the migration, a sum of the database's name, and what it is.  ``clean`` leaves the closed
database on the source.  It is dropped when the database comes back.

What is not carried: users and their rights, which ``check`` looks for on the target.  What is
not stopped by the fence: somebody with the right to do so may create another database of the
same name, or write to the tables under the name that they have while closed.
"""

from __future__ import annotations

import re
import zlib

from zope.interface import implementer

from awesomeproxy.movers.interface import Estimate, IMover, Job, Kind, MoverError, Progress
from awesomeproxy.movers.mariadb_checking import check, check_following, check_room
from awesomeproxy.movers.mariadb_closing import Closing
from awesomeproxy.movers.mariadb_comparing import compare
from awesomeproxy.movers.mariadb_following import FOLLOWING, Following
from awesomeproxy.movers.mariadb_record import RECORD, Closed
from awesomeproxy.movers.mariadb_server import MariadbServer, exactly, name, text
from awesomeproxy.movers.mariadb_settings import ABOUT, OPTIONS, OURS, PLACE


@implementer(IMover)
class MariadbMover:
    """One database on its way; see the module."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._database: str = job.source.settings.database
        self._sum = f"{zlib.crc32(self._database.encode()):08x}"
        called = f"{OURS}{job.migration}_{self._sum}"
        self._source = MariadbServer(job.source, called)
        self._target = MariadbServer(job.target, called)
        self._closed = Closing(self._source, self._database, f"{called}_closed", job.reactor)
        self._copy = Closing(
            self._target, job.target.settings.database, f"{called}_copy", job.reactor
        )
        self._following = Following(
            self._source, self._target, self._database, self._copy.place, called, job.reactor
        )

    def __repr__(self) -> str:
        return f"<MariadbMover of {self.job.name}, migration {self.job.migration}>"

    async def check(self) -> None:
        await check(self._closed, self._copy)
        size = await self._size()
        await check_room(self._source, self._target, size)
        if self._replicates(size):
            await check_following(self._following)

    async def estimate(self) -> Estimate:
        size = await self._size()
        if await self._following.stage() == "following":
            return Estimate(size, await self._following.behind())
        return Estimate(size, size)

    async def presync(self, progress: Progress) -> int:
        stage = await self._following.stage()
        if stage == "following":
            now = await self._source.value("SELECT @@GLOBAL.gtid_binlog_pos")
            return await self._following.reach(now, progress)
        if not stage and not self._replicates(await self._size()):
            return 0
        await self._make_room()
        return await self._following.copy(progress)

    async def fence(self) -> None:
        await self._closed.close()

    async def unfence(self) -> None:
        await self._closed.open()
        await self._closed.forget()

    async def sync(self, progress: Progress) -> int:
        stage = await self._following.stage()
        if stage and stage != "following":
            raise MoverError(
                f"the copy of {self._database!r} on {self._target.node} is {stage}, and cannot be "
                "made anew in the pause; begin with another round"
            )
        if stage:
            # The fence's own statements are behind the last that anybody else could do.
            last = await self._source.value("SELECT @@GLOBAL.gtid_binlog_pos")
            return await self._following.reach(last, progress)
        await self._make_room()
        return await self._carry([], progress)

    async def attach(self) -> None:
        if await self._following.stage():
            await self._following.end()
            await self._carry([RECORD])
            await self._carry_counters()
            await self._target.change(f"DROP TABLE {name(self._copy.place)}.{FOLLOWING}")
        await self._copy.open()

    async def detach(self) -> None:
        copy = await self._copy.read()
        # Until it begins to be opened it is closed.
        if copy is not None and copy.stage != "closed":
            await self._copy.close()

    async def verify(self) -> None:
        closed = await self._record_of_source()
        full = self.job.options.checksum == "full"
        await compare(self._closed, self._copy, closed, full)

    async def clean(self) -> None:
        if await self._copy.read() is not None:
            await self._copy.forget()
        closed = await self._closed.read()
        if closed is not None and not closed.left:
            closed.left = True
            await self._closed.write(closed, closed.stage)

    async def abandon(self) -> None:
        problem: MoverError | None = None
        try:
            await self._following.drop_account()
        except MoverError as dead:  # the target can be seen to nevertheless
            problem = dead
        await self.detach()
        await self._following.end()
        await self._target.change(f"DROP DATABASE IF EXISTS {name(self._copy.place)}")
        if problem is not None:
            raise problem

    def _replicates(self, size: int) -> bool:
        options = self.job.options
        if options.method == "auto":
            return bool(size >= options.dump_below)
        return bool(options.method == "replicate")

    async def _size(self) -> int:
        """How many bytes the database takes."""
        # What information_schema says of a table can be old; its file says how large it is.
        return int(
            await self._source.value(
                "SELECT CAST(GREATEST("
                "(SELECT COALESCE(SUM(DATA_LENGTH + INDEX_LENGTH), 0) "
                f"FROM information_schema.TABLES WHERE TABLE_SCHEMA = {exactly(self._database)}), "
                "(SELECT COALESCE(SUM(FILE_SIZE), 0) FROM "
                "information_schema.INNODB_SYS_TABLESPACES WHERE SUBSTRING_INDEX(NAME, '/', 1) = "
                f"CONVERT(CONVERT({text(self._database)} USING filename) USING binary))) AS INT)"
            )
        )

    async def _make_room(self) -> None:
        """An empty database for the copy, in place of one that was begun, and of older ones."""
        await self._following.end()
        if self.job.source.settings.replication is not None:
            await self._following.end_left()
        copy = self._copy.place
        old = re.compile(rf"{OURS}\d+_{self._sum}_closed")
        for each in await self._target.databases():
            if old.fullmatch(each):
                left = Closing(self._target, self._database, each, self.job.reactor)
                closed = await left.read()
                if closed is not None and closed.left and closed.database == self._database:
                    await self._target.change(f"DROP DATABASE {name(each)}")
        charset, collation = await self._source.row(
            "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM "
            "information_schema.SCHEMATA WHERE SCHEMA_NAME IN "
            f"({exactly(self._database)}, {exactly(self._closed.place)}) "
            f"ORDER BY SCHEMA_NAME = {exactly(self._database)} DESC LIMIT 1"
        )
        await self._target.change(
            f"DROP DATABASE IF EXISTS {name(copy)}",
            f"CREATE DATABASE {name(copy)} CHARACTER SET {charset} COLLATE {collation}",
        )

    async def _carry(self, tables: list[str], progress: Progress = lambda size: None) -> int:
        """Dump the closed database, or some of its tables, into the copy's."""
        arguments = ["--single-transaction", "--", self._closed.place, *tables]
        return await self._source.pipe(arguments, self._target, self._copy.place, progress=progress)

    async def _carry_counters(self) -> None:
        """Have each table count on from where it was, though what was counted is gone."""
        closed = await self._record_of_source()
        query = (
            "SELECT TABLE_NAME, AUTO_INCREMENT FROM information_schema.TABLES "
            "WHERE AUTO_INCREMENT IS NOT NULL AND TABLE_SCHEMA = "
        )
        rows = await self._source.rows(query + exactly(self._closed.place))
        has = dict(await self._target.rows(query + exactly(self._copy.place)))
        counters = {closed.tables[each]: counter for each, counter in rows}
        place = name(self._copy.place)
        behind = [
            f"ALTER TABLE {place}.{name(each)} AUTO_INCREMENT = {counter}"
            for each, counter in counters.items()
            if has.get(each) != counter
        ]
        if behind:
            await self._target.change(*behind)

    async def _record_of_source(self) -> Closed:
        closed = await self._closed.read()
        if closed is None or closed.stage != "closed":
            raise MoverError(
                f"{self._database!r} on {self._source.node} is not fenced; somebody has undone that"
            )
        return closed


MARIADB = Kind(carries="database", make=MariadbMover, place=PLACE, options=OPTIONS, about=ABOUT)
