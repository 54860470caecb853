"""The nodes that share a registry in Redis: this node as one of them."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from awesomeproxy import __version__
from awesomeproxy.cluster.asking import Asking
from awesomeproxy.cluster.fencing import Fencing
from awesomeproxy.cluster.heirs import Heirs
from awesomeproxy.cluster.host import ClusterHost
from awesomeproxy.cluster.interface import ICluster, Member, Roll
from awesomeproxy.cluster.lease import Lease
from awesomeproxy.cluster.members import LIVE, Members
from awesomeproxy.cluster.rolls import Rolls
from awesomeproxy.model import Cluster, Observed, Placement, Settings
from awesomeproxy.registry.interface import Doubtful, RegistryError, Unreachable
from awesomeproxy.registry.records import packed
from awesomeproxy.registry.redis import RedisRegistry
from awesomeproxy.registry.view import Change
from awesomeproxy.together import together

log = Logger()

LOOKS = 2  # at the beats of the others, in a lease
LEFT_OUT = "the others have gone on without this node; it joins them again"
TWIN = (
    "another daemon has joined under this node's name, {name}, and this one serves nothing while "
    "that one lives; give each node a name of its own, in [node]"
)


@implementer(ICluster)
class Fellows:
    """This node's cluster."""

    alone = False

    def __init__(
        self,
        registry: RedisRegistry,
        host: ClusterHost,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        :param registry: it is open.
        :param monotonic: the clock of the host's permit, in seconds.
        """
        settings = host.settings.cluster
        assert settings is not None
        self.node = registry.node
        self._settings: Cluster = settings
        self._registry = registry
        self._host = host
        self._monotonic = monotonic
        self._subscribers: list[Callable[[str, str], None]] = []
        self._process = secrets.token_hex(8)  # tells this process from others of the same name
        self._joined = False
        self._twin = False  # one of these has taken our place
        self._members = Members(monotonic)
        self._rolls = Rolls(registry, self._doubted)
        self._asking = Asking(host.reactor, registry.link, self.node)
        self._fencing = Fencing(host.reactor, registry, self._members, settings)
        self._heirs = Heirs(host, registry, self._members, settings.lease)
        self._lease = Lease(
            host,
            settings.lease,
            settings.on_registry_loss,
            self._beat,
            self._why_unheard,
            monotonic,
        )
        self._looking = LoopingCall(self._look)
        self._looking.clock = host.reactor
        registry.link.listen(f"to:{self.node}", self._told)
        registry.link.on_lost.append(self._lost)
        registry.on_change.append(self._changed)
        registry.on_return.append(self._returned)
        self._members.take_records(registry.view.nodes)

    @property
    def identity(self) -> str:
        """See :class:`ICluster`."""
        return self._registry.link.origin.cluster

    def __repr__(self) -> str:
        return f"<Fellows of {self.node}: {self._members}>"

    # Being one of them

    async def join(self) -> None:
        """See :meth:`ICluster.join`.

        It lasts until as many replicas as must know of it.  Else, on the side of another master,
        pauses could be complete without this node, which had heard nothing of them.
        """
        told = False
        while True:
            await self._registry.back(None)
            try:
                await self._be_member()
                began = self._monotonic()
                while not await self._confirm():
                    if not told:
                        told = True
                        log.error("{why}; nothing is served before", why=self._hindrance())
                    began = self._monotonic()
            except (Doubtful, Unreachable):
                continue
            break
        self._joined = True
        self._lease.begin(began)
        self._looking.start(self._settings.lease / LOOKS).addErrback(
            lambda failure: log.failure("the others are not looked after any more", failure)
        )

    async def leave(self) -> None:
        """See :meth:`ICluster.leave`.

        Without a registry it cannot be said; then others wait for this node until it is back.
        """
        self._joined = False
        if self._looking.running:
            self._looking.stop()
        self._lease.end()
        self._heirs.end()
        self._fencing.end()
        if not self._registry.life:
            return
        life, self._registry.life = self._registry.life, 0
        record = {**self._record(), "life": life, "state": "left"}
        try:
            await self._registry.link.call("leave", self.node, str(life), "", packed(record))
        except RegistryError as problem:
            log.warn("the others were not told that this node leaves: {why}", why=problem)

    async def _be_member(self) -> None:
        registry = self._registry
        record = packed(self._record())
        answer = await registry.link.call("join", self.node, record, firm=True)
        registry.life = int(answer.removeprefix("OK "))
        await registry.catch_up()
        await self._report_all()

    def _record(self) -> dict[str, Any]:
        """What the others may know of this node; its life is added when it joins."""
        return {
            "state": LIVE,
            "loss": self._settings.on_registry_loss,
            "lease": self._settings.lease,
            "version": __version__,
            "digest": digest(self._host.settings),
            "began": self.now(),
            "process": self._process,
        }

    async def _report_all(self) -> None:
        """All at once, and wait until each was heard; raise what hinders one of them."""
        held = self._host.held()
        await together([self._rolls.send(each, {}) for each in held], whole=True)

    def _beat(self) -> Deferred[bool]:
        """Say that this node is there; see :class:`.lease.Lease`."""
        return Deferred.fromCoroutine(self._beaten())

    async def _beaten(self) -> bool:
        if not self._registry.link.ready:  # what is said there has not been read yet
            raise Unreachable("it has to be caught up with first")
        return await self._confirm()

    async def _confirm(self) -> bool:
        """Whether the registry counts this node as there, and the view is what it has."""
        registry = self._registry
        clock, sent = registry.clock, registry.clock.monotonic()
        firm = bool(self._settings.replicas)
        answer = await registry.link.call("beat", self.node, str(registry.life), firm=firm)
        if answer == "GONE":
            await self._rejoin()
        else:
            _, version, seconds, micros = answer.split()
            clock.take(sent, clock.monotonic(), int(seconds) + int(micros) / 1e6)
            if int(version) > registry.view.version:
                await registry.catch_up()
        return await registry.link.kept()

    async def _rejoin(self) -> None:
        """Others may serve what this node has at its backends: drop that, and begin anew.

        :raise Unreachable: another process is this node now.
        """
        await self._registry.catch_up()
        twin = self._has_twin()
        why = TWIN.format(name=self.node) if twin else LEFT_OUT
        if not (twin and self._twin):  # it is told and done once
            log.warn("{why}", why=why)
            self._host.withhold(why)
            self._host.lapse()
            self._host.cut_all()
        self._twin = twin
        if twin:
            raise Unreachable(why)
        await self._be_member()

    def _has_twin(self) -> bool:
        record = self._registry.view.nodes.get(self.node, {})
        there = self._members.get(self.node)
        return (
            record.get("state") == LIVE
            and record.get("process") != self._process
            and there is not None
            and there.state != "gone"
        )

    async def _returned(self) -> None:
        """The registry is back, and has been read."""
        if not self._joined:
            return
        self._members.begin_anew()
        began = self._monotonic()
        try:
            counted = await self._confirm()
        except Unreachable:
            if self._twin:
                return  # the registry is there, but not for this node
            raise
        await self._report_all()
        if counted:
            self._lease.renew(began)
        self._tell("link", "")

    def _lost(self) -> None:
        self._tell("link", "")

    def _is_counted(self) -> bool:
        record = self._registry.view.nodes.get(self.node, {})
        return (record.get("life"), record.get("state")) == (self._registry.life, LIVE)

    def _doubted(self) -> None:
        """This node is none of the members, says the registry: a beat finds out."""
        self._lease.beat()

    # The others

    def members(self) -> list[Member]:
        """See :meth:`ICluster.members`."""
        return [self._fencing.told_of(each) for each in self._members.all()]

    def now(self) -> float:
        """See :meth:`ICluster.now`."""
        return self._registry.clock.now()

    def trouble(self) -> str:
        """See :meth:`ICluster.trouble`."""
        if unheard := self._why_unheard():
            return unheard
        waited = [
            f"{each.name} is {each.silence}"
            for each in self.members()
            if each.state == "gone" and each.loss == "serve"
        ]
        return " and ".join(waited)

    def _why_unheard(self) -> str:
        """Why the registry takes this node for none of the members; empty: it does not."""
        return TWIN.format(name=self.node) if self._twin else self._hindrance()

    def _hindrance(self) -> str:
        """Why nothing can be recorded that has to be kept; empty: it can."""
        link = self._registry.link
        if not link.ready:
            return link.trouble
        if link.copies < self._settings.replicas:
            return (
                f"{link.copies} of {self._settings.replicas} replicas of the registry have"
                " what was written last; see that all of them run and can reach it"
            )
        return ""

    @property
    def counters(self) -> dict[str, int]:
        """What has happened to this node's membership."""
        return dict(self._lease.counters)

    def subscribe(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        """See :meth:`ICluster.subscribe`."""
        self._subscribers.append(callback)

        def end() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return end

    def _tell(self, what: str, name: str) -> None:
        for callback in list(self._subscribers):
            callback(what, name)

    def _told(self, message: str) -> None:
        word, _, name = message.partition(" ")
        if word == "drained":
            self._tell("drained", name)
        elif word == "answered":
            self._asking.answered(name)

    def _changed(self, change: Change) -> None:
        if change.nodes:
            self._heard_of(self._members.take_records(self._registry.view.nodes))
            if self._joined and not self._is_counted():
                self._doubted()
        if change.entries or change.nodes:
            self._heirs.look()

    async def _look(self) -> None:
        """Read the beats."""
        began = self._monotonic()
        if not self._registry.link.ready:
            return
        try:
            _, *lines = (await self._registry.link.call("hash", "beats")).split("\n")
        except RegistryError:
            return
        beats = {name: int(beat) for name, beat in (line.split(" ") for line in lines if line)}
        self._heard_of(self._members.take_beats(beats, began))
        self._heirs.look()

    def _heard_of(self, names: list[str]) -> None:
        for name in names:
            member = self._members.get(name)
            if name != self.node:
                state = member.state if member is not None else "forgotten"
                log.info("node {name} is {state}", name=name, state=state)
            self._tell("member", name)

    # What is asked of them

    def report(self, observed: Observed, more: Mapping[str, Any]) -> None:
        """See :meth:`ICluster.report`."""
        self._rolls.report(observed, more)

    def roll(self, held: Sequence[Placement]) -> Deferred[Roll]:
        """See :meth:`ICluster.roll`."""
        return Deferred.fromCoroutine(self._rolls.call(held))

    def ask(
        self,
        question: str,
        params: Mapping[str, Any],
        timeout: float,
        nodes: Sequence[str] | None = None,
    ) -> Deferred[dict[str, Any]]:
        """See :meth:`ICluster.ask`; of all members, those that are gone are not waited for."""
        asked = self._members.names(LIVE, "late") if nodes is None else list(nodes)
        if not asked:
            return succeed({})
        return Deferred.fromCoroutine(self._asking.ask(question, params, timeout, asked))

    def answers(self, question: str, function: Callable[..., Any]) -> None:
        """See :meth:`ICluster.answers`."""
        self._asking.answers(question, function)

    def fence(self, node: str, why: str) -> Deferred[Member]:
        """See :meth:`ICluster.fence`."""
        return Deferred.fromCoroutine(self._fencing.fence(node, why))

    def expire(self, node: str) -> Deferred[bool]:
        """See :meth:`ICluster.expire`."""
        return Deferred.fromCoroutine(self._fencing.expire(node))

    def remove(self, node: str) -> Deferred[None]:
        """See :meth:`ICluster.remove`."""
        return Deferred.fromCoroutine(self._fencing.remove(node))


def digest(settings: Settings) -> str:
    """Of the tables of a file that all nodes should have alike."""
    tables = (settings.databases, settings.filesystems, settings.nodes)
    text = repr([sorted(table.items()) for table in tables] + [settings.hooks])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
