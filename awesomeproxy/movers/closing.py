"""Closes a directory to writers, and opens it again: a program that runs on the node itself.

It is a :mod:`resident <awesomeproxy.movers.resident>` there, so it needs nothing but Python's
own library, a kernel from Linux 5.12 on, and root.

A directory is closed by a *layer*: a read-only mount of it over itself.  One is put over
every way in: in each mount namespace (of a container, of a service), over each writable
mount through which the directory can be seen.  Then nobody can open anything to write any
more; who has done so before, or stands inside, beneath the layer, is looked for in /proc,
and the directory does not count as closed until there is nobody.  Who serves it from
within the kernel (an NFS export, a loop device) is not found this way.

Layers are known by what they are, and by whom they were made is written into attributes of
the directory, so whoever comes later can take them away.  A reboot takes them away, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

OWN = "AWESOMEPROXY_MOVER"  # in the environment of what a mover has started, with a name
NAME = b"trusted.awesomeproxy.name"  # of the filesystem that lives in a directory
MIGRATION = b"trusted.awesomeproxy.migration"  # by which it was closed last
CLOSED = b"trusted.awesomeproxy.closed"  # the same, once nobody was left who could write
SOURCE = b"trusted.awesomeproxy.source"  # the migration that moves it away
PATIENCE = 3.0  # seconds that those who have it open are given to leave
ROUNDS = 16  # of laying layers, until no way in is left
TOLD = 5  # of those who have it open

# From the kernel's headers; the numbers are the same on all machines.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_EMPTY_PATH, _AT_FDCWD = 0x1000, -100
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_EMPTY_PATHS = 0x4 | 0x40
_MOUNT_ATTR_RDONLY = 1
_MS_PRIVATE = 1 << 18
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_CLONE_NEWNS = 0x20000

# A line of /proc/PID/maps: its addresses, if what is written there is written to a file.
_SHARED = re.compile(rb"^(\S+) ...s \S+ \S+ \S+ +/", re.MULTILINE)

_libc = ctypes.CDLL(None, use_errno=True)


class Mount(NamedTuple):
    """A line of a mount table; see proc_pid_mountinfo(5)."""

    id: int
    parent: int
    device: bytes
    root: bytes  # what of the device is mounted
    point: bytes  # where
    writable: bool


class Tree(NamedTuple):
    """A directory as the kernel has it, whatever it is mounted as."""

    device: bytes
    path: bytes  # from the device's own root


def survey(path: bytes) -> dict[str, Any]:
    """What is at ``path``, without touching it."""
    found: dict[str, Any] = {"path": os.fsdecode(os.path.realpath(path)), "exists": False}
    near = path
    while not os.path.lexists(near):
        near = os.path.dirname(near)
    space = os.statvfs(near)
    found["free"] = space.f_bavail * space.f_frsize
    os.close(_clone(near, read_only=True))  # whether we may, and the kernel can
    if near != path:
        return found
    if not os.path.isdir(path):
        raise OSError(f"{os.fsdecode(path)} is not a directory; name one")
    real = os.path.realpath(path)
    mounts = _mounts()
    tree = _tree(real, mounts)
    below = [m.point for m in mounts if m.point.startswith(_inside(real))]
    marks = os.listxattr(path)
    found.update(
        exists=True,
        writable=not os.statvfs(path).f_flag & os.ST_RDONLY,
        empty=not set(os.listdir(path)) - {b"lost+found"},
        below=[os.fsdecode(point) for point in below],
        name=os.getxattr(path, NAME).decode() if NAME.decode() in marks else "",
        holders=[text for _, text in _holders(tree, set(_processes()))],
    )
    return found


def claim(path: bytes, migration: str) -> None:
    """Mark it as what this migration moves away, so that it is known again."""
    _mark(path, {SOURCE: migration})


def identify(path: bytes, migration: str) -> str:
    """The device and the number of the directory, which this migration has claimed.

    :raise OSError: it is another one, as that beneath a mount point is.
    """
    path = os.path.realpath(path)
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _marked(file, SOURCE, migration):
            raise _strange(path)
        status = os.fstat(file)
    finally:
        os.close(file)
    return f"{status.st_dev}:{status.st_ino}"


def _strange(path: bytes) -> OSError:
    return OSError(
        f"{os.fsdecode(path)} is not the directory any more that it was when the migration "
        "began; see whether it is still mounted"
    )


def close(path: bytes, migration: str, name: str, how: str) -> None:
    """Close it, for a filesystem's migration; what ran there for its movers is killed.

    :param how: ``source`` has to be what this migration has claimed.  With ``still``, for one
        that was closed then, or ``make``, which makes the directory if it is not there, nobody
        is looked for if this migration has closed it and no layer is missing.  ``again`` closes
        only what this migration has closed last.
    :raise OSError: somebody holds it open, it is another directory, or it cannot be done.
    """
    if how == "again" and not closed_by(path, migration):
        return
    if how == "make":
        os.makedirs(path, exist_ok=True)
    path = os.path.realpath(path)
    if how in ("source", "still"):
        identify(path, migration)
    tree = _tree(path, _mounts())
    stands = _marked(path, CLOSED, migration)
    if how == "still" and not stands:
        raise _strange(path)
    if (
        how in ("still", "make")
        and stands
        and not _everywhere(lambda proc: _lay(tree, proc), set())
    ):
        return
    _mark(path, {NAME: name, MIGRATION: migration, CLOSED: ""})
    own = f"{OWN}={name}".encode()
    late = time.monotonic() + PATIENCE
    laid: set[int] = set()  # namespaces
    cleared: set[int] = set()  # processes
    rounds = 0
    while rounds < 2:  # who began while we looked is seen the second time
        _everywhere(lambda proc: _lay(tree, proc), laid)
        looked = set(_processes()) - cleared
        holders = _holders(tree, looked)
        cleared |= looked - {pid for pid, _ in holders}
        rounds = 0 if holders else rounds + 1
        for pid, _ in holders:
            if own in _read(f"/proc/{pid}/environ").split(b"\0"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if holders and time.monotonic() > late:
            who = "; ".join([text for _, text in holders][:TOLD])
            raise OSError(f"{os.fsdecode(path)} is in use: {who}; stop what uses it")
        if holders:
            time.sleep(0.05)
    _mark(path, {CLOSED: migration})


def open_again(path: bytes, migration: str) -> bool:
    """Open it, if it was this migration that closed it last; whether it was."""
    path = os.path.realpath(path)
    if not closed_by(path, migration):
        return False
    tree = _tree(path, _mounts())
    _mark(path, {CLOSED: ""})
    _everywhere(lambda proc: _lift(tree, proc), set())
    return True


def flush(path: bytes) -> None:
    """Have all of its filesystem on the disk."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(file) < 0:
            raise OSError(f"{os.fsdecode(path)}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(file)


def closed_by(path: bytes, migration: str) -> bool:
    """Whether ``path`` was closed last by this migration."""
    return _marked(path, MIGRATION, migration)


def _marked(path: bytes | int, key: bytes, value: str) -> bool:
    try:
        return os.getxattr(path, key) == value.encode()
    except OSError:  # it is not there, or was never marked
        return False


# Mounts


def _mounts(table: str = "/proc/self/mountinfo", directory: int | None = None) -> list[Mount]:
    """Those of a table, which is read anew if it has changed so that a line was torn."""
    for _ in range(ROUNDS):
        with contextlib.suppress(ValueError, IndexError):
            return [_mount(line) for line in _read(table, directory).split(b"\n") if line]
    raise OSError(f"{table} makes no sense; see what findmnt says")


def _mount(line: bytes) -> Mount:
    fields = line.split(b" ")
    of_device = fields[fields.index(b"-", 6) + 3].split(b",")
    return Mount(
        id=int(fields[0]),
        parent=int(fields[1]),
        device=fields[2],
        root=_plain(fields[3]),
        point=_plain(fields[4]),
        writable=b"ro" not in fields[5].split(b",") and b"ro" not in of_device,
    )


def _plain(field: bytes) -> bytes:
    r"""What stands in a mount table for a path: ``\040`` is a space."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def _inside(path: bytes) -> bytes:
    """What paths inside of ``path`` begin with."""
    return path if path.endswith(b"/") else path + b"/"


def _relative(path: bytes, to: bytes) -> bytes | None:
    """The rest of ``path``, with no slash before it; None if it is not in ``to``."""
    if path == to:
        return b""
    return path[len(_inside(to)) :] if path.startswith(_inside(to)) else None


def _join(path: bytes, rest: bytes) -> bytes:
    return _inside(path) + rest if rest else path


def _mount_id(file: int, proc: int | None = None) -> int:
    path = f"/proc/self/fdinfo/{file}" if proc is None else f"self/fdinfo/{file}"
    return int(re.findall(rb"^mnt_id:\s*(\d+)", _read(path, proc), re.MULTILINE)[0])


def _tree(path: bytes, mounts: list[Mount]) -> Tree:
    file = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        here = _mount_id(file)
    finally:
        os.close(file)
    for mount in mounts:
        if mount.id == here:
            rest = _relative(path, mount.point)
            if rest is not None:
                return Tree(mount.device, _join(mount.root, rest))
    raise OSError(f"{os.fsdecode(path)} is on no mount that can be seen from here")


def _seen_at(mount: Mount, tree: Tree) -> bytes | None:
    """Where the tree, or the part of it that is mounted there, can be seen; None: nowhere."""
    if mount.device != tree.device:
        return None
    if _relative(mount.root, tree.path) is not None:
        return mount.point
    rest = _relative(tree.path, mount.root)
    return None if rest is None else _join(mount.point, rest)


def _is_layer(mount: Mount, mounts: list[Mount], tree: Tree) -> bool:
    """Whether it is a read-only mount of (a part of) the tree over itself."""
    if mount.writable or mount.device != tree.device or _relative(mount.root, tree.path) is None:
        return False
    for below in mounts:
        if below.id == mount.parent and below.device == mount.device:
            rest = _relative(mount.point, below.point)
            return rest is not None and _join(below.root, rest) == mount.root
    return False


def _lay(tree: Tree, proc: int) -> bool:
    """Put a layer over each way in that the mount namespace we are in has; whether it had one."""
    passed = set()
    laid = False
    for _ in range(ROUNDS):
        mounts = _mounts("self/mountinfo", proc)
        ways = [(mount, at) for mount in mounts if (at := _way_in(mount, mounts, tree))]
        ways = [(mount, at) for mount, at in ways if mount.id not in passed]
        if not ways:
            return laid
        for mount, at in ways:
            passed.add(mount.id)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                file = os.open(at, os.O_PATH | os.O_NOFOLLOW)
                if _mount_id(file, proc) == mount.id:  # else it is hidden
                    layer = _clone(b"", read_only=True, at=file)
                    _call(_MOVE_MOUNT, layer, b"", file, b"", _MOVE_MOUNT_EMPTY_PATHS)
                    os.close(layer)
                    laid = True
                os.close(file)
    raise OSError("there is no end of ways in; see to the mounts with findmnt")


def _way_in(mount: Mount, mounts: list[Mount], tree: Tree) -> bytes | None:
    """Where one can write to the tree through this mount, that nothing lies over."""
    at = _seen_at(mount, tree) if mount.writable else None
    if at is None:
        return None
    over = (m for m in mounts if m.parent == mount.id and m.id != mount.id)
    return None if any(_relative(at, m.point) is not None for m in over) else at


def _lift(tree: Tree, proc: int) -> bool:
    """Take all layers away that the mount namespace we are in has; whether it had one."""
    lifted = False
    for _ in range(ROUNDS):
        mounts = _mounts("self/mountinfo", proc)
        layers = [mount for mount in mounts if _is_layer(mount, mounts, tree)]
        if not layers:
            return lifted
        lifted = True
        for layer in reversed(layers):
            _check(_libc.umount2(layer.point, _MNT_DETACH | _UMOUNT_NOFOLLOW))
    raise OSError("there is no end of layers; see to the mounts with findmnt")


def _clone(path: bytes, *, read_only: bool, at: int = _AT_FDCWD) -> int:
    """A mount of ``path``, that is nowhere yet; of the file ``at`` itself if it is empty."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (0 if path else _AT_EMPTY_PATH)
    tree = _call(_OPEN_TREE, at, path, flags)
    on, off = (_MOUNT_ATTR_RDONLY, 0) if read_only else (0, _MOUNT_ATTR_RDONLY)
    how = (ctypes.c_uint64 * 4)(on, off, _MS_PRIVATE, 0)
    _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, how, ctypes.sizeof(how))
    return tree


