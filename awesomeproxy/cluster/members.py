"""Who the nodes of the cluster are, and of which of them nothing has been heard for how long.

Each node counts its beats in the registry, and each counts by its own clock for how long it
has seen the same number of another.  Clocks are never compared.  What was asked for before,
and answered, says nothing of the time since; so silence ends when a look was *begun*, and it
begins when a number was *seen* first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from awesomeproxy.cluster.interface import MEMBERS, Member, MemberState

BEATS = 5  # in a lease
LATE = 2.5 / BEATS  # of a lease: two beats have not come
GONE = 1.25  # leases: whoever holds by itself has held long since, with clocks a quarter apart
LIVE: MemberState = "live"  # the state of all members in their records; the others are by our count


@dataclass(slots=True)
class _Seen:
    """What was seen last of a member."""

    life: int
    beat: int
    since: float  # monotonic seconds
    state: MemberState = "live"


class Members:
    """All nodes, as this one knows them."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._records: dict[str, Mapping[str, Any]] = {}
        self._seen: dict[str, _Seen] = {}
        self._told: dict[str, tuple[int, MemberState]] = {}

    def __repr__(self) -> str:
        return f"<Members: {', '.join(f'{each.name} {each.state}' for each in self.all())}>"

    def all(self) -> list[Member]:
        """All nodes that are known, by name."""
        return [self._member(name) for name in sorted(self._records)]

    def get(self, name: str) -> Member | None:
        """One of them; None: it is not known."""
        return self._member(name) if name in self._records else None

    def names(self, *states: MemberState) -> list[str]:
        """Those in one of these states."""
        return [member.name for member in self.all() if member.state in states]

    def beat(self, name: str) -> int:
        """The last number that was seen of a member."""
        return self._seen[name].beat

    def take_records(self, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Take over who there is; return those of whom that says something new."""
        now = self._monotonic()
        self._records = dict(records)
        for name, record in self._records.items():
            seen = self._seen.get(name)
            if record["state"] != LIVE:
                self._seen.pop(name, None)
            elif seen is None or seen.life != record["life"]:
                self._seen[name] = _Seen(record["life"], -1, now)
        for name in self._seen.keys() - self._records.keys():
            del self._seen[name]
        return self._news()

    def take_beats(self, beats: Mapping[str, int], began: float) -> list[str]:
        """Take over what was read of the beats; return whose state is another now.

        :param began: when that look was begun, in monotonic seconds.
        """
        now = self._monotonic()
        for name, seen in self._seen.items():
            beat = beats.get(name, -1)
            if beat != seen.beat:
                seen.beat, seen.since, seen.state = beat, now, "live"
                continue
            leases = (began - seen.since) / self._records[name]["lease"]
            seen.state = "gone" if leases > GONE else "late" if leases > LATE else "live"
        return self._news()

    def begin_anew(self) -> None:
        """The registry was away: nobody could have beaten, so nobody was silent."""
        now = self._monotonic()
        for seen in self._seen.values():
            seen.since = now

    def _member(self, name: str) -> Member:
        record, seen = self._records[name], self._seen.get(name)
        return Member(
            name=name,
            life=record["life"],
            state=self._state(name),
            loss=record["loss"],
            lease=record["lease"],
            silent=self._monotonic() - seen.since if seen is not None else 0.0,
            version=record["version"],
            digest=record["digest"],
            began=record["began"],
        )

    def _state(self, name: str) -> MemberState:
        seen = self._seen.get(name)
        state: MemberState = self._records[name]["state"] if seen is None else seen.state
        return state

    def _news(self) -> list[str]:
        now = {name: (record["life"], self._state(name)) for name, record in self._records.items()}
        names = now.keys() | self._told.keys()
        changed = sorted(name for name in names if now.get(name) != self._told.get(name))
        self._told = now
        return changed


def is_member(member: Member | None) -> bool:
    """Whether barriers wait for it."""
    return member is not None and member.state in MEMBERS
