"""Frames of HTTP/2, looked at before the library takes them.  No I/O.

The library takes some things easier than RFC 9113 does, and some it takes only when all of
them has come.  Here whole frames are let through, and on their way

- a frame that is too long is refused by its first nine bytes, and a block of fields as
  soon as it is longer than may be kept;
- the first frame has to be SETTINGS (section 3.4), a SETTINGS that acknowledges empty
  (section 6.5), the padding of HEADERS shorter than what it pads (section 6.2);
- frames of types that RFC 9113 does not know are left out (section 4.1), unless they
  come within a block of fields (section 6.10);
- the reserved bit of a WINDOW_UPDATE is cleared, and one that opens a stream's window by
  nothing is left out, for that stream to be reset (section 6.9);
- a HEADERS that is nothing but a whole block of fields, as nearly all are, is not parsed
  once more: it is handed over as a :class:`Head`.
"""

from __future__ import annotations

import struct

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hyperframe.frame import HeadersFrame

FRAME = 16_384  # bytes of a frame that we take, RFC 9113, section 4.2
HEAD = 9  # bytes of a frame before its payload
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # section 3.4

DATA, HEADERS, PRIORITY, SETTINGS, PUSH_PROMISE, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 4, 5, 8, 9
ACK, END_STREAM, END_HEADERS, PADDED, HAS_PRIORITY = 0x01, 0x01, 0x04, 0x08, 0x20  # flags

_pack = struct.Struct(">HBBBL").pack  # a length in 24 bits, kind, flags, stream
_LAST = frozenset(("END_HEADERS", "END_STREAM"))
_NOT_LAST = frozenset(("END_HEADERS",))


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame to send."""
    length = len(payload)
    return _pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


class BadFrame(ProtocolError):
    """A frame that is not allowed here."""


class TooLong(ProtocolError):
    """A frame that is longer, or shorter, than its kind may be."""

    error_code = ErrorCodes.FRAME_SIZE_ERROR


class TooMuch(ProtocolError):
    """The peer asks for more work or memory than it may."""

    error_code = ErrorCodes.ENHANCE_YOUR_CALM


class Head(HeadersFrame):
    """A HEADERS, and what the library asks of one: neither padded, nor with a priority."""

    def __init__(self, stream: int, last: bool, block: bytes) -> None:
        """
        :param last: the stream ends with it.
        """
        # Not as the library does it, whose sets of flags take longer than all else here.
        self.stream_id = stream
        self.flags = _LAST if last else _NOT_LAST  # type: ignore[assignment]
        self.data = block

    __repr__ = object.__repr__  # the library logs it, to nowhere


class Frames:
    """The frames of one connection, one way."""

    def __init__(self, *, preface: bool, max_block: int) -> None:
        """
        :param preface: whether they begin with a client's preface.
        :param max_block: bytes of a block of fields, compressed.
        """
        self._preface = preface
        self._max_block = max_block
        self._kept = b""  # of a frame that has not come whole
        self._first = True
        self._block = -1  # bytes of a block that goes on; -1: none does
        self.idle = 0  # frames that have led nowhere
        self.void: list[int] = []  # streams whose windows were opened by nothing

    @property
    def incomplete(self) -> int:
        """Bytes that are kept of a frame that has not come whole."""
        return len(self._kept)

    @property
    def in_head(self) -> bool:
        """Whether a block of fields has begun to arrive, or what may be one, and is incomplete."""
        kept = self._kept
        if not kept:
            return self._block >= 0
        return len(kept) < HEAD or kept[3] in (HEADERS, CONTINUATION)

    def feed(self, data: bytes) -> list[bytes | Head]:
        """Take what has arrived; return what of it is for the library, in order.

        :raise ProtocolError: the connection is to end.
        """
        if self._kept:
            data = self._kept + data
        position = 0
        if self._preface:
            if data[: len(PREFACE)] != PREFACE[: len(data)]:
                raise BadFrame("the preface is none")
            if len(data) < len(PREFACE):
                self._kept = data
                return []
            self._preface = False
            position = len(PREFACE)
        passed: list[bytes | Head] = []
        begin = 0  # of what is passed on as it came
        end = len(data)
        while end - position >= HEAD:
            length = int.from_bytes(data[position : position + 3], "big")
            kind = data[position + 3]
            if length > FRAME:
                raise TooLong("a frame is longer than was agreed")
            after = position + HEAD + length
            if after > end:
                break
            if kind or self._first or self._block >= 0:
                head, payload = data[position : position + HEAD], data[position + HEAD : after]
                instead = self._look(kind, head, payload)
                if instead is not None:
                    if begin < position:
                        passed.append(data[begin:position])
                    if instead:
                        passed.append(instead)
                    begin = after
            position = after
        self._kept = data[position:]
        if begin < position:
            passed.append(data[begin:position])
        return passed

    def _look(self, kind: int, head: bytes, payload: bytes) -> bytes | Head | None:
        """Judge a frame; return what is passed on instead, b"" to leave it out, or None."""
        flags = head[4]
        if self._first:
            if kind != SETTINGS or flags & ACK:
                raise BadFrame("the first frame is not SETTINGS")
            self._first = False
        if self._block >= 0 and kind != CONTINUATION:
            raise BadFrame("there is a frame within a block of fields")
        if kind in (HEADERS, CONTINUATION, PUSH_PROMISE):
            self._look_at_block(kind, flags, payload)
            if kind == HEADERS and flags & (END_HEADERS | PADDED | HAS_PRIORITY) == END_HEADERS:
                stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
                return Head(stream, bool(flags & END_STREAM), payload) if stream else None
        elif kind == SETTINGS:
            if flags & ACK and payload:
                raise TooLong("a SETTINGS that acknowledges is not empty")
        elif kind == WINDOW_UPDATE:
            return self._look_at_increment(head, payload)
        elif kind == PRIORITY:
            self.idle += 1
        elif kind > CONTINUATION:
            self.idle += 1
            return b""
        return None

    def _look_at_increment(self, head: bytes, payload: bytes) -> bytes | None:
        if len(payload) != 4:
            return None
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
        if not increment and stream:
            self.void.append(stream)
            return b""
        return head + increment.to_bytes(4, "big") if payload[0] & 0x80 else None

    def _look_at_block(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == HEADERS and flags & PADDED:
            fixed = 6 if flags & HAS_PRIORITY else 1
            if len(payload) < fixed or payload[0] > len(payload) - fixed:
                raise BadFrame("there is more padding than frame")
        if kind == CONTINUATION:
            self.idle += 1
        block = max(self._block, 0) + len(payload)
        if block > self._max_block:
            raise TooMuch("a block of fields is too long")
        self._block = -1 if flags & END_HEADERS else block
