"""Frames of HTTP/2, put together and taken apart by hand (RFC 9113, sections 4 and 6).

Nothing here knows what is right: a test that wants a frame with a wrong length, on a
wrong stream or with flags nobody has defined can have it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME = 2**14  # bytes of payload that everybody has to take
WINDOW = 2**16 - 1  # bytes that may be sent before anything else was agreed on
MOST = 2**31 - 1  # of a window, and of a stream identifier

ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20
RESERVED = 0x8000_0000  # the bit before a 31-bit number


class Type(enum.IntEnum):
    """Types of frames."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Error(enum.IntEnum):
    """Error codes (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Setting(enum.IntEnum):
    """Parameters (section 6.5.2, and RFC 8441, section 3)."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6
    ENABLE_CONNECT_PROTOCOL = 8


@dataclass
class Frame:
    """A frame as it came."""

    type: int
    flags: int
    stream: int
    payload: bytes
    fields: list[tuple[str, str]] = field(default_factory=list)  # of a complete field block

    def __str__(self) -> str:
        name = Type(self.type).name if self.type in set(Type) else f"type {self.type}"
        text = f"{name}({self.stream}, flags {self.flags:#x}, {len(self.payload)} bytes"
        if self.type in (Type.RST_STREAM, Type.GOAWAY):
            text += f", {self.error.name} {self.payload[8:].decode('latin-1')}"
        return text + ")"

    @property
    def ends_stream(self) -> bool:
        return self.type in (Type.DATA, Type.HEADERS) and bool(self.flags & END_STREAM)

    @property
    def ack(self) -> bool:
        return bool(self.flags & ACK)

    @property
    def error(self) -> Error:
        """The code of a RST_STREAM or GOAWAY."""
        at = 4 if self.type == Type.GOAWAY else 0
        return Error(struct.unpack_from(">I", self.payload, at)[0])

    @property
    def number(self) -> int:
        """The increment of a WINDOW_UPDATE, or the last stream of a GOAWAY."""
        return int(struct.unpack_from(">I", self.payload)[0])

    @property
    def settings(self) -> list[tuple[int, int]]:
        """The parameters of a SETTINGS."""
        return list(struct.iter_unpack(">HI", self.payload))

    @property
    def content(self) -> bytes:
        """The payload of a DATA, HEADERS or CONTINUATION without padding and priority."""
        payload = self.payload
        if self.type != Type.CONTINUATION and self.flags & PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if self.type == Type.HEADERS and self.flags & PRIORITIZED:
            payload = payload[5:]
        return payload


def frame(
    type_: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None
) -> bytes:
    """Any frame at all; ``length`` is what it claims to be long."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", type_, flags, stream) + payload


def padded(payload: bytes, pad: int | None) -> bytes:
    """``payload`` with so many bytes of padding; None: not padded at all."""
    return payload if pad is None else bytes([pad]) + payload + bytes(pad)


def data(stream: int, content: bytes = b"", *, end: bool = False, pad: int | None = None) -> bytes:
    """DATA (section 6.1)."""
    flags = END_STREAM * end | PADDED * (pad is not None)
    return frame(Type.DATA, flags, stream, padded(content, pad))


def headers(
    stream: int,
    block: bytes,
    *,
    end: bool = False,
    complete: bool = True,
    pad: int | None = None,
    depends: bytes = b"",
) -> bytes:
    """HEADERS (section 6.2).

    :param complete: END_HEADERS; else CONTINUATION follows.
    :param depends: see :func:`dependency`.
    """
    flags = END_STREAM * end | END_HEADERS * complete | PADDED * (pad is not None)
    flags |= PRIORITIZED * bool(depends)
    return frame(Type.HEADERS, flags, stream, padded(depends + block, pad))


def dependency(on: int, weight: int = 16, *, exclusive: bool = False) -> bytes:
    """What a priority is made of; ``weight`` is from 1 to 256 (RFC 7540, section 6.3)."""
    return struct.pack(">IB", on | RESERVED * exclusive, weight - 1)


def priority(stream: int, on: int = 0, weight: int = 16, *, exclusive: bool = False) -> bytes:
    """PRIORITY (section 6.3)."""
    return frame(Type.PRIORITY, 0, stream, dependency(on, weight, exclusive=exclusive))


def rst_stream(stream: int, code: int = Error.CANCEL) -> bytes:
    """RST_STREAM (section 6.4)."""
    return frame(Type.RST_STREAM, 0, stream, struct.pack(">I", code))


def settings(*pairs: tuple[int, int]) -> bytes:
    """SETTINGS (section 6.5)."""
    return frame(Type.SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


SETTINGS_ACK = frame(Type.SETTINGS, ACK, 0)


def push_promise(stream: int, promised: int, block: bytes) -> bytes:
    """PUSH_PROMISE (section 6.6), which is not for clients."""
    payload = struct.pack(">I", promised) + block
    return frame(Type.PUSH_PROMISE, END_HEADERS, stream, payload)


def ping(opaque: bytes = b"are you?", *, ack: bool = False) -> bytes:
    """PING (section 6.7)."""
    return frame(Type.PING, ACK * ack, 0, opaque)


def goaway(last: int = 0, code: int = Error.NO_ERROR, debug: bytes = b"") -> bytes:
    """GOAWAY (section 6.8)."""
    return frame(Type.GOAWAY, 0, 0, struct.pack(">II", last, code) + debug)


def window_update(stream: int, increment: int) -> bytes:
    """WINDOW_UPDATE (section 6.9)."""
    return frame(Type.WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def continuation(stream: int, block: bytes = b"", *, complete: bool = True) -> bytes:
    """CONTINUATION (section 6.10)."""
    return frame(Type.CONTINUATION, END_HEADERS * complete, stream, block)


def continued(stream: int, fragments: Iterable[bytes], *, end: bool = False) -> bytes:
    """One field block in several frames."""
    first, *middle, last = fragments
    return (
        headers(stream, first, end=end, complete=False)
        + b"".join(continuation(stream, part, complete=False) for part in middle)
        + continuation(stream, last)
    )
