"""HTTP/2: the compression of fields (RFC 7541).

What the proxy decodes is seen at the server; that it cannot be decoded, in a connection
error of type COMPRESSION_ERROR (RFC 9113, section 4.3).
"""

from __future__ import annotations

import itertools

import pytest
from h2_frames import (
    Error,
    Setting,
    Type,
    continued,
    headers,
)
from h2_hpack import (
    CODES,
    ENTRY,
    EOS,
    INDEXED,
    NEVER_INDEXED,
    STATIC,
    UNINDEXED,
    bits,
    block,
    huffman,
    indexed,
    integer,
    literal,
    octets,
    raw_string,
    string,
    table_size,
)
from h2_wire import HELLO, Client, conversation, request
from plane_stage import Wire, always, eventually, ok, one_request, twisted_test

BLOCK = block(request())
NEWEST = STATIC + 1  # the index of what was added last
KINDS = {"indexed": INDEXED, "unindexed": UNINDEXED, "never indexed": NEVER_INDEXED}


async def mirror(wire: Wire) -> None:
    """A server that answers each request with the head of it."""
    while True:
        head, _ = await one_request(wire)
        wire.write(ok(head))


async def arrived(client: Client, stream: int, *fragments: bytes) -> list[bytes]:
    """Send a request; the lines of the head with which it reaches the server."""
    if len(fragments) > 1:
        client.send(continued(stream, fragments, end=True))
    else:
        client.send(headers(stream, fragments[0], end=True))
    return (await client.response(stream)).body.split(b"\r\n")


# The tests' own encoder, by the examples of the RFC


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (integer(10, 5), "0a"),  # C.1.1
        (integer(1337, 5), "1f9a0a"),  # C.1.2
        (integer(42, 8), "2a"),  # C.1.3
        (integer(31, 5), "1f00"),
        (
            literal(b"custom-key", b"custom-header", INDEXED),  # C.2.1
            "400a637573746f6d2d6b65790d637573746f6d2d686561646572",
        ),
        (literal(4, b"/sample/path"), "040c2f73616d706c652f70617468"),  # C.2.2
        (
            literal(b"password", b"secret", NEVER_INDEXED),  # C.2.3
            "100870617373776f726406736563726574",
        ),
        (indexed(2), "82"),  # C.2.4
        (
            literal(1, b"www.example.com", INDEXED, coded=True),  # C.4.1
            "418cf1e3c2e5f23a6ba0ab90f4ff",
        ),
        (
            literal(b"custom-key", b"custom-value", INDEXED, coded=True),  # C.4.3
            "408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ),
        (
            string(b"Mon, 21 Oct 2013 20:13:21 GMT", coded=True),  # C.6.1
            "96d07abe941054d444a8200595040b8166e082a62d1bff",
        ),
        (table_size(4096), "3fe11f"),
    ],
)
def test_what_is_encoded_here_is_what_the_rfc_says(encoded: bytes, expected: str) -> None:
    """Appendix C: the examples come out as they are printed."""
    assert encoded.hex() == expected


def test_no_code_begins_another() -> None:
    """5.2: the Huffman code of 256 octets and EOS is a full prefix code."""
    assert sorted(CODES) == list(range(256))
    codes = sorted([*CODES.values(), EOS])
    assert not any(b.startswith(a) for a, b in itertools.pairwise(codes))
    assert sum(2.0 ** -len(code) for code in codes) == 1


# Representations


