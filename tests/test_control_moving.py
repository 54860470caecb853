"""What operators do about filesystems, databases and migrations, on a real daemon."""

from __future__ import annotations

import subprocess
from functools import partial
from typing import Any

import pytest
from daemon_stage import (
    HOST,
    Daemon,
    Failed,
    Stage,
    a_stage,
    free_ports,
    reactor,
    twisted_fixture,
    twisted_test,
)
from stage_waiting import until_async
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from wire_stage import Process, a_pgbouncer

from awesomeproxy import model
from awesomeproxy.movers.pgbouncer import PgBouncer
from awesomeproxy.movers.shell import Reach, Shell

stage = twisted_fixture(a_stage)


def slow(step: str) -> str:
    """A step that does not begin before it is called off."""
    return f'[[hooks]]\nstep = "{step}"\ncommand = ["sleep", "60"]\ntime = "60s"'


async def reaches(daemon: Daemon, step: str) -> Deferred[object]:
    """Begin a migration, and wait until it has come to ``step``."""
    running: Deferred[object] = daemon.ask("migrate", site="blog", to="two")
    await daemon.until_site(migration={"target": "two", "step": step})
    return running


async def fails(command: Deferred[object], *texts: str) -> Failed:
    with pytest.raises(Failed) as caught:
        await command
    for text in texts:
        assert text in str(caught.value)
    return caught.value


# Filesystems that this node cannot see


async def a_far_house(stage: Stage) -> Daemon:
    one, two = stage.two()
    return await stage.serving(
        *(f'[nodes.n{number}]\nssh = "nowhere{number}.invalid"' for number in (1, 2)),
        '[filesystems.data]\nmover = "zfs"\nnode = "n1"',
        *(f'on.n{number} = {{ dataset = "tank/data", path = "/data" }}' for number in (1, 2)),
        *('[sites.blog]\nhosts = ["blog.test"]\nbackend = "one"\nfilesystem = "data"',),
        f'backends.one = {{ servers = ["{one.url}"], node = "n1" }}',
        f'backends.two = {{ servers = ["{two.url}"], node = "n2" }}',
    )


@twisted_test
async def test_what_is_mounted_elsewhere_is_said_by_command(stage: Stage) -> None:
    """Requests wait in between, and go where it is then; a restart changes nothing of that."""
    daemon = await a_far_house(stage)
    assert (await daemon.get("/a")).text == "one /a"
    told = await daemon.command("unmounted", "data", "--node", "n1")
    assert (told.status, told.out.count("not mounted on n1")) == (0, 1)
    held = daemon.fetch("/b")
    site = await daemon.until_site(held=1)
    assert "data is not mounted on n1" in site["trouble"]
    (data,) = (await daemon.ask("status"))["filesystems"]
    assert (data["node"], "is not mounted" in data["state"]) == ("n1", True)
    told = await daemon.command("mounted", "data", "--node", "n2")
    assert (told.status, told.out.count("mounted on n2")) == (0, 1)
    assert "blog lives there" in told.out
    assert (await held).text == "two /b"
    shown = await daemon.command("status")
    assert ["data", "mounted", "n2"] in [line.split()[:3] for line in shown.out.splitlines()]
    await daemon.kill()
    await daemon.start()
    assert (await daemon.get("/c")).text == "two /c"


@twisted_test
async def test_what_is_mounted_twice_is_told_and_goes_on_when_it_is_not(stage: Stage) -> None:
    """The recorded place counts until it is gone."""
    daemon = await a_far_house(stage)
    wrong = await daemon.command("mounted", "data", "--node", "n2")
    assert wrong.status != 0
    assert "awesomeproxy unmounted data --node n1" in wrong.err
    (data,) = (await daemon.ask("status"))["filesystems"]
    assert data["trouble"] == "it is mounted on n2 as well"
    assert (await daemon.get("/a")).text == "one /a"
    told = await daemon.command("unmounted", "data", "--node", "n1")
    assert (told.status, told.out.count("mounted on n2")) == (0, 1)
    assert (await daemon.get("/b")).text == "two /b"


