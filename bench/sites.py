"""Figure ``sites``: how long a daemon with 10,000 sites takes to start, and what it weighs."""

from __future__ import annotations

import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from bench import configurations
from bench.control import Control, control
from bench.cpu import cpu_ns, memory_bytes
from bench.holding import settle
from bench.processes import BenchError, Process, end, free_port, scratch, spawn, tail
from bench.results import Reading, Results
from bench.servers import daemon

COUNT = 10_000
PATIENCE = 120.0  # seconds until a start is given up


def sites(results: Results, console: Console) -> None:
    """Start it again and again, weigh it, and have it read its configuration anew."""
    took: list[float] = []
    busy: list[float] = []
    weights: list[float] = []
    with scratch() as directory:
        port = free_port()
        config = directory / "awesomeproxy.toml"
        text = configurations.many(directory, port, COUNT)
        config.write_text(text)
        console.print(f"sites: {COUNT:,} sites, {results.options.rounds} rounds")
        with started(directory, port, config) as (_, first):
            pass
        for _ in range(results.options.rounds):
            with started(directory, port, config) as (process, seconds):
                took.append(seconds)
                busy.append(cpu_ns(process.pid) / 1e9)
                settle(process)
                weights.append(megabytes(process))
                with control(process) as ctl:
                    nothing = _reload(ctl, changed=0)
                    config.write_text(text.replace('"site7.', '"other7.'))
                    one = _reload(ctl, changed=1)
                    config.write_text(text)
                settle(process)
                after = megabytes(process)
    # The neighbours can only add to it.
    results.readings["sites-start"] = Reading(min(took), took)
    results.readings["sites-memory"] = Reading(statistics.median(weights), weights)
    results.notes.append(
        f"sites: {min(busy):.1f} s of CPU time until it listens; the first start took "
        f"{first:.1f} s; a reload {nothing:.1f} s, with one site changed {one:.1f} s; "
        f"{after:.0f} MB after the reloads"
    )


@contextmanager
def started(directory: Path, port: int, config: Path) -> Iterator[tuple[Process, float]]:
    """A daemon that listens, and how many seconds it took."""
    log = directory / "output.log"
    with log.open("wb") as output:
        began = time.monotonic()
        popen = spawn(
            daemon(config),
            "proxy",
            cwd=directory,
            stdout=output.fileno(),
            stderr=subprocess.STDOUT,
        )
        try:
            while not _listens(port):
                if popen.poll() is not None or time.monotonic() > began + PATIENCE:
                    raise BenchError(f"the daemon with {COUNT:,} sites is not there: {tail(log)}")
                time.sleep(0.01)
            seconds = time.monotonic() - began
            yield Process("awesomeproxy", popen.pid, port, directory, popen), seconds
        finally:
            end(popen)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def megabytes(process: Process) -> float:
    """What a daemon weighs."""
    return memory_bytes(process.pid) / 1e6


def _reload(ctl: Control, changed: int) -> float:
    """Seconds that a reload takes."""
    began = time.monotonic()
    result = ctl.call("reload")
    seconds = time.monotonic() - began
    if len(result["changed"]) != changed or result["added"] or result["removed"]:
        raise BenchError(f"a reload changed {len(result['changed'])} sites, not {changed}")
    return seconds
