"""HTTP/2: what peers do in the same breath, too early, too late, or without an end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from edge_stage import Asked, Http2Server, h2c, listening
from h2.connection import ConnectionState
from h2.events import PingAckReceived
from h2_frames import (
    Error,
    Type,
    data,
    dependency,
    goaway,
    headers,
    ping,
    rst_stream,
    window_update,
)
from h2_hpack import block
from h2_wire import H2C, HELLO, Client, ask, conversation, greeted, request
from plane_stage import (
    END,
    GET,
    LISTEN,
    OK,
    Origin,
    Stage,
    always,
    eventually,
    fields_of,
    ok,
    one_request,
    post,
    stage,
    turns,
    twisted_test,
)
from test_grpc import calling
from test_h2_websocket import connect

from awesomeproxy.model import HoldLimits, Listen, Mode

MANY = 1500  # more than a client may do that leads nowhere


# Clients


@twisted_test
async def test_a_body_whose_stream_is_reset_in_the_same_breath_does_no_harm() -> None:
    """What comes behind it, on the same connection, is answered."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"))
        await (await client.stage.origin.accept()).until(END)
        client.send(data(1, bytes(100)), rst_stream(1), ask(3))
        server = await client.stage.origin.accept()
        await one_request(server)
        server.write(ok(HELLO))
        assert (await client.response(3)).body == HELLO


@twisted_test
async def test_what_was_about_to_be_said_is_said_in_spite_of_a_goodbye() -> None:
    """RFC 9113, 6.8: streams go on; so what came before the goodbye has its effect."""
    async with conversation(None) as client:
        client.send(ask(1))
        server = await client.stage.origin.accept()
        client.send(ping(b"12345678"), goaway())
        assert (await client.until(Type.PING)).payload == b"12345678"
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_a_request_behind_the_end_does_not_keep_the_connection() -> None:
    """What comes in one breath with too much is not looked at, and not waited for."""
    async with conversation() as client:
        plane = client.stage.plane
        client.wire.stop_reading()
        client.send(ping() * MANY, ask(1))
        await turns(10)
        assert client.stage.origin.received == b""
        await client.stage.pass_time(10)
        await eventually(lambda: not plane.clients, "the end of the connection")


@twisted_test
async def test_a_client_may_leave_behind_a_goodbye() -> None:
    """With what it has asked for under way; nobody is told anything then."""
    async with conversation(None) as client:
        client.send(ask(1), goaway())
        server = await client.stage.origin.accept()
        await client.settled()
        client.wire.abort()
        await eventually(lambda: not client.stage.plane.clients)
        server.write(OK)
        await client.stage.quiet()


NINES = "9" * 5000
NUMBERS = {
    "Content-Length": ask(1, ("content-length", NINES), end=False, method="POST"),
    "Max-Forwards": ask(1, ("max-forwards", NINES), method="OPTIONS"),
}


@pytest.mark.parametrize("frame", NUMBERS.values(), ids=NUMBERS)
@twisted_test
async def test_a_number_without_end_concerns_its_stream_alone(frame: bytes) -> None:
    """Python reads no number of so many digits; others on the connection are answered."""
    async with conversation() as client:
        client.send(frame, ask(3))
        assert (await client.response(3)).body == HELLO


@twisted_test
async def test_a_number_without_end_is_refused_in_http1_too() -> None:
    """The same is a 400 there."""
    async with stage(always(OK)) as s:
        request_ = b"OPTIONS / HTTP/1.1\r\nHost: blog.example\r\nMax-Forwards: %b\r\n\r\n"
        assert (await s.ask(request_ % NINES.encode())).status == 400


@twisted_test
async def test_a_client_may_open_its_window_behind_each_response() -> None:
    """So clients do that ask for one thing after the other, as often as they like."""
    async with conversation() as client:
        for stream in range(1, 2 * MANY, 2):
            client.send(ask(stream))
            assert (await client.response(stream)).body == HELLO
            client.send(window_update(0, 5))


@twisted_test
async def test_a_client_may_say_a_priority_with_each_request() -> None:
    """So browsers do (RFC 9113, section 5.3.2)."""
    async with conversation() as client:
        for stream in range(1, 2 * MANY, 2):
            client.send(headers(stream, block(request()), end=True, depends=dependency(0)))
            assert (await client.response(stream)).body == HELLO


HEAVY = ok(b"", *(b"X-Field-%d: %b" % (n, b"x" * 110) for n in range(300)))


