"""One ZFS filesystem of a node, by way of the commands ``zfs(8)`` has had in all its versions.

What newer ones can do besides is looked for in the usage that they print, and is used where
it is there: a version of 2010 (zfs-fuse) and one of today can be the two ends of a move.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from awesomeproxy.movers.shell import Shell, ShellError
from awesomeproxy.movers.trying import while_busy

# What `zfs send -i` prints when there is nothing to send: two records, BEGIN and END, of
# 312 bytes each (dmu_replay_record_t in sys/zfs_ioctl.h).
_NOTHING = 624
REMOUNTING = 1.0  # seconds until who has files open is taken to keep them so
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

    def number(self, name: str) -> int:
        """The value of a property that is a size, in bytes."""
        return int(self.properties[name])


_LOOKED_AT = "type,guid,createtxg,used,referenced,available,mounted,readonly,canmount,mountpoint"


class Dataset:
    """A filesystem by its name, whether there is one or not."""

    def __init__(self, reactor: Any, shell: Shell, name: str) -> None:
        self._reactor = reactor
        self.shell = shell
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} on {self.shell.reach.name}"

    async def zfs(self, *words: str) -> str:
        """What a ``zfs`` command prints; it is tried again while something is busy."""
        return await while_busy(
            self._reactor, lambda: self.shell.run("zfs", *words, env={"LC_ALL": "C"})
        )

    async def look(self) -> Look | None:
        """What is there; None: nothing."""
        words = ("get", "-Hp", "-d", "1", "-o", "name,property,value", _LOOKED_AT, self.name)
        try:
            lines = (await self.zfs(*words)).splitlines()
        except ShellError as problem:
            if "does not exist" in str(problem):
                return None
            raise
        found: dict[str, dict[str, str]] = {}
        for line in lines:
            name, key, value = line.split("\t")[:3]
            found.setdefault(name, {})[key] = value
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
        )

    async def mark(self, name: str) -> str:
        """A note of ours that it has; empty: it has not."""
        words = ("get", "-H", "-s", "local", "-o", "value", f"awesomeproxy:{name}", self.name)
        return (await self.zfs(*words)).strip()

    async def set_mark(self, name: str, value: str) -> None:
        """Note something at it; an empty value takes the note away."""
        if value:
            await self.set(f"awesomeproxy:{name}", value)
        else:
            await self.zfs("inherit", f"awesomeproxy:{name}", self.name)

    async def set(self, key: str, value: str) -> None:
        """Set a property."""
        await self.zfs("set", f"{key}={value}", self.name)

    async def is_mounted(self) -> bool:
        """Whether it is."""
        words = ("get", "-H", "-o", "value", "mounted", self.name)
        return (await self.zfs(*words)).strip() == "yes"

    async def unmount(self) -> None:
        """Have it not mounted.  It is never forced: that would break who uses it."""
        if await self.is_mounted():
            await self.zfs("unmount", self.name)

    async def close(self, path: str) -> None:
        """Let nothing write to it, now and when it is mounted anew; it can be read at ``path``.

        :raise ShellError: somebody has files open for writing.
        """
        mounted = await self.is_mounted()
        if mounted:
            await self._remount("ro", path)
        await self.set("readonly", "on")
        if not mounted:
            await self.zfs("mount", "-o", "ro", self.name)

    async def open(self, path: str) -> None:
        """Have it mounted, and let it be written to."""
        await self.set("readonly", "off")
        if await self.is_mounted():
            await self._remount("rw", path)
        else:
            await self.zfs("mount", self.name)

    async def _remount(self, how: str, path: str) -> None:
        # By the kernel alone: zfs-fuse knows nothing of it, and is asked for nothing.
        words = ("mount", "-i", "-o", f"remount,{how}", path)
        remount = partial(self.shell.run, *words, env={"LC_ALL": "C"})
        await while_busy(self._reactor, remount, REMOUNTING)

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

    async def settle(self, keep: bool = False) -> None:
        """Have what was just written counted: it is only when it has come to the disks.

        :param keep: leave the snapshot there that this takes.
        """
        try:
            await self.take(_PROBE)
        except ShellError as problem:
            if "already exists" not in str(problem):
                raise
            await self.drop(_PROBE)  # somebody was killed before he could
            await self.take(_PROBE)
        if not keep:
            await self.drop(_PROBE)

    async def changed_since(self, label: str) -> bool:
        """Whether anything has been written since its snapshot ``label``."""
        words = ("get", "-Hp", "-o", "value", f"written@{label}", self.name)
        try:
            return (await self.zfs(*words)).strip() != "0"
        except ShellError as problem:
            if problem.status != NO_SUCH_PROPERTY:
                raise
        # There is no such property before pool version 5000.  But what would be sent?
        await self.settle(keep=True)
        try:
            size = await self.shell.run(
                *("sh", "-c", 'zfs send -i "$1" "$2" | head -c 4096 | wc -c', "sh"),
                *(f"@{label}", f"{self.name}@{_PROBE}"),
            )
        finally:
            await self.drop(_PROBE)
        return int(size) != _NOTHING

    async def flags(self, command: str) -> str:
        """The flags that a ``zfs`` command says it has, a letter each."""
        usage = await self.shell.run("sh", "-c", 'zfs "$1" 2>&1; true', "sh", command)
        resumes = "t" if "receive_resume_token" in usage else ""  # it stands by itself
        return "".join(re.findall(r"\[-([A-Za-z]+)\]", usage)) + resumes
