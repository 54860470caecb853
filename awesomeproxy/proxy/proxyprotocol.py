"""The PROXY protocol: what a proxy says of a client before it passes on what that says.

Both versions of HAProxy's ``doc/proxy-protocol.txt``, read and written.  No I/O: whoever
reads gives all that has come to :func:`parse`, and is told how much of it was the header.
Twisted has parsers of its own, but they are private, and know neither LOCAL nor lengths
that TLVs make longer.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"  # of version 2
LONGEST_V1 = 107  # bytes, with the line's end
LONGEST_V2 = 4096  # bytes behind the first 16; addresses and TLVs that anybody needs
Address = IPv4Address | IPv6Address
_V1 = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|"
    rb"(TCP[46]) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) ([0-9]{1,5}) ([0-9]{1,5}))\r\n"
)


class BadHeader(Exception):
    """What has come is no header of the PROXY protocol."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Whom a connection is from and what it was opened to, as the proxy in front saw it.

    IPv4 addresses are written as such, also where they came mapped into IPv6.
    """

    source: str
    source_port: int
    destination: str
    destination_port: int


@dataclass(frozen=True, slots=True)
class Header:
    """A header: what it says, if anything, and its length in bytes."""

    ends: Ends | None
    length: int


def parse(data: bytes) -> Header | None:
    """The header that ``data`` begins with; None while it is not all there.

    :raise BadHeader: it does not begin with one.
    """
    if data[:12] == SIGNATURE[: len(data[:12])]:
        return _parse_v2(data)
    if data[:6] == b"PROXY "[: len(data[:6])]:
        return _parse_v1(data)
    raise BadHeader("what came first is no header of the PROXY protocol")


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\n", 0, LONGEST_V1)
    if end < 0:
        if len(data) >= LONGEST_V1:
            raise BadHeader("the header is too long")
        return None
    match = _V1.fullmatch(data[: end + 1])
    if match is None:
        raise BadHeader("the header is not well-formed")
    family, source, destination, source_port, destination_port = match.groups()
    if family is None:
        return Header(None, end + 1)
    kind = IPv4Address if family == b"TCP4" else IPv6Address
    try:
        ends = Ends(
            _text(kind(source.decode())),
            _port(source_port),
            _text(kind(destination.decode())),
            _port(destination_port),
        )
    except ValueError:
        raise BadHeader("the header has bad addresses or ports") from None
    return Header(ends, end + 1)


def _port(text: bytes) -> int:
    port = int(text)
    if port > 65535 or (len(text) > 1 and text.startswith(b"0")):
        raise ValueError(port)
    return port


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < 16:
        return None
    version, family, length = data[12], data[13], int.from_bytes(data[14:16], "big")
    command = version & 0x0F
    if version >> 4 != 2 or command > 1:
        raise BadHeader("the header's version or command is not known")
    if length > LONGEST_V2:
        raise BadHeader("the header is too long")
    if len(data) < 16 + length:
        return None
    if command == 0:  # LOCAL: from the proxy itself
        return Header(None, 16 + length)
    body = data[16 : 16 + length]
    if family == 0x11:
        return Header(_ends(body, "!4s4sHH"), 16 + length)
    if family == 0x21:
        return Header(_ends(body, "!16s16sHH"), 16 + length)
    if family in (0x00, 0x31):  # unspecified, or a Unix socket: no address to speak of
        return Header(None, 16 + length)
    raise BadHeader("the header's family of addresses is not one of streams")


def _ends(body: bytes, layout: str) -> Ends:
    size = struct.calcsize(layout)
    if len(body) < size:
        raise BadHeader("the header is too short for its addresses")
    source, destination, source_port, destination_port = struct.unpack(layout, body[:size])
    return Ends(
        _text(ip_address(source)),
        source_port,
        _text(ip_address(destination)),
        destination_port,
    )


def _text(address: Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def header(version: Literal["v1", "v2"], ends: Ends | None) -> bytes:
    """A header to send.

    :param ends: None for a connection of our own, or one without addresses.
    """
    addresses = _addresses(ends) if ends is not None else None
    if ends is None or addresses is None:
        return b"PROXY UNKNOWN\r\n" if version == "v1" else SIGNATURE + b"\x20\0\0\0"
    source, destination = addresses
    four = source.version == 4
    if version == "v1":
        family = "TCP4" if four else "TCP6"
        return (
            f"PROXY {family} {source} {destination} {ends.source_port} {ends.destination_port}\r\n"
        ).encode()
    body = source.packed + destination.packed
    body += struct.pack("!HH", ends.source_port, ends.destination_port)
    return SIGNATURE + struct.pack("!BBH", 0x21, 0x11 if four else 0x21, len(body)) + body


def _addresses(ends: Ends) -> tuple[Address, Address] | None:
    """Both addresses, of one family; None: they are of no such."""
    try:  # without the zone, which means nothing elsewhere
        source = ip_address(ends.source.partition("%")[0])
        destination = ip_address(ends.destination.partition("%")[0])
    except ValueError:
        return None  # a Unix socket
    if source.version == destination.version:
        return source, destination
    return _as_v6(source), _as_v6(destination)


def _as_v6(address: Address) -> IPv6Address:
    return IPv6Address(f"::ffff:{address}") if isinstance(address, IPv4Address) else address
