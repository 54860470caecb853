"""Moves a directory with rsync: rounds while it is in use, and a last one behind the fence.

The source is fenced, and the target kept from everybody until it is attached, by closing
the directory (:mod:`awesomeproxy.movers.closing`).  rsync itself writes to the closed
target from a mount namespace of its own, in which it is writable.

Where one side is this node, rsync runs here and reaches the other through ssh.  Where
neither is, it runs on the source's node, which has to reach the target's with the same
words, and the same configuration file of ssh if one is named.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Coroutine
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

from zope.interface import implementer

from awesomeproxy.addresses import absolute_path, text_of
from awesomeproxy.movers.closing import OWN
from awesomeproxy.movers.interface import Estimate, IMover, Job, Kind, MoverError, Place, Progress
from awesomeproxy.movers.resident import Resident
from awesomeproxy.movers.shell import TIME, Shell, ShellError
from awesomeproxy.quantities import choice, flag, show, size
from awesomeproxy.shapes import Several, Shape
from awesomeproxy.together import together

T = TypeVar("T")

LONGEST = 30 * 86400.0  # seconds; who has begun a round gives it up when it is too long
SHOWN = 5  # differences that are told

_BASE = (
    "rsync",
    "-aHAXSx",  # all of it, holes too; and nothing that is mounted beneath
    "--numeric-ids",
    "--secluded-args",  # names need no quotes on the other side
    "--no-human-readable",
    "--delete",
    "--modify-window=-1",  # times differ if nanoseconds do
    "--filter=-x trusted.awesomeproxy.*",  # what closing has written
    "--filter=-x system.*",  # as is rsync's custom where there is no such filter
    "--exclude=/lost+found",
)
# What rsync complains of when it ends with these, and what of that is no fault while the source
# is in use: files that vanish, shrink or change meanwhile; the next round has them right.
_INCOMPLETE = (23, 24)
_FILE_IO = 11  # it could not write, as a rule because the disk is full
_COMPLAINT = re.compile(r"rsync: |file has vanished: |ERROR: |WARNING: ")
_IN_USE = re.compile(
    r"file has vanished: "
    r"|(ERROR|WARNING): .* failed verification"
    r"|rsync: (\[sender\] |(?!\[)).*: (No such file or directory|Not a directory) ?\((2|20)\)$"
    r"|rsync: (\[sender\] |(?!\[)).*: No data available ?\(61\)$"
)
# What is asked of closing.py that changes nothing.
_LOOKS = ("survey", "identify", "flush")
# Makes a closed directory writable for one command, in a mount namespace of its own.
_ENTER = (
    "unshare",
    "--mount",
    "--",
    "sh",
    "-c",
    'mount -o remount,rw,bind -- "$1" && shift && exec "$@"',
    "sh",
)
# Runs a command in a mount namespace of its own, in which the source stays mounted whatever is
# unmounted meanwhile; if it is the source ($2: its identity) and not what is beneath it.
_LEAVE = (
    "unshare",
    "--mount",
    "--",
    "sh",
    "-c",
    'if [ "$(stat -L -c %d:%i -- "$1")" = "$2" ]; then shift 2 && exec "$@"; fi; '
    'echo "$1 has been unmounted" >&2; exit 1',
    "sh",
)
# Whether rsync is there, and how much a directory takes up; files may vanish meanwhile.
_USED = """
rsync --version >/dev/null || exit
if test -d "$1"; then du -sxB1 -- "$1" 2>/dev/null || true; else echo 0; fi
"""
_DONE = re.compile(rb"(\d+) +\d+%")


@dataclass(frozen=True, slots=True)
class Directory:
    """Where the filesystem is on one node."""

    path: str


@dataclass(frozen=True, slots=True)
class Options:
    """How to carry it."""

    exclude: tuple[str, ...] = ()
    compress: bool = False
    bandwidth: int = 0  # bytes a second; 0: all there is
    verify: str = "times"


@implementer(IMover)
class Rsync:
    """The mover."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._options: Options = job.options
        self._source, self._target = job.source, job.target
        far = [place for place in (self._source, self._target) if not place.shell.local]
        self._one_node = (
            self._source.node == self._target.node
            or self._source.shell.reach.ssh == self._target.shell.reach.ssh
        )
        if len(far) == 1:
            here = self._target if far[0] is self._source else self._source
            self._runner: Shell = here.shell
            self._pulls = far[0] is self._source
        else:
            self._runner = self._source.shell
            self._pulls = False
        self._closers = self._residents("closing.py")
        self._fingerprints = self._residents("fingerprint.py")

    def _residents(self, program: str) -> dict[Shell, Resident]:
        """One of ours on each side."""
        text = files("awesomeproxy.movers").joinpath(program).read_bytes()
        shells = (self._source.shell, self._target.shell)
        return {shell: Resident(shell, self.job.name, text) for shell in shells}

    async def check(self) -> None:
        source, target = self._source, self._target
        at_source = await self._closing(source, "survey")
        if not at_source["exists"]:
            raise self._error(f"{source.settings.path} is not there on {source.node}; make it")
        if not at_source["writable"]:
            raise self._error(
                f"{source.settings.path} is read-only on {source.node}; "
                "mount it writable, or end the migration that has closed it"
            )
        at_target = await self._closing(target, "survey")
        for place, there in ((source, at_source), (target, at_target)):
            if there.get("below"):
                raise self._error(
                    f"something else is mounted at {there['below'][0]} on {place.node}; "
                    "make it a filesystem of its own, or unmount it"
                )
        if self._one_node:
            one, two = at_source["path"] + "/", at_target["path"] + "/"
            if one.startswith(two) or two.startswith(one):
                raise self._error(f"{one} and {two} are not apart on {source.node}; name others")
        if at_target["exists"]:
            self._refuse_strange(at_target)
        if self.job.migration:  # else nothing is going to be moved
            await self._closing(source, "claim", str(self.job.migration))
        if self._remote:
            words = self._ssh(target)
            destination = target.shell.reach.ssh
            await self._run(self._runner, *words, destination, "true")
        await self._refuse_full(at_target["free"])

    def _refuse_strange(self, there: dict[str, Any]) -> None:
        where = f"{self._target.settings.path} on {self._target.node}"
        if not there["empty"] and there["name"] != self.job.name:
            other = f"filesystem {there['name']}" if there["name"] else "something else"
            raise self._error(f"{where} has {other} in it; empty it, or name another path")
        if there["holders"]:
            raise self._error(f"{where} is in use: {there['holders'][0]}; stop what uses it")

    async def _refuse_full(self, free: int) -> None:
        used = [await self._used(place) for place in (self._source, self._target)]
        needed = used[0] - used[1]
        if needed > free:
            raise self._error(
                f"{self._target.settings.path} on {self._target.node} has room for {free} bytes, "
                f"and {needed} are needed; make room"
            )

    async def _used(self, place: Place) -> int:
        """The bytes that it takes up on the disk; refuses a node that has no rsync."""
        argv = ("sh", "-c", _USED, "sh", place.settings.path)
        return int((await self._run(place.shell, *argv, time=LONGEST)).split()[0])

    async def estimate(self) -> Estimate:
        said = await self._rsync("--dry-run", "--stats", patient=True)
        for residents in (self._closers, self._fingerprints):  # a pause may be next
            for shell, resident in residents.items():
                await self._told(shell, resident.ready())
        return Estimate(
            whole=_figure("Total file size", said),
            pending=_figure("Total transferred file size", said),
        )

    async def presync(self, progress: Progress) -> int:
        return await self._carry(progress)

    async def fence(self) -> None:
        await self._close(self._source, "source")

    async def unfence(self) -> None:
        await self._open(self._source)

    async def sync(self, progress: Progress) -> int:
        return await self._carry(progress, last=True, checksum=self._options.verify == "checksum")

    async def attach(self) -> None:
        if not await self._open(self._target):
            raise self._error(
                f"{self._target.settings.path} on {self._target.node} was not carried by "
                f"migration {self.job.migration}; begin again"
            )

    async def detach(self) -> None:
        await self._close(self._target, "again")

    async def verify(self) -> None:
        same, _ = await together([self._same(), self._close(self._source, "still")])
        if not same:
            await self._compare()

    async def _same(self) -> bool:
        """Whether it can be told without rsync that both sides have the same."""
        if self._options.exclude or self._options.verify == "checksum":
            return False
        one, two = await together(
            [
                self._told(
                    place.shell,
                    self._fingerprints[place.shell].ask(
                        place.settings.path, time=LONGEST, changes=False
                    ),
                )
                for place in (self._source, self._target)
            ]
        )
        return bool(one == two)

    async def _compare(self) -> None:
        """Have rsync look for differences.

        :raise MoverError: there are some.
        """
        how = ["--dry-run", "--out-format=%i %n"]
        if self._options.verify == "checksum":
            how.append("--checksum")
        if lines := (await self._rsync(*how)).splitlines():
            shown = "; ".join(lines[:SHOWN])
            raise self._error(
                f"{len(lines)} entries of {self._target.settings.path} on {self._target.node} "
                f"are not as at the source: {shown}; see what has written there"
            )

    async def clean(self) -> None:
        await self._close(self._source, "again")

    async def abandon(self) -> None:
        await self.detach()

    # Carrying

    async def _carry(
        self, progress: Progress, *, last: bool = False, checksum: bool = False
    ) -> int:
        readying: list[Coroutine[Any, Any, Any]] = [
            self._closing(self._source, "identify", str(self.job.migration)),
            self._close(self._target, "make"),
        ]
        if last:  # its node may have been started anew meanwhile
            readying.append(self._close(self._source, "still"))
        identity = (await together(readying))[0]
        how = ["--stats", "--info=progress2", "--partial"]
        if checksum:
            how.append("--checksum")
        if self._options.compress:
            how.append("--compress")
        if self._options.bandwidth:
            how.append(f"--bwlimit={max(self._options.bandwidth // 1024, 1)}")
        rest = b""
        most = 0

        def heard(piece: bytes) -> None:
            nonlocal rest, most
            done = _DONE.findall(rest + piece)
            rest = (rest + piece)[-100:]
            if done and int(done[-1]) > most:
                most = int(done[-1])
                progress(most)

        said = await self._rsync(*how, patient=not last, carries=identity, heard=heard)
        await self._closing(self._target, "flush", time=LONGEST)
        return _figure("Total bytes received" if self._pulls else "Total bytes sent", said)

    @property
    def _remote(self) -> bool:
        """Whether neither side is where the other, or rsync, is."""
        return not self._source.shell.local and not self._target.shell.local and not self._one_node

    def _ssh(self, place: Place) -> list[str]:
        """The words with which rsync reaches a place."""
        if self._remote:  # this node's shared connections are not there
            return Shell(self.job.reactor, place.shell.reach).ssh()
        program, *options = place.shell.ssh()
        # One that is made by rsync would stay, in its namespace.
        return [program, "-oControlMaster=no", *options]

    async def _rsync(
        self, *how: str, patient: bool = False, carries: str = "", heard: Any = None
    ) -> str:
        """What rsync has said, run with the options that all rounds have, and these.

        :param patient: the source is in use.
        :param carries: the identity of the source, if this is no dry run.
        """
        one, two = (place.settings.path.rstrip("/") + "/" for place in (self._source, self._target))
        environment = {"LC_ALL": "C", OWN: self.job.name}
        leave = [*_LEAVE, self._source.settings.path, carries] if carries else []
        enter = [*_ENTER, self._target.settings.path] if carries else []
        words = [*_BASE, *(f"--exclude={each}" for each in self._options.exclude), *how]
        beyond = self._source if self._pulls else self._target
        if not self._one_node:
            words.append("--rsh=" + shlex.join(self._ssh(beyond)))
            host = _bracketed(beyond.shell.reach.ssh)
            there = ["env", *(f"{key}={value}" for key, value in environment.items())]
            if self._pulls:
                one = f"{host}:{one}"
                there, leave = [*there, *leave], []
            else:
                two = f"{host}:{two}"
                there, enter = [*there, *enter], []
            words.append("--rsync-path=" + shlex.join([*there, "rsync"]))
        running = self._runner.run(
            *(*leave, *enter, *words, "--", one, two),
            env=environment,
            time=LONGEST,
            **({"heard": heard, "end_only": True} if heard else {}),
        )
        return await self._told(self._runner, _patiently(running) if patient else running)

    # Closing

    async def _close(self, place: Place, how: str) -> None:
        await self._closing(place, "close", str(self.job.migration), self.job.name, how)

    async def _open(self, place: Place) -> bool:
        return bool(await self._closing(place, "open", str(self.job.migration)))

    async def _closing(self, place: Place, act: str, *more: str, time: float = TIME) -> Any:
        """What the program that closes directories answers on a node."""
        asked = self._closers[place.shell].ask(
            act, place.settings.path, *more, time=time, changes=act not in _LOOKS
        )
        return await self._told(place.shell, asked)

    async def _run(self, shell: Shell, *argv: str, **how: Any) -> str:
        return await self._told(shell, shell.run(*argv, **how))

    async def _told(self, shell: Shell, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns on a node, or why it has failed."""
        try:
            return await work
        except ShellError as problem:
            text = f"{shell.reach.name}: {problem.said}" if problem.said else str(problem)
            # What the other end has said is lost if the connection ends before it is passed on.
            unsaid = problem.status == _FILE_IO and not problem.said
            if unsaid or "No space left" in text or "quota exceeded" in text.lower():
                text += f"; make room on {self._target.node}"
            raise self._error(text) from None

    def _error(self, text: str) -> MoverError:
        return MoverError(f"filesystem {self.job.name}: {text}")


async def _patiently(running: Coroutine[Any, Any, str]) -> str:
    """What rsync has said, though files have changed while it carried them."""
    try:
        return await running
    except ShellError as problem:
        complaints = list(filter(_COMPLAINT.match, problem.errors.splitlines()))
        if (
            problem.status not in _INCOMPLETE
            or not complaints
            or not all(map(_IN_USE.match, complaints))
        ):
            raise
        return problem.printed


def _figure(what: str, said: str) -> int:
    """One of the figures that ``--stats`` prints."""
    found = re.search(rf"^{what}: (\d+)", said, re.MULTILINE)
    if found is None:
        raise MoverError(f"rsync has not said its {what.lower()}; see that it is 3.1.3 or later")
    return int(found[1])


def _bracketed(destination: str) -> str:
    """The destination as rsync takes it: an IPv6 address in brackets."""
    user, at, host = destination.rpartition("@")
    return f"{user}{at}[{host}]" if ":" in host else destination


def _pattern(value: object) -> str:
    """A pattern of what is left out."""
    text = text_of(value, "a pattern")
    if not text or not text.isprintable():
        raise ValueError(f'{show(text)} is not a pattern; write one of rsync(1), such as "/cache/"')
    return text


RSYNC = Kind(
    carries="filesystem",
    make=Rsync,
    place=Shape(Directory, {"path": absolute_path}, needed={"path": ""}),
    options=Shape(
        Options,
        {
            "exclude": Several(_pattern, 'a list of patterns, such as ["/cache/", "*.tmp"]', True),
            "compress": flag,
            "bandwidth": size(),
            "verify": choice("times", "checksum"),
        },
    ),
    about={
        "path": "the directory on that node; it is made if it is not there",
        "exclude": "patterns of rsync(1) for what stays where it is",
        "compress": "whether to compress on the way",
        "bandwidth": "bytes a second that are carried at the most",
        "verify": "how files are compared in the end: times (and sizes), or checksum, which "
        "reads all of them, in the pause",
    },
)
