"""Nonsense from both sides at once: nobody is left behind, and nothing is stuck."""

from __future__ import annotations

import contextlib
import re
from random import Random

import pytest
from plane_stage import (
    END,
    GET,
    OK,
    Lost,
    Stage,
    Wire,
    eventually,
    ok,
    post,
    stage,
    turns,
    twisted_test,
)
from test_requests import BAD as BAD_REQUESTS
from test_requests import BAD_BODIES, GOOD
from test_responses import BAD as BAD_RESPONSES
from test_responses import GOOD as GOOD_RESPONSES
from twisted.internet.defer import Deferred, gatherResults

from awesomeproxy.model import Bypass, Drain, HoldLimits, Mode, Ramp, Retry

CHUNKED = b"POST / HTTP/1.1\r\nHost: blog.example\r\nTransfer-Encoding: chunked\r\n\r\n"
GOOD_ONES = [
    GET,
    GET * 3,
    GET + post(b"hello") + GET,
    post(b"hello"),
    post(b"x" * 200_000, method=b"PUT"),
    post(b"x" * 200_000, b"Expect: 100-continue"),
    CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    GET.replace(b"GET", b"HEAD"),
    GET.replace(b"1.1", b"1.0"),
    GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    GET[:-2] + b"X-Preview: open sesame\r\n\r\n",
]
REQUESTS = [
    *GOOD_ONES * 12,
    *(data.replace(b"Host: a\r", b"Host: blog.example\r") for data in GOOD.values()),
    *(data.replace(b"Host: a\r", b"Host: blog.example\r") for _, data in BAD_REQUESTS.values()),
    *(CHUNKED + body for body in BAD_BODIES.values()),
]
RESPONSES = [
    *[OK] * 30,
    *[ok(b"x" * 300_000)] * 5,
    ok(b"", b"Connection: close"),
    GOOD_RESPONSES["chunked"].replace(b"5\r\nhello\r\n", b"5\r\nhello\r\n" * 2000),
    b"HTTP/1.1 100 Continue\r\n\r\n",
    *GOOD_RESPONSES.values(),
    *BAD_RESPONSES.values(),
]


def mutated(random: Random, data: bytes) -> bytes:
    """``data``, perhaps with a few bytes lost, doubled, changed or swapped."""
    if random.random() < 0.6 or not data:
        return data
    found = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(len(found) or 1)
        what = random.randrange(4)
        if what == 0:
            del found[at : at + random.randrange(1, 20)]
        elif what == 1:
            found[at:at] = found[at : at + random.randrange(1, 20)]
        elif what == 2:
            found[at:at] = random.choice([b"\r\n", b"\0", b"\n", b":", b" ", b"0", b"\xff", END])
        elif found:
            found[at % len(found)] = random.randrange(256)
    return bytes(found)


async def dribble(random: Random, wire: Wire, data: bytes) -> None:
    """Write it at once or in pieces."""
    while data and not wire.closed:
        size = len(data) if random.random() < 0.5 else random.randrange(1, len(data) + 1)
        wire.write(data[:size])
        data = data[size:]
        await turns(random.randrange(3))


async def misbehave(random: Random, wire: Wire, choices: list[bytes], waits: bool) -> None:
    """Say this and that, hear or do not hear, and leave one way or another."""
    for _ in range(random.randrange(1, 6)):
        if waits:
            await wire.until(END)
        await dribble(random, wire, mutated(random, random.choice(choices)))
        if random.random() < 0.1:
            wire.stop_reading()
        await turns(random.randrange(10))
        if random.random() < 0.1:
            wire.read_on()
        wire.buffer = b""
    await turns(random.randrange(30))
    if not wire.closed and random.random() < 0.8:
        (wire.close if random.random() < 0.5 else wire.abort)()


async def operate(random: Random, s: Stage) -> None:
    """Hold, release, move, cut and redefine, and let time pass."""
    for _ in range(60):
        await turns(random.randrange(5))
        what = random.randrange(12)
        backend = random.choice(["here", "only0", "only1", "nowhere"])
        if what < 3:
            s.place(Mode.HOLDING, backend)
        elif what < 7:
            s.place(Mode.OPEN, backend)
        elif what == 7:
            s.plane.cut("blog")
        elif what == 8:
            s.define(max_in_flight=random.randrange(1, 100), max_body=random.choice([0, 100]))
        elif what == 9:
            origin = random.choice(s.origins)
            await origin.refuse()
            await turns(random.randrange(10))
            origin.listen()
        else:
            await s.pass_time(random.choice([0.25, 1.0, 3.0, 20.0]))


