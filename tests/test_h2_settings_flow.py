"""HTTP/2: settings and flow control (RFC 9113, sections 5.2, 6.5 and 6.9)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from h2_frames import (
    FRAME,
    MOST,
    WINDOW,
    Error,
    Setting,
    Type,
    data,
    rst_stream,
    settings,
    window_update,
)
from h2_wire import H2C, HELLO, Client, ask, conversation, greeted
from plane_stage import END, Wire, always, eventually, ok, one_request, stage, turns, twisted_test

from awesomeproxy.model import Mode

PROTOCOL = Error.PROTOCOL_ERROR
FLOW = Error.FLOW_CONTROL_ERROR
LONG = bytes(range(256)) * 4096  # a megabyte


def window(size: int) -> tuple[int, int]:
    """The window that every stream begins with."""
    return (Setting.INITIAL_WINDOW_SIZE, size)


class Pump:
    """Writes so many megabytes as they are taken."""

    def __init__(self, wire: Wire, megabytes: int) -> None:
        self.left = megabytes
        self._wire = wire
        wire.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.left -= 1
        self._wire.write(LONG)
        if not self.left:
            self._wire.transport.unregisterProducer()

    def stopProducing(self) -> None:
        pass


# What the server announces


@twisted_test
async def test_the_servers_settings_are_within_their_bounds() -> None:
    """6.5.2: what is announced is valid, and no push is."""
    async with conversation() as client:
        assert client.settings.get(Setting.ENABLE_PUSH, 0) == 0
        assert client.settings.get(Setting.INITIAL_WINDOW_SIZE, WINDOW) <= MOST
        assert FRAME <= client.settings.get(Setting.MAX_FRAME_SIZE, FRAME) < 2**24
        assert client.settings[Setting.MAX_CONCURRENT_STREAMS] == H2C.max_streams


@twisted_test
async def test_the_size_of_a_head_is_announced() -> None:
    """6.5.2, 10.5.1: SETTINGS_MAX_HEADER_LIST_SIZE is what the listener allows, at the least."""
    async with conversation(listen=replace(H2C, max_head=9000)) as client:
        assert 9000 <= client.settings[Setting.MAX_HEADER_LIST_SIZE] <= 2 * 9000


@twisted_test
async def test_extended_connect_is_announced() -> None:
    """RFC 8441, 3: SETTINGS_ENABLE_CONNECT_PROTOCOL is 1."""
    async with conversation() as client:
        assert client.settings[Setting.ENABLE_CONNECT_PROTOCOL] == 1


# What the client sets


GOOD = [
    (Setting.HEADER_TABLE_SIZE, 0),
    (Setting.HEADER_TABLE_SIZE, 4096),
    (Setting.HEADER_TABLE_SIZE, 2**32 - 1),
    (Setting.ENABLE_PUSH, 0),
    (Setting.ENABLE_PUSH, 1),
    (Setting.MAX_CONCURRENT_STREAMS, 0),
    (Setting.MAX_CONCURRENT_STREAMS, 2**32 - 1),
    (Setting.INITIAL_WINDOW_SIZE, MOST),
    (Setting.MAX_FRAME_SIZE, FRAME),
    (Setting.MAX_FRAME_SIZE, 2**24 - 1),
    (Setting.MAX_HEADER_LIST_SIZE, 100),
    (Setting.MAX_HEADER_LIST_SIZE, 2**32 - 1),
    (Setting.ENABLE_CONNECT_PROTOCOL, 0),
    (Setting.ENABLE_CONNECT_PROTOCOL, 1),
    (0x0, 1),
    (0x7, 1),
    (0xFF, 1),
    (0xFFFF, 2**32 - 1),
]


@pytest.mark.parametrize("pair", GOOD, ids=str)
@twisted_test
async def test_settings_are_acknowledged(pair: tuple[int, int]) -> None:
    """6.5.2, 6.5.3: every defined value is taken, and what is unknown is ignored."""
    async with conversation() as client:
        if pair[0] == Setting.HEADER_TABLE_SIZE:
            client.decoder.max_allowed_table_size = pair[1]
        client.send(settings(pair))
        answer = await client.until(Type.SETTINGS)
        assert (answer.flags, answer.stream, answer.payload) == (1, 0, b"")
        client.send(ask(1))
        assert (await client.response()).body == HELLO


BAD = [
    (Setting.ENABLE_PUSH, 2, PROTOCOL),
    (Setting.ENABLE_PUSH, 2**32 - 1, PROTOCOL),
    (Setting.INITIAL_WINDOW_SIZE, MOST + 1, FLOW),
    (Setting.INITIAL_WINDOW_SIZE, 2**32 - 1, FLOW),
    (Setting.MAX_FRAME_SIZE, 0, PROTOCOL),
    (Setting.MAX_FRAME_SIZE, FRAME - 1, PROTOCOL),
    (Setting.MAX_FRAME_SIZE, 2**24, PROTOCOL),
    (Setting.ENABLE_CONNECT_PROTOCOL, 2, PROTOCOL),
]


@pytest.mark.parametrize("later", [True, False], ids=["later", "preface"])
@pytest.mark.parametrize(("setting", "value", "error"), BAD)
@twisted_test
async def test_values_out_of_bounds_are_connection_errors(
    setting: int, value: int, error: Error, later: bool
) -> None:
    """6.5.2; RFC 8441, 3: a value that must not be ends the connection."""
    async with stage(listen=H2C) as s:
        client = Client(await s.connect(), s)
        if later:
            await client.greet()
            client.send(settings((setting, value)))
        else:
            client.wire.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings((setting, value)))
        await client.connection_error(error)


@twisted_test
async def test_every_settings_frame_is_acknowledged_once() -> None:
    """6.5.3: as many acknowledgements as there were SETTINGS, and none for those."""
    async with conversation() as client:
        client.send(settings(window(1)), settings(), settings(window(WINDOW), (0xFF, 1)))
        acks = await client.settled()
        assert [(f.type, f.ack) for f in acks] == [(Type.SETTINGS, True)] * 3


@twisted_test
async def test_settings_are_not_changed_behind_the_clients_back() -> None:
    """6.5: the server announces its settings once."""
    async with conversation() as client:
        for stream in (1, 3, 5):
            client.send(ask(stream))
            await client.response(stream)
        assert sum(f.type == Type.SETTINGS and not f.ack for f in client.came) == 1


@twisted_test
async def test_the_last_of_several_values_counts() -> None:
    """6.5.3: the parameters of one frame are taken in their order."""
    async with conversation() as client:
        await client.agree(window(100), window(1))
        client.send(ask(1))
        assert (await client.until(Type.DATA, 1)).content == HELLO[:1]
        assert await client.settled() == []


@pytest.mark.parametrize("size", [FRAME, 20_000, 2**24 - 1])
@twisted_test
async def test_frames_are_no_longer_than_the_client_allows(size: int) -> None:
    """4.2: SETTINGS_MAX_FRAME_SIZE of the client bounds what it is sent."""
    pairs = ((Setting.MAX_FRAME_SIZE, size), window(MOST))
    async with conversation(always(ok(LONG)), pairs=pairs) as client:
        client.send(window_update(0, MOST - WINDOW), ask(1))
        assert (await client.response()).body == LONG
        assert max(len(f.payload) for f in client.came) <= size


@twisted_test
async def test_a_client_without_a_table_is_sent_fields_that_need_none() -> None:
    """RFC 7541, 4.2: after SETTINGS_HEADER_TABLE_SIZE 0 nothing refers to the dynamic table."""
    answer = ok(HELLO, b"X-Same: every time")
    async with conversation(always(answer)) as client:
        client.send(ask(1))
        assert (await client.response(1))["x-same"] == "every time"
        await client.agree((Setting.HEADER_TABLE_SIZE, 0))
        client.decoder.max_allowed_table_size = 0
        for stream in (3, 5):
            client.send(ask(stream))
            assert (await client.response(stream))["x-same"] == "every time"
        assert client.decoder.header_table_size == 0


@twisted_test
async def test_a_smaller_table_of_the_client_is_respected() -> None:
    """RFC 7541, 4.2: the table is never larger than the client has said."""
    fields = [b"X-%d: %b" % (number, b"v" * 50) for number in range(20)]
    async with conversation(always(ok(HELLO, *fields))) as client:
        await client.agree((Setting.HEADER_TABLE_SIZE, 200))
        client.decoder.max_allowed_table_size = 200
        for stream in (1, 3, 5):
            client.send(ask(stream))
            assert (await client.response(stream))["x-19"] == "v" * 50
        assert client.decoder.header_table_size <= 200


# What is sent: the client's windows


@pytest.mark.parametrize("size", [1, 3, 9])
@twisted_test
async def test_no_more_is_sent_than_the_stream_has_room_for(size: int) -> None:
    """6.9.1: DATA is no longer than the stream's window, and goes on when it grows."""
    async with conversation(pairs=(window(size),)) as client:
        client.send(ask(1))
        first = await client.until(Type.DATA, 1)
        assert (first.content, first.ends_stream) == (HELLO[:size], False)
        assert await client.settled() == []
        client.send(window_update(1, 100))
        rest = await client.until(Type.DATA, 1)
        assert (rest.content, rest.ends_stream) == (HELLO[size:], True)


