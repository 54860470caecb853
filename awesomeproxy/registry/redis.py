"""The registry of a cluster, in Redis.

The rules are those of all registries: a :class:`.book.Book` is run on this node's copy of the
records, and what it has read and wants to write is handed to Redis, which does all of it if
nothing of what was read has changed, and otherwise says what has; then it is run again.

A change whose answer was lost is run again on what is there then.  If it is refused because it
has been made, the records say so: they carry what the change is called.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from awesomeproxy.model import Cluster
from awesomeproxy.registry.book import HISTORY, Book
from awesomeproxy.registry.booked import BookedRegistry, Care, R
from awesomeproxy.registry.clock import RegistryClock
from awesomeproxy.registry.interface import (
    Doubtful,
    RegistryError,
    Superseded,
    Unreachable,
)
from awesomeproxy.registry.link import Link, Origin
from awesomeproxy.registry.records import packed
from awesomeproxy.registry.stage import Stage
from awesomeproxy.registry.view import Change, View

log = Logger()

PAGE = 2000  # records that are read at once
PATIENCE = 5.0  # seconds that a change waits for a registry that is lost
TRIES = 50  # of a change that others are faster than
FILE = "cluster.json"


class RedisRegistry(BookedRegistry):
    """The registry in Redis; made by :meth:`open`."""

    def __init__(
        self,
        reactor: Any,
        cluster: Cluster,
        node: str,
        state_dir: Path,
        now: Callable[[], float] = time.time,
        keep: int = HISTORY,
    ) -> None:
        """
        :param node: this node's name.
        :param state_dir: of the node, where it remembers which cluster it belongs to.
        """
        self.view = View(keep)
        self.node = node
        self.life = 0  # of this node's membership; 0: it is no member
        self._reactor = reactor
        self._file = state_dir / FILE
        self._seen = self._remembered()
        self.clock = RegistryClock()
        self.link = Link(reactor, cluster, replace(self._seen), self.clock)
        self._stage = Stage(self.view, lambda: self._me, lambda: self.link.epoch)
        super().__init__(Book(self._stage, now, keep))
        self._waiting: list[Deferred[None]] = []
        self._catching_up: Deferred[None] | None = None
        self._nodes_of: int | None = None  # the epoch whose nodes the view has
        self.on_change: list[Callable[[Change], None]] = []
        self.on_return: list[Callable[[], Awaitable[None]]] = []
        self.counters = {"mended": 0, "gaps": 0}
        self.link.listen("changes", self._heard)
        self.link.on_ready = self._return
        self.link.on_lost.append(self._lost)
        self._closed = False
        self._under_way: list[Deferred[None]] = []

    @classmethod
    def open(
        cls,
        reactor: Any,
        cluster: Cluster,
        node: str,
        state_dir: Path,
        now: Callable[[], float] = time.time,
        keep: int = HISTORY,
    ) -> Deferred[RedisRegistry]:
        """Connect to it, however long that takes, and read it whole.

        Cancel it to give up.
        """
        registry = cls(reactor, cluster, node, state_dir, now, keep)
        registry.link.start()
        return Deferred.fromCoroutine(registry._opened())

    async def _opened(self) -> RedisRegistry:
        try:
            await self.back(None)
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def _me(self) -> tuple[str, int]:
        return (self.node, self.life) if self.life else ("", 0)

    # What it is asked

    def _read(self, work: Callable[[], R]) -> Deferred[R]:
        return self._doing(self._looked(work))

    async def _looked(self, work: Callable[[], R]) -> R:
        self._check_open()
        await self.catch_up()
        self._stage.clear()
        return work()

    def _write(self, care: Care, sites: Sequence[str], work: Callable[[], R]) -> Deferred[R]:
        return self._doing(self._written(care, work))

    def _doing(self, work: Coroutine[Any, Any, R]) -> Deferred[R]:
        doing = Deferred.fromCoroutine(work)
        ended: Deferred[None] = Deferred()
        self._under_way.append(ended)

        def end(result: Any) -> Any:
            self._under_way.remove(ended)
            ended.callback(None)
            return result

        return doing.addBoth(end)

    async def _written(self, care: Care, work: Callable[[], R]) -> R:
        self._check_open()
        patience = None if care is Care.FIRM else PATIENCE
        doubtful: dict[str, Any] = {}  # what may have been made, and what came of it
        tries = 0
        while tries < TRIES:
            try:
                await self.back(patience)
            except Unreachable as problem:
                if not doubtful:
                    raise
                raise Doubtful(
                    str(problem), made=lambda: any(map(self.view.made, doubtful))
                ) from None
            change = f"{self.node}:{secrets.token_hex(8)}"
            self._stage.clear(change)
            result = refused = None
            try:
                result = work()
            except RegistryError as problem:
                refused = problem  # if what it is refused for is still so
            changes = self._stage.changes and refused is None
            try:
                current = await self._ask(self._stage.asked(changes))
                if not current:
                    tries += 1
                    continue
                if refused is not None:
                    made = [each for each in doubtful if self.view.made(each)]
                    if not made:
                        raise refused
                    result = doubtful[made[0]]  # it is refused because it has been made
                if care is Care.FIRM:
                    await self._kept()
            except (Unreachable, Doubtful):
                if changes:
                    doubtful[change] = result
                continue
            return result  # type: ignore[return-value]
        raise Unreachable(f"{self.link.where}: others change this too often; try again")

    async def _ask(self, asked: str) -> bool:
        """Have a change made; whether it was, because all was still as it was read."""
        life = str(self.life) if self.life else ""
        answer = await self.link.call("write", self.node, life, asked, firm=True)
        if answer == "STALE":
            # All of it: a few records that are new among old ones would say what never was.
            await self.catch_up()
            return False
        if answer == "GONE":
            raise Superseded("this node was taken for dead; it joins again by itself")
        self._heard(answer.removeprefix("OK "))
        return True

    async def _kept(self) -> None:
        """Wait until as many replicas have it as must."""
        while not await self.link.kept():
            if self._closed:
                raise RegistryError(f"{self.link.where} is closed, and too few replicas have it")

    async def catch_up(self) -> None:
        """Read what was changed since.

        :raise Unreachable: it cannot be.
        """
        version, whole = str(self.view.version), ""
        records: list[str] = []
        while whole != "all":
            answer = await self.link.call("since", version, str(PAGE))
            head, *lines = answer.split("\n")
            _, newest, whole = head.split()
            records += lines
            version = newest if whole == "all" else lines[-1].split(" ", 2)[1]
        # At once: a change of several records is seen whole or not at all.
        change = self.view.take(records)
        self.view.version = max(self.view.version, int(version))
        self._tell_of(change)

    async def back(self, patience: float | None) -> None:
        """Wait for a registry that was lost to be there again.

        :param patience: seconds to wait; None: for ever.
        :raise Unreachable: it has not come back.
        """
        self._check_open()
        if self.link.ready:
            return
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if patience is None:
            await waiting
            return
        try:
            await waiting.addTimeout(patience, self._reactor, lambda _, __: self._not_back())
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def _not_back(self) -> None:
        raise Unreachable(f"{self.link.where} cannot be reached: {self.link.problem}")

    # What it hears

    def _heard(self, message: str) -> None:
        epoch = int(message.split(" ", 1)[0])
        if epoch != self.link.epoch:
            if epoch > self.link.epoch and self.link.ready:
                self.link.renew("its data have begun another epoch")
            return
        change, missing = self.view.heard(message)
        self._tell_of(change)
        if missing:
            self.counters["gaps"] += 1
            self.look()

    def look(self) -> None:
        """Read what was changed since, soon; once is enough if it is asked for repeatedly."""
        if self._catching_up is None and self.link.connected:
            self._catching_up = Deferred.fromCoroutine(self.catch_up())
            self._catching_up.addBoth(self._caught_up)

    def _caught_up(self, result: Any) -> None:
        self._catching_up = None
        if isinstance(result, Failure):
            # It is read whole when the registry is back.
            result.trap(RegistryError)  # type: ignore[no-untyped-call]

    def _tell_of(self, change: Change) -> None:
        if not change:
            return
        for callback in list(self.on_change):
            callback(change)
        self._tell(sorted(change.placements | change.definitions))

    # Lost and back

    async def _return(self) -> None:
        """Catch up on a new connection, and give back what a fail-over has lost."""
        self._remember()
        lost = self.view.lost(self.link.origin.kept)
        if lost:
            self.counters["mended"] += len(lost)
            log.warn(
                "{where} had lost {count} changes that this node knows of; they are made again",
                where=self.link.where,
                count=len(lost),
            )
            self._heard((await self.link.call("mend", packed(lost))).removeprefix("OK "))
        await self.catch_up()
        await self._drop_aged()
        await self._reread_nodes()
        for callback in list(self.on_return):
            await callback()
        self._reactor.callLater(0, self._be_back)

    async def _drop_aged(self) -> None:
        """Migrations whose end was not heard of, and is not remembered any more, have ended."""
        for number, version in self.view.aged().items():
            asked = packed({"checks": [["journal", str(number), version]], "puts": []})
            if await self.link.call("write", self.node, "", asked) == "STALE":
                self._tell_of(self.view.drop_aged(number, version))

    async def _reread_nodes(self) -> None:
        """What a fail-over has lost of nodes nobody gives back: they say themselves what they are.

        Until they do, barriers wait for those that the registry has.
        """
        epoch, before = self.link.epoch, self._nodes_of
        if before not in (None, epoch):
            _, *lines = (await self.link.call("hash", "nodes")).split("\n")
            self._tell_of(self.view.take_nodes(lines, epoch))
        self._nodes_of = epoch

    def _be_back(self) -> None:
        if self.link.ready:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)

    def _lost(self) -> None:
        if not self._closed:
            log.warn("{where} is lost: {why}", where=self.link.where, why=self.link.problem)

    def _remembered(self) -> Origin:
        try:
            known = json.loads(self._file.read_text())
            return Origin(known["cluster"], known["epoch"], known["run"])
        except FileNotFoundError:
            return Origin()
        except (OSError, ValueError, KeyError) as problem:
            raise RegistryError(
                f"{self._file}: cannot be read: {problem}; it says which cluster this node "
                "belongs to: restore it, or remove it if that is the one it is configured for"
            ) from None

    def _remember(self) -> None:
        origin = self.link.origin
        if (origin.cluster, origin.epoch, origin.run) == (
            self._seen.cluster,
            self._seen.epoch,
            self._seen.run,
        ):
            return
        self._seen = replace(origin)
        new = self._file.with_suffix(".new")
        with new.open("w") as file:
            json.dump({"cluster": origin.cluster, "epoch": origin.epoch, "run": origin.run}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._file)

    def _check_open(self) -> None:
        if self._closed:
            raise RegistryError(f"{self.link.where} is closed")

    def close(self) -> Deferred[None]:
        self._closed = True
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        # What was asked is done, unless that would have to wait for Redis to come back.
        while self.link.ready and self._under_way:
            await DeferredList(list(self._under_way))
        self.link.close()
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.errback(Unreachable(f"{self.link.where} is closed"))
