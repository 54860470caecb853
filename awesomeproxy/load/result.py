"""What a load run measured: the fate of each request, and what they add up to.

The times of a request are kept in arrays, an entry per request, because three
minutes at thousands a second are a million requests.  All times are seconds since
the start of the run.

Latency counts from the moment a request was *due*, not from when it was sent:
a server that stalls for a second delays all requests of that second, and a
client that waits along with it would see only one slow request (the "coordinated
omission").  The time from sending is kept too, as *service time*.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from awesomeproxy.load.outcome import RequestOutcome
from awesomeproxy.load.plan import Plan

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)

_BLOCK = 65536
_HIGHEST = 3600 * 1_000_000  # microseconds the histogram can tell apart from more


@dataclass(frozen=True, slots=True)
class Request:
    """One request.  ``sent`` and ``done`` are 0 if it never came to that."""

    n: int
    due: float
    sent: float
    done: float
    outcome: RequestOutcome
    status: int  # of the response; 0: none came
    held: float | None  # seconds the proxy says it held the request


@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution of times, in seconds, with three significant digits."""

    min: float
    mean: float
    max: float
    percentiles: dict[float, float]

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latency | None:
        """The distribution of ``seconds``; nothing if there are none."""
        from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

        histogram = HdrHistogram(1, _HIGHEST, 3)
        # Recording is slow in Python; counting equal microseconds first is not.
        microseconds = Counter(int(s * 1e6) for s in seconds)
        if not microseconds:
            return None
        for value, count in microseconds.items():
            histogram.record_value(min(max(value, 1), _HIGHEST), count)
        exact = sum(value * count for value, count in microseconds.items())
        found = histogram.get_percentile_to_value_dict(list(PERCENTILES))
        highest = max(microseconds)
        return cls(
            min=min(microseconds) / 1e6,
            mean=exact / microseconds.total() / 1e6,
            max=highest / 1e6,
            percentiles={p: min(found[p], highest) / 1e6 for p in PERCENTILES},
        )

    def as_json(self) -> dict[str, float]:
        """``min``, ``mean``, ``max`` and ``p50`` ... ``p99.99``, in seconds."""
        percentiles = {f"p{p:g}": value for p, value in self.percentiles.items()}
        return {"min": self.min, "mean": self.mean, "max": self.max, **percentiles}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.  The last three are of the time since the report before."""

    elapsed: float
    issued: int
    finished: int
    failed: int
    held: int
    in_flight: int
    waiting: int  # due, but without a free connection
    rate: float  # requests that ended, a second
    median: float  # of their latencies
    longest: float


class Result:
    """The record of a run; it can be read while the run goes on."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.began = time.time()  # unix time
        self.elapsed = 0.0
        self.cpu = 0.0  # seconds of processor time of this process
        self.issued = 0  # how many have become due
        self.finished = 0
        self.failed = 0
        self.held_requests = 0
        self.strays = 0  # times that bytes came which answer no request
        self.opened = 0  # connections
        self.replaced = 0  # idle connections that the server had closed
        self.longest_lag = 0.0  # by which the client itself was late to send a due request
        self.interrupted = False
        self.marks: list[tuple[float, str]] = []
        self.reasons: Counter[str] = Counter()
        self.due = array("d")
        self.sent = array("d")
        self.done = array("d")
        self.outcome = array("B")
        self.status = array("H")
        self.held = array("f")  # negative: not held
        self._grow(plan.count or _BLOCK)

    def _grow(self, by: int) -> None:
        for column in (self.due, self.sent, self.done, self.outcome, self.status):
            column.frombytes(bytes(by * column.itemsize))
        self.held.extend(array("f", [-1.0]) * by)

    def issue(self, due: float) -> int:
        """Note that the next request is due, and number it."""
        n = self.issued
        if n == len(self.due):
            self._grow(max(_BLOCK, n // 2))
        self.due[n] = due
        self.issued = n + 1
        return n

    def finish(
        self, n: int, done: float, outcome: RequestOutcome, status: int, held: float
    ) -> None:
        """Note the end of request ``n``."""
        self.done[n] = done
        self.outcome[n] = outcome
        self.status[n] = status
        self.finished += 1
        if outcome > 1:
            self.failed += 1
        if held >= 0:
            self.held[n] = held
            self.held_requests += 1

    def mark(self, text: str) -> None:
        """Note that something happens now; the picture shows it as a vertical line."""
        self.marks.append((time.time() - self.began, text))

    def __len__(self) -> int:
        return self.issued

    def __getitem__(self, n: int) -> Request:
        """:raises IndexError: if request ``n`` has not become due."""
        if not 0 <= n < self.issued:
            raise IndexError(f"request {n} of {self.issued}")
        held = self.held[n]
        return Request(
            n=n,
            due=self.due[n],
            sent=self.sent[n],
            done=self.done[n],
            outcome=RequestOutcome(self.outcome[n]),
            status=self.status[n],
            held=held if held >= 0 else None,
        )

    def __iter__(self) -> Iterator[Request]:
        return (self[n] for n in range(self.issued))

    def acknowledged(self) -> Iterator[int]:
        """The numbers of the requests that were answered as expected."""
        return (n for n in range(self.issued) if self.outcome[n] == RequestOutcome.OK)

    def failures(self) -> Iterator[Request]:
        """The requests that failed, in the order they were due."""
        return (self[n] for n in range(self.issued) if self.outcome[n] > RequestOutcome.OK)

    def outcomes(self) -> dict[RequestOutcome, int]:
        """How many requests ended in each way; all ways are there."""
        counted = Counter(self.outcome[: self.issued])
        return {outcome: counted[outcome] for outcome in RequestOutcome}

    def statuses(self) -> dict[int, int]:
        """How many whole responses had each status."""
        answered = {outcome for outcome in RequestOutcome if outcome.answered}
        pairs = zip(self.status[: self.issued], self.outcome, strict=False)
        return dict(sorted(Counter(s for s, outcome in pairs if outcome in answered).items()))

    def latency(self) -> Latency | None:
        """From when a request was due to the end of its response, whatever the status."""
        return Latency.of(self._times(self.due))

    def service_time(self) -> Latency | None:
        """The same, from when it was sent."""
        return Latency.of(self._times(self.sent))

    def _times(self, since: array[float]) -> Iterator[float]:
        answered = {outcome for outcome in RequestOutcome if outcome.answered}
        rows = zip(self.outcome[: self.issued], since, self.done, strict=False)
        return (done - start for outcome, start, done in rows if outcome in answered)

    @property
    def unsent(self) -> int:
        """How many were due but never sent: no connection was free, or could be opened."""
        return self.sent[: self.issued].count(0.0)

    @property
    def longest_hold(self) -> float:
        """The longest time the proxy says it held a request; 0 if it held none."""
        return max(0.0, max(self.held[: self.issued], default=0.0))

    @property
    def passed(self) -> bool:
        """Whether nothing failed and nothing came that nobody asked for."""
        return not self.failed and not self.strays

    def as_json(self) -> dict[str, Any]:
        """The result as plain JSON values; times in seconds."""
        plan = asdict(self.plan)
        for key in ("headers", "body", "expect", "expect_body", "insecure"):
            del plan[key]
        latency, service = self.latency(), self.service_time()
        return {
            "plan": plan,
            "began": self.began,
            "elapsed": self.elapsed,
            "interrupted": self.interrupted,
            "passed": self.passed,
            "requests": self.issued,
            "unsent": self.unsent,
            "failed": self.failed,
            "rate": self.finished / self.elapsed if self.elapsed else 0.0,
            "outcomes": {outcome.word: count for outcome, count in self.outcomes().items()},
            "statuses": {str(status): count for status, count in self.statuses().items()},
            "reasons": dict(self.reasons),
            "strays": self.strays,
            "held": {"requests": self.held_requests, "longest": self.longest_hold},
            "latency": latency and latency.as_json(),
            "service_time": service and service.as_json(),
            "connections": {"opened": self.opened, "replaced": self.replaced},
            "client": {"cpu": self.cpu, "longest_lag": self.longest_lag},
            "marks": [list(mark) for mark in self.marks],
        }
