"""``python -m bench``: measure, show, and say by the exit status whether all is well.

0: every bar that was measured is reached, if not every aim; 1: one is missed; 2: a
program is not installed, or the arguments are wrong.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from bench import cluster, command, costs, holding, mounts, moving, sites, switching
from bench.bars import FIGURES
from bench.processes import BenchError, MissingTools, core_of, prepare, require
from bench.results import Options, Results
from bench.servers import PROXIES

MEASURES: dict[str, Callable[[Results, Console], None]] = {
    "request": costs.request,
    "headers": costs.headers,
    "body": costs.body,
    "tls": costs.tls,
    "handshakes": costs.handshakes,
    "h2": costs.h2,
    "held": holding.held,
    "pauses": switching.pauses,
    "h2pauses": switching.h2pauses,
    "moves": switching.moves,
    "wait": switching.wait,
    "status": command.status,
    "mounts": mounts.mounts,
    "sites": sites.sites,
    "cluster": cluster.cluster,
    "pausezfs": moving.pausezfs,
    "pausersync": moving.pausersync,
}
H2LOAD = {"handshakes", "h2", "h2pauses"}  # what it is needed for


def _parser() -> argparse.ArgumentParser:
    figures = "\n".join(f"  {name:12}{what}" for name, what in FIGURES.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure AwesomeProxy and others, and compare with the bars.",
        epilog=f"figures:\n{figures}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="shorter and fewer rounds")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (5; with --quick 3)")
    parser.add_argument(
        "--only", nargs="+", choices=FIGURES, metavar="FIGURE", help="only these figures"
    )
    parser.add_argument(
        "--proxies",
        nargs="+",
        choices=PROXIES,
        metavar="PROXY",
        help=f"in the figures of CPU time only these, out of {', '.join(PROXIES)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    return parser


def main() -> int:
    """Run the benchmark and return its exit status."""
    parser = _parser()
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    if rounds < 1:
        parser.error(f"--rounds {rounds}: at least 1 is needed")
    proxies = tuple(arguments.proxies or PROXIES)
    figures = [f for f in FIGURES if f in (arguments.only or FIGURES)]
    results = Results(Options(arguments.quick, rounds, proxies), figures=figures)
    progress = Console(stderr=True)
    try:
        others = sorted({p.removesuffix("-file") for p in proxies} & {"haproxy", "caddy"})
        if H2LOAD & set(figures):
            others.append("h2load")
        if "cluster" in figures:
            others += ["redis-server", "redis-cli", "nsenter"]
        for figure in set(figures) & set(moving.TOOLS):
            others += moving.TOOLS[figure]
        require("wrk", "nginx", "taskset", "setpriv", *others)
        prepare()
        if core_of("proxy") == core_of("load"):
            results.notes.append("only one core: the load disturbs what it measures")
        for figure in figures:
            try:
                MEASURES[figure](results, progress)
            except MissingTools:
                raise
            except (BenchError, OSError, subprocess.SubprocessError) as error:
                results.errors[figure] = str(error)
    except MissingTools as error:
        progress.print(f"bench: {error}", style="red", highlight=False, markup=False)
        return 2
    except KeyboardInterrupt:
        progress.print("bench: interrupted")
        return 130
    results.print(Console(width=None if sys.stdout.isatty() else 120))
    if arguments.json is not None:
        results.write(arguments.json)
    return 1 if results.missed else 0


if __name__ == "__main__":
    sys.exit(main())
