"""Several operators at one site: each command has a defined outcome, and the loser is told."""

from __future__ import annotations

import socket

import pytest
from daemon_stage import (
    Answer,
    Daemon,
    Failed,
    Origin,
    Stage,
    a_stage,
    site,
    twisted_fixture,
    twisted_test,
)
from twisted.internet.defer import Deferred, DeferredList

from awesomeproxy.control.client import Unreachable
from awesomeproxy.control.protocol import request_line

stage = twisted_fixture(a_stage)

SHOP = {"hosts": ["shop.test"], "backend": "a", "backends": {"a": {"servers": ["http://x:1"]}}}


async def _draining(daemon: Daemon, one: Origin, path: str = "/later") -> Deferred[Answer]:
    """A request in flight that keeps a pause or a migration in its drain."""
    slow = daemon.fetch(path)
    await one.has(path)
    return slow


@twisted_test
async def test_two_pauses_wait_for_the_same_drain(stage: Stage) -> None:
    """The second joins the first: both get a receipt, of the same generation."""
    daemon, one, _ = await stage.blog()
    slow = await _draining(daemon, one)
    first = daemon.ask("pause", site="blog")
    await daemon.until_site(state="draining")
    second = daemon.command("pause", "blog", "--json")
    one.let_go()
    receipt, ended = await first, await second
    assert ended.status == 0
    assert receipt["generation"] == ended.json["generation"] == 2
    await slow


@twisted_test
async def test_a_pause_that_joins_another_may_give_the_hold_another_end(stage: Stage) -> None:
    """The later wish counts; both get a receipt, of the generation that it made."""
    daemon, one, _ = await stage.blog()
    slow = await _draining(daemon, one)
    first = daemon.ask("pause", site="blog")
    await daemon.until_site(state="draining", expires=None)
    second = daemon.ask("pause", site="blog", deadline=3600)
    await daemon.until_site(generation=3)
    one.let_go()
    assert ((await first)["generation"], (await second)["generation"]) == (3, 3)
    assert (await daemon.site())["expires"] is not None
    await slow


@twisted_test
async def test_a_pause_goes_on_when_its_operator_has_left(stage: Stage) -> None:
    """And a migration, likewise: only who watches takes the command along."""
    daemon, one, _ = await stage.blog()
    slow = await _draining(daemon, one)
    with socket.socket(socket.AF_UNIX) as operator:
        operator.connect(daemon.control)
        operator.sendall(request_line(1, "pause", {"site": "blog"}))
        await daemon.until_site(state="draining")
    one.let_go()
    await slow
    assert (await daemon.until_site(state="holding"))["by"] == "pause"


@twisted_test
async def test_a_pause_that_gives_up_leaves_the_site_held_for_another(stage: Stage) -> None:
    """The last pause that waits decides: it succeeds, and the site stays held."""
    daemon, one, _ = await stage.blog()
    slow = await _draining(daemon, one)
    short = daemon.ask("pause", site="blog", timeout=0.3)
    await daemon.until_site(state="draining")
    long = daemon.ask("pause", site="blog", timeout=10)
    with pytest.raises(Failed, match="still held for another pause that waits, too"):
        await short
    one.let_go()
    assert (await long)["generation"] == 2
    assert (await daemon.site())["state"] == "holding"
    await slow


@twisted_test
async def test_the_last_pause_to_give_up_undoes_what_the_first_began(stage: Stage) -> None:
    """Both fail, and the site is open."""
    daemon, one, _ = await stage.blog()
    slow = await _draining(daemon, one)
    first = daemon.ask("pause", site="blog", timeout=0.2)
    await daemon.until_site(state="draining")
    second = daemon.ask("pause", site="blog", timeout=0.6)
    results = await DeferredList([first, second], consumeErrors=True)
    texts = [str(failure.value) for _, failure in results]
    assert "another pause that waits" in texts[0]
    assert "the pause was undone" in texts[1]
    assert (await daemon.site())["state"] == "open"
    one.let_go()
    await slow


@twisted_test
async def test_a_pause_of_a_paused_site_that_fails_leaves_it_paused(stage: Stage) -> None:
    """With the end that its hold had before."""
    bypass = 'bypass = { header = "X-Try", secret = "opensesame" }'
    daemon, one, _ = await stage.blog(more=bypass)
    await daemon.ask("pause", site="blog")
    trial = daemon.fetch("/later", more="X-Try: opensesame\r\n")
    await one.has("/later")
    with pytest.raises(Failed, match="the site is held, as it was before"):
        await daemon.ask("pause", site="blog", timeout=0.2, deadline=5, then="resume")
    status = await daemon.site()
    assert (status["mode"], status["expires"]) == ("holding", None)
    one.let_go()
    await trial


