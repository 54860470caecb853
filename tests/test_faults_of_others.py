"""Faults that other proxies and poolers have had, each a test that this one has not.

Named after the project and, where there is one, the number of its report.
"""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

import pytest
from daemon_stage import (
    Failed,
    Stage,
    a_stage,
    reactor,
    site,
    twisted_fixture,
    twisted_test,
    until,
)
from twisted.internet.task import deferLater

from awesomeproxy.proxy.health import AGENT

stage = twisted_fixture(a_stage)

TIGHT = 'drain = { time = "300ms", tunnels = "100ms" }'


# kamal-proxy


@twisted_test
async def test_kamal_proxy_loses_requests_between_gate_and_count(stage: Stage) -> None:
    """Thirty pauses and resumes under load: every request is answered, none with 503."""
    daemon, _, _ = await stage.blog()
    load = daemon.load(rate=0, connections=16)  # as fast as they are answered
    await load.flows()
    for _ in range(30):
        await daemon.ask("pause", site="blog")
        await daemon.ask("resume", site="blog")
    result = await load.passes()
    assert set(result.statuses()) == {200}


@twisted_test
async def test_kamal_proxy_saves_its_state_after_the_drain(stage: Stage) -> None:
    """A daemon killed while a pause drains knows afterwards that the site was to be held."""
    daemon, one, _ = await stage.blog()
    slow = daemon.fetch("/later")
    await one.has("/later")
    pause = daemon.ask("pause", site="blog")
    await daemon.until_site(state="draining")
    await daemon.kill()
    with pytest.raises(Exception, match="closed the connection before it answered"):
        await pause
    await slow
    await daemon.start()
    assert (await daemon.site())["state"] == "holding"


@twisted_test
async def test_kamal_proxy_crashes_at_pause_restart_resume(stage: Stage) -> None:
    """A pause is resumed by the next daemon as well as by the one that made it."""
    daemon, _, _ = await stage.blog()
    await daemon.ask("pause", site="blog")
    await daemon.kill()
    await daemon.start()
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    await daemon.ask("resume", site="blog")
    assert (await held).text == "one /held"


@twisted_test
async def test_kamal_proxy_reports_a_drain_that_timed_out_as_a_success(stage: Stage) -> None:
    """It is a failure, undone, with exit status 1."""
    daemon, one, _ = await stage.blog(more=TIGHT)
    slow = daemon.fetch("/later")
    await one.has("/later")
    ended = await daemon.command("pause", "blog", "--json")
    assert ended.status == 1
    assert "after 0.3 s there were still 1 requests in flight" in ended.json["error"]["message"]
    assert (await daemon.site())["state"] == "open"
    one.let_go()
    assert (await slow).status == 200


@twisted_test
async def test_kamal_proxy_releases_all_held_requests_at_once(stage: Stage) -> None:
    """The first meets a cold backend along a ramp: start, doubled, and so on."""
    daemon, one, _ = await stage.blog(more='ramp = { start = 4, double_every = "60s" }')
    await daemon.ask("pause", site="blog")
    held = [daemon.fetch("/later") for _ in range(20)]
    await daemon.until_site(held=20)
    await daemon.ask("resume", site="blog")
    await one.has("/later", 4)
    assert (await daemon.until_site(state="releasing"))["in_flight"] == 4
    while not all(answer.called for answer in held):
        one.let_go()
        await deferLater(reactor, 0.005)


# PgBouncer


@twisted_test
async def test_pgbouncer_715_a_resume_during_a_pause_hangs_the_pause(stage: Stage) -> None:
    """The pause is called off and told so; it does not wait for ever."""
    daemon, one, _ = await stage.blog()
    slow = daemon.fetch("/later")
    await one.has("/later")
    pause = daemon.ask("pause", site="blog", timeout=3600)
    await daemon.until_site(state="draining")
    await daemon.ask("resume", site="blog")
    with pytest.raises(Failed, match="'resume' has changed the site meanwhile"):
        await pause
    one.let_go()
    await slow


