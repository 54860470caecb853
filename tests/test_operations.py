"""What an operator does to one site, while requests come in."""

from __future__ import annotations

from typing import Any

import pytest
from daemon_stage import (
    Daemon,
    Failed,
    Origin,
    Stage,
    a_stage,
    twisted_fixture,
    twisted_test,
    until,
)
from daemon_stage import site as a_site

stage = twisted_fixture(a_stage)

TIGHT = 'drain = { time = "300ms", tunnels = "100ms" }'
BYPASS = 'bypass = { header = "X-Try", secret = "opensesame" }'
TRY = "X-Try: opensesame\r\n"


@twisted_test
async def test_a_paused_site_holds_its_requests_until_it_is_resumed(stage: Stage) -> None:
    """The pause answers with a receipt of nothing in flight; the resume lets the held ones go."""
    daemon, one, _ = await stage.blog()
    receipt = await daemon.ask("pause", site="blog")
    held = daemon.fetch("/held")
    status = await daemon.until_site(held=1)
    assert (receipt["generation"], receipt["backend"]) == (2, "one")
    (worker,) = receipt["workers"]
    assert (worker["node"], worker["in_flight"], worker["connections"]) == ("node1", 0, 0)
    assert (status["state"], status["mode"], status["by"]) == ("holding", "holding", "pause")
    assert one.paths() == []
    resumed = await daemon.ask("resume", site="blog")
    assert (resumed["released"], resumed["generation"]) == (1, 3)
    assert (await held).text == "one /held"


@twisted_test
async def test_a_pause_waits_for_what_is_in_flight(stage: Stage) -> None:
    """It is draining, which is not holding, as long as an answer is missing."""
    daemon, one, _ = await stage.blog()
    slow = daemon.fetch("/later")
    await one.has("/later")
    pause = daemon.ask("pause", site="blog")
    await daemon.until_site(state="draining", in_flight=1)
    assert not pause.called
    one.let_go()
    assert (await pause)["workers"][0]["in_flight"] == 0
    assert (await slow).text == "one /later"


@twisted_test
async def test_a_pause_that_is_not_drained_in_time_is_undone(stage: Stage) -> None:
    """An event stream goes on, the site is open again and the error says why."""
    daemon, _, _ = await stage.blog(more=TIGHT)
    stream = await daemon.connect()
    stream.ask("/events")
    await stream.gets(b"data: 1")
    waiting = daemon.ask("pause", site="blog")
    await daemon.until_site(state="draining")
    held = daemon.fetch("/held")
    with pytest.raises(Failed, match=r"after 0\.3 s there were still 1 requests in flight.*undone"):
        await waiting
    assert (await held).text == "one /held"
    site = await daemon.site()
    assert (site["state"], site["generation"], site["by"]) == ("open", 3, "pause (undone)")
    assert not stream.closed


@twisted_test
async def test_force_cuts_an_event_stream_and_the_receipt_counts_it(stage: Stage) -> None:
    """A stream that is cut looks cut: it ends without its last chunk."""
    daemon, _, _ = await stage.blog(more=TIGHT)
    stream = await daemon.connect()
    stream.ask("/events")
    await stream.gets(b"data: 1")
    receipt = await daemon.ask("pause", site="blog", force=True)
    await until(lambda: stream.closed)
    assert (receipt["closed"], receipt["ambiguous"]) == (1, 0)
    assert not stream.data.endswith(b"0\r\n\r\n")
    assert (await daemon.site())["counters"]["failed"] == 1


@twisted_test
async def test_force_makes_a_long_poll_wait_for_the_resume(stage: Stage) -> None:
    """A GET that has not been answered is taken back from the server and asked again."""
    daemon, one, two = await stage.blog(more=TIGHT)
    poll = daemon.fetch("/later")
    await one.has("/later")
    receipt = await daemon.ask("pause", site="blog", force=True)
    assert receipt["closed"] == 1
    assert (await daemon.site())["held"] == 1
    await daemon.ask("migrate", site="blog", to="two")
    await daemon.ask("resume", site="blog")
    await two.has("/later")
    two.let_go()
    assert (await poll).text == "two /later"