@twisted_test
async def test_what_is_not_there_cannot_be_mounted(stage: Stage) -> None:
    """Nor where it has no place; and a move is refused that nobody can do."""
    daemon = await a_far_house(stage)
    await fails(daemon.ask("mounted", filesystem="x", node="n1"), "no filesystem 'x'", "data")
    await fails(
        daemon.ask("unmounted", filesystem="data", node="n3"), "has no place on 'n3'", "n1, n2"
    )
    foreseen = await daemon.ask("migrate", site="blog", to="two", dry_run=True)
    assert [each["name"] for each in foreseen["along"]] == ["filesystem:data"]
    assert "nowhere" in foreseen["problems"][0]
    await fails(daemon.ask("migrate", site="blog", to="two"), "rolled back in the step 'check'")
    assert (await daemon.get("/a")).text == "one /a"
    await daemon.ask("unmounted", filesystem="data", node="n1")
    await fails(daemon.ask("migrate", site="blog", to="two"), "data is not mounted on n1")


@twisted_test
async def test_a_migration_ends_when_its_source_is_said_to_be_gone(stage: Stage) -> None:
    """It is rolled back, and the site is held; anything else that is said then is refused."""
    daemon = await a_far_house(stage)
    daemon.config.write_text(daemon.text + slow("check"))
    await daemon.ask("reload")
    moving = daemon.ask("migrate", site="blog", to="two")
    await daemon.until_site(migration={"target": "two", "step": "check"})
    for command, node in (("mounted", "n1"), ("mounted", "n2"), ("unmounted", "n2")):
        await fails(daemon.ask(command, filesystem="data", node=node), "is being moved with blog")
    told = await daemon.ask("unmounted", filesystem="data", node="n1")
    assert (told["node"], told["state"]) == ("n1", "not mounted")
    await fails(moving, "data cannot be used any more on n1: it is not mounted")
    assert "data is not mounted on n1" in (await daemon.site())["trouble"]


@twisted_test
async def test_a_reload_takes_filesystems_over(stage: Stage) -> None:
    """A site gets one, and is held where that is not."""
    one, two = stage.two()
    daemon = await stage.serving(
        *('[nodes.n1]\nssh = "nowhere.invalid"', '[nodes.n2]\nssh = "nowhere.invalid"'),
        '[filesystems.data]\nmover = "zfs"\nnode = "n2"',
        *(f'on.n{number} = {{ dataset = "tank/data", path = "/data" }}' for number in (1, 2)),
        '[sites.blog]\nhosts = ["blog.test"]\nbackend = "one"',
        f'backends.one = {{ servers = ["{one.url}"], node = "n1" }}',
        f'backends.two = {{ servers = ["{two.url}"], node = "n2" }}',
    )
    assert (await daemon.get("/a")).text == "one /a"
    text = daemon.config.read_text()
    daemon.config.write_text(
        text.replace('backend = "one"', 'backend = "one"\nfilesystem = "data"')
    )
    await daemon.ask("reload")
    assert (await daemon.site())["trouble"] == "its filesystem data is on n2"
    daemon.config.write_text(text)
    await daemon.ask("reload")
    assert (await daemon.get("/b")).text == "one /b"


# Migrations under way


@twisted_test
async def test_a_migration_can_be_called_off(stage: Stage) -> None:
    """Meanwhile nothing else can be done to the site; afterwards it is as it was."""
    daemon, one, two = await stage.blog(more="", placed="one")
    daemon.config.write_text(daemon.config.read_text() + slow("switch"))
    await daemon.ask("reload")
    running = await reaches(daemon, "drain")
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    await fails(daemon.ask("pause", site="blog"), "is being migrated to two")
    await fails(daemon.ask("migrate", site="blog", to="two"), "is being migrated to two")
    daemon.config.write_text(daemon.config.read_text().replace(two.url, one.url))
    await fails(daemon.ask("reload"), "blog: it is being migrated to two")
    told = await daemon.command("abort", "blog")
    assert told.status == 0
    assert "blog: the migration to two was called off; it is on one" in told.out
    await fails(running, "it was aborted")
    assert (await held).text == "one /held"
    assert "is not being migrated" in (await daemon.command("abort", "blog")).err
    await fails(daemon.ask("abort", site="news"), "no site 'news'")


