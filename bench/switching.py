"""Figures ``pauses``, ``h2pauses``, ``moves`` and ``wait``: switching a site in use.

The first three count what wrk or h2load, at full speed, did not get answered as it
should.  The last asks how long a migration that moves no data makes a request wait, seen from
both sides: by the migration's ledger, and by a client with a request every 2 ms.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Sequence

from rich.console import Console

from bench import certificates
from bench.configurations import SMALL
from bench.control import Control, control, find
from bench.h2load import H2load
from bench.load import Load
from bench.processes import MODULES, BenchError, Process, end, module, scratch, spawn
from bench.results import Reading, Results
from bench.servers import awesomeproxy, origin
from bench.wrk import Wrk

LASTING = 8.0  # seconds of load: more than all the cycles take
CYCLES = 30
MOVES = 100
IDLE_MOVES = 30

Probe = tuple[float, float, int]  # sent, seconds, status
Window = tuple[float, float]


def pauses(results: Results, console: Console) -> None:
    """Pause and resume under load."""
    with origin() as behind, awesomeproxy(behind) as daemon:
        _cycle("pauses", daemon, Wrk(64), results, console)


def h2pauses(results: Results, console: Console) -> None:
    """Pause and resume under load over HTTP/2."""
    load = H2load(10, 10)
    with (
        scratch() as directory,
        origin() as behind,
        awesomeproxy(behind, certificate=certificates.make("P-256", directory)) as daemon,
    ):
        load.run(daemon.url + SMALL, 0.5)  # how many requests are many
        _cycle("h2pauses", daemon, load, results, console)


def _cycle(figure: str, daemon: Process, load: Load, results: Results, console: Console) -> None:
    console.print(f"{figure}: {CYCLES} cycles")
    with control(daemon) as ctl, load.start(daemon.url + SMALL, LASTING) as running:
        time.sleep(0.5)
        for _ in range(CYCLES):
            ctl.call("pause", site="bench")
            time.sleep(0.02)
            ctl.call("resume", site="bench")
            time.sleep(0.05)
        if running.over:
            raise BenchError("the load was over before the last of the cycles")
        report = running.stop()
    results.readings[f"{figure}-failed"] = Reading(report.failed)
    results.notes.append(f"{figure}: {report}")


def moves(results: Results, console: Console) -> None:
    """Migrate to and fro under load."""
    console.print(f"moves: {MOVES} migrations")
    trouble = dict.fromkeys(("failed", "ambiguous", "refused", "retried"), 0)
    with (
        origin() as a,
        origin() as b,
        awesomeproxy(a, b) as daemon,
        control(daemon) as ctl,
        Wrk(64).start(daemon.url + SMALL, LASTING) as running,
    ):
        time.sleep(0.5)
        for number in range(MOVES):
            ledger = _migrate(ctl, number)
            for key in trouble:
                trouble[key] += int(find(ledger, key))
            time.sleep(0.02)
        report = running.stop()
    results.readings["moves-failed"] = Reading(report.failed)
    counted = ", ".join(f"{count} {key}" for key, count in trouble.items())
    results.notes.append(f"moves: {report}; by the ledgers {counted}")


def _migrate(ctl: Control, number: int) -> object:
    ledger: object = ctl.call("migrate", site="bench", to="ba"[number % 2])
    outcome = find(ledger, "outcome")
    if outcome != "done":
        raise BenchError(f"a migration ended {outcome}: {find(ledger, 'reason')}")
    return ledger


def wait(results: Results, console: Console) -> None:
    """Migrate a site that is idle but for one request every 2 ms."""
    console.print(f"wait: {IDLE_MOVES} migrations")
    windows: list[Window] = []
    paused: list[float] = []
    with origin() as a, origin() as b, awesomeproxy(a, b) as daemon, control(daemon) as ctl:
        argv = [*module("prober"), str(daemon.port)]
        prober = spawn(argv, "load", env=MODULES, stdin=subprocess.PIPE)
        try:
            time.sleep(1.0)
            for number in range(IDLE_MOVES):
                start = time.monotonic()
                ledger = _migrate(ctl, number)
                windows.append((start, time.monotonic()))
                paused.append(float(find(ledger, "pause")) * 1000)
                time.sleep(0.1)
            output, _ = prober.communicate(timeout=30)
        finally:
            end(prober)
    if not output:
        raise BenchError(f"the prober ended with status {prober.returncode}")
    probes: list[Probe] = [(sent, took, status) for sent, took, status in json.loads(output)]
    bad = sum(status != 200 for _, _, status in probes)
    if bad:
        raise BenchError(f"{bad} of {len(probes)} requests of an idle site were not answered 200")
    added, calm = _added(probes, windows)
    results.readings["wait-ledger"] = Reading(max(paused), paused)
    results.readings["wait-client"] = Reading(max(added), added)
    results.notes.append(
        f"wait: median pause {statistics.median(paused):.1f} ms, median added wait "
        f"{statistics.median(added):.1f} ms; with no migration about, the slowest of "
        f"{len(probes):,} requests took {calm:.1f} ms more than the median"
    )


def _added(probes: Sequence[Probe], windows: Sequence[Window]) -> tuple[list[float], float]:
    """Milliseconds above the median: the worst within each window, and the worst outside."""
    usual = statistics.median(took for _, took, _ in probes)
    worst = [0.0] * len(windows)
    calm = 0.0
    for sent, took, _ in probes:
        above = (took - usual) * 1000
        touched = [i for i, (a, b) in enumerate(windows) if sent < b and sent + took > a]
        for i in touched:
            worst[i] = max(worst[i], above)
        if not touched:
            calm = max(calm, above)
    return worst, calm
