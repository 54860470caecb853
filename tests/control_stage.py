"""A table of commands to try the control protocol with: each answers, fails or waits at will."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IListeningPort, IReactorUNIX
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from awesomeproxy.control.connection import Limits
from awesomeproxy.control.server import listen
from awesomeproxy.control.table import BadRequest, Call, CommandFailed, Table

F = TypeVar("F", bound=Callable[..., Any])
twisted_test: Callable[[F], F] = pytest_twisted.ensureDeferred
twisted_fixture: Callable[[F], F] = pytest_twisted.async_yield_fixture

table = Table()

COUNTERS = {
    "requests": 1200,
    "held": 12,
    "released": 12,
    "departed": 0,
    "refused": 0,
    "retried": 1,
    "ambiguous": 0,
    "failed": 0,
}
LEDGER: dict[str, Any] = {
    **COUNTERS,
    "site": "blog",
    "source": "old",
    "target": "new",
    "generation": 8,
    "outcome": "done",
    "reason": "",
    "longest_added_wait": 0.31,
    "bytes_moved": 0,
    "pause": 0.3,
    "steps": {"check": 0.002, "hold": 0.004, "drain": 0.25},
}
RECEIPT: dict[str, Any] = {
    "site": "blog",
    "backend": "old",
    "generation": 7,
    "drained_in": 0.25,
    "workers": [
        {
            "node": "n1",
            "worker": "0",
            "generation": 7,
            "in_flight": 0,
            "connections": 0,
            "held": 3,
        }
    ],
    "closed": 0,
}


def a_site(name: str = "blog", **more: Any) -> dict[str, Any]:
    """A line of `status`."""
    return {
        "name": name,
        "hosts": ["blog.example"],
        "path": "/",
        "backend": "old",
        "mode": "open",
        "state": "open",
        "generation": 6,
        "by": "configuration",
        "expires": None,
        "in_flight": 2,
        "held": 0,
        "held_bytes": 0,
        "tunnels": 0,
        "connections": 4,
        "trouble": "",
        "backends": {
            "old": {"http://10.0.0.1:80": "up", "http://10.0.0.2:80": "down: refused"},
            "new": {"http://10.0.0.3:80": "up"},
        },
        "counters": COUNTERS,
        "migration": None,
        **more,
    }


NODE: dict[str, Any] = {
    "name": "n1",
    "version": "0.1.0",
    "pid": 42,
    "uptime": 3700.0,
    "connections": 5,
    "max_connections": 16000,
    "listen": ["tcp:80"],
    "held": 0,
    "registry": "local",
}


@dataclass
class Stage:
    """What the commands are called with: what they were asked, and what they wait for."""

    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    started: Deferred[None] = field(default_factory=Deferred)
    go: Deferred[None] = field(default_factory=Deferred)
    ended: Deferred[str] = field(default_factory=Deferred)
    events: list[dict[str, Any]] = field(default_factory=list)

    def note(self, command: str, **params: Any) -> None:
        self.asked.append((command, {k: v for k, v in params.items() if v is not None}))
        site = params.get("site")
        if site == "nowhere":
            raise BadRequest("there is no site 'nowhere'; there is: blog")
        if site == "lost":
            raise CommandFailed(
                "another command came first; try again if it is still wanted",
                {"site": "lost", "generation": 9, "by": "resume", "mode": "open", "backend": "new"},
            )
        if site == "broken":
            raise RuntimeError("a bug")
        if site == "unspeakable":
            raise CommandFailed("it said \x1b[31mred\nand more")


@table.command("status")
async def status(stage: Stage, call: Call, site: str | None = None) -> Mapping[str, Any]:
    stage.note("status", site=site)
    return {"node": NODE, "sites": [a_site()]}


@table.command("pause")
async def pause(
    stage: Stage,
    call: Call,
    site: str,
    force: bool = False,
    timeout: float | None = None,
    deadline: float | None = None,
    then: Literal["refuse", "resume"] | None = None,
) -> Mapping[str, Any]:
    call.progress("hold", "generation 7", generation=7)
    stage.note("pause", site=site, force=force, timeout=timeout, deadline=deadline, then=then)
    if site == "slow":
        stage.started.callback(None)
        await stage.go
        stage.ended.callback("done")
    call.progress("drain", "0 in flight")
    return {**RECEIPT, "site": site}


@table.command("resume")
async def resume(stage: Stage, call: Call, site: str) -> Mapping[str, Any]:
    stage.note("resume", site=site)
    if site == "modern":
        return {"site": site, "places": ["a", "b"]}
    return {"site": site, "backend": "old", "generation": 8, "released": 3}


@table.command("migrate")
async def migrate(
    stage: Stage,
    call: Call,
    site: str,
    to: str,
    dry_run: bool = False,
    max_pause: float = 20.0,
    force: bool = False,
) -> Mapping[str, Any]:
    stage.note("migrate", site=site, to=to, dry_run=dry_run, max_pause=max_pause, force=force)
    if dry_run:
        problems = ["backend 'bad' has no server that is up"] if to == "bad" else []
        plan = [{"step": "hold", "what": "hold blog"}, {"step": "drain", "what": "wait"}]
        return {"site": site, "source": "old", "target": to, "plan": plan, "problems": problems}
    ledger = {**LEDGER, "site": site, "target": to}
    if site == "unsure":
        return {**ledger, "ambiguous": 2}
    if site == "undone":
        return {**ledger, "outcome": "rolled back", "reason": "new is down"}
    return ledger


@table.command("watch")
async def watch(stage: Stage, call: Call, site: str | None = None) -> Mapping[str, Any]:
    stage.note("watch", site=site)
    for event in stage.events:
        call.event(**event)
    if not stage.started.called:
        stage.started.callback(None)
    try:
        await stage.go
    except CancelledError:
        stage.ended.callback("cancelled")
        raise
    return {}


@table.command("flood")
async def flood(stage: Stage, call: Call, bytes: int) -> Mapping[str, Any]:
    return {"text": "x" * bytes}


@table.command("site.add")
async def site_add(
    stage: Stage, call: Call, name: str, definition: dict[str, Any]
) -> Mapping[str, Any]:
    stage.note("site.add", name=name, definition=definition)
    return {"site": name, "generation": 1}


@table.command("site.remove")
async def site_remove(stage: Stage, call: Call, name: str) -> Mapping[str, Any]:
    stage.note("site.remove", name=name)
    return {"site": name}


@table.command("site.show")
async def site_show(stage: Stage, call: Call, name: str) -> Mapping[str, Any]:
    definition = {
        "hosts": ["blog.example"],
        "backend": "old",
        "backends": {"old": {"servers": ["http://10.0.0.1:80"]}},
    }
    placement = {"site": name, "backend": "old", "generation": 6, "expires": None}
    return {"site": name, "source": "file", "definition": definition, "placement": placement}


@table.command("backend.add")
async def backend_add(
    stage: Stage, call: Call, site: str, name: str, definition: dict[str, Any]
) -> Mapping[str, Any]:
    stage.note("backend.add", site=site, name=name, definition=definition)
    return {"site": site, "backend": name, "generation": 7}


@table.command("backend.remove")
async def backend_remove(stage: Stage, call: Call, site: str, name: str) -> Mapping[str, Any]:
    stage.note("backend.remove", site=site, name=name)
    return {"site": site, "backend": name}


@table.command("migrations")
async def migrations(
    stage: Stage, call: Call, site: str | None = None, limit: int = 20
) -> Mapping[str, Any]:
    stage.note("migrations", site=site, limit=limit)
    record = {
        "id": 1,
        "site": "blog",
        "source": "old",
        "target": "new",
        "along": [{"name": "database:shop", "source": "d1", "target": "d2"}],
        "state": "done",
        "step": "",
        "reason": "",
        "began": 1_700_000_000.0,
        "ledger": LEDGER,
    }
    return {"migrations": [record, {**record, "state": "rolled back", "ledger": None}]}


@table.command("reload")
async def reload(stage: Stage, call: Call) -> Mapping[str, Any]:
    return {"added": ["shop"], "changed": [], "removed": ["old"]}


@table.command("unwritable")
async def unwritable(stage: Stage, call: Call) -> Any:
    return {"a": object()}


@dataclass
class Theatre:
    """A served table, its socket and what its commands are called with."""

    path: str
    stage: Stage
    port: IListeningPort

    async def close(self) -> None:
        """Stop serving."""
        await maybeDeferred(self.port.stopListening)


async def serve(path: str, limits: Limits | None = None) -> Theatre:
    """Serve the table at ``path``, under limits that a test can reach."""
    stage = Stage()
    port = await listen(
        cast(IReactorUNIX, reactor), path, table, stage, limits or Limits(grace=0.2)
    )
    return Theatre(path, stage, port)


class Talk(Protocol):
    """A client that sends what it is told, and keeps each line it gets."""

    transport: Any

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.lost: Deferred[None] = Deferred()
        self._rest = b""
        self._waiter: Deferred[None] | None = None

    def dataReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.got += lines
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    async def lines(self, count: int) -> list[bytes]:
        """The next ``count`` lines, or fewer if the connection ends before."""
        while len(self.got) < count and not self.lost.called:
            self._waiter = Deferred()
            await self._waiter
        taken, self.got = self.got[:count], self.got[count:]
        return taken


async def connect(path: str) -> Talk:
    """A connection to ``path``."""
    endpoint = UNIXClientEndpoint(reactor, path)  # type: ignore[no-untyped-call]
    talk: Talk = await connectProtocol(endpoint, Talk())  # type: ignore[no-untyped-call]
    return talk
