"""Moves a filesystem with commands of the operator's own, one for each step.

All of them run on the daemon's node, as the daemon's user.  What they need to know they
find in their environment, and the same as JSON in their input::

    AWESOMEPROXY_STEP          presync, fence, ...
    AWESOMEPROXY_NAME          of the filesystem
    AWESOMEPROXY_MIGRATION     its number; the same when a step is undone after a crash
    AWESOMEPROXY_SCRATCH       a directory for what has to survive a restart of the daemon
    AWESOMEPROXY_SOURCE_NODE   where it is, AWESOMEPROXY_TARGET_NODE where it is to be
    AWESOMEPROXY_SOURCE_PATH   its path there, and ..._TARGET_PATH
    AWESOMEPROXY_SOURCE_SSH    what stands before a command for that node, as a shell splits
                               it; nothing where the daemon is there itself; ..._TARGET_SSH

A command fails by its status, and what it says on its error output is told.  ``estimate``
ends with a line of two numbers, the bytes of the whole and those that are pending.  Lines of
one number that ``presync`` and ``sync`` print are the bytes carried so far; the last one
counts.  A step that has no command does nothing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zope.interface import implementer

from awesomeproxy.addresses import absolute_path, text_of
from awesomeproxy.model import Reach
from awesomeproxy.movers.interface import Estimate, IMover, Job, Kind, MoverError, Place, Progress
from awesomeproxy.movers.shell import Shell, ShellError
from awesomeproxy.quantities import duration, show
from awesomeproxy.shapes import Shape, Spot

TIME = 86400.0  # seconds that a command may take, unless ``time`` says otherwise
_NUMBER = re.compile(rb"^[ \t]*([0-9]{1,18})[ \t]*\r?\n", re.MULTILINE)

Argv = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Directory:
    """Where the filesystem is on one node."""

    path: str


@dataclass(frozen=True, slots=True)
class Commands:
    """The command of each step; empty: the step does nothing."""

    fence: Argv
    unfence: Argv
    sync: Argv
    check: Argv = ()
    estimate: Argv = ()
    presync: Argv = ()
    attach: Argv = ()
    detach: Argv = ()
    verify: Argv = ()
    clean: Argv = ()
    abandon: Argv = ()
    time: float = TIME


@implementer(IMover)
class Command:
    """The mover."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._commands: Commands = job.options
        self._shell = Shell(job.reactor, Reach("this node"))

    async def check(self) -> None:
        await self._run("check")

    async def estimate(self) -> Estimate:
        if not self._commands.estimate:
            return Estimate(0, 0)
        lines = (await self._run("estimate")).split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        numbers = last.split()
        if len(numbers) != 2 or not all(re.fullmatch("[0-9]{1,18}", each) for each in numbers):
            raise self._error(
                "estimate",
                f"ended with {show(last)}; print two numbers, the bytes of the whole and those "
                "that are pending",
            )
        return Estimate(int(numbers[0]), int(numbers[1]))

    async def presync(self, progress: Progress) -> int:
        return await self._carry("presync", progress)

    async def fence(self) -> None:
        await self._run("fence")

    async def unfence(self) -> None:
        await self._run("unfence")

    async def sync(self, progress: Progress) -> int:
        return await self._carry("sync", progress)

    async def attach(self) -> None:
        await self._run("attach")

    async def detach(self) -> None:
        await self._run("detach")

    async def verify(self) -> None:
        await self._run("verify")

    async def clean(self) -> None:
        await self._run("clean")

    async def abandon(self) -> None:
        await self._run("abandon")

    async def _carry(self, step: str, progress: Progress) -> int:
        size = 0
        rest = b""

        def heard(piece: bytes) -> None:
            nonlocal size, rest
            lines, end, rest = (rest + piece).rpartition(b"\n")
            for number in _NUMBER.findall(lines + end):
                size = int(number)
                progress(size)

        said = await self._run(step, heard)
        if not said.endswith("\n"):
            heard(b"\n")
        return size

    async def _run(self, step: str, heard: Callable[[bytes], None] = lambda piece: None) -> str:
        """What the command of a step has printed."""
        argv: Argv = getattr(self._commands, step)
        if not argv:
            return ""
        facts = self._facts(step)
        environment = {f"AWESOMEPROXY_{key.upper()}": _text(value) for key, value in facts.items()}
        try:
            return await self._shell.run(
                *argv,
                input=json.dumps(facts).encode() + b"\n",
                time=self._commands.time,
                env=environment,
                heard=heard,
            )
        except ShellError as problem:
            raise self._error(step, f"failed: {problem}; see to the command") from None

    def _facts(self, step: str) -> dict[str, Any]:
        """What a command is told."""
        job = self.job
        facts: dict[str, Any] = {
            "step": step,
            "name": job.name,
            "migration": job.migration,
            "scratch": job.scratch,
        }
        for side, place in (("source", job.source), ("target", job.target)):
            facts[f"{side}_node"] = place.node
            facts[f"{side}_path"] = place.settings.path
            facts[f"{side}_ssh"] = _before(place)
        return facts

    def _error(self, step: str, text: str) -> MoverError:
        return MoverError(f"filesystem {self.job.name}: {step}: {text}")


def _before(place: Place) -> list[str]:
    """The words that stand before a command for a node."""
    shell = place.shell
    return [] if shell.local else [*shell.ssh(), shell.reach.ssh, "--"]


def _text(value: Any) -> str:
    """A fact as the environment has it."""
    return shlex.join(value) if isinstance(value, list) else str(value)


def _argv(value: object) -> Argv:
    """A command with its arguments."""
    if not isinstance(value, list) or not value:
        raise ValueError(
            f'{show(value)} is not a command; write a list of words, as in ["/usr/bin/carry", "-v"]'
        )
    words = tuple(text_of(word, "each word of the command") for word in value)
    if not words[0] or any("\0" in word for word in words):
        raise ValueError(f"{show(words[0])} cannot be run; write a program's name or path first")
    return words


def _both(commands: Commands, spot: Spot) -> None:
    """What is done must be undone."""
    if commands.attach and not commands.detach:
        spot.at("detach").wrong("is missing; add the command that undoes attach")


_STEPS = (
    "check estimate presync fence unfence sync attach detach verify clean abandon".split()  # noqa: SIM905
)

COMMAND = Kind(
    carries="filesystem",
    make=Command,
    place=Shape(Directory, {"path": absolute_path}, needed={"path": ""}),
    options=Shape(
        Commands,
        {**dict.fromkeys(_STEPS, _argv), "time": duration()},
        needed={"fence": (), "unfence": (), "sync": ()},
        check=_both,
    ),
    about={
        "path": "where the filesystem is on that node",
        "check": "refuses what cannot be moved, before anything is done",
        "estimate": "prints the bytes of the whole, and of what is pending",
        "presync": "carries what the target lacks, while the source is in use",
        "fence": "lets nobody write to the source any more",
        "unfence": "lets them again; also where fence was not begun, or not finished",
        "sync": "carries the last of it",
        "attach": "makes the target usable",
        "detach": "undoes attach; also where it was not begun, or not finished",
        "verify": "fails if the target has not what the source has",
        "clean": "tidies up after the commit; the source stays closed",
        "abandon": "tidies up after a rollback, also where nothing was begun",
        "time": "how long each command may take",
    },
)
