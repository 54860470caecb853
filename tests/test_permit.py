"""What a worker does when its permit has ended: nothing, until it is renewed."""

from __future__ import annotations

from math import inf
from time import monotonic

from plane_stage import GET, always, eventually, stage, turns, twisted_test
from plane_stage import OK as ANSWER
from twisted.internet.task import Clock

from awesomeproxy.gate import UNBOUNDED, Gate, HeldTotal
from awesomeproxy.model import Outcome
from awesomeproxy.proxy.permit import Permit


@twisted_test
async def test_nothing_is_served_once_the_permit_has_ended() -> None:
    """Not even what has come before anybody noticed; afterwards it is, as if nothing had been."""
    permit = Permit()
    lapses: list[float] = []
    permit.on_lapse = lambda: lapses.append(monotonic())
    async with stage(always(ANSWER), plane={"permit": permit}) as at:
        assert (await at.ask()).status == 200
        before = at.origin.received
        client = await at.connect()
        await eventually(lambda: at.plane.clients, "the client")
        permit.until = monotonic()
        client.write(GET)
        await eventually(lambda: lapses, "the lapse")
        stranger = await at.connect(GET)  # the kernel takes it; the plane must not
        await turns(20)
        assert at.origin.received == before
        assert len(lapses) == 1
        permit.until = inf
        at.plane.resume()
        assert (await client.answer()).status == 200
        assert (await stranger.answer()).status == 200


@twisted_test
async def test_what_is_held_is_not_let_on_by_a_timer_once_the_permit_has_ended() -> None:
    """The gate opens, but nobody passes; who waits goes on when the permit is renewed."""
    permit = Permit()
    gate = Gate(Clock(), total=HeldTotal(UNBOUNDED, UNBOUNDED, permit))
    gate.hold()
    ended: list[Outcome] = []
    gate.wait(0).addCallback(ended.append)
    permit.until = monotonic()
    await eventually(lambda: permit.lapsed, "the end of the permit")
    gate.open()
    assert (ended, gate.in_flight) == ([], 0)
    permit.until = inf
    gate.resume()
    assert (ended, gate.in_flight) == ([Outcome.RELEASED], 1)
