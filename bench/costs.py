"""Figures ``request``, ``headers`` and ``body``: what a proxy costs while the gate is open.

All proxies run at once, idle, and are put under load one after the other, round
after round.  A disturbance of the machine so falls on all of them rather than on
one; the ratio of two proxies is taken within a round, and its median over rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from rich.console import Console

from bench import wrk
from bench.cpu import cpu_ns
from bench.processes import BenchError, Process
from bench.results import Cost, Reading, Results
from bench.servers import LARGE, MEGABYTE, PROXIES, SMALL, origin

OURS = "awesomeproxy"


@dataclass(frozen=True, slots=True)
class Sample:
    """One proxy in one round."""

    microseconds: float  # of CPU time per request
    per_second: float


def request(results: Results, console: Console) -> None:
    """CPU time per small request."""
    rounds = _measure("request", tuple(PROXIES), SMALL, 64, None, results, console)
    _compare("request", rounds, "request", 1.0, results)


def headers(results: Results, console: Console) -> None:
    """CPU time per small request with a browser's headers."""
    names = tuple(PROXIES)
    rounds = _measure("headers", names, SMALL, 64, wrk.BROWSER_HEADERS, results, console)
    _compare("headers", rounds, "request", 1.0, results)


def body(results: Results, console: Console) -> None:
    """CPU time per megabyte downloaded."""
    rounds = _measure("body", (OURS, "haproxy", "nginx"), LARGE, 8, None, results, console)
    _compare("body", rounds, "MB", MEGABYTE / 1e6, results)


def _measure(
    figure: str,
    names: Sequence[str],
    path: str,
    connections: int,
    sent: Mapping[str, str] | None,
    results: Results,
    console: Console,
) -> list[dict[str, Sample]]:
    options = results.options
    rounds: list[dict[str, Sample]] = []
    with ExitStack() as stack:
        behind = stack.enter_context(origin())
        proxies = [
            stack.enter_context(PROXIES[name](behind)) for name in names if name in options.proxies
        ]
        for proxy in proxies:  # caches fill, pools open, heaps grow
            _sample(proxy, path, connections, 0.5, sent)
        for number in range(options.rounds):
            console.print(f"{figure}: round {number + 1} of {options.rounds}")
            rounds.append(
                {p.name: _sample(p, path, connections, options.seconds, sent) for p in proxies}
            )
    return rounds


def _sample(
    proxy: Process, path: str, connections: int, seconds: float, sent: Mapping[str, str] | None
) -> Sample:
    before = cpu_ns(proxy.pid)
    report = wrk.run(proxy.url + path, connections, seconds, sent)
    used = cpu_ns(proxy.pid) - before
    if report.failed or not report.requests:
        raise BenchError(f"{proxy.name} did not answer everything: {report}")
    return Sample(used / 1000 / report.requests, report.requests / seconds)


def _compare(
    figure: str,
    rounds: Sequence[Mapping[str, Sample]],
    unit: str,
    units_per_request: float,
    results: Results,
) -> None:
    def costs(name: str) -> list[float]:
        return [r[name].microseconds / units_per_request for r in rounds]

    def ratios(one: str, other: str) -> Reading:
        values = [a / b for a, b in zip(costs(one), costs(other), strict=True)]
        return Reading(statistics.median(values), values)

    measured = list(rounds[0])
    for name in measured:
        rate = statistics.median(r[name].per_second for r in rounds)
        values = costs(name)
        cost = Cost(figure, name, statistics.median(values), unit, rate, values)
        results.costs.append(cost)
    if OURS not in measured:
        return
    for other in ("haproxy", "caddy"):
        if other in measured:
            results.readings[f"{figure}-{other}"] = ratios(OURS, other)
    if "haproxy-file" in measured:
        ratio = ratios(OURS, "haproxy-file").value
        results.notes.append(f"{figure}: ours / HAProxy's with its log in a file: {ratio:.2f} x")
    if "webproxy" in measured:
        results.readings[f"{figure}-webproxy"] = ratios("webproxy", OURS)
