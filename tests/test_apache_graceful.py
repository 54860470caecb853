"""Apache is restarted gracefully, again and again, while it is asked; nobody notices."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from daemon_stage import HOST, Stage, a_stage, free_ports, twisted_fixture, twisted_test
from php_stage import USER, Website
from stage_waiting import reactor, until
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

stage = twisted_fixture(a_stage)

RESTARTS = 25
BETWEEN = 0.1  # seconds from one to the next

# Each request leaves its number, however often it comes.
SCRIPT = """<?php
$name = $_SERVER['REQUEST_METHOD'] . $_SERVER['REQUEST_URI'] . "\\n";
file_put_contents('HERE/requests', $name, FILE_APPEND | LOCK_EX);
echo $name;
"""


@dataclass
class Apache:
    """One that is asked through PHP."""

    site: Website
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    async def start(self, mpm: str) -> None:
        self.site.configure(mpm)
        (self.site.directory / "index.php").write_text(
            SCRIPT.replace("HERE", str(self.site.directory))
        )
        for argv in (self.site.fpm, self.site.apache()):
            # Apache's signals are for all of its group.
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
            self.processes.append(process)
        await until((self.site.directory / "apache.pid").exists, "Apache")
        await until((self.site.directory / "fpm.sock").exists, "PHP")

    async def restart(self) -> None:
        await deferToThread(subprocess.run, self.site.apache("-k", "graceful"), check=True)

    def requests(self, method: str) -> Counter[int]:
        """The numbers of those that have come, and how often."""
        lines = (self.site.directory / "requests").read_text().splitlines()
        return Counter(
            int(number)
            for verb, _, number in (line.partition("/") for line in lines)
            if verb == method
        )

    @property
    def log(self) -> str:
        return (self.site.directory / "apache.log").read_text()

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
            process.wait()


@pytest.fixture
def apache() -> Iterator[Apache]:
    directory = Path(tempfile.mkdtemp(prefix="apache-"))
    shutil.chown(directory, USER)
    directory.chmod(0o755)
    made = Apache(Website(directory, directory, HOST, free_ports(1)[0], directory))
    yield made
    made.close()
    shutil.rmtree(directory)


@pytest.mark.parametrize("mpm", ["event", "prefork"])
@twisted_test
async def test_nothing_fails_while_apache_is_restarted_gracefully(
    stage: Stage, apache: Apache, mpm: str
) -> None:
    """Neither what may be sent again nor what must not be."""
    await apache.start(mpm)
    daemon = await stage.serving(
        "[sites.blog]",
        'hosts = ["blog.test"]',
        'backend = "one"',
        f'backends.one.servers = ["http://{HOST}:{apache.site.port}"]',
        # With prefork each connection that is kept has a process to itself.
        "backends.one.max_idle = 8",
    )
    get = daemon.load(rate=100.0)
    post = daemon.load(rate=50.0, method="POST", body=b"order={n}")
    await get.flows()
    await post.flows()
    for _ in range(RESTARTS):
        await apache.restart()
        await deferLater(reactor, BETWEEN)
    await get.flows()
    await post.flows()
    read, written = await get.passes(), await post.passes()
    # One that comes while the one before is still being done may be part of it.
    assert apache.log.count("resuming normal operations") > RESTARTS // 2
    assert set(apache.requests("GET")) == set(read.acknowledged())
    assert apache.requests("POST") == Counter(written.acknowledged())