@twisted_test
async def test_force_tells_of_a_post_that_may_have_been_carried_out(stage: Stage) -> None:
    """It is answered 502, counted as ambiguous, not sent again, and the exit status is 4."""
    daemon, one, two = await stage.blog(more=TIGHT)
    post = daemon.fetch("/later", method="POST", more="Content-Length: 0\r\n")
    await one.has("/later")
    moved = await daemon.command(
        "migrate", "blog", "--to", "two", "--force", "--max-pause", "1s", "--json"
    )
    assert moved.status == 4, moved
    assert moved.json["ambiguous"] == 1
    answer = await post
    assert answer.status == 502
    assert "may have been carried out" in answer.text
    assert two.paths("POST") == []
    again = daemon.fetch("/later", method="POST", more="Content-Length: 0\r\n")
    await two.has("/later")
    paused = await daemon.command("pause", "blog", "--force", "--timeout", "100ms")
    assert paused.status == 4
    assert "1 requests are ambiguous" in paused.err
    assert (await again).status == 502
    await daemon.ask("resume", site="blog")
    receipt = await daemon.ask("pause", site="blog")
    assert receipt["ambiguous"] == 0  # of this hold


@twisted_test
async def test_upgraded_connections_are_closed_at_their_own_deadline(stage: Stage) -> None:
    """They may stay for drain.tunnels, then the pause goes on without them."""
    daemon, _, _ = await stage.blog(more='drain = { time = "10s", tunnels = "100ms" }')
    tunnel = await daemon.connect()
    tunnel.ask("/upgrade", more="Connection: Upgrade\r\nUpgrade: echo\r\n")
    await tunnel.gets(b"101 Switching")
    tunnel.send(b"hello")
    await tunnel.gets(b"echo hello")
    receipt = await daemon.ask("pause", site="blog")
    assert receipt["closed"] == 1
    await until(lambda: tunnel.closed)


@twisted_test
async def test_a_hold_with_an_end_refuses_when_it_has_come(stage: Stage) -> None:
    """By default what is held then, and what comes after it, is answered 503."""
    daemon, one, _ = await stage.blog()
    await daemon.ask("pause", site="blog", deadline=0.3)
    held = daemon.fetch("/held")
    answer = await held
    assert (answer.status, "retry-after" in answer.headers) == (503, True)
    assert (await daemon.get("/after")).status == 503
    site = await daemon.site()
    assert (site["state"], site["mode"]) == ("refusing", "holding")
    assert "outlived its deadline" in site["trouble"]
    assert one.paths() == []
    await daemon.ask("pause", site="blog")
    held = daemon.fetch("/again")
    await daemon.until_site(state="holding", held=1)
    await daemon.ask("resume", site="blog")
    assert (await held).text == "one /again"


@twisted_test
async def test_a_hold_with_an_end_can_end_with_a_resume(stage: Stage) -> None:
    """Then it is the end of the pause that has resumed it."""
    daemon, _, _ = await stage.blog()
    words = ("pause", "blog", "--for", "600ms", "--then", "resume", "--json")
    receipt = (await daemon.command(*words)).json
    held = daemon.fetch("/held")
    assert (await held).text == "one /held"
    site = await daemon.site()
    assert (site["by"], site["generation"]) == ("the end of the pause", receipt["generation"] + 1)


@pytest.mark.parametrize("then", ["refuse", "resume"])
@twisted_test
async def test_the_end_of_a_hold_comes_after_a_restart_as_well(stage: Stage, then: str) -> None:
    """Whether the daemon was there at that moment does not matter."""
    daemon, _, _ = await stage.blog()
    await daemon.ask("pause", site="blog", deadline=0.2, then=then)
    await daemon.kill()
    await daemon.start()
    if then == "resume":
        assert (await daemon.get("/")).status == 200
        await daemon.until_site(mode="open")
    else:
        assert (await daemon.get("/")).status == 503
        await daemon.until_site(state="refusing", mode="holding")


