r"""What is mounted where, read from the kernel's mount table; no I/O.

The table is the text of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5)), of this node or
of another: :func:`states` decides from it which filesystems are mounted.

That a line names the path is not enough.  A mount may be stacked on another at the same
place, and what is mounted on ``/srv`` hides what was mounted on ``/srv/blog`` before.  So
the path is walked as the kernel walks it: from the root, into whatever is mounted at each
directory on the way, where the mount that is there knows its parent by number.  Only mounts
on the path and above it matter for that, which are few, however long the table is.

What then counts as mounted:

* Any mount at the path, if the filesystem has no source; a bind mount and a subvolume too.
* With a source only that source (a dataset of ZFS is its own), and only the right part of
  it: all, or what ``root`` says.  So a bind mount of some directory of a dataset is not it.
* Not an automount point (autofs) that nothing has been mounted on yet.
* A mount that is read-only is mounted; it is said that it is read-only.

Some things the table does not tell.  What was unmounted lazily (``umount -l``) is not in it
any more, though who has files open there can still write to it.  It is the table of one
mount namespace: what is mounted in another is not in it, unless it is propagated from there
(mount_namespaces(7)).  A service that systemd gives a namespace (``PrivateMounts=``,
``PrivateTmp=``, ``ProtectSystem=`` and others) sees what is mounted outside, but what it
mounts itself nobody else sees.  When a directory above is renamed, the kernel does not say
so; when a filesystem turns read-only after an error, neither, nor when a dataset is renamed
while it is mounted (``zfs rename -u``); that is told with the next change of the table.  And
a path is in the table as the kernel has it, without symbolic links.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

_ESCAPED = re.compile(rb"\\([0-7]{3})")
_TO_ESCAPE = re.compile(rb"[ \t\n\\]")  # seq_path_root() of the kernel; in a source "#" as well


@dataclass(frozen=True, slots=True)
class Mounting:
    """What should be mounted, and where."""

    path: str  # absolute
    source: str = ""  # what the table has for it: a dataset, a device; empty: any
    root: str = "/"  # which directory of the source, or subvolume: "/@blog" (btrfs)

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise ValueError(f"{self.path!r} is not absolute; write it from / on")


@dataclass(frozen=True, slots=True)
class MountState:
    """How it stands with one filesystem."""

    mounted: bool
    source: str = ""  # of what is there now, be it the right one or not
    fstype: str = ""
    read_only: bool = False
    why: str = ""  # it is not mounted

    @property
    def usable(self) -> bool:
        """Whether it is there to be served from: a fenced one is read-only."""
        return self.mounted and not self.read_only

    @property
    def trouble(self) -> str:
        """Why it is not usable."""
        return "it is mounted read-only" if self.mounted else self.why


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the table."""

    id: int
    parent: int  # the mount that it is mounted on
    root: bytes  # the part of the filesystem that is there
    point: bytes
    fstype: str
    source: str
    read_only: bool  # the mount, or the whole filesystem


@dataclass(frozen=True, slots=True)
class Place:
    """What has been seen at a path, without the table."""

    inside: int  # the mount in which its directory lies, by a number that is never used again
    mount: Mount | None = None  # what is mounted on it


@dataclass(frozen=True, slots=True)
class Sight:
    """How it stood with filesystems, and what was at their paths just before that was known."""

    states: Mapping[str, MountState]
    places: Mapping[str, Place] = field(default_factory=dict)  # or nothing, if it was not seen
    clear: frozenset[str] = frozenset()  # those at whose path nothing is hidden


def unescape(field: bytes) -> bytes:
    """What a field of the table stands for: space, tab, newline and backslash are octal there."""
    return _ESCAPED.sub(lambda found: bytes((int(found[1], 8) & 0xFF,)), field)


def escape(name: bytes) -> bytes:
    """How the table has the path ``name``."""
    return _TO_ESCAPE.sub(lambda found: b"\\%03o" % found[0][0], name)


def parse(line: bytes) -> Mount:
    """One line of the table, without its newline.

    :raise ValueError: it is not one.
    """
    try:
        here, _, there = line.partition(b" - ")  # no field before it can have a space
        number, parent, _, root, point, options = here.split(b" ")[:6]
        fstype, source, super_options = there.split(b" ")  # the source may be empty
        return Mount(
            int(number),
            int(parent),
            unescape(root),
            unescape(point),
            os.fsdecode(unescape(fstype)),
            os.fsdecode(unescape(source)),
            b"ro" in options.split(b",") or b"ro" in super_options.split(b","),
        )
    except ValueError:
        raise ValueError(f"{line!r} is not a line of mountinfo") from None