@pytest.mark.parametrize("seed", range(12))
@twisted_test
async def test_a_storm_passes(seed: int) -> None:
    random = Random(seed)

    async def server(wire: Wire) -> None:
        await misbehave(random, wire, RESPONSES, waits=True)

    async def client() -> None:
        await turns(random.randrange(150))
        wire = await s.connect()
        with contextlib.suppress(Lost):
            await misbehave(random, wire, REQUESTS, waits=False)

    async with stage(
        server,
        server,
        hold=HoldLimits(max_requests=30, max_time=10.0),
        retry=Retry(budget=2.0),
        ramp=Ramp(start=4),
        drain=Drain(tunnels=1.0),
        bypass=Bypass(header="x-preview", secret="open sesame"),
        plane={"access_log": "/dev/null", "max_connections": 100},
    ) as s:
        running = [Deferred.fromCoroutine(client()) for _ in range(120)]
        running.append(Deferred.fromCoroutine(operate(random, s)))
        await gatherResults(running)
        # All have said what they had to say; who has not left is let go by the deadlines.
        s.define(max_body=0)
        s.place(Mode.OPEN, "here")
        for _ in range(8):
            await s.pass_time(75)
        assert not s.plane.clients
        await s.quiet()
        await eventually(lambda: not s.live.connections)
        assert s.plane.held.requests == 0


@twisted_test
async def test_after_a_storm_the_weather_is_fine() -> None:
    random = Random(1)

    async def server(wire: Wire) -> None:
        while True:
            head = await wire.until(END)
            if b"GET /fine" in head:
                wire.write(ok(b"fine"))
            else:
                wire.write(mutated(random, random.choice(RESPONSES)))

    async with stage(server, server) as s:
        for _ in range(150):
            wire = await s.connect(mutated(random, random.choice(REQUESTS)))
            fine = await s.connect(GET.replace(b"/ ", b"/fine "))
            answer = await fine.answer()
            assert (answer.status, answer.body) == (200, b"fine")
            wire.abort()
            fine.abort()


async def mirror(random: Random, wire: Wire) -> None:
    """A good server of some moods: it tells each request what it was, in some framing."""
    while True:
        head = await wire.until(END)
        method, target, _ = head.split(b" ", 2)
        if b"Transfer-Encoding: chunked" in head:
            body, _ = await wire.chunked()
        elif found := re.search(rb"Content-Length: ([0-9]+)", head):
            body = await wire.exactly(int(found[1]))
        else:
            body = b""
        told = b"%b %b %d " % (method, target, len(body)) + body
        mood = random.randrange(6)
        if mood == 0:
            answer = ok(told, b"Connection: close")
        elif mood == 1:
            pieces = [told[at : at + 9999] for at in range(0, len(told), 9999)]
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0" + END
        elif mood == 2:
            answer = b"HTTP/1.1 200 OK\r\n\r\n" + told
        else:
            answer = ok(told)
        await dribble(random, wire, answer)
        if mood in (0, 2, 3):  # 3: without a word
            wire.close()
            return


async def converse(random: Random, s: Stage, name: int) -> int:
    """A good client, who compares what it hears with what it has said; return how often."""
    wire = await s.connect()
    count = 0
    for number in range(4):
        said = []
        for part in range(random.choice([1, 1, 3])):
            target = b"/%d/%d/%d" % (name, number, part)
            body = b"%d." % name * random.choice([0, 1, 10, 50_000])
            method = random.choice([b"GET", b"PUT", b"POST"])
            if method == b"GET":
                body, framing = b"", b""
            elif random.random() < 0.5:
                framing = b"Content-Length: %d\r\n" % len(body)
            else:
                framing = b"Transfer-Encoding: chunked\r\n"
            data = b"%b %b HTTP/1.1\r\nHost: blog.example\r\n%b\r\n" % (method, target, framing)
            if b"chunked" in framing:
                data += (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0" + END
            else:
                data += body
            said.append((data, b"%b %b %d " % (method, target, len(body)) + body))
        await dribble(random, wire, b"".join(data for data, _ in said))
        for _, told in said:
            if random.random() < 0.1:
                wire.stop_reading()
                await turns(random.randrange(20))
                wire.read_on()
            answer = await wire.answer()
            assert (answer.status, answer.body) == (200, told)
            count += 1
    wire.close()
    return count


@pytest.mark.parametrize("seed", range(6))
@twisted_test
async def test_everybody_gets_the_answer_to_what_they_asked_whatever_happens(seed: int) -> None:
    random = Random(seed)

    async def server(wire: Wire) -> None:
        await mirror(random, wire)

    async with stage(server, server, ramp=Ramp(start=2), max_in_flight=20) as s:
        over: list[bool] = []

        async def operate() -> None:
            while not over:
                await turns(random.randrange(10))
                s.place(Mode.HOLDING)
                await s.drained()
                await turns(random.randrange(10))
                s.place(Mode.OPEN, random.choice(["here", "only0", "only1"]))
                await s.pass_time(0.25)

        operating = Deferred.fromCoroutine(operate())
        talks = [Deferred.fromCoroutine(converse(random, s, name)) for name in range(25)]
        counts = await gatherResults(talks)
        over.append(True)
        await operating
        counters = s.counters
        assert counters.requests == sum(counts)
        assert (counters.failed, counters.ambiguous, counters.refused) == (0, 0, 0)
