"""Connections to servers: which one, how many times, and what if it fails."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plane_stage import (
    END,
    GET,
    OK,
    Origin,
    Stage,
    Wire,
    always,
    answering,
    eventually,
    fields_of,
    ok,
    one_request,
    post,
    reactor,
    stage,
    turns,
    twisted_test,
)

from awesomeproxy.model import Mode, Ramp, Retry, Server

NAMES = [always(ok(b"%d" % number)) for number in range(3)]


async def who(s: Stage, times: int) -> list[int]:
    """Which servers answer so many requests, one after the other."""
    return [int((await s.ask()).body) for _ in range(times)]


async def closing(wire: Wire) -> None:
    """A server that takes a request and crashes."""
    await wire.until(END)
    wire.close()


async def crashing(wire: Wire) -> None:
    """A server that crashes at once."""
    wire.close()


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """The port of a server that does not even take connections."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # what the kernel takes on its own
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
        yield server.getsockname()[1]


# Which server


@twisted_test
async def test_servers_take_turns() -> None:
    async with stage(*NAMES) as s:
        assert sorted(await who(s, 6)) == [0, 0, 1, 1, 2, 2]


@twisted_test
async def test_the_one_with_the_fewest_connections_is_next() -> None:
    async with stage(None, None, backend={"balance": "least_connections"}) as s:
        await s.connect(GET)
        await eventually(lambda: any(origin.wires for origin in s.origins))
        busy = next(origin for origin in s.origins if origin.wires)
        other = next(origin for origin in s.origins if origin is not busy)
        for _ in range(3):
            client = await s.connect(GET)
            server = await other.accept()
            await one_request(server)
            server.write(ok(b"", b"Connection: close"))
            await client.answer()
            client.abort()
            await eventually(lambda: server.closed)  # noqa: B023


@twisted_test
async def test_a_request_that_one_server_refuses_goes_to_another() -> None:
    async with stage(*NAMES) as s:
        await s.origins[1].refuse()
        assert set(await who(s, 6)) == {0, 2}
        assert (s.counters.held, s.counters.failed) == (0, 0)


@twisted_test
async def test_a_server_that_failed_too_often_is_passed_over_for_a_while() -> None:
    backend = {"max_fails": 2, "fail_timeout": 10.0}
    async with stage(*NAMES, backend=backend) as s:
        await s.origins[1].refuse()
        await who(s, 9)
        s.origins[1].listen()
        assert set(await who(s, 6)) == {0, 2}
        assert s.live.observed().servers["here"][str(s.origins[1].server)].startswith("down: ")
        await s.pass_time(11)
        assert set(await who(s, 6)) == {0, 1, 2}


@twisted_test
async def test_the_only_server_is_never_passed_over() -> None:
    async with stage(closing, backend={"max_fails": 1}, retry=Retry(attempts=1)) as s:
        for _ in range(3):
            assert (await s.ask()).status == 502
        assert s.counters.held == 0


# No server


@twisted_test
async def test_a_restarting_server_costs_a_wait_and_no_request() -> None:
    async with stage(answering) as s:
        assert (await s.ask()).status == 200
        await s.origin.refuse()
        clients = [await s.connect(GET) for _ in range(5)]
        await s.held(5)
        assert s.live.observed().state == "unreachable"
        s.origin.listen()
        await s.pass_time(1)
        for client in clients:
            answer = await client.answer()
            assert answer.status == 200
            assert float(answer["x-awesomeproxy-held"] or 0) > 0
        assert (s.counters.held, s.counters.released, s.counters.failed) == (5, 5, 0)
        assert s.live.observed().state == "open"


@twisted_test
async def test_those_who_wait_for_a_server_are_released_in_the_order_of_arrival() -> None:
    async with stage(ramp=Ramp(start=1, double_every=1000.0)) as s:
        await s.origin.refuse()
        for number in range(6):
            client = await s.connect()
            client.write(b"GET /%d HTTP/1.1\r\nHost: blog.example\r\n\r\n" % number)
            await s.held(number + 1)
        s.origin.listen()
        await s.pass_time(1)
        order = []
        for _ in range(6):
            server = await s.origin.accept()
            order.append((await server.until(END))[5:6])
            server.write(ok(b"", b"Connection: close"))
        assert order == [b"%d" % number for number in range(6)]


