"""Where certificates are found: which files of a place belong together.

A place is a file or a directory.  Three ways of laying files out are known:

- one file with the chain and the key (HAProxy's way);
- ``NAME.crt``, ``.pem`` or ``.cert``, and beside it ``NAME.key`` or ``NAME.crt.key``;
- a directory with ``fullchain.pem`` and ``privkey.pem`` (certbot's way).

A directory is searched for the first two by these suffixes, and it and its
subdirectories for the third.  Names that begin with a dot are passed over: they are
what others have not finished writing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, NamedTuple

SUFFIXES: Final = (".pem", ".crt", ".cert")
_CHAIN: Final = "fullchain.pem"
_KEY: Final = "privkey.pem"


class State(NamedTuple):
    """What differs after a file has been changed."""

    modified: int  # nanoseconds of unix time
    changed_inode: int  # likewise; another mode or owner may be all that was wrong
    size: int
    inode: int
    device: int

    @property
    def changed(self) -> float:
        """Unix time of the last change."""
        return max(self.modified, self.changed_inode) / 1e9


Signature = tuple[State, ...]


class Files(NamedTuple):
    """The files of one pair."""

    certificate: str
    key: str  # empty: the same file

    def signature(self) -> Signature | None:
        """What differs after either has been changed; None if they cannot be looked at."""
        try:
            return tuple(map(_state, filter(None, self)))
        except OSError:
            return None


def find(place: str) -> list[Files]:
    """The pairs of a place, whether they can be used or not.

    :raise OSError: it cannot be looked at.
    """
    if not os.path.isdir(place):
        os.stat(place)
        directory, name = os.path.split(place)
        return [_pair(directory, name, lambda key: os.path.exists(os.path.join(directory, key)))]
    files: list[str] = []
    directories: list[str] = []
    with os.scandir(place) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (directories if entry.is_dir() else files).append(entry.name)
    if _CHAIN in files:
        return [_pair(place, _CHAIN, files.__contains__)]
    found = [
        _pair(place, name, files.__contains__) for name in sorted(files) if name.endswith(SUFFIXES)
    ]
    for name in sorted(directories):
        inside = os.path.join(place, name)
        if os.path.lexists(os.path.join(inside, _CHAIN)):
            found.append(Files(os.path.join(inside, _CHAIN), os.path.join(inside, _KEY)))
    return found


def _pair(directory: str, name: str, exists: Callable[[str], bool]) -> Files:
    keys = (_KEY,) if name == _CHAIN else (f"{os.path.splitext(name)[0]}.key", f"{name}.key")
    key = next(filter(exists, keys), "")
    return Files(os.path.join(directory, name), key and os.path.join(directory, key))


def _state(path: str) -> State:
    status = os.stat(path)
    return State(
        status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev
    )
