"""Where the control socket lives in the filesystem, and who may put it there.

A daemon that was killed leaves its socket's name behind.  The next one tells a
dead name from a live one by knocking: nobody listens behind a dead one, so it
is removed; behind a live one a daemon answers, and the newcomer gives up with
an error.  Two newcomers at once would both find the name dead, and the slower
would remove the quicker's socket: so knocking, removing and binding are done
under a lock on a file beside it, which the kernel gives back however its holder
dies.

At the end the name is removed only if it is still ours.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from twisted.internet import tcp, unix
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory, IReactorUNIX
from twisted.python.failure import Failure

BACKLOG = 64
LONGEST_PATH = 107  # bytes: sun_path of unix(7), without the zero byte at its end


class ControlSocketError(Exception):
    """The control socket cannot be opened; the message says why and what to do."""


class OwnedPort(unix.Port):
    """A Unix port that, when closed, removes its name only if the name is still its own."""

    _inode: tuple[int, int] | None = None

    def startListening(self) -> None:
        """Bind, restrict to the owner, listen."""
        super().startListening()  # type: ignore[no-untyped-call]
        self._inode = _inode(os.fsdecode(self._bindPath))

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket and remove its name."""
        path = os.fsdecode(self._bindPath)
        if _inode(path) == self._inode:
            os.unlink(path)
        # unix.Port's own would remove the name in any case, and fail if it is gone.
        tcp.Port.connectionLost(self, reason)  # type: ignore[no-untyped-call]


def open_port(reactor: IReactorUNIX, path: str, factory: IProtocolFactory) -> OwnedPort:
    """Listen on the Unix socket ``path``, for its owner alone (mode 0600).

    :raises ControlSocketError: if a daemon listens there already, or the system refuses.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ControlSocketError(
            f"control socket {path}: a socket's path has at most {LONGEST_PATH} bytes; "
            "name a shorter one under `control`"
        )
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
        with _locked(path + ".lock"):
            _remove_stale(path)
            port = OwnedPort(os.fsencode(path), factory, BACKLOG, 0o600, reactor)
            port.startListening()
    except CannotListenError as problem:
        raise ControlSocketError(f"control socket {path}: {problem.socketError}") from problem
    except OSError as problem:
        raise ControlSocketError(
            f"control socket {path}: {problem.strerror or problem}; "
            "name another path under `control`, or make its directory writable"
        ) from problem
    return port


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlSocketError(
            f"control socket {path}: there is a file of that name which is no socket; "
            "move it away or name another path under `control`"
        )
    if _is_live(path):
        raise ControlSocketError(
            f"control socket {path}: another daemon is listening there; "
            "stop it, or name another path under `control`"
        )
    os.unlink(path)


def _is_live(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as knocking:
        knocking.setblocking(False)
        # Anything but a refusal, such as a full backlog, means that someone is there.
        return knocking.connect_ex(path) != errno.ECONNREFUSED


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _locked(path: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # held by others for no longer than a bind takes
        yield
    finally:
        os.close(descriptor)
