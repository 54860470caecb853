"""Progress on a terminal: a line for each step, and a bar that moves while bytes do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from awesomeproxy.control.text import Style, clean, duration, size

BAR = 24  # columns


class Meter:
    """Prints the progress of one command to ``stream``, a terminal."""

    def __init__(self, stream: IO[str], style: Style) -> None:
        self._stream = stream
        self._style = style
        self._open = False  # the last line is a bar, to be written over

    def tell(self, params: Mapping[str, Any]) -> None:
        """Show one notification of progress."""
        step = self._style.paint(clean(params.get("step", "")).ljust(10), "dim")
        if "bytes" in params:
            self._stream.write(f"\r\033[K  {step} {bar(params)}")
            self._open = True
        else:
            start = "\r\033[K" if self._open else ""
            self._stream.write(f"{start}  {step} {clean(params.get('message', ''))}\n")
            self._open = False
        self._stream.flush()

    def close(self) -> None:
        """What is printed next begins on a line of its own."""
        if self._open:
            self._stream.write("\n")
            self._open = False


def bar(params: Mapping[str, Any]) -> str:
    """``[######------]  45%  1.2 of 2.7 GB  110 MB/s  14 s left``."""
    done, total, rate = params["bytes"], params.get("total", 0), params.get("rate", 0)
    words = []
    if total:
        total = max(total, done)  # there may have come more of it
        filled = round(BAR * done / total)
        words.append(f"[{'#' * filled}{'-' * (BAR - filled)}] {100 * done // total:3}%")
        words.append(f"{size(done)} of {size(total)}")
    else:
        words.append(size(done))
    if rate:
        words.append(f"{size(rate)}/s")
        if total > done:
            words.append(f"{duration((total - done) / rate)} left")
    return "  ".join(words)
