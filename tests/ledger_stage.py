"""Sites of a cluster that have nothing but a directory, which rsync carries.

Each request writes a row and a file there; see ``ledger_app.py``.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster_stage import HERE, Cluster, Node
from daemon_stage import Load
from stage_waiting import until_async

from awesomeproxy.movers.closing import OWN

BULK = 16 << 20  # bytes of a file that takes rsync seconds
BANDWIDTH = BULK // 4  # bytes a second


@dataclass(frozen=True)
class Stand:
    """Where a backend is."""

    node: str
    address: str
    directory: Path  # that has the site's
    before: tuple[str, ...] = ()  # what runs a command there, for a node
    inside: tuple[str, ...] = ()  # the same for the test


@dataclass
class Ledger:
    """A site."""

    cluster: Cluster
    number: int
    stands: Mapping[str, Stand]  # by backend, ``old`` and ``new``
    at: str = "old"
    loads: dict[str, Load] = field(default_factory=dict)  # by node

    @property
    def name(self) -> str:
        return f"ledger{self.number}"

    @property
    def other(self) -> str:
        """Where it can go."""
        return "new" if self.at == "old" else "old"

    def path(self, backend: str) -> Path:
        return self.stands[backend].directory / f"{self.name}-{backend}"

    def tables(self) -> str:
        """Of its filesystem, for each node's file."""
        old = self.stands["old"].node
        lines = [f"[filesystems.{self.name}]", 'mover = "rsync"', f'node = "{old}"']
        lines.append(f"options.bandwidth = {BANDWIDTH}")
        for name, stand in self.stands.items():
            lines.append(f'on.{stand.node}.path = "{self.path(name)}"')
        return "\n".join(lines)

    def definition(self) -> dict[str, Any]:
        return {
            "hosts": [f"{self.name}.test"],
            "backend": "old",
            "filesystem": self.name,
            "hold": {"max_time": "120s"},
            "backends": {
                name: {
                    "node": stand.node,
                    "servers": [f"http://{stand.address}:{self.port(name)}"],
                    "service": {act: self.service(name, act) for act in ("start", "stop")},
                    "health": {"path": "/health", "interval": "500ms"},
                }
                for name, stand in self.stands.items()
            },
        }

    def port(self, backend: str) -> int:
        return 9001 + 2 * self.number + (backend == "new")

    def service(self, backend: str, act: str) -> list[str]:
        """The command that starts or stops it."""
        stand, port = self.stands[backend], str(self.port(backend))
        program, pidfile = str(HERE / "ledger_app.py"), str(self._pidfile(backend))
        app = [sys.executable, program, str(self.path(backend)), stand.address, port]
        return [*stand.before, str(HERE / "service.sh"), act, pidfile, port, *app]

    def _pidfile(self, backend: str) -> Path:
        return self.path(backend).with_suffix(".pid")

    def is_open(self, backend: str) -> bool:
        """Whether anybody can write there."""
        return not os.statvfs(self.path(backend)).f_flag & os.ST_RDONLY

    def runs(self, backend: str) -> bool:
        return self._pidfile(backend).exists()

    def rows(self, backend: str) -> Counter[str]:
        with closing(sqlite3.connect(self.path(backend) / "rows", timeout=60)) as rows:
            return Counter(name for (name,) in rows.execute("SELECT name FROM written"))

    def files(self, backend: str) -> set[str]:
        return set(os.listdir(self.path(backend) / "files"))

    def carriers(self) -> list[int]:
        """The processes of the rsync that carries it."""
        found = []
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                own = f"{OWN}={self.name}".encode()
                if own in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found += [pid] if words[0] == b"rsync" and b"--dry-run" not in words else []
        return found

    async def begin(self, writers: Sequence[str]) -> None:
        """
        :param writers: the nodes that are asked to write there.
        """
        (self.path("old") / "files").mkdir(parents=True)
        with closing(sqlite3.connect(self.path("old") / "rows")) as rows:
            rows.execute("CREATE TABLE written (name TEXT)")
        self._run("old", "start")
        nodes = list(self.cluster.nodes.values())
        await nodes[0].ask("site.add", name=self.name, definition=self.definition())
        for node in nodes:
            await node.until_site(self.name, backend="old", mode="open")
        for name in writers:
            node = self.cluster.nodes[name]
            self.loads[name] = self.cluster.load(
                node, self.name, method="POST", rate=4.0, path=f"/{name}"
            )

    async def ended(self, node: Node) -> str:
        """Wait until its newest migration has; how it did, as a node tells."""

        async def look() -> str:
            told = await node.ask("migrations", site=self.name, limit=1)
            state = str(told["migrations"][0]["state"])
            return state if state in ("done", "rolled back") else ""

        return await until_async(look, f"the end of the migration of {self.name}")

    def is_well(self, step: str) -> None:
        """It is served where it is, and nothing of a migration is left, there or elsewhere."""
        at, other = self.at, self.other
        assert (self.is_open(at), self.runs(at)) == (True, True), step
        assert not self.runs(other), step
        assert not self.path(other).exists() or not self.is_open(other), step
        table = Path("/proc/self/mountinfo").read_text()
        mounted = [line.split()[4] for line in table.splitlines()]
        assert str(self.path(at)) not in mounted, step
        assert self.carriers() == [], step

    async def passes(self) -> None:
        """Nothing failed; what was acknowledged is there, row and file, and nothing is twice."""
        written: set[str] = set()
        for name, load in self.loads.items():
            result = await load.passes()
            written |= {f"{name}-{number}" for number in result.acknowledged()}
        rows = self.rows(self.at)
        assert set(rows.values()) == {1}
        assert set(rows) == self.files(self.at) == written

    def _run(self, backend: str, act: str) -> None:
        words = [*self.stands[backend].inside, *self.service(backend, act)]
        subprocess.run(words, check=True)

    def close(self) -> None:
        for name in self.stands:
            self._run(name, "stop")
            while not subprocess.run(
                ["umount", "-l", self.path(name)], capture_output=True, check=False
            ).returncode:
                pass


def bulk(cluster: Cluster) -> Path:
    """A file with which a site is too big to be carried at once."""
    made = cluster.directory / "bulk"
    if not made.exists():
        made.write_bytes(os.urandom(BULK))
    return made


async def begin(ledgers: Sequence[Ledger], more: str, writers: Sequence[str]) -> None:
    """Have a cluster serve them.

    :param more: of each node's file, the tables of the nodes.
    """
    tables = "\n".join([more, *(each.tables() for each in ledgers)])
    for node in ledgers[0].cluster.nodes.values():
        node.config.write_text(f"{node.config.read_text()}\n{tables}")
        await node.ask("reload")
    for each in ledgers:
        await each.begin(writers)


async def close(ledgers: Sequence[Ledger]) -> None:
    """Leave nothing of them behind."""
    for node in ledgers[0].cluster.nodes.values():
        if node.running:
            await node.kill()  # or it would start again what is stopped
    for each in ledgers:
        each.close()