@twisted_test
async def test_who_waits_for_a_server_longer_than_the_budget_gets_503() -> None:
    async with stage(retry=Retry(budget=5.0)) as s:
        await s.origin.refuse()
        client = await s.connect(GET)
        await s.held()
        await s.pass_time(6)
        answer = await client.answer()
        assert (answer.status, answer["retry-after"]) == (503, "2")
        assert b"cannot be reached" in answer.body


@twisted_test
async def test_all_servers_that_refuse_are_tried_before_a_request_waits() -> None:
    async with stage(*NAMES) as s:
        for origin in s.origins:
            await origin.refuse()
        await s.connect(GET)
        await s.held()
        trouble = s.live.observed().trouble
        assert "refused" in trouble
        s.origins[2].listen()
        await s.pass_time(1)
        assert (await s.clients[0].answer()).body == b"2"


@twisted_test
async def test_a_body_waits_with_its_request() -> None:
    async with stage() as s:
        await s.origin.refuse()
        client = await s.connect(post(b"hello"))
        await s.held()
        s.origin.listen()
        await s.pass_time(1)
        server = await s.origin.accept()
        assert (await one_request(server))[1] == b"hello"
        server.write(OK)
        assert (await client.answer()).status == 200
        assert not s.counters.ambiguous


@twisted_test
async def test_a_connection_that_cannot_be_opened_in_time_is_a_refusal() -> None:
    with deaf() as number:
        servers = (Server("http", "127.0.0.1", number),)
        async with stage(None, answering, backend={"servers": servers}) as s:
            await s.connect(GET)
            await eventually(lambda: s.live.connections)
            await s.pass_time(s.site.timeouts.connect + 1)
            await s.held()
            s.place(backend="only1")
            assert (await s.clients[0].answer()).status == 200


# The race of an idle connection


async def reused(s: Stage, request: bytes) -> tuple[Wire, Wire]:
    """A client whose request is on its way on a connection that was used before."""
    client = await s.connect(GET)
    server = await s.origin.accept()
    await one_request(server)
    server.write(OK)
    await client.answer()
    client.write(request)
    await one_request(server)
    return client, server


@pytest.mark.parametrize("rudely", [False, True])
@twisted_test
async def test_a_get_on_a_connection_that_dies_is_sent_again(rudely: bool) -> None:
    async with stage() as s:
        client, server = await reused(s, GET)
        (server.abort if rudely else server.close)()
        fresh = await s.origin.accept()
        await one_request(fresh)
        fresh.write(OK)
        assert (await client.answer()).status == 200
        assert (s.counters.retried, s.counters.failed) == (1, 0)


@twisted_test
async def test_a_get_finds_out_that_an_idle_connection_was_closed() -> None:
    async with stage(answering) as s:
        client = await s.connect(GET)
        await client.answer()
        s.origin.wires[0].close()
        client.write(GET)
        assert (await client.answer()).status == 200
        assert not s.counters.failed


@twisted_test
async def test_a_put_is_sent_again_with_its_body() -> None:
    async with stage() as s:
        client, server = await reused(s, post(b"hello", method=b"PUT"))
        server.close()
        fresh = await s.origin.accept()
        assert (await one_request(fresh))[1] == b"hello"
        fresh.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_put_whose_body_is_still_coming_is_sent_again_whole() -> None:
    async with stage() as s:
        whole = post(b"hello world", method=b"PUT")
        client = await s.connect(whole[:-6])
        server = await s.origin.accept()
        await server.until(b"hello")
        server.close()
        fresh = await s.origin.accept()
        await fresh.until(b"hello")
        client.write(whole[-6:])
        await fresh.until(b" world")
        fresh.write(OK)
        assert (await client.answer()).status == 200
        assert s.counters.retried == 1


