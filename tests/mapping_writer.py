"""Somebody who has a file mapped for writing, and has it not open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType

CODE = """
import mmap, sys, time
with open(sys.argv[1], "w+b") as file:
    file.truncate(4096)
    mapped = mmap.mmap(file.fileno(), 4096)
print("ready", flush=True)
time.sleep(60)
"""


class HoldsMapping:
    """A process; ``with`` gives its number."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> int:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CODE, self._file], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self._process.pid

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