@twisted_test
async def test_an_operator_can_try_a_held_site(stage: Stage) -> None:
    """The header with the secret passes the gate; without it, or with another, one waits."""
    daemon, one, two = await stage.blog(more=BYPASS)
    await daemon.ask("pause", site="blog")
    assert (await daemon.get("/try", more=TRY)).text == "one /try"
    await daemon.ask("migrate", site="blog", to="two")
    assert (await daemon.get("/try", more=TRY)).text == "two /try"
    held = [daemon.fetch("/wait"), daemon.fetch("/wait", more="X-Try: opensesam\r\n")]
    await daemon.until_site(held=2)
    assert (one.paths(), two.paths()) == (["/try"], ["/try"])
    await daemon.ask("resume", site="blog")
    assert [(await answer).text for answer in held] == ["two /wait", "two /wait"]


@twisted_test
async def test_an_operator_can_try_a_held_site_by_network(stage: Stage) -> None:
    """Everybody in the network passes the gate."""
    daemon, _, _ = await stage.blog(more='bypass = { networks = ["127.0.0.0/8"] }')
    await daemon.ask("pause", site="blog")
    assert (await daemon.get("/try")).text == "one /try"
    assert (await daemon.site())["held"] == 0


@twisted_test
async def test_a_drain_notices_the_end_of_a_bypassed_request(stage: Stage) -> None:
    """A second pause, or a move, of a held site waits for the operator's own request."""
    daemon, one, _ = await stage.blog(more=BYPASS)
    await daemon.ask("pause", site="blog")
    trial = daemon.fetch("/later", more=TRY)
    await one.has("/later")
    moving = daemon.ask("migrate", site="blog", to="two")
    await daemon.until_site(migration={"target": "two", "step": "drain"})
    one.let_go()
    assert (await moving)["outcome"] == "done"
    assert (await trial).text == "one /later"


@twisted_test
async def test_a_migration_moves_the_requests_and_tells_of_them(stage: Stage) -> None:
    """Under load none fails; the old place gets nothing more and has no connections left."""
    daemon, one, two = await stage.blog(health=True)
    load = daemon.load(rate=200)
    await load.flows()
    ledger = await daemon.ask("migrate", site="blog", to="two")
    before = len(one.paths())
    await load.flows(50)
    await load.passes()
    assert (ledger["outcome"], ledger["source"], ledger["target"]) == ("done", "one", "two")
    assert [*ledger["steps"]] == [
        *("check", "hold", "drain", "switch", "verify", "commit", "release", "clean")
    ]
    assert ledger["failed"] == ledger["ambiguous"] == ledger["refused"] == 0
    assert len(one.paths()) == before
    assert two.paths()
    assert (await daemon.site())["backend"] == "two"
    (entry,) = (await daemon.ask("migrations"))["migrations"]
    assert (entry["state"], entry["ledger"]["held"]) == ("done", ledger["held"])


@twisted_test
async def test_a_paused_site_that_is_migrated_stays_paused(stage: Stage) -> None:
    """What was held waits for the resume, at the new place."""
    daemon, one, _ = await stage.blog()
    await daemon.ask("pause", site="blog")
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    await daemon.ask("migrate", site="blog", to="two")
    await daemon.until_site(state="holding", backend="two", held=1)
    await daemon.ask("resume", site="blog")
    assert (await held).text == "two /held"
    assert one.paths() == []


@twisted_test
async def test_the_end_of_a_hold_outlives_a_migration(stage: Stage) -> None:
    """A site paused until some time, then resumed, is so wherever it has moved to."""
    daemon, _, _ = await stage.blog()
    await daemon.ask("pause", site="blog", deadline=0.5, then="resume")
    await daemon.ask("migrate", site="blog", to="two")
    assert (await daemon.get("/held")).text == "two /held"
    await daemon.until_site(mode="open", by="the end of the pause")


