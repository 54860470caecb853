"""WebSocket, as far as a proxy has to understand it: where frames begin and end.  No I/O.

What two ends say to each other is their own business, and so are the extensions they
have agreed on: everything passes as it is, good or bad, and nothing is judged.  But who
wants to put in a word of its own must know when neither is in the middle of one
(RFC 6455, section 5.2), and who wants to part must know who has said goodbye already
(section 5.5.1).

A frame says its length in its first bytes, and an extension may redefine what is in it,
but not that (section 5.8): so a long one is passed over by counting, without a look at
what it carries.
"""

from __future__ import annotations

import os

PROTOCOL = b"websocket"  # the name in an Upgrade field, in lower case

# RFC 6455, section 7.4.1, and the registry of it
GOING_AWAY = 1001  # it, or whoever is behind it, is no longer there
SERVICE_RESTART = 1012  # connect again, a moment later

FINAL_CLOSE = 0x88  # the first byte of a Close frame
CLOSE = 0x8  # its opcode
MASKED = 0x80  # in the second byte
LONGEST_HEAD = 14  # two bytes, eight of length, four of mask


class Frames:
    """Follows the frames of one direction of one connection.

    What it is fed may be cut anywhere; it keeps nothing but the beginning of a head.
    """

    __slots__ = ("_head", "_left", "_opcode", "closed")

    def __init__(self) -> None:
        self._head = b""  # of a frame, while it is incomplete
        self._left = 0  # bytes of the present frame that are yet to come
        self._opcode = 0
        self.closed = False  # a Close frame has passed

    def __repr__(self) -> str:
        where = "between frames" if self.between else f"{self._left} bytes from the end of a frame"
        return f"<Frames {where}{', closed' if self.closed else ''}>"

    @property
    def between(self) -> bool:
        """Whether all that has passed is whole frames."""
        return not self._left and not self._head

    def feed(self, data: bytes, *, to_end: bool = False) -> int:
        """Take note of what passes.

        :param to_end: no further than to the end of the present frame.
        :return: how many bytes of ``data`` were noted.
        """
        at = 0
        size = len(data)
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                self._left -= step
                at += step
            else:
                known = len(self._head)
                head = self._head + data[at : at + LONGEST_HEAD - known]
                length = _head_length(head)
                if len(head) < length:
                    self._head = head
                    return size
                at += length - known
                self._head = b""
                self._opcode = head[0] & 0xF
                self._left = _payload_length(head)
            if not self._left:
                self.closed = self.closed or self._opcode == CLOSE
                if to_end:
                    break
        return at


def _head_length(head: bytes) -> int:
    """How long a frame's head is, or how much of it is needed to tell more."""
    if len(head) < 2:
        return 2
    short = head[1] & 0x7F
    length = 2 if short < 126 else 4 if short == 126 else 10
    return length + 4 if head[1] & MASKED else length


def _payload_length(head: bytes) -> int:
    """What a whole head says of what follows it."""
    short = head[1] & 0x7F
    if short < 126:
        return short
    return int.from_bytes(head[2:4] if short == 126 else head[2:10], "big")


def close_frame(code: int) -> bytes:
    """A Close frame as a server sends it.

    :param code: why, of RFC 6455, section 7.4.
    """
    return bytes((FINAL_CLOSE, 2)) + code.to_bytes(2, "big")


def masked_close_frame(code: int) -> bytes:
    """A Close frame as a client sends it: masked, with a key nobody can foresee.

    :param code: why, of RFC 6455, section 7.4.
    """
    mask = os.urandom(4)
    payload = bytes(a ^ b for a, b in zip(code.to_bytes(2, "big"), mask, strict=False))
    return bytes((FINAL_CLOSE, MASKED | 2)) + mask + payload
