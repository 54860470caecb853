"""Whether a pause that begins now would be short enough, judged by the rounds before it.

While a site is in use its data is carried in rounds, each of which leaves less to do for
the next.  The last of it is carried while the site is held.  How long that will take can
be told from how much there is and how fast the rounds were.  If that never comes to fit, no
pause is begun at all: the site writes faster than its data can be carried, or the pause may
not even last as long as a round that carries nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

MOST_ROUNDS = 20
SHARE = 0.6  # of the pause that the last round may be predicted to take; the rest is for surprises
GAIN = 0.8  # a round that leaves more than so much of what the one before left gains nothing
SHORT = 0.5  # seconds: what no round is made for any more
PAYS = 0.5  # of a round's time, that the next one has to stay below to be made for a short pause
PATIENCE = 3  # rounds without a gain that are enough


@dataclass(frozen=True, slots=True)
class Round:
    """One round: how much it has carried, in what time, and what has come up meanwhile."""

    size: int  # bytes
    seconds: float
    pending: int  # bytes that the next one would carry


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done next."""

    do: Literal["hold", "again", "refuse"]
    predicted: float  # seconds that the last round would take
    why: str = ""


def predict(rounds: Sequence[Round], max_pause: float) -> Verdict:
    """What to do after ``rounds``.

    :param max_pause: seconds that the site may be held.
    """
    last = rounds[-1]
    seconds, longest = _seconds(rounds), max_pause * SHARE
    if seconds <= longest:
        # As much is written in the next round as in this one, second for second.
        pays = SHORT < last.pending / _rate(rounds) < PAYS * last.seconds
        return Verdict("again" if pays and len(rounds) < MOST_ROUNDS else "hold", seconds)
    too_short = _shortest(rounds) > longest  # the pause, for any round so far
    gains = [after.pending <= GAIN * before.pending for before, after in pairwise(rounds)]
    if too_short:  # then nothing is gained by carrying less in the same time
        best = [_shortest(rounds[:number]) for number in range(1, len(rounds))]
        gains = [
            each.seconds <= GAIN * before for each, before in zip(rounds[1:], best, strict=True)
        ]
    if len(rounds) >= MOST_ROUNDS or (len(gains) >= PATIENCE and not any(gains[-PATIENCE:])):
        return Verdict("refuse", seconds, _why(rounds, seconds, max_pause, too_short))
    return Verdict("again", seconds)


def _why(rounds: Sequence[Round], seconds: float, max_pause: float, too_short: bool) -> str:
    left = rounds[-1].pending
    causes, advice = [], "try"
    if left / _rate(rounds) > max_pause * SHARE:
        causes.append("it is written to faster than it can be carried")
        advice = "try at a quieter time, or"
    if too_short:
        causes.append("a round takes that long, however little it carries")
    return (
        f"after {len(rounds)} rounds there are still {left:,} bytes to be carried, which would "
        f"take {seconds:.{1 if seconds >= 1 else 3}f} s of a pause that may last {max_pause:g} s: "
        f"{', or '.join(causes)}; {advice} with a longer --max-pause"
    )


def predict_all(rounds: Sequence[Sequence[Round]], max_pause: float) -> Verdict:
    """The same for things that are carried side by side, each at a rate of its own.

    :param rounds: for each round, what it was for each of them.
    """
    verdicts = [predict(of_one, max_pause) for of_one in zip(*rounds, strict=True)]
    predicted = max((each.predicted for each in verdicts), default=0.0)
    for do in ("refuse", "again"):
        for each in verdicts:
            if each.do == do:
                return replace(each, predicted=predicted)
    return Verdict("hold", predicted)


def _seconds(rounds: Sequence[Round]) -> float:
    """How long the next round would take.

    A round has a part that does not depend on the amount, which is what the shortest one
    took at the most; and a rate, which only a round that was long enough tells.
    """
    return max(_shortest(rounds), rounds[-1].pending / _rate(rounds))


def _shortest(rounds: Sequence[Round]) -> float:
    return min(each.seconds for each in rounds)


def _rate(rounds: Sequence[Round]) -> float:
    """Bytes a second that can be carried; infinite if no round tells."""
    rates = [each.size / each.seconds for each in rounds if each.size and each.seconds > 0]
    return max(rates, default=math.inf)
