"""A data plane's life: listening, changing, stopping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plane_stage import (
    END,
    GET,
    LISTEN,
    OK,
    Origin,
    always,
    answering,
    eventually,
    ok,
    one_request,
    post,
    reactor,
    stage,
    turns,
    twisted_test,
)
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError

from awesomeproxy.model import Backend, Desired, Listen, Mode, Placement, Site
from awesomeproxy.proxy.plane import Plane


def another(origin: Origin, **more: Any) -> Desired:
    """A second site."""
    backends = {"there": Backend("there", (origin.server,))}
    site = Site("shop", more.pop("hosts", ("shop.example",)), "there", backends, **more)
    return Desired(site, Placement("shop", "there"))


SHOP = GET.replace(b"blog", b"shop")


@twisted_test
async def test_sites_come_change_and_go_with_no_connection_dropped() -> None:
    async with stage(always(ok(b"blog")), always(ok(b"shop"))) as s:
        s.place(backend="only0")
        client = await s.connect(SHOP)
        assert (await client.answer()).status == 404
        s.plane.apply(another(s.origins[1]))
        client.write(SHOP)
        assert (await client.answer()).body == b"shop"
        s.plane.apply(another(s.origins[1], hosts=("new.example",)))
        client.write(SHOP + SHOP.replace(b"shop", b"new"))
        assert (await client.answer()).status == 404
        assert (await client.answer()).body == b"shop"
        s.plane.remove("shop")
        client.write(SHOP.replace(b"shop", b"new") + GET)
        assert (await client.answer()).status == 404
        assert (await client.answer()).body == b"blog"


@twisted_test
async def test_a_site_that_goes_lets_its_requests_finish() -> None:
    async with stage(None, None) as s:
        s.plane.apply(another(s.origins[1]))
        client = await s.connect(SHOP)
        server = await s.origins[1].accept()
        await one_request(server)
        live = s.plane.sites["shop"]
        s.plane.remove("shop")
        server.write(OK)
        assert (await client.answer()).status == 200
        await eventually(lambda: server.closed)
        assert not live.connections
        assert s.plane.observed("shop") is None


@twisted_test
async def test_a_site_that_comes_back_is_not_drained_before_its_former_self() -> None:
    async with stage(None, None) as s:
        desired = another(s.origins[1])
        s.plane.apply(desired)
        client = await s.connect(post(b"hello").replace(b"blog", b"shop")[:-1])
        server = await s.origins[1].accept()
        await server.until(END)
        former = s.plane.sites["shop"]
        for _ in range(2):
            s.plane.remove("shop")
            s.plane.apply(desired)
        live = s.plane.sites["shop"]
        s.plane.apply(replace(desired, placement=Placement("shop", "there", Mode.HOLDING, 2)))
        observed = s.plane.observed("shop")
        assert observed is not None
        assert not observed.drained
        assert (observed.in_flight, observed.connections) == (1, 1)
        client.write(b"o")
        await server.exactly(5)
        server.write(OK)
        assert (await client.answer()).status == 200
        await eventually(lambda: live.drained)
        observed = s.plane.observed("shop")
        assert observed is not None
        assert observed.drained
        await eventually(lambda: live.former is None and not former.connections)


@twisted_test
async def test_what_a_removed_site_has_in_flight_is_cut_with_the_one_that_comes_back() -> None:
    async with stage(None, None) as s:
        desired = another(s.origins[1])
        s.plane.apply(desired)
        client = await s.connect(SHOP)
        server = await s.origins[1].accept()
        s.plane.remove("shop")
        s.plane.apply(desired)
        assert s.plane.cut("shop") == 1
        assert (await client.answer()).status == 503
        await eventually(lambda: server.closed)


@twisted_test
async def test_holding_one_site_leaves_the_others_alone() -> None:
    async with stage(always(ok(b"blog")), always(ok(b"shop"))) as s:
        s.plane.apply(another(s.origins[1]))
        s.place(Mode.HOLDING)
        await s.connect(GET)
        await s.held()
        assert (await s.ask(SHOP)).body == b"shop"


@twisted_test
async def test_listeners_come_change_and_go_with_no_connection_dropped() -> None:
    async with stage(answering) as s:
        client = await s.connect(GET)
        await client.answer()
        (first,) = s.plane.listening
        other = Listen("tcp:0:interface=127.0.0.1:backlog=20")
        await s.plane.listen([LISTEN, other])
        assert len(s.plane.listening) == 2
        assert first in s.plane.listening
        await s.plane.listen([other])
        assert first not in s.plane.listening
        client.write(GET)
        assert (await client.answer()).status == 200
        assert (await s.ask()).status == 200


@twisted_test
async def test_a_listener_that_changes_is_not_closed() -> None:
    async with stage(answering) as s:
        (first,) = s.plane.listening
        await s.plane.listen([replace(LISTEN, max_headers=1)])
        assert s.plane.listening == [first]
        assert (await s.ask(GET[:-2] + b"A: 1\r\nB: 2\r\n\r\n")).status == 431


@twisted_test
async def test_an_address_that_cannot_be_had_changes_nothing() -> None:
    async with stage(answering) as s:
        (first,) = s.plane.listening
        taken = Listen(f"tcp:{s.origin.number}:interface=127.0.0.1")
        with pytest.raises(CannotListenError):
            await s.plane.listen([Listen("tcp:0:interface=127.0.0.1:backlog=9"), taken])
        assert s.plane.listening == [first]
        assert (await s.ask()).status == 200


@twisted_test
async def test_an_access_log_that_cannot_be_opened_is_an_error() -> None:
    with pytest.raises(OSError, match="No such file"):
        Plane(reactor, access_log="/no/such/directory/log")


# Stopping


@twisted_test
async def test_stopping_lets_requests_finish_and_takes_no_new_ones() -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        idle = await s.connect()
        await eventually(lambda: len(s.plane.clients) == 2)
        stopped = Deferred.fromCoroutine(s.plane.stop(30))
        assert await idle.rest() == b""
        assert not s.plane.listening
        assert not stopped.called
        server.write(OK)
        answer = await client.answer()
        assert (answer.status, answer["connection"]) == (200, "close")
        await client.rest()
        assert not client.reset
        await stopped


@twisted_test
async def test_stopping_answers_what_is_held() -> None:
    async with stage() as s:
        s.place(Mode.HOLDING)
        client = await s.connect(GET)
        await s.held()
        stopped = Deferred.fromCoroutine(s.plane.stop(30))
        answer = await client.answer()
        assert (answer.status, answer["retry-after"], answer["connection"]) == (503, "2", "close")
        await client.rest()
        await stopped


@twisted_test
async def test_stopping_waits_for_no_connection_that_was_promised_more() -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await client.until(END)
        stopped = Deferred.fromCoroutine(s.plane.stop(30))
        server.write(b"other!")
        assert await client.rest() == b"halfother!"
        assert not client.reset
        await stopped


@twisted_test
async def test_stopping_answers_what_has_arrived() -> None:
    async with stage(answering) as s:
        client = await s.connect(GET)
        await client.answer()
        (there,) = s.plane.clients
        there.transport.pauseProducing()
        client.write(GET)
        await turns(10)
        stopped = Deferred.fromCoroutine(s.plane.stop(30))
        there.transport.resumeProducing()
        assert (await client.answer())["connection"] == "close"
        await client.rest()
        await stopped


@twisted_test
async def test_stopping_cuts_what_does_not_end() -> None:
    async with stage() as s:
        client = await s.connect(post(b"hello"))
        server = await s.origin.accept()
        await one_request(server)
        stopped = Deferred.fromCoroutine(s.plane.stop(5))
        await s.pass_time(4)
        assert not stopped.called
        await s.pass_time(2)
        await client.rest()
        assert client.reset
        await stopped
        await eventually(lambda: server.closed)


@twisted_test
async def test_stopping_ends_with_clients_who_take_nothing() -> None:
    async with stage(always(ok(b"x" * 20_000_000))) as s:
        client = await s.connect()
        client.stop_reading()
        client.write(GET)
        await eventually(lambda: any(there.transport.unsent for there in s.plane.clients))
        stopped = Deferred.fromCoroutine(s.plane.stop(5))
        await s.pass_time(6)
        await stopped
