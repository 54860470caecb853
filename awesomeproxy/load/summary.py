"""A result as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from awesomeproxy.load.plan import Plan
from awesomeproxy.load.result import Latency, Request, Result

BUSY = 0.9  # share of a core above which the client may be measuring itself
_SHOWN = 5  # failures described one by one


def duration(seconds: float) -> str:
    """``0.000812`` as ``0.812 ms``, ``3.2`` as ``3.200 s``."""
    if seconds < 1:
        return f"{seconds * 1000:.3f} ms"
    return f"{seconds:.3f} s"


def describe(plan: Plan) -> str:
    """What a plan does, in a line."""
    at_most = f"at most {plan.connections:,} connections"
    if not plan.rate:
        return f"as fast as {plan.connections:,} connections allow for {plan.duration:g} s"
    return f"{plan.rate:,g} requests/s for {plan.duration:g} s over {at_most}"


def summary(result: Result) -> str:
    """All that matters of a result, in some lines."""
    return "\n".join(_lines(result))


def _lines(result: Result) -> Iterator[str]:
    rate = result.finished / result.elapsed if result.elapsed else 0.0
    yield str(result.plan)
    yield describe(result.plan)
    yield ""
    ended = f"{result.finished:,} ended in {result.elapsed:.2f} s, {rate:,.1f} a second"
    yield _row("requests", f"{result.issued:,} due, {result.unsent:,} of them not sent; {ended}")
    outcomes = [
        f"{count:,} {outcome.word}" for outcome, count in result.outcomes().items() if count
    ]
    yield _row("outcomes", ", ".join(outcomes) or "none")
    statuses = [f"{status}: {count:,}" for status, count in result.statuses().items()]
    if statuses:
        yield _row("statuses", ", ".join(statuses))
    if result.held_requests:
        longest = duration(result.longest_hold)
        yield _row("held", f"{result.held_requests:,}, the longest for {longest}")
    if latency := result.latency():
        yield from _latency("latency", latency)
    if service := result.service_time():
        yield _row("from send", _percentiles(service))
    opened = f"{result.opened:,} opened"
    if result.replaced:
        opened += f", {result.replaced:,} replaced that the server had closed while idle"
    yield _row("connections", opened)
    yield ""
    yield from _verdict(result)


def _row(name: str, text: str) -> str:
    return f"  {name:<12} {text}"


def _latency(name: str, latency: Latency) -> Iterator[str]:
    low, mean, high = duration(latency.min), duration(latency.mean), duration(latency.max)
    yield _row(name, f"min {low}, mean {mean}, max {high}, from when each was due")
    yield _row("", _percentiles(latency))


def _percentiles(latency: Latency) -> str:
    return ", ".join(f"{p:g}% {duration(value)}" for p, value in latency.percentiles.items())


def _verdict(result: Result) -> Iterator[str]:
    if result.interrupted:
        yield "Interrupted: this is what had been measured."
    busy = result.cpu / result.elapsed if result.elapsed else 0.0
    if busy > BUSY:
        yield (
            f"The client itself was busy {busy:.0%} of the time: the latencies may be its own. "
            "Lower --rate or --connections, or run several clients."
        )
    if result.strays:
        yield f"{result.strays:,} times bytes came that answer no request."
    if not result.failed:
        yield "No request failed."
        return
    yield f"{result.failed:,} of {result.finished:,} requests failed."
    for reason, count in result.reasons.most_common(_SHOWN):
        yield _row(f"{count:,} times", reason)
    yield "The first:"
    for request in islice(result.failures(), _SHOWN):
        yield _row(f"request {request.n}", _failure(request))


def _failure(request: Request) -> str:
    what = request.outcome.word + (f" {request.status}" if request.status else "")
    return f"{what}, due at {request.due:.3f} s, ended {duration(request.done - request.due)} later"
