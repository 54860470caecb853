"""kill -9, at every step of what an operator does: it is done, or it was never there.

The daemon is killed from the very callback that is told of a step.  How far it gets before
the signal has arrived varies, and that is welcome: what must hold afterwards is the same.
"""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import pytest
from daemon_stage import (
    Daemon,
    Load,
    Origin,
    Stage,
    a_stage,
    reactor,
    twisted_fixture,
    twisted_test,
)
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from awesomeproxy.control.client import Unreachable
from awesomeproxy.load.outcome import RequestOutcome

stage = twisted_fixture(a_stage)

STEPS = ("check", "hold", "drain", "switch", "verify", "commit", "release", "clean")
HONEST = {
    RequestOutcome.OK,
    RequestOutcome.REFUSED,
    RequestOutcome.RESET,
    RequestOutcome.TRUNCATED,
}


class Death:
    """Kills a daemon when a step is announced."""

    def __init__(self, daemon: Daemon, step: str) -> None:
        self._pid = daemon.pid
        self._step = step

    def __call__(self, method: str, params: dict[str, Any]) -> None:
        if params.get("step") == self._step:
            os.kill(self._pid, signal.SIGKILL)


async def dies(daemon: Daemon, command: Deferred[Any]) -> None:
    """Wait for the end of a command and of the daemon; the command may just have been done."""
    try:
        await command
    except Unreachable:
        pass
    else:
        if daemon.running:
            daemon.signal(signal.SIGKILL)
    await daemon.exits()


async def _whole(daemon: Daemon, one: Origin, two: Origin) -> dict[str, Any]:
    """Nothing is half done: journal, placement and where requests go agree."""
    site = await daemon.site()
    entries = (await daemon.ask("migrations"))["migrations"]
    states = [entry["state"] for entry in entries]
    assert set(states) <= {"done", "rolled back"}
    done = [entry for entry in entries if entry["state"] == "done"]
    assert site["backend"] == (done[0]["target"] if done else "one")
    assert site["migration"] is None
    return site


async def _honest(load: Load) -> None:
    """Clients have met a closed door while there was no daemon; never an answer of another."""
    result = await load.stop()
    assert {outcome for outcome, count in result.outcomes().items() if count} <= HONEST
    assert set(result.statuses()) == {200}


@pytest.mark.parametrize("step", STEPS)
@twisted_test
async def test_a_migration_that_is_killed_is_done_or_undone(stage: Stage, step: str) -> None:
    """Whatever the step was, the next daemon serves the site from one place, and says which."""
    daemon, one, two = await stage.blog(health=True)
    one.delay = 0.01
    load = daemon.load(rate=100)
    await load.flows()
    before = (await daemon.site())["generation"]
    await dies(daemon, daemon.ask("migrate", Death(daemon, step), site="blog", to="two"))
    await daemon.start()
    failed = load.run.result.failed
    site = await _whole(daemon, one, two)
    assert site["mode"] == "open"
    assert site["generation"] >= before
    name = site["backend"]
    assert (await daemon.get("/after")).text == f"{name} /after"
    if step in ("check", "hold", "drain"):
        assert name == "one"
    await load.flows()
    assert load.run.result.failed == failed
    await _honest(load)
    other = {"one": "two", "two": "one"}[name]
    assert (await daemon.ask("migrate", site="blog", to=other))["outcome"] == "done"


@pytest.mark.parametrize("step", STEPS[1:])
@twisted_test
async def test_a_paused_site_whose_migration_is_killed_is_still_paused(
    stage: Stage, step: str
) -> None:
    """On one place or the other; it is resumed there, and the end of its hold is kept."""
    daemon, one, two = await stage.blog()
    await daemon.ask("pause", site="blog", deadline=3600, then="resume")
    expires = (await daemon.site())["expires"]
    await dies(daemon, daemon.ask("migrate", Death(daemon, step), site="blog", to="two"))
    await daemon.start()
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    site = await _whole(daemon, one, two)
    assert (site["state"], site["expires"]) == ("holding", expires)
    assert one.paths() == two.paths() == []
    await daemon.ask("resume", site="blog")
    assert (await held).text == f"{site['backend']} /held"


@twisted_test
async def test_a_pause_that_is_killed_while_it_drains_holds_afterwards(stage: Stage) -> None:
    """Intent was written before effect: the next daemon holds what comes, and can be resumed."""
    daemon, one, _ = await stage.blog()
    slow = daemon.fetch("/later")
    await one.has("/later")
    await dies(daemon, daemon.ask("pause", Death(daemon, "drain"), site="blog"))
    assert (await slow).status == 0
    await daemon.start()
    held = daemon.fetch("/held")
    await daemon.until_site(state="holding", held=1, by="pause")
    assert (await daemon.ask("pause", site="blog"))["generation"] == 2
    await daemon.ask("resume", site="blog")
    assert (await held).text == "one /held"


@twisted_test
async def test_a_daemon_killed_at_any_moment_leaves_a_whole_state(stage: Stage) -> None:
    """Again and again, while the site is paused, resumed and moved to and fro under load."""
    daemon, one, two = await stage.blog()
    chance = random.Random(2010)
    load = daemon.load(rate=100)
    await load.flows()
    generation = 0
    for _ in range(8):
        working = Deferred.fromCoroutine(_work(daemon))
        await deferLater(reactor, chance.uniform(0.005, 0.06))
        await daemon.kill()
        await working
        await daemon.start()
        site = await _whole(daemon, one, two)
        assert site["generation"] >= generation
        generation = site["generation"]
        if site["mode"] == "holding":
            assert site["by"] == "pause"
            await daemon.ask("resume", site="blog")
        assert (await daemon.get("/x")).text == f"{site['backend']} /x"
    await load.flows()
    await _honest(load)


async def _work(daemon: Daemon) -> None:
    """Pause, resume and migrate until the daemon is gone."""
    try:
        while True:
            backend = (await daemon.site())["backend"]
            await daemon.ask("pause", site="blog")
            await daemon.ask("resume", site="blog")
            await daemon.ask("migrate", site="blog", to={"one": "two", "two": "one"}[backend])
    except Unreachable:
        pass