@twisted_test
async def test_a_response_is_taken_byte_by_byte() -> None:
    """6.9: each WINDOW_UPDATE lets as much pass as it says."""
    async with conversation(pairs=(window(0),)) as client:
        client.send(ask(1))
        assert (await client.until(Type.HEADERS, 1)).fields[0] == (":status", "200")
        assert await client.settled() == []
        for number in range(len(HELLO)):
            client.send(window_update(1, 1))
            part = await client.until(Type.DATA, 1)
            assert part.content == HELLO[number : number + 1]
        if not part.ends_stream:
            assert (await client.on(1)).ends_stream


@twisted_test
async def test_what_needs_no_room_is_sent_without() -> None:
    """6.9: only DATA is flow-controlled, and only what it carries."""
    trailers = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\n"
    async with conversation(always(ok(b"")), pairs=(window(0),)) as client:
        client.send(ask(1))
        assert (await client.response()).body == b""
    async with conversation(always(trailers), pairs=(window(0),)) as client:
        client.send(ask(1, ("te", "trailers")))
        assert (await client.response()).trailers == [("x-sum", "1")]


@twisted_test
async def test_no_more_is_sent_than_the_connection_has_room_for() -> None:
    """6.9.1: all streams together have the connection's window, which SETTINGS do not change."""
    async with conversation(always(ok(LONG)), pairs=(window(MOST),)) as client:
        client.send(ask(1), ask(3))
        await eventually_sent(client, WINDOW)
        client.send(window_update(0, 1000))
        await eventually_sent(client, WINDOW + 1000)
        client.send(window_update(0, MOST - WINDOW))
        assert (await client.response(1)).body == LONG
        assert (await client.response(3)).body == LONG


