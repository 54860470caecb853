"""Scripts of WebSocket frames: good ones, bad ones, and those that are only just good.

They are of the kinds that conformance suites of the protocol are made of: how a frame is
written, pings, reserved bits and opcodes, fragments, text that is none, goodbyes, sizes,
compression; in one write, and cut into bytes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

MASK = b"\x37\xfa\x21\x3d"
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


@dataclass(frozen=True)
class Piece:
    """One frame, or what is none."""

    opcode: int = TEXT
    data: bytes = b""
    fin: bool = True
    rsv: int = 0
    form: int = 0  # how many bytes the length is written in, if not the fewest
    length: int = -1  # what is said of it, if not the truth
    wrongly_masked: bool = False

    def bytes(self, mask: bool) -> bytes:
        mask = mask != self.wrongly_masked
        length = len(self.data) if self.length < 0 else self.length
        form = self.form or (1 if length < 126 else 2 if length < 65536 else 8)
        first = {1: length, 2: 126, 8: 127}[form] | (0x80 if mask else 0)
        head = bytes((self.opcode | self.rsv << 4 | (0x80 if self.fin else 0), first))
        if form > 1:
            head += length.to_bytes(form, "big")
        if not mask:
            return head + self.data
        key = (MASK * (len(self.data) // 4 + 1))[: len(self.data)]
        masked = int.from_bytes(self.data, "big") ^ int.from_bytes(key, "big")
        return head + MASK + masked.to_bytes(len(self.data), "big")


BYE = Piece(CLOSE, b"\x03\xe8")


@dataclass(frozen=True)
class Case:
    """A script, and how it is played."""

    pieces: tuple[Piece, ...]
    chop: int = 0  # into writes of so many bytes; 0: a single one
    breaks_off: bool = False  # it ends without a goodbye, and nobody says one to it
    deflate: bool = False
    tail: bytes = b""  # behind the last frame

    def writes(self, mask: bool) -> list[bytes]:
        whole = b"".join(piece.bytes(mask) for piece in self.pieces) + self.tail
        step = self.chop or len(whole) or 1
        return [whole[at : at + step] for at in range(0, len(whole), step)]


CASES: dict[str, Case] = {}


def case(name: str, *pieces: Piece, bye: bool = True, chop: int = 0, **how: Any) -> None:
    """Note a case; one that is not broken off ends with a goodbye, if nothing else ends it."""
    assert name not in CASES
    bye = bye and not how.get("breaks_off")
    CASES[name] = Case((*pieces, BYE) if bye else pieces, chop, **how)


def text(data: bytes, **how: Any) -> Piece:
    return Piece(TEXT, data, **how)


def cont(data: bytes, **how: Any) -> Piece:
    return Piece(CONT, data, **how)


HELLO = text(b"Hello")

# Framing: every way to write a length, in one write and in many

for size in (0, 1, 125, 126, 127, 128, 65535, 65536):
    case(f"text of {size}", text(b"*" * size))
    case(f"binary of {size}", Piece(BINARY, b"\xfe" * size))
    case(f"binary of {size} in writes of 997", Piece(BINARY, b"\xfe" * size), chop=997)
for form in (2, 8):
    case(f"a short length in {form} bytes", text(b"Hello", form=form))
case("a length that has its highest bit set", text(b"", form=8, length=1 << 63))
case("a length that is more than there can be", text(b"", form=8, length=(1 << 63) - 1), bye=False)
case("a frame byte by byte", HELLO, chop=1)
case("long heads byte by byte", text(b"*" * 126, form=8), text(b"*", form=2), chop=1)
case("masked the wrong way", text(b"Hello", wrongly_masked=True))
case("masked the wrong way, long", text(b"*" * 70_000, wrongly_masked=True))

# Pings and pongs

for size in (0, 5, 125):
    case(f"ping of {size}", Piece(PING, b"\x00\xff*"[:1] * size))
    case(f"pong of {size} unasked", Piece(PONG, b"*" * size))
for size in (126, 65536):
    case(f"ping of {size}", Piece(PING, b"*" * size))
case("ping byte by byte", Piece(PING, b"*" * 125), chop=1)
case("ten pings", *(Piece(PING, b"%d" % number) for number in range(10)))
case("ten pings byte by byte", *(Piece(PING, b"%d" % number) for number in range(10)), chop=1)
case("ping behind an unasked pong", Piece(PONG, b"x"), Piece(PING, b"y"))

# Reserved bits and opcodes

for rsv in range(1, 8):
    case(f"reserved bits {rsv}", HELLO, text(b"*", rsv=rsv), Piece(PING))
    case(f"reserved bits {rsv} on a ping, byte by byte", HELLO, Piece(PING, rsv=rsv), chop=1)
case("reserved bits on a goodbye", Piece(CLOSE, b"\x03\xe8", rsv=7), bye=False)
for opcode in (*range(3, 8), *range(11, 16)):
    case(f"opcode {opcode}", Piece(opcode))
    case(f"opcode {opcode} between others", HELLO, Piece(opcode, b"data"), HELLO, Piece(PING))
    case(f"opcode {opcode} byte by byte", HELLO, Piece(opcode, b"data"), Piece(PING), chop=1)

# Fragments

for opcode in (PING, PONG, CLOSE):
    case(f"a fragment of opcode {opcode}", Piece(opcode, b"\x03\xe8", fin=False), cont(b"x"))
for chop in (0, 1, 7):
    how = f"in writes of {chop}" if chop else "in one write"
    parts = (text(b"one ", fin=False), cont(b"two"))
    case(f"two fragments {how}", *parts, chop=chop)
    case(f"a ping between {how}", parts[0], Piece(PING, b"?"), parts[1], chop=chop)
    case(f"a pong between {how}", parts[0], Piece(PONG, b"!"), parts[1], chop=chop)
    case(f"a goodbye between {how}", parts[0], BYE, parts[1], chop=chop, bye=False)
    case(f"five, pings between {how}", text(b"1", fin=False),
         *(p for n in range(3) for p in (cont(b"%d" % n, fin=False), Piece(PING))),
         cont(b"5"), chop=chop)  # fmt: skip
    case(f"a continuation of nothing {how}", cont(b"x"), HELLO, chop=chop)
    case(f"an endless continuation of nothing {how}", cont(b"x", fin=False), HELLO, chop=chop)
    case(f"a message within a message {how}", parts[0], HELLO, parts[1], chop=chop)
case("empty fragments", text(b"", fin=False), cont(b"", fin=False), cont(b""))
case("only the middle has something", text(b"", fin=False), cont(b"x", fin=False), cont(b""))
case("a thousand fragments", text(b"", fin=False), *[cont(b"*" * 7, fin=False)] * 998, cont(b"."))

# Text that is, or is not, UTF-8

for name, data in {
    "Greek": "κόσμε".encode(),
    "German": "Hällo, Wörld".encode(),
    "of four bytes": "\U0001f310\U0010ffff".encode(),
    "first of each length": b"\x00\xc2\x80\xe0\xa0\x80\xf0\x90\x80\x80",
    "last of each length": b"\x7f\xdf\xbf\xef\xbf\xbf\xf4\x8f\xbf\xbf",
    "no characters": b"\xef\xbf\xbe\xef\xb7\x90",
    "a lone continuation": b"a\x80b",
    "continuations alone": bytes(range(0x80, 0xC0)),
    "lone starts": b"\xc3 \xe2 \xf0 ",
    "cut short": b"\xce\xba\xe1\xbd",
    "overlong slash": b"\xc0\xaf",
    "overlong nought": b"\xe0\x80\x80\xf0\x80\x80\x80",
    "a surrogate": b"\xed\xa0\x80",
    "a pair of surrogates": b"\xed\xa0\x80\xed\xb0\x80",
    "beyond the last": b"\xf4\x90\x80\x80",
    "of five and six bytes": b"\xf8\x88\x80\x80\x80\xfc\x84\x80\x80\x80\x80",
    "impossible bytes": b"\xfe\xff",
    "bad after good": "κόσμε".encode() + b"\xed\xa0\x80edited",
}.items():
    case(f"UTF-8, {name}", text(data))
    case(f"UTF-8, {name}, byte by byte", text(data), chop=1)
    case(f"UTF-8, {name}, in fragments of one",
         text(b"", fin=False), *(cont(bytes((one,)), fin=False) for one in data), cont(b""),
    )  # fmt: skip
case("bad UTF-8 and no end", text(b"\xce\xba\xf4\x90", fin=False), bye=False)

# Goodbyes

case("no word", Piece(CLOSE), bye=False)
case("half a code", Piece(CLOSE, b"\x03"), bye=False)
for reason in (b"bye", b"*" * 123, b"*" * 124, "Tschüß".encode(), b"\xce\xba\xed\xa0\x80"):
    case(
        f"goodbye for {reason[:9]!r} ({len(reason)})", Piece(CLOSE, b"\x03\xe8" + reason), bye=False
    )
for code in (*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999):
    case(f"goodbye {code}", Piece(CLOSE, code.to_bytes(2, "big")), bye=False)
for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
    case(f"goodbye {code} that nobody may say", Piece(CLOSE, code.to_bytes(2, "big")), bye=False)
for name, piece in {"goodbye": BYE, "ping": Piece(PING), "text": HELLO}.items():
    case(f"{name} behind goodbye", BYE, piece, bye=False)
    case(f"{name} behind goodbye, byte by byte", BYE, piece, chop=1, bye=False)
case("a megabyte and goodbye", Piece(BINARY, b"*" * 1_000_000))
case("a megabyte behind goodbye", BYE, text(b"*" * 1_000_000), bye=False)
case("a megabyte behind a fault", text(b"*", rsv=7), text(b"*" * 1_000_000))

# Breaking off

for name, tail in {
    "at once": b"",
    "in a head": b"\x81",
    "in a length": b"\x81\xfe\x01",
    "in a frame": b"\x82\xfe\x01\x00abcdefg",
}.items():
    CASES[f"breaks off {name}"] = Case((HELLO,), breaks_off=True, tail=tail)
case("breaks off in a message", HELLO, text(b"one ", fin=False), breaks_off=True)
case(
    "breaks off in a long frame", HELLO, Piece(BINARY, b"*", form=8, length=90_000), breaks_off=True
)
case("breaks off in a goodbye", HELLO, Piece(CLOSE, b"\x03", length=2), breaks_off=True)

# A great deal

for size in (262_144, 4_194_304):
    case(f"binary of {size}", Piece(BINARY, b"\x00\xff" * (size // 2)))
    case(f"{size} in fragments of 4096", Piece(BINARY, b"*" * 4096, fin=False),
         *[cont(b"*" * 4096, fin=False)] * (size // 4096 - 2), cont(b"*" * 4096))  # fmt: skip
case("a thousand messages", *[text(b"*" * 64)] * 1000)

# Compressed


def deflated(data: bytes) -> bytes:
    """RFC 7692, section 7.2.1."""
    packer = zlib.compressobj(wbits=-15)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


SMALL = deflated(b"Hello" * 1000)
case("compressed", text(SMALL, rsv=4), deflate=True)
case("compressed, byte by byte", text(SMALL, rsv=4), chop=1, deflate=True)
case("compressed, in fragments", text(SMALL[:9], rsv=4, fin=False), cont(SMALL[9:]), deflate=True)
case("compressed and not", text(SMALL, rsv=4), HELLO, text(SMALL, rsv=4), deflate=True)
case("a fragment that says it is compressed",
     text(SMALL[:9], rsv=4, fin=False), cont(SMALL[9:], rsv=4), deflate=True)  # fmt: skip
case("compressed with nonsense", text(b"\x07\xff\xff", rsv=4), deflate=True)
case("a compressed ping", Piece(PING, SMALL, rsv=4), deflate=True)
