"""The metrics page: what it tells is what has happened."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from http.client import IncompleteRead

import pytest
from conftest import LoggedFailures
from daemon_stage import (
    HOST,
    Failed,
    Stage,
    a_stage,
    free_ports,
    site,
    twisted_fixture,
    twisted_test,
    until,
)
from metrics_stage import answer, parsed, text_of, told_at
from prometheus_client.core import GaugeMetricFamily, Metric
from stage_waiting import until_async
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from awesomeproxy import config
from awesomeproxy.metrics import page
from awesomeproxy.metrics.listening import Listening

stage = twisted_fixture(a_stage)


def _endpoint(port: int) -> str:
    return f"tcp:{port}:interface={HOST}"


@twisted_test
async def test_it_tells_what_has_become_of_requests(stage: Stage) -> None:
    """Of some that were answered, and of one that is held."""
    port, databases = free_ports(2)
    one, two = stage.two()
    shop = f"""
        [databases.shop]
        endpoint = "{_endpoint(databases)}"
        backend = "old"
        [databases.shop.backends.old]
        server = "tcp://{HOST}:1"
        """
    daemon = await stage.serving(
        site("blog", one, two), site("wiki", one), shop, node=f'metrics = "{_endpoint(port)}"'
    )
    for _ in range(3):
        await daemon.get("/", host="blog.test")
    told = await told_at(port)
    assert told["info{node=node1,version=0.1.0}"] == 1
    assert told["site_requests_total{site=blog}"] == 3
    assert told["site_requests_total{site=wiki}"] == 0
    assert told["site_requests_held_total{site=blog}"] == told["site_held{site=blog}"] == 0
    assert told["site_open{site=blog}"] == told["site_generation{site=blog}"] == 1
    assert told["site_placed{backend=one,site=blog}"] == 1
    assert told[f"server_up{{backend=two,server={two.url},site=blog}}"] == 1
    assert told["database_connections_total{database=shop}"] == 0
    assert told["database_open{database=shop}"] == 1
    assert told["process_open_fds"] > 0
    assert "registry_up" not in told

    await daemon.ask("pause", site="blog")
    held = daemon.fetch("/")
    await daemon.until_site(held=1)
    told = await told_at(port)
    assert told["site_open{site=blog}"] == 0
    assert told["site_open{site=wiki}"] == 1
    assert told["held"] == told["site_held{site=blog}"] == 1
    assert told["site_requests_held_total{site=blog}"] == 1
    assert told["site_requests_released_total{site=blog}"] == 0

    await daemon.ask("migrate", site="blog", to="two")
    await daemon.ask("resume", site="blog")
    assert (await held).text == "two /"
    told = await told_at(port)
    assert told["site_requests_released_total{site=blog}"] == 1
    assert told["site_requests_total{site=blog}"] == 4
    assert told["site_placed{backend=two,site=blog}"] == 1
    assert "site_placed{backend=one,site=blog}" not in told
    assert told["held"] == 0

    assert (await answer(port, "/"))[0] == 404
    assert (await answer(port, method="POST"))[0] == 405
    assert await answer(port, method="HEAD") == (200, "")
    daemon.signal(signal.SIGTERM)
    assert await daemon.exits() == 0
    assert "Traceback" not in daemon.log


@twisted_test
async def test_a_reload_opens_moves_and_closes_it(stage: Stage) -> None:
    """One that cannot be had is an error, and everything stays as it is."""
    first, second = free_ports(2)
    one = stage.origin("one")
    daemon = await stage.serving(site("blog", one))

    async def reload(metrics: str, *sites: str) -> list[str]:
        daemon.configure(site("blog", one), *sites, node=f'metrics = "{metrics}"')
        keys: list[str] = (await daemon.ask("reload"))["keys"]
        return keys

    assert await reload(_endpoint(first)) == ["node.metrics"]
    assert "site_open{site=blog}" in await told_at(first)
    await reload(_endpoint(second))
    assert "site_open{site=blog}" in await told_at(second)
    with pytest.raises(ConnectionRefusedError):
        await text_of(first)

    with socket.create_server((HOST, first)), pytest.raises(Failed, match="in use"):
        await reload(_endpoint(first), site("wiki", one))
    assert "site_open{site=wiki}" not in await told_at(second)

    await reload("", site("wiki", one))
    with pytest.raises(ConnectionRefusedError):
        await text_of(second)


def _many(broken: bool = False) -> Iterator[Metric]:
    for begin in (0, 250, 500):
        piece = GaugeMetricFamily("awesomeproxy_held", "Held.", labels=["site"])
        for number in range(begin, begin + 250):
            piece.add_metric([f'#"{number}\n#'], number)
        yield piece
        if broken:
            raise ZeroDivisionError


@twisted_test
async def test_a_family_in_pieces_is_one_family() -> None:
    """It is named once, whatever is in its labels."""
    (port,) = free_ports(1)
    async with Listening(reactor, _many).at(_endpoint(port)) as _:
        text = await text_of(port)
    assert text.count("# TYPE") == text.count("# HELP") == 1
    assert sorted(parsed(text).values()) == list(range(750))


@twisted_test
async def test_a_page_that_cannot_be_written_looks_cut_off(
    logged_failures: LoggedFailures,
) -> None:
    """What there is of it must not pass for all that there is to tell."""
    (port,) = free_ports(1)
    async with Listening(reactor, lambda: _many(broken=True)).at(_endpoint(port)) as _:
        with pytest.raises(IncompleteRead):
            await text_of(port)
    assert len(logged_failures.flush(ZeroDivisionError)) == 1


@twisted_test
async def test_a_client_that_goes_away_ends_the_writing() -> None:
    """Nothing is read any more from the node for it."""
    (port,) = free_ports(1)
    pieces = 0
    ended = False

    def endless() -> Iterator[Metric]:
        nonlocal pieces, ended
        try:
            while True:
                pieces += 1
                yield GaugeMetricFamily(f"awesomeproxy_{pieces}", "One of many.", 1)
        finally:
            ended = True

    async with Listening(reactor, endless).at(_endpoint(port)) as _:
        client = socket.create_connection((HOST, port))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: metrics\r\n\r\n")
        await until(lambda: pieces > 2, "some pieces")
        client.close()
        await until(lambda: ended, "the end of the writing")


@twisted_test
async def test_connections_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is closed; once there is room, the page is told again."""
    monkeypatch.setattr(page, "CONNECTIONS", 2)
    (port,) = free_ports(1)
    async with Listening(reactor, _many).at(_endpoint(port)) as _:
        clients = [socket.create_connection((HOST, port)) for _ in range(2)]
        for client in clients:
            client.sendall(b"HEAD /metrics HTTP/1.1\r\nHost: metrics\r\n\r\n")
            assert await deferToThread(client.recv, 12) == b"HTTP/1.1 200"
        with pytest.raises(ConnectionError):
            await text_of(port)
        for client in clients:
            client.close()

        async def told() -> bool:
            try:
                return bool(await text_of(port))
            except ConnectionError:
                return False

        await until_async(told, "room")


def test_without_the_library_there_can_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is said before anything is started."""
    monkeypatch.setattr("awesomeproxy.consistency.find_spec", lambda name: None)
    with pytest.raises(config.ConfigError) as caught:
        config.parse('node.metrics = "tcp:9180"\nlisten = [{ endpoint = "tcp:80" }]', "a.toml")
    assert caught.value.problems == (
        "a.toml: node.metrics: is given, but the prometheus_client library is missing;"
        " pip install 'awesomeproxy[metrics]'",
    )
