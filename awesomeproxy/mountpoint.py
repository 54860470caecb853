"""What is mounted on a path, asked of the kernel by the path: statx(2) and statmount(2).

It costs some microseconds a path, however long the mount table is, and is exact: the kernel
says of a mount what its table says.  Linux can since 6.13 (before, it does not tell the
source); where it cannot, or may not, there is an :exc:`OSError`.

A look must not disturb, nor wait for a server that is gone.  So a path is walked directory
by directory, and only on through filesystems of this machine: a lookup in a network's may
hang, one in that of an automounter mounts something.  The mount at the end of a path is
never asked itself: it may be dead.

One thing is left.  While the kernel is at a path, for less than a microsecond, what is
mounted there is in use, and an unmounting at that moment fails: busy.  That is so with
everybody who looks at a path; who looks often should rest in between.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence

from awesomeproxy.mountinfo import Mount, Place

# Directories of these are on this machine.
LOCAL = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs"}
    | {"overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)

_libc = ctypes.CDLL(None, use_errno=True)

# <fcntl.h>, <linux/stat.h>
_AT_FDCWD = -100
_LOOK = 0x100 | 0x800 | 0x4000  # AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT, AT_STATX_DONT_SYNC
_TYPE, _UNIQUE_ID = 0x1, 0x4000  # STATX_TYPE, STATX_MNT_ID_UNIQUE
_MOUNT_ROOT = 0x2000  # STATX_ATTR_MOUNT_ROOT
_STATX = struct.Struct("=I4xQ12xH114xQ")  # mask, attributes, mode, mount

# <linux/mount.h>, <linux/nsfs.h>
_STATMOUNT = 457  # on all machines but alpha and mips, where it is refused
_REQUEST = struct.Struct("=IIQQQ")  # its size, 0, mount, mask, namespace
_SB_BASIC, _MNT_BASIC, _ROOT, _POINT, _FSTYPE = 0x1, 0x2, 0x8, 0x10, 0x20
_SUBTYPE, _SOURCE = 0x100, 0x200
_NEEDED = _SB_BASIC | _MNT_BASIC | _ROOT | _POINT | _FSTYPE | _SOURCE
# mask, superblock's flags, type, parent, ids of the table, attributes, root, point, subtype,
# source
_MOUNT = struct.Struct("=8xQ16xII8xQIIQ32xII8xII")
_STRINGS = 512  # where they begin
_RDONLY = 1  # SB_RDONLY and MOUNT_ATTR_RDONLY
_GET_MNTNS_ID = 0x8008B705  # NS_GET_MNTNS_ID


class Look:
    """One look at paths, in the mount namespace of one process.

    What it has found once it does not look for again.
    """

    def __init__(self, process: str) -> None:
        """
        :param process: the process's directory in ``/proc``.
        :raise OSError: it is none, or the kernel cannot tell.
        """
        if not hasattr(_libc, "statx"):
            raise OSError(errno.ENOSYS, "there is no statx")
        # ``..`` of the root is what is mounted over the root, with which the table begins.
        self._root = os.fsencode(process) + b"/root/.."
        file = os.open(f"{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = fcntl.ioctl(file, _GET_MNTNS_ID, bytes(8))
        finally:
            os.close(file)
        self._namespace = int.from_bytes(found, "little")
        self._buffer = ctypes.create_string_buffer(1 << 14)
        self._found: dict[bytes, tuple[int, bool] | None] = {}
        self._mounts: dict[int, tuple[int, Mount]] = {}

    def at(self, way: Sequence[bytes]) -> Place:
        """What is at the end of ``way``.

        :param way: the directories from the root to a path, with both.
        :raise OSError: it cannot be told.
        """
        inside = 0
        for point in way:
            if point not in self._found:
                self._found[point] = self._stat(point)
            found = self._found[point]
            if found is None:  # nor is anything beneath it
                break
            inside, mounted = found
            if not mounted and point is way[-1]:
                break
            if inside not in self._mounts:
                self._mounts[inside] = self._statmount(inside)
            parent, mount = self._mounts[inside]
            if mounted and mount.point != point:
                raise OSError(errno.EAGAIN, "it is being moved")
            if point is way[-1]:
                return Place(parent, mount)
            if mount.fstype not in LOCAL:
                raise OSError(errno.EREMOTE, f"{mount.fstype} may not answer")
        if not inside:
            raise OSError(errno.ENOENT, "there is no root")
        return Place(inside)

    def _stat(self, point: bytes) -> tuple[int, bool] | None:
        """The mount a path lies in, and whether it is its root; None: no directory is there."""
        path = self._root + point
        if _libc.statx(_AT_FDCWD, path, _LOOK, _TYPE | _UNIQUE_ID, self._buffer):
            number = ctypes.get_errno()
            if number in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise OSError(number, os.strerror(number), path)
        mask, attributes, mode, mount = _STATX.unpack_from(self._buffer)
        if not mask & _UNIQUE_ID:
            raise OSError(errno.EOPNOTSUPP, "statx does not tell the mount")
        # In the table no path leads through a symbolic link.
        return None if stat.S_ISLNK(mode) else (mount, bool(attributes & _MOUNT_ROOT))

    def _statmount(self, number: int) -> tuple[int, Mount]:
        """The mount's parent, and what the table has of it."""
        request = _REQUEST.pack(_REQUEST.size, 0, number, _NEEDED | _SUBTYPE, self._namespace)
        size = ctypes.c_size_t(len(self._buffer))
        if _libc.syscall(ctypes.c_long(_STATMOUNT), request, self._buffer, size, ctypes.c_long(0)):
            problem = ctypes.get_errno()
            raise OSError(problem, os.strerror(problem))
        mask, flags, fstype, inside, id, parent, attributes, root, point, subtype, source = (
            _MOUNT.unpack_from(self._buffer)
        )
        if mask & _NEEDED != _NEEDED:
            raise OSError(errno.EOPNOTSUPP, "statmount does not tell all of a mount")
        kind = self._string(fstype)
        if mask & _SUBTYPE:
            kind += b"." + self._string(subtype)
        mount = Mount(
            id,
            parent,
            self._string(root),
            self._string(point),
            os.fsdecode(kind),
            os.fsdecode(self._string(source)),
            bool((flags | attributes) & _RDONLY),
        )
        return inside, mount

    def _string(self, offset: int) -> bytes:
        return ctypes.string_at(ctypes.addressof(self._buffer) + _STRINGS + offset)
