"""Reading the configuration again: sites come, change and go, and no connection is dropped."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from daemon_stage import (
    HOST,
    Daemon,
    Failed,
    Stage,
    a_stage,
    free_ports,
    site,
    twisted_fixture,
    twisted_test,
    until,
)
from edge_stage import SecureOrigin, listening
from plane_stage import answering
from tls_stage import Authority

stage = twisted_fixture(a_stage)


async def _hangup(daemon: Daemon) -> None:
    """SIGHUP, until the log says what came of it."""
    count = daemon.log.count("reloaded")
    daemon.signal(signal.SIGHUP)
    await until(lambda: daemon.log.count("reloaded") > count, "a reload")


@twisted_test
async def test_a_hangup_adds_changes_and_removes_sites(stage: Stage) -> None:
    """Under load, with an answer under way to a client of the site that goes."""
    one, two = stage.two()
    daemon = await stage.serving(site("blog", one), site("wiki", one))
    load = daemon.load(rate=200)
    await load.flows()
    begun = await daemon.connect()
    begun.ask("/begun", host="wiki.test")
    await begun.gets(b"abc")
    daemon.configure(site("blog", one, two, hosts=("blog.test", "blog2.test")), site("shop", two))
    await _hangup(daemon)
    assert (await daemon.get("/", host="blog2.test")).text == "one /"
    assert (await daemon.get("/", host="shop.test")).text == "two /"
    assert (await daemon.get("/", host="wiki.test")).status == 404
    one.let_go()
    await begun.gets(b"0\r\n\r\n")
    begun.ask("/", host="shop.test")
    await begun.gets(b"two /")
    await load.flows()
    result = await load.passes()
    assert result.replaced == 0
    assert (await daemon.ask("migrate", site="blog", to="two"))["outcome"] == "done"


@twisted_test
async def test_a_hangup_with_a_bad_file_changes_nothing(stage: Stage) -> None:
    """The log has what is wrong with it."""
    daemon, _, _ = await stage.blog()
    load = daemon.load(rate=100)
    await load.flows()
    daemon.config.write_text(daemon.text.replace("hosts", "host"))
    await _hangup(daemon)
    assert "not reloaded, nothing has changed" in daemon.log
    assert "sites.blog.host" in daemon.log
    await load.flows()
    await load.passes()


@twisted_test
async def test_a_reload_says_what_it_has_changed(stage: Stage) -> None:
    """And what it cannot change without a restart, which stays as it was."""
    one, two = stage.two()
    daemon = await stage.serving(site("blog", one), site("wiki", one))
    daemon.configure(site("blog", one, two), site("shop", two), node='access_log = "-"')
    done = await daemon.command("reload", "--json")
    assert done.json == {
        "added": ["shop"],
        "changed": ["blog"],
        "removed": ["wiki"],
        "opened": [],
        "closed": [],
        "relistened": [],
        "certificates": [],
        "keys": [],
        "restart": ["node.access_log"],
        "warnings": [],
    }
    done = await daemon.command("reload")
    assert done.out == "only a restart changes node.access_log\n"
    daemon.configure(site("blog", one, two), site("shop", two))
    assert (await daemon.command("reload")).out == "nothing has changed\n"
    daemon.configure('[cluster]\nredis = "redis://127.0.0.1:1"')
    done = await daemon.command("reload")
    assert "only a restart changes cluster\n" in done.out


@twisted_test
async def test_a_reload_says_what_it_has_changed_beside_sites(stage: Stage, tmp_path: Path) -> None:
    """Listeners, certificates, and keys of other tables; all else that is the same is not told."""
    certificates = tmp_path / "certificates"
    authority = Authority(tmp_path / "authority")
    authority.issue("blog.test", path=certificates / "blog.pem")
    one = stage.origin("one")
    ports = free_ports(2)
    tls = f'[tls]\ncertificates = ["{certificates}"]\n'
    first, second = (f"tcp:{port}:interface=127.0.0.1" for port in ports)
    daemon = await stage.serving(
        site("blog", one), listen=f'[[listen]]\nendpoint = "{first}"\n{tls}'
    )
    authority.issue("shop.test", path=certificates / "shop.pem")
    daemon.configure(
        site("blog", one),
        node='drain_time = "7s"\nhold.max_requests = 7',
        listen=f'max_head = 9000\n[[listen]]\nendpoint = "{second}"\n{tls}check_every = "1h"',
    )
    done = await daemon.command("reload", "--json")
    assert done.status == 0
    assert {key: value for key, value in done.json.items() if value} == {
        "opened": [second],
        "closed": [first],
        "relistened": [f"tcp:{daemon.port}:interface=127.0.0.1"],
        "certificates": [str(certificates / "shop.pem")],
        "keys": ["node.drain_time", "node.hold.max_requests", "tls.check_every"],
    }
    assert (await daemon.command("reload")).out == "nothing has changed\n"
    (certificates / "shop.pem").unlink()
    text = (await daemon.command("reload")).out
    assert text == f"other certificates in {certificates / 'shop.pem'}\n"
    (certificates / "blog.pem").write_text("nonsense")
    done = await daemon.command("reload")
    assert (done.status, "blog.pem" in done.out) == (4, True)


@twisted_test
async def test_a_reload_that_fails_says_all_that_is_wrong_in_one_line(stage: Stage) -> None:
    daemon, _, _ = await stage.blog()
    daemon.config.write_text(daemon.text.replace("hosts", "host"))
    done = await daemon.command("reload")
    assert done.status == 1
    assert done.err.count("nothing has changed") == 1
    assert "\\n" not in done.err
    assert done.err.count("sites.blog.host") == 2


@twisted_test
async def test_listeners_come_and_go_with_a_reload(stage: Stage) -> None:
    """A listener that goes takes no more connections; those it had go on."""
    daemon, one, two = await stage.blog()
    talk = await daemon.connect()
    talk.ask("/1")
    await talk.gets(b"one /1")
    old, daemon.port = daemon.port, free_ports(1)[0]
    daemon.configure(site("blog", one, two))
    await daemon.ask("reload")
    assert (await daemon.get("/2")).text == "one /2"
    talk.ask("/3")
    await talk.gets(b"one /3")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, old)).close()


@twisted_test
async def test_a_listener_that_cannot_be_had_changes_nothing(stage: Stage) -> None:
    """Neither the other listeners, nor any site."""
    daemon, one, two = await stage.blog()
    with socket.create_server((HOST, 0)) as taken:
        busy = f'[[listen]]\nendpoint = "tcp:{taken.getsockname()[1]}:interface={HOST}"'
        daemon.configure(busy, site("blog", one, two), site("shop", one))
        with pytest.raises(Failed, match="in use"):
            await daemon.ask("reload")
    assert (await daemon.get("/", host="shop.test")).status == 404
    assert (await daemon.get("/")).text == "one /"
    assert (await daemon.ask("reload"))["added"] == ["shop"]


@twisted_test
async def test_new_timeouts_apply_to_what_is_held_already(stage: Stage) -> None:
    """A hold that may not last as long any more ends the wait."""
    daemon, one, two = await stage.blog()
    await daemon.ask("pause", site="blog")
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    daemon.configure(site("blog", one, two, more='hold.max_time = "50ms"'))
    await daemon.ask("reload")
    assert (await held).status == 503
    assert (await daemon.site())["state"] == "holding"


@twisted_test
async def test_a_reload_reads_again_whom_servers_have_to_be_signed_by(
    stage: Stage, tmp_path: Path
) -> None:
    """Held requests go to a server as soon as its authority is in the file."""
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "Stranger")
    ca_file = tmp_path / "trusted.pem"
    ca_file.write_bytes(stranger.ca_file.read_bytes())
    origin = SecureOrigin(answering, authority.issue(HOST))
    async with listening(origin):
        blog = f"""
            [sites.blog]
            hosts = ["blog.test"]
            backend = "one"
            [sites.blog.backends.one]
            servers = ["{origin.at()}"]
            tls.ca_file = "{ca_file}"
        """
        daemon = await stage.serving(blog)
        asked = daemon.fetch("/")
        await daemon.until_site(state="unreachable", held=1)
        ca_file.write_bytes(authority.ca_file.read_bytes())
        await daemon.ask("reload")
        assert (await asked).status == 200


@twisted_test
async def test_a_site_that_goes_and_comes_back_is_where_and_what_it_was(stage: Stage) -> None:
    """The file says which sites there are, the registry where they are."""
    daemon, one, two = await stage.blog()
    await daemon.ask("migrate", site="blog", to="two")
    await daemon.ask("pause", site="blog")
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    daemon.configure(site("shop", one))
    await daemon.ask("reload")
    assert (await held).status == 503
    daemon.configure(site("blog", one, two))
    await daemon.ask("reload")
    status = await daemon.site()
    assert (status["backend"], status["state"]) == ("two", "holding")


@twisted_test
async def test_backends_added_by_command_outlive_a_reload_and_a_restart(stage: Stage) -> None:
    """They belong to the file's site; they can be removed again when it is not there."""
    one, two = stage.two()
    daemon = await stage.serving(site("blog", one))
    added = await daemon.command("backend", "add", "blog", "new", two.url)
    assert added.status == 0
    await daemon.ask("migrate", site="blog", to="new")
    await daemon.ask("reload")
    await daemon.kill()
    await daemon.start()
    assert (await daemon.get("/")).text == "two /"
    removed = await daemon.command("backend", "remove", "blog", "new")
    assert (removed.status, "placed on new; migrate it" in removed.err) == (1, True)
    await daemon.ask("migrate", site="blog", to="one")
    assert (await daemon.command("backend", "remove", "blog", "new")).status == 0
    shown = await daemon.ask("site.show", name="blog")
    assert [*shown["definition"]["backends"]] == ["one"]


