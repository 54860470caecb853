"""What a performance came to: the ledgers, the counts of updates, and one line for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from awesomeproxy.demo.database import Count
from awesomeproxy.load.plan import Plan
from awesomeproxy.load.result import Result

GAP = 2.0  # seconds between two acts in their common picture


@dataclass(frozen=True, slots=True)
class Act:
    """One act: what the clients saw, and what is in the database."""

    method: str
    result: Result
    count: Count
    backends: Mapping[int, str]  # which backend has carried out each update

    def __str__(self) -> str:
        count, result = self.count, self.result
        acknowledged = sum(1 for _ in result.acknowledged())
        text = (
            f"{self.method}: {result.issued:,} requests, {acknowledged:,} acknowledged,"
            f" {count.applied:,} in the database;"
            f" failed={result.failed} lost={count.lost} duplicated={count.duplicated}"
        )
        if count.unacknowledged:
            text += f"\n  {count.unacknowledged} are in the database though nobody was told so"
        for reason, times in result.reasons.most_common(5):
            text += f"\n  {times} times: {reason}"
        return text


@dataclass(slots=True)
class Report:
    """A whole performance."""

    acts: list[Act] = field(default_factory=list)
    ledgers: list[Mapping[str, Any]] = field(default_factory=list)
    ambiguous: int = 0  # by the daemon's count, as the next
    retried: int = 0
    picture: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and every update is there exactly once."""
        figures = self.figures()
        bad = ("failed", "lost", "duplicated", "ambiguous")
        return not any(figures[name] for name in bad) and all(a.result.passed for a in self.acts)

    def figures(self) -> dict[str, float]:
        """The figures of the summary; ``longest_wait`` is seconds."""
        results = [act.result for act in self.acts]
        counts = [act.count for act in self.acts]
        return {
            "failed": sum(r.failed + r.issued - r.finished for r in results),
            "lost": sum(c.lost for c in counts),
            "duplicated": sum(c.duplicated for c in counts),
            "ambiguous": self.ambiguous,
            "held": sum(r.held_requests for r in results),
            "retried": self.retried,
            "migrations": sum(ledger["outcome"] == "done" for ledger in self.ledgers),
            "longest_wait": round(max((r.longest_hold for r in results), default=0.0), 3),
            "requests": sum(r.issued for r in results),
        }

    @property
    def title(self) -> str:
        """What a picture of it shows."""
        rate = self.acts[0].result.plan.rate
        what = ", then ".join(f"{a.method}s for {a.result.plan.duration:g} s" for a in self.acts)
        return f"{what}; {rate:g} requests/s, each of them a database update"

    def summary(self) -> str:
        """All of it in one line."""
        units = {"longest_wait": "s"}
        return " ".join(f"{k}={v:g}{units.get(k, '')}" for k, v in self.figures().items())

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON values; times in seconds."""
        return {
            "passed": self.passed,
            **self.figures(),
            "ledgers": [dict(ledger) for ledger in self.ledgers],
            "acts": [
                {"method": a.method, "updates": asdict(a.count), "load": a.result.as_json()}
                for a in self.acts
            ],
            "picture": self.picture,
        }

    def as_one(self) -> Result:
        """The results of all acts in a row, for a picture."""
        first = self.acts[0].result.plan
        ends = [max(act.result.elapsed, act.result.plan.duration) for act in self.acts]
        length = sum(ends) + GAP * (len(ends) - 1)
        one = Result(Plan(first.url, first.rate, length, first.connections, first.method))
        start = 0.0
        for act, end in zip(self.acts, ends, strict=True):
            for r in act.result:
                n = one.issue(start + r.due)
                one.sent[n] = start + r.sent
                if r.done:
                    held = -1.0 if r.held is None else r.held
                    one.finish(n, start + r.done, r.outcome, r.status, held)
            one.marks += [(start + at, text) for at, text in act.result.marks]
            one.marks.append((start, f"{act.method}s begin"))
            start += end + GAP
        one.elapsed = length
        return one


def ledger_line(number: int, ledger: Mapping[str, Any]) -> str:
    """A migration's ledger in one line."""
    steps = ledger["steps"]
    return (
        f"  {number:>2}. {ledger['source']} -> {ledger['target']} {ledger['outcome']}:"
        f" held for {_ms(ledger['pause'])} ({_ms(steps.get('drain', 0.0))} of it to drain);"
        f" {ledger['held']} held, {ledger['released']} released, {ledger['ambiguous']} ambiguous,"
        f" {ledger['failed']} failed; longest wait {_ms(ledger['longest_added_wait'])}"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
