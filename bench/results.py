"""What was measured against the bars, and how that is shown.

A bar is passed, missed, or not measured because a proxy it compares with was left
out.  A figure that could not be measured for any other reason has missed its bars.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from bench.bars import BARS, Bar
from bench.processes import core_of


@dataclass(frozen=True, slots=True)
class Options:
    """How long and what to measure."""

    quick: bool = False
    rounds: int = 5
    proxies: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long one proxy is under load in one round."""
        return 1.5 if self.quick else 4.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured for a bar, and the single values it is the middle or the worst of."""

    value: float
    samples: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """What one proxy used in one figure: CPU microseconds per ``unit``, median over rounds."""

    figure: str
    proxy: str
    microseconds: float
    unit: str
    per_second: float
    samples: Sequence[float] = ()


@dataclass(slots=True)
class Results:
    """All that one run has found."""

    options: Options
    readings: dict[str, Reading] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)  # figure -> why it could not be measured
    figures: list[str] = field(default_factory=list)  # in the order they were asked for

    def verdict(self, bar: Bar) -> Literal["pass", "miss", "not measured"]:
        """What has become of a bar."""
        if bar.figure in self.errors:
            return "miss"
        reading = self.readings.get(bar.name)
        if reading is None:
            return "not measured"
        return "pass" if bar.passed(reading.value) else "miss"

    @property
    def bars(self) -> list[Bar]:
        """The bars of the figures that were asked for."""
        return [b for b in BARS if b.figure in self.figures]

    @property
    def missed(self) -> bool:
        """Whether any bar was missed that is more than an aim."""
        return any(self.verdict(b) == "miss" for b in self.bars if b.binding)

    def print(self, console: Console) -> None:
        """Show everything as tables."""
        if self.costs:
            console.print(self._cost_table())
        console.print(self._bar_table())
        for note in self.notes:
            console.print(f"- {note}", highlight=False, markup=False)
        for figure, error in self.errors.items():
            console.print(f"{figure}: {error}", style="red", highlight=False, markup=False)

    def _cost_table(self) -> Table:
        table = Table("figure", "proxy", title="CPU time, median of the rounds")
        for heading in ("µs", "rounds from", "to", "a second"):
            table.add_column(heading, justify="right")
        for cost in self.costs:
            table.add_row(
                cost.figure,
                cost.proxy,
                f"{cost.microseconds:.1f} per {cost.unit}",
                f"{min(cost.samples):.1f}",
                f"{max(cost.samples):.1f}",
                f"{cost.per_second:,.0f}",
            )
        return table

    def _bar_table(self) -> Table:
        table = Table("figure", "what", title="Bars")
        for heading in ("bar", "measured", "from", "to", ""):
            table.add_column(heading, justify="right")
        for bar in self.bars:
            verdict = self.verdict(bar)
            style = {"pass": "green", "miss": "bold red", "not measured": "yellow"}[verdict]
            if not bar.binding and verdict == "miss":
                style = "yellow"
            cells = ["", "", ""]
            if reading := self.readings.get(bar.name):
                values = [reading.value]
                if reading.samples:
                    values += [min(reading.samples), max(reading.samples)]
                cells = [f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in values] + [""] * (
                    3 - len(values)
                )
            shown = f"[{style}]{verdict}[/{style}]"
            table.add_row(bar.figure, bar.what, str(bar), *cells, shown)
        return table

    def write(self, path: Path) -> None:
        """Write everything as JSON; raises :exc:`OSError`."""
        bars = []
        for bar in self.bars:
            reading = self.readings.get(bar.name)
            bars.append(
                {
                    **asdict(bar),
                    "measured": reading.value if reading else None,
                    "samples": list(reading.samples) if reading else [],
                    "verdict": self.verdict(bar),
                }
            )
        found = {
            "machine": {
                "system": platform.platform(),
                "python": platform.python_version(),
                "cores": os.cpu_count(),
                "proxy_core": core_of("proxy"),
                "load_core": core_of("load"),
            },
            "options": asdict(self.options),
            "bars": bars,
            "costs": [asdict(c) for c in self.costs],
            "notes": self.notes,
            "errors": self.errors,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n")
