"""What a node asks of the other nodes, whether there are any or not.

The registry says what should be; this says who is there to do it, and what they have seen.
A *member* is a node that every pause waits for.  It ends being one when it leaves, when an
operator fences it, or when its lease is over and it has promised to hold by itself then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from awesomeproxy.model import Observed, Placement, Report

MemberState = Literal["live", "late", "gone", "left", "fenced", "expired"]
MEMBERS = ("live", "late", "gone")  # those that a barrier waits for


@dataclass(frozen=True, slots=True)
class Member:
    """A node of the cluster, or one that was."""

    name: str
    life: int  # grows by one each time that it joins
    state: MemberState
    loss: Literal["serve", "hold"]  # what it does when it loses the registry
    lease: float  # seconds without a beat after which one that holds may be left out
    silent: float  # seconds since its last beat, by our clock
    version: str  # of the program
    digest: str  # of the tables of its file that all nodes should have alike
    began: float  # unix time of its joining, for people
    fencing: str = ""  # what has become of fence_command, for people; empty: it was not run

    @property
    def silence(self) -> str:
        """That nothing is heard of it, and what to do about that, for people."""
        command = f"; fence_command {self.fencing}" if self.fencing else ""
        advice = f"(if it is off, say: awesomeproxy node fence {self.name})"
        return f"silent for {self.silent:.0f} s{command} {advice}"


@dataclass(frozen=True, slots=True)
class Roll:
    """Who has drained what is held, of one or more placements."""

    reports: Mapping[str, tuple[Report, ...]]  # by the placement's name
    missing: tuple[tuple[str, str], ...] = ()  # (placement's name, node)
    firm: bool = True  # as many replicas have it as must

    @property
    def complete(self) -> bool:
        """Whether everybody has, and that cannot be lost."""
        return self.firm and not self.missing


class ICluster(Interface):
    """The nodes that serve the same sites."""

    node: str = Attribute("This node's name.")
    alone: bool = Attribute("Whether there can be no others.")
    identity: str = Attribute("What no other cluster is called; empty if alone.")
    counters: Mapping[str, int] = Attribute("What has happened to this node's membership.")

    def join() -> Coroutine[Any, Any, None]:
        """Become a member; fires when all that is held and drained has been reported, and that
        this node is one cannot be lost."""

    def leave() -> Awaitable[None]:
        """Be one no more: nobody waits for this node, which serves nothing any more."""

    def now() -> float:
        """The time that holds end by: unix time, of one clock for all nodes."""

    def members() -> list[Member]:
        """All nodes that are known, by name."""

    def report(observed: Observed, more: Mapping[str, Any]) -> None:
        """Tell that this node has drained what is held, at the generation in ``observed``.

        It never fails: what cannot be told now is told when the registry is back.
        """

    def roll(held: Sequence[Placement]) -> Deferred[Roll]:
        """Who has drained these placements, each at its generation.

        Fails with :class:`~awesomeproxy.registry.interface.Conflict` if one of them was
        changed since, and with :class:`~awesomeproxy.registry.interface.Unreachable`.
        """

    def ask(
        question: str,
        params: Mapping[str, Any],
        timeout: float,
        nodes: Sequence[str] | None = None,
    ) -> Deferred[dict[str, Any]]:
        """The answers of those that answer within ``timeout`` seconds, by node.

        :param nodes: who is asked; None: all members.
        """

    def answers(question: str, function: Callable[..., Any]) -> None:
        """Have ``function`` answer ``question``: it is called with the parameters by name, and
        returns what can be written as JSON, or a Deferred of that."""

    def fence(node: str, why: str) -> Deferred[Member]:
        """Have nobody wait for ``node`` any more.  It must not be able to serve anything.

        Fails with :class:`~awesomeproxy.registry.interface.NotAllowed` if there is no such member.
        """

    def expire(node: str) -> Deferred[bool]:
        """Have nobody wait for ``node`` any more if its lease is over and it holds by itself.

        Fires with whether that is so.
        """

    def remove(node: str) -> Deferred[None]:
        """Forget a node that is no member any more.

        Fails with :class:`~awesomeproxy.registry.interface.NotAllowed` if it is one.
        """

    def trouble() -> str:
        """Why no pause can complete now; empty: one can."""

    def subscribe(callback: Callable[[str, str], None]) -> Callable[[], None]:
        """Have ``callback`` called with what has happened, and to what: ``("drained", name)``
        when all members may have drained a placement, ``("member", node)`` when a node's state
        is another, ``("link", "")`` when the registry was lost or is back.

        :return: ends that.
        """