@twisted_test
async def test_force_helps_a_pause_that_waits_already(stage: Stage) -> None:
    """Whoever comes with more resolve takes the others along."""
    daemon, one, _ = await stage.blog()
    slow = await _draining(daemon, one)
    patient = daemon.ask("pause", site="blog", timeout=15)
    await daemon.until_site(state="draining")
    forced = await daemon.ask("pause", site="blog", timeout=0.1, force=True)
    assert (await patient)["generation"] == forced["generation"] == 2
    await daemon.ask("resume", site="blog")
    await one.has("/later", 2)
    one.let_go()
    assert (await slow).text == "one /later"


@twisted_test
async def test_a_resume_calls_a_pause_off(stage: Stage) -> None:
    """The pause is told who has opened the site, and exits with 1."""
    daemon, one, _ = await stage.blog()
    slow = await _draining(daemon, one)
    pause = daemon.command("pause", "blog")
    await daemon.until_site(state="draining")
    resumed = await daemon.command("resume", "blog", "--json")
    ended = await pause
    assert (resumed.status, resumed.json["generation"]) == (0, 3)
    assert ended.status == 1
    assert "'resume' has changed the site meanwhile (generation 3)" in ended.err
    assert "generation 3 by resume came first: it is open on one" in ended.err
    assert (await daemon.site())["state"] == "open"
    one.let_go()
    await slow


@twisted_test
async def test_a_resume_right_behind_a_pause_ends_it(stage: Stage) -> None:
    """However close they come, what was asked for last is what is."""
    daemon, one, _ = await stage.blog()
    slow = await _draining(daemon, one)
    for n in range(20):
        answers = await daemon.at_once(
            ("pause", {"site": "blog"}), ("resume", {"site": "blog"}), ("status", {})
        )
        assert answers["resume"]["result"]["generation"] == 2 * n + 3
        lost = answers["pause"]["error"]
        assert "'resume' has changed the site meanwhile" in lost["message"]
        assert lost["data"]["winner"]["generation"] == 2 * n + 3
        assert (await daemon.site())["state"] == "open"
    one.let_go()
    await slow


@twisted_test
async def test_two_resumes_both_find_the_site_open(stage: Stage) -> None:
    """There is nothing to lose in that race."""
    daemon, _, _ = await stage.blog()
    await daemon.ask("pause", site="blog")
    both = [daemon.ask("resume", site="blog") for _ in range(2)]
    assert [(await one)["generation"] for one in both] == [3, 3]
    assert (await daemon.ask("resume", site="blog"))["generation"] == 3


@twisted_test
async def test_a_site_that_is_being_paused_is_not_migrated(stage: Stage) -> None:
    """The pause came first; the migration is told so and has begun nothing."""
    daemon, one, two = await stage.blog()
    slow = await _draining(daemon, one)
    pause = daemon.ask("pause", site="blog")
    await daemon.until_site(state="draining")
    moved = await daemon.command("migrate", "blog", "--to", "two")
    assert moved.status == 1
    assert "blog is being paused; wait for it, or call it off with" in moved.err
    assert "generation 2 by pause came first" in moved.err
    one.let_go()
    assert (await pause)["backend"] == "one"
    await slow
    assert two.connected == 0


@twisted_test
async def test_a_site_that_is_being_migrated_is_neither_paused_nor_migrated(stage: Stage) -> None:
    """Both are told which migration came first, and what calls it off, which it does."""
    daemon, one, _ = await stage.blog()
    slow = await _draining(daemon, one)
    moving = daemon.ask("migrate", site="blog", to="two")
    await daemon.until_site(migration={"target": "two", "step": "drain"})
    for words in (("pause", "blog"), ("migrate", "blog", "--to", "two")):
        ended = await daemon.command(*words)
        assert ended.status == 1
        assert "blog is being migrated to two (drain); wait for it, or call it off" in ended.err
        assert "call it off with: awesomeproxy abort blog (generation 2" in ended.err
        assert "generation 2 by migrate to two came first" in ended.err
    dry = await daemon.command("migrate", "blog", "--to", "two", "--dry-run", "--json")
    assert dry.status == 1
    assert "is being migrated to two" in dry.json["problems"][0]
    assert (await daemon.command("abort", "blog")).status == 0
    with pytest.raises(Failed, match="it was aborted"):
        await moving
    one.let_go()
    await slow