async def pile_up(client: Client, most: int) -> int:
    """Ask, and take nothing, as long as requests are taken; return how many were sent."""
    client.wire.stop_reading()
    for sent in range(50, most + 1, 50):
        client.send(*(ask(2 * n + 1, method="HEAD") for n in range(sent - 50, sent)))
        for _ in range(200):
            await turns(1)
            if client.stage.live.requests == sent and not client.stage.gate.in_flight:
                break
        else:
            return sent
    return most


@twisted_test
async def test_heads_that_nobody_takes_are_bounded() -> None:
    """Heads have no windows: a client that takes none is not read from any more."""
    async with conversation(always(HEAVY)) as client:
        conn: Any = next(iter(client.stage.plane.clients))
        assert await pile_up(client, 700) < 700
        assert conn.transport.unsent < 3_000_000
        await client.stage.pass_time(200)
        await eventually(lambda: not client.stage.plane.clients, "the end of the connection")


@twisted_test
async def test_heads_that_are_taken_late_all_arrive() -> None:
    """A client that was not read from is read from again."""
    async with conversation(always(HEAVY)) as client:
        sent = await pile_up(client, 700)
        client.wire.read_on()
        for number in range(sent):
            assert (await client.response(2 * number + 1)).status == 200


@twisted_test
async def test_an_end_that_nobody_takes_is_not_waited_for_for_ever() -> None:
    """A stream of which nothing but the end is left has a deadline as well."""
    async with conversation(None) as client:
        conn: Any = next(iter(client.stage.plane.clients))
        client.wire.stop_reading()
        client.send(ask(1))
        server = await client.stage.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await turns(5)
        conn.pauseProducing()  # as if its socket were full
        server.write(b"0\r\n\r\n")
        await client.stage.quiet()
        await client.stage.pass_time(300)
        await eventually(lambda: not client.stage.plane.clients, "the end of the connection")


@twisted_test
async def test_a_websocket_that_ends_before_it_begins_leaves_nothing() -> None:
    """Its stream is closed on both sides."""
    async with conversation(None) as client:
        conn: Any = next(iter(client.stage.plane.clients))
        client.send(headers(1, block(connect())), data(1, end=True))
        await client.stream_error(1, Error.CANCEL, Error.NO_ERROR)
        assert not conn._h2.open_inbound_streams
        await client.stage.quiet()


@twisted_test
async def test_a_page_is_no_consent_to_a_websocket() -> None:
    """RFC 8441, 5: 200 would open it; a server that has not switched has not agreed."""
    async with conversation(None) as client:
        client.send(headers(1, block(connect())))
        server = await client.stage.origin.accept()
        await server.until(END)
        server.write(ok(b"a page"))
        answer = await client.response()
        assert answer.status == 502
        await client.settled()


@twisted_test
async def test_what_a_websocket_says_too_early_counts_as_held() -> None:
    """What may come before it is open takes memory, like any body."""
    async with conversation(hold=HoldLimits(max_bytes=40_000)) as client:
        client.stage.place(Mode.HOLDING)
        client.send(headers(1, block(connect())))
        assert (await client.response()).status == 503


@twisted_test
async def test_a_key_of_the_client_is_not_passed_on() -> None:
    """RFC 8441, 5: in HTTP/2 there is none; the server gets that of the proxy alone."""
    async with conversation(None) as client:
        client.send(headers(1, block(connect("websocket", ("sec-websocket-key", "mine")))))
        server = await client.stage.origin.accept()
        head = await server.until(END)
        assert fields_of(head)[b"sec-websocket-key"] != b"mine"
        server.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        assert (await client.response()).status == 403


@pytest.mark.parametrize("octet", ["\x01", "\x0b", "\x0c", "\x1c", "\x7f"])
@twisted_test
async def test_values_that_http1_does_not_allow_do_not_get_there(octet: str) -> None:
    """RFC 9110, 5.5: servers take some of them for the end of a line."""
    async with conversation() as client:
        client.send(ask(1, ("x-any", f"a{octet}b")))
        await client.stream_error(1, Error.PROTOCOL_ERROR)
        assert client.stage.origin.received == b""


# Servers


@asynccontextmanager
async def talking(listen: Listen = LISTEN, **more: Any) -> AsyncIterator[tuple[Stage, Origin]]:
    """A plane in front of one server that speaks HTTP/2 without TLS."""
    origin = Origin(None)
    async with (
        listening(origin),
        stage(None, listen=listen, backend={"servers": (h2c(origin),)}, **more) as s,
    ):
        yield s, origin


