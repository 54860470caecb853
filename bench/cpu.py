"""CPU time and memory of a process, as the kernel counts them.

CPU time is what a proxy is compared by: on a shared machine the wall clock tells
how busy the neighbours were, while the nanoseconds a process ran tell what it did.
``schedstat`` counts them exactly, per thread; ``stat``, where the kernel was built
without it, counts ticks of ten milliseconds.
"""

from __future__ import annotations

import os
from pathlib import Path


def cpu_ns(pid: int) -> int:
    """CPU time that the live threads of process ``pid`` have used, in nanoseconds.

    Raises :exc:`FileNotFoundError` when there is no such process.
    """
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            if not Path("/proc/self/schedstat").exists():
                return _ticks_ns(pid)
            # otherwise this thread has just ended
    return total


def _ticks_ns(pid: int) -> int:
    # The second field, the name in parentheses, may itself hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])  # utime and stime
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    """Resident memory of process ``pid`` in bytes, with what it shares with others (``VmRSS``).

    Raises :exc:`FileNotFoundError` when there is no such process.
    """
    path = Path(f"/proc/{pid}/status")
    for line in path.read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise FileNotFoundError(f"{path}: no line VmRSS: {pid} has ended")
