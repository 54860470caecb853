"""What a directory has in it, as one number."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from mover_trees import odd_tree

from awesomeproxy.movers.closing import NAME
from awesomeproxy.movers.fingerprint import answer_to

LATER = 1_700_000_000_000_000_001  # nanoseconds


def a_tree(directory: Path) -> Path:
    """Some of everything; what is changed below is in ``at``."""
    tree = directory / "tree"
    tree.mkdir()
    odd_tree(tree)
    at = tree / "at"
    (at / "below").mkdir(parents=True)
    (at / "file").write_bytes(b"content")
    (at / "link").symlink_to("file")
    (at / "one").write_bytes(b"twice")
    (at / "two").hardlink_to(at / "one")
    (at / "three").hardlink_to(at / "one")
    os.mknod(at / "null", 0o20600, os.makedev(1, 3))
    os.setxattr(at / "file", "user.kind", b"odd")
    subprocess.run(["setfacl", "-m", "u:1:r", at / "file"], check=True)
    return tree


def copied(tree: Path) -> Path:
    """What rsync makes of it."""
    copy = tree.parent / "copy"
    subprocess.run(["rsync", "-aHAXS", "--modify-window=-1", f"{tree}/", f"{copy}/"], check=True)
    return copy


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    """Something else under the same name, and of the same age."""
    times = os.lstat(path)
    path.unlink()
    make(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns), follow_symlinks=False)


def test_a_copy_has_the_same(tmp_path: Path) -> None:
    """Whatever numbers its entries have, and in whichever order they were made."""
    tree = a_tree(tmp_path)
    assert answer_to(str(tree)) == answer_to(str(copied(tree)))


def test_what_a_link_leads_to_counts(tmp_path: Path) -> None:
    """All of it, though it is on another filesystem than the link."""
    tree = a_tree(Path(tempfile.mkdtemp(dir="/dev/shm")))
    try:
        link = tmp_path / "link"
        link.symlink_to(tree)
        before = answer_to(str(link))
        assert before == answer_to(str(tree))
        times = os.stat(tree / "at")
        (tree / "at" / "more").touch()
        os.utime(tree / "at", ns=(times.st_atime_ns, times.st_mtime_ns))
        assert answer_to(str(link)) != before
    finally:
        shutil.rmtree(tree.parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda at: os.truncate(at / "file", 3),
        lambda at: os.utime(at / "file", ns=(0, LATER)),
        lambda at: os.utime(at / "below", ns=(0, LATER)),
        lambda at: os.utime(at / "link", ns=(0, LATER), follow_symlinks=False),
        lambda at: (at / "file").chmod(0o4755),
        lambda at: os.chown(at / "file", 1, -1),
        lambda at: os.chown(at / "link", -1, 1, follow_symlinks=False),
        lambda at: os.setxattr(at / "file", "user.kind", b"even"),
        lambda at: os.removexattr(at / "file", "user.kind"),
        lambda at: os.setxattr(at, "user.kind", b"odd"),
        lambda at: subprocess.run(["setfacl", "-m", "u:1:rw", at / "file"], check=True),
        lambda at: subprocess.run(["setfacl", "-d", "-m", "u:1:rw", at], check=True),
        lambda at: replaced(at / "link", lambda path: path.symlink_to("fil2")),
        lambda at: replaced(at / "two", lambda path: path.write_bytes(b"twice")),
        lambda at: replaced(at / "null", lambda path: os.mknod(path, 0o20600, os.makedev(1, 5))),
        lambda at: replaced(at / "file", lambda path: path.mkdir()),
        lambda at: (at / "file").rename(at / "fill"),
        lambda at: (at / "more").touch(),
        lambda at: (at / "file").unlink(),
        lambda at: (at / "below").rmdir(),
        lambda at: os.chmod(at.parent, 0o700),
    ],
)
def test_whatever_changes_is_seen(tmp_path: Path, change: Callable[[Path], object]) -> None:
    """Though the directory that it is in has the times it had."""
    tree = a_tree(tmp_path)
    before, at = answer_to(str(tree)), tree / "at"
    times = {path: os.stat(path) for path in (tree, at)}
    change(at)
    for path, was in times.items():
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert answer_to(str(tree)) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "at" / "file").read_bytes(),
        lambda tree: os.utime(
            tree / "at" / "file", ns=(LATER, os.stat(tree / "at/file").st_mtime_ns)
        ),
        lambda tree: os.setxattr(tree, NAME, b"web"),
    ],
)
def test_what_is_not_carried_does_not_count(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    """Times of reading, and what closing has noted."""
    tree = a_tree(tmp_path)
    before = answer_to(str(tree))
    change(tree)
    assert answer_to(str(tree)) == before