def _mark(path: bytes, marks: dict[bytes, str]) -> None:
    """Set attributes of a directory, be it closed or not."""
    tree = _clone(path, read_only=False)
    try:
        for key, value in marks.items():
            os.setxattr(b"/proc/self/fd/%d" % tree, key, value.encode())
    except OSError as problem:
        raise OSError(
            f"{os.fsdecode(path)} cannot be marked as ours: {problem.strerror}; it has to be "
            "writable and to keep extended attributes"
        ) from None
    finally:
        os.close(tree)


# Namespaces and processes


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _everywhere(act: Callable[[int], bool], seen: set[int]) -> bool:
    """Call ``act`` in each mount namespace that has a process, and is not among the seen.

    It is given /proc, open, since the namespace of a container may have none.

    :return: whether one of the calls has returned True.
    """
    done = False
    for pid in [os.getpid(), *_processes()]:
        # It may have ended; and who has more rights than root has here is left alone.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            space = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
            try:
                key = os.fstat(space).st_ino
                if key not in seen:
                    seen.add(key)
                    done |= _inside_of(space, act)
            finally:
                os.close(space)
    return done


def _inside_of(space: int, act: Callable[[int], bool]) -> bool:
    """What ``act`` returns in a process of its own that has entered a mount namespace."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            proc = os.open("/proc", os.O_DIRECTORY)
            _check(_libc.setns(space, _CLONE_NEWNS))
            os.write(writing, b"\0" if act(proc) else b"")
        except BaseException as problem:
            os.write(writing, str(problem).encode(errors="replace") or b"?")
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    if said not in (b"", b"\0"):
        raise OSError(said.decode())
    return bool(said)


def _holders(tree: Tree, among: Collection[int]) -> list[tuple[int, str]]:
    """Who of ``among`` can still write to the tree: the process's number, and what it has."""
    known: dict[int, Mount] = {}
    tables = set()
    found = []
    for pid in among:
        with contextlib.suppress(OSError):  # it has ended
            root = os.readlink(f"/proc/{pid}/root")
            table = (os.stat(f"/proc/{pid}/ns/mnt").st_ino, root)
            # Of one that has just ended it is empty; then another says it.
            if table not in tables and (mounts := _mounts(f"/proc/{pid}/mountinfo")):
                tables.add(table)
                known.update((mount.id, mount) for mount in mounts)
    for pid in among:
        if pid != os.getpid() and (what := _held(pid, tree, known)):
            command = os.fsdecode(_read(f"/proc/{pid}/comm").strip())
            found.append((pid, f"process {pid} ({command}) {what}"))
    return found


