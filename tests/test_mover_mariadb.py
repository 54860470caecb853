"""MariaDB databases that move between real servers while they are in use, by replication."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from daemon_stage import twisted_fixture
from database_contract import DatabaseContract
from mariadb_stage import MariadbStage, Servers, a_mariadb_stage
from mariadb_stage import servers as two_servers

servers = pytest.fixture(scope="module")(two_servers)


async def _stage(servers: Servers) -> AsyncIterator[MariadbStage]:
    async for stage in a_mariadb_stage(servers, method="replicate"):
        yield stage


stage = twisted_fixture(_stage)


class TestMariadb(DatabaseContract):
    """What holds for all movers of databases."""
