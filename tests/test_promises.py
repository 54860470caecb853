"""The promises of the design, each with real sockets and traffic that does not stop.

1. the barrier is real; 2. exactly once; 3. level, not edge; 4. never open by accident;
5. nothing unbounded; 6. a migration is a transaction; 8. bad input changes nothing.
(7, that a waiter owns its Deferred, is :mod:`test_happenings`; 9, the speed, is measured.)
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest
from daemon_stage import (
    Asked,
    Daemon,
    Failed,
    Load,
    Origin,
    Stage,
    a_stage,
    reactor,
    twisted_fixture,
    twisted_test,
    until,
)
from daemon_stage import site as a_site
from twisted.internet.task import deferLater

from awesomeproxy.load.result import Result

stage = twisted_fixture(a_stage)


# 1. The barrier is real


async def _silent_while_paused(daemon: Daemon, origin: Origin, cycles: int) -> None:
    """Pause and resume; between receipt and resume not a byte may reach the origin."""
    for _ in range(cycles):
        await daemon.ask("pause", site="blog")
        began = time.monotonic()
        await daemon.until_site(state="holding", in_flight=0, connections=0)
        ended = time.monotonic()
        late = [at - began for at in origin.bytes_at if began < at < ended]
        assert not late, f"bytes reached the backend {late} s after the receipt"
        await daemon.ask("resume", site="blog")
        origin.bytes_at.clear()


@twisted_test
async def test_no_byte_reaches_the_backend_of_a_paused_site(stage: Stage) -> None:
    """With GETs, POSTs with bodies, health checks and servers that take their time."""
    daemon, one, _ = await stage.blog(health=True)
    one.delay = 0.003
    gets = daemon.load(rate=150)
    posts = daemon.load(rate=150, method="POST", body=b"n={n}" + b"x" * 5000)
    await gets.flows()
    await _silent_while_paused(daemon, one, 30)
    assert (await gets.passes()).held_requests
    assert (await posts.passes()).held_requests


@twisted_test
async def test_pipelined_requests_do_not_slip_past_a_pause(stage: Stage) -> None:
    """Those behind the one that is answered wait like all others, and all are answered."""
    daemon, one, _ = await stage.blog()
    one.delay = 0.002
    talks = [await daemon.connect() for _ in range(8)]
    for talk in talks:
        for n in range(150):
            talk.ask(f"/{n}")
    await until(lambda: len(one.asked) > 50)
    await _silent_while_paused(daemon, one, 10)
    for talk in talks:
        await talk.gets(b"one /149")
        assert [talk.data.index(b"one /%d" % n) for n in range(150)] == sorted(
            talk.data.index(b"one /%d" % n) for n in range(150)
        )
    assert len(one.asked) == len(talks) * 150


@twisted_test
async def test_requests_that_are_sent_again_do_not_slip_past_a_pause(stage: Stage) -> None:
    """Nor do those that wait for a server that is being restarted."""
    daemon, one, _ = await stage.blog()
    load = daemon.load(rate=200)
    await load.flows()
    for _ in range(5):
        await one.close()
        await daemon.until_site(state="unreachable")
        one.open()
        await _silent_while_paused(daemon, one, 2)
        await load.flows()
    await load.passes()


# 2. Exactly once


class Database:
    """What the site's servers write to, wherever they are: a row for each request."""

    def __init__(self, stage: Stage, *origins: Origin) -> None:
        self._db = sqlite3.connect(stage.directory / "shop.sqlite")
        stage.at_end.append(self._db.close)
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE done (request TEXT, server TEXT)")
        for origin in origins:
            origin.work = self._writer(origin.name)

    def _writer(self, server: str) -> Callable[[Asked], None]:
        def write(asked: Asked) -> None:
            if asked.path.startswith("/buy"):
                with self._db:
                    self._db.execute("INSERT INTO done VALUES (?, ?)", (asked.path, server))

        return write

    def judge(self, result: Result, prefix: str) -> None:
        """Every acknowledged request is there once, and no other more than that."""
        rows = self._db.execute(
            "SELECT request, COUNT(*) FROM done WHERE request LIKE ? GROUP BY 1", (f"{prefix}/%",)
        )
        counts = dict(rows)
        acknowledged = {f"{prefix}/{n}" for n in result.acknowledged()}
        assert {r for r, count in counts.items() if count > 1} == set(), "done twice"
        assert acknowledged - set(counts) == set(), "acknowledged but lost"

    def servers(self) -> set[str]:
        return {server for (server,) in self._db.execute("SELECT DISTINCT server FROM done")}


