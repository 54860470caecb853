"""One ZFS filesystem of a node, by way of the commands ``zfs(8)`` has had in all its versions.

What newer ones can do besides is looked for in the usage that they print, and is used where
it is there: a version of 2010 (zfs-fuse) and one of today can be the two ends of a move.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from awesomeproxy.movers.errands import Errands
from awesomeproxy.movers.shell import Shell, ShellError
from awesomeproxy.movers.trying import BUSY, while_busy

# What `zfs send -i` prints when there is nothing to send: two records, BEGIN and END, of
# 312 bytes each (dmu_replay_record_t in sys/zfs_ioctl.h).
_NOTHING = 624
_ENOUGH = 4096  # bytes of a stream that has something in it
CLOSING = 1.0  # seconds until who has files open is taken to keep them so
_PROBE = "awesomeproxy-probe"
NO_SUCH_PROPERTY = 2  # what `zfs get` ends with for one that it does not know


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a filesystem was at one moment; the same on all pools that have its ``guid``."""

    label: str  # what follows the "@"
    guid: str
    used: int  # bytes that only it still has
    referenced: int  # bytes that can be reached from it


@dataclass(frozen=True, slots=True)
class Look:
    """A filesystem as it is now."""

    properties: dict[str, str]
    snapshots: list[Snapshot]  # the oldest first
    children: list[str]  # datasets below it
    marks: dict[str, str]  # what we have noted at it
    probed: bool  # somebody has taken a snapshot for a look, and has left it

    @property
    def mounted(self) -> bool:
        """Whether it is."""
        return self.properties["mounted"] == "yes"

    def number(self, name: str) -> int:
        """The value of a property that is a size, in bytes."""
        return int(self.properties[name])


_MARK = "awesomeproxy:"
_LOOKED_AT = (
    "type,guid,createtxg,used,referenced,available,mounted,readonly,canmount,mountpoint,"
    f"{_MARK}made,{_MARK}fenced,{_MARK}attached"
)
# $1, $2: a filesystem, and the label of a snapshot of it; $3: "leave" what is taken for the look.
# Prints whether a stream from there to now has anything in it: of one that is broken off early
# nothing can be said.  What an earlier look has left is in the way, and goes.
_STREAMED = f"""
zfs snapshot "$1@{_PROBE}" 2>/dev/null ||
    {{ zfs destroy "$1@{_PROBE}" 2>/dev/null; zfs snapshot "$1@{_PROBE}" || exit; }}
told=$({{ {{ zfs send -i "@$2" "$1@{_PROBE}"; echo $? >&3; }} | head -c {_ENOUGH} | wc -c; }} 3>&1)
case $(echo $told) in
"0 {_NOTHING}") echo 0 ;;
"0 "* | *{_ENOUGH}*) echo some ;;
*) echo "zfs send has failed, which was to tell what was written since @$2" >&2; exit 1 ;;
esac
[ "$3" = leave ] || zfs destroy "$1@{_PROBE}"
"""


