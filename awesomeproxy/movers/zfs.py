"""The mover ``zfs``: snapshots, sent and received, the later ones as what has changed since.

A snapshot that both sides have, told by its guid, is what makes a round short::

    source  ..--1--2--3  (read-only from the fence on)
    target  ..--1--2--3  (read-only and not mounted until it is attached)

A round takes snapshot n + 1, sends what has changed since the newest snapshot of the target,
and drops those that are older.  ZFS itself takes a stream only where nothing has been written
since the snapshot that it begins at, and it is never told to overlook that: a target that has
gone its own way is refused, and nothing of it is lost.  What is kept of a move is the last
snapshot on both sides; the way back begins there.

The fence is a remounting read-only, which the kernel refuses as long as anybody, in whichever
namespace, has a file open for writing; after it nobody can open one.  ``readonly=on`` without
it leaves those who have a file open free to go on (zfs-fuse), and is what keeps the fence up
when the node starts anew: it is set while the last of it is sent.  It stays mounted, so that
who writes to its path gets an error: in an empty directory in its place the writing would go
well, and be lost.

What a step has begun to do it notes at the filesystem first, as a property of ours, with the
number of the migration: what undoes a step that was never begun finds no note, and leaves
alone what may be somebody else's.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from zope.interface import implementer

from awesomeproxy.addresses import absolute_path, text_of
from awesomeproxy.movers.interface import Estimate, IMover, Job, Kind, MoverError, Progress
from awesomeproxy.movers.shell import ShellError
from awesomeproxy.movers.trying import busy, explained
from awesomeproxy.movers.users import users
from awesomeproxy.movers.zfs_dataset import Look
from awesomeproxy.movers.zfs_pair import OURS, Pair, pending, shared
from awesomeproxy.quantities import flag, show
from awesomeproxy.shapes import Shape
from awesomeproxy.together import together

_DATASET = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]*(/[A-Za-z0-9_.:][A-Za-z0-9_.: -]*)+")


def dataset_name(value: object) -> str:
    """The name of a ZFS filesystem that is not a whole pool."""
    name = text_of(value, "a dataset")
    if not _DATASET.fullmatch(name):
        raise ValueError(f'{show(name)} is not a dataset; write POOL/NAME, as in "tank/blog"')
    return name


@dataclass(frozen=True, slots=True)
class ZfsPlace:
    """A dataset, and where it is mounted."""

    dataset: str
    path: str


@dataclass(frozen=True, slots=True)
class ZfsOptions:
    """How it is sent."""

    compressed: bool = False


@implementer(IMover)
class Zfs:
    """One dataset on its way."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._pair = Pair(job)
        self._source = self._pair.source
        self._target = self._pair.target

    async def check(self) -> None:
        """See :class:`IMover`."""
        with explained():
            await together([self._source.ready(), self._target.ready()])
            source = await self._checked_source()
            target = await self._target.look()
            base = await self._pair.base(source, target)
            need = pending(source, base)
            above = self._target.above()
            room = target or await above.look()
            if room is None:
                raise MoverError(
                    f"{self._target} has nowhere to be: there is no {above}; "
                    f"create it there: zfs create -p {shlex.quote(above.name)}"
                )
            if room.number("available") < need:
                raise MoverError(
                    f"{self._target} has no room: {need} bytes are to come, "
                    f"{room.number('available')} are free; make room there, or raise its quota"
                )
            if self.job.options.compressed and "c" not in await self._source.flags("send"):
                raise MoverError(
                    f"zfs on {self.job.source.node} cannot send compressed; "
                    "leave compressed = true out"
                )
            if target is None or not target.mounted:
                await self._check_path()

    async def _checked_source(self) -> Look:
        """What is at the source, if it can be moved."""
        name, path = self._source.name, self.job.source.settings.path
        if (self.job.source.node, name) == (self.job.target.node, self._target.name):
            raise MoverError(f"{self._source} is both source and target; name another target")
        source = await self._source.look()
        if source is None:
            raise MoverError(f"there is no {self._source}; correct dataset, or import its pool")
        properties = source.properties
        if properties["type"] != "filesystem":
            raise MoverError(f"{self._source} is a {properties['type']}, not a filesystem")
        if properties["mountpoint"] != os.path.normpath(path):
            raise MoverError(
                f"{self._source} has mountpoint={properties['mountpoint']}, not path = {path}; "
                f"correct path, or: zfs set mountpoint={shlex.quote(path)} {shlex.quote(name)}"
            )
        if not source.mounted or properties["readonly"] != "off":
            raise MoverError(
                f"{self._source} is closed to writers, as one that has been moved away is; if it "
                "is in use after all: zfs set readonly=off, then zfs mount, with its name"
            )
        if source.children:
            raise MoverError(
                f"{self._source} has datasets below it, which would not come along: "
                f"{', '.join(source.children[:3])}; move each by itself, from another place"
            )
        return source

    async def _check_path(self) -> None:
        path = self.job.target.settings.path
        look = '[ ! -e "$1" ] || find "$1" -mindepth 1 -maxdepth 1 -print -quit'
        if (await self._target.shell.run("sh", "-c", look, "sh", path)).strip():
            raise MoverError(
                f"{path} on {self.job.target.node} is not empty, so that nothing can be mounted "
                "there; see what it is, and move it away"
            )

    async def estimate(self) -> Estimate:
        """See :class:`IMover`."""
        with explained():
            await self._source.settle()
            source, target = await self._pair.looks()
            common = shared(source, target)
            ahead = pending(source, common[-1] if common else None)
            return Estimate(source.number("referenced"), ahead)

    async def presync(self, progress: Progress) -> int:
        """See :class:`IMover`."""
        with explained():
            return await self._pair.resume(progress) or await self._pair.round(progress)

    async def sync(self, progress: Progress) -> int:
        """See :class:`IMover`."""
        with explained():
            resumed = await self._pair.resume(progress)
            return resumed + await self._pair.round(lambda size: progress(resumed + size), True)

    async def fence(self) -> None:
        """See :class:`IMover`."""
        path = self.job.source.settings.path
        with explained():
            # It was mounted when it was checked; something else may be in its place by now.
            there = self._source.being_mounted(path)
            note = self._source.marking("fenced", str(self.job.migration))
            await self._closing(self._source.fence(path, there, note))

    async def _closing(self, closing: Coroutine[Any, Any, None]) -> None:
        """Let nothing write to the source, or say who keeps it from that."""
        path = self.job.source.settings.path
        try:
            await closing
        except ShellError as problem:
            who = await users(self._source.shell, path, writers=True) if busy(problem) else ""
            because = f"{who} has files open for writing in {path}; end that, or have it stopped"
            raise MoverError(
                f"{self._source} cannot be made read-only: {because if who else problem}"
            ) from None

    async def unfence(self) -> None:
        """See :class:`IMover`."""
        with explained():
            source = await self._source.look()
            if source is not None and self._noted(source, "fenced"):
                await self._source.open(self.job.source.settings.path, source.mounted)
                await self._source.set_mark("fenced", "")

    def _noted(self, look: Look, name: str) -> list[str]:
        """What this migration has noted as ``name`` there, in words; empty: nothing."""
        words = look.marks.get(name, "").split()
        return words if words[:1] == [str(self.job.migration)] else []

    async def attach(self) -> None:
        """See :class:`IMover`."""
        with explained():
            seen = self._pair.seen()
            source, target = seen or await self._pair.looks()
            path = self.job.target.settings.path
            if target is None or not shared(source, target):
                raise MoverError(f"nothing has come to {self._target} yet; sync it first")
            first = []
            if not self._noted(target, "attached"):
                if seen is None:
                    # What has just come is as it came: it could only be read.
                    fresh = target.snapshots[-1].label.startswith(self._pair.mine)
                    closed = not target.mounted and target.properties["readonly"] == "on"
                    await self._pair.base(source, target, safe=fresh and closed)
                note = f"{self.job.migration} {target.properties['canmount']}"
                first.append(self._target.marking("attached", note))
            if not target.mounted:
                if "made" in target.marks:  # from now on there is something in it
                    first.append(self._target.marking("made", ""))
                # While it is not mounted: old versions remount for it.
                wanted = {
                    "mountpoint": os.path.normpath(path),
                    "canmount": source.properties["canmount"],
                }
                for key, value in wanted.items():
                    if target.properties[key] != value:
                        first.append(self._target.setting(key, value))
            await self._target.open(path, target.mounted, *first)

    async def detach(self) -> None:
        """See :class:`IMover`."""
        with explained():
            target = await self._target.look()
            note = self._noted(target, "attached") if target is not None else []
            if target is None or not note:
                return
            if target.mounted:
                await self._pair.free_target()
            await self._target.set("readonly", "on")
            await self._target.set("canmount", note[1])
            ours = [each.label for each in target.snapshots if OURS.fullmatch(each.label)]
            # What was written since, by services that were started on it, never came to count.
            await self._target.zfs("rollback", "-r", f"{self._target.name}@{ours[-1]}")
            await self._target.set_mark("attached", "")

    async def verify(self) -> None:
        """See :class:`IMover`."""
        with explained():
            last = await self._pair.last()
            datasets = (self._source, self._target)
            # What the look has needed goes when the migration has ended.
            changed = await together([each.changed_since(last, hurry=True) for each in datasets])
            for dataset in itertools.compress(datasets, changed):
                raise MoverError(
                    f"{dataset} has been written to (or read, with atime=on) since "
                    f"@{last}; see who does that: nobody may use it yet"
                )

    async def clean(self) -> None:
        """See :class:`IMover`."""
        with explained():
            source, target = await self._pair.looks()
            path = self.job.source.settings.path
            await self._closing(self._source.close(path, source.mounted))
            await self._pair.thin(source, target, others=True)
            await self._source.set_mark("fenced", "")
            await self._target.set_mark("attached", "")

    async def abandon(self) -> None:
        """See :class:`IMover`."""
        with explained():
            source, target = await self._pair.looks()
            await self._pair.forget()
            await self._pair.thin(source, target)
            if target is None:
                return
            if not target.snapshots and not target.children and "made" in target.marks:
                await self._target.zfs("destroy", self._target.name)  # nothing has come
            elif self._pair.parked(source, target) and target.properties["canmount"] == "on":
                # as clean had left it
                await self._target.close(self.job.target.settings.path, target.mounted)


ZFS = Kind(
    carries="filesystem",
    make=Zfs,
    mount_point=True,
    place=Shape(
        ZfsPlace,
        {"dataset": dataset_name, "path": absolute_path},
        needed={"dataset": "pool/name", "path": "/"},
    ),
    options=Shape(ZfsOptions, {"compressed": flag}),
    about={
        "dataset": "the filesystem's name in its pool",
        "path": "where it is mounted",
        "compressed": "send blocks compressed as they are on disk (zfs send -c)",
    },
)
