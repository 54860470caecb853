"""The steps of a migration, in their order, and what each does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One step."""

    name: str
    what: str
    carrying: bool = False  # only if there is something to carry


STEPS = (
    Step("check", "see that it can be done"),
    Step("presync", "copy the data while the site is in use", carrying=True),
    Step("hold", "keep new requests waiting at the gate"),
    Step("drain", "let requests in flight finish"),
    Step("stop", "stop the services at the source", carrying=True),
    Step("fence", "let nothing write at the source any more", carrying=True),
    Step("sync", "copy the last of the data", carrying=True),
    Step("attach", "make the data usable at the target", carrying=True),
    Step("mount", "wait until it is mounted there", carrying=True),
    Step("compare", "see that what has arrived is what has left", carrying=True),
    Step("start", "start the services there", carrying=True),
    Step("switch", "place the site on the target, still held"),
    Step("verify", "try the target past the held gate"),
    Step("commit", "record the target: from here on there is no way back"),
    Step("release", "let the held requests go on, to the target"),
    Step("clean", "close the connections to the source"),
)
WHAT = {step.name: step.what for step in STEPS} | {
    "roll back": "let the source serve again",
    "abandon": "tidy up what was copied",
}
ORDER = {step.name: number for number, step in enumerate(STEPS)}


def of(carrying: bool) -> list[Step]:
    """The steps of a migration that has something to carry, or nothing."""
    return [step for step in STEPS if carrying or not step.carrying]


def begun(step: str, reached: str) -> bool:
    """Whether ``step`` has begun in a migration whose last recorded step is ``reached``."""
    return ORDER[step] <= ORDER.get(reached, -1)
