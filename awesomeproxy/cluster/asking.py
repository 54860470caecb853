"""Questions to other nodes, and the answers to theirs.

A question is told to all who listen, with the names of those whose answers are waited for.
The last of these wakes who has asked; what the others have said by then, or by the deadline,
is all that there is.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.logger import Logger

from awesomeproxy.registry.interface import RegistryError
from awesomeproxy.registry.link import Link
from awesomeproxy.registry.records import packed
from awesomeproxy.together import Work, together

log = Logger()

NOTHING = ""  # the answer of who has none: it was asked in vain, and not waited for


class Asking:
    """This node's questions and answers."""

    def __init__(self, reactor: Any, link: Link, node: str) -> None:
        """
        :param node: this node's name.
        """
        self._reactor = reactor
        self._link = link
        self._node = node
        self._functions: dict[str, Callable[..., Any]] = {}
        self._waiting: dict[str, Deferred[None]] = {}
        link.listen("ask", self._asked)

    def answers(self, question: str, function: Callable[..., Any]) -> None:
        """See :meth:`ICluster.answers`."""
        self._functions[question] = function

    async def ask(
        self, question: str, params: Mapping[str, Any], timeout: float, nodes: Sequence[str]
    ) -> dict[str, Any]:
        """The answers of those that answer in time, by node.

        :param timeout: in seconds.
        """
        asked: list[Work[dict[str, Any]]] = []
        if self._node in nodes:
            asked.append(self._own(question, params, timeout))
        if others := [name for name in nodes if name != self._node]:
            asked.append(self._others(question, params, timeout, others))
        answers = await together(asked, whole=True)
        return {node: answer for each in answers for node, answer in each.items()}

    def answered(self, number: str) -> None:
        """All who were asked have answered a question of ours."""
        if (waiting := self._waiting.pop(number, None)) is not None:
            waiting.callback(None)

    def _own(
        self, question: str, params: Mapping[str, Any], timeout: float
    ) -> Deferred[dict[str, Any]]:
        answer = self._answer(question, params)
        answer.addTimeout(timeout, self._reactor, lambda _, __: NOTHING)
        return answer.addCallback(lambda text: {self._node: json.loads(text)} if text else {})

    async def _others(
        self, question: str, params: Mapping[str, Any], timeout: float, nodes: list[str]
    ) -> dict[str, Any]:
        if not self._link.connected:
            return {}  # nobody would hear it
        number = secrets.token_hex(8)
        waiting = self._waiting[number] = Deferred()
        text = packed([number, self._node, nodes, question, dict(params)])
        self._link.publish("ask", text)
        try:
            await waiting.addTimeout(timeout, self._reactor, lambda _, __: None)
        finally:
            self._waiting.pop(number, None)
        try:
            _, *lines = (await self._link.call("hash", f"answers:{number}")).split("\n")
        except RegistryError:
            return {}
        said = (line.partition(" ") for line in lines if line)
        return {node: json.loads(text) for node, _, text in said if text != NOTHING}

    def _asked(self, message: str) -> None:
        number, node, nodes, question, params = json.loads(message)
        if self._node not in nodes or node == self._node:
            return
        answer = self._answer(question, params)
        answer.addCallback(self._tell, number, node, len(nodes))
        answer.addErrback(_lost)

    def _tell(self, text: str, number: str, node: str, count: int) -> Deferred[str]:
        call = self._link.call("answer", self._node, number, node, str(count), text)
        return Deferred.fromCoroutine(call)

    def _answer(self, question: str, params: Mapping[str, Any]) -> Deferred[str]:
        """What this node says, as JSON; NOTHING if it cannot say anything."""
        function = self._functions.get(question)
        if function is None:
            return succeed(NOTHING)
        return (
            maybeDeferred(function, **params).addCallback(packed).addErrback(self._failed, question)
        )

    def _failed(self, failure: Any, question: str) -> str:
        if not failure.check(CancelledError):  # else nobody waits for it any more
            log.failure("{question}: cannot be answered", failure, question=question)
        return NOTHING


def _lost(failure: Any) -> None:
    """Who has asked does without."""
    failure.trap(RegistryError)
