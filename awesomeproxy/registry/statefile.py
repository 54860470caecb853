"""The registry's file: made, checked, opened and kept for one process alone.

A file that is there is either sound or left exactly as it is.  Before anything
may write to it, it is opened for reading only and read from end to end; what
is wrong with it is a :class:`.interface.RegistryError` that names the file and
what to do.  A file that is not there is made beside its place and renamed into
it, so that a crash leaves a whole file or none.

Beside the file ``registry.sqlite`` there are ``registry.sqlite-wal`` with the
newest changes (after a crash it is part of the registry), ``registry.sqlite-shm``
(of no worth by itself), and ``lock``, which the running daemon holds and has
written its process id into.

Everything here blocks.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from awesomeproxy.registry.booked import Care
from awesomeproxy.registry.interface import RegistryError
from awesomeproxy.registry.tables import TABLES, Damaged, TableStore

APPLICATION = 0x41775078  # "AwPx", in the file's header
SCHEMA = 2
HEADER = 100  # bytes; https://www.sqlite.org/fileformat2.html
CHECKPOINT = 1000  # pages of changes that are gathered before they go into the file itself
BUSY = 2.0  # seconds to wait for someone who looks at the file with another program

R = TypeVar("R")


class StateFile:
    """An open registry file, which no other process can open."""

    def __init__(self, path: Path, lock: int, db: sqlite3.Connection) -> None:
        self.path = path
        self.store = TableStore(db)
        self._lock = lock
        self._db = db

    @classmethod
    def open(cls, path: Path) -> StateFile:
        """Open the registry at ``path``, or make one; RegistryError if that cannot be."""
        lock = _lock(path.parent)
        try:
            if _is_there(path):
                _check(path)
            else:
                _make(path)
            with _explained(path, "it cannot be opened"):
                os.chmod(path, 0o600)
                db = _connect(path, "rw")
        except BaseException:
            os.close(lock)
            raise
        file = cls(path, lock, db)
        try:
            # A copy that was restored from a backup may have lost this setting.
            file.read(lambda: db.execute("PRAGMA journal_mode = WAL"))
        except BaseException:
            file.close()
            raise
        return file

    def read(self, work: Callable[[], R]) -> R:
        """Do ``work``; RegistryError if the file cannot be read."""
        with _explained(self.path, "it cannot be read"):
            return work()

    def write(self, care: Care, work: Callable[[], R]) -> R:
        """Do ``work`` in one transaction; RegistryError if it cannot be written.

        Whatever is raised, nothing has been changed.
        """
        with _explained(self.path, "it cannot be written, and nothing was changed"):
            # In WAL mode FULL is one fsync for each transaction, NORMAL none.
            synchronous = "NORMAL" if care is Care.RELAXED else "FULL"
            checkpoint = CHECKPOINT if care is Care.DURABLE else 0
            self._db.execute(f"PRAGMA synchronous = {synchronous}")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {checkpoint}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                result = work()
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            return result

    def close(self) -> None:
        """Close the file and let others open it."""
        try:
            self._db.close()
        finally:
            os.close(self._lock)


def _lock(directory: Path) -> int:
    """Take ``directory`` for this process, until the descriptor is closed."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(directory, error.strerror) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # SQLite makes files beside its own, so the lock being there is not enough.
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            raise _unwritable(directory, "no permission")
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    except BlockingIOError as error:
        owner = os.pread(lock, 20, 0).decode(errors="replace").strip()
        os.close(lock)
        raise RegistryError(
            f"{directory}: process {owner or 'unknown'} is using this state directory; "
            "stop it, or set another state_dir"
        ) from error
    except OSError as error:
        os.close(lock)
        raise _unwritable(directory, error.strerror) from error
    except BaseException:
        os.close(lock)
        raise
    return lock


def _unwritable(directory: Path, why: str | None) -> RegistryError:
    return RegistryError(
        f"{directory}: the state directory cannot be written: {why}; "
        "it must be a directory that belongs to the user of the daemon, "
        "on a disk that is mounted for writing and has room"
    )


def _is_there(path: Path) -> bool:
    """Whether there is anything at ``path``: a file without a byte counts as none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        size = 0
    except OSError as error:
        raise _unreadable(path, error) from error
    else:
        if not stat.S_ISREG(found.st_mode):
            raise _bad(path, "it is not a regular file")
        size = found.st_size
    if not size:
        changes = _beside(path, "-wal")
        # They would be applied to whatever file comes into that place.
        if changes.exists() and changes.stat().st_size:
            raise RegistryError(
                f"{path}: it is missing or empty, but its newest changes are in {changes.name}; "
                f"restore both from a backup, or move {changes.name} aside: "
                "sites then start where the configuration places them"
            )
    return bool(size)


def _check(path: Path) -> None:
    """Read all of the file, and nothing but read; RegistryError if it is not sound."""
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(header) < HEADER or not header.startswith(b"SQLite format 3\0"):
        raise _bad(path, "it is not an SQLite database")
    page = int.from_bytes(header[16:18], "big")
    if size % (65536 if page == 1 else page or 1):
        raise _bad(path, "it is damaged: its last page is cut short")
    with _explained(path, None), closing(_connect(path, "ro")) as db:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (schema,) = db.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION:
            raise _bad(path, "it is the SQLite database of another program")
        if schema > SCHEMA:
            raise _bad(
                path,
                f"it was written by a newer version (schema {schema}, this one knows {SCHEMA}); "
                "install that version again",
            )
        for (result,) in db.execute("PRAGMA quick_check(1)").fetchall():
            if result != "ok":
                raise Damaged(result)
        tables = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_master").fetchall()}
        if schema != SCHEMA or tables != {table.create for table in TABLES}:
            raise Damaged(f"its tables are not those of schema {SCHEMA}")
        TableStore(db).check()


def _make(path: Path) -> None:
    """Put a registry without a record at ``path``."""
    new = _beside(path, ".new")
    with _explained(path, "it cannot be made"):
        for name in (new, _beside(new, "-wal"), _beside(new, "-shm"), _beside(new, "-journal")):
            name.unlink(missing_ok=True)
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(_connect(new, "rw")) as db:
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {SCHEMA}")
            for table in TABLES:
                db.execute(table.create)
            db.execute("PRAGMA journal_mode = WAL")
        _sync(new)
        os.replace(new, path)
        _sync(path.parent)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # One thread at a time uses it: that of the registry, and whoever closes it after that.
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=BUSY,
        isolation_level=None,
        check_same_thread=False,
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextmanager
def _explained(path: Path, what: str | None) -> Iterator[None]:
    """Turn what SQLite and the kernel raise into RegistryError; ``what`` None: it is damaged."""
    try:
        yield
    except (Damaged, UnicodeDecodeError) as error:
        raise _bad(path, f"it is damaged: {error}") from error
    except (sqlite3.Error, OSError) as error:
        if what is None:
            raise _bad(path, f"it is damaged: {error}") from error
        raise RegistryError(f"{path}: {what}: {error}; see to the disk and its room") from error


def _bad(path: Path, what: str) -> RegistryError:
    return RegistryError(
        f"{path}: {what}. It was left as it is. Restore it from a backup, "
        f"or move {path.name} and {path.name}-wal aside: "
        "sites then start where the configuration places them"
    )


def _unreadable(path: Path, error: OSError) -> RegistryError:
    return RegistryError(
        f"{path}: it cannot be read: {error.strerror}; it must belong to the user of the daemon"
    )
