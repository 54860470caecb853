"""Figure ``held``: what a request costs that waits at the gate, and that none is lost.

The memory counted is the daemon's own; the kernel's socket buffers, which any proxy
needs for a connection, are not in it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from typing import Any

from rich.console import Console

from bench.control import control
from bench.cpu import cpu_ns, memory_bytes
from bench.processes import MODULES, BenchError, Process, end, module, spawn
from bench.results import Reading, Results
from bench.servers import awesomeproxy, origin

COUNT = 15_000
FILES = COUNT + 2_000  # connections to the origin come on top
SETTLED = 0.5  # seconds in which the daemon does next to nothing
RELEASE = 120.0  # seconds that all answers together may take


def held(results: Results, console: Console) -> None:
    """Hold 15,000 requests, weigh them, and let them go."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < FILES:
        raise BenchError(f"{files} open files a process are too few; raise ulimit -n to {FILES}")
    with origin() as behind, awesomeproxy(behind) as daemon, control(daemon) as ctl:
        ctl.call("pause", site="bench")
        before = memory_bytes(daemon.pid)
        console.print(f"held: {COUNT:,} clients connect")
        herd = spawn(
            [*module("herd"), str(daemon.port), str(COUNT)],
            "load",
            env=MODULES,
            stdin=subprocess.PIPE,
        )
        try:
            sent = _line(herd)
            if sent["failed"]:
                raise BenchError(f"{sent['failed']} of {COUNT} clients could not connect and send")
            settle(daemon)
            taken = len(os.listdir(f"/proc/{daemon.pid}/fd"))
            if taken < COUNT:
                raise BenchError(f"the daemon has not taken all {COUNT} connections: {taken} open")
            after = memory_bytes(daemon.pid)
            resumed = time.monotonic()
            ctl.call("resume", site="bench")
            done = _finish(herd)
        finally:
            end(herd)
    if done["first"] and done["first"] < resumed:
        raise BenchError("requests were answered while the site was paused")
    kilobytes = (after - before) / 1024 / COUNT
    results.readings["held-memory"] = Reading(kilobytes)
    results.readings["held-failed"] = Reading(COUNT - done["answered"])
    results.notes.append(
        f"held: {done['answered']:,} of {COUNT:,} answered 200; "
        f"the last answer came {done['last'] - resumed:.2f} s after the resume"
    )


def _finish(herd: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert herd.stdin is not None
    deadline = time.monotonic() + RELEASE
    while herd.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    herd.stdin.close()  # the rest, if any, has failed
    return _line(herd)


def _line(herd: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert herd.stdout is not None
    line = herd.stdout.readline()
    if not line:
        raise BenchError(f"the clients ended with status {herd.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


def settle(daemon: Process) -> None:
    """Wait until the daemon has read all it was sent: until it uses no CPU any more."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        before = cpu_ns(daemon.pid)
        time.sleep(SETTLED)
        if cpu_ns(daemon.pid) - before < SETTLED * 1e9 * 0.05:
            return
    raise BenchError("the daemon is still busy 60 s after the last request was sent")