async def eventually_sent(client: Client, size: int) -> None:
    """Wait until so much DATA has come, and see that it stays so."""

    def sent() -> int:
        return sum(len(f.payload) for f in client.came if f.type == Type.DATA)

    while sent() < size:
        await client.settled()
    await turns(10)
    await client.settled()
    assert sent() == size


@twisted_test
async def test_one_stream_without_room_does_not_hold_up_others() -> None:
    """5.2.1: each stream has a window of its own."""
    async with conversation(always(ok(LONG)), pairs=(window(10),)) as client:
        client.send(window_update(0, MOST - WINDOW), ask(1))
        assert len((await client.until(Type.DATA, 1)).content) == 10
        client.send(ask(3), window_update(3, len(LONG)))
        assert (await client.response(3)).body == LONG


@twisted_test
async def test_a_new_initial_window_changes_those_of_open_streams() -> None:
    """6.9.2: the windows of all streams change by the difference."""
    async with conversation(pairs=(window(0),)) as client:
        client.send(ask(1), ask(3), settings(window(1)))
        for stream in (1, 3):
            assert (await client.until(Type.DATA, stream)).content == HELLO[:1]
        client.send(settings(window(4)))
        for stream in (1, 3):
            assert (await client.until(Type.DATA, stream)).content == HELLO[1:4]