@twisted_test
async def test_a_put_with_an_empty_body_in_chunks_is_sent_again() -> None:
    empty = b"PUT / HTTP/1.1\r\nHost: blog.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    async with stage() as s:
        client = await s.connect(empty)
        server = await s.origin.accept()
        await one_request(server)
        server.close()
        fresh = await s.origin.accept()
        await one_request(fresh)
        fresh.write(OK)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    "request_",
    [
        post(b"x" * 100_000, method=b"PUT"),
        b"PUT / HTTP/1.1\r\nHost: blog.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["long", "chunked"],
)
@twisted_test
async def test_a_put_that_could_not_be_sent_again_travels_on_a_connection_of_its_own(
    request_: bytes,
) -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(OK)
        await client.answer()
        client.write(request_)
        other = await s.origin.accept()
        await one_request(other)
        other.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_put_whose_body_is_too_long_to_keep_is_not_sent_again() -> None:
    async with stage(closing) as s:
        client = await s.connect(post(b"x" * 1_000_000, method=b"PUT"))
        assert (await client.answer()).status == 502
        assert (s.counters.failed, s.counters.retried) == (1, 0)


@twisted_test
async def test_a_post_is_never_sent_twice() -> None:
    async with stage(closing) as s:
        answer = await s.ask(post(b"hello"))
        assert answer.status == 502
        assert b"may have been carried out" in answer.body
        assert s.origin.received.count(b"POST") == 1
        assert (s.counters.ambiguous, s.counters.retried) == (1, 0)


@twisted_test
async def test_a_post_travels_on_a_connection_of_its_own() -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(OK)
        await client.answer()
        client.write(post(b"hello"))
        other = await s.origin.accept()
        await one_request(other)
        other.write(OK)
        assert (await client.answer()).status == 200
        assert other is not server
        client.write(GET)  # and the idle one is still there for others
        await eventually(lambda: server.all.count(b"GET") + other.all.count(b"GET") == 2)


@pytest.mark.parametrize("age", [0.5, 5.0])
@twisted_test
async def test_a_post_may_be_let_onto_connections_that_were_used_just_now(age: float) -> None:
    async with stage(answering, reuse_unsafe=1.0, backend={"idle_timeout": 60.0}) as s:
        client = await s.connect(GET)
        await client.answer()
        await s.pass_time(age)
        client.write(post(b"hello"))
        assert (await client.answer()).status == 200
        assert len(s.origin.wires) == (1 if age < 1 else 2)
        assert not any(wire.closed for wire in s.origin.wires)


@twisted_test
async def test_a_post_is_not_let_onto_a_connection_where_something_waits() -> None:
    async with stage(reuse_unsafe=100.0) as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(OK)
        await client.answer()
        (idle,) = s.live.connections
        idle.transport.pauseProducing()  # nobody has looked at it yet
        server.write(ok(b"evil"))
        await turns(10)
        client.write(post(b"hello"))
        other = await s.origin.accept()
        await one_request(other)
        other.write(OK)
        assert (await client.answer()).body == b"ok"


@pytest.mark.parametrize("script", [closing, crashing])
@twisted_test
async def test_a_server_that_crashes_again_and_again_ends_in_502(script: Any) -> None:
    async with stage(script, retry=Retry(attempts=3)) as s:
        assert (await s.ask()).status == 502
        assert s.counters.retried == 2
        assert len(s.origin.wires) <= 3


@twisted_test
async def test_a_server_that_crashes_again_and_again_does_not_get_a_post_twice() -> None:
    async with stage(crashing) as s:
        assert (await s.ask(post(b"hello"))).status == 502
        assert len(s.origin.wires) == 1
        assert s.counters.ambiguous == 1


# Idle connections


@twisted_test
async def test_an_idle_connection_is_closed_in_time() -> None:
    async with stage(answering, backend={"idle_timeout": 4.0}) as s:
        await s.ask()
        await s.pass_time(3)
        assert len(s.live.connections) == 1
        await s.pass_time(2)
        assert not s.live.connections


@pytest.mark.parametrize(("announced", "kept"), [(0, 0), (1, 0), (3, 2), (100, 4)])
@twisted_test
async def test_what_the_server_says_of_its_patience_is_honoured(announced: int, kept: int) -> None:
    response = ok(b"", b"Keep-Alive: timeout=%d" % announced)
    async with stage(always(response), backend={"idle_timeout": 4.0}) as s:
        await s.ask()
        await turns()
        assert len(s.live.connections) == bool(kept)
        if kept:
            await s.pass_time(kept - 0.5)
            assert len(s.live.connections) == 1
            await s.pass_time(1)
        assert not s.live.connections


