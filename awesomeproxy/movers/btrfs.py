"""The mover ``btrfs``: snapshots of a subvolume, sent and received, the later ones as changes.

A snapshot that both sides have is what makes a round short::

    source  NAME (read-only from the fence on)   .awesomeproxy/NAME/  7-1  7-2  7-3
    target  NAME (made from 7-3 by the attach)   .awesomeproxy/NAME/  7-1  7-2  7-3

A round takes a snapshot, sends what has changed since the newest one in common, and drops
those that are older.  A broken stream leaves a subvolume that is not finished, which goes
away; it cannot be taken up.  What is kept of a move is the last snapshot on both sides, and
the source itself, read-only: the way back begins there.

The fence makes the subvolume read-only, so that nobody can open a file for writing any more.
Who has one open could go on; so the fence then looks at what all processes have open, and
fails if there is one of them.  No new one can come between.

Nothing that was changed is ever overwritten.  Whether something was, what ``send`` would send
is asked for.  What a step has begun to do it notes beside the snapshots first, with the number
of the migration: what undoes a step that was never begun finds no note, and does nothing.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass

from twisted.internet.task import deferLater
from zope.interface import implementer

from awesomeproxy.addresses import absolute_path, some_path
from awesomeproxy.movers.btrfs_subvolume import Home, Subvolume
from awesomeproxy.movers.interface import Estimate, IMover, Job, Kind, MoverError, Place, Progress
from awesomeproxy.movers.shell import ShellError
from awesomeproxy.movers.trying import LONG, explained
from awesomeproxy.movers.users import users
from awesomeproxy.shapes import Shape

CLOSING = 1.0  # seconds until who has files open is taken to keep them so
_LOOK_EVERY = 0.2  # seconds


@dataclass(frozen=True, slots=True)
class BtrfsPlace:
    """A subvolume, and where its snapshots are."""

    path: str
    snapshots: str = ""


@implementer(IMover)
class Btrfs:
    """One subvolume on its way."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._source = self._home(job.source)
        self._target = self._home(job.target)

    def _home(self, place: Place) -> Home:
        settings = place.settings
        return Home(self.job.reactor, place.shell, self.job.name, settings.path, settings.snapshots)

    @property
    def _mine(self) -> str:
        """How the labels of this migration's snapshots begin."""
        return f"{self.job.migration}-"

    async def check(self) -> None:
        """See :class:`IMover`."""
        with explained():
            await self._check_source()
            base = await self._base()
            need = (await self._source.difference(base))[1] if base else await self._source.size()
            above = os.path.dirname(self._target.path)
            look = 'stat -f -c %T "$1" && df --output=avail -B1 "$1" | tail -n 1'
            kind, free = (await self._target.shell.run("sh", "-c", look, "sh", above)).split()
            if kind != "btrfs":
                raise MoverError(
                    f"{above} on {self.job.target.node} is not on a Btrfs, but on {kind}; "
                    "correct path"
                )
            if int(free) < need:
                raise MoverError(
                    f"{self._target} has no room: {need} bytes are to come, {free} are free; "
                    "make room there"
                )

    async def _check_source(self) -> None:
        if (self.job.source.node, self._source.path) == (self.job.target.node, self._target.path):
            raise MoverError(f"{self._source} is both source and target; name another target")
        source = await self._source.look()
        if source is None:
            raise MoverError(f"{self._source} is not a subvolume of a Btrfs; correct path")
        if source.frozen:
            raise MoverError(
                f"{self._source} is closed to writers, as one that has been moved away is; if it "
                f"is in use after all: btrfs property set -ts {shlex.quote(self._source.path)} "
                "ro false"
            )
        below = await self._source.below()
        if below:
            raise MoverError(
                f"{self._source} has subvolumes in it, which would not come along: "
                f"{', '.join(below[:3])}; move each by itself, from another place"
            )
        try:
            await self._source.try_out()
        except ShellError as problem:
            raise MoverError(
                f"{self._source} cannot have snapshots in {self._source.directory}: {problem}; "
                "name a directory on the same Btrfs with snapshots ="
            ) from None

    async def _base(self) -> str | None:
        """The label of the newest snapshot that both have; None: all has to be sent.

        :raise MoverError: the target is none: it has something else in it, or something more.
        """
        common = await self._shared()
        target = await self._target.look()
        if target is None:
            if await self._target.obstacle():
                raise MoverError(
                    f"{self._target} is there already, and is not an empty directory; see what "
                    "it is, and move it away"
                )
            return common[-1] if common else None
        parked = await self._target.note("parked")
        if not target.frozen or not parked or parked[0] not in await self._target.snapshots():
            raise MoverError(
                f"{self._target} is a subvolume already, and not what an earlier move has left; "
                "see what it is, and move it away"
            )
        if (await self._target.difference(parked[0]))[0]:
            raise MoverError(
                f"{self._target} has been written to since {self._target.at(parked[0])}, when it "
                f"was moved away from here; keep what is needed of it, and move it away"
            )
        return common[-1] if common else None

    async def _shared(self) -> list[str]:
        """The labels of the snapshots that both have; the oldest first."""
        return shared(await self._source.snapshots(), await self._target.snapshots())

    async def estimate(self) -> Estimate:
        """See :class:`IMover`."""
        with explained():
            common = await self._shared()
            whole = await self._source.size()
            ahead = (await self._source.difference(common[-1]))[1] if common else whole
            return Estimate(whole, ahead)

    async def presync(self, progress: Progress) -> int:
        """See :class:`IMover`."""
        with explained():
            return await self._round(progress)

    async def sync(self, progress: Progress) -> int:
        """See :class:`IMover`."""
        with explained():
            return await self._round(progress)

    async def _round(self, progress: Progress) -> int:
        """Carry what has changed since the newest snapshot in common."""
        base = await self._base()
        taken = await self._thin()
        numbers = [each.removeprefix(self._mine) for each in taken if each.startswith(self._mine)]
        label = f"{self._mine}{max(map(int, numbers), default=0) + 1}"
        await self._source.take(label)
        await self._target.run("mkdir", "-p", self._target.directory)
        begin = ["-p", self._source.at(base)] if base else []
        size = await self._source.shell.pipe(
            ["btrfs", "send", "-q", *begin, self._source.at(label)],
            self._target.shell,
            ["btrfs", "receive", "-q", self._target.directory],
            progress=progress,
            time=LONG,
        )
        await self._thin()
        return size

    async def _thin(self, others: bool = False) -> list[str]:
        """Drop our snapshots, but for the last that both have, and what is unfinished.

        :param others: also those that only one of them has, whichever migration took them.
        :return: the labels that there were.
        """
        ours, theirs = await self._source.snapshots(), await self._target.snapshots()
        common = shared(ours, theirs)
        if others and not common:
            raise MoverError(f"{self._target} has lost what came from {self._source}; see why")
        for home, found in ((self._source, ours), (self._target, theirs)):
            kept = [*common[-1:], *await home.note("parked")]
            for label, each in found.items():
                goes = label.startswith(self._mine) or label in common or others
                if (goes or not each.frozen) and label not in kept:
                    await home.drop(label)
        return [*ours, *theirs]

    async def fence(self) -> None:
        """See :class:`IMover`."""
        with explained():
            await self._source.set_note("fenced", str(self.job.migration))
            await self._close()

    async def _close(self) -> None:
        """Let nothing write to the source."""
        await self._source.freeze(True)
        late = self.job.reactor.seconds() + CLOSING
        while who := await users(self._source.shell, self._source.path, writers=True):
            if self.job.reactor.seconds() >= late:
                raise MoverError(
                    f"{self._source} cannot be closed to writers: {who} has files open for "
                    "writing in it; end that, or have it stopped before the fence"
                )
            await deferLater(self.job.reactor, _LOOK_EVERY)

    async def unfence(self) -> None:
        """See :class:`IMover`."""
        with explained():
            if await self._noted(self._source, "fenced"):
                await self._source.freeze(False)
                await self._source.set_note("fenced")

    async def _noted(self, home: Home, name: str) -> list[str]:
        """What this migration has noted as ``name`` there, in words; empty: nothing."""
        words = await home.note(name)
        return words if words[:1] == [str(self.job.migration)] else []

    async def attach(self) -> None:
        """See :class:`IMover`."""
        with explained():
            last = await self._last()
            target = await self._target.look()
            if not await self._noted(self._target, "attached"):
                await self._base()
                parked = ["parked"] if target is not None else []
                await self._target.set_note("attached", str(self.job.migration), *parked)
            if target is not None and not target.frozen:
                return
            if target is not None:
                await self._target.delete(self._target.path)
            elif await self._target.is_there():
                await self._target.run("rmdir", self._target.path)
            await self._target.run(
                "btrfs", "subvolume", "snapshot", self._target.at(last), self._target.path
            )

    async def _last(self) -> str:
        """The label of what the last round has carried."""
        common = await self._shared()
        if not common or not common[-1].startswith(self._mine):
            raise MoverError(f"nothing has come to {self._target} yet; sync it first")
        return common[-1]

    async def detach(self) -> None:
        """See :class:`IMover`."""
        with explained():
            noted = await self._noted(self._target, "attached")
            if not noted:
                return
            parked = await self._target.note("parked") if "parked" in noted else []
            target = await self._target.look()
            if target is not None and not (parked and target.frozen):
                await self._target.delete(self._target.path)
                target = None
            if target is None and parked:  # as it was
                words = ("btrfs", "subvolume", "snapshot", "-r", self._target.at(parked[0]))
                await self._target.run(*words, self._target.path)
            await self._target.set_note("attached")

    async def verify(self) -> None:
        """See :class:`IMover`."""
        with explained():
            last = await self._last()
            if list(await self._source.snapshots())[-1] != last:
                raise MoverError(
                    f"{self._target} does not have the last snapshot of {self._source}; sync it"
                )
            for home in (self._source, self._target):
                if (await home.difference(last))[0]:
                    raise MoverError(
                        f"{home} has been written to since {home.at(last)} was taken; see who "
                        "does that: nobody may use it yet"
                    )

    async def clean(self) -> None:
        """See :class:`IMover`."""
        with explained():
            await self._close()
            await self._source.set_note("parked", await self._last())
            await self._target.set_note("parked")
            await self._thin(others=True)
            await self._source.set_note("fenced")
            await self._target.set_note("attached")
            await self._source.tidy()
            await self._target.tidy()

    async def abandon(self) -> None:
        """See :class:`IMover`."""
        with explained():
            await self._thin()
            await self._source.tidy()
            await self._target.tidy()


def shared(ours: dict[str, Subvolume], theirs: dict[str, Subvolume]) -> list[str]:
    """The labels of the snapshots that are the same on both sides; the oldest first."""
    return [
        label
        for label, each in ours.items()
        if (other := theirs.get(label)) is not None
        and each.frozen
        and other.frozen
        and each.origin == other.origin
    ]


BTRFS = Kind(
    carries="filesystem",
    make=Btrfs,
    place=Shape(
        BtrfsPlace,
        {"path": absolute_path, "snapshots": some_path},
        needed={"path": "/"},
    ),
    about={
        "path": "the subvolume",
        "snapshots": "a directory on the same Btrfs, for what movers keep; "
        "empty: .awesomeproxy beside the subvolume",
    },
)
