"""One subvolume of a Btrfs on a node, with the snapshots that movers keep beside it.

The snapshots lie in a directory of their own, named after the migration that took them and a
running number.  One that was received says so, with the number that the original has: that is
how both sides know which of theirs are the same.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from awesomeproxy.movers.errands import Errands
from awesomeproxy.movers.shell import Shell
from awesomeproxy.movers.trying import LONG, while_busy

_LABEL = re.compile(r"[0-9]+-[0-9]+")
_PROBE = "probe"
# $1: the directory.  Of each subvolume in it, its name and what there is to know of it.
_LIST = r"""
for each in "$1"/*; do
    [ ! -d "$each" ] || { echo "== ${each##*/}"; btrfs subvolume show "$each"; } || exit
done
"""
# $1, $2: an older and a newer snapshot.  Prints how many things differ (a stream begins with
# one line that is no difference), and how many bytes would have to be sent.
_DIFFERENCE = r"""
btrfs send -q --no-data -p "$1" "$2" | btrfs receive --dump | awk '
    $1 == "update_extent" { sub(/.* len=/, ""); size += $0 }
    END { if (!NR) exit 1; printf "%.0f %.0f\n", NR - 1, size }'
"""


@dataclass(frozen=True, slots=True)
class Subvolume:
    """What one is."""

    uuid: str
    origin: str  # the uuid of what it was received from; its own, if it was not
    frozen: bool  # read-only


def _read(shown: str) -> Subvolume:
    """From what ``btrfs subvolume show`` prints."""
    fields = dict(re.findall(r"^\s*([^:\n]+):[ \t]*(.*?)[ \t]*$", shown, re.MULTILINE))
    received = fields["Received UUID"]
    return Subvolume(
        fields["UUID"],
        fields["UUID"] if received == "-" else received,
        "readonly" in fields["Flags"],
    )


class Home:
    """A subvolume by its path, whether there is one or not, and its snapshots."""

    def __init__(
        self, reactor: Any, shell: Shell, filesystem: str, path: str, snapshots: str
    ) -> None:
        """
        :param filesystem: what it is called in the configuration.
        :param snapshots: the directory for those of all subvolumes; empty: beside this one.
        """
        self._reactor = reactor
        self.shell = shell
        self._errands = Errands(shell, filesystem)
        self.path = os.path.normpath(path)
        above, name = os.path.split(self.path)
        self.directory = os.path.join(snapshots or os.path.join(above, ".awesomeproxy"), name)

    def __str__(self) -> str:
        return f"{self.path} on {self.shell.reach.name}"

    async def run(self, *words: str) -> str:
        """What a command prints; it is tried again while something is busy."""
        return await while_busy(self._reactor, lambda: self._errands.run(*words))

    async def is_there(self) -> bool:
        """Whether there is anything at the path."""
        return bool(await self.run("sh", "-c", '[ ! -e "$1" ] || echo yes', "sh", self.path))

    async def obstacle(self) -> bool:
        """Whether there is something at the path that is not an empty directory."""
        look = (
            'if [ -L "$1" ]; then echo yes; elif [ -d "$1" ]; then ls -A -- "$1"; '
            'elif [ -e "$1" ]; then echo yes; fi'
        )
        return bool(await self.run("sh", "-c", look, "sh", self.path))

    async def look(self) -> Subvolume | None:
        """The subvolume; None: there is none, though something else may be there."""
        what = await self.run(
            *("sh", "-c", '[ ! -e "$1" ] || { stat -f -c %T "$1" && stat -c %i "$1"; }'),
            *("sh", self.path),
        )
        if what.split() != ["btrfs", "256"]:  # BTRFS_FIRST_FREE_OBJECTID: the top of each
            return None
        return _read(await self.run("btrfs", "subvolume", "show", self.path))

    async def below(self) -> list[str]:
        """The subvolumes in it."""
        lines = await self.run("btrfs", "subvolume", "list", "-o", self.path)
        return [line.partition(" path ")[2] for line in lines.splitlines()]

    async def snapshots(self) -> dict[str, Subvolume]:
        """Those beside it that movers have taken or received, by label, the oldest first."""
        listed = await self.run("sh", "-c", _LIST, "sh", self.directory)
        found = {}
        for shown in re.split("^== ", listed, flags=re.MULTILINE)[1:]:
            label = shown.partition("\n")[0]
            if _LABEL.fullmatch(label):
                found[label] = _read(shown.partition("\n")[2])
        return dict(sorted(found.items(), key=lambda item: [*map(int, item[0].split("-"))]))

    def at(self, label: str) -> str:
        """The path of a snapshot."""
        return os.path.join(self.directory, label)

    async def take(self, label: str) -> None:
        """Take a snapshot, which cannot be written to."""
        await self.run("mkdir", "-p", self.directory)
        await self.run("btrfs", "subvolume", "snapshot", "-r", self.path, self.at(label))

    async def drop(self, label: str) -> None:
        """Delete a snapshot, or what has come of one, if it is there."""
        await self.delete(self.at(label))

    async def delete(self, path: str) -> None:
        """Delete a subvolume, if it is there."""
        deleting = '[ ! -e "$1" ] || btrfs subvolume delete -c "$1"'
        await self.run("sh", "-c", deleting, "sh", path)

    async def freeze(self, frozen: bool) -> None:
        """Let nobody open a file of it for writing, or let them again."""
        value = "true" if frozen else "false"
        await self.run("btrfs", "property", "set", "-ts", self.path, "ro", value)

    async def note(self, name: str) -> list[str]:
        """What has been noted as ``name``, in words; empty: nothing."""
        reading = '[ ! -e "$1" ] || cat "$1"'
        return (await self.run("sh", "-c", reading, "sh", self.at(name))).split()

    async def set_note(self, name: str, *words: str) -> None:
        """Note something beside it, so that it outlasts a crash; no words take it away."""
        writing = (
            'set -e; if [ -n "$3" ]; then mkdir -p "$1"; echo "$3" >"$1/$2.new"; '
            'sync "$1/$2.new"; mv "$1/$2.new" "$1/$2"; sync "$1"; else rm -f "$1/$2"; fi'
        )
        await self.run("sh", "-c", writing, "sh", self.directory, name, " ".join(words))

    async def difference(self, label: str) -> tuple[int, int]:
        """What has become of it since one of its snapshots, or since it was made from it.

        :return: how many things differ, and how many bytes there are of new content.
        """
        await self.probe()
        try:
            words = ("sh", "-c", _DIFFERENCE, "sh", self.at(label), self.at(_PROBE))
            changes, size = (await self.shell.run(*words, time=LONG)).split()
        finally:
            await self.drop(_PROBE)
        return int(changes), int(size)

    async def size(self) -> int:
        """How many bytes there are in it."""
        await self.probe()
        try:
            words = ("btrfs", "filesystem", "du", "-s", "--raw", self.at(_PROBE))
            printed = await self.shell.run(*words, time=LONG)
        finally:
            await self.drop(_PROBE)
        return int(printed.splitlines()[1].split()[0])

    async def probe(self) -> None:
        """Take a snapshot for a look at it; whoever calls this drops it."""
        await self.drop(_PROBE)
        await self.take(_PROBE)

    async def try_out(self) -> None:
        """See that snapshots can be taken.

        :raise ShellError: they cannot.
        """
        await self.probe()
        await self.drop(_PROBE)

    async def tidy(self) -> None:
        """Take away what a look has left, and the directories, if nothing is left in them."""
        await self.drop(_PROBE)
        removing = 'rmdir "$1" && rmdir "${1%/*}"; true'
        await self.run("sh", "-c", removing + " 2>/dev/null", "sh", self.directory)
