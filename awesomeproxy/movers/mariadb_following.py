"""A copy of a database that follows it: a dump, and all that changes after it by replication.

The copy lies in a database of its own, under a name that nobody uses.  A named connection
of the target's server carries the changes there: filters of that connection let nothing else
through, and give the database its other name.  What has been applied is known by GTID and
written with what it has changed, so a server that is killed goes on where it was.

Filters are forgotten when a server is started anew, and its connections are not: such a
connection would carry everything.  It cannot, since it has no way in.  The account that it
uses is made for the moment in which it connects, and dropped right after; a connection that
breaks has to be made anew by the mover, with its filters.

A server knows one position for each GTID domain, whatever connections it has.  So there can
be no other replication on the target, and no second copy at the same time.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from twisted.internet.task import deferLater

from awesomeproxy.movers.interface import MoverError, Progress
from awesomeproxy.movers.mariadb_server import MariadbServer, ServerError, exactly, name, text
from awesomeproxy.movers.mariadb_settings import OURS
from awesomeproxy.movers.trying import while_passing

FOLLOWING = "awesomeproxy_following"  # the table that says how far it is
_CONNECT = 15.0  # seconds that it may take to connect
_TRIES = 3  # how often it is connected anew before that is an error
_ANSWER = 10.0  # seconds in which a server that is alive answers
_LOOK = 0.1  # seconds between looks at a connection
_WAIT = 0.5  # seconds that are waited for a position at one go
_SLAVES_RUN = 1198  # ER_SLAVE_MUST_STOP: there is other replication by now
_EXISTS = 1934  # ER_CONNECTION_ALREADY_EXISTS: ours, with no server in it, meets the nameless one
_NONE = 1617  # WARN_NO_MASTER_INFO: there is no connection of that name
_CONFLICTS = (1947, 1948)  # ER_GTID_POSITION_NOT_FOUND_IN_BINLOG...: only its own past


class Following:
    """The copy of one database."""

    def __init__(
        self,
        source: MariadbServer,
        target: MariadbServer,
        database: str,
        place: str,
        called: str,
        reactor: Any,
    ) -> None:
        """
        :param place: the database on the target that has the copy.
        :param called: the name of the connection, and of the account.
        """
        self.source = source
        self.target = target
        self.database = database
        self.place = place
        self.called = called
        self._reactor = reactor

    def __repr__(self) -> str:
        return f"<Following of {self.database!r} on {self.target.node}>"

    async def stage(self) -> str:
        """``copying``, ``following``, ``broken`` (it cannot go on); or nothing: there is none."""
        return await self.target.kept(self.place, FOLLOWING, "stage") or ""

    async def copy(self, progress: Progress) -> int:
        """Make the copy, in the database that is there for it, and have it follow.

        :return: how many bytes were carried.
        """
        await self.refuse_others()
        await self.target.change(
            f"CREATE TABLE {name(self.place)}.{FOLLOWING} (one INT PRIMARY KEY, "
            "stage VARCHAR(20) NOT NULL, position_before TEXT NOT NULL) ENGINE=InnoDB",
            f"INSERT INTO {name(self.place)}.{FOLLOWING} "
            "VALUES (1, 'copying', @@GLOBAL.gtid_slave_pos)",
        )
        views = await self.source.column(
            "SELECT TABLE_NAME FROM information_schema.VIEWS "
            f"WHERE TABLE_SCHEMA = {exactly(self.database)}"
        )
        # The position comes with the dump, as a statement that sets it.
        arguments = ["--single-transaction", "--master-data=1", "--gtid"]
        arguments += [f"--ignore-table={self.database}.{view}" for view in views]
        size = await self._load_in_peace(arguments, progress)
        await self._put_stage("following")
        await self.connect()
        return size

    async def _load_in_peace(self, arguments: Sequence[str], progress: Progress) -> int:
        """Load, though rounds that were given up may make their connections only now.

        That is what a dump begins with, so nothing has been loaded when one is in the way.
        """

        async def load() -> int:
            try:
                return await self._load(arguments, progress)
            except ServerError as problem:
                if problem.code == _EXISTS:
                    await self._stop()
                raise

        def passes(problem: Exception) -> bool:
            return isinstance(problem, ServerError) and problem.code == _EXISTS

        return await while_passing(self._reactor, load, passes, _CONNECT)

    async def _load(self, arguments: Sequence[str], progress: Progress) -> int:
        return await self.source.pipe(
            [*arguments, "--", self.database],
            self.target,
            self.place,
            before=f"SET SESSION default_master_connection = {text(self.called)}",
            progress=progress,
        )

    async def refuse_others(self) -> None:
        """Other replication on the target would lose its position.

        :raise MoverError: there is some.
        """
        for status in await self.target.named("SHOW ALL SLAVES STATUS"):
            other = status["Connection_name"]
            if other == self.called or self._is_left(status):
                continue
            what = (
                "another database is on its way there"
                if other.startswith(OURS)
                else (f"it replicates from {status['Master_Host']}")
            )
            raise MoverError(
                f"{self.target.node} cannot follow {self.database!r}: {what}, and a server has "
                'one position for all; wait for its end, or write method = "dump"'
            )

    def _is_left(self, status: dict[str, str]) -> bool:
        """Whether a connection is what an earlier migration of the database could not end."""
        other, replication = status["Connection_name"], self.source.place.settings.replication
        same = other.rpartition("_")[2] == self.called.rpartition("_")[2]  # sum of its name
        return (
            other.startswith(OURS)
            and other != self.called
            and same
            and (status["Master_Host"], status["Master_Port"])
            == (replication.host, str(replication.port))
        )

    async def end_left(self) -> None:
        """End what earlier migrations of the database could not, for want of the target."""
        for status in await self.target.named("SHOW ALL SLAVES STATUS"):
            if self._is_left(status):
                called = status["Connection_name"]
                place = called + self.place.removeprefix(self.called)
                left = Following(
                    self.source, self.target, self.database, place, called, self._reactor
                )
                await left.end()
                await left.drop_account()
                await self.target.change(f"DROP DATABASE IF EXISTS {name(place)}")

    async def connect(self) -> None:
        """Connect, or connect anew, from where the copy is."""
        replication = self.source.place.settings.replication
        password = f"aA1-{secrets.token_urlsafe(24)}"
        account = f"{text(self.called)}@'%'"
        host, port, tls = replication.host, replication.port, replication.tls_ca
        how = [f"MASTER_HOST = {text(host)}", f"MASTER_PORT = {port}"]
        how += [f"MASTER_USER = {text(self.called)}", f"MASTER_PASSWORD = {text(password)}"]
        how += ["MASTER_USE_GTID = slave_pos", "MASTER_CONNECT_RETRY = 2"]
        if tls:
            how += ["MASTER_SSL = 1", f"MASTER_SSL_CA = {text(tls)}"]
            how += ["MASTER_SSL_VERIFY_SERVER_CERT = 1"]
        quoted, place = text(self.called), self.place
        pattern = place.replace("_", r"\_") + ".%"
        await self._stop()
        try:
            await self.source.run(
                "SET SESSION sql_log_bin = 0",
                f"CREATE OR REPLACE USER {account} IDENTIFIED BY {text(password)}",
                f"GRANT REPLICATION SLAVE ON *.* TO {account}",
            )
            await self.target.change(
                f"CHANGE MASTER {quoted} TO {', '.join(how)}",
                f"SET GLOBAL {self.called}.replicate_rewrite_db = "
                f"{text(f'{self.database}->{place}')}",
                f"SET GLOBAL {self.called}.replicate_do_db = {text(place)}",
                f"SET GLOBAL {self.called}.replicate_wild_do_table = {text(pattern)}",
                f"START SLAVE {quoted}",
            )
            await self._connected()
        finally:
            await self.drop_account()

    async def drop_account(self) -> None:
        """Let nobody connect to the source as the copy has; who has, is not disturbed."""
        await self.source.run(
            "SET SESSION sql_log_bin = 0", f"DROP USER IF EXISTS {text(self.called)}@'%'"
        )

    async def reach(self, position: str, progress: Progress) -> int:
        """Wait until the copy has what the source had at a GTID position.

        :return: how many bytes of the source's binary log that has taken.
        """
        sizes = await self._log_sizes()
        status = await self._status()
        begin = done = _offset(sizes, status)
        tries = 0
        while True:
            if status.get("Last_SQL_Errno", "0") != "0":
                await self._put_stage("broken")
                raise MoverError(
                    f"{self.target.node} could not apply what has changed in {self.database!r}: "
                    f"{status['Last_SQL_Error']}; the next round copies it anew"
                )
            if (status.get("Slave_IO_Running"), status.get("Slave_SQL_Running")) != ("Yes", "Yes"):
                tries += 1
                if tries > _TRIES:
                    raise MoverError(
                        f"{self.target.node} does not stay connected to {self.source.node}: "
                        f"{status.get('Last_IO_Error') or 'it does not say why'}"
                    )
                await self.connect()
            waited = await self.target.value(
                f"SELECT MASTER_GTID_WAIT({text(position)}, {_WAIT})", time=_ANSWER
            )
            status = await self._status()
            done = max(done, _offset(sizes, status))
            progress(done - begin)
            if waited == "0":
                return done - begin
            await self.source.value("SELECT 1", time=_ANSWER)  # or there is nothing to wait for

    async def behind(self) -> int:
        """How many bytes of the source's binary log the copy has not applied yet."""
        sizes = await self._log_sizes()
        return max(0, sum(sizes.values()) - _offset(sizes, await self._status()))

    async def end(self) -> None:
        """Follow no more, and put the target's position back."""
        before = await self.target.kept(self.place, FOLLOWING, "position_before")
        await self._stop()
        if before is not None:
            try:
                await self.target.change(f"SET GLOBAL gtid_slave_pos = {text(before)}")
            except ServerError as problem:
                if problem.code not in (_SLAVES_RUN, *_CONFLICTS):
                    raise

    async def _put_stage(self, stage: str) -> None:
        await self.target.change(f"UPDATE {name(self.place)}.{FOLLOWING} SET stage = {text(stage)}")

    async def _stop(self) -> None:
        """Take the connection away, if there is one."""
        quoted = text(self.called)
        try:
            # Though none is shown: one that a dump has begun to make has no server yet.
            await self.target.change(f"STOP SLAVE {quoted}", f"RESET SLAVE {quoted} ALL")
        except ServerError as problem:
            if problem.code != _NONE:
                raise

    async def _connected(self) -> None:
        late = self._reactor.seconds() + _CONNECT
        while True:
            status = await self._status()
            if status.get("Slave_IO_Running") == "Yes":
                return
            said = status.get("Last_IO_Error", "")
            if said or self._reactor.seconds() > late:
                if status.get("Last_IO_Errno") == "1236":  # what it needs has been purged
                    await self._put_stage("broken")
                raise MoverError(
                    f"{self.target.node} cannot replicate from {self.source.node}: "
                    f"{said or 'it does not connect'}; see to `replication` of the latter"
                )
            await deferLater(self._reactor, _LOOK)

    async def _status(self) -> dict[str, str]:
        """What the target says of the connection; nothing: there is none."""
        for status in await self.target.named("SHOW ALL SLAVES STATUS", time=_ANSWER):
            if status["Connection_name"] == self.called:
                return status
        return {}

    async def _log_sizes(self) -> dict[str, int]:
        rows = await self.source.rows("SHOW BINARY LOGS", time=_ANSWER)
        return {row[0]: int(row[1]) for row in rows}


def _offset(sizes: dict[str, int], status: dict[str, str]) -> int:
    """How many bytes of the binary logs have been applied."""
    reached = status.get("Relay_Master_Log_File", "")
    before = [size for log, size in sizes.items() if log < reached]
    return sum(before) + int(status.get("Exec_Master_Log_Pos", "0"))
