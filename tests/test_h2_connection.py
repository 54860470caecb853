"""HTTP/2: how connections begin, stay and fail (RFC 9113, sections 3.4, 5.4.1, 6.7 and 6.8)."""

from __future__ import annotations

import pytest
from h2_frames import (
    ACK,
    PREFACE,
    RESERVED,
    SETTINGS_ACK,
    Error,
    Setting,
    Type,
    frame,
    goaway,
    ping,
    rst_stream,
    settings,
)
from h2_wire import H2C, HELLO, ask, conversation, greeted, knock
from plane_stage import GET, always, eventually, ok, one_request, stage, turns, twisted_test

PROTOCOL = Error.PROTOCOL_ERROR
UNKNOWN = 0x16  # a type of frame that nobody has defined


# The preface


@twisted_test
async def test_the_first_frame_of_the_server_is_settings() -> None:
    """3.4: the server's preface is a SETTINGS frame, and the first that it sends."""
    async with stage(listen=H2C) as s:
        client = await knock(s)
        client.send(PREFACE, settings((Setting.INITIAL_WINDOW_SIZE, 65535)))
        first = await client.next()
        assert (first.type, first.ack, first.stream) == (Type.SETTINGS, False, 0)


@twisted_test
async def test_the_clients_settings_are_acknowledged() -> None:
    """6.5.3: the settings of the client's preface are acknowledged, be they none."""
    async with stage(listen=H2C) as s:
        client = await knock(s)
        client.send(PREFACE, settings())
        assert not (await client.until(Type.SETTINGS)).ack
        assert (await client.until(Type.SETTINGS)).ack


@twisted_test
async def test_requests_may_follow_the_preface_at_once() -> None:
    """3.4: a client need not wait for the server's preface before it asks."""
    async with stage(always(ok(HELLO)), listen=H2C) as s:
        client = await knock(s)
        client.send(PREFACE, settings(), ask(1))
        assert (await client.response()).body == HELLO
        assert client.came[0].type == Type.SETTINGS


@pytest.mark.parametrize("at", range(1, len(PREFACE) + 10, 3))
@twisted_test
async def test_the_preface_may_come_in_pieces(at: int) -> None:
    """3.4: the preface is understood wherever it is cut."""
    everything = PREFACE + settings() + ask(1)
    async with stage(always(ok(HELLO)), listen=H2C) as s:
        client = await knock(s)
        client.send(everything[:at])
        await turns()
        client.send(everything[at:])
        assert (await client.response()).status == 200


@pytest.mark.parametrize(
    "first",
    [ask(1), ping(), frame(UNKNOWN, 0, 0, b"x"), SETTINGS_ACK, goaway()],
    ids=["HEADERS", "PING", "unknown", "SETTINGS ack", "GOAWAY"],
)
@twisted_test
async def test_a_preface_without_settings_is_none(first: bytes) -> None:
    """3.4: what follows the first 24 octets is SETTINGS, or it is a connection error."""
    async with stage(listen=H2C) as s:
        client = await knock(s)
        client.send(PREFACE, first)
        await client.connection_error(PROTOCOL)


@pytest.mark.parametrize(
    "preface",
    [
        b"INVALID CONNECTION PREFACE\r\n\r\n",
        PREFACE.replace(b"SM", b"MS") + settings(),
        b"PRI * HTTP/2.0\r\n\r\n" + settings(),
    ],
    ids=["words", "nearly", "half"],
)
@twisted_test
async def test_an_invalid_preface_ends_the_connection(preface: bytes) -> None:
    """3.4: an invalid preface ends the connection, and what it is told of that are frames."""
    async with stage(listen=H2C) as s:
        client = await knock(s)
        client.send(preface)
        said = await client.wire.rest()
        assert not client.wire.reset
        while said:
            size = 9 + int.from_bytes(said[:3], "big")
            assert said[3] in (Type.SETTINGS, Type.WINDOW_UPDATE, Type.GOAWAY)
            assert len(said) >= size
            said = said[size:]


@twisted_test
async def test_the_listener_still_speaks_http_1() -> None:
    """3.3: whoever does not begin with the preface is spoken to in HTTP/1.1."""
    async with stage(always(ok(HELLO)), listen=H2C) as s:
        assert (await s.ask(GET)).body == HELLO


