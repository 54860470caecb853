"""Figure ``cluster``: how long many nodes take to agree, and what that asks of the Redis.

The nodes are light: their registry, cluster and pauses are the daemon's, and what is held has
drained at once.  The Redis is at the end of a cable that delays every packet.  One daemon,
which is not light, is weighed with 10,000 sites that it has from the registry.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.control import control
from bench.holding import settle
from bench.processes import MODULES, BenchError, end, free_port, module, scratch, spawn
from bench.redis import Redis, redis
from bench.results import Reading, Results
from bench.sites import COUNT, megabytes, started

NODES = (3, 30, 300)
# Seconds each way.  A delay of 40 ms may be meant to and fro, or each way: both are measured.
DELAYS = (0.0, 0.0025, 0.02, 0.04)
BARRED = 0.02, 0.04
TOGETHER = 50  # nodes in a process
QUIET = 4.0  # seconds in which the beats are counted
ROUND_TRIPS = 3


@dataclass
class Agents:
    """A process with nodes."""

    popen: subprocess.Popen[bytes]

    def tell(self, **order: Any) -> None:
        """Have it do something; :meth:`hear` the answer."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(order).encode() + b"\n")
        self.popen.stdin.flush()

    def hear(self) -> Any:
        """The next answer."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        answer = json.loads(line) if line else {"error": "the agents have ended"}
        if "error" in answer:
            raise BenchError(answer["error"])
        return answer

    def ask(self, **order: Any) -> Any:
        """Both."""
        self.tell(**order)
        return self.hear()


@dataclass
class Took:
    """What pauses took, in seconds, and what each asked of the Redis."""

    receipts: list[float] = field(default_factory=list)
    releases: list[float] = field(default_factory=list)
    commands: float = 0.0
    received: float = 0.0  # bytes that Redis got
    sent: float = 0.0  # and sent


def cluster(results: Results, console: Console) -> None:
    """Measure all of it."""
    beyond = []
    for delay in DELAYS:
        for count in NODES:
            took = _measured(count, delay, 5 if results.options.quick else 20)
            median, most = statistics.median(took.receipts), max(took.receipts)
            text = (
                f"cluster: {count} nodes, round trip {2000 * delay:g} ms: receipt"
                f" {1000 * median:.0f} ms (at most {1000 * most:.0f}), open on the last node"
                f" {1000 * statistics.median(took.releases):.0f} ms (at most"
                f" {1000 * max(took.releases):.0f}); a pause and a resume are"
                f" {took.commands:.0f} commands, {took.received / 1000:.0f} KB in,"
                f" {took.sent / 1000:.0f} KB out"
            )
            console.print(text, highlight=False)
            results.notes.append(text)
            if count == max(NODES) and delay in BARRED:
                beyond.append(1000 * (median - ROUND_TRIPS * 2 * delay))
    results.readings["cluster-receipt"] = Reading(max(beyond), beyond)
    _weigh(results, console)


def _measured(count: int, delay: float, rounds: int) -> Took:
    took = Took()
    with (
        scratch() as directory,
        redis(directory, delay) as server,
        _agents(directory, server, count) as processes,
    ):
        processes[0].ask(do="place")
        _pause(processes, count, Took())  # the first is not like the others
        before = server.counted()
        time.sleep(QUIET)
        idle = {key: value - before[key] for key, value in server.counted().items()}
        before, began = server.counted(), time.monotonic()
        for _ in range(rounds):
            _pause(processes, count, took)
        lasted = time.monotonic() - began
        after = server.counted()
    each = {key: (after[key] - before[key] - idle[key] * lasted / QUIET) / rounds for key in after}
    took.commands, took.received, took.sent = each["commands"], each["in"], each["out"]
    return took


def _pause(processes: Sequence[Agents], count: int, took: Took) -> None:
    """A pause and its end."""
    receipt = processes[0].ask(do="pause")
    if receipt["nodes"] != count:
        raise BenchError(f"a receipt has {receipt['nodes']} nodes, not {count}")
    took.receipts.append(receipt["took"])
    resumed = processes[0].ask(do="resume")
    for process in processes:
        process.tell(do="opened", generation=resumed["generation"])
    took.releases.append(max(process.hear()["at"] for process in processes) - resumed["asked"])


@contextmanager
def _agents(directory: Path, server: Redis, count: int) -> Iterator[list[Agents]]:
    """Nodes that have joined, in processes on both cores."""
    names = [f"node{number}" for number in range(count)]
    with ExitStack() as stack:
        processes = []
        for number, start in enumerate(range(0, count, TOGETHER)):
            words = [str(directory), server.host, str(server.port)]
            popen = spawn(
                [*module("agent"), *words, *names[start : start + TOGETHER]],
                "load" if number % 2 else "proxy",
                env=MODULES,
                stdin=subprocess.PIPE,
            )
            stack.callback(end, popen)
            processes.append(Agents(popen))
        for process in processes:
            process.hear()
        yield processes


def _weigh(results: Results, console: Console) -> None:
    """Start a daemon again and again that has 10,000 sites from the registry."""
    console.print(f"cluster: {COUNT:,} sites in the registry")
    took, weights = [], []
    with scratch() as directory, redis(directory, 0.0) as server:
        port = free_port()
        config = directory / "awesomeproxy.toml"
        config.write_text(_configuration(directory, port, server))
        with started(directory, port, config) as (process, _), control(process) as ctl:
            began = time.monotonic()
            ctl.call("apply", sites=_tables())
            applied = time.monotonic() - began
        for _ in range(results.options.rounds):
            with started(directory, port, config) as (process, seconds):
                took.append(seconds)
                settle(process)
                weights.append(megabytes(process))
    results.readings["cluster-start"] = Reading(min(took), took)
    results.readings["cluster-memory"] = Reading(statistics.median(weights), weights)
    results.notes.append(f"cluster: {COUNT:,} sites were applied in {applied:.1f} s")


def _configuration(directory: Path, port: int, server: Redis) -> str:
    return "\n".join(
        [
            "[node]",
            'name = "bench"',
            f'state_dir = "{directory / "state"}"',
            f'control = "{directory / "control.sock"}"',
            "[cluster]",
            f'redis = "redis://{server.host}:{server.port}"',
            "[[listen]]",
            f'endpoint = "tcp:{port}:interface=127.0.0.1"',
            "",
        ]
    )


def _tables() -> dict[str, Any]:
    return {
        f"site{number}": {
            "hosts": [f"site{number}.example"],
            "backend": "a",
            "backends": {
                letter: {"servers": [f"http://10.{net}.{number // 250}.{number % 250 + 1}:8080"]}
                for letter, net in (("a", 1), ("b", 2))
            },
        }
        for number in range(COUNT)
    }