@pytest.mark.parametrize("coded", [False, True], ids=["plain", "Huffman"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@twisted_test
async def test_literals_with_new_names(kind: tuple[int, int], coded: bool) -> None:
    """6.2: name and value may be written out, with any of three kinds of literal."""
    async with conversation(mirror) as client:
        field = literal(b"x-test", b"made up", kind, coded=coded)
        assert b"x-test: made up" in await arrived(client, 1, BLOCK + field)


@pytest.mark.parametrize("coded", [False, True], ids=["plain", "Huffman"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@twisted_test
async def test_literals_with_names_of_the_static_table(kind: tuple[int, int], coded: bool) -> None:
    """6.2: the name may be one of the static table (58 is user-agent)."""
    async with conversation(mirror) as client:
        field = literal(58, b"a client", kind, coded=coded)
        assert b"user-agent: a client" in await arrived(client, 1, BLOCK + field)


@pytest.mark.parametrize("coded", [False, True], ids=["plain", "Huffman"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@twisted_test
async def test_literals_with_names_of_the_dynamic_table(kind: tuple[int, int], coded: bool) -> None:
    """6.2: the name may be one that was added before."""
    async with conversation(mirror) as client:
        first = literal(b"x-test", b"first", INDEXED)
        again = literal(NEWEST, b"second", kind, coded=coded)
        lines = await arrived(client, 1, BLOCK + first + again)
        assert lines.index(b"x-test: first") < lines.index(b"x-test: second")


@twisted_test
async def test_a_whole_request_may_be_in_the_static_table() -> None:
    """6.1, appendix A: GET, http and / are 2, 6 and 4."""
    async with conversation(mirror) as client:
        fragment = indexed(2) + indexed(6) + indexed(4) + literal(1, b"blog.example")
        lines = await arrived(client, 1, fragment)
        assert lines[0] == b"GET / HTTP/1.1"
        assert b"Host: blog.example" in lines


STATIC_FIELDS = {
    3: b"POST / HTTP/1.1",
    5: b"GET /index.html HTTP/1.1",
    16: b"accept-encoding: gzip, deflate",
    19: b"accept:",
    32: b"cookie:",
    50: b"range:",
    58: b"user-agent:",
}


@pytest.mark.parametrize("index", STATIC_FIELDS)
@twisted_test
async def test_entries_of_the_static_table(index: int) -> None:
    """6.1, appendix A: an index stands for a name and a value, be it empty."""
    async with conversation(mirror) as client:
        method = indexed(3 if index == 3 else 2)
        path = indexed(5 if index == 5 else 4)
        fragment = method + indexed(6) + path + literal(1, b"blog.example")
        if index > 7:
            fragment += indexed(index)
        lines = await arrived(client, 1, fragment)
        assert STATIC_FIELDS[index] in [line.rstrip(b" ") for line in lines]


@pytest.mark.parametrize("index", range(1, STATIC + 1))
@twisted_test
async def test_every_entry_of_the_static_table_can_be_named(index: int) -> None:
    """6.1: all 61 entries exist; none of them is a COMPRESSION_ERROR."""
    async with conversation() as client:
        client.send(headers(1, indexed(index), end=True))
        await client.stream_error(1, Error.PROTOCOL_ERROR)


# Strings and integers


@twisted_test
async def test_every_octet_has_its_huffman_code() -> None:
    """5.2, appendix B: what may be in a value arrives as it was."""
    value = bytes((9, *range(32, 127), *range(128, 256)))  # RFC 9110, 5.5
    value = b"<" + value + b">"
    async with conversation(mirror) as client:
        field = literal(b"x-all", value, coded=True)
        assert b"x-all: " + value in await arrived(client, 1, BLOCK + field)


@pytest.mark.parametrize("text", [b"", b"a", b"&", b"aaaaaaaa", b"~~~", b"\xff" * 4])
@twisted_test
async def test_huffman_codes_end_anywhere_in_an_octet(text: bytes) -> None:
    """5.2: up to seven bits of padding are taken off."""
    async with conversation(mirror) as client:
        lines = await arrived(client, 1, BLOCK + literal(b"x-any", text, coded=True))
        assert b"x-any: " + text in lines


@pytest.mark.parametrize("size", [126, 127, 128, 254, 255, 4000, 9000])
@twisted_test
async def test_lengths_may_take_several_octets(size: int) -> None:
    """5.1: a length that does not fit in seven bits goes on."""
    async with conversation(mirror) as client:
        lines = await arrived(client, 1, BLOCK + literal(b"x-long", b"v" * size))
        assert b"x-long: " + b"v" * size in lines


@twisted_test
async def test_integers_may_be_written_longer_than_need_be() -> None:
    """5.1: an integer may end in octets that add nothing."""
    async with conversation(mirror) as client:
        length = b"\x7f\x81\x80\x80\x00"  # 127 + 1
        field = b"\0" + string(b"x-long") + length + b"v" * 128
        assert b"x-long: " + b"v" * 128 in await arrived(client, 1, BLOCK + field)


# The dynamic table


@twisted_test
async def test_what_was_added_can_be_referred_to() -> None:
    """2.3.2, 2.3.3: entries are numbered from the newest, over all blocks of a connection."""
    async with conversation(mirror) as client:
        add = b"".join(literal(b"x-%d" % n, b"value %d" % n, INDEXED) for n in range(3))
        await arrived(client, 1, BLOCK + add)
        lines = await arrived(client, 3, BLOCK + b"".join(indexed(NEWEST + n) for n in range(3)))
        assert lines.index(b"x-2: value 2") < lines.index(b"x-0: value 0")
        assert b"x-1: value 1" in lines


@pytest.mark.parametrize("kind", [UNINDEXED, NEVER_INDEXED], ids=["unindexed", "never"])
@twisted_test
async def test_what_was_not_added_cannot_be_referred_to(kind: tuple[int, int]) -> None:
    """6.2.2, 6.2.3: these literals leave the table alone."""
    async with conversation() as client:
        client.send(headers(1, BLOCK + literal(b"x-test", b"a", kind) + indexed(NEWEST), end=True))
        await client.connection_error(Error.COMPRESSION_ERROR)


@twisted_test
async def test_equal_entries_are_added_again() -> None:
    """2.3.2: the table may have the same field twice."""
    async with conversation(mirror) as client:
        same = literal(b"x-test", b"a", INDEXED)
        lines = await arrived(client, 1, BLOCK + same + same + indexed(NEWEST + 1))
        assert lines.count(b"x-test: a") == 3


@twisted_test
async def test_the_oldest_entries_make_room() -> None:
    """4.4: what exceeds 4096 octets is dropped from the old end."""
    size = (4096 // 4) - ENTRY - len(b"x-0")  # four of these fill the table
    values = [bytes([97 + n]) * size for n in range(5)]
    async with conversation(mirror) as client:
        add = [literal(b"x-%d" % n, value, INDEXED) for n, value in enumerate(values)]
        await arrived(client, 1, BLOCK + b"".join(add[:4]))
        assert b"x-0: " + values[0] in await arrived(client, 3, BLOCK + indexed(NEWEST + 3))
        await arrived(client, 5, BLOCK + add[4])
        assert b"x-1: " + values[1] in await arrived(client, 7, BLOCK + indexed(NEWEST + 3))
        client.send(headers(9, BLOCK + indexed(NEWEST + 4), end=True))
        await client.connection_error(Error.COMPRESSION_ERROR)


@twisted_test
async def test_an_entry_larger_than_the_table_empties_it() -> None:
    """4.4: that is no error, and nothing is left."""
    async with conversation(mirror) as client:
        huge = literal(b"x-huge", b"h" * 5000, INDEXED)
        lines = await arrived(client, 1, BLOCK + literal(b"x-test", b"a", INDEXED) + huge)
        assert b"x-huge: " + b"h" * 5000 in lines
        client.send(headers(3, BLOCK + indexed(NEWEST), end=True))
        await client.connection_error(Error.COMPRESSION_ERROR)


@twisted_test
async def test_a_new_entry_may_take_its_name_from_one_it_drops() -> None:
    """4.4: the name is looked up before room is made."""
    size = 4096 - ENTRY - len(b"x-test")
    async with conversation(mirror) as client:
        first = literal(b"x-test", b"a" * size, INDEXED)
        second = literal(NEWEST, b"b" * size, INDEXED)
        lines = await arrived(client, 1, BLOCK + first + second)
        assert b"x-test: " + b"b" * size in lines


@pytest.mark.parametrize(
    "sizes",
    [[0], [0, 4096], [4096], [100, 0, 4096], [0, 0]],
    ids=str,
)
@twisted_test
async def test_the_size_of_the_table_may_be_changed(sizes: list[int]) -> None:
    """4.2, 6.3: size updates may stand at the beginning of a block."""
    async with conversation(mirror) as client:
        updates = b"".join(map(table_size, sizes))
        lines = await arrived(client, 1, updates + BLOCK + literal(b"x-test", b"a", INDEXED))
        assert b"x-test: a" in lines
        if sizes[-1]:
            assert b"x-test: a" in await arrived(client, 3, BLOCK + indexed(NEWEST))


@twisted_test
async def test_a_size_of_nothing_empties_the_table() -> None:
    """4.3: what does not fit any more is dropped, and does not come back."""
    async with conversation(mirror) as client:
        await arrived(client, 1, BLOCK + literal(b"x-test", b"a", INDEXED))
        await arrived(client, 3, table_size(0) + table_size(4096) + BLOCK)
        client.send(headers(5, BLOCK + indexed(NEWEST), end=True))
        await client.connection_error(Error.COMPRESSION_ERROR)


@twisted_test
async def test_equal_blocks_mean_what_the_table_says_at_the_time() -> None:
    """2.3.3: a block that comes again may mean something else."""
    async with conversation(mirror) as client:
        same = BLOCK + indexed(NEWEST)
        for stream, value in ((1, b"a"), (7, b"b"), (13, b"c")):
            add = literal(b"x-test", value, INDEXED)
            await arrived(client, stream, BLOCK + add)
            for again in (2, 4):
                assert b"x-test: " + value in await arrived(client, stream + again, same)
        await arrived(client, 19, table_size(0) + table_size(4096) + BLOCK)
        client.send(headers(21, same, end=True))
        await client.connection_error(Error.COMPRESSION_ERROR)


@twisted_test
async def test_a_block_that_adds_to_the_table_does_so_each_time() -> None:
    """2.3.2: what a block refers to moves on when it comes again."""
    async with conversation(mirror) as client:
        await arrived(client, 1, BLOCK + literal(b"x-old", b"1", INDEXED))
        moving = BLOCK + literal(b"x-new", b"2", INDEXED) + indexed(NEWEST + 1)
        assert b"x-old: 1" in await arrived(client, 3, moving)
        lines = await arrived(client, 5, moving)
        assert b"x-old: 1" not in lines
        assert lines.count(b"x-new: 2") == 2
        assert b"x-old: 1" in await arrived(client, 7, BLOCK + indexed(NEWEST + 2))


@twisted_test
async def test_the_table_is_one_for_all_streams_whatever_becomes_of_them() -> None:
    """RFC 9113, 4.3: the block of a malformed request changes the table as well."""
    async with conversation(mirror) as client:
        bad = block([("X-Bad", "name")]) + literal(b"x-mark", b"kept", INDEXED)
        client.send(headers(1, BLOCK + bad, end=True))
        await client.stream_error(1, Error.PROTOCOL_ERROR)
        assert b"x-mark: kept" in await arrived(client, 3, BLOCK + indexed(NEWEST))


# What cannot be decoded


def coded(value: bytes) -> bytes:
    """A field whose value claims to be in the Huffman code."""
    return b"\0" + string(b"x-test") + raw_string(value, coded=True)


WRONG = {
    "index 0": BLOCK + indexed(0),
    "index 62 of nothing": BLOCK + indexed(NEWEST),
    "index 126": BLOCK + indexed(126),
    "index 2^31": BLOCK + indexed(2**31),
    "name 62 of nothing": BLOCK + literal(NEWEST, b"a"),
    "name 62 of nothing, added": BLOCK + literal(NEWEST, b"a", INDEXED),
    "name 200 of nothing, never": BLOCK + literal(200, b"a", NEVER_INDEXED),
    "a literal without anything": b"\x40",
    "a literal without a name": BLOCK + b"\x00",
    "a literal without a value": BLOCK + b"\x00" + string(b"x-test"),
    "a name that is too short": BLOCK + b"\x00\x0ax-test",
    "a value that is too short": BLOCK + b"\x00" + string(b"x-test") + b"\x0aa",
    "a coded value that is too short": BLOCK + b"\x00" + string(b"x-test") + b"\x8a\xff",
    "an index without an end": BLOCK + b"\xff\x80\x80",
    "an index without a beginning": BLOCK + b"\xff",
    "a length without an end": BLOCK + b"\x00\x7f\x80",
    "a length of 2^32": BLOCK + b"\x00" + integer(2**32, 7),
    "a length of 2^63": BLOCK + b"\x00" + integer(2**63, 7),
    "an index beyond all numbers": BLOCK + b"\xff" + b"\xff" * 30 + b"\x01",
    "an index of many octets": BLOCK + b"\xff" + b"\x80" * 1000 + b"\x01",
    "a size of the table above the limit": table_size(4097) + BLOCK,
    "a size of the table far above the limit": table_size(2**32) + BLOCK,
    "a size behind others above the limit": table_size(0) + table_size(4097) + BLOCK,
    "a size at the end": BLOCK + table_size(1),
    "a size in between": BLOCK[:12] + table_size(100) + BLOCK[12:],
    "eight bits of padding": BLOCK + coded(huffman(b"test") + b"\xff"),
    "only padding": BLOCK + coded(b"\xff"),
    "padding of zeros": BLOCK + coded(octets(bits(b"test") + "0" * 4)),
    "EOS": BLOCK + coded(octets(EOS + "11")),
    "EOS in between": BLOCK + coded(octets(bits(b"&") + EOS + bits(b"&") + "11")),
    "EOS in a name": BLOCK + b"\0" + raw_string(octets(EOS + "11"), coded=True) + string(b"a"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@twisted_test
async def test_what_cannot_be_decoded_ends_the_connection(wrong: bytes) -> None:
    """2.3.3, 3, 4.2, 5.1, 5.2, 6.1, 6.3: a decoding error is a COMPRESSION_ERROR."""
    async with conversation() as client:
        client.send(headers(1, wrong, end=True))
        await client.connection_error(Error.COMPRESSION_ERROR)


@twisted_test
async def test_trailers_that_cannot_be_decoded_end_the_connection() -> None:
    """RFC 9113, 4.3: this holds for every field block."""
    async with conversation(None) as client:
        client.send(headers(1, BLOCK), headers(1, indexed(0), end=True))
        await client.connection_error(Error.COMPRESSION_ERROR)


@twisted_test
async def test_a_block_in_several_frames_is_decoded_as_one() -> None:
    """RFC 9113, 4.3: what a fragment lacks, the next may bring; what the last lacks, none can."""
    async with conversation(mirror) as client:
        field = literal(b"x-test", b"in two", INDEXED, coded=True)
        whole = BLOCK + field
        for stream, at in ((1, len(BLOCK) + 1), (3, len(BLOCK) + 4), (5, len(whole) - 1)):
            assert b"x-test: in two" in await arrived(client, stream, whole[:at], whole[at:])
        client.send(continued(9, [whole, field[:-1]], end=True))
        await client.connection_error(Error.COMPRESSION_ERROR)


# Too much of it


@pytest.mark.parametrize("count", [1000, 9000])
@twisted_test
async def test_a_small_block_does_not_become_a_large_request(count: int) -> None:
    """7.3; RFC 9113, 10.5.1: many references to a large entry are not expanded to megabytes."""
    large = literal(b"x-large", b"v" * 4000, INDEXED)
    async with conversation(None) as client:
        client.send(headers(1, BLOCK + large + indexed(NEWEST) * count, end=True))
        frame = await client.next()
        while frame.type == Type.WINDOW_UPDATE:
            frame = await client.next()
        if frame.type == Type.HEADERS:
            assert frame.fields[0] == (":status", "431")
        else:
            assert frame.error in (Error.ENHANCE_YOUR_CALM, Error.PROTOCOL_ERROR), frame
        await eventually(lambda: not client.stage.gate.in_flight)
        assert client.stage.origin.received == b""


# What the proxy encodes


@pytest.mark.parametrize("allowed", [65_536, 2**24, 2**32 - 1])
@twisted_test
async def test_a_larger_table_of_the_client_is_not_used_without_bound(allowed: int) -> None:
    """4.2; RFC 9113, 10.5.1: the client sets a limit of the table, and we another."""
    fields = [b"X-%d: %b" % (number, b"v" * 400) for number in range(20)]
    async with conversation(always(ok(HELLO, *fields))) as client:
        await client.agree((Setting.HEADER_TABLE_SIZE, allowed))
        client.decoder.max_allowed_table_size = 65_536
        for stream in (1, 3, 5):
            client.send(headers(stream, BLOCK, end=True))
            assert (await client.response(stream))["x-19"] == "v" * 400


def size_updates(fragment: bytes) -> list[int]:
    """The sizes of the table with which a block begins."""
    sizes = []
    at = 0
    while fragment[at] & 0xE0 == 0x20:
        size = fragment[at] & 0x1F
        at += 1
        if size == 0x1F:
            for place in range(0, 35, 7):
                at += 1
                size += (fragment[at - 1] & 0x7F) << place
                if not fragment[at - 1] & 0x80:
                    break
        sizes.append(size)
    return sizes


@pytest.mark.parametrize("changes", [[0], [0, 4096], [5000, 0], [0, 100, 4096], [10, 20]], ids=str)
@twisted_test
async def test_changes_of_the_table_are_told(changes: list[int]) -> None:
    """4.2: of several changes between two blocks, the smallest and the last are told.

    Unless the table is smaller still, of our own accord.
    """
    async with conversation(always(ok(HELLO, b"X-Same: every time"))) as client:
        client.send(headers(1, BLOCK, end=True))
        await client.response(1)
        in_use = client.decoder.header_table_size
        for size in changes:
            await client.agree((Setting.HEADER_TABLE_SIZE, size))
        client.decoder.max_allowed_table_size = max(4096, *changes)
        client.send(headers(3, BLOCK, end=True))
        frame = await client.until(Type.HEADERS, 3)
        told = size_updates(frame.payload)
        assert len(told) <= 2, told
        assert min([in_use, *told]) <= min(changes)
        assert client.decoder.header_table_size <= changes[-1]
        assert ("x-same", "every time") in frame.fields


@twisted_test
async def test_a_table_that_has_not_changed_is_not_mentioned() -> None:
    """6.3: there are no size updates without a reason, which there may be at the beginning."""
    async with conversation() as client:
        for stream in (1, 3, 5):
            client.send(headers(stream, BLOCK, end=True))
            told = size_updates((await client.until(Type.HEADERS, stream)).payload)
            assert not told or stream == 1
