"""Amounts as people write them, turned into what the model holds: seconds, bytes, counts.

A reader takes whatever the file (or a command's JSON) had for a key and gives
back a checked value.  What it cannot read it raises as a :class:`ValueError`
whose text has two halves, *what was wrong; what to write instead*, and which
names no key: who calls knows that.  :mod:`awesomeproxy.addresses` has the
readers of names and places, made the same way.

Readers are strict, so that a slip is told rather than guessed at: no text is
taken for a bare number, ``true`` is not 1, and every amount has an upper bound
that keeps timers and sums in range.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 8760 * 3600  # a year
_SIZE = re.compile(r"([0-9]{1,16}) ?(B|KB|MB|GB)")
_BYTES = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}
_LARGEST = 1024**5  # more than a machine has, less than a 64-bit number
_MOST = 1_000_000_000
_STATUS = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")


def show(value: object) -> str:
    """``value`` as the file would spell it, short and printable, for an error's text."""
    if isinstance(value, str):
        short = value if len(value) <= 80 else value[:77] + "..."
        return json.dumps(short, ensure_ascii=not short.isprintable())
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) > 10**30:
        return "a huge number"  # Python refuses to print one of thousands of digits
    if isinstance(value, (int, float)):
        return str(value)
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, (list, tuple)) else "a date or time"


def _in_range(value: object, number: float, zero: bool, most: float, spelled: str) -> None:
    if not (0 < number <= most or (zero and number == 0)):  # nan fails every comparison
        least = "0 or more" if zero else "more than 0"
        raise ValueError(f"{show(value)} is out of range; write {least} and at most {spelled}")


def duration(*, zero: bool = False, years: int = 1) -> Callable[[object], float]:
    """A reader of seconds: ``60``, ``0.5``, ``"250ms"``, ``"60s"``, ``"5m"``, ``"1h"``, ``"30d"``.

    ``zero`` says whether 0 is allowed, ``years`` how many of them at the most.
    """

    def read(value: object) -> float:
        number: float
        if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
            amount, unit = float(match[1]), match[2]
            number = amount / 1000 if unit == "ms" else amount * _SECONDS[unit]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            number = value
        else:
            raise ValueError(
                f"{show(value)} is not a duration; "
                'write a number of seconds, or a text such as "250ms", "60s", "5m", "1h" or "30d"'
            )
        _in_range(value, number, zero, years * _LONGEST, f'"{years * 365}d"')
        return float(number)

    return read


def size(*, zero: bool = False) -> Callable[[object], int]:
    """A reader of bytes: ``4096``, ``"32KB"``, ``"256MB"``, ``"1GB"``, by powers of 1024.

    ``zero`` says whether 0 is allowed.
    """

    def read(value: object) -> int:
        if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
            number = int(match[1]) * _BYTES[match[2]]
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        else:
            raise ValueError(
                f"{show(value)} is not a size; "
                'write a whole number of bytes, or a text such as "32KB", "256MB" or "1GB"'
            )
        _in_range(value, number, zero, _LARGEST, '"1048576GB"')
        return number

    return read


def count(*, zero: bool = False) -> Callable[[object], int]:
    """A reader of whole numbers; ``zero`` says whether 0 is allowed."""

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{show(value)} is not a whole number; write digits without quotes")
        _in_range(value, value, zero, _MOST, str(_MOST))
        return value

    return read


def flag(value: object) -> bool:
    """A reader of yes or no."""
    if not isinstance(value, bool):
        raise ValueError(f"{show(value)} is neither true nor false; write one of them, unquoted")
    return value


def choice(*allowed: str) -> Callable[[object], str]:
    """A reader of one of the ``allowed`` words."""

    def read(value: object) -> str:
        for word in allowed:
            if value == word:
                return word
        words = " or ".join(map(show, allowed))
        raise ValueError(f"{show(value)} is not one of the choices; write {words}")

    return read


def status_range(value: object) -> tuple[int, int]:
    """A range of HTTP status codes, both ends included: ``"200-399"``, ``"204"``, ``204``."""
    text = show(value) if type(value) is int else value
    match = _STATUS.fullmatch(text) if isinstance(text, str) else None
    if match is None or (match[2] and match[2] < match[1]):
        raise ValueError(
            f"{show(value)} is not a range of status codes; "
            'write the lowest and the highest, as in "200-399", each from 100 to 599'
        )
    return int(match[1]), int(match[2] or match[1])