class Watchlist:
    """Filesystems by name, and what of the table has to do with them."""

    def __init__(self, filesystems: Mapping[str, Mounting]) -> None:
        self.filesystems = dict(filesystems)
        self.ways = {name: _way(each.path) for name, each in self.filesystems.items()}
        self._points = {escape(point) for way in self.ways.values() for point in way}

    def __repr__(self) -> str:
        return f"<Watchlist of {len(self.filesystems)}>"

    def sift(self, lines: Iterable[bytes]) -> list[Mount]:
        """The mounts among ``lines`` that matter: those on the paths and above them.

        :raise ValueError: a line is not one of mountinfo.
        """
        points = self._points
        try:
            return [parse(line) for line in lines if line.split(b" ", 5)[4] in points]
        except IndexError:
            raise ValueError("there is a line that is not one of mountinfo") from None

    def read(self, mounts: Collection[Mount], places: Mapping[str, Place]) -> Sight:
        """What is known from the table.

        :param mounts: what :meth:`sift` has found in the whole table.
        :param places: what was at the paths before it was read, if that is known.
        """
        found = self.states(mounts)
        at = Counter(mount.point for mount in mounts)
        # What is seen at a path, be it the right thing or not, has a type.
        clear = (n for n in places if at[self.ways[n][-1]] == bool(found[n].fstype))
        return Sight(found, places, frozenset(clear))

    def states(self, mounts: Collection[Mount]) -> dict[str, MountState]:
        """How it stands with each filesystem.

        :param mounts: what :meth:`sift` has found in the whole table.
        """
        known = {mount.id for mount in mounts}
        children: dict[tuple[int | None, bytes], Mount] = {}
        for mount in mounts:
            # The parent of what the root of this process lies in is not in the table.
            own = mount.parent == mount.id or mount.parent not in known
            children[None if own else mount.parent, mount.point] = mount
        found: dict[str, MountState] = {}
        for name, way in self.ways.items():
            top = _walk(children, way)
            if top is not None and top.point == way[-1]:
                found[name] = _judge(self.filesystems[name], top)
            else:
                hidden = any(mount.point == way[-1] for mount in mounts)
                found[name] = MountState(False, why=_absent(way[-1], top if hidden else None))
        return found

    def seen(self, places: Mapping[str, Place], last: Sight) -> Sight | None:
        """What is known from what is at the paths, and from what was known before.

        Where something is mounted now, that is all there is to know.  Where nothing is, only the
        table can say whether something is hidden; unless nothing was, and the path lies in the
        same mount as then.  So one thing may escape: what has been mounted out of sight, under a
        mount that hides it.  It is not mounted either way; only why is not told.

        :param places: what is at the paths, if that is known.
        :return: None: the table has to be read.
        """
        if places.keys() != self.filesystems.keys():
            return None
        found: dict[str, MountState] = {}
        clear: set[str] = set()
        for name, place in places.items():
            if name in last.clear and last.places[name].inside == place.inside:
                clear.add(name)
            if place.mount is not None:
                found[name] = _judge(self.filesystems[name], place.mount)
            elif name in clear:
                found[name] = MountState(False, why=_absent(self.ways[name][-1], None))
            else:
                return None
        return Sight(found, places, frozenset(clear))


def states(table: bytes, filesystems: Mapping[str, Mounting]) -> dict[str, MountState]:
    """How it stands with ``filesystems`` on the node whose ``/proc/self/mountinfo`` is ``table``.

    :param table: all of it; as text it has to be encoded again.

    :raise ValueError: it is not a mount table, or has nothing in it.
    """
    lines = table.split(b"\n")  # not splitlines(): names may have other ends of lines in them
    if lines.pop() or not lines:
        raise ValueError("the mount table is empty or cut off; read /proc/self/mountinfo again")
    parse(lines[0])  # it is no message of some program
    watchlist = Watchlist(filesystems)
    return watchlist.states(watchlist.sift(lines))


def _way(path: str) -> list[bytes]:
    """The directories from the root to ``path``, with both."""
    way = [b"/"]
    for part in posixpath.normpath(os.fsencode(path)).split(b"/"):
        if part:
            way.append(posixpath.join(way[-1], part))
    return way


def _walk(children: Mapping[tuple[int | None, bytes], Mount], way: Iterable[bytes]) -> Mount | None:
    """The mount in which the end of ``way`` lies."""
    current: Mount | None = None
    for point in way:
        seen: set[int] = set()  # of a table that changed while it was read, anything can come
        while True:
            above = children.get((None if current is None else current.id, point))
            if above is None or above.id in seen:
                break
            seen.add(above.id)
            current = above
    return current


def _judge(wanted: Mounting, mount: Mount) -> MountState:
    why, root = "", os.fsdecode(mount.root)
    if mount.fstype == "autofs":
        why = f"{wanted.path} is an automount point that nothing has been mounted on yet"
    elif wanted.source and mount.source != wanted.source:
        why = f"{mount.source or mount.fstype} is mounted on {wanted.path}, not {wanted.source}"
    elif wanted.source and root != wanted.root:
        why = f"{root} of {mount.source} is mounted on {wanted.path}, not {wanted.root}"
    return MountState(not why, mount.source, mount.fstype, mount.read_only, why)


def _absent(point: bytes, hidden_by: Mount | None) -> str:
    path = os.fsdecode(point)
    if hidden_by is None:
        return f"nothing is mounted on {path}"
    over = os.fsdecode(hidden_by.point)
    return f"what is mounted on {path} is hidden by {hidden_by.source}, mounted over it on {over}"
