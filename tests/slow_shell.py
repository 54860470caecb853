"""A shell whose streams are slow, so that they can be met in the middle."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from awesomeproxy.movers.shell import Shell

RATE = 2 << 20  # bytes a second
TROTTER = f"""
import os, sys, time
while data := os.read(0, {RATE} // 20):
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
    time.sleep(0.05)
"""


def slowed(argv: Sequence[str]) -> list[str]:
    """What to run in place of a command; what ``send`` commands print comes slowly."""
    if argv[1:2] != ["send"]:
        return list(argv)
    trotting = 'python="$1"; shift; code="$1"; shift; "$@" | "$python" -c "$code"'
    return ["sh", "-c", trotting, "sh", sys.executable, TROTTER, *argv]


class SlowShell(Shell):
    """Runs commands on one node, some of them slowly."""

    def command(self, argv: Sequence[str]) -> list[str]:
        return super().command(slowed(argv))
