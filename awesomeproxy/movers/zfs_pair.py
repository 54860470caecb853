"""Two ZFS filesystems, one of which is to become what the other is.

What both have is told by the guids of their snapshots.  Streams begin at the newest snapshot
of the target, or carry all; ZFS itself takes one only where nothing has been written since
that snapshot, and is never told to overlook it.
"""

from __future__ import annotations

import os
import re

from awesomeproxy.movers.interface import Job, MoverError, Progress
from awesomeproxy.movers.shell import ShellError
from awesomeproxy.movers.trying import LONG, busy, while_busy
from awesomeproxy.movers.users import users
from awesomeproxy.movers.zfs_dataset import NO_SUCH_PROPERTY, Dataset, Look, Snapshot
from awesomeproxy.together import together

OURS = re.compile(r"awesomeproxy-[0-9]+-[0-9]+")  # the labels of our snapshots


class Pair:
    """The source and the target of a migration."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.source, self.target = (
            Dataset(job.reactor, place.shell, place.settings.dataset, job.name)
            for place in (job.source, job.target)
        )
        self.mine = f"awesomeproxy-{job.migration}-"  # how the labels of this migration's begin
        self._carried = ""  # the label of the last snapshot that we have carried
        self._seen: tuple[Look, Look] | None = None  # what the last round has begun with

    async def looks(self) -> tuple[Look, Look | None]:
        """Both as they are now.

        :raise MoverError: there is no source.
        """
        source, target = await together([self.source.look(), self.target.look()])
        if source is None:
            raise MoverError(f"{self.source} is gone; see what has become of it")
        return source, target

    def seen(self) -> tuple[Look, Look] | None:
        """Both as the last round found them, to save a look; told once.

        None, if that is not how they are now: but for the one snapshot more that is on both.
        """
        seen, self._seen = self._seen, None
        return seen

    async def base(
        self, source: Look, target: Look | None, *, safe: bool = False
    ) -> Snapshot | None:
        """The snapshot that both have, for a stream to begin at; None: all has to be sent.

        :param safe: nothing can have been written to the target since, or it will be noticed.

        :raise MoverError: the target is none: it has something else in it, or something more.
        """
        if target is None:
            return None
        if target.mounted and not self.parked(source, target):
            raise MoverError(
                f"{self.target} is mounted at {target.properties['mountpoint']}: it may be in "
                "use; if it is not, unmount it there: zfs unmount"
            )
        newest = target.snapshots[-1] if target.snapshots else None
        if newest is None and not target.children and "made" in target.marks:
            return None
        common = shared(source, target)
        if not common:
            raise MoverError(
                f"{self.target} is there already, and has no snapshot in common with "
                f"{self.source}; name another dataset, or, if nobody needs it, rename or destroy "
                "it"
            )
        assert newest is not None
        base = common[-1]
        remedy = f"keep what is needed of it, then: zfs rollback -r {self.target.name}@"
        if newest.guid != base.guid:
            there = next(each.label for each in target.snapshots if each.guid == base.guid)
            raise MoverError(
                f"{self.target} has the snapshot @{newest.label}, which is newer than the last "
                f"that {self.source} has, too; {remedy}{there} (and take none there by a timer)"
            )
        if not safe and await self.target.changed_since(newest.label):
            raise MoverError(
                f"{self.target} has been written to since @{newest.label}, the last snapshot in "
                f"common with {self.source}; {remedy}{newest.label}"
            )
        return base

    @staticmethod
    def parked(source: Look, target: Look) -> bool:
        """Whether the target is what an earlier move has left behind: it can only be read."""
        return target.properties["readonly"] == "on" and bool(shared(source, target))

    async def free_target(self) -> None:
        """Unmount the target, or say who keeps it from that."""
        try:
            await self.target.unmount()
        except ShellError as problem:
            path = self._job.target.settings.path
            who = await users(self.target.shell, path) if busy(problem) else ""
            why = f"{who} uses {path}; end that" if who else problem
            raise MoverError(f"{self.target} cannot be unmounted: {why}") from None

    async def round(self, progress: Progress, last: bool = False) -> int:
        """Carry what has changed since the last snapshot in common.

        :param last: there are no more; the older snapshots are left for later.
        """
        source, target = await self.looks()
        base = await self.base(source, target, safe=last)  # zfs receive refuses it as well
        if target is None:
            path = os.path.normpath(self._job.target.settings.path)
            await self.target.zfs(
                *("create", "-o", "canmount=noauto", "-o", "readonly=on"),
                *("-o", f"mountpoint={path}", "-o", "awesomeproxy:made=yes", self.target.name),
            )
        elif target.mounted:
            await self.free_target()
        labels = [each.label for each in source.snapshots]
        numbers = [each.removeprefix(self.mine) for each in labels if each.startswith(self.mine)]
        label = f"{self.mine}{max(map(int, numbers), default=0) + 1}"
        await self.source.take(label)
        # What is there is the empty one that we have made, or this would not be reached.
        begin = ["-i", f"@{base.label}"] if base else []
        over = [] if base else ["-F"]
        compressed = ["-c"] if self._job.options.compressed else []
        stream = self._stream([*compressed, *begin, f"{self.source.name}@{label}"], over, progress)
        if last:
            # The fence is up; this is for when the node starts anew, and takes a while.
            size, _ = await together([stream, self._keep_closed()])
            if target is not None and not target.mounted and target.properties["readonly"] == "on":
                self._seen = source, target
        else:
            size = await stream
            await self.thin(*await self.looks())
        self._carried = label
        return size

    async def _keep_closed(self) -> int:
        await self.source.set("readonly", "on")
        return 0

    async def last(self) -> str:
        """The label of this migration's last snapshot, which both have.

        :raise MoverError: they do not.
        """
        if not self._carried:
            source, target = await self.looks()
            mine = [each for each in source.snapshots if each.label.startswith(self.mine)]
            if not mine or mine[-1] not in shared(source, target):
                raise MoverError(
                    f"{self.target} does not have the last snapshot of {self.source}; sync it"
                )
            self._carried = mine[-1].label
        return self._carried

    async def _stream(self, sent: list[str], taken: list[str], progress: Progress) -> int:
        able, sends = await together([self.target.flags("receive"), self.source.flags("send")])
        # Not mounted, and so that what has come of a broken stream is kept, where it can be.
        kept = "s" in able and "t" in sends
        taken = [*(["-u"] if "u" in able else []), *(["-s"] if kept else []), *taken]
        sender, taker = self.source.shell, self.target.shell
        to = ["zfs", "receive", *taken, self.target.name]
        return await while_busy(
            self._job.reactor,
            lambda: sender.pipe(["zfs", "send", *sent], taker, to, progress=progress, time=LONG),
        )

    async def resume(self, progress: Progress) -> int:
        """Carry the rest of a stream that was broken off, if the target has kept what came."""
        token = await self._token()
        if not token:
            return 0
        try:
            return await self._stream(["-t", token], [], progress)
        except ShellError as problem:
            if "cannot resume send" not in str(problem):  # what it was sent from is gone
                raise
            await self.forget()
            return 0

    async def _token(self) -> str:
        """What the sender has to be told to go on; empty: there is nothing to go on with."""
        if "s" not in await self.target.flags("receive"):
            return ""
        words = ("get", "-H", "-o", "value", "receive_resume_token", self.target.name)
        try:
            token = (await self.target.zfs(*words)).strip()
        except ShellError as problem:
            if problem.status != NO_SUCH_PROPERTY and "does not exist" not in str(problem):
                raise
            return ""
        return "" if token == "-" else token

    async def forget(self) -> None:
        """Have the target forget what it has kept of a broken stream."""
        if await self._token():
            await self.target.zfs("receive", "-A", self.target.name)

    async def thin(self, source: Look, target: Look | None, others: bool = False) -> None:
        """Drop our snapshots, but for the last that both have.

        :param others: also those that only one of them has, whichever migration took them.
        """
        common = [each.guid for each in shared(source, target)]
        kept = common[-1:]
        if others and not kept:
            raise MoverError(f"{self.target} has lost what came from {self.source}; see why")
        for dataset, look in ((self.source, source), (self.target, target)):
            if look is not None and look.probed:
                await dataset.unprobe()
            for each in look.snapshots if look is not None else []:
                mine = each.label.startswith(self.mine) or each.guid in common or others
                if OURS.fullmatch(each.label) and mine and each.guid not in kept:
                    await dataset.drop(each.label)


def shared(source: Look, target: Look | None) -> list[Snapshot]:
    """Those of the source's snapshots that the target has, too; the oldest first."""
    theirs = {each.guid for each in target.snapshots} if target is not None else set()
    return [each for each in source.snapshots if each.guid in theirs]


def pending(source: Look, base: Snapshot | None) -> int:
    """About how many bytes are to come: what there is more than at ``base``, and in place of
    what is kept for its sake and that of later ones."""
    if base is None:
        return source.number("referenced")
    later = source.snapshots[source.snapshots.index(base) :]
    grown = source.number("referenced") - base.referenced
    return max(0, grown + sum(each.used for each in later))