def _held(pid: int, tree: Tree, known: dict[int, Mount]) -> str:
    """How one process can still write to the tree; empty: not at all."""
    for link in _links(pid):
        with contextlib.suppress(OSError):  # closed, or it has ended
            text = os.readlink(link)
            if not text.startswith(b"/"):
                continue
            may_write = bool(os.lstat(link).st_mode & stat.S_IWUSR)
            file = os.open(link, os.O_PATH)
            try:
                status = os.fstat(file)
                directory = stat.S_ISDIR(status.st_mode)
                if not directory and not (may_write and stat.S_ISREG(status.st_mode)):
                    continue
                if not status.st_nlink or os.fstatvfs(file).f_flag & os.ST_RDONLY:
                    continue
                mount = known.get(_mount_id(file))
            finally:
                os.close(file)
            if mount is not None and _holds(mount, text, tree):
                shown = os.fsdecode(text)
                return f"is inside {shown}" if directory else f"has {shown} open to write"
    return ""


def _holds(mount: Mount, text: bytes, tree: Tree) -> bool:
    """Whether what ``text`` names, found on this mount, is of the tree."""
    if mount.device != tree.device:
        return False
    rest = _relative(text, mount.point)
    path = mount.root if rest is None else _join(mount.root, rest)
    return _relative(path, tree.path) is not None