@twisted_test
async def test_a_daemon_that_stops_calls_off_what_hangs(stage: Stage) -> None:
    """Whatever it hangs in; the held requests go on first."""
    daemon, _, _ = await stage.blog()
    daemon.config.write_text(daemon.config.read_text() + slow("commit"))
    await daemon.ask("reload")
    running = await reaches(daemon, "verify")
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    daemon.signal(15)
    assert (await held).text == "one /held"
    running.addErrback(lambda failure: None)
    assert await daemon.exits() == 0
    await running


def told_by(failed: Failed) -> tuple[bool, object]:
    """Whether a lost race is said to be over if the blog's is called off, and by whom it is."""
    return "awesomeproxy abort blog" in str(failed), (failed.data.get("winner") or {}).get("by")


@pytest.mark.parametrize(
    ("step", "can_be", "by"),
    [("hold", True, None), ("drain", True, "migrate to two"), ("clean", False, "migrate to two")],
)
@twisted_test
async def test_who_comes_second_is_told_of_the_first(
    stage: Stage, step: str, can_be: bool, by: str | None
) -> None:
    """Of what it was asked for, whoever goes along; of what it has done; and while it can be
    called off, how."""
    daemon = await a_shop(stage)
    daemon.config.write_text(daemon.config.read_text() + slow(step))
    await daemon.ask("reload")
    before = {"hold": "check", "drain": "hold", "clean": "release"}[step]
    moving = daemon.ask("migrate", site="blog", to="two", databases={"shop": "d2"})
    await daemon.until_site(migration={"target": "two", "step": before})
    if by is not None:  # the step is told of when it begins, the hold when it is recorded
        await daemon.until_site(by=by)
    first = await fails(daemon.ask("migrate", site="blog", to="one"), "blog is being migrated to")
    assert told_by(first) == (can_be, by)
    for asked in (
        daemon.ask("pause", site="database:shop"),
        daemon.ask("migrate", site="database:shop", to="d1"),
    ):
        second = await fails(
            asked, f"database:shop goes along with blog to two ({before}); wait for it"
        )
        assert told_by(second) == (can_be, by)
    if can_be:
        await daemon.ask("abort", site="blog")
        await fails(moving, "it was aborted")
    else:
        moving.addErrback(lambda failure: None)


# Databases


async def a_shop(stage: Stage) -> Daemon:
    """The site ``blog`` uses the database ``shop``, and so does ``news``; both can move."""
    one, two = stage.two()
    (port,) = free_ports(1)
    return await stage.serving(
        f'[databases.shop]\nendpoint = "tcp:{port}:interface={HOST}"\nbackend = "d1"',
        f'backends.d1.server = "tcp://{HOST}:{one.port}"',
        f'backends.d2.server = "tcp://{HOST}:{two.port}"',
        '[sites.blog]\nhosts = ["blog.test"]\nbackend = "one"\nuses = ["shop"]',
        f'backends.one.servers = ["{one.url}"]\nbackends.two.servers = ["{two.url}"]',
        '[sites.news]\nhosts = ["news.test"]\nbackend = "one"\nuses = ["shop"]',
        f'backends.one.servers = ["{one.url}"]',
        '[sites.other]\nhosts = ["other.test"]\nbackend = "one"',
        f'backends.one.servers = ["{one.url}"]',
    )


