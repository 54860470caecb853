"""Figures ``pausezfs`` and ``pausersync``: the pause of a site whose files move along.

The site has a gigabyte in files, and writes to them for as long as it runs.  It moves to and
fro between the daemon's node and another that is reached through ssh; both are this machine,
and all files are in memory.
"""

from __future__ import annotations

import os
import statistics
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from bench import configurations
from bench.configurations import Side
from bench.control import control, find
from bench.nodes import FAR, Nodes, nodes
from bench.processes import BenchError, Process, free_port, scratch, serving
from bench.results import Reading, Results
from bench.servers import daemon

_NODES = ("unshare", "nsenter", "sshd", "ssh-keygen")
TOOLS = {"pausezfs": (*_NODES, "zfs-fuse"), "pausersync": (*_NODES, "rsync")}
NEAR = "bench"  # the daemon's own node
FILE = 512 << 10  # bytes of a file
FILES, QUICK_FILES = 2000, 400
WRITING = 3.0  # seconds of writing before each move
POOL = 4 << 30  # bytes
# The steps of the pause: what the site and its data take and until its service has started, and
# what is on top.
OTHERS = ("drain", "sync", "start")
OWN = ("stop", "fence", "attach", "mount", "compare", "switch", "verify", "commit")


def pausezfs(results: Results, console: Console) -> None:
    """Two pools of zfs-fuse."""
    _pauses("zfs", results, console)


def pausersync(results: Results, console: Console) -> None:
    """Two directories."""
    _pauses("rsync", results, console)


def _pauses(mover: str, results: Results, console: Console) -> None:
    count = QUICK_FILES if results.options.quick else FILES
    moves = results.options.rounds + 1  # the first has to carry everything
    console.print(f"pause{mover}: {moves} moves of {count * FILE / 1e6:,.0f} MB")
    with scratch() as directory, nodes(directory, zfs=mover == "zfs") as both:
        sides = [_side(both, node, mover) for node in (NEAR, FAR)]
        _fill(both, sides[0].place["path"], count)
        ledgers: list[Any] = []
        rates: list[float] = []
        both.run(*sides[0].service("start"))
        try:
            with _daemon(both, mover, sides) as process, control(process) as ctl:
                for number in range(moves):
                    here, there = sides[number % 2], sides[(number + 1) % 2]
                    rates.append(_rate(here))
                    ledger = ctl.call("migrate", site="bench", to=there.node)
                    if find(ledger, "outcome") != "done":
                        raise BenchError(f"a move ended: {find(ledger, 'reason')}")
                    ledgers.append(ledger)
        finally:
            for side in sides:
                both.run(*side.service("stop"))
    _report(f"pause{mover}", ledgers, rates, results)


def _side(both: Nodes, node: str, mover: str) -> Side:
    """One node's place for the site, with nothing there yet but on the near one."""
    home = both.directory / node
    home.mkdir()
    place = {"path": str(home / "site")}
    if mover == "zfs":
        place["dataset"] = f"{node}/site"
        with (home / "pool").open("wb") as file:
            file.truncate(POOL)
        none = ("-o", "cachefile=none", "-O", "mountpoint=none", "-O", "atime=off")
        both.run("zpool", "create", *none, node, str(home / "pool"))
        if node == NEAR:
            both.run("zfs", "create", "-o", f"mountpoint={place['path']}", place["dataset"])
    else:
        both.run("mount", "-t", "tmpfs", "tmpfs", str(home))
        if node == NEAR:
            both.run("mkdir", place["path"])
    return Side(node, free_port(), place, both.directory / f"{node}.pid")


def _fill(both: Nodes, path: str, count: int) -> None:
    script = 'cd "$1" && for n in $(seq "$2"); do head -c "$3" /dev/urandom >$n || exit; done'
    both.run("sh", "-c", script, "sh", path, str(count), str(FILE))


@contextmanager
def _daemon(both: Nodes, mover: str, sides: Sequence[Side]) -> Iterator[Process]:
    port = free_port()
    config = both.directory / "awesomeproxy.toml"
    config.write_text(
        configurations.moving(both.directory, port, mover, both.ssh_config, FAR, sides)
    )
    argv = [*both.enter, *daemon(config)]
    with serving("awesomeproxy", argv, "proxy", port, both.directory) as process:
        yield process


def _rate(side: Side) -> float:
    """Let it write for a while; how many MB a second it does."""
    before, began = _wrote(side), time.monotonic()
    time.sleep(WRITING)
    return (_wrote(side) - before) / (time.monotonic() - began) / 1e6


def _wrote(side: Side) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{side.port}/", timeout=10) as answer:
        return int(answer.read())


def _report(figure: str, ledgers: Sequence[Any], rates: Sequence[float], results: Results) -> None:
    steps = [find(ledger, "steps") for ledger in ledgers]
    pauses = [float(find(ledger, "pause")) * 1000 for ledger in ledgers]

    def took(number: int, *names: str) -> float:
        return sum(float(steps[number].get(name, 0.0)) for name in names) * 1000

    moves = range(len(ledgers))
    shares = [pauses[number] - took(number, *OTHERS) for number in moves]
    results.readings[f"{figure}-pause"] = Reading(max(pauses), pauses)
    results.readings[f"{figure}-share"] = Reading(statistics.median(shares), shares)
    single = ", ".join(
        f"{name} {statistics.median(took(number, name) for number in moves):.0f}"
        for name in (*OTHERS, *OWN)
    )
    carried = statistics.median(find(ledger, "bytes_moved") / 1e6 for ledger in ledgers[1:])
    results.notes.append(
        f"{figure}: written to at {min(rates):.1f} MB/s; median pause "
        f"{statistics.median(pauses):.0f} ms; median ms of its steps: {single}; a later move "
        f"carries {carried:.0f} MB; load average {os.getloadavg()[0]:.1f}"
    )