@twisted_test
async def test_each_request_is_carried_out_once_however_the_site_moves(stage: Stage) -> None:
    """POSTs into a database, while the site goes to and fro: none fails, is lost or doubled."""
    daemon, one, two = await stage.blog()
    database = Database(stage, one, two)
    one.delay = two.delay = 0.01
    load = daemon.load(rate=200, method="POST", path="/buy/{n}", body=b"n={n}")
    for n in range(8):
        await load.flows(15)
        ledger = await daemon.ask("migrate", site="blog", to=("two", "one")[n % 2])
        assert (ledger["outcome"], ledger["failed"], ledger["ambiguous"]) == ("done", 0, 0)
    database.judge(await load.passes(), "/buy")
    assert database.servers() == {"one", "two"}


@twisted_test
async def test_nothing_is_carried_out_twice_when_servers_break_down(stage: Stage) -> None:
    """Requests cut off by a server are tried again only if they may be; the rest is ambiguous."""
    daemon, one, two = await stage.blog()
    database = Database(stage, one, two)
    one.delay = two.delay = 0.02
    load = daemon.load(rate=200, method="POST", path="/buy/{n}", body=b"n={n}")
    for origin, to in ((one, "two"), (two, "one"), (one, "two")):
        await load.flows(20)
        await origin.close()  # whoever waits for an answer gets none, though the row may come
        await daemon.until_site(state="unreachable")
        await daemon.ask("migrate", site="blog", to=to)
        origin.open()
    result = await load.stop()
    database.judge(result, "/buy")
    counters = (await daemon.site())["counters"]
    assert result.failed == counters["ambiguous"] > 0
    assert set(result.statuses()) == {200, 502}


@twisted_test
async def test_held_requests_are_released_in_the_order_of_their_arrival(stage: Stage) -> None:
    """One behind the other, if one at a time may be in flight."""
    daemon, one, _ = await stage.blog(more="max_in_flight = 1")
    await daemon.ask("pause", site="blog")
    held = []
    for n in range(12):
        held.append(daemon.fetch(f"/{n}"))
        await daemon.until_site(held=n + 1)
    await daemon.ask("resume", site="blog")
    for answer in held:
        await answer
    assert one.paths() == [f"/{n}" for n in range(12)]


# 3. Level, not edge


@twisted_test
async def test_a_restart_changes_nothing(stage: Stage) -> None:
    """After kill -9 every site is where it was, as it was; generations only grow."""
    one, two = stage.two()
    sites = [a_site(name, one, two) for name in ("blog", "shop", "wiki")]
    daemon = await stage.serving(*sites)
    definition = {"hosts": ["x.test"], "backend": "b", "backends": {"b": {"servers": [one.url]}}}
    await daemon.ask("site.add", name="extra", definition=definition)
    await daemon.ask("backend.add", site="extra", name="c", definition={"servers": [two.url]})
    await daemon.ask("migrate", site="extra", to="c")
    await daemon.ask("migrate", site="blog", to="two")
    await daemon.ask("pause", site="blog")
    await daemon.ask("pause", site="shop", deadline=3600, then="resume")
    keys = ("name", "hosts", "backend", "mode", "generation", "by", "expires")

    async def state() -> list[dict[str, object]]:
        found = (await daemon.ask("status"))["sites"]
        return [{key: site[key] for key in keys} for site in found]

    before = await state()
    for _ in range(2):
        await daemon.kill()
        await daemon.start()
        assert await state() == before
    assert (await daemon.get("/", host="x.test")).text == "two /"
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    resumed = await daemon.ask("resume", site="blog")
    assert resumed["generation"] > before[0]["generation"]
    assert (await held).text == "two /held"


@twisted_test
async def test_a_site_that_is_removed_and_comes_back_goes_on_from_its_generation(
    stage: Stage,
) -> None:
    """So that no worker takes the new placement for old news."""
    daemon, one, _ = await stage.blog()
    definition = {"hosts": ["x.test"], "backend": "b", "backends": {"b": {"servers": [one.url]}}}
    await daemon.ask("site.add", name="extra", definition=definition)
    await daemon.ask("pause", site="extra")
    generation = (await daemon.site("extra"))["generation"]
    await daemon.ask("site.remove", name="extra")
    added = await daemon.ask("site.add", name="extra", definition=definition)
    assert added["generation"] > generation
    assert (await daemon.get("/", host="x.test")).status == 200


