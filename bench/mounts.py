"""Figure ``mounts``: what a mount costs the watcher of mounts when there are 100,000."""

from __future__ import annotations

import json
import os
import statistics
from typing import Any

from rich.console import Console

from bench.processes import MODULES, BenchError, end, module, program, spawn
from bench.results import Reading, Results


def mounts(results: Results, console: Console) -> None:
    """Fill a mount namespace, and mount something there again and again."""
    if os.geteuid() != 0:
        raise BenchError("only root can mount; run it as root")
    namespace = [program("unshare"), "--mount", "--propagation", "private"]
    rounds = results.options.rounds
    console.print(f"mounts: {rounds} rounds, after half a minute of mounting")
    crowd = spawn([*namespace, *module("crowd"), str(rounds)], "proxy", env=MODULES)
    try:
        assert crowd.stdout is not None
        said = crowd.stdout.read()
        if crowd.wait() or not said:
            raise BenchError(f"the watcher ended with status {crowd.returncode}")
    finally:
        end(crowd)
    found: dict[str, Any] = json.loads(said)
    # The neighbours can only add to it, and with so much to read they do.
    for name in ("cpu", "others_cpu", "read_cpu"):
        bar = "mounts-" + name.removesuffix("_cpu")
        results.readings[bar] = Reading(min(found[name]), found[name])
    results.readings["mounts-stall"] = Reading(statistics.median(found["stall"]), found["stall"])
    told, read = (statistics.median(found[name]) for name in ("told", "read_told"))
    results.notes.append(
        f"mounts: {found['mounts']:,} mounts; told after {told:.1f} ms; "
        f"where the table is read, after {read:.0f} ms"
    )
