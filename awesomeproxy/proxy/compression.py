"""HPACK (RFC 7541) by the hpack library, which is asked as seldom as possible.

*Encoding.*  Nothing that we send is remembered by the peer to be referred to later: the
dynamic table has no room, which its first block says.  How a field is written so depends on
that field alone, and fields are often the same, for all connections: what the library has
made of one is kept.  That costs some bytes on the wire (nginx does the same), and half
the time of a response; and no client can tell from sizes what another one was sent.

*Decoding.*  A client has a table, and a block of its fields means what the table says.  As
long as the table does not change, the same block means the same, and clients that ask
for one thing after another send the same again and again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.hpack import Decoder, Encoder
from hpack.struct import NeverIndexedHeaderTuple
from hpack.table import HeaderTable

REMEMBERED = 4096  # fields, of all connections
LONGEST = 128  # bytes of a field that is worth remembering
BLOCKS = 32  # blocks that are remembered, of a connection ...
LONGEST_BLOCK = 512  # ... if they have no more bytes
SECRETS = frozenset((b"set-cookie", b"cookie", b"authorization", b"proxy-authorization"))
RESIZE = 0x20  # what a block begins with that changes the table's size, in its first three bits

_encoded: dict[tuple[bytes, bytes], bytes] = {}


class BadCompression(ProtocolError):
    """A block of fields that cannot be decoded (RFC 9113, section 4.3)."""

    error_code = ErrorCodes.COMPRESSION_ERROR


class FieldEncoder(Encoder):
    """Writes fields one by one, each on its own."""

    def __init__(self) -> None:
        super().__init__()
        Encoder.header_table_size.fset(self, 0)  # type: ignore[attr-defined]

    @property
    def header_table_size(self) -> int:
        """Bytes of fields that are remembered: none, whatever the peer would allow."""
        return 0

    @header_table_size.setter
    def header_table_size(self, size: int) -> None:
        pass

    def encode(self, headers: Iterable[Any], huffman: bool = True) -> bytes:
        """The block that ``headers`` are."""
        block = []
        if self.header_table.resized:
            block.append(self._encode_table_size_change())
            self.header_table.resized = False
        for field in headers:
            code = _encoded.get(field)
            if code is None or field.__class__ is NeverIndexedHeaderTuple:
                code = self._encode_one(field, huffman)
            block.append(code)
        return b"".join(block)

    def _encode_one(self, field: Any, huffman: bool) -> bytes:
        name, value = field
        if field.__class__ is NeverIndexedHeaderTuple:
            return self.add((name, value), True, huffman)
        code = self.add((name, value), False, huffman)
        if len(name) + len(value) <= LONGEST and name not in SECRETS:
            if len(_encoded) >= REMEMBERED:
                _encoded.clear()
            _encoded[(name, value)] = code
        return code


class _Table(HeaderTable):
    """A table that says when it has changed."""

    changed = False

    def add(self, name: bytes, value: bytes) -> None:
        self.changed = True
        super().add(name, value)


class BlockDecoder(Decoder):
    """Reads blocks, and knows those that it has just read."""

    def __init__(self, max_list: int) -> None:
        """
        :param max_list: bytes of a block's fields, with 32 for each of them.
        """
        super().__init__(max_list)
        self._table = _Table()
        self.header_table = self._table
        self._blocks: dict[bytes, Any] = {}

    def decode(self, data: bytes, raw: bool = False) -> Any:
        """The fields that a block is.

        :raise BadCompression: it is none.
        :raise OversizedHeaderListError: they are too long.
        """
        found = self._blocks.get(data)
        if found is not None:
            return found
        table = self._table
        table.changed = False
        try:
            fields = super().decode(data, raw)
        except OversizedHeaderListError:
            raise
        except (HPACKError, IndexError, TypeError, ValueError) as fault:
            raise BadCompression(str(fault)) from fault
        if table.changed or (data[:1] and data[0] & 0xE0 == RESIZE):
            self._blocks.clear()
        elif len(data) <= LONGEST_BLOCK:
            if len(self._blocks) >= BLOCKS:
                self._blocks.clear()
            self._blocks[bytes(data)] = fields
        return fields