# 4. Never open by accident


@twisted_test
async def test_an_unknown_host_gets_no_site(stage: Stage) -> None:
    """There is no default: 404, and no backend hears of it."""
    daemon, one, two = await stage.blog()
    assert (await daemon.get("/", host="elsewhere.test")).status == 404
    assert one.connected == two.connected == 0


@twisted_test
async def test_a_site_whose_backend_is_gone_is_held_and_then_refused(stage: Stage) -> None:
    """It does not go to another backend; the others are served, and a move saves it."""
    daemon, one, two = await stage.blog()
    three = stage.origin("three")
    await daemon.ask("migrate", site="blog", to="two")
    await daemon.kill()
    hold = 'hold.max_time = "300ms"'
    daemon.configure(a_site("blog", one, three, more=hold), a_site("shop", one))
    await daemon.start()
    assert "sites.blog.backends: 'two' is missing" in daemon.log
    site = await daemon.site()
    assert "'two', which is not defined" in site["trouble"]
    answer = await daemon.get("/")
    assert (answer.status, "retry-after" in answer.headers) == (503, True)
    assert "servers are not known" in answer.text
    assert (await daemon.get("/", host="shop.test")).text == "one /"
    await daemon.ask("resume", site="blog")
    assert (await daemon.get("/")).status == 503
    held = daemon.fetch("/held")
    await daemon.ask("migrate", site="blog", to="three")
    assert (await held).text == "three /held"
    assert two.paths() == []


@twisted_test
async def test_a_reload_cannot_take_the_backend_from_under_a_site(stage: Stage) -> None:
    """It is refused, and says what to do first."""
    daemon, one, _ = await stage.blog()
    await daemon.ask("migrate", site="blog", to="two")
    daemon.configure(a_site("blog", one), a_site("shop", one))
    with pytest.raises(Failed, match=r"'two' is missing.*placed there; add it, or migrate"):
        await daemon.ask("reload")
    assert (await daemon.get("/")).text == "two /"
    assert (await daemon.get("/", host="shop.test")).status == 404


@twisted_test
async def test_a_registry_that_cannot_be_written_opens_nothing(stage: Stage) -> None:
    """A resume that cannot be recorded fails, and the site is still held."""
    daemon, one, _ = await stage.blog()
    await daemon.ask("pause", site="blog")
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    locking = sqlite3.connect(daemon.directory / "state" / "registry.sqlite")
    locking.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(Failed, match="cannot be written, and nothing was changed"):
            await daemon.ask("resume", site="blog")
        assert (await daemon.site())["state"] == "holding"
        assert one.paths() == []
    finally:
        locking.close()
    await daemon.ask("resume", site="blog")
    assert (await held).text == "one /held"


@twisted_test
async def test_a_hold_that_cannot_be_recorded_holds_nothing(stage: Stage) -> None:
    """Intent comes before effect: without the one there is not the other."""
    daemon, _, _ = await stage.blog()
    locking = sqlite3.connect(daemon.directory / "state" / "registry.sqlite")
    locking.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(Failed, match="cannot be written"):
            await daemon.ask("pause", site="blog")
    finally:
        locking.close()
    site = await daemon.site()
    assert (site["state"], site["generation"]) == ("open", 1)
    assert (await daemon.get("/")).text == "one /"


@twisted_test
async def test_the_end_of_a_hold_is_tried_again_until_it_is_recorded(stage: Stage) -> None:
    """A registry that fails at that moment does not keep the site held for ever."""
    daemon, _, _ = await stage.blog()
    await daemon.ask("pause", site="blog", deadline=0.3, then="resume")
    locking = sqlite3.connect(daemon.directory / "state" / "registry.sqlite")
    locking.execute("BEGIN IMMEDIATE")
    held = daemon.fetch("/held")
    await until(lambda: "cannot be resumed yet" in daemon.log)
    assert (await daemon.site())["held"] == 1
    locking.close()
    assert (await held).text == "one /held"


# 5. Nothing unbounded


