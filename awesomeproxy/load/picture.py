"""Draws a run: the latency of each request over time, one point each.

Time runs along the moment a request was *due*, so that a hold shows as what it is: a
slope, on which each request waited a little less than the one before.  Held requests
and failures stand out; below, in a strip of its own, how many requests ended each
second.  Marks (a pause, a migration) are vertical lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

from awesomeproxy.load.outcome import RequestOutcome
from awesomeproxy.load.result import Result
from awesomeproxy.load.summary import describe, duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

Corner = Literal["lower right", "upper right"]

_ANSWERED = "#2f6db5"
_HELD = "#e8912d"
_FAILED = "#c8102e"
_INK = "#2b2b2b"
_FAINT = "#9a9a9a"
_FLOOR = 1e-5  # seconds; a log axis has no zero


def draw(result: Result, path: str | Path, title: str = "") -> None:
    """Write the picture of a result.

    :param path: ends in ``.png`` or ``.svg``, which decides the format.
    :param title: what it shows, if not simply what the plan says.
    :raises ImportError: if matplotlib is not installed.
    :raises OSError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.75), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    points, strip = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    _title(figure, result, title)
    _draw_points(points, result)
    _draw_strip(strip, result)
    _draw_marks(points, strip, result)
    figure.savefig(path, format=Path(path).suffix[1:].lower())


def _title(figure: Figure, result: Result, title: str) -> None:
    latency = result.latency()
    facts = [f"{result.issued:,} requests", f"{result.failed:,} failed"]
    if result.held_requests:
        facts.append(f"{result.held_requests:,} held")
    if latency:
        facts += [f"{p:g}% {duration(latency.percentiles[p])}" for p in (50.0, 99.0, 99.9)]
        facts.append(f"longest {duration(latency.max)}")
    plan = result.plan
    what = title or f"{shorten(str(plan), 100)}  \N{MIDDLE DOT}  {describe(plan)}"
    figure.suptitle(
        f"{what}\n" + "   ".join(facts),
        fontsize=11,
        color=_INK,
        parse_math=False,
    )


def _columns(result: Result) -> tuple[Any, Any, Any, Any]:
    """Due, latency, held and outcome of the requests that ended, as numpy arrays."""
    import numpy

    n = result.issued
    due = numpy.array(result.due[:n])
    done = numpy.array(result.done[:n])
    held = numpy.array(result.held[:n])
    outcome = numpy.array(result.outcome[:n])
    ended = outcome != RequestOutcome.UNFINISHED
    latency = numpy.maximum(done - due, _FLOOR)
    return due[ended], latency[ended], held[ended], outcome[ended]


def _draw_points(axes: Axes, result: Result) -> None:
    from matplotlib.lines import Line2D

    due, latency, held, outcome = _columns(result)
    failed = outcome > RequestOutcome.OK
    was_held = (held >= 0) & ~failed
    plain = ~failed & ~was_held
    size = 3.0 if len(due) < 20_000 else 1.5
    # Rasterised, or an SVG of a million points would be one nobody can open.
    dots: dict[str, Any] = {"linestyle": "none", "markeredgewidth": 0, "rasterized": True}
    for which, color, label in ((plain, _ANSWERED, "answered"), (was_held, _HELD, "held")):
        count = int(which.sum())
        if count:
            axes.plot(
                due[which],
                latency[which],
                marker="o",
                markersize=size,
                alpha=0.35 if count > 5_000 else 0.7,
                color=color,
                label=f"{label}: {count:,}",
                **dots,
            )
    for code in sorted({int(code) for code in outcome[failed]}):
        which = outcome == code
        axes.plot(
            due[which],
            latency[which],
            linestyle="none",
            marker=_MARKERS[code % len(_MARKERS)],
            markersize=7,
            markeredgewidth=1.6,
            color=_FAILED,
            rasterized=int(which.sum()) > 2_000,
            label=f"{RequestOutcome(code).word}: {int(which.sum()):,}",
            zorder=5,
        )
    axes.set_yscale("log")
    if len(latency):  # whole decades, and room above for the labels of marks
        axes.set_ylim(_decade(latency.min(), math.floor), 3 * _decade(latency.max(), math.ceil))
    axes.yaxis.set_major_formatter(lambda value, _: _tick(value))
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("latency, from when due", color=_INK)
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
    if axes.get_legend_handles_labels()[0]:
        # Marks have their labels above.
        corner: Corner = "lower right" if result.marks else "upper right"
        legend = axes.legend(loc=corner, frameon=True, framealpha=0.9, edgecolor="#dddddd")
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
            if isinstance(handle, Line2D):
                handle.set_markersize(7)
    _tidy(axes)


_MARKERS = ("x", "+", "1", "2", "3", "4", "X", "P")


def _draw_strip(axes: Axes, result: Result) -> None:
    import numpy

    due, latency, _, outcome = _columns(result)
    ended = due + latency
    end = max(result.elapsed, 0.001, float(ended.max(initial=0.0)))
    edges = numpy.linspace(0, end, num=int(min(240, max(100, end))) + 1)
    width = edges[1] - edges[0]
    failed = outcome > RequestOutcome.OK
    per_second = numpy.histogram(ended, edges)[0] / width
    failures = numpy.histogram(ended[failed], edges)[0] / width
    axes.stairs(per_second, edges, fill=True, color=_ANSWERED, alpha=0.45)
    axes.stairs(failures, edges, fill=True, color=_FAILED)
    axes.set_ylabel("ended/s", color=_INK)
    axes.set_xlabel("seconds since the start", color=_INK)
    axes.set_xlim(0, end)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(True, axis="y", color="#e4e4e4", linewidth=0.8)
    _tidy(axes)


def _draw_marks(points: Axes, strip: Axes, result: Result) -> None:
    for at, text in result.marks:
        for axes in (points, strip):
            axes.axvline(at, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=4)
        points.annotate(
            text,
            (at, 0.985),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            rotation=90,
            verticalalignment="top",
            fontsize=8,
            color=_INK,
            zorder=6,
            parse_math=False,
        )


def _decade(seconds: float, rounded: Callable[[float], int]) -> float:
    return float(10.0 ** rounded(math.log10(seconds)))


def _tick(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "\N{MICRO SIGN}s")):
        if seconds >= unit * 0.999:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"


def _tidy(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