async def _unmoved(daemon: Daemon, one: Origin, two: Origin, generation: int) -> None:
    """The site is served where it was, and knows it."""
    site = await daemon.site()
    assert (site["backend"], site["mode"], site["migration"]) == ("one", "open", None)
    assert site["generation"] >= generation
    assert (await daemon.get("/still")).text == "one /still"
    assert two.paths() == []


@twisted_test
async def test_a_migration_to_a_dead_target_changes_nothing(stage: Stage) -> None:
    """It fails in its check: the site has not been held, nothing is in the journal."""
    daemon, one, two = await stage.blog()
    await two.close()
    with pytest.raises(Failed, match=r"rolled back in the step 'check': no server of two is well"):
        await daemon.ask("migrate", site="blog", to="two")
    assert (await daemon.ask("migrations"))["migrations"] == []
    await _unmoved(daemon, one, two, 1)
    assert (await daemon.site())["generation"] == 1
    dry = await daemon.command("migrate", "blog", "--to", "two", "--dry-run")
    assert (dry.status, "no server of two is well" in dry.out) == (1, True)


@twisted_test
async def test_a_migration_to_a_target_that_is_not_well_changes_nothing(stage: Stage) -> None:
    """A server that takes connections but says that it is not healthy will not do."""
    daemon, one, two = await stage.blog(health=True)
    two.healthy = False
    with pytest.raises(Failed, match="it answered 503"):
        await daemon.ask("migrate", site="blog", to="two")
    await _unmoved(daemon, one, two, 1)


@twisted_test
async def test_a_target_that_dies_on_the_way_sends_the_site_back(stage: Stage) -> None:
    """Between hold and verify: the held requests go to the source."""
    daemon, one, two = await stage.blog()
    slow = daemon.fetch("/later")
    await one.has("/later")
    moving = daemon.ask("migrate", site="blog", to="two")
    await daemon.until_site(migration={"target": "two", "step": "drain"})
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    await two.close()
    one.let_go()
    with pytest.raises(Failed, match="rolled back in the step 'verify'") as failure:
        await moving
    assert (await slow).text == "one /later"
    assert (await held).text == "one /held"
    assert failure.value.data["ledger"]["outcome"] == "rolled back"
    assert failure.value.data["ledger"]["released"] == 1
    (entry,) = (await daemon.ask("migrations"))["migrations"]
    assert (entry["state"], entry["step"]) == ("rolled back", "verify")
    await _unmoved(daemon, one, two, 3)


@twisted_test
async def test_a_migration_keeps_to_its_longest_pause(stage: Stage) -> None:
    """What does not drain in that time sends the site back, with what was held."""
    daemon, one, two = await stage.blog()
    slow = daemon.fetch("/later")
    await one.has("/later")
    moving = daemon.command("migrate", "blog", "--to", "two", "--max-pause", "300ms")
    await daemon.until_site(migration={"target": "two", "step": "drain"})
    held = daemon.fetch("/held")
    moved = await moving
    assert moved.status == 1
    assert "the pause took longer than 0.3 s" in moved.err
    assert "blog is served by one" in moved.err
    assert (await held).text == "one /held"
    one.let_go()
    assert (await slow).text == "one /later"
    await _unmoved(daemon, one, two, 3)


@twisted_test
async def test_a_dry_run_says_what_would_be_done(stage: Stage) -> None:
    """And does none of it."""
    daemon, one, two = await stage.blog()
    plan = await daemon.ask("migrate", site="blog", to="two", dry_run=True)
    assert [step["step"] for step in plan["plan"]][:3] == ["check", "hold", "drain"]
    assert plan["problems"] == []
    await _unmoved(daemon, one, two, 1)
    assert (await daemon.site())["generation"] == 1