async def met(origin: Origin) -> tuple[Http2Server, Asked]:
    """The server's end of a connection, and what is asked there."""
    server = Http2Server(await origin.accept())
    return server, await server.request(complete=False)


@twisted_test
async def test_a_body_for_a_server_that_says_nothing_stays_in_the_kernel() -> None:
    """What cannot be sent yet is not read, of a client that speaks HTTP/1.1."""
    async with talking() as (s, origin):
        client = await s.connect(
            b"PUT / HTTP/1.1\r\nHost: blog.example\r\nContent-Length: 100000000\r\n\r\n"
        )
        client.write(bytes(100_000_000))
        await origin.accept()
        await turns(200)
        exchange: Any = next(iter(s.live.connections)).carriers()[0].exchange
        assert exchange.request.received < 200_000
        client.abort()
        await s.pass_time(10)
        await s.quiet()


@twisted_test
async def test_a_body_for_a_server_that_says_nothing_is_not_asked_for() -> None:
    """The same in HTTP/2: its window stays as it is."""
    async with talking(H2C) as (s, origin):
        client = await greeted(s)
        client.send(ask(1, end=False, method="PUT"))
        await origin.accept()
        assert await client.fill(1, 1 << 20) <= 65_535
        client.wire.abort()
        await s.quiet()


@twisted_test
async def test_a_body_goes_on_once_the_server_has_spoken() -> None:
    """All of it arrives."""
    async with talking() as (s, origin):
        client = await s.connect(post(bytes(300_000)))
        wire = await origin.accept()
        await turns(20)
        server = Http2Server(wire)
        asked = await server.request()
        assert len(asked.body) == 300_000
        server.answer(asked)
        assert (await client.answer()).body == b"ok"


@pytest.mark.parametrize("request_", [GET, post(b"body")], ids=["GET", "POST"])
@twisted_test
async def test_what_has_been_answered_in_part_is_never_sent_again(request_: bytes) -> None:
    """A server that says it has not looked at what it has begun to answer is not believed."""
    async with talking() as (s, origin):
        client = await s.connect(request_)
        server, asked = await met(origin)
        server.head(asked, ("content-length", "10"))
        server.h2.send_data(asked.stream, b"half")
        server.leave(0)
        await client.rest()
        await s.quiet()
        assert s.counters.retried == 0
        assert s.counters.failed == 1


@pytest.mark.parametrize(
    ("method", "status", "length"),
    [("HEAD", "200", True), ("GET", "204", False), ("GET", "304", False), ("GET", "304", True)],
)
@twisted_test
async def test_content_where_there_is_none_is_not_passed_on(
    method: str, status: str, length: bool
) -> None:
    """RFC 9110, 6.4.1: the client would take it for the next response."""
    async with talking() as (s, origin):
        client = await s.connect(GET.replace(b"GET", method.encode()))
        server, asked = await met(origin)
        fields = [(":status", status)] + [("content-length", "7")] * length
        server.h2.send_headers(asked.stream, fields)
        server.body(asked, b"strange")
        answer = await client.answer(head_only=True)
        assert answer.status == int(status)
        client.write(GET)
        asked = await server.request()
        server.answer(asked)
        assert (await client.answer()).body == b"ok"
        assert b"strange" not in client.all


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@twisted_test
async def test_a_length_may_be_that_of_what_is_not_sent(method: str) -> None:
    """RFC 9110, 8.6: of a 304, or in answer to HEAD, though an empty frame ends it."""
    async with talking() as (s, origin):
        client = await s.connect(GET.replace(b"GET", method.encode()))
        server, asked = await met(origin)
        status = "304" if method == "GET" else "200"
        server.h2.send_headers(asked.stream, [(":status", status), ("content-length", "7")])
        server.wire.write(server.h2.data_to_send())
        assert (await client.answer(head_only=True))["content-length"] == "7"
        server.body(asked, b"")
        await s.quiet()
        assert s.counters.failed == 0
        client.write(GET)
        server.answer(await server.request())
        assert (await client.answer()).body == b"ok"


def nothing(server: Http2Server, stream: int) -> None:
    """A head that is the end."""
    server.h2.send_headers(stream, [(":status", "200"), ("content-length", "10")], end_stream=True)