@twisted_test
async def test_a_resume_calls_a_migration_off(stage: Stage) -> None:
    """It is rolled back: the source serves, and the migration says who stopped it."""
    daemon, one, two = await stage.blog()
    slow = await _draining(daemon, one)
    moving = daemon.command("migrate", "blog", "--to", "two")
    await daemon.until_site(migration={"target": "two", "step": "drain"})
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    resumed = await daemon.command("resume", "blog", "--json")
    ended = await moving
    assert (resumed.status, resumed.json["backend"]) == (0, "one")
    assert ended.status == 1
    assert "rolled back in the step 'drain': the site was resumed by 'resume'" in ended.err
    assert (await held).text == "one /held"
    assert two.paths() == []
    one.let_go()
    await slow


@twisted_test
async def test_a_resume_of_a_paused_site_that_moves_opens_it_where_it_was(stage: Stage) -> None:
    """It calls the move off, and ends the pause."""
    bypass = 'bypass = { header = "X-Try", secret = "opensesame" }'
    daemon, one, _ = await stage.blog(more=bypass)
    await daemon.ask("pause", site="blog")
    held = daemon.fetch("/held")
    trial = daemon.fetch("/later", more="X-Try: opensesame\r\n")
    await one.has("/later")
    moving = daemon.ask("migrate", site="blog", to="two")
    await daemon.until_site(migration={"target": "two", "step": "drain"})
    await daemon.ask("resume", site="blog")
    with pytest.raises(Failed, match="the site was resumed by 'resume'"):
        await moving
    assert (await held).text == "one /held"
    one.let_go()
    await trial


@twisted_test
async def test_of_many_migrations_at_once_one_is_carried_out(stage: Stage) -> None:
    """The others have begun nothing; no request notices."""
    daemon, _, _ = await stage.blog()
    load = daemon.load(rate=200)
    await load.flows()
    moving = [daemon.ask("migrate", site="blog", to="two") for _ in range(5)]
    results = await DeferredList(moving, consumeErrors=True)
    done = [result for success, result in results if success]
    lost = [str(result.value) for success, result in results if not success]
    assert [ledger["outcome"] for ledger in done] == ["done"]
    assert all("is being migrated to two" in text or "is on two already" in text for text in lost)
    await load.passes()
    assert len((await daemon.ask("migrations"))["migrations"]) == 1


@twisted_test
async def test_a_reload_during_a_migration_leaves_its_site_alone(stage: Stage) -> None:
    """What does not touch the site is taken over; what does is refused, and nothing is changed."""
    daemon, one, two = await stage.blog()
    slow = await _draining(daemon, one)
    moving = daemon.ask("migrate", site="blog", to="two")
    await daemon.until_site(migration={"target": "two", "step": "drain"})
    daemon.configure(site("blog", one), site("shop", one))
    with pytest.raises(Failed, match=r"sites\.blog: it is being migrated to two; reload when"):
        await daemon.ask("reload")
    assert (await daemon.get("/", host="shop.test")).status == 404
    daemon.configure(site("blog", one, two), site("shop", one))
    assert (await daemon.ask("reload"))["added"] == ["shop"]
    assert (await daemon.get("/", host="shop.test")).text == "one /"
    one.let_go()
    assert (await moving)["outcome"] == "done"
    await slow


@twisted_test
async def test_a_pause_of_a_site_that_a_reload_removes_fails(stage: Stage) -> None:
    """It says so, and the site is not held when it comes back."""
    daemon, one, two = await stage.blog()
    slow = await _draining(daemon, one)
    pause = daemon.ask("pause", site="blog")
    await daemon.until_site(state="draining")
    daemon.configure(site("shop", one))
    assert (await daemon.ask("reload"))["removed"] == ["blog"]
    with pytest.raises(Failed, match="the site was removed meanwhile; the pause was undone"):
        await pause
    one.let_go()
    await slow
    daemon.configure(site("blog", one, two))
    await daemon.ask("reload")
    assert (await daemon.site())["state"] == "open"


