"""Clients that take their time on purpose: they end, and the others are served meanwhile.

The first half is HTTP/2 by hand, in the test's own time.  The second is slowhttptest, all
of its four attacks at once, against a daemon of its own process.
"""

from __future__ import annotations

import http.client
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from daemon_stage import (
    HOST,
    PATIENCE,
    Asked,
    Daemon,
    Origin,
    free_ports,
    site,
    twisted_fixture,
    until,
)
from daemon_stage import Stage as DaemonStage
from daemon_stage import a_stage as a_daemon_stage
from h2_frames import (
    PREFACE,
    Error,
    Setting,
    Type,
    continuation,
    data,
    headers,
    ping,
    settings,
    window_update,
)
from h2_hpack import block
from h2_wire import H2C, ask, conversation, greeted, knock, request
from plane_stage import always, answering, eventually, ok, stage, twisted_test
from stage_origins import OriginConnection
from tls_stage import Authority, client_trust
from twisted.internet.threads import deferToThread

from awesomeproxy.proxy.stream import LINGER

TIMEOUTS = H2C.timeouts
daemons = twisted_fixture(a_daemon_stage)


# HTTP/2


@pytest.mark.parametrize("going_on", [False, True], ids=["nothing else", "a request"])
@twisted_test
async def test_a_head_that_never_ends_is_not_waited_for(going_on: bool) -> None:
    """A block of fields has to end within ``timeouts.head``, whatever else is going on."""
    async with conversation(None) as client:
        s = client.stage
        if going_on:
            client.send(ask(1))
            await s.origin.accept()
        client.send(headers(3, block(request()), complete=False, end=True))
        for _ in range(round(TIMEOUTS.head / 2) + 2):
            await s.pass_time(2)
            if client.wire.closed:
                break
            client.send(continuation(3, b"", complete=False))
        await client.wire.rest()


@pytest.mark.parametrize("going_on", [False, True], ids=["nothing else", "a request"])
@twisted_test
async def test_a_frame_that_never_ends_is_not_waited_for(going_on: bool) -> None:
    """One byte of it now and then does not move the deadline."""
    async with conversation(None) as client:
        s = client.stage
        if going_on:
            client.send(ask(1))
            await s.origin.accept()
        frame = headers(3, block(request()), end=True)
        for at in range(round(TIMEOUTS.head / 2) + 2):
            client.send(frame[at : at + 1])
            await s.pass_time(2)
            if client.wire.closed:
                break
        await client.wire.rest()


@twisted_test
async def test_frames_that_take_a_while_are_answered() -> None:
    """A head in the time that it may take, byte by byte, is a request like any other."""
    async with conversation() as client:
        frame = headers(1, block(request()), end=True)
        for byte in frame:
            client.send(bytes((byte,)))
            await client.stage.pass_time(TIMEOUTS.head / len(frame) / 2)
        assert (await client.response(1)).status == 200


@twisted_test
async def test_streams_that_are_opened_and_left_end() -> None:
    """As many as there may be, none of which sends its body: 408 for each, then room again."""
    async with conversation(answering) as client:
        most = H2C.max_streams
        for number in range(most):
            client.send(ask(2 * number + 1, ("content-length", "100"), method="POST", end=False))
        await client.settled()
        await client.stage.pass_time(TIMEOUTS.body + 1)
        for number in range(most):
            assert (await client.response(2 * number + 1)).status == 408
        await client.stage.pass_time(LINGER + 1)
        client.send(ask(2 * most + 1))
        assert (await client.response(2 * most + 1)).status == 200


@twisted_test
async def test_a_body_in_drops_is_refused() -> None:
    """Less than ``body_rate`` bytes a second are too few, in however many frames."""
    async with conversation(None) as client:
        client.send(ask(1, ("content-length", "100000"), method="POST", end=False))
        for _ in range(round(TIMEOUTS.body) + 1):
            client.send(data(1, b"x"))
            await client.stage.pass_time(1)
        assert (await client.response(1)).status == 408


@pytest.mark.parametrize("window", [0, 1, 100])
@twisted_test
async def test_a_window_that_stays_small_keeps_nobody_waiting(window: int) -> None:
    """Streams whose client takes nothing of them end, and their server is let go."""
    async with stage(always(ok(bytes(100_000))), listen=H2C) as s:
        client = await greeted(s, (Setting.INITIAL_WINDOW_SIZE, window))
        for number in range(20):
            client.send(ask(2 * number + 1))
        await client.settled()
        await s.pass_time(TIMEOUTS.write + 1)
        for number in range(20):
            await client.until(Type.RST_STREAM, 2 * number + 1)
        await s.quiet()
        await eventually(lambda: not s.live.gate.in_flight)
        client.send(ask(41))
        await client.until(Type.HEADERS, 41)


