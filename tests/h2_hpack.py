"""Field blocks, encoded by hand (RFC 7541).

What is encoded here says exactly which representation it wants; there is no table of
what was sent before.  Nothing keeps a test from asking for what must not be.
"""

from __future__ import annotations

from collections.abc import Iterable

Fields = Iterable[tuple[str, str]]

# The first bits of a literal (sections 6.2.1 to 6.2.3), and how many there are behind them.
INDEXED = (0x40, 6)  # with incremental indexing
UNINDEXED = (0x00, 4)
NEVER_INDEXED = (0x10, 4)

STATIC = 61  # entries of the static table (appendix A); the dynamic table begins behind it
ENTRY = 32  # bytes that an entry of the dynamic table takes beside its name and value

# Appendix B: the octets by the length of their codes.  Codes of one length are consecutive,
# and each length begins where the one before it ends, so the lengths say it all.
BY_LENGTH = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\0$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: bytes.fromhex("80 82 83 a2 b8 c2 e0 e2"),
    21: bytes.fromhex("99 a1 a7 ac b0 b1 b3 d1 d8 d9 e3 e5 e6"),
    22: bytes.fromhex("81 84 85 86 88 92 9a 9c a0 a3 a4 a9 aa ad b2 b5 b9 ba bb bd be c4 c6 e4")
    + bytes.fromhex("e8 e9"),
    23: bytes.fromhex("01 87 89 8a 8b 8c 8d 8f 93 95 96 97 98 9b 9d 9e a5 a6 a8 ae af b4 b6 b7")
    + bytes.fromhex("bc bf c5 e7 ef"),
    24: bytes.fromhex("09 8e 90 91 94 9f ab ce d7 e1 ec ed"),
    25: bytes.fromhex("c7 cf ea eb"),
    26: bytes.fromhex("c0 c1 c8 c9 ca cd d2 d5 da db ee f0 f2 f3 ff"),
    27: bytes.fromhex("cb cc d3 d4 d6 dd de df f1 f4 f5 f6 f7 f8 fa fb fc fd fe"),
    28: bytes.fromhex("02 03 04 05 06 07 08 0b 0c 0e 0f 10 11 12 13 14 15 17 18 19 1a 1b 1c 1d")
    + bytes.fromhex("1e 1f 7f dc f9"),
    30: b"\n\r\x16",
}
EOS = "1" * 30


def _codes() -> dict[int, str]:
    codes = {}
    code = before = 0
    for length, octets in BY_LENGTH.items():
        code <<= length - before
        before = length
        for octet in octets:
            codes[octet] = f"{code:0{length}b}"
            code += 1
    return codes


CODES = _codes()


def bits(text: bytes) -> str:
    """``text`` in the Huffman code, without padding."""
    return "".join(CODES[octet] for octet in text)


def octets(code: str) -> bytes:
    """Bits, of which there are so many as fill octets."""
    assert len(code) % 8 == 0
    return bytes(int(code[at : at + 8], 2) for at in range(0, len(code), 8))


def huffman(text: bytes) -> bytes:
    """``text`` in the Huffman code, padded with the beginning of EOS (section 5.2)."""
    code = bits(text)
    return octets(code + "1" * (-len(code) % 8))


def integer(value: int, prefix: int, first: int = 0) -> bytes:
    """An integer of which ``prefix`` bits share an octet with ``first`` (section 5.1)."""
    most = 2**prefix - 1
    if value < most:
        return bytes([first | value])
    parts = [first | most]
    value -= most
    while value >= 128:
        parts.append(value % 128 | 128)
        value //= 128
    return bytes([*parts, value])


def string(text: bytes, *, coded: bool = False) -> bytes:
    """A string literal, in the Huffman code or as it is (section 5.2)."""
    return raw_string(huffman(text), coded=True) if coded else raw_string(text)


def raw_string(content: bytes, *, coded: bool = False) -> bytes:
    """A string literal whose octets are ``content``."""
    return integer(len(content), 7, 0x80 * coded) + content


def indexed(index: int) -> bytes:
    """A field that is in a table (section 6.1)."""
    return integer(index, 7, 0x80)


def literal(
    name: bytes | int,
    value: bytes,
    kind: tuple[int, int] = UNINDEXED,
    *,
    coded: bool = False,
) -> bytes:
    """A field whose value, if not its name as well, is written out (section 6.2).

    :param name: or the index of it.
    """
    first, prefix = kind
    if isinstance(name, int):
        begin = integer(name, prefix, first)
    else:
        begin = bytes([first]) + string(name, coded=coded)
    return begin + string(value, coded=coded)


def table_size(size: int) -> bytes:
    """A new maximum of the dynamic table (section 6.3)."""
    return integer(size, 5, 0x20)


def block(fields: Fields, kind: tuple[int, int] = UNINDEXED, *, coded: bool = False) -> bytes:
    """A whole field block of literals, which neither needs nor changes a table."""
    return b"".join(
        literal(name.encode("latin-1"), value.encode("latin-1"), kind, coded=coded)
        for name, value in fields
    )