@twisted_test
async def test_a_window_may_become_negative() -> None:
    """6.9.2: what was sent beyond the new window has to be made up for first."""
    async with conversation(pairs=(window(3),)) as client:
        client.send(ask(1))
        assert (await client.until(Type.DATA, 1)).content == HELLO[:3]
        await client.agree(window(1))
        client.send(window_update(1, 1))
        assert await client.settled() == []
        client.send(window_update(1, 1))
        assert await client.settled() == []
        client.send(window_update(1, 1))
        assert (await client.until(Type.DATA, 1)).content == HELLO[3:4]


@twisted_test
async def test_a_new_initial_window_does_not_concern_the_connection() -> None:
    """6.9.2: only a WINDOW_UPDATE changes the connection's window."""
    async with conversation(always(ok(LONG))) as client:
        await client.agree(window(0))
        await client.agree(window(MOST))
        client.send(ask(1))
        await eventually_sent(client, WINDOW)


# WINDOW_UPDATEs that must not be


@twisted_test
async def test_an_increment_of_nothing_on_a_stream_is_an_error() -> None:
    """6.9: a WINDOW_UPDATE of 0 on a stream is a PROTOCOL_ERROR."""
    async with conversation(None) as client:
        client.send(ask(1, end=False), window_update(1, 0))
        await client.error(1, PROTOCOL)


@twisted_test
async def test_an_increment_of_nothing_on_the_connection_is_a_connection_error() -> None:
    """6.9: a WINDOW_UPDATE of 0 on stream 0 is a PROTOCOL_ERROR of the connection."""
    async with conversation() as client:
        client.send(window_update(0, 0))
        await client.connection_error(PROTOCOL)


@twisted_test
async def test_the_largest_windows_are_allowed() -> None:
    """6.9.1: a window may be 2^31-1."""
    async with conversation(always(ok(LONG))) as client:
        client.send(window_update(0, MOST - WINDOW), ask(1), window_update(1, MOST - WINDOW))
        assert (await client.response()).body == LONG


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("increments", [(MOST,), (MOST - WINDOW, 1), (MOST, MOST)])
@twisted_test
async def test_a_streams_window_must_not_be_too_large(
    increments: tuple[int, ...], end: bool
) -> None:
    """6.9.1: a stream's window above 2^31-1 resets the stream, with FLOW_CONTROL_ERROR."""
    async with conversation(None) as client:
        client.send(ask(1, end=end), *(window_update(1, size) for size in increments))
        await client.stream_error(1, FLOW)


@pytest.mark.parametrize("increments", [(MOST,), (MOST - WINDOW, 1), (MOST, MOST)])
@twisted_test
async def test_the_connections_window_must_not_be_too_large(increments: tuple[int, ...]) -> None:
    """6.9.1: the connection's window above 2^31-1 ends it, with FLOW_CONTROL_ERROR."""
    async with conversation() as client:
        client.send(*(window_update(0, size) for size in increments))
        await client.connection_error(FLOW)


@twisted_test
async def test_settings_must_not_make_a_window_too_large() -> None:
    """6.9.2: an initial window that lets one of a stream overflow is a connection error."""
    async with conversation(None) as client:
        client.send(
            ask(1, end=False), window_update(1, MOST - WINDOW), settings(window(WINDOW + 1))
        )
        await client.connection_error(FLOW)