@pytest.mark.parametrize("step", [1, 400])
@twisted_test
async def test_a_window_that_opens_little_by_little_keeps_nobody_waiting(step: int) -> None:
    """Less than ``write_rate`` bytes a second of a stream."""
    async with stage(always(ok(bytes(200_000))), listen=H2C) as s:
        client = await greeted(s, (Setting.INITIAL_WINDOW_SIZE, 1))
        client.send(ask(1))
        await client.until(Type.DATA, 1)
        for _ in range(round(TIMEOUTS.write) + 2):
            client.send(window_update(1, step))
            await s.pass_time(1)
        await client.stream_error(1, Error.INTERNAL_ERROR)
        await s.quiet()


@twisted_test
async def test_pings_do_not_count_as_taken() -> None:
    """The window of the connection is used up, and all that moves is what is no answer."""
    async with stage(always(ok(bytes(200_000))), listen=H2C) as s:
        client = await greeted(s, (Setting.INITIAL_WINDOW_SIZE, 1_000_000))
        client.send(ask(1))
        for _ in range(round(TIMEOUTS.write) + 2):
            client.send(*(ping() for _ in range(50)))
            await s.pass_time(1)
        await client.stream_error(1, Error.INTERNAL_ERROR)
        await s.quiet()


@pytest.mark.parametrize("step", [400, 600])
@twisted_test
async def test_streams_that_share_a_slow_line_are_not_slow(step: int) -> None:
    """Where the connection keeps them waiting, it is what is taken of it that counts."""
    async with stage(always(ok(bytes(200_000))), listen=H2C) as s:
        client = await greeted(s, (Setting.INITIAL_WINDOW_SIZE, 1_000_000))
        for number in range(10):
            client.send(ask(2 * number + 1))
        await client.settled()
        for _ in range(round(2 * TIMEOUTS.write) + 2):
            client.send(window_update(0, step))
            await s.pass_time(1)
        await client.settled()
        assert bool(s.gate.in_flight) == (step > H2C.write_rate)


@twisted_test
async def test_what_is_taken_fast_enough_is_not_ended() -> None:
    """At ``write_rate`` a stream may take as long as it likes."""
    size = round(H2C.write_rate * TIMEOUTS.write * 5)
    async with stage(always(ok(bytes(size))), listen=H2C) as s:
        client = await greeted(s, (Setting.INITIAL_WINDOW_SIZE, 1))
        client.send(ask(1))
        for _ in range(round(TIMEOUTS.write * 5)):
            client.send(window_update(0, 1000), window_update(1, H2C.write_rate + 50))
            await s.pass_time(1)
        assert (await client.response(1)).status == 200


