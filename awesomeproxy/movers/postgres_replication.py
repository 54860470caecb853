"""Logical replication of one database: a publication and a slot there, a subscription here.

All three have one name, which has the migration's number, so that whoever comes later finds
them.  The slot is made by us rather than by the subscription, and the subscription never
has to reach a server that may be dead in order to be dropped.

While tables are copied for the first time the target makes slots of its own at the source,
whose names end with the number of the target's cluster; that is written down before, so
that they can be dropped although the target is gone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.task import deferLater

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.postgres_refusals import TABLES
from awesomeproxy.movers.postgres_server import (
    LONG,
    MAINTENANCE,
    PostgresServer,
    conninfo,
    ident,
    literal,
)

LOOK_EVERY = 0.3  # seconds, while the first copy goes on
LOOK_OFTEN = 0.03  # seconds, while requests may be waiting
_STALLED = 120.0  # seconds without progress
_FAILED = 3  # errors of the target's workers without progress in between
_GONE = 1.0  # seconds without a sender: it will not come back to a fenced database
_NOWHERE = conninfo(host="/nonexistent", dbname="nothing")


@dataclass(frozen=True)
class Lag:
    """How far the target is behind."""

    size: int  # bytes of log that the target has not confirmed
    served: bool  # whether there is a sender


class Replication:
    """The three, of one migration."""

    def __init__(
        self, source: PostgresServer, target: PostgresServer, tag: str, reactor: Any
    ) -> None:
        self.source = source
        self.target = target
        self.tag = tag
        self._reactor = reactor

    async def begin(self, source: str, target: str) -> None:
        """Have all that is in ``source`` copied to ``target``, and what comes later as well."""
        tables = await self.source.column(
            source,
            f"SELECT format('%I.%I', n.nspname, c.relname) FROM {TABLES}"
            " AND c.relpersistence = 'p' ORDER BY 1",
        )
        # By name: FOR ALL TABLES would refuse updates of one that is made now, without a key.
        of = f" FOR TABLE {', '.join(f'ONLY {table}' for table in tables)}" if tables else ""
        slot = f"SELECT pg_create_logical_replication_slot({literal(self.tag)}, 'pgoutput')"
        await self.source.run(source, f"CREATE PUBLICATION {ident(self.tag)}{of}")
        await self.source.run(source, slot, time=LONG)  # it waits for older transactions
        await self.target.run(
            target,
            f"CREATE SUBSCRIPTION {ident(self.tag)} CONNECTION {literal(self.reach(source))}"
            f" PUBLICATION {ident(self.tag)}"
            f" WITH (create_slot = false, slot_name = {literal(self.tag)})",
        )

    def reach(self, database: str) -> str:
        """How the target's server reaches a database of the source's."""
        given = conninfo(dbname=database, connect_timeout="10")
        return f"{self.source.settings.conninfo} {given}"

    async def subscribed(self) -> bool:
        """Whether the subscription is there."""
        query = f"SELECT 1 FROM pg_subscription WHERE subname = {literal(self.tag)}"
        return bool(await self.target.rows(MAINTENANCE, query))

    async def position(self) -> str:
        """How far the source's log has come."""
        query = "SELECT pg_current_wal_lsn()::text AS lsn"
        return str((await self.source.row(MAINTENANCE, query))["lsn"])

    async def lag(self, lsn: str = "") -> Lag | None:
        """How far the target is behind ``lsn``, or now; None: there is no slot."""
        till = f"{literal(lsn)}::pg_lsn" if lsn else "pg_current_wal_lsn()"
        rows = await self.source.rows(
            MAINTENANCE,
            f"SELECT greatest(0, {till} - confirmed_flush_lsn)::bigint AS size, active"
            f" FROM pg_replication_slots WHERE slot_name = {literal(self.tag)}",
        )
        return Lag(rows[0]["size"], rows[0]["active"]) if rows else None

    async def copied(self, target: str, progress: Callable[[int], None]) -> int:
        """Wait until all tables have been copied for the first time.

        :return: how many bytes the target has more than an empty database.
        """
        query = (
            "SELECT pg_database_size(current_database()) - pg_database_size('template0') AS size,"
            " (SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r') AS open,"
            " (SELECT coalesce(sum(apply_error_count + sync_error_count), 0)"
            f" FROM pg_stat_subscription_stats WHERE subname = {literal(self.tag)}) AS errors"
        )
        patience = _Patience(self.target, stalled=math.inf)
        carried = 0
        while True:
            now = await self.target.row(target, query)
            carried = max(carried, int(now["size"]))
            progress(carried)
            if now["open"] == 0:
                return carried
            # A copy that fails is begun anew: what counts is the tables that are done.  Nor is
            # it late, ever: it waits for the oldest transaction at the source.
            patience.look(now["open"], now["errors"])
            await deferLater(self._reactor, LOOK_EVERY)

    async def caught_up(
        self, lsn: str, progress: Callable[[int], None], *, may_lose: bool = False
    ) -> bool:
        """Wait until the target has confirmed ``lsn``.

        :param may_lose: whether to return when there has been no sender for a while.
        :return: whether it has.
        """
        patience = _Patience(self.target)
        errors = 0
        at_first: int | None = None
        looked = served = time.monotonic()
        while True:
            lag = await self.lag(lsn)
            if lag is None:
                raise MoverError(f"the slot {self.tag} on {self.source.node} is gone")
            at_first = lag.size if at_first is None else at_first
            progress(max(0, at_first - lag.size))
            if lag.size == 0:
                return True
            now = time.monotonic()
            served = now if lag.served else served
            if may_lose and now - served > _GONE:
                return False
            if now - looked > 1.0:
                looked, errors = now, await self._errors()
            patience.look(lag.size, errors)
            await deferLater(self._reactor, LOOK_OFTEN)

    async def resume(self, target: str, source: str) -> None:
        """Go on with a source that has got another name."""
        name = ident(self.tag)
        await self.target.run(
            target,
            f"ALTER SUBSCRIPTION {name} CONNECTION {literal(self.reach(source))}",
            f"ALTER SUBSCRIPTION {name} ENABLE",
        )

    async def stop(self, target: str) -> None:
        """Have the target ask for no more; nothing, if there is no subscription."""
        if not await self.subscribed():
            return
        worker = f"pg_stat_subscription WHERE subname = {literal(self.tag)} AND pid IS NOT NULL"
        await self.target.run(
            target,
            f"ALTER SUBSCRIPTION {ident(self.tag)} DISABLE",
            "DO $$ BEGIN FOR turn IN 1..500 LOOP PERFORM pg_stat_clear_snapshot();"
            f" EXIT WHEN (SELECT count(pg_terminate_backend(pid)) FROM {worker}) = 0;"
            " PERFORM pg_sleep(0.02); END LOOP; END $$",
        )

    async def unsubscribe(self, target: str) -> None:
        """Drop the subscription, without a word to the source; nothing, if there is none."""
        if not await self.subscribed():
            return
        await self.stop(target)
        name = ident(self.tag)
        # It would look for slots at the source and wait for that, were it not for nowhere.
        await self.target.run(
            target,
            f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)",
            f"ALTER SUBSCRIPTION {name} CONNECTION {literal(_NOWHERE)}",
            f"DROP SUBSCRIPTION {name}",
        )

    async def drop_slots(self, system: str) -> None:
        """Drop the slots at the source; nothing, if there are none.

        :param system: the number of the target's cluster.
        """
        own = f"slot_name = {literal(self.tag)}"
        if system:
            copies = f"^pg_[0-9]+_sync_[0-9]+_{system}$"
            own += f" OR slot_name ~ {literal(copies)}"
        await self.source.run(
            MAINTENANCE,
            f"""DO $$
DECLARE slot record;
BEGIN
  FOR turn IN 1..500 LOOP
    FOR slot IN SELECT slot_name, active_pid FROM pg_replication_slots WHERE {own} LOOP
      BEGIN
        IF slot.active_pid IS NULL THEN
          PERFORM pg_drop_replication_slot(slot.slot_name);
        ELSE
          PERFORM pg_terminate_backend(slot.active_pid);
        END IF;
      EXCEPTION WHEN object_in_use OR undefined_object THEN NULL;
      END;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_replication_slots WHERE {own}) THEN
      RETURN;
    END IF;
    PERFORM pg_sleep(0.02);
  END LOOP;
  RAISE EXCEPTION 'the replication slot {self.tag} is in use, and its sender does not end';
END $$""",
        )

    async def unpublish(self, source: str) -> None:
        """Drop the publication; nothing, if there is none."""
        await self.source.run(source, f"DROP PUBLICATION IF EXISTS {ident(self.tag)}")

    async def _errors(self) -> int:
        row = await self.target.row(
            MAINTENANCE,
            "SELECT coalesce(sum(apply_error_count + sync_error_count), 0) AS errors"
            f" FROM pg_stat_subscription_stats WHERE subname = {literal(self.tag)}",
        )
        return int(row["errors"])


class _Patience:
    """Gives up a wait for the target when nothing comes of it."""

    def __init__(self, target: PostgresServer, stalled: float = _STALLED) -> None:
        self._target = target
        self._stalled = stalled
        self._state: Any = None
        self._since = time.monotonic()
        self._errors = 0

    def look(self, state: Any, errors: int) -> None:
        """Look at what should change.

        :raise MoverError: it has not for too long, or the target's workers fail again and again.
        """
        now = time.monotonic()
        if state != self._state:
            self._state, self._since, self._errors = state, now, errors
        why = ""
        if errors - self._errors >= _FAILED:
            why = "fails again and again"
        elif now - self._since > self._stalled:
            why = f"has made no progress for {self._stalled:g} s"
        if why:
            raise MoverError(
                f"replication into the server on {self._target.node} {why}; "
                "its log says why (a full disk, or rows that are there already)"
            )
