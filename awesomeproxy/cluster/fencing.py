"""Doing without a node: because people say so, a command has made sure, or its lease is over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from awesomeproxy.cluster.interface import Member
from awesomeproxy.cluster.members import Members, is_member
from awesomeproxy.model import Cluster, Reach
from awesomeproxy.movers.shell import Shell, ShellError
from awesomeproxy.registry.interface import NotAllowed, RegistryError
from awesomeproxy.registry.records import packed
from awesomeproxy.registry.redis import RedisRegistry

log = Logger()


class Fencing:
    """Ends of memberships, but for this node's own."""

    def __init__(
        self, reactor: Any, registry: RedisRegistry, members: Members, settings: Cluster
    ) -> None:
        self._registry = registry
        self._members = members
        self._settings = settings
        self._shell = Shell(reactor, Reach("local"))
        self._running: dict[str, Deferred[None]] = {}  # the command, by the name of the node
        self._tried: dict[tuple[str, int], str] = {}  # what has become of it, by node and life

    async def fence(self, node: str, why: str) -> Member:
        """See :meth:`ICluster.fence`."""
        member = self._members.get(node)
        if member is None or not is_member(member):
            state = "not known" if member is None else f"{member.state} already"
            raise NotAllowed(f"{node} is {state}; nothing waits for it")
        if not await self._leave(member, "fenced", why):
            raise NotAllowed(f"{node} has left or joined again meanwhile; look at node list")
        log.warn("{node} is fenced: {why}", node=node, why=why)
        return replace(member, state="fenced")

    def told_of(self, member: Member) -> Member:
        """The same, with what has become of the command."""
        told = self._tried.get((member.name, member.life), "")
        return replace(member, fencing=told) if told else member

    async def expire(self, node: str) -> bool:
        """See :meth:`ICluster.expire`.

        For one that serves on, which time alone cannot end, the command is begun, once a life;
        but not by who is cut off with an old master, where all others seem to be gone.
        """
        member = self._members.get(node)
        if member is None or not is_member(member):
            return True
        if member.state != "gone":
            return False
        if member.loss == "hold":
            return await self._leave(member, "expired", "its lease is over")
        if self._settings.fence_command and (node, member.life) not in self._tried:
            if await self._registry.link.kept():
                self._begin(member)
            else:
                log.warn(
                    "{node} is gone, but not fenced: too few replicas of the registry are there,"
                    " so it may be this node that is cut off",
                    node=node,
                )
        return False

    async def remove(self, node: str) -> None:
        """See :meth:`ICluster.remove`."""
        member = self._members.get(node)
        if member is None:
            raise NotAllowed(f"there is no node {node}")
        if is_member(member):
            raise NotAllowed(f"{node} is {member.state}; stop it, or fence it")
        registry = self._registry
        key = f"nodes/{node}"
        asked = {
            "checks": [["nodes", node, registry.view.stored(key)]],
            "puts": [["nodes", node, "", ""]],
        }
        life = str(registry.life)
        answer = await registry.link.call("write", registry.node, life, packed(asked))
        if answer.startswith("STALE"):
            raise NotAllowed(f"{node} has joined meanwhile")
        await registry.catch_up()

    def end(self) -> None:
        """Wait for no command any more."""
        for running in list(self._running.values()):
            running.cancel()

    async def _leave(self, member: Member, state: Literal["fenced", "expired"], why: str) -> bool:
        """Whether it is none any more, by us; an expired one has not beaten meanwhile."""
        registry = self._registry
        record = {
            **registry.view.nodes[member.name],
            "state": state,
            "why": why,
            "by": registry.node,
        }
        beat = str(self._members.beat(member.name)) if state == "expired" else ""
        answer = await registry.link.call(
            "leave", member.name, str(member.life), beat, packed(record), firm=True
        )
        await registry.catch_up()
        return answer == "OK"

    def _begin(self, member: Member) -> None:
        key = (member.name, member.life)
        if key in self._tried:  # by now
            return
        self._tried[key] = "runs"
        running = self._running[member.name] = Deferred.fromCoroutine(self._run(member))
        running.addErrback(self._failed, member).addBoth(self._ran, member.name)

    def _failed(self, failure: Any, member: Member) -> None:
        if not failure.check(CancelledError):
            log.failure("{node} could not be fenced", failure, node=member.name)

    def _ran(self, _: object, name: str) -> None:
        self._running.pop(name, None)

    async def _run(self, member: Member) -> None:
        command = (*self._settings.fence_command, member.name)
        log.warn("{node} is gone; running {command}", node=member.name, command=command)
        try:
            await self._shell.run(*command, time=self._settings.fence_time, end_only=True)
        except ShellError as problem:
            self._tried[member.name, member.life] = f"has failed: {problem}"
            log.error(
                "{node} could not be fenced: {problem}; make sure that it serves nothing, and"
                " say: awesomeproxy node fence {node}",
                node=member.name,
                problem=problem,
            )
            return
        try:
            if await self._leave(member, "fenced", "fence_command"):
                log.warn("{node} is fenced: fence_command has ended well", node=member.name)
        except RegistryError as problem:
            del self._tried[member.name, member.life]
            log.error("{node} could not be fenced: {problem}", node=member.name, problem=problem)
