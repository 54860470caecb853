"""Connections whose protocol was switched, to one of which nothing is known."""

from __future__ import annotations

from typing import Any

import pytest
from plane_stage import (
    END,
    GET,
    Stage,
    Wire,
    always,
    answering,
    eventually,
    fields_of,
    one_request,
    stage,
    turns,
    twisted_test,
)

from awesomeproxy.model import Drain, Mode

ASK = GET[:-2] + b"Connection: keep-alive, Upgrade\r\nUpgrade: Chat\r\nX-X: 1\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: chat\r\nX-Y: 2\r\n\r\n"


async def tunnel(s: Stage) -> tuple[Wire, Wire]:
    """A client and a server with a tunnel between them."""
    client = await s.connect(ASK)
    server = await s.origin.accept()
    await one_request(server)
    server.write(SWITCH)
    await client.answer()
    return client, server


@twisted_test
async def test_an_upgrade_is_asked_for_and_granted() -> None:
    async with stage() as s:
        client = await s.connect(ASK)
        server = await s.origin.accept()
        fields = fields_of(await server.until(END))
        assert (fields[b"connection"], fields[b"upgrade"]) == (b"Upgrade", b"Chat")
        assert fields[b"x-x"] == b"1"
        server.write(SWITCH)
        answer = await client.answer()
        assert (answer.status, answer["upgrade"], answer["x-y"]) == (101, "chat", "2")
        assert answer["connection"] == "Upgrade"


@twisted_test
async def test_what_was_said_early_is_not_lost() -> None:
    async with stage() as s:
        client = await s.connect(ASK + b"early")
        server = await s.origin.accept()
        await one_request(server)
        client.write(b" bird")
        await turns(5)
        assert server.buffer == b""
        server.write(SWITCH + b"at once")
        await client.answer()
        assert await client.exactly(7) == b"at once"
        assert await server.exactly(10) == b"early bird"


@twisted_test
async def test_bytes_pass_both_ways_whatever_they_are() -> None:
    async with stage() as s:
        client, server = await tunnel(s)
        for data in (b"\0\xff", b"GET / HTTP/1.1\r\n\r\n", b"x" * 3_000_000):
            client.write(data)
            server.write(data[::-1])
            assert await server.exactly(len(data)) == data
            assert await client.exactly(len(data)) == data[::-1]


@twisted_test
async def test_either_side_may_be_slow() -> None:
    async with stage() as s:
        ends = client, server = await tunnel(s)
        there: Any
        (there,) = s.plane.clients
        here: Any
        (here,) = s.live.connections
        for slow, fast, transport in ((client, server, there), (server, client, here)):
            slow.stop_reading()
            fast.write(b"x" * 12_000_000)
            await eventually(lambda: transport.transport.unsent)  # noqa: B023
            await turns(20)
            assert transport.transport.unsent < 512 * 1024
            slow.read_on()
            await slow.exactly(12_000_000)
        for end, other in (ends, ends[::-1]):
            end.write(b"still there")
            assert await other.exactly(11) == b"still there"


@pytest.mark.parametrize("first", [0, 1], ids=["client", "server"])
@pytest.mark.parametrize("rudely", [False, True], ids=["closed", "reset"])
@twisted_test
async def test_the_end_of_one_side_is_the_others(first: int, rudely: bool) -> None:
    async with stage() as s:
        ends = await tunnel(s)
        one, other = ends[first], ends[1 - first]
        one.write(b"bye")
        await other.exactly(3)
        (one.abort if rudely else one.close)()
        assert await other.rest() == b""
        await s.quiet()


@twisted_test
async def test_what_was_said_before_the_end_arrives() -> None:
    async with stage() as s:
        client, server = await tunnel(s)
        client.stop_reading()
        server.write(b"x" * 3_000_000)
        server.close()
        await turns(20)
        client.read_on()
        assert len(await client.rest()) == 3_000_000


@twisted_test
async def test_a_declined_upgrade_is_answered_and_the_connection_goes_on() -> None:
    async with stage(answering) as s:
        client = await s.connect(ASK + GET)
        for _ in range(2):
            assert (await client.answer()).status == 200
        client.write(GET)
        assert (await client.answer()).status == 200