# What is received: our windows


@twisted_test
async def test_a_long_body_is_taken_as_fast_as_the_server_takes_it() -> None:
    """5.2, 6.9: windows are opened again as a body is passed on."""
    async with conversation(None) as client:
        client.send(ask(1, ("content-length", str(len(LONG))), end=False, method="POST"))
        await client.upload(1, LONG)
        server = await client.stage.origin.accept()
        assert (await one_request(server))[1] == LONG
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_padding_is_given_back_as_well() -> None:
    """6.9.1: the whole payload of DATA counts, and all of it is given back."""
    frames = 4 * WINDOW // 256
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"))
        for _ in range(frames):
            while min(client.room[0], client.room[1]) < 257:
                await client.until(Type.WINDOW_UPDATE)
            client.room[0] -= 257
            client.room[1] -= 257
            client.send(data(1, b"a", pad=255))
        client.send(data(1, end=True))
        server = await client.stage.origin.accept()
        assert (await one_request(server))[1] == b"a" * frames


@twisted_test
async def test_a_body_that_nobody_reads_is_stopped() -> None:
    """5.2, 10.5: no more of a body is asked for than the server takes."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"))
        server = await client.stage.origin.accept()
        server.stop_reading()
        assert await client.fill(1, 64 << 20) < 64 << 20
        server.read_on()
        client.send(data(1, end=True))
        await server.until(END)
        await server.until(b"\r\n0\r\n\r\n")
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO


@pytest.mark.parametrize("pad", [None, 255])
@twisted_test
async def test_a_body_beyond_the_window_is_an_error(pad: int | None) -> None:
    """6.9.1: whoever sends more than there is room for is told FLOW_CONTROL_ERROR."""
    async with conversation(None) as client:
        client.stage.place(Mode.HOLDING)
        client.send(ask(1, end=False, method="POST"))
        assert await client.fill(1) >= WINDOW
        client.send(data(1, b"a", pad=pad))
        await client.error(1, FLOW)


@twisted_test
async def test_the_body_of_a_held_request_waits_where_it_is() -> None:
    """5.2, 10.5: what one held request keeps of its body is bounded by the stream's window."""
    async with conversation(None) as client:
        client.stage.place(Mode.HOLDING)
        client.send(ask(1, end=False, method="POST"))
        sent = await client.fill(1)
        assert sent <= max(WINDOW, client.settings.get(Setting.INITIAL_WINDOW_SIZE, WINDOW))
        client.stage.place()
        server = await client.stage.origin.accept()
        await client.upload(1, LONG)
        assert len((await one_request(server))[1]) == sent + len(LONG)
        server.write(ok(HELLO))
        assert (await client.response()).body == HELLO


@twisted_test
async def test_a_body_that_waits_does_not_hold_up_other_streams() -> None:
    """5.2.2: one request that is not read leaves the connection room for the others."""
    async with conversation(None) as client:
        client.send(ask(1, end=False, method="POST"))
        stuck = await client.stage.origin.accept()
        stuck.stop_reading()
        assert await client.fill(1, 64 << 20) < 64 << 20
        client.send(ask(3, end=False, method="POST"))
        await client.upload(3, LONG)
        server = await client.stage.origin.accept()
        assert (await one_request(server))[1] == LONG
        server.write(ok(HELLO))
        assert (await client.response(3)).body == HELLO


@twisted_test
async def test_a_server_is_stopped_while_its_client_has_no_room() -> None:
    """5.2: a response is read from the server only as the client takes it."""
    async with stage(listen=H2C) as s:
        client = await greeted(s, window(1000))
        client.send(ask(1))
        server = await s.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * len(LONG)))
        pump = Pump(server, 64)
        await eventually_sent(client, 1000)
        assert pump.left
        client.send(rst_stream(1))
        await eventually(lambda: server.closed)
