"""The gate under traffic: after a hold not a byte passes, and after a release all of it does."""

from __future__ import annotations

import socket
import time
from ipaddress import ip_network

import pytest
from plane_stage import (
    END,
    GET,
    OK,
    Stage,
    Wire,
    always,
    answering,
    eventually,
    fields_of,
    ok,
    one_request,
    post,
    stage,
    turns,
    twisted_test,
)
from twisted.internet.defer import Deferred, gatherResults

from awesomeproxy.model import Bypass, Drain, HoldLimits, Mode, Ramp


async def drained(s: Stage) -> None:
    """Hold the site, and wait until nothing of it is left."""
    s.place(Mode.HOLDING)
    await s.drained()


def numbered(number: int) -> bytes:
    return b"GET /%d HTTP/1.1\r\nHost: blog.example\r\n\r\n" % number


# The barrier


@twisted_test
async def test_not_a_byte_passes_after_a_drained_hold_and_nothing_fails() -> None:
    async def asks_again_and_again(client: Wire, until: list[bool]) -> int:
        count = 0
        while not until:
            client.write(GET if count % 3 else post(b"hello"))
            assert (await client.answer()).status == 200
            count += 1
        return count

    async with stage(answering) as s:
        over: list[bool] = []
        running = [
            Deferred.fromCoroutine(asks_again_and_again(await s.connect(), over)) for _ in range(20)
        ]
        for _ in range(20):
            await turns(10)
            s.place(Mode.HOLDING)
            await s.drained()
            before = len(s.origin.received)
            await s.held(20)
            await turns(10)
            assert len(s.origin.received) == before
            assert s.live.drained
            s.place()
        over.append(True)
        counts = await gatherResults(running)
        assert all(counts)
        assert (s.counters.held, s.counters.released) == (400, 400)
        assert (s.counters.failed, s.counters.ambiguous, s.counters.refused) == (0, 0, 0)


@twisted_test
async def test_a_request_in_flight_keeps_a_hold_from_being_drained() -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        s.place(Mode.HOLDING)
        assert s.live.observed().state == "draining"
        server.write(OK)
        assert (await client.answer()).status == 200
        await s.drained()
        assert s.live.observed().state == "holding"
        await eventually(lambda: server.closed)


@twisted_test
async def test_an_idle_connection_is_closed_by_a_hold() -> None:
    async with stage(answering) as s:
        await s.ask()
        assert len(s.live.connections) == 1
        await drained(s)
        await eventually(lambda: s.origin.wires[0].closed)


@twisted_test
async def test_changes_are_announced() -> None:
    told: list[str] = []
    async with stage(plane={"on_change": told.append}) as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        told.clear()
        s.place(Mode.HOLDING)
        assert told == ["blog"]
        server.write(OK)
        await client.answer()
        await s.drained()
        assert told == ["blog", "blog"]


# Those who wait


@twisted_test
async def test_those_held_are_released_in_the_order_of_arrival() -> None:
    async with stage(ramp=Ramp(start=1, double_every=1000.0)) as s:
        await drained(s)
        for number in range(8):
            await s.connect(numbered(number))
            await s.held(number + 1)
        s.place()
        for number in range(8):
            server = await s.origin.accept()
            assert (await server.until(END)).startswith(b"GET /%d " % number)
            server.write(ok(b"", b"Connection: close"))


@twisted_test
async def test_a_release_goes_along_its_ramp() -> None:
    async with stage(ramp=Ramp(start=2, double_every=1000.0)) as s:
        await drained(s)
        for number in range(10):
            await s.connect(GET)
            await s.held(number + 1)
        s.place()
        for in_flight in (2, 3, 4, 5, 6):  # one more with each answer
            await eventually(lambda: s.gate.in_flight == in_flight)  # noqa: B023
            server = await s.origin.accept()
            await one_request(server)
            server.write(ok(b"", b"Connection: close"))


@twisted_test
async def test_the_answer_to_a_held_request_says_how_long_it_was_held() -> None:
    async with stage(answering) as s:
        assert (await s.ask())["x-awesomeproxy-held"] is None
        await drained(s)
        client = await s.connect(GET)
        await s.held()
        await s.pass_time(2)
        s.place()
        assert (await client.answer())["x-awesomeproxy-held"] == "2.000"
        assert s.live.observed().longest_wait == 2