# PING, GOAWAY and codes that nobody knows


@pytest.mark.parametrize("opaque", [bytes(8), b"12345678", b"\xff" * 8])
@twisted_test
async def test_ping_is_answered_with_what_it_said(opaque: bytes) -> None:
    """6.7: a PING is returned with ACK and an identical payload."""
    async with conversation() as client:
        client.send(ping(opaque))
        answer = await client.until(Type.PING)
        assert (answer.flags, answer.stream, answer.payload) == (ACK, 0, opaque)


@twisted_test
async def test_an_answered_ping_is_not_answered() -> None:
    """6.7: there is no response to a PING with ACK."""
    async with conversation() as client:
        client.send(ping(b"unasked.", ack=True), ping(b"question"))
        assert (await client.until(Type.PING)).payload == b"question"
        assert await client.settled() == []


@pytest.mark.parametrize("code", [Error.NO_ERROR, Error.INTERNAL_ERROR, 0xFF, 0xFFFFFFFF])
@twisted_test
async def test_goaway_ends_an_idle_connection_without_more_ado(code: int) -> None:
    """6.8, 7: a client that goes away, for whatever reason, is let go."""
    async with conversation() as client:
        client.send(goaway(0, code, b"good bye"))
        await client.wire.rest()
        assert not client.wire.reset


@twisted_test
async def test_what_comes_with_the_goaway_of_an_idle_connection_is_answered() -> None:
    """6.8: GOAWAY is about streams; it does not make frames of the connection wrong."""
    async with conversation() as client:
        client.send(goaway(), ping(b"answer!!"))
        assert (await client.until(Type.PING)).payload == b"answer!!"
        await client.wire.rest()
        assert not client.wire.reset


@pytest.mark.parametrize("last", [0, 2, RESERVED])
@twisted_test
async def test_requests_that_are_under_way_finish_after_goaway(last: int) -> None:
    """6.8: a GOAWAY of the client is about streams of the server, of which there are none."""
    async with conversation(None) as client:
        client.send(ask(1))
        server = await client.stage.origin.accept()
        client.send(goaway(last))
        assert await client.settled() == []
        await one_request(server)
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO
        await client.end()


@pytest.mark.parametrize("code", [0, 0xE, 0xFF, 0xFFFFFFFF])
@twisted_test
async def test_unknown_codes_of_rst_stream_mean_nothing_special(code: int) -> None:
    """7: a stream may be reset with any code at all."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"), rst_stream(1, code))
        assert await client.settled() == []


# Errors of the connection


@twisted_test
async def test_a_connection_error_names_the_last_stream() -> None:
    """5.4.1: GOAWAY carries the last stream that was, or may have been, acted on."""
    async with conversation() as client:
        client.send(ask(1))
        await client.response(1)
        client.send(ask(7))
        await client.response(7)
        client.send(frame(Type.PING, 0, 3, bytes(8)))
        last = await client.until(Type.GOAWAY)
        assert (last.error, last.number) == (PROTOCOL, 7)
        await client.end()


@twisted_test
async def test_what_is_still_on_its_way_does_not_turn_a_goaway_into_a_reset() -> None:
    """5.4.1: the client can read why the connection ends, even if it is still sending."""
    async with conversation() as client:
        client.send(frame(Type.PING, 0, 3, bytes(8)))
        for _ in range(20):
            client.send(ping() * 100)
            await turns(1)
        await client.connection_error(PROTOCOL)


@twisted_test
async def test_a_connection_error_ends_what_is_under_way() -> None:
    """5.4.1: half a request of a connection in error is given up at the server."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"))
        server = await client.stage.origin.accept()
        client.send(frame(Type.PING, 0, 3, bytes(8)))
        await client.connection_error(PROTOCOL)
        await eventually(lambda: server.closed, "the end of the request")


@twisted_test
async def test_one_connection_in_error_does_not_disturb_others() -> None:
    """5.4.1: a connection error concerns one connection."""
    async with conversation() as client:
        other = await greeted(client.stage)
        client.send(frame(Type.PING, 0, 3, bytes(8)))
        await client.connection_error(PROTOCOL)
        other.send(ask(1))
        assert (await other.response()).body == HELLO
