"""The mover of ZFS filesystems, on real pools of zfs-fuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mover_contract import ONE, TWO, FilesystemContract
from zfs_stage import ZfsStage, pool, zfs_fuse


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Two of them, by side."""
    directory = tmp_path_factory.mktemp("pools")
    with zfs_fuse(), pool(directory) as one, pool(directory) as two:
        yield {ONE: one, TWO: two}


@pytest.fixture
def stage(tmp_path: Path, pools: dict[str, str]) -> Iterator[ZfsStage]:
    """A filesystem on the one."""
    made = ZfsStage(tmp_path, pools)
    yield made
    made.close()


class TestContract(FilesystemContract):
    """What every mover of filesystems is held to."""
