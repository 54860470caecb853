"""The PROXY protocol, read strictly and written so that others can read it."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from awesomeproxy.proxy.proxyprotocol import (
    LONGEST_V1,
    LONGEST_V2,
    SIGNATURE,
    BadHeader,
    Ends,
    Header,
    header,
    parse,
)

FOUR = Ends("192.0.2.7", 56324, "203.0.113.9", 443)
SIX = Ends("2001:db8::7", 56324, "2001:db8::9", 443)
V1 = b"PROXY TCP4 192.0.2.7 203.0.113.9 56324 443\r\n"
V1_SIX = b"PROXY TCP6 2001:db8::7 2001:db8::9 56324 443\r\n"
PORTS = b"\xdc\x04\x01\xbb"
V2 = SIGNATURE + b"\x21\x11\x00\x0c" + b"\xc0\x00\x02\x07" + b"\xcb\x00\x71\x09" + PORTS
PREFIX = b"\x20\x01\x0d\xb8" + bytes(11)
V2_SIX = SIGNATURE + b"\x21\x21\x00\x24" + PREFIX + b"\x07" + PREFIX + b"\x09" + PORTS
V2_LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
ANYTHING = settings(deadline=None, database=None)
HELLO = b"\x16\x03\x01\x02\x00\x01\x00"  # what may follow


def v2(command: int, family: int, body: bytes = b"") -> bytes:
    """A header of version 2, whatever that says."""
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, family, len(body)) + body


# What is read

GOOD = {
    "v1, IPv4": (V1, FOUR),
    "v1, IPv6": (V1_SIX, SIX),
    "v1, unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1, unknown with what does not count": (b"PROXY UNKNOWN ff::1 x y 1 2\r\n", None),
    "v1, the longest": (b"PROXY UNKNOWN ".ljust(LONGEST_V1 - 2, b"f") + b"\r\n", None),
    "v1, mapped": (
        b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:203.0.113.9 56324 443\r\n",
        FOUR,
    ),
    "v1, port 0": (b"PROXY TCP4 1.2.3.4 5.6.7.8 0 65535\r\n", Ends("1.2.3.4", 0, "5.6.7.8", 65535)),
    "v2, IPv4": (V2, FOUR),
    "v2, IPv6": (V2_SIX, SIX),
    "v2, mapped": (
        v2(
            1,
            0x21,
            bytes(10) + b"\xff\xff\xc0\x00\x02\x07" + bytes(10) + b"\xff\xff\xcb\0\x71\x09" + PORTS,
        ),
        FOUR,
    ),
    "v2, TLVs": (v2(1, 0x11, V2[16:] + b"\x03\x00\x04crc!" + b"\x04\x00\x01\x00"), FOUR),
    "v2, the longest": (v2(1, 0x11, V2[16:].ljust(LONGEST_V2, b"\0")), FOUR),
    "v2, local": (V2_LOCAL, None),
    "v2, local with addresses": (v2(0, 0x11, V2[16:]), None),
    "v2, local of no known family": (v2(0, 0x77, b"whatever"), None),
    "v2, unspecified": (v2(1, 0x00, b"whatever"), None),
    "v2, a Unix socket": (v2(1, 0x31, bytes(216)), None),
}
good = pytest.mark.parametrize(("data", "ends"), GOOD.values(), ids=GOOD)


@good
def test_a_header_is_read_however_it_is_split(data: bytes, ends: Ends | None) -> None:
    for length in range(len(data)):
        assert parse(data[:length]) is None, length
    assert parse(data) == Header(ends, len(data))


@good
@pytest.mark.parametrize("rest", [HELLO, b"GET / HTTP/1.1\r\n\r\n", b"\r\n", V1, V2, b"\0" * 5000])
def test_what_follows_is_no_part_of_it(data: bytes, ends: Ends | None, rest: bytes) -> None:
    assert parse(data + rest) == Header(ends, len(data))


# What is not

BAD = {
    "HTTP": b"GET / HTTP/1.1\r\n",
    "TLS": HELLO,
    "HTTP/2": b"PRI * HTTP/2.0\r\n",
    "lower case": b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "another word": b"PROXYTCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "nothing said": b"PROXY \r\n",
    "no such family": b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "unknown with more behind": b"PROXY UNKNOWNS\r\n",
    "no carriage return": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
    "no carriage return, unknown": b"PROXY UNKNOWN\n",
    "a carriage return inside": b"PROXY TCP4 1.2.3.4\r5.6.7.8 1 2\r\n",
    "a carriage return inside, unknown": b"PROXY UNKNOWN a\rb\r\n",
    "two spaces": b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
    "a space at the end": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
    "a tab": b"PROXY TCP4\t1.2.3.4 5.6.7.8 1 2\r\n",
    "too few": b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
    "too many": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
    "no port": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 x\r\n",
    "a port that is too large": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
    "a negative port": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 -2\r\n",
    "a port with a zero": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 02\r\n",
    "IPv6 as IPv4": b"PROXY TCP4 ::1 5.6.7.8 1 2\r\n",
    "IPv4 as IPv6": b"PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
    "IPv4 that is too large": b"PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n",
    "IPv4 with a zero": b"PROXY TCP4 1.2.3.04 5.6.7.8 1 2\r\n",
    "IPv4 that is short": b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
    "IPv6 with a zone": b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    "IPv6 in brackets": b"PROXY TCP6 [::1] ::1 1 2\r\n",
    "other digits": "PROXY TCP4 1.2.3.٤ 5.6.7.8 1 2\r\n".encode(),
    "without end": b"PROXY UNKNOWN ".ljust(LONGEST_V1, b"f"),
    "too long": b"PROXY UNKNOWN ".ljust(LONGEST_V1 - 1, b"f") + b"\r\n",
    "v2 of version 1": SIGNATURE + b"\x11\x11\x00\x0c" + V2[16:],
    "v2 of version 3": SIGNATURE + b"\x31\x11\x00\x0c" + V2[16:],
    "v2, no such command": SIGNATURE + b"\x22\x11\x00\x0c" + V2[16:],
    "v2, no such family": v2(1, 0x41, bytes(216)),
    "v2, no such transport": v2(1, 0x13, V2[16:]),
    "v2, datagrams": v2(1, 0x12, V2[16:]),
    "v2, unspecified transport": v2(1, 0x10, V2[16:]),
    "v2, too short for IPv4": v2(1, 0x11, V2[16:27]),
    "v2, too short for IPv6": v2(1, 0x21, V2_SIX[16:51]),
    "v2, too long": SIGNATURE + struct.pack("!BBH", 0x21, 0x11, LONGEST_V2 + 1),
    "a broken signature": SIGNATURE[:-1] + b"\r" + V2[12:],
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(BadHeader):
        parse(data)


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_is_refused_once_is_refused_with_more_behind_it(data: bytes) -> None:
    refused = False
    for length in range(len(data) + 1):
        try:
            found = parse(data[:length])
        except BadHeader:
            refused = True
        else:
            assert not refused
            assert found is None
    assert refused


@ANYTHING
@given(st.binary(max_size=200))
@example(b"")
@example(b"\r")
@example(b"P")
def test_anything_is_read_or_waited_for_or_refused(data: bytes) -> None:
    for start in (b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", SIGNATURE, SIGNATURE + b"\x21"):
        try:
            found = parse(start + data)
        except BadHeader:
            continue
        assert found is None or found.length <= len(start + data)


@ANYTHING
@given(st.data())
def test_a_header_with_one_wrong_byte_is_never_a_fault(draw: st.DataObject) -> None:
    whole = bytearray(draw.draw(st.sampled_from([data for data, _ in GOOD.values()])))
    whole[draw.draw(st.integers(0, len(whole) - 1))] = draw.draw(st.integers(0, 255))
    try:
        found = parse(bytes(whole))
    except BadHeader:
        return
    assert found is None or found.length <= len(whole)


# What is written

VERSIONS = pytest.mark.parametrize("version", ["v1", "v2"])
addresses = st.ip_addresses().map(str)
ports = st.integers(0, 65535)


@pytest.mark.parametrize(
    ("version", "ends", "data"),
    [
        ("v1", FOUR, V1),
        ("v1", SIX, V1_SIX),
        ("v1", None, b"PROXY UNKNOWN\r\n"),
        ("v2", FOUR, V2),
        ("v2", SIX, V2_SIX),
        ("v2", None, V2_LOCAL),
    ],
)
def test_a_header_is_written_as_it_is_described(
    version: Literal["v1", "v2"], ends: Ends | None, data: bytes
) -> None:
    assert header(version, ends) == data


@ANYTHING
@given(st.sampled_from(("v1", "v2")), st.builds(Ends, addresses, ports, addresses, ports))
def test_what_is_written_can_be_read(version: Literal["v1", "v2"], ends: Ends) -> None:
    data = header(version, ends)
    read = parse(data + HELLO)
    assert read is not None
    assert read.length == len(data)
    assert read.ends is not None
    assert (read.ends.source_port, read.ends.destination_port) == (
        ends.source_port,
        ends.destination_port,
    )
    for found, given_ in (
        (read.ends.source, ends.source),
        (read.ends.destination, ends.destination),
    ):
        address = ip_address(given_)
        assert ip_address(found) == getattr(address, "ipv4_mapped", None) or address


@VERSIONS
def test_a_socket_without_addresses_is_unknown(version: Literal["v1", "v2"]) -> None:
    assert header(version, Ends("unix", 0, "", 0)) == header(version, None)


@VERSIONS
def test_the_zone_of_an_address_stays_at_home(version: Literal["v1", "v2"]) -> None:
    zoned = Ends("fe80::7%eth0", 1, "fe80::9%eth0", 2)
    assert header(version, zoned) == header(version, Ends("fe80::7", 1, "fe80::9", 2))
