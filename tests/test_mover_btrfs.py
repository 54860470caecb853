"""The mover of Btrfs subvolumes, on real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from btrfs_stage import BtrfsStage, btrfs
from mover_contract import ONE, TWO, FilesystemContract


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Two of them, by side."""
    directory = tmp_path_factory.mktemp("btrfs")
    with btrfs(directory) as one, btrfs(directory) as two:
        yield {ONE: one, TWO: two}


@pytest.fixture
def stage(tmp_path: Path, roots: dict[str, Path]) -> Iterator[BtrfsStage]:
    """A subvolume on the one."""
    made = BtrfsStage(tmp_path.name, roots)
    yield made
    made.close()


class TestContract(FilesystemContract):
    """What every mover of filesystems is held to."""
