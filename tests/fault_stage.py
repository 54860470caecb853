"""A migration of a shop or a blog that waits before a step, so that something can be broken there.

Orders or posts come all the time, and each writes a row and a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from blog_stage import Blog
from daemon_stage import Failed, Load
from postgres_stage import PROGRAMS
from servers_stage import Server, Servers
from shop_stage import HERE, Shop
from stage_waiting import reactor, until, until_async
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from awesomeproxy.control.client import Unreachable
from awesomeproxy.load.result import Result
from awesomeproxy.migrate.steps import ORDER

STEPS = tuple(ORDER)
DONE, UNDONE = "done", "rolled back"
BLIP = 2.0  # seconds without a network that ssh gets over


class Site(Protocol):
    """What moves; its database and its filesystem are called like it."""

    name: str
    servers: Servers
    at: Server

    def rows(self, server: Server) -> Counter[int]:
        """The rows that are there, and how often."""

    def files(self, server: Server) -> set[int]:
        """The files that are there."""


class Moving:
    """A migration that waits before a step."""

    def __init__(self, site: Site, step: str) -> None:
        """Begin it, to wherever the site is not."""
        self.site = site
        self.step = step
        self.source = site.at
        self.target = next(each for each in site.servers.both if each is not self.source)
        self._daemon = site.servers.daemon
        self._stop = self._daemon.directory / "stop"
        self._stopped = self._daemon.directory / "stopped"
        self._stopped.unlink(missing_ok=True)
        self._write(step)
        self.said: dict[str, Any] = {}
        self.end: Deferred[str] = Deferred.fromCoroutine(self._run())

    async def _run(self) -> str:
        try:
            self.said = await self._daemon.ask(
                "migrate",
                site=self.site.name,
                to=self.target.name,
                databases={self.site.name: self.target.name},
                max_pause=40.0,
            )
        except (Failed, Unreachable) as problem:
            self.said = {"outcome": UNDONE, "reason": str(problem)}
        return str(self.said["outcome"])

    async def stops(self) -> None:
        """Wait until it has come to the step."""
        while not (self._stopped.exists() or self.end.called):  # which is bounded
            await sleep(0.02)
        assert self._stopped.exists(), f"{self.step}: {self.said}"

    def go_on(self, step: str = "none") -> None:
        """Go on, to another step that it waits before, or to the end."""
        self._stopped.unlink(missing_ok=True)
        self.step = step
        self._write(step)

    def _write(self, step: str) -> None:
        new = self._stop.with_suffix(".new")
        new.write_text(step)
        os.rename(new, self._stop)

    async def reached(self) -> str:
        """The step that it is in; empty: it has ended."""
        site = await self._daemon.site(self.site.name)
        return str(site["migration"]["step"]) if site["migration"] else ""

    async def ends(self) -> str:
        """How it has ended, and the site is where that says."""
        outcome = await self.end
        print(self.said)
        at = self.target if outcome == DONE else self.source
        site = await self._daemon.site(self.site.name)
        assert (site["backend"], site["mode"]) == (at.name, "open")
        self.site.at = at
        return outcome


class Killer:
    """Kills the first process of a mover that it sees, on a server or of the daemon's own."""

    def __init__(self, servers: Servers, program: str, words: str = "") -> None:
        """
        :param program: what it is called.
        :param words: a pattern of what there is in its command line.
        """
        self.killed = False
        self._program = program
        self._words = re.compile(words.encode())
        self._home = str(servers.daemon.directory)
        self._spaces = {os.stat(f"/proc/{_keeper(each)}/ns/net").st_ino for each in servers.both}
        self._enough = threading.Event()
        self._hunt = deferToThread(self._look)

    def _look(self) -> None:
        first: set[str] = set()  # what is there, and need not be looked at again
        while not self._enough.is_set() and not self.killed:
            there = set(filter(str.isdigit, os.listdir("/proc")))
            for pid in there - first:
                with contextlib.suppress(OSError):
                    self._kill(int(pid))
            first = first or there
            self._enough.wait(0.002)

    def _kill(self, pid: int) -> None:
        at = Path(f"/proc/{pid}")
        if self.killed or (at / "comm").read_text().strip() != self._program:
            return
        if not self._words.search((at / "cmdline").read_bytes().replace(b"\0", b" ")):
            return
        here = os.stat(at / "ns/net").st_ino in self._spaces
        if here or os.readlink(at / "cwd") == self._home:
            os.kill(pid, signal.SIGKILL)
            self.killed = True

    async def kills(self) -> None:
        """Wait until it has killed one."""
        await until(lambda: self.killed, f"the end of {self._program}")
        await self._hunt

    async def stop(self) -> bool:
        """Whether it has killed one."""
        self._enough.set()
        await self._hunt
        return self.killed


def _keeper(server: Server) -> int:
    assert server.keeper is not None
    return server.keeper.pid


async def kill_the_daemon(site: Site, load: Load, steps: Iterable[str]) -> None:
    """Kill it before each of ``steps``, and see that the next one ends the migration."""
    daemon = site.servers.daemon

    async def ended() -> dict[str, Any] | None:
        newest = (await daemon.ask("migrations", site=site.name, limit=1))["migrations"][0]
        return newest if newest["state"] in (DONE, UNDONE) else None

    for step in steps:
        moving = Moving(site, step)
        await moving.stops()
        await daemon.kill()
        moving.go_on()
        await moving.end
        await daemon.start()
        committed = ORDER[step] > ORDER["commit"]
        if step != "check":  # before that there is nothing to be ended
            newest = await until_async(ended, f"the end of what died before {step}")
            assert newest is not None
            assert newest["state"] == (DONE if committed else UNDONE), step
        site.at = moving.target if committed else moving.source
        await daemon.until_site(site.name, backend=site.at.name, mode="open")
        await load.flows(5)


def intact(site: Site, result: Result) -> None:
    """See that all that was acknowledged is there once, though not all was."""
    acknowledged = set(result.acknowledged())
    rows = site.rows(site.at)
    assert acknowledged
    assert set(rows.values()) == {1}
    assert acknowledged <= set(rows)
    assert acknowledged <= site.files(site.at)


async def pull_cables(site: Site, load: Load, steps: Sequence[str]) -> None:
    """Move to and fro, without the network for a moment before each of the steps."""
    for side in ("target", "source"):
        first, *others = steps
        moving = Moving(site, first)
        server = getattr(moving, side)
        for step in (*others, "none"):
            await moving.stops()
            server.cut()
            moving.go_on(step)
            await sleep(BLIP)
            server.cut(off=False)
        assert await moving.ends() == DONE
        await load.flows(5)


async def a_shop(servers: Servers) -> Shop:
    """One that moves with as little work as can be."""
    return await Shop.build(servers, "dump", _hooks(servers), PROGRAMS)


async def a_blog(servers: Servers, disks: Path) -> Blog:
    """One on which a migration can wait."""
    return await Blog.build(servers, disks, _hooks(servers))


def _hooks(servers: Servers) -> str:
    words = str([str(HERE / "stop.sh"), str(servers.daemon.directory)]).replace("'", '"')
    return "\n".join(
        f'[[hooks]]\nstep = "{step}"\ncommand = {words}\ntime = "60s"' for step in STEPS
    )


def writes(site: Site) -> Load:
    """Requests that each write a row and a file."""
    return site.servers.daemon.load(method="POST", rate=6.0, duration=600.0, timeout=60.0)


async def sleep(seconds: float) -> None:
    await deferLater(reactor, seconds)
