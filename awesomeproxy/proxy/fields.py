"""Header fields: pairs of name and value, as they came.

Most fields of a message are forwarded without being looked at; a few are *special*:
they concern the connection they came on, or the proxy writes them itself.  Which is
which is asked for every field of every message, so names are remembered in the
spelling they came in.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

Field = tuple[bytes, bytes]

OWS = b" \t"
COLON = b": "
CRLF = b"\r\n"
DIGITS = 18  # of a number that is taken for one
REMEMBERED = 2048  # spellings of names; strangers can invent them
LONGEST = 64  # bytes of a name that is worth remembering

# What RFC 9110, section 6.5.1 keeps out of trailers, as far as it steers anything.
NOT_IN_TRAILERS = frozenset(
    b"host connection content-length transfer-encoding upgrade expect te trailer keep-alive"
    b" proxy-connection via forwarded x-forwarded-for x-forwarded-proto x-forwarded-host"
    b" x-request-id max-forwards authorization content-encoding content-type content-range"
    b" cookie set-cookie".split()
)


def names_in(connection: bytes) -> set[bytes]:
    """The names that a Connection field lists, in lower case."""
    return {name.strip(OWS) for name in connection.lower().split(b",")}


def without(fields: Iterable[Field], names: Set[bytes]) -> list[Field]:
    """``fields`` save those of the given (lower-case) names."""
    return [field for field in fields if field[0].lower() not in names]


def size_of(fields: Iterable[Field]) -> int:
    """How many bytes ``fields`` take as lines."""
    return sum(len(name) + len(value) + 4 for name, value in fields)


def find(fields: Iterable[Field], wanted: bytes) -> bytes | None:
    """The value of the first field of the (lower-case) name ``wanted``."""
    for name, value in fields:
        if name.lower() == wanted:
            return value.strip(OWS)
    return None


def number(value: bytes) -> int:
    """The number that ``value`` is; -1: it is none, or too large to be meant."""
    return int(value) if value.isdigit() and len(value) <= DIGITS else -1


class Kinds(dict[bytes, bytes]):
    """What kind of field a name, as it is spelled, names: ``kinds[name]``.

    The answer is the name in lower case if it is special, and empty if it is not.  What
    differs from a special name by underscores alone is a kind of its own: CGI and WSGI
    cannot tell X_Forwarded_For from X-Forwarded-For, so neither may travel.
    """

    def __init__(self, special: frozenset[bytes]) -> None:
        super().__init__()
        self._special = special

    def __missing__(self, name: bytes) -> bytes:
        key = name.lower()
        kind = key if key.replace(b"_", b"-") in self._special else b""
        if len(name) <= LONGEST:
            if len(self) >= REMEMBERED:
                self.clear()
            self[name] = kind
        return kind