@twisted_test
async def test_a_site_takes_a_database_along(stage: Stage) -> None:
    """Whoever uses it waits meanwhile; the command says what it would do beforehand."""
    daemon = await a_shop(stage)
    words = ("migrate", "blog", "--to", "two", "--with", "shop=d2")
    foreseen = await daemon.command(*words, "--dry-run")
    assert foreseen.status == 0, foreseen.err
    assert "database:shop" in foreseen.out
    assert "pause: not known before it begins" in foreseen.out
    assert "undone if it takes 20" in foreseen.out
    done = await daemon.command(*words, "--json")
    assert done.status == 0, done.err
    back = await daemon.ask(
        "migrate", site="blog", to="one", databases={"shop": "d1"}, dry_run=True, max_pause=7.0
    )
    assert back["pause"] == {"predicted": done.json["pause"], "migration": 1, "at_most": 7.0}
    alone = await daemon.ask("migrate", site="blog", to="one", dry_run=True)
    assert alone["pause"] == {"predicted": None, "migration": None, "at_most": 20.0}
    status = await daemon.ask("status")
    (shop,) = status["databases"]
    assert (shop["backend"], shop["state"], sorted(shop["sites"])) == (
        *("d2", "open", ["blog", "news"]),
    )
    where = {site["name"]: (site["backend"], site["mode"]) for site in status["sites"]}
    assert where["blog"] == ("two", "open")
    assert where["news"] == ("one", "open")
    for name in ("blog", "news", "database:shop"):
        (entry,) = (await daemon.ask("migrations", site=name))["migrations"]
        assert (entry["site"], entry["along"]) == (
            "blog",
            [
                {"name": "database:shop", "source": "d1", "target": "d2"},
                {"name": "news", "source": "one", "target": "one"},
            ],
        )
    assert (await daemon.ask("migrations", site="other"))["migrations"] == []
    for databases, said in (
        ({"nosuch": "d1"}, "there is no database:nosuch"),
        ({"shop": "d3"}, "database:shop has no backend 'd3'"),
        ({"shop": "d2"}, "database:shop is on d2 already"),
    ):
        await fails(daemon.ask("migrate", site="blog", to="one", databases=databases), said)


@twisted_test
async def test_who_watches_what_goes_along_sees_the_steps(stage: Stage) -> None:
    """Of what it goes along with; and of nothing else."""
    daemon = await a_shop(stage)
    seen: dict[str, list[dict[str, Any]]] = {"database:shop": [], "other": []}
    for name, events in seen.items():
        watching = daemon.ask("watch", partial(noting, events), site=name)
        watching.addErrback(lambda failure: None)
    await fails(daemon.ask("watch", site="filesystem:x"), "no site 'filesystem:x'")

    async def watched() -> bool:
        await daemon.ask("pause", site="other")
        await daemon.ask("resume", site="other")
        await daemon.ask("pause", site="database:shop")
        await daemon.ask("resume", site="database:shop")
        return all(seen.values())

    await until_async(watched, "those who watch")
    await daemon.ask("migrate", site="blog", to="two", databases={"shop": "d2"})
    await until_async(partial(moved, seen["database:shop"]), "the steps")
    assert not any(event.get("command") == "migrate" for event in seen["other"])


def noting(events: list[dict[str, Any]], method: str, params: dict[str, Any]) -> None:
    events.append(params)


async def moved(events: list[dict[str, Any]]) -> bool:
    steps = {event["step"] for event in events if event.get("command") == "migrate"}
    return {"check", "hold", "commit", "clean"} <= steps


@twisted_test
async def test_a_database_is_paused_with_who_uses_it(stage: Stage) -> None:
    """And resumed with them, but for one that was paused for itself."""
    daemon = await a_shop(stage)
    await daemon.ask("pause", site="news")
    receipt = await daemon.ask("pause", site="database:shop")
    assert receipt["site"] == "database:shop"
    modes = {site["name"]: site["mode"] for site in (await daemon.ask("status"))["sites"]}
    assert modes == {"blog": "holding", "news": "holding", "other": "open"}
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    assert (await daemon.ask("migrate", site="database:shop", to="d2"))["outcome"] == "done"
    status = await daemon.ask("status")
    assert status["databases"][0]["mode"] == "holding"  # it was paused before
    await daemon.ask("resume", site="database:shop")
    assert (await held).text == "one /held"
    modes = {site["name"]: site["mode"] for site in (await daemon.ask("status"))["sites"]}
    assert modes == {"blog": "open", "news": "holding", "other": "open"}
    await fails(daemon.ask("pause", site="database:x"), "no database 'x'", "shop")