@twisted_test
async def test_the_body_of_a_held_request_stays_in_the_kernel() -> None:
    body = b"x" * 5_000_000
    async with stage() as s:
        await drained(s)
        client = await s.connect(post(body))
        await s.held()
        await turns(50)
        there = s.client
        assert there.exchange is not None
        assert there.exchange.request.received <= 2 * 65536
        s.place()
        server = await s.origin.accept()
        assert (await one_request(server))[1] == body
        server.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_the_100_is_withheld_with_the_request() -> None:
    async with stage() as s:
        await drained(s)
        head, body = post(b"hello", b"Expect: 100-continue").split(END)
        client = await s.connect(head + END)
        await s.held()
        await s.pass_time(30)
        assert client.all == b""
        s.place()
        server = await s.origin.accept()
        assert fields_of(await server.until(END))[b"expect"] == b"100-continue"
        server.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert (await client.answer()).status == 100
        client.write(body)
        await server.until(b"hello")
        server.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_who_is_held_too_long_gets_503_and_is_not_forwarded() -> None:
    async with stage(hold=HoldLimits(max_time=10.0)) as s:
        await drained(s)
        client = await s.connect(GET)
        await s.held()
        await s.pass_time(11)
        answer = await client.answer()
        assert (answer.status, answer["retry-after"]) == (503, "2")
        assert b"paused" in answer.body
        s.place()
        await turns(10)
        assert not s.origin.received
        assert s.counters.refused == 1


@pytest.mark.parametrize("limits", [HoldLimits(max_requests=2), HoldLimits(max_bytes=2600)])
@twisted_test
async def test_who_finds_no_room_to_wait_gets_503_at_once(limits: HoldLimits) -> None:
    async with stage(hold=limits) as s:
        await drained(s)
        for number in range(2):
            await s.connect(GET)
            await s.held(number + 1)
        answer = await s.ask()
        assert (answer.status, answer["retry-after"]) == (503, "2")
        assert s.gate.waiting == 2


@twisted_test
async def test_a_process_has_bounds_of_its_own() -> None:
    async with stage(plane={"max_held": 1}) as s:
        await drained(s)
        await s.connect(GET)
        await s.held()
        assert (await s.ask()).status == 503


@twisted_test
async def test_pipelined_requests_are_held_one_by_one_and_in_order() -> None:
    async with stage() as s:
        await drained(s)
        client = await s.connect(b"".join(numbered(n) for n in range(50)))
        await s.held()
        s.place()
        server = await s.origin.accept()
        for number in range(50):
            assert (await server.until(END)).startswith(b"GET /%d " % number)
            server.write(ok(b"%d" % number))
            assert (await client.answer()).body == b"%d" % number


@twisted_test
async def test_the_bodies_of_pipelined_requests_count_towards_what_is_kept() -> None:
    async with stage() as s:
        s.place(Mode.HOLDING)
        client = await s.connect(GET + post(b"x" * 5000) + post(b"y" * 5000))
        await s.held()
        assert s.live.observed().held_bytes > 10_000
        client.abort()
        await s.held(0)


@twisted_test
async def test_what_is_kept_to_be_sent_again_counts_while_it_is_held() -> None:
    async with stage() as s:
        client = await s.connect(post(b"x" * 5000, method=b"PUT"))
        server = await s.origin.accept()
        await one_request(server)
        s.place(Mode.HOLDING)
        s.live.cut()
        await s.held()
        assert s.live.observed().held_bytes > 5000
        client.abort()
        await s.held(0)


@twisted_test
async def test_pipelined_requests_count_towards_what_is_kept() -> None:
    async with stage() as s:
        await drained(s)
        await s.connect(GET * 1000)
        await s.held()
        assert s.live.observed().held_bytes > 1000 * len(GET)


# Those who leave


