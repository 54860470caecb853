"""HTTP/2: a WebSocket in a stream (RFC 8441)."""

from __future__ import annotations

import base64
import hashlib

import pytest
from h2_frames import (
    Error,
    Type,
    data,
    headers,
    rst_stream,
)
from h2_hpack import block
from h2_wire import HELLO, Client, Fields, ask, conversation
from plane_stage import (
    END,
    Wire,
    eventually,
    fields_of,
    ok,
    one_request,
    twisted_test,
)

PROTOCOL = Error.PROTOCOL_ERROR


def connect(protocol: str = "websocket", *more: tuple[str, str]) -> Fields:
    """An extended CONNECT."""
    return [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "http"),
        (":path", "/chat"),
        (":authority", "blog.example"),
        ("sec-websocket-version", "13"),
        *more,
    ]


async def switched(client: Client, *more: tuple[str, str]) -> tuple[Wire, bytes]:
    """Have a WebSocket opened on stream 1; the server's side, and the head it got."""
    client.send(headers(1, block(connect("websocket", *more))))
    server = await client.stage.origin.accept()
    head = await server.until(END)
    key = fields_of(head)[b"sec-websocket-key"]
    assert len(base64.b64decode(key)) == 16
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    server.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Protocol: chat\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % base64.b64encode(digest)
    )
    return server, head


# A frame of RFC 6455, unmasked and masked with zeros, so that it reads the same.
FROM_SERVER = b"\x81\x05hello"
FROM_CLIENT = b"\x81\x85\0\0\0\0there"


@twisted_test
async def test_a_websocket_is_an_upgrade_towards_the_server() -> None:
    """RFC 8441, 5: the server is asked as HTTP/1.1 asks, and 101 becomes 200."""
    async with conversation(None) as client:
        _, head = await switched(client, ("sec-websocket-protocol", "chat"))
        assert head.startswith(b"GET /chat HTTP/1.1\r\n")
        fields = fields_of(head)
        assert fields[b"host"] == b"blog.example"
        assert (fields[b"connection"].lower(), fields[b"upgrade"]) == (b"upgrade", b"websocket")
        assert fields[b"sec-websocket-version"] == b"13"
        assert fields[b"sec-websocket-protocol"] == b"chat"
        answer = await client.until(Type.HEADERS, 1)
        assert answer.fields[0] == (":status", "200")
        assert not answer.ends_stream
        names = {name for name, _ in answer.fields}
        assert "sec-websocket-protocol" in names
        assert not names & {"sec-websocket-accept", "connection", "upgrade", "content-length"}


@twisted_test
async def test_what_is_said_in_a_websocket_is_data() -> None:
    """RFC 8441, 5: bytes pass both ways as DATA."""
    async with conversation(None) as client:
        server, _ = await switched(client)
        await client.until(Type.HEADERS, 1)
        client.send(data(1, FROM_CLIENT[:4]), data(1, FROM_CLIENT[4:], pad=9))
        assert await server.exactly(len(FROM_CLIENT)) == FROM_CLIENT
        server.write(FROM_SERVER)
        assert await client.content(1, len(FROM_SERVER)) == FROM_SERVER
        client.send(ask(3))
        other = await client.stage.origin.accept()
        await one_request(other)
        other.write(ok(HELLO))
        assert (await client.response(3)).body == HELLO


@twisted_test
async def test_a_websocket_ends_for_the_server_when_its_stream_does() -> None:
    """RFC 8441, 5.1: END_STREAM is the end of the connection."""
    async with conversation(None) as client:
        server, _ = await switched(client)
        await client.until(Type.HEADERS, 1)
        client.send(data(1, FROM_CLIENT, end=True))
        assert await server.exactly(len(FROM_CLIENT)) == FROM_CLIENT
        await eventually(lambda: server.closed)
        await client.settled()


@twisted_test
async def test_a_websocket_ends_for_the_client_when_the_server_closes_it() -> None:
    """RFC 8441, 5.1: the end of the connection is END_STREAM."""
    async with conversation(None) as client:
        server, _ = await switched(client)
        await client.until(Type.HEADERS, 1)
        server.write(FROM_SERVER)
        server.close()
        said = b""
        while not (frame := await client.on(1)).ends_stream:
            assert frame.type == Type.DATA, frame
            said += frame.content
        assert said + frame.content == FROM_SERVER
        await client.settled()


@twisted_test
async def test_a_websocket_that_is_reset_is_closed() -> None:
    """RFC 8441, 5.1: RST_STREAM is the reset of the connection."""
    async with conversation(None) as client:
        server, _ = await switched(client)
        await client.until(Type.HEADERS, 1)
        client.send(rst_stream(1))
        await eventually(lambda: server.closed)


@twisted_test
async def test_a_server_may_decline_a_websocket() -> None:
    """RFC 8441, 5: an answer other than 101 is passed on as it is."""
    async with conversation(None) as client:
        client.send(headers(1, block(connect())))
        server = await client.stage.origin.accept()
        await server.until(END)
        server.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        answer = await client.response()
        assert (answer.status, answer.body) == (403, b"no")
        await client.settled()


@twisted_test
async def test_a_wrong_handshake_of_the_server_is_a_502() -> None:
    """RFC 6455, 4.1: a Sec-WebSocket-Accept that does not fit is no consent."""
    async with conversation(None) as client:
        client.send(headers(1, block(connect())))
        server = await client.stage.origin.accept()
        await server.until(END)
        server.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: guess\r\n\r\n"
        )
        assert (await client.response()).status == 502
        await eventually(lambda: server.closed)


@twisted_test
async def test_other_protocols_are_not_spoken_in_streams() -> None:
    """RFC 8441, 4: an extended CONNECT for anything but WebSocket is answered 501."""
    async with conversation() as client:
        client.send(headers(1, block(connect("connect-udp"))))
        assert (await client.response()).status == 501
        client.send(ask(3))
        assert (await client.response(3)).body == HELLO


@pytest.mark.parametrize("missing", [":scheme", ":path"])
@twisted_test
async def test_an_extended_connect_says_what_it_wants(missing: str) -> None:
    """RFC 8441, 4: with :protocol, :scheme and :path must be there."""
    fields = [pair for pair in connect() if pair[0] != missing]
    async with conversation() as client:
        client.send(headers(1, block(fields)))
        await client.stream_error(1, PROTOCOL)