@twisted_test
async def test_pgbouncer_1565_a_resume_is_refused_during_a_shutdown(stage: Stage) -> None:
    """It is recorded, and the next daemon serves the site; only a new pause is refused."""
    one = stage.origin("one")
    daemon = await stage.serving(site("blog", one), site("shop", one))
    await daemon.ask("pause", site="blog")
    slow = daemon.fetch("/later", host="shop.test")
    await one.has("/later")
    daemon.signal(signal.SIGTERM)
    await until(lambda: f"(TCP Port {daemon.port} Closed)" in daemon.log)
    with pytest.raises(Failed, match="the daemon is stopping"):
        await daemon.ask("pause", site="shop")
    assert (await daemon.ask("resume", site="blog"))["generation"] == 3
    one.let_go()
    assert (await slow).text == "one /later"
    assert await daemon.exits() == 0
    await daemon.start()
    assert (await daemon.get("/")).text == "one /"


# pgcat


@twisted_test
async def test_pgcat_941_waiters_are_bound_to_the_backend_they_came_for(stage: Stage) -> None:
    """They wait for the site, and go where it is when they are released."""
    daemon, one, _ = await stage.blog()
    slow = daemon.fetch("/later")
    await one.has("/later")
    moving = daemon.ask("migrate", site="blog", to="two")
    await daemon.until_site(migration={"target": "two", "step": "drain"})
    held = [daemon.fetch(f"/{n}") for n in range(10)]
    await daemon.until_site(held=10)
    one.let_go()
    assert (await moving)["released"] == 10
    assert [(await answer).text for answer in held] == [f"two /{n}" for n in range(10)]
    assert one.paths() == ["/later"]
    await slow


@twisted_test
async def test_pgcat_917_a_pause_answers_before_the_last_request_has(stage: Stage) -> None:
    """Holding and drained are two states; the receipt is for the second."""
    daemon, one, _ = await stage.blog()
    slow = daemon.fetch("/later")
    await one.has("/later")
    pause = daemon.ask("pause", site="blog")
    status = await daemon.until_site(mode="holding")
    assert (status["state"], status["in_flight"], pause.called) == ("draining", 1, False)
    one.let_go()
    await slow
    receipt = await pause
    assert [(w["in_flight"], w["connections"]) for w in receipt["workers"]] == [(0, 0)]
    assert not one.connections


# intermission


@twisted_test
async def test_intermission_forwards_a_request_whose_hold_has_expired(stage: Stage) -> None:
    """It is answered 503 with Retry-After; the paused backend hears nothing of it."""
    daemon, one, _ = await stage.blog(more='hold.max_time = "200ms"')
    await daemon.ask("pause", site="blog")
    answer = await daemon.get("/held")
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    assert one.connected == 0


@twisted_test
async def test_intermission_lets_requests_through_when_its_registry_fails(stage: Stage) -> None:
    """Neither one that does not answer, nor one that is damaged: that daemon does not start."""
    daemon, one, _ = await stage.blog()
    await daemon.ask("pause", site="blog")
    registry = daemon.directory / "state" / "registry.sqlite"
    locking = sqlite3.connect(registry)
    locking.execute("BEGIN IMMEDIATE")
    held = daemon.fetch("/held")
    with pytest.raises(Failed, match="nothing was changed"):
        await daemon.ask("resume", site="blog")
    assert (await daemon.until_site(held=1))["state"] == "holding"
    locking.close()
    await daemon.kill()
    await held
    registry.write_bytes(b"x" * 4096)
    daemon.spawn()
    assert await daemon.exits() == 1
    assert "It was left as it is. Restore it from a backup" in daemon.log
    assert one.connected == 0


# Vitess


@pytest.mark.parametrize(
    "end", ["the client leaves, and the server answers", "the server dies", "it takes too long"]
)
@twisted_test
async def test_vitess_15707_a_missed_event_stalls_everything(stage: Stage, end: str) -> None:
    """A drain looks at the state, not at an event: whatever ends it, it ends at once."""
    daemon, one, _ = await stage.blog(more='timeouts.response = "500ms"')
    talk = await daemon.connect()
    talk.ask("/later", method="POST", more="Content-Length: 0\r\n")
    await one.has("/later")
    pause = daemon.ask("pause", site="blog")
    await daemon.until_site(state="draining")
    if end == "the server dies":
        await one.close()
    elif end.startswith("the client leaves"):
        await talk.close()
        one.let_go()
    receipt = await pause
    assert [(w["in_flight"], w["connections"]) for w in receipt["workers"]] == [(0, 0)]