@pytest.mark.parametrize(
    "request_",
    [GET, post(b"hello"), post(b"x" * 150_000), GET * 5, post(b"hello")[:-1]],
    ids=["GET", "POST", "unread body", "pipelined", "half a body"],
)
@pytest.mark.parametrize("rudely", [False, True], ids=["closed", "reset"])
@twisted_test
async def test_who_leaves_while_held_is_dropped_from_the_line(
    request_: bytes, rudely: bool
) -> None:
    async with stage() as s:
        await drained(s)
        client = await s.connect(request_)
        await s.held()
        stays = await s.connect(GET)
        await s.held(2)
        (client.abort if rudely else client.close)()
        await eventually(lambda: client.closed)
        await s.pass_time(2)
        await s.held(1)
        assert s.counters.departed == 1
        s.place()
        server = await s.origin.accept()
        await one_request(server)
        server.write(OK)
        assert (await stays.answer()).status == 200
        assert s.origin.received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("request_", [post(b"x" * 3_000_000), GET * 5], ids=["body", "pipelined"])
@twisted_test
async def test_who_has_just_left_is_not_forwarded(request_: bytes) -> None:
    async with stage() as s:
        await drained(s)
        client = await s.connect(request_)
        await s.held()
        await turns(5)
        client.abort()
        await eventually(lambda: client.closed)
        s.place()  # before anybody has looked
        await s.quiet()
        await turns(10)
        assert not s.origin.received
        assert not s.plane.clients
        assert (s.counters.released, s.counters.departed) == (0, 1)


@twisted_test
async def test_who_leaves_at_the_very_moment_of_the_release_is_not_forwarded() -> None:
    async with stage() as s:
        await drained(s)
        client = await s.connect(GET)
        await s.held()
        client.transport.socket.shutdown(socket.SHUT_RDWR)
        s.place()  # and the reactor has not turned since
        await s.quiet()
        await turns(10)
        assert not s.origin.received
        assert s.counters.departed == 1


@twisted_test
async def test_who_leaves_behind_an_answered_request_is_dropped() -> None:
    async with stage() as s:
        client = await s.connect(numbered(1) + numbered(2) + numbered(3))
        server = await s.origin.accept()
        await one_request(server)
        s.place(Mode.HOLDING)
        server.write(OK)
        await client.answer()
        await s.held()
        client.close()
        await turns(5)
        await s.pass_time(2)
        assert s.gate.waiting == 0
        assert s.counters.departed == 1
        assert not s.plane.clients


# Moving


@twisted_test
async def test_who_is_held_goes_where_the_site_is_when_it_is_released() -> None:
    async with stage(always(ok(b"old")), always(ok(b"new"))) as s:
        s.place(backend="only0")
        assert (await s.ask()).body == b"old"
        s.place(Mode.HOLDING)
        await s.drained()
        clients = [await s.connect(GET) for _ in range(5)]
        await s.held(5)
        s.place(Mode.HOLDING, "only1")
        await turns(10)
        assert s.gate.waiting == 5
        assert not s.origins[1].received
        s.place()
        for client in clients:
            assert (await client.answer()).body == b"new"


@twisted_test
async def test_an_older_generation_changes_nothing() -> None:
    async with stage(answering) as s:
        await drained(s)
        s.generation -= 2
        s.place()
        assert s.gate.holding
        s.generation += 2


@twisted_test
async def test_a_move_and_a_hold_at_once_lets_nobody_pass() -> None:
    async with stage(None, answering) as s:
        s.place(backend="only0")
        await s.origin.refuse()
        client = await s.connect(GET)
        await s.held()
        s.place(Mode.HOLDING, "only1")  # those who wait for a server are held from here on
        await turns(10)
        assert s.gate.waiting == 1
        assert not s.origins[1].received
        s.place()
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_place_that_is_not_defined_holds() -> None:
    async with stage(answering) as s:
        s.place(backend="nowhere")
        client = await s.connect(GET)
        await s.held()
        assert "nowhere" in s.live.observed().trouble
        s.place(backend="here")
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_hold_that_outlives_its_deadline_refuses() -> None:
    async with stage(answering) as s:
        s.place(Mode.HOLDING, expires=time.time() + 5)
        client = await s.connect(GET)
        await s.held()
        await s.pass_time(6)
        assert (await client.answer()).status == 503
        assert (await s.ask()).status == 503
        assert s.live.observed().state == "refusing"
        s.place()
        assert (await s.ask()).status == 200
        assert s.origin.received.count(b"GET") == 1


