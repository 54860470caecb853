"""What is shown while the demo plays: what happens, a line each, and how the load fares.

On a terminal the load's line is the last one and redrawn in place; anywhere else it is
written now and then, fit for a log.
"""

from __future__ import annotations

import shutil
from typing import TextIO

from awesomeproxy.load.progress import facts
from awesomeproxy.load.result import Progress

PLAIN_EVERY = 5.0  # seconds between two lines of the load where they cannot be redrawn

_ERASE = "\r\x1b[K"


class Show:
    """Writes to one stream."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._line = ""  # of the load, on the terminal now
        self._next = 0.0

    def say(self, text: str) -> None:
        """Write what has happened."""
        if self._line:
            self._write(_ERASE)
        self._write(f"{text}\n{self._line}")

    def update(self, progress: Progress) -> None:
        """Show how the load fares."""
        line = f"  {progress.elapsed:5.1f} s  {facts(progress)}"
        if self._live:
            self._line = line[: shutil.get_terminal_size().columns - 1]
            self._write(_ERASE + self._line)
            return
        if progress.elapsed < self._next - PLAIN_EVERY:  # of another act
            self._next = 0.0
        if progress.elapsed >= self._next:
            self._next = progress.elapsed + PLAIN_EVERY
            self._write(line + "\n")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._line:
            self._line = ""
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