@twisted_test
async def test_no_more_idle_connections_are_kept_than_may_be() -> None:
    async with stage(None, backend={"max_idle": 2}) as s:
        for _ in range(5):
            await s.connect(GET)
        servers = [await s.origin.accept() for _ in range(5)]
        for server in servers:
            await one_request(server)
            server.write(OK)
        await s.quiet()
        await eventually(lambda: len(s.live.connections) == 2)


@twisted_test
async def test_a_server_that_is_silent_gets_504_in_time() -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        await s.pass_time(s.site.timeouts.response + 1)
        assert (await client.answer()).status == 504
        await eventually(lambda: server.closed)
        assert not client.closed
        assert s.counters.failed == 1


@twisted_test
async def test_a_definition_that_changes_a_server_closes_its_connections() -> None:
    async with stage(always(ok(b"old")), always(ok(b"new"))) as s:
        s.place(backend="only0")
        client = await s.connect(GET)
        assert (await client.answer()).body == b"old"
        moved = {**s.site.backends, "only0": s.site.backends["only1"]}
        s.define(backends=moved)
        await eventually(lambda: s.origin.wires[0].closed)
        client.write(GET)
        assert (await client.answer()).body == b"new"


# Kinds of servers


@twisted_test
async def test_a_server_may_listen_on_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    origin = Origin(answering)
    port = reactor.listenUNIX(path, origin)
    server = Server("unix", path=path)
    async with stage(backend={"servers": (server,)}) as s:
        for _ in range(3):
            assert (await s.ask()).status == 200
        assert len(origin.wires) == 1
        await port.stopListening()
        origin.wires[0].abort()
        await turns()
        client = await s.connect(GET)
        await s.held()
        port = reactor.listenUNIX(path, origin)
        await s.pass_time(1)
        assert (await client.answer()).status == 200
    await port.stopListening()
    await origin.refuse()
    assert not os.path.exists(path)


@twisted_test
async def test_a_server_may_have_a_name() -> None:
    origin = Origin(answering).listen()
    server = Server("http", "localhost", origin.number)
    async with stage(backend={"servers": (server,)}) as s:
        client = await s.connect(GET)
        await s.resolving(lambda: client.all)
        assert (await client.answer()).status == 200
    await origin.refuse()


@twisted_test
async def test_a_server_whose_name_nobody_knows_is_unreachable() -> None:
    server = Server("http", "nobody.invalid", 80)
    async with stage(answering, backend={"servers": (server,)}) as s:
        client = await s.connect(GET)
        await s.held()
        s.place(backend="only0")
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@twisted_test
async def test_a_client_that_leaves_while_a_connection_is_opened_ends_that(host: str) -> None:
    with deaf() as number:
        servers = (Server("http", host, number),)
        async with stage(backend={"servers": servers}) as s:
            client = await s.connect(GET)
            await eventually(lambda: s.live.connections)
            client.abort()
            await s.quiet()
            await eventually(lambda: not s.live.connections)


@twisted_test
async def test_the_server_hears_which_version_it_is_spoken_to_in() -> None:
    async with stage() as s:
        await s.connect(b"GET / HTTP/1.0\r\nHost: blog.example\r\n\r\n")
        server = await s.origin.accept()
        head = await server.until(END)
        assert head.startswith(b"GET / HTTP/1.1\r\n")
        assert b"connection" not in fields_of(head)


@twisted_test
async def test_a_hold_keeps_a_retry_that_was_in_flight_in_flight() -> None:
    async with stage() as s:
        client, server = await reused(s, GET)
        s.place(Mode.HOLDING)
        server.close()
        fresh = await s.origin.accept()
        await one_request(fresh)
        assert s.live.observed().state == "draining"
        fresh.write(OK)
        assert (await client.answer()).status == 200
        await s.drained()


@twisted_test
async def test_a_drain_does_not_wait_for_connections_that_are_being_opened() -> None:
    """What was sent to nobody waits at the gate, and goes to where the site is placed then."""
    with deaf() as port:
        server = Server("http", "127.0.0.1", port)
        async with stage(answering, backend={"servers": (server,)}) as s:
            client = await s.connect(GET)
            other = await s.connect(post(b"hello"))
            await eventually(lambda: len(s.live.connections) == 2)
            s.place(Mode.HOLDING)
            assert s.live.drained
            assert s.gate.waiting == 2
            s.place(backend="only0")
            assert (await client.answer()).status == 200
            assert (await other.answer()).status == 200
            assert s.counters.retried == 0
