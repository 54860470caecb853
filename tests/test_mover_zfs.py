"""The mover of ZFS filesystems, on real pools of zfs-fuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mover_contract import ONE, TWO, FilesystemContract
from zfs_stage import ZfsStage, pool, zfs_fuse


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[str, str]]:
    """Two of them, by side."""
    with zfs_fuse(), pool() as one, pool() as two:
        yield {ONE: one, TWO: two}


@pytest.fixture
def stage(tmp_path: Path, pools: dict[str, str]) -> Iterator[ZfsStage]:
    """A filesystem on the one."""
    made = ZfsStage(tmp_path, pools)
    yield made
    made.close()


class TestContract(FilesystemContract):
    """What every mover of filesystems is held to."""