@twisted_test
async def test_what_a_command_added_gives_way_to_the_file(stage: Stage) -> None:
    """A site of that name in the file wins, with the backends of both."""
    one, two = stage.two()
    daemon = await stage.serving(site("blog", one))
    words = ("site", "add", "shop", "--host", "shop.test", "--backend", f"new={two.url}")
    assert (await daemon.command(*words)).status == 0
    daemon.configure(site("blog", one), site("shop", one, hosts=("shop2.test",)))
    await daemon.ask("reload")
    assert (await daemon.get("/", host="shop2.test")).text == "two /"
    assert (await daemon.get("/", host="shop.test")).status == 404
    await daemon.ask("migrate", site="shop", to="one")
    assert (await daemon.get("/", host="shop2.test")).text == "one /"


@twisted_test
async def test_a_site_by_command_may_not_claim_what_another_has(stage: Stage) -> None:
    """Neither at the command nor at a reload."""
    one, two = stage.two()
    daemon = await stage.serving(site("blog", one))
    words = ("--backend", f"new={two.url}")
    taken = await daemon.command("site", "add", "shop", "--host", "blog.test", *words)
    assert taken.status == 2
    assert "is claimed by site" in taken.err
    assert (await daemon.command("site", "add", "shop", "--host", "shop.test", *words)).status == 0
    daemon.configure(site("blog", one, hosts=("shop.test",)))
    with pytest.raises(Failed, match="is claimed by site"):
        await daemon.ask("reload")
    assert (await daemon.get("/", host="shop.test")).text == "two /"


@twisted_test
async def test_what_is_shown_of_a_site_can_be_added_again(stage: Stage) -> None:
    """As TOML with its remarks, through a file; but its secret is not shown."""
    one = stage.origin("one")
    more = 'path = "/x"\nbypass = { header = "X-Try", secret = "opensesame" }'
    daemon = await stage.serving(site("blog", one, health=True, more=more))
    shown = await daemon.command("site", "show", "blog")
    assert "opensesame" not in shown.out
    file = daemon.directory / "site.toml"
    file.write_text(shown.out.replace('secret = "hidden"', 'secret = "opensesame"'))
    before = await daemon.ask("site.show", name="blog")
    daemon.configure()
    await daemon.ask("reload")
    added = await daemon.command("site", "add", "blog", "--from", str(file))
    assert added.status == 0, added
    assert (await daemon.ask("site.show", name="blog"))["definition"] == before["definition"]
    file.write_text(shown.out)
    again = await daemon.command("site", "add", "again", "--from", str(file))
    assert (again.status, "secret" in again.err) == (2, True)
