"""Trees of files for movers: one that has all that is odd, and what a tree looks like."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import stat
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

MB = 1 << 20
BLOCK = 4096
HOLE = 256 * MB
OWN = b"trusted."  # attributes of those who look after a filesystem, and no user's

NAMES = (
    b"with space",
    b" around ",
    b"new\nline",
    b"tab\tand\rreturn",
    b"quotes'\"`",
    b"$HOME $(touch x) ; * ? [a] {b,c} \\ | & < > ! #",
    b"-rf",
    b"--delete",
    b"\xff\xfe not UTF-8 \x80",
    "Ünïcödé 日本語 \U0001f600".encode(),
    "e\u0301 composed, \u00e9 not".encode(),
    b"back\\slash\\012",
    b"%s %d %%",
    b"~",
    b":colon:",
    b"host:path",
    b"n" * 255,
)


def odd_tree(root: Path) -> None:
    """Put all that is odd into a directory."""
    for number, name in enumerate(NAMES):
        at = os.path.join(os.fsencode(root), name)
        os.mkdir(at)
        with open(os.path.join(at, name), "wb") as file:
            file.write(b"%d" % number)
    _odd_kinds(root / "kinds")
    _odd_rights(root / "rights")
    _odd_holes(root / "holes")
    for index, (directory, linked, files) in enumerate(os.walk(os.fsencode(root), topdown=False)):
        for name in [*files, *linked, b""]:
            at = os.path.join(directory, name)
            os.utime(at, ns=(0, 1_234_567_890_123_456_789 + index), follow_symlinks=False)


def _odd_kinds(root: Path) -> None:
    (root / "empty").mkdir(parents=True)
    (root / "empty file").write_bytes(b"")
    (root / "file").write_bytes(b"file")
    os.link(root / "file", root / "the same file")
    os.link(root / "file", root / "empty" / "the same")
    os.symlink("file", root / "link")
    os.symlink("/nowhere\n at all", root / "link to nothing")
    os.symlink("..", root / "link up")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(root, os.O_DIRECTORY)
        listening.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    deep = root
    for number in range(40):
        deep = deep / f"{number:060d}"
    os.makedirs(deep)
    (deep / "bottom").write_bytes(b"deep")


def _odd_rights(root: Path) -> None:
    root.mkdir()
    for mode in (0o000, 0o400, 0o644, 0o4755, 0o2755, 0o6711, 0o666):
        at = root / f"{mode:o}"
        at.write_bytes(b"")
        os.chown(at, 1000 + mode, 65_000)
        at.chmod(mode)
    for mode in (0o000, 0o700, 0o1777, 0o2775):
        at = root / f"directory {mode:o}"
        at.mkdir()
        os.chown(at, 12_345, 54_321)
        at.chmod(mode)
    os.symlink("644", root / "link of somebody")
    os.chown(root / "link of somebody", 7, 8, follow_symlinks=False)
    file = root / "attributes"
    file.write_bytes(b"")
    os.setxattr(file, "user.text", b"value")
    os.setxattr(file, "user.bytes", bytes(range(256)))
    os.setxattr(file, "user.empty", b"")
    # a file that may open ports below 1024, as setcap writes it
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(file, "security.capability", capability)
    os.setxattr(root, "user.directory", b"too")
    (root / "list").write_bytes(b"")
    (root / "defaults").mkdir()
    setfacl = shutil.which("setfacl")
    assert setfacl, "setfacl is missing; install Debian's package acl"
    subprocess.run([setfacl, "-m", "u:1234:rw,g:4321:r", root / "list"], check=True)
    subprocess.run([setfacl, "-d", "-m", "u:1234:rwx", root / "defaults"], check=True)


def _odd_holes(root: Path) -> None:
    root.mkdir()
    with open(root / "end", "wb") as file:
        file.truncate(HOLE)
    with open(root / "middle", "wb") as file:
        file.write(b"a" * 5000)
        file.seek(HOLE - 10)
        file.write(b"b" * 10)


def picture(root: Path) -> dict[bytes, dict[str, Any]]:
    """All that can be seen of a tree, by path; of holes, whether there are any."""
    found: dict[bytes, dict[str, Any]] = {}
    links: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    top = os.fsencode(root)
    for directory, directories, files in os.walk(top):
        if directory == top and b"lost+found" in directories:
            directories.remove(b"lost+found")
        linked = [name for name in directories if os.path.islink(os.path.join(directory, name))]
        for name in [b"", *files, *linked]:
            at = os.path.join(directory, name)
            path = os.path.relpath(at, top)
            found[path] = _entry(at)
            status = os.lstat(at)
            if not stat.S_ISDIR(status.st_mode):
                links[status.st_dev, status.st_ino].append(path)
    for same in links.values():
        for path in same:
            found[path]["links"] = sorted(same)
    return found


def _entry(at: bytes) -> dict[str, Any]:
    status = os.lstat(at)
    entry: dict[str, Any] = {
        "mode": oct(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "time": status.st_mtime_ns,
        "attributes": _attributes(at),
    }
    if stat.S_ISLNK(status.st_mode):
        entry["to"] = os.readlink(at)
    elif stat.S_ISREG(status.st_mode):
        entry["size"] = status.st_size
        # Of large ones only: ZFS gives blocks to a file some seconds after it was written.
        entry["holes"] = status.st_blocks * 512 < status.st_size / 2 and status.st_size >= HOLE
        entry["content"] = _content(at, status.st_size)
    elif stat.S_ISCHR(status.st_mode):
        entry["device"] = status.st_rdev
    return entry


def _attributes(at: bytes) -> dict[str, bytes]:
    try:
        names = os.listxattr(at, follow_symlinks=False)
        own = OWN.decode()
        return {
            name: os.getxattr(at, name, follow_symlinks=False)
            for name in names
            if not name.startswith(own)
        }
    except OSError as problem:
        if problem.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
        return {}


def _content(at: bytes, size: int) -> str:
    """A digest of the blocks that are not all zeros, and where they lie; holes cost nothing."""
    digest = hashlib.blake2b()
    file = os.open(at, os.O_RDONLY)
    try:
        position = 0
        while position < size:
            try:
                position = os.lseek(file, position, os.SEEK_DATA)
            except OSError as problem:
                if problem.errno != errno.ENXIO:  # a hole to the end
                    raise
                break
            position -= position % BLOCK
            data = os.pread(file, MB, position)
            for start in range(0, len(data), BLOCK):
                block = data[start : start + BLOCK]
                if block.strip(b"\0"):
                    digest.update(b"%d " % (position + start) + block)
            position += len(data)
    finally:
        os.close(file)
    return digest.hexdigest()