@twisted_test
async def test_a_site_is_not_removed_while_it_is_paused_or_moved(stage: Stage) -> None:
    """Nor is the backend it moves to; afterwards both can be."""
    daemon, one, two = await stage.blog()
    backends = {origin.name: {"servers": [origin.url]} for origin in (one, two)}
    shop = {"hosts": ["shop.test"], "backend": "one", "backends": backends}
    await daemon.ask("site.add", name="shop", definition=shop)
    slow = daemon.fetch("/later", host="shop.test")
    await one.has("/later")
    moving = daemon.ask("migrate", site="shop", to="two")
    await daemon.until_site("shop", migration={"target": "two", "step": "drain"})
    for words in (("site", "remove", "shop"), ("backend", "remove", "shop", "two")):
        ended = await daemon.command(*words)
        assert (ended.status, "shop is being migrated to two" in ended.err) == (1, True)
    await daemon.ask("resume", site="shop")
    with pytest.raises(Failed):
        await moving
    pause = daemon.ask("pause", site="shop")
    await daemon.until_site("shop", state="draining")
    ended = await daemon.command("site", "remove", "shop")
    assert (ended.status, "shop is being paused" in ended.err) == (1, True)
    one.let_go()
    await pause
    await slow
    held = daemon.fetch("/held", host="shop.test")
    await daemon.until_site("shop", held=1)
    assert (await daemon.command("backend", "remove", "shop", "two")).status == 0
    assert (await daemon.command("site", "remove", "shop")).status == 0
    assert (await held).status == 503
    assert (await daemon.get("/", host="shop.test")).status == 404


@twisted_test
async def test_definitions_change_one_after_the_other(stage: Stage) -> None:
    """Sites added while the file is read again, and again, are all there in the end."""
    daemon, _, _ = await stage.blog()
    adding = [
        daemon.ask("site.add", name=f"s{n}", definition={**SHOP, "hosts": [f"s{n}.test"]})
        for n in range(6)
    ]
    reloading = [daemon.ask("reload") for _ in range(3)]
    for done in [*adding, *reloading]:
        await done
    names = {f"s{n}" for n in range(6)} | {"blog"}
    assert {line["name"] for line in (await daemon.ask("status"))["sites"]} == names
    await daemon.kill()
    await daemon.start()
    assert {line["name"] for line in (await daemon.ask("status"))["sites"]} == names


@twisted_test
async def test_the_command_says_with_its_status_what_happened(stage: Stage) -> None:
    """0 done, 1 failed and undone, 2 makes no sense, 3 no daemon."""
    daemon, _, _ = await stage.blog()
    expected = [
        (("status",), 0),
        (("pause", "blog", "--json"), 0),
        (("resume", "blog"), 0),
        (("migrate", "blog", "--to", "two"), 0),
        (("migrate", "blog", "--to", "two"), 1),
        (("pause", "blok"), 2),
        (("migrate", "blog", "--to", "three"), 2),
        (("pause", "blog", "--for", "soon"), 2),
    ]
    for words, exit_status in expected:
        ended = await daemon.command(*words)
        assert ended.status == exit_status, (words, ended)
        assert bool(ended.err) == bool(exit_status), (words, ended)
    await daemon.kill()
    ended = await daemon.command("pause", "blog", "--json")
    assert ended.status == 3
    assert "nothing listens" in ended.json["error"]["message"]


@twisted_test
async def test_who_watches_sees_what_the_others_do(stage: Stage) -> None:
    """Steps, states and placements, in order; of one site, if one is named."""
    daemon, _, _ = await stage.blog()
    seen: list[dict[str, object]] = []
    watching = daemon.ask("watch", lambda method, event: seen.append(event), site="blog")
    await daemon.ask("pause", site="blog")  # from the thread pool, perhaps before the watch
    await daemon.ask("resume", site="blog")
    await daemon.ask("migrate", site="blog", to="two")
    moves = [event for event in seen if event.get("command") == "migrate"]
    del seen[: seen.index(moves[0])]
    steps = [event["step"] for event in seen if event["event"] == "step"]
    assert steps == ["check", "hold", "drain", "switch", "verify", "commit", "release", "clean"]
    placed = [event for event in seen if event["event"] == "placed"]
    assert [(event["mode"], event["backend"]) for event in placed] == [
        ("holding", "one"),
        ("holding", "two"),
        ("open", "two"),
    ]
    generations = [event["generation"] for event in placed]
    assert generations == sorted(generations)  # type: ignore[type-var]
    await daemon.kill()
    with pytest.raises(Unreachable):
        await watching