@twisted_test
async def test_holding_one_site_does_not_hold_another(stage: Stage) -> None:
    """Not even on the same backend server."""
    one, two = stage.two()
    daemon = await stage.serving(a_site("blog", one, two), a_site("shop", one))
    load = daemon.load(rate=200, host="shop.test")
    await load.flows()
    await daemon.ask("pause", site="blog")
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    await load.flows(50)
    assert (await daemon.site("shop"))["counters"]["held"] == 0
    await daemon.ask("migrate", site="blog", to="two")
    await daemon.ask("resume", site="blog")
    await held
    result = await load.passes()
    assert result.held_requests == 0


@twisted_test
async def test_who_leaves_while_held_is_not_forwarded(stage: Stage) -> None:
    """It is counted as departed."""
    daemon, one, _ = await stage.blog()
    await daemon.ask("pause", site="blog")
    talk = await daemon.connect()
    talk.ask("/gone")
    await daemon.until_site(held=1)
    await talk.close()
    await daemon.until_site(held=0)
    resumed = await daemon.ask("resume", site="blog")
    assert resumed["released"] == 0
    assert (await daemon.get("/here")).status == 200
    assert one.paths() == ["/here"]
    assert (await daemon.site())["counters"]["departed"] == 1


BAD_COMMANDS: list[tuple[str, dict[str, Any], str]] = [
    ("pause", {"site": "blok"}, "there is no site 'blok'; there are: blog"),
    ("pause", {"site": "blog", "timeout": 0}, "timeout: 0 is out of range; write more than 0"),
    ("pause", {"site": "blog", "deadline": -1}, "deadline: -1 is out of range; write more than 0"),
    ("pause", {"site": "blog", "then": "resume"}, "add a deadline"),
    ("pause", {"site": "blog", "then": "open"}, '"refuse" or "resume"'),
    ("resume", {"site": ""}, "there is no site ''"),
    ("migrate", {"site": "blog", "to": "three"}, "no backend 'three'; it has: one, two"),
    ("migrate", {"site": "blog", "to": "one"}, "blog is on one already"),
    ("migrate", {"site": "blog", "to": "two", "max_pause": 0}, "max_pause: 0 is out of range"),
    ("migrate", {"site": "blog", "to": "one", "max_pause": 365 * 86_400}, "is on one already"),
    ("migrate", {"site": "blog", "to": "two", "max_pause": 4e7}, 'and at most "365d"'),
    ("site.remove", {"name": "blog"}, "is in the configuration file; remove it there and reload"),
    ("site.add", {"name": "blog", "definition": {}}, "there is a site 'blog' already"),
    ("site.add", {"name": "x", "definition": {}}, "hosts"),
    ("site.add", {"name": "x/y", "definition": {}}, "x/y"),
    ("backend.add", {"site": "blog", "name": "two", "definition": {}}, "a backend 'two' already"),
    ("backend.add", {"site": "blog", "name": "x", "definition": {"servers": []}}, "servers"),
    ("backend.remove", {"site": "blog", "name": "one"}, "placed on one; migrate it"),
    ("backend.remove", {"site": "blog", "name": "two"}, "is in the configuration file"),
    ("backend.remove", {"site": "blog", "name": "x"}, "no backend 'x'; it has: one, two"),
    ("frobnicate", {}, "there is no command"),
]


@twisted_test
async def test_a_command_that_makes_no_sense_changes_nothing(stage: Stage) -> None:
    """Each says what was wrong, and leaves everything as it was."""
    daemon, one, two = await stage.blog()
    before = await daemon.site()
    for method, params, message in BAD_COMMANDS:
        with pytest.raises(Failed) as failure:
            await daemon.ask(method, **params)
        assert message in str(failure.value), f"{method} {params}: {failure.value}"
        assert await daemon.site() == before
    await _unmoved(daemon, one, two, 1)