def _links(pid: int) -> Iterator[bytes]:
    """All through which a process has hold of files; shared maps among them."""
    base = b"/proc/%d" % pid
    yield from (base + b"/cwd", base + b"/root")
    with contextlib.suppress(OSError):
        yield from (base + b"/fd/" + name for name in os.listdir(base + b"/fd"))
    for addresses in _SHARED.findall(_read(base + b"/maps")):
        yield base + b"/map_files/" + addresses


# The kernel


def _read(path: str | bytes, directory: int | None = None) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY, dir_fd=directory)
    except OSError:
        return b""
    with open(file, "rb") as opened:
        try:
            return opened.read()
        except OSError:  # the process has ended
            return b""


def _call(number: int, *arguments: Any) -> int:
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *given))


def _check(result: int) -> int:
    if result < 0:
        problem = ctypes.get_errno()
        raise OSError(f"no mount can be made or taken away: {os.strerror(problem)}")
    return result


def answer_to(act: str, path: str, *how: str) -> Any:
    """What comes of an act; see :mod:`awesomeproxy.movers.resident`."""
    acts: dict[str, Callable[..., Any]] = {
        "survey": survey,
        "claim": claim,
        "identify": identify,
        "close": close,
        "open": open_again,
        "flush": flush,
    }
    return acts[act](os.fsencode(path), *how)