class Dataset:
    """A filesystem by its name, whether there is one or not."""

    def __init__(self, reactor: Any, shell: Shell, name: str, filesystem: str) -> None:
        """
        :param filesystem: what it is called in the configuration.
        """
        self._reactor = reactor
        self.shell = shell
        self.name = name
        self._filesystem = filesystem
        self._errands = Errands(shell, filesystem)
        self._usages: dict[str, str] = {}

    def __str__(self) -> str:
        return f"{self.name} on {self.shell.reach.name}"

    def above(self) -> Dataset:
        """The one that it is in."""
        return Dataset(self._reactor, self.shell, self.name.rpartition("/")[0], self._filesystem)

    async def zfs(self, *words: str, patience: float = BUSY) -> str:
        """What a ``zfs`` command prints; it is tried again while something is busy."""
        return await while_busy(self._reactor, partial(self._errands.run, "zfs", *words), patience)

    async def all(self, *commands: Sequence[str], patience: float = BUSY) -> None:
        """Run commands, one after the other; all are tried again while something is busy."""
        await while_busy(self._reactor, partial(self._errands.all, *commands), patience)

    async def look(self) -> Look | None:
        """What is there; None: nothing."""
        columns = "name,property,value,source"
        words = ("get", "-Hp", "-d", "1", "-o", columns, _LOOKED_AT, self.name)
        try:
            lines = (await self.zfs(*words)).splitlines()
        except ShellError as problem:
            if "does not exist" in str(problem):
                return None
            raise
        found: dict[str, dict[str, str]] = {}
        marks = {}
        for line in lines:
            name, key, value, source = line.split("\t")[:4]
            found.setdefault(name, {})[key] = value
            if name == self.name and key.startswith(_MARK) and source == "local":
                marks[key.removeprefix(_MARK)] = value
        properties = found.pop(self.name)
        snapshots = {
            name.removeprefix(f"{self.name}@"): each
            for name, each in found.items()
            if each["type"] == "snapshot"
        }
        return Look(
            properties,
            [
                Snapshot(label, each["guid"], int(each["used"]), int(each["referenced"]))
                for label, each in sorted(snapshots.items(), key=lambda i: int(i[1]["createtxg"]))
                if label != _PROBE
            ],
            [name for name, each in found.items() if each["type"] in ("filesystem", "volume")],
            marks,
            _PROBE in snapshots,
        )

    async def set_mark(self, name: str, value: str) -> None:
        """Note something at it; an empty value takes the note away."""
        await self.all(self.marking(name, value))

    def marking(self, name: str, value: str) -> list[str]:
        """The command that does so."""
        if value:
            return self.setting(f"{_MARK}{name}", value)
        return ["zfs", "inherit", f"{_MARK}{name}", self.name]

    async def set(self, key: str, value: str) -> None:
        """Set a property."""
        await self.all(self.setting(key, value))

    def setting(self, key: str, value: str) -> list[str]:
        """The command that does so."""
        return ["zfs", "set", f"{key}={value}", self.name]

    def being_mounted(self, path: str) -> list[str]:
        """A command that fails if it is not mounted at ``path``."""
        # Of the kernel, which takes a third of the time that zfs takes to say so.
        look = 'findmnt -n -S "$1" -M "$2" >/dev/null || { echo "$3" >&2; exit 1; }'
        return ["sh", "-c", look, "sh", self.name, path, f"it is not mounted at {path} any more"]

    async def fence(self, path: str, *first: Sequence[str]) -> None:
        """Let nothing write to it until the node starts anew; it is mounted, and stays so.

        :param first: commands that are run before.
        :raise ShellError: somebody has files open for writing.
        """
        await self.all(*first, _remounting("ro", path), patience=CLOSING)

    async def close(self, path: str, mounted: bool) -> None:
        """Let nothing write to it, now and when it is mounted anew; it can be read at ``path``.

        :param mounted: whether it is.
        :raise ShellError: somebody has files open for writing.
        """
        if mounted:
            await self.fence(path)
        await self.set("readonly", "on")
        if not mounted:
            await self.zfs("mount", "-o", "ro", self.name)

    async def open(self, path: str, mounted: bool, *first: Sequence[str]) -> None:
        """Have it mounted, and let it be written to.

        :param mounted: whether it is.
        :param first: commands that are run before.
        """
        opened = self.setting("readonly", "off")
        if mounted:
            await self.all(*first, opened, _remounting("rw", path), patience=CLOSING)
        else:
            await self.all(*first, opened, ["zfs", "mount", self.name])

    async def unmount(self) -> None:
        """Unmount it.  It is never forced: that would break who uses it."""
        await self.zfs("unmount", self.name, patience=CLOSING)

    async def take(self, label: str) -> None:
        """Take a snapshot."""
        await self.zfs("snapshot", f"{self.name}@{label}")

    async def drop(self, label: str) -> None:
        """Destroy a snapshot, if it is there."""
        try:
            await self.zfs("destroy", f"{self.name}@{label}")
        except ShellError as problem:
            # "does not exist", or "could not find any snapshots to destroy"
            if not re.search("not exist|not find", str(problem)):
                raise

    async def unprobe(self) -> None:
        """Take away what a look has left."""
        await self.drop(_PROBE)

    async def settle(self) -> None:
        """Have what was just written counted: it is only when it has come to the disks."""
        await self.unprobe()
        await self.take(_PROBE)
        await self.unprobe()

    async def changed_since(self, label: str, *, hurry: bool = False) -> bool:
        """Whether anything has been written since its snapshot ``label``.

        :param hurry: let somebody else call :meth:`unprobe`.
        """
        # The property is not there before pool version 5000; but what ``send`` would send tells
        # it as well.
        if "written@" in await self._usage("get"):
            words = ["zfs", "get", "-Hp", "-o", "value", f"written@{label}", self.name]
            written = (await self._errands.run(*words)).strip()
            if written != "-":
                return written != "0"
        words = ["sh", "-c", _STREAMED, "sh", self.name, label, "leave" * hurry]
        return (await self._errands.run(*words)).strip() != "0"

    async def flags(self, command: str) -> str:
        """The flags that a ``zfs`` command says it has, a letter each."""
        usage = await self._usage(command)
        resumes = "t" if "receive_resume_token" in usage else ""  # it stands by itself
        return "".join(re.findall(r"\[-([A-Za-z]+)\]", usage)) + resumes

    async def ready(self) -> None:
        """Ask now what does not change, and would have to be asked in a pause."""
        for command in ("get", "send", "receive"):
            await self._usage(command)

    async def _usage(self, command: str) -> str:
        """How a ``zfs`` command says it is used; ``get`` names all properties there."""
        if command not in self._usages:
            words = ("sh", "-c", 'zfs "$1" 2>&1; true', "sh", command)
            self._usages[command] = await self._errands.run(*words)
        return self._usages[command]


def _remounting(how: str, path: str) -> list[str]:
    # By the kernel alone: zfs-fuse knows nothing of it, and is asked for nothing.
    return ["mount", "-i", "-o", f"remount,{how}", path]
