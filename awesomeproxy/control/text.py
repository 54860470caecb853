"""Text for a terminal: colours where they are wanted, columns that line up, amounts.

Nothing that comes from elsewhere is trusted to be harmless on a terminal:
control characters are shown as escapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_COLOURS = {
    "red": "31",
    "green": "32",
    "yellow": "33",
    "dim": "2",
    "bold": "1",
}
_STATES = {
    "open": "green",
    "up": "green",
    "done": "green",
    "unreachable": "red",
    "down": "red",
    "rolled back": "red",
    "holding": "yellow",
    "draining": "yellow",
    "releasing": "yellow",
    "mounted": "green",
    "there": "green",
    "moving": "yellow",
    "live": "green",
    "late": "yellow",
    "gone": "red",
}
MOST = 20  # names in a line


@dataclass(frozen=True, slots=True)
class Style:
    """How text may look: in colours on a terminal, plain elsewhere."""

    colour: bool = False

    def paint(self, text: str, name: str) -> str:
        """``text`` in a colour, if there are colours and it has a name."""
        return f"\033[{_COLOURS[name]}m{text}\033[0m" if self.colour and name else text

    def state(self, text: str) -> str:
        """A state's word in the colour of its urgency; padding around it is kept."""
        return self.paint(text, _STATES.get(text.strip().partition(":")[0], ""))


def clean(value: object) -> str:
    """``value`` on one line, harmless on a terminal."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Sequence[str]) -> str:
    """Names in a line; of very many the first, and how many more there are."""
    more = len(names) - MOST
    shown = ", ".join(map(clean, names[:MOST] if more > 1 else names))
    return f"{shown} and {more} more" if more > 1 else shown


def duration(seconds: float) -> str:
    """``0.25`` as ``250 ms``, ``12.5`` as ``12.5 s``, ``3700`` as ``1h 01m``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}h"
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s"


def size(count: float) -> str:
    """``2147483648`` as ``2.0 GB``; the units are those of the configuration, powers of 1024."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    style: Style,
    right: Iterable[str] = (),
    states: Iterable[str] = (),
) -> str:
    """Rows under a head, in aligned columns.

    :param right: the columns of numbers.
    :param states: the columns of states, which are coloured.
    """
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    numbers = {head.index(name) for name in right}
    coloured = {head.index(name) for name in states}

    def line(row: Sequence[str]) -> list[str]:
        return [
            cell.rjust(width) if index in numbers else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]

    lines = [style.paint("  ".join(line(head)).rstrip(), "dim")]
    for row in cells:
        padded = line(row)
        painted = [
            style.state(cell) if index in coloured else cell for index, cell in enumerate(padded)
        ]
        lines.append("  ".join(painted).rstrip())
    return "\n".join(lines)


def pairs(values: Iterable[tuple[str, object]], indent: str = "  ") -> str:
    """Names and values under each other, without the empty ones."""
    shown = [(name, clean(value)) for name, value in values if value not in (None, "")]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{indent}{name.ljust(width)}  {value}" for name, value in shown)
