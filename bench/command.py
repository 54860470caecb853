"""Figure ``status``: how long a person waits for ``awesomeproxy status``."""

from __future__ import annotations

import statistics
import subprocess
import time

from rich.console import Console

from bench.processes import BenchError
from bench.results import Reading, Results
from bench.servers import awesomeproxy, origin, script

RUNS = 20


def status(results: Results, console: Console) -> None:
    """Run the command again and again, from the start of its process to its exit."""
    console.print(f"status: {RUNS} runs")
    took: list[float] = []
    with origin() as behind, awesomeproxy(behind) as daemon:
        socket = str(daemon.directory / "control.sock")
        argv = [script("awesomeproxy"), "--control", socket, "status"]
        for _ in range(RUNS):
            start = time.monotonic()
            done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
            took.append((time.monotonic() - start) * 1000)
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip()
                raise BenchError(f"{' '.join(argv)} ended with status {done.returncode}: {said}")
    results.readings["status-time"] = Reading(statistics.median(took), took)