@twisted_test
async def test_others_are_served_while_many_say_little() -> None:
    """A hundred connections, each at another point of saying nothing much."""
    said = PREFACE + settings() + headers(1, block(request()), complete=False)
    async with stage(answering, listen=H2C) as s:
        slow = [await knock(s) for _ in range(100)]
        for number, client in enumerate(slow):
            client.send(said[: number * len(said) // 99])
        for _ in range(round(TIMEOUTS.handshake) + 2):
            await s.pass_time(1)
            quick = await greeted(s)
            quick.send(ask(1))
            assert (await quick.response(1)).status == 200
            quick.wire.abort()
        for client in slow:
            await client.wire.rest()


# slowhttptest

LIMITS = """timeouts = { handshake = "2s", head = "2s", body = "2s", idle = "2s", write = "2s" }
[[listen]]
endpoint = "tcp:{secure}:interface=127.0.0.1"
tls = true
timeouts = { handshake = "2s", head = "2s", body = "2s", idle = "2s", write = "2s" }
[tls]
certificates = ["{certificates}"]
default = "blog.test"
"""
MODES = {"H": "heads", "B": "bodies", "R": "ranges", "X": "reads"}
EACH = 60  # connections of each attack
MEMORY = 64 * 1024  # kilobytes that the daemon may grow by


class Large(Origin):
    """A server whose answers are more than sockets keep."""

    size = 400_000

    def answer(self, connection: OriginConnection, asked: Asked) -> None:
        connection.reply(bytes(self.size))


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def memory(daemon: Daemon) -> int:
    """Kilobytes that it has."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@contextmanager
def attacking(*urls: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """All modes against each of ``urls``, for longer than it takes."""
    attacks = [
        subprocess.Popen(
            ["slowhttptest", f"-{mode}", *f"-c {EACH} -r {EACH} -i 1 -l 60 -p 5 -u {url}".split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for url in urls
        for mode in MODES
    ]
    try:
        yield attacks
    finally:
        for attack in attacks:
            attack.kill()
            attack.wait()


class Visitor:
    """Asks again and again, in a thread of its own.

    :param context: it comes with TLS; None: without.
    :param source: its own address.
    """

    def __init__(self, port: int, context: ssl.SSLContext | None, source: str = HOST) -> None:
        self._port = port
        self._context = context
        self._source = (source, 0)
        self._stopped = threading.Event()
        self.statuses: list[int] = []

    def visit(self) -> None:
        """Until it is stopped; a request that fails raises."""
        while not self._stopped.is_set():
            client = self._connection()
            client.request("GET", "/", headers={"Host": "blog.test"})
            response = client.getresponse()
            response.read()
            self.statuses.append(response.status)
            client.close()

    def _connection(self) -> http.client.HTTPConnection:
        where: dict[str, Any] = {"timeout": PATIENCE, "source_address": self._source}
        if self._context is None:
            return http.client.HTTPConnection(HOST, self._port, **where)
        return http.client.HTTPSConnection(HOST, self._port, context=self._context, **where)

    def stop(self) -> None:
        self._stopped.set()


@twisted_test
async def test_slow_attacks_end_and_keep_nobody_from_being_served(
    daemons: DaemonStage, tmp_path: Path
) -> None:
    """Slow heads, slow bodies, overlapping ranges and slow reads, with TLS and without."""
    authority = Authority(tmp_path / "authority")
    certificates = tmp_path / "certificates"
    authority.issue("blog.test", HOST, path=certificates / "blog.crt")
    origin = Large("one")
    origin.open()
    daemons.origins.append(origin)
    (secure,) = free_ports(1)
    listen = LIMITS.replace("{secure}", str(secure)).replace("{certificates}", str(certificates))
    daemon = await daemons.serving(site("blog", origin, hosts=("blog.test", HOST)), listen=listen)
    load = daemon.load(rate=20)
    visitor = Visitor(secure, client_trust(authority))
    visiting = deferToThread(visitor.visit)
    await load.flows()
    quiet, small = descriptors(daemon), memory(daemon)
    largest = 0
    with attacking(f"http://{HOST}:{daemon.port}/", f"https://{HOST}:{secure}/") as attacks:
        await until(lambda: descriptors(daemon) > quiet + 2 * EACH, "the attacks")
        before = len(visitor.statuses)

        def over() -> bool:
            nonlocal largest
            largest = max(largest, memory(daemon))
            return descriptors(daemon) < quiet + EACH / 2

        await until(over, "the end of the attacks")
        assert any(attack.poll() is None for attack in attacks), "they have ended by themselves"
        await load.flows()
        await until(lambda: len(visitor.statuses) > before + 5, "other clients")
    visitor.stop()
    await visiting
    await load.passes()
    assert set(visitor.statuses) == {200}
    assert largest < small + MEMORY


@twisted_test
async def test_one_address_cannot_use_up_all_places(daemons: DaemonStage) -> None:
    """With ``max_per_client``; there would be more slow connections than ``max_in_flight``."""
    origin = Large("one")
    origin.size = 8_000_000
    origin.open()
    daemons.origins.append(origin)
    blog = site("blog", origin, hosts=("blog.test", HOST), more=f"max_in_flight = {EACH}")
    daemon = await daemons.serving(blog, listen=f"max_per_client = {EACH // 2}")
    visitor = Visitor(daemon.port, None, "127.0.0.2")
    with attacking(f"http://{HOST}:{daemon.port}/") as attacks:
        await until(lambda: descriptors(daemon) > EACH // 2, "the attacks")
        visiting = deferToThread(visitor.visit)
        await until(lambda: len(visitor.statuses) > 20, "other clients")
        assert any(attack.poll() is None for attack in attacks), "they have ended by themselves"
        visitor.stop()
        await visiting
    assert set(visitor.statuses) == {200}