@twisted_test
async def test_a_hold_while_a_server_is_waited_for_ends_with_its_release() -> None:
    async with stage(answering) as s:
        await s.origin.refuse()
        client = await s.connect(GET)
        await s.held()
        s.place(Mode.HOLDING)
        s.origin.listen()
        await s.pass_time(5)
        assert not s.origin.wires[0:]  # nobody has knocked
        s.place()
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_site_that_is_removed_refuses_what_it_holds() -> None:
    async with stage(answering) as s:
        await drained(s)
        client = await s.connect(GET)
        await s.held()
        s.plane.remove("blog")
        assert (await client.answer()).status == 503
        client.write(GET)
        assert (await client.answer()).status == 404


# The operator's way by


@twisted_test
async def test_the_operator_passes_with_the_secret_and_servers_do_not_hear_it() -> None:
    bypass = Bypass(header="x-preview", secret="open sesame")
    async with stage(answering, bypass=bypass) as s:
        await drained(s)
        answer = await s.ask(GET[:-2] + b"X-Preview: open sesame\r\n\r\n")
        assert answer.status == 200
        assert b"sesame" not in s.origin.received
        await s.drained()
        for other in (b"X-Preview: open\r\n\r\n", b"X-Preview:\r\n\r\n", b"\r\n"):
            await s.connect(GET[:-2] + other)
        await s.held(3)
        s.place()
        for client in s.clients[-3:]:
            assert (await client.answer()).status == 200
        await s.ask(GET[:-2] + b"X-Preview: open sesame\r\n\r\n")
        assert b"preview" not in s.origin.received.lower()


@twisted_test
async def test_a_header_without_a_secret_lets_nobody_by() -> None:
    async with stage(bypass=Bypass(header="x-preview", secret="")) as s:
        await drained(s)
        await s.connect(GET[:-2] + b"X-Preview: \r\n\r\n")
        await s.held()


@pytest.mark.parametrize(("network", "passes"), [("127.0.0.0/8", True), ("10.0.0.0/8", False)])
@twisted_test
async def test_the_operators_network_passes(network: str, passes: bool) -> None:
    async with stage(answering, bypass=Bypass(networks=(ip_network(network),))) as s:
        await drained(s)
        client = await s.connect(GET)
        if passes:
            assert (await client.answer()).status == 200
            await s.drained()
        else:
            await s.held()


@twisted_test
async def test_the_operator_is_told_at_once_that_a_server_cannot_be_reached() -> None:
    async with stage(bypass=Bypass(header="x-preview", secret="open sesame")) as s:
        await drained(s)
        await s.origin.refuse()
        answer = await s.ask(GET[:-2] + b"X-Preview: open sesame\r\n\r\n")
        assert answer.status == 502
        assert s.live.observed().state == "holding"


# By force


@twisted_test
async def test_a_stream_counts_until_it_is_cut() -> None:
    async with stage(drain=Drain(time=1.0)) as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await client.until(b"data: 1\n\n")
        s.place(Mode.HOLDING)
        await s.pass_time(30)
        assert s.live.observed().in_flight == 1
        assert s.plane.cut("blog") == 1
        await s.drained()
        await client.rest()
        assert client.reset


@twisted_test
async def test_what_is_cut_before_its_answer_is_told_so_or_waits() -> None:
    async with stage() as s:
        get, put = await s.connect(GET), await s.connect(post(b"hello"))
        for _ in range(2):
            await one_request(await s.origin.accept())
        s.place(Mode.HOLDING)
        assert s.plane.cut("blog") == 2
        await s.drained()
        assert (await put.answer()).status == 502
        assert s.counters.ambiguous == 1
        await s.held()
        s.place()
        server = await s.origin.accept()
        await one_request(server)
        server.write(OK)
        assert (await get.answer()).status == 200