@twisted_test
async def test_vitess_13854_holds_more_than_it_has_to(stage: Stage) -> None:
    """Of two sites with the same server and the same host, only the one is held."""
    one, two = stage.two()
    daemon = await stage.serving(
        site("blog", one, two, hosts=("same.test",), more='path = "/blog"'),
        site("shop", one, two, hosts=("same.test",)),
    )
    await daemon.ask("pause", site="blog")
    held = daemon.fetch("/blog/x", host="same.test")
    await daemon.until_site(held=1)
    assert (await daemon.get("/x", host="same.test")).text == "one /x"
    await daemon.ask("resume", site="blog")
    assert (await held).text == "one /blog/x"


# Knative


@twisted_test
async def test_knative_13583_keeps_the_bodies_of_held_requests_in_memory(stage: Stage) -> None:
    """Forty held uploads of 4 MB cost what the kernel's buffers do not hold of their beginnings."""
    daemon, one, _ = await stage.blog()
    await daemon.ask("pause", site="blog")
    before = _resident(daemon.pid)
    size = 4_000_000
    talks = [await daemon.connect() for _ in range(40)]
    for talk in talks:
        talk.ask("/upload", method="POST", more=f"Content-Length: {size}\r\n")
        talk.send(b"x" * size)
    status = await daemon.until_site(held=len(talks))
    assert status["held_bytes"] < len(talks) * 200_000
    assert _resident(daemon.pid) - before < len(talks) * 400_000
    await daemon.ask("resume", site="blog")
    for talk in talks:
        await talk.gets(b"one /upload")
    assert [len(asked.body) for asked in one.asked] == [size] * len(talks)


def _resident(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * 4096


# Caddy


@twisted_test
async def test_caddy_7222_a_reload_of_something_else_cuts_websockets(stage: Stage) -> None:
    """A tunnel, and a long answer, of an unchanged site go on; even of one that is changed."""
    daemon, one, two = await stage.blog()
    tunnel = await daemon.connect()
    tunnel.ask("/upgrade", more="Connection: Upgrade\r\nUpgrade: echo\r\n")
    await tunnel.gets(b"101 Switching")
    stream = await daemon.connect()
    stream.ask("/events")
    await stream.gets(b"data: 1")
    daemon.configure(site("blog", one, two), site("shop", one))
    await daemon.ask("reload")
    daemon.configure(site("blog", one, two, more="max_in_flight = 7"))
    assert await daemon.ask("reload") == {
        "added": [],
        "changed": ["blog"],
        "removed": ["shop"],
        "opened": [],
        "closed": [],
        "relistened": [],
        "certificates": [],
        "keys": [],
        "restart": [],
        "warnings": [],
    }
    tunnel.send(b"still")
    await tunnel.gets(b"echo still")
    for connection in one.connections:
        if not connection.upgraded:
            connection.transport.write(b"data: 2\n\n")
    await stream.gets(b"data: 2")


# Slowloris, and timers that each byte resets


@twisted_test
async def test_slowloris_keeps_a_connection_with_a_byte_now_and_then(stage: Stage) -> None:
    """The time for a head is absolute: 408, however diligently it trickles in."""
    one = stage.origin("one")
    daemon = await stage.serving(
        site("blog", one), listen='timeouts = { head = "500ms", body = "500ms" }'
    )
    slow, patient = await daemon.connect(), await daemon.connect()
    slow.send(b"GET / HTTP/1.1\r\nHost: blog.test\r\nX-Slow: ")
    patient.send(b"POST / HTTP/1.1\r\nHost: blog.test\r\nContent-Length: 100000\r\n\r\n")
    while not (slow.closed and patient.closed):
        for talk in (slow, patient):
            if not talk.closed:
                talk.send(b"x")
        await deferLater(reactor, 0.05)
    assert (slow.answer().status, patient.answer().status) == (408, 408)


# Health that is hidden while paused


@twisted_test
async def test_others_answer_health_checks_themselves_while_paused(stage: Stage) -> None:
    """A health check of the site, by whoever is in front, is held like any request."""
    daemon, one, _ = await stage.blog(health=True)
    await daemon.ask("pause", site="blog")
    one.asked.clear()
    check = daemon.fetch("/health")
    await daemon.until_site(held=1)
    # One of the proxy's own may have been broken off, and read by the server only now.
    assert [each for each in one.asked if each.headers.get("user-agent") != AGENT.decode()] == []
    one.healthy = False
    await daemon.ask("resume", site="blog")
    assert (await check).status == 503
    assert [asked.path for asked in one.asked][:1] == ["/health"]