def trailers(server: Http2Server, stream: int) -> None:
    """Half of a body, and trailers."""
    server.h2.send_headers(stream, [(":status", "200"), ("content-length", "10")])
    server.h2.send_data(stream, b"half")
    server.h2.send_headers(stream, [("x-end", "here")], end_stream=True)


@pytest.mark.parametrize("answer", [nothing, trailers])
@twisted_test
async def test_a_body_that_is_shorter_than_it_said_looks_cut_off(
    answer: Callable[[Http2Server, int], None],
) -> None:
    """Or the next response would be taken for its rest."""
    async with talking() as (s, origin):
        client = await s.connect(post(b"body"))
        server, asked = await met(origin)
        answer(server, asked.stream)
        server._write()
        if answer is nothing:
            assert (await client.answer()).status == 502
        else:
            await client.rest()
        await s.quiet()
        assert s.counters.failed + s.counters.ambiguous == 1


@twisted_test
async def test_a_length_without_end_concerns_its_stream_alone() -> None:
    """Python reads no number of so many digits; others in the session are answered."""
    async with talking() as (s, origin):
        client, other = await s.connect(GET), await s.connect(GET)
        server, asked = await met(origin)
        second = await server.request()
        server.h2.send_headers(asked.stream, [(":status", "200"), ("content-length", NINES)])
        server.answer(second)
        answers = {(await client.answer()).status, (await other.answer()).status}
        assert answers == {200, 502}


@twisted_test
async def test_interim_responses_have_an_end() -> None:
    """A server that says nothing else is not listened to for ever."""
    async with talking() as (s, origin):
        client = await s.connect(GET)
        server, asked = await met(origin)
        for _ in range(100):
            fields = [(":status", "103"), ("link", "x" * 8000)]
            server.h2.send_headers(asked.stream, fields)
            server._write()
            await turns(1)
        assert b"HTTP/1.1 502 " in await client.until(b"HTTP/1.1 502 ")
        assert client.all.count(b"HTTP/1.1 103") < 40


@twisted_test
async def test_what_was_about_to_be_told_a_server_is_told_in_spite_of_its_goodbye() -> None:
    """RFC 9113, 6.8: streams go on; a body with a hole in it would pass for a whole one."""
    async with talking() as (s, origin):
        client = await s.connect(GET)
        server, asked = await met(origin)
        server.h2.ping(b"12345678")
        server.leave(asked.stream)
        server.h2.state_machine.state = ConnectionState.SERVER_OPEN  # as RFC 9113 has it
        acknowledged = False
        while not acknowledged:
            acknowledged = any(isinstance(event, PingAckReceived) for event in await server.hear())
        server.answer(asked)
        assert (await client.answer()).body == b"ok"


@twisted_test
async def test_a_server_that_dies_need_not_be_told_to_stop() -> None:
    """What it was about to be told is no longer in flight."""
    async with talking() as (s, origin):
        client = await s.connect(GET)
        server, _ = await met(origin)
        server.wire.stop_reading()
        client.abort()
        await turns(5)
        assert s.gate.in_flight == 1
        server.wire.abort()
        await s.quiet()
        assert (s.counters.failed, s.counters.ambiguous) == (0, 0)


@twisted_test
async def test_how_far_a_request_may_go_is_passed_on() -> None:
    """RFC 9110, 7.6.2: one less, in HTTP/2 as well."""
    async with talking() as (s, origin):
        client = await s.connect(
            b"OPTIONS / HTTP/1.1\r\nHost: blog.example\r\nMax-Forwards: 5\r\n\r\n"
        )
        server, asked = await met(origin)
        assert asked.fields["max-forwards"] == "4"
        server.answer(asked)
        await client.answer()


@twisted_test
async def test_calls_that_are_given_up_do_not_end_others() -> None:
    """To be told to stop, often, does not make a gRPC server part with all its clients."""
    async with calling() as (on, service, channel):
        wait = channel.unary_unary("/Test/wait")
        patient = wait.future(b"")
        await eventually(lambda: service.calls == ["wait"], "the call")
        futures = [wait.future(b"") for _ in range(6)]
        await eventually(lambda: len(service.calls) == 7, "the others")
        for future in futures:
            future.cancel()
        await eventually(lambda: on.gate.in_flight == 1, "the end of them")
        service.go_on.set()
        await eventually(patient.done, "its answer")
        assert patient.code() is grpc.StatusCode.OK
        await on.quiet()
        assert (on.counters.failed, on.counters.ambiguous) == (0, 0)