@twisted_test
async def test_a_database_whose_sites_do_not_drain_can_be_moved_later(stage: Stage) -> None:
    """It was to be held, and never was; that is over when the migration is."""
    daemon = await a_shop(stage)
    slow = daemon.fetch("/later")
    await stage.origins[0].has("/later")
    moving = daemon.ask("migrate", site="database:shop", to="d2", max_pause=0.5)
    await fails(moving, "rolled back in the step 'drain'")
    (entry,) = (await daemon.ask("migrations"))["migrations"]
    assert entry["state"] == "rolled back"
    stage.origins[0].let_go()
    assert (await slow).status == 200
    await daemon.ask("pause", site="database:shop")
    await daemon.ask("resume", site="database:shop")
    assert (await daemon.ask("migrate", site="database:shop", to="d2"))["outcome"] == "done"


@twisted_test
async def test_the_end_of_a_databases_pause_outlasts_its_move(stage: Stage) -> None:
    """It was forgotten while it moved, not afterwards."""
    daemon = await a_shop(stage)
    await daemon.ask("pause", site="database:shop", deadline=2.0, then="resume")
    await daemon.ask("migrate", site="database:shop", to="d2")

    async def opened() -> bool:
        (shop,) = (await daemon.ask("status"))["databases"]
        return bool(shop["mode"] == "open" and shop["backend"] == "d2")

    await until_async(opened, "the end of the pause")


# A pooler in front of one


def paused(bouncer: Process) -> bool:
    """Whether a PgBouncer keeps the clients of ``shop`` waiting."""
    argv = ["psql", "-XAq", "-h", HOST, "-p", str(bouncer.port), "-U", "pgbouncer", "pgbouncer"]
    shown = subprocess.run(
        [*argv, "-c", "SHOW DATABASES"], capture_output=True, text=True, check=True
    )
    names, *rows = [line.split("|") for line in shown.stdout.splitlines()]
    (row,) = [row for row in rows if row[0] == "shop"]
    return row[names.index("paused")] == "1"


@twisted_test
async def test_a_pooler_goes_on_whoever_ends_the_pause(stage: Stage) -> None:
    """Its own end, or a daemon that finds that it died before it could hold the database."""
    one, _ = stage.two()
    (port,) = free_ports(1)
    with a_pgbouncer(port) as bouncer:
        daemon = await stage.serving(
            f'[databases.shop]\nendpoint = "tcp:{port}:interface={HOST}"\nbackend = "d1"',
            f'backends.d1.server = "tcp://{HOST}:{one.port}"\nprotocol = "postgres"',
            'via = "pgbouncer"\npgbouncer.database = "shop"',
            f'pgbouncer.address = "tcp://{HOST}:{bouncer.port}"',
        )
        await daemon.ask("pause", site="database:shop", deadline=3.0, then="resume")
        # Not whether it is paused now: on a busy machine the pause can end while it is asked.
        assert "PAUSE 'shop' command issued" in (bouncer.directory / "log").read_text()
        await until_async(partial(awake, bouncer), "the end of the pause")

        async def opened() -> bool:
            (shop,) = (await daemon.ask("status"))["databases"]
            return bool(shop["mode"] == "open")

        await until_async(opened, "the database")
        await daemon.kill()
        console = PgBouncer(Shell(reactor, Reach("here")), settings(bouncer))
        await console.pause(5.0)
        await daemon.start()
        await until_async(partial(awake, bouncer), "the pooler")


async def awake(bouncer: Process) -> bool:
    return not await deferToThread(paused, bouncer)


def settings(bouncer: Process) -> model.PgBouncer:
    server = model.Server("tcp", HOST, bouncer.port)
    return model.PgBouncer(server, "shop")