@pytest.mark.parametrize(
    ("bound", "node"),
    [
        ("hold.max_requests = 5", ""),
        ("", "hold.max_requests = 5"),
        ('hold.max_bytes = "60KB"', ""),
        ("", 'hold.max_bytes = "60KB"'),
    ],
)
@twisted_test
async def test_what_is_held_is_bounded(stage: Stage, bound: str, node: str) -> None:
    """By number and by bytes, of a site and of all: what is too much is refused at once."""
    daemon, _, _ = await stage.blog(more=bound, node=node)
    await daemon.ask("pause", site="blog")
    large = f"X-Large: {'x' * 10_000}\r\n"
    held = [daemon.fetch(f"/{n}", more=large) for n in range(8)]
    await until(lambda: any(answer.called for answer in held))
    status = await daemon.until_site(held=5)
    assert status["counters"]["refused"] == 3
    await daemon.ask("resume", site="blog")
    answers = [await answer for answer in held]
    assert [answer.status for answer in answers].count(200) == 5
    refused = [answer for answer in answers if answer.status == 503]
    assert all("retry-after" in answer.headers for answer in refused)
    assert len(refused) == 3


@twisted_test
async def test_a_request_is_held_no_longer_than_it_may_be(stage: Stage) -> None:
    """Then it is answered 503, not forwarded."""
    daemon, one, _ = await stage.blog(more='hold.max_time = "200ms"')
    await daemon.ask("pause", site="blog")
    answer = await daemon.get("/held")
    assert (answer.status, "retry-after" in answer.headers) == (503, True)
    await daemon.ask("resume", site="blog")
    assert one.paths() == []


@twisted_test
async def test_a_release_meets_a_bounded_number_at_the_backend(stage: Stage) -> None:
    """A hundred held requests do not all go at once."""
    daemon, one, _ = await stage.blog(more="max_in_flight = 10\nramp.start = 3")
    await daemon.ask("pause", site="blog")
    held = [daemon.fetch("/later") for _ in range(40)]
    await daemon.until_site(held=40)
    await daemon.ask("resume", site="blog")
    most = 0
    while not all(answer.called for answer in held):
        most = max(most, len(one.waiting))
        one.let_go()
        await deferLater(reactor, 0.002)
    assert 0 < most <= 10


# 6. A migration is a transaction


async def _fails(daemon: Daemon, load: Load, message: str, **how: Any) -> None:
    await load.flows(10)
    with pytest.raises(Failed, match=message):
        await daemon.ask("migrate", site="blog", to="two", **how)
    site = await daemon.site()
    assert (site["backend"], site["mode"], site["migration"]) == ("one", "open", None)
    await load.flows(10)


@twisted_test
async def test_a_migration_that_fails_at_any_step_costs_no_request(stage: Stage) -> None:
    """In its check, hold, drain, verify: the site is back at once, and nothing has failed."""
    daemon, one, two = await stage.blog(health=True)
    load = daemon.load(rate=150)
    two.healthy = False
    await _fails(daemon, load, "step 'check'")
    two.healthy = True

    locking = sqlite3.connect(daemon.directory / "state" / "registry.sqlite")
    locking.execute("BEGIN IMMEDIATE")
    await _fails(daemon, load, "cannot be written, and nothing was changed")
    locking.close()

    slow = daemon.fetch("/later")
    await one.has("/later")
    await _fails(daemon, load, "step 'drain': the pause took longer", max_pause=0.2)

    moving = daemon.ask("migrate", site="blog", to="two")
    await daemon.until_site(migration={"target": "two", "step": "drain"})
    two.healthy = False
    one.let_go()
    with pytest.raises(Failed, match="step 'verify'"):
        await moving
    await slow
    await load.flows()
    await load.passes()
    assert two.paths() == []
    states = [entry["state"] for entry in (await daemon.ask("migrations"))["migrations"]]
    assert states == ["rolled back", "rolled back"]


# 8. Bad input changes nothing


BAD_FILES = [
    "[node",
    "[node]\nname = 3\n",
    '[[listen]]\nendpoint = "tcp:0x50"\n',
    'listen = []\n[sites.blog]\nhosts = ["blog.test"]\n',
    "\xff",
    "",
]


@twisted_test
async def test_a_bad_configuration_file_changes_nothing(stage: Stage) -> None:
    """The reload says where and why, and traffic does not notice."""
    daemon, _, _ = await stage.blog()
    load = daemon.load(rate=100)
    await load.flows()
    before = (await daemon.ask("status"))["node"]["listen"]
    for text in BAD_FILES:
        daemon.config.write_bytes(text.encode("latin-1"))
        with pytest.raises(Failed, match=r"awesomeproxy\.toml: "):
            await daemon.ask("reload")
    daemon.config.unlink()
    with pytest.raises(Failed, match="cannot be read"):
        await daemon.ask("reload")
    assert (await daemon.ask("status"))["node"]["listen"] == before
    await load.flows()
    await load.passes()
