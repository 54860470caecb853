"""PostgreSQL databases move between two real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from database_contract import DatabaseContract
from postgres_stage import Cluster, PostgresStage, a_postgres_stage, two_clusters


@pytest.fixture(scope="module")
def clusters() -> Iterator[dict[str, Cluster]]:
    yield from two_clusters()


@pytest.fixture
def stage(clusters: dict[str, Cluster], tmp_path: Path) -> PostgresStage:
    return a_postgres_stage(clusters, tmp_path, method="replicate")


class TestReplicated(DatabaseContract):
    """What is replicated is held to the contract."""
