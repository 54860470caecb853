"""What a directory has in it, as one number: a program that runs on the node itself.

It is a :mod:`resident <awesomeproxy.movers.resident>` there, and needs nothing but Python's
own library.  Two directories with the same fingerprint have the same entries, and everything
that ``rsync -aHAXx`` goes by is the same of each of them; so rsync, which takes longer to
start than this takes for some thousand files, would find no difference.  The contents of
files are not read: like rsync it goes by their sizes and times.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Any

OURS = "trusted.awesomeproxy."  # the attributes that closing a directory has written
ACL = "system.posix_acl_"


def fingerprint(root: bytes) -> str:
    """That of the directory ``root``, in which nothing may change meanwhile."""
    root = os.path.realpath(root)  # of what rsync and closing take it for
    found = hashlib.blake2b(digest_size=16)
    names: dict[int, bytes] = {}  # of what has several, by its number: the first
    here = os.lstat(root)
    found.update(repr(_traits(root, here)).encode())
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        for name in sorted(os.listdir(os.path.join(root, directory))):
            inside = os.path.join(directory, name)
            if inside == b"lost+found":
                continue
            path = os.path.join(root, inside)
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode) and status.st_dev == here.st_dev:
                waiting.append(inside)
            first = inside
            if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
                first = names.setdefault(status.st_ino, inside)
            found.update(repr((inside, first, _traits(path, status))).encode())
    return found.hexdigest()


def _traits(path: bytes, status: os.stat_result) -> tuple[Any, ...]:
    """All that counts of one entry, but for its name."""
    own: list[object] = []
    if stat.S_ISREG(status.st_mode):
        own = [status.st_size]
    elif stat.S_ISLNK(status.st_mode):
        own = [os.readlink(path)]
    elif stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
        own = [status.st_rdev]
    keys = sorted(filter(_counts, os.listxattr(path, follow_symlinks=False)))
    attributes = [(key, os.getxattr(path, key, follow_symlinks=False)) for key in keys]
    return (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, *own, attributes)


def _counts(key: str) -> bool:
    """Whether an extended attribute is carried."""
    return key.startswith(ACL) or not key.startswith((OURS, "system."))


def answer_to(path: str) -> str:
    """See :mod:`awesomeproxy.movers.resident`."""
    return fingerprint(os.fsencode(path))
