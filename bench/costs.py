"""What a proxy costs while the gate is open: all figures that are of CPU time.

All proxies run at once, idle, and are put under load one after the other, round
after round.  A disturbance of the machine so falls on all of them rather than on
one; the ratio of two proxies is taken within a round, and its median over rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from rich.console import Console

from bench import certificates, terms
from bench.certificates import TERMS
from bench.configurations import LARGE, MEGABYTE, SMALL
from bench.cpu import cpu_ns
from bench.h2load import H2load, Handshakes
from bench.load import Load, Report
from bench.processes import BenchError, Process, scratch
from bench.results import Cost, Options, Reading, Results
from bench.servers import PROXIES, origin
from bench.wrk import BROWSER_HEADERS, Wrk

OURS = "awesomeproxy"
ENCRYPTED = (OURS, "haproxy", "nginx", "caddy")


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of which proxies."""

    figure: str
    names: Sequence[str]
    load: Load
    path: str = SMALL
    certificate: certificates.Kind | None = None  # of what kind, if it is over TLS
    unit: str = "request"
    units: float = 1.0  # in a request


@dataclass(frozen=True, slots=True)
class Sample:
    """One proxy in one round."""

    microseconds: float  # of CPU time per request
    per_second: float
    report: Report


Round = Mapping[str, Sample]


def request(results: Results, console: Console) -> None:
    """CPU time per small request."""
    task = Task("request", tuple(PROXIES), Wrk(64))
    _compare(task, _measure(task, results.options, console), results)


def headers(results: Results, console: Console) -> None:
    """CPU time per small request with a browser's headers."""
    task = Task("headers", tuple(PROXIES), Wrk(64, BROWSER_HEADERS))
    _compare(task, _measure(task, results.options, console), results)


def body(results: Results, console: Console) -> None:
    """CPU time per megabyte downloaded."""
    names = (OURS, "haproxy", "nginx")
    task = Task("body", names, Wrk(8), LARGE, unit="MB", units=MEGABYTE / 1e6)
    _compare(task, _measure(task, results.options, console), results)


def tls(results: Results, console: Console) -> None:
    """CPU time per small request over TLS, on connections that are kept."""
    names = (OURS, "haproxy", "haproxy-file", "nginx", "caddy")
    task = Task("tls", names, Wrk(64), certificate="P-256")
    _compare(task, _measure(task, results.options, console), results)
    results.notes.append(f"tls: {TERMS}, certificate of {task.certificate}")


def handshakes(results: Results, console: Console) -> None:
    """Full TLS handshakes per second of CPU time; with RSA only for a note."""
    task = Task("handshakes", ENCRYPTED, Handshakes(256), certificate="P-256", unit="handshake")
    rounds = _measure(task, results.options, console)
    _show(task, rounds, results)
    results.notes.append(f"handshakes: {TERMS}, certificate of {task.certificate}")
    if not {OURS, "haproxy"} <= rounds[0].keys():
        return
    results.readings["handshakes-haproxy"] = _ratios(rounds, "haproxy", OURS)
    task = replace(task, names=(OURS, "haproxy"), certificate="RSA-2048")
    rounds = _measure(task, replace(results.options, rounds=1), console)
    _check(rounds)
    ratio = _ratios(rounds, "haproxy", OURS).value
    took = " and ".join(f"{rounds[0][name].microseconds:.0f}" for name in task.names)
    results.notes.append(
        f"handshakes: certificate of {task.certificate}: {ratio:.2f} x, {took} µs, in one round"
    )


def h2(results: Results, console: Console) -> None:
    """CPU time per small request over HTTP/2, and whether all are answered."""
    task = Task("h2", ENCRYPTED, H2load(10, 10), certificate="P-256")
    rounds = _measure(task, results.options, console)
    if OURS in rounds[0]:
        reports = [r[OURS].report for r in rounds]
        results.readings["h2-failed"] = Reading(sum(r.failed for r in reports))
        results.notes.append(f"h2: {sum(r.requests for r in reports):,} requests of ours")
    _compare(task, rounds, results)


def _measure(task: Task, options: Options, console: Console) -> list[Round]:
    rounds: list[Round] = []
    with ExitStack() as stack:
        behind = stack.enter_context(origin())
        certificate = None
        if task.certificate is not None:
            directory = stack.enter_context(scratch())
            certificate = certificates.make(task.certificate, directory)
        proxies = [
            stack.enter_context(PROXIES[name](behind, certificate=certificate))
            for name in task.names
            if name in options.proxies
        ]
        for proxy in proxies:
            if certificate is not None:
                terms.check(proxy)
            _sample(task, proxy, 0.5)  # caches fill, pools open, heaps grow
        for number in range(options.rounds):
            console.print(f"{task.figure}: round {number + 1} of {options.rounds}")
            rounds.append({p.name: _sample(task, p, options.seconds) for p in proxies})
    return rounds


def _sample(task: Task, proxy: Process, seconds: float) -> Sample:
    before = cpu_ns(proxy.pid)
    report = task.load.run(proxy.url + task.path, seconds)
    used = cpu_ns(proxy.pid) - before
    if not report.requests:
        raise BenchError(f"{proxy.name} answered nothing: {report}")
    return Sample(used / 1000 / report.requests, report.requests / report.seconds, report)


def _check(rounds: Sequence[Round]) -> None:
    for one in rounds:
        for name, sample in one.items():
            if sample.report.failed:
                raise BenchError(f"{name} did not answer everything: {sample.report}")


def _ratios(rounds: Sequence[Round], one: str, other: str) -> Reading:
    values = [r[one].microseconds / r[other].microseconds for r in rounds]
    return Reading(statistics.median(values), values)


def _show(task: Task, rounds: Sequence[Round], results: Results) -> None:
    _check(rounds)
    for name in rounds[0]:
        rate = statistics.median(r[name].per_second for r in rounds)
        values = [r[name].microseconds / task.units for r in rounds]
        cost = Cost(task.figure, name, statistics.median(values), task.unit, rate, values)
        results.costs.append(cost)


def _compare(task: Task, rounds: Sequence[Round], results: Results) -> None:
    _show(task, rounds, results)
    figure, measured = task.figure, rounds[0]
    if OURS not in measured:
        return
    for other in ("haproxy", "caddy"):
        if other in measured:
            results.readings[f"{figure}-{other}"] = _ratios(rounds, OURS, other)
    if "haproxy-file" in measured:
        ratio = _ratios(rounds, OURS, "haproxy-file").value
        results.notes.append(f"{figure}: ours / HAProxy's with its log in a file: {ratio:.2f} x")
    if "webproxy" in measured:
        results.readings[f"{figure}-webproxy"] = _ratios(rounds, "webproxy", OURS)
