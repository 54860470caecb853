"""What is shown of a run while it goes on, always on stderr.

On a terminal one line is redrawn in place; anywhere else a plain line is written
now and then, fit for a log.  Drawing is done by the thread that measures, so it is
kept to twice a second.
"""

from __future__ import annotations

from typing import TextIO

from awesomeproxy.load.plan import Plan
from awesomeproxy.load.result import Progress
from awesomeproxy.load.summary import describe, duration

PLAIN_EVERY = 2.0  # seconds between two plain lines


def facts(progress: Progress) -> str:
    """Where a run is, in a line."""
    parts = [
        f"{progress.finished:,} ended",
        f"{progress.rate:,.0f}/s",
        f"median {duration(progress.median)}",
        f"longest {duration(progress.longest)}",
        f"{progress.in_flight:,} in flight",
    ]
    if progress.waiting:
        parts.append(f"{progress.waiting:,} waiting for a connection")
    if progress.held:
        parts.append(f"{progress.held:,} held")
    parts.append(f"{progress.failed:,} failed")
    return ", ".join(parts)


class PlainProgress:
    """A line every few seconds."""

    def __init__(self, plan: Plan, out: TextIO) -> None:
        self._out = out
        self._next = PLAIN_EVERY
        print(f"{plan}: {describe(plan)}", file=out, flush=True)

    def update(self, progress: Progress) -> None:
        """Write a line if it is time to."""
        if progress.elapsed >= self._next:
            self._next = progress.elapsed + PLAIN_EVERY
            print(f"{progress.elapsed:6.1f} s  {facts(progress)}", file=self._out, flush=True)

    def close(self) -> None:
        """Nothing is left to do."""


class LiveProgress:
    """A bar and a line, redrawn in place."""

    def __init__(self, plan: Plan, out: TextIO) -> None:
        """:raises ImportError: if rich is not installed."""
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        self._plan = plan
        self._text = Text
        self._bar = ProgressBar(total=plan.duration, width=24)
        self._live = Live(console=Console(file=out), auto_refresh=False, transient=True)
        self._live.start()

    def update(self, progress: Progress) -> None:
        """Redraw."""
        from rich.columns import Columns

        self._bar.update(min(progress.elapsed, self._plan.duration))
        style = "bold red" if progress.failed else ""
        clock = f"{progress.elapsed:.1f} of {self._plan.duration:g} s"
        line = self._text(f"{clock}, {facts(progress)}", style=style)
        self._live.update(Columns([self._bar, line]), refresh=True)

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()


def progress_on(plan: Plan, out: TextIO) -> PlainProgress | LiveProgress:
    """The display that suits ``out``.

    :raises ImportError: if rich is needed and not installed.
    """
    return LiveProgress(plan, out) if out.isatty() else PlainProgress(plan, out)