@twisted_test
async def test_many_declined_upgrades_are_answered_in_turn() -> None:
    async with stage(always(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")) as s:
        client = await s.connect(ASK * 100)
        for _ in range(100):
            assert (await client.answer()).status == 400


@twisted_test
async def test_what_comes_behind_an_upgrade_stays_in_the_kernel() -> None:
    async with stage() as s:
        client = await s.connect(ASK + b"x" * 5_000_000)
        server = await s.origin.accept()
        await one_request(server)
        await turns(50)
        there: Any
        (there,) = s.plane.clients
        assert there.parser.kept <= 2 * 65536
        server.write(SWITCH)
        await client.answer()
        assert await server.exactly(5_000_000) == b"x" * 5_000_000


@twisted_test
async def test_an_upgrade_that_is_held_is_asked_for_at_its_release() -> None:
    async with stage() as s:
        s.place(Mode.HOLDING)
        client = await s.connect(ASK)
        await s.held()
        s.place()
        server = await s.origin.accept()
        await one_request(server)
        server.write(SWITCH)
        assert (await client.answer()).status == 101


@twisted_test
async def test_a_tunnel_is_no_request_in_flight_but_keeps_a_hold_from_being_drained() -> None:
    async with stage(drain=Drain(tunnels=5.0)) as s:
        client, server = await tunnel(s)
        assert s.live.observed().in_flight == 0
        assert s.live.observed().tunnels == 1
        s.place(Mode.HOLDING)
        await s.pass_time(4)
        client.write(b"still ")
        server.write(b"here")
        assert await client.exactly(4) == b"here"
        assert await server.exactly(6) == b"still "
        assert not s.live.drained
        await s.pass_time(2)
        await s.drained()
        assert await client.rest() == b""
        assert await server.rest() == b""
        assert s.live.observed().closed == 1


@twisted_test
async def test_a_resume_in_time_leaves_a_tunnel_alone() -> None:
    async with stage(drain=Drain(tunnels=5.0)) as s:
        client, server = await tunnel(s)
        s.place(Mode.HOLDING)
        await s.pass_time(4)
        s.place()
        await s.pass_time(10)
        client.write(b"x")
        await server.exactly(1)


@twisted_test
async def test_a_tunnel_that_was_granted_during_the_drain_is_closed_as_well() -> None:
    async with stage(drain=Drain(tunnels=5.0)) as s:
        client = await s.connect(ASK)
        server = await s.origin.accept()
        await one_request(server)
        s.place(Mode.HOLDING)
        server.write(SWITCH)
        await client.answer()
        await s.pass_time(6)
        await s.drained()


@twisted_test
async def test_a_tunnel_whose_server_takes_nothing_is_closed_all_the_same() -> None:
    async with stage(drain=Drain(tunnels=5.0)) as s:
        client, server = await tunnel(s)
        server.stop_reading()
        client.write(b"x" * 12_000_000)
        here: Any
        (here,) = s.live.connections
        await eventually(lambda: here.transport.unsent)
        s.place(Mode.HOLDING)
        await s.pass_time(20)
        await s.drained()


@twisted_test
async def test_a_client_that_goes_on_talking_when_its_tunnel_is_closed_does_not_stay() -> None:
    async with stage() as s:
        client, server = await tunnel(s)
        client.stop_reading()
        server.write(b"x" * 12_000_000)
        there: Any
        (there,) = s.plane.clients
        await eventually(lambda: there.unsent)
        s.plane.cut("blog")
        for _ in range(70):
            client.write(b"y")
            await s.pass_time(1)
        assert not s.plane.clients


@twisted_test
async def test_a_tunnel_is_cut_by_force() -> None:
    async with stage() as s:
        client, server = await tunnel(s)
        s.place(Mode.HOLDING)
        assert s.plane.cut("blog") == 1
        await s.drained()
        await client.rest()
        await server.rest()


@twisted_test
async def test_a_tunnel_where_nothing_moves_is_closed() -> None:
    async with stage() as s:
        client, server = await tunnel(s)
        for _ in range(2):
            await s.pass_time(s.site.timeouts.tunnel - 1)
            client.write(b"x")
            await server.exactly(1)
            await s.pass_time(s.site.timeouts.tunnel - 1)
            server.write(b"x")
            await client.exactly(1)
        await s.pass_time(s.site.timeouts.tunnel + 1)
        assert await client.rest() == b""
        assert await server.rest() == b""


@twisted_test
async def test_a_stopping_proxy_closes_tunnels_at_its_deadline() -> None:
    async with stage() as s:
        client, _ = await tunnel(s)
        await s.plane.stop(0)
        await client.rest()
