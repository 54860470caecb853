"""``python -m bench.profile``: where the daemon's time goes, as a call graph.

The daemon runs under cProfile (which slows it, calls of small functions the most)
while wrk asks it for small answers; what is left is drawn by gprof2dot and dot.
"""

from __future__ import annotations

import argparse
import pstats
import subprocess
import sys
from pathlib import Path

from bench.configurations import SMALL
from bench.processes import BenchError, MissingTools, prepare, program, require, scratch
from bench.servers import awesomeproxy, origin, script
from bench.wrk import Wrk

TOP = 20


def profile(seconds: float, statistics: Path) -> None:
    """Load the daemon for ``seconds`` and leave its profile in ``statistics``."""
    options = ("--profile", str(statistics), "--profiler", "cprofile", "--savestats")
    with origin() as behind, awesomeproxy(behind, twistd_options=options) as daemon:
        report = Wrk(64).run(daemon.url + SMALL, seconds)
    print(report)
    if not statistics.exists():
        raise BenchError("the daemon was asked to end but wrote no profile")


def draw(statistics: Path, out: Path) -> None:
    """Draw the profile as an SVG picture; raises :exc:`BenchError` when that fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    graph = statistics.with_suffix(".dot")
    for argv in (
        [script("gprof2dot"), "-f", "pstats", "-o", str(graph), str(statistics)],
        [program("dot"), "-Tsvg", "-o", str(out), str(graph)],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{' '.join(argv)} failed: {done.stderr.strip()}")


def main() -> int:
    """Profile, print the top functions, draw, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load (10)")
    parser.add_argument("--out", type=Path, default=Path("out/profile.svg"), help="the picture")
    arguments = parser.parse_args()
    try:
        require("wrk", "nginx", "dot", "taskset", "setpriv")
        prepare()
        with scratch() as directory:
            statistics = directory / "profile.pstats"
            profile(arguments.seconds, statistics)
            pstats.Stats(str(statistics)).sort_stats("tottime").print_stats(TOP)
            draw(statistics, arguments.out)
    except MissingTools as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
