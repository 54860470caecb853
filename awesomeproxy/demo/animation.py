"""Draws an act as a moving picture: every request a dot, on its way through the gate.

The picture is an SVG that moves by itself (SMIL), without a script, so that it can be
shown wherever an image can.  It plays in real time, and all that happens at the gate and
beyond it is as it was recorded: when each request came, how long it was held, which
backend has done its update, and when that had answered.  Only the ways to and from the
clients, which took next to no time, are drawn out to be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from awesomeproxy.demo.report import Act
from awesomeproxy.load.outcome import RequestOutcome
from awesomeproxy.load.result import Request, Result

WIDTH, HEIGHT = 860, 430
LEAD = 0.8  # seconds before the first request is due, and that its way takes
HOP = 0.18  # from the gate to the backend and back to it, at most
TAIL = 2.0  # seconds that the last picture stands

MIDDLE = 150  # the height of the gate
GATE = 430
BOXES = {"web1": (640, 75), "web2": (640, 225)}  # the middle of each backend's left side
QUEUE = 13  # pixels from one held request to the next
STRIP = (60, 330, 770, 60)  # left, top, width, height of the latencies

BLUE, ORANGE, GREEN, RED, INK, FAINT = (
    "#2f6db5",
    "#e8912d",
    "#3a9a5b",
    "#c8102e",
    "#2b2b2b",
    "#c9ced6",
)


@dataclass(frozen=True, slots=True)
class Hold:
    """The gate was closed from ``began`` to ``ended``; then the site was on ``target``."""

    began: float
    ended: float
    target: str


def holds_of(result: Result, ledgers: Sequence[Mapping[str, Any]]) -> list[Hold]:
    """When the gate was closed: a migration's mark is from just before its first step."""
    found = []
    for (at, _), ledger in zip(result.marks, ledgers, strict=True):
        began = at + ledger["steps"]["check"]
        found.append(Hold(began, began + ledger["pause"], ledger["target"]))
    return found


def animation(act: Act, ledgers: Sequence[Mapping[str, Any]]) -> str:
    """The moving picture of an act that consists of migrations.

    :param ledgers: of its migrations, in order.
    """
    return "\n".join(_Film(act, holds_of(act.result, ledgers), ledgers).lines()) + "\n"


class _Film:
    def __init__(
        self, act: Act, holds: Sequence[Hold], ledgers: Sequence[Mapping[str, Any]]
    ) -> None:
        self.act = act
        self.result = act.result
        self.holds = holds
        self.source = ledgers[0]["source"] if ledgers else next(iter(BOXES))
        self.length = LEAD + max(r.done for r in act.result) + LEAD + TAIL

    def lines(self) -> Iterator[str]:
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            f' width="{WIDTH}" height="{HEIGHT}" font-family="system-ui, sans-serif"'
            f' font-size="14" fill="{INK}">'
        )
        yield f"<title>{escape(self.describe())}</title>"
        yield f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#fff"/>'
        yield from self.scenery()
        yield from self.gate()
        for request in self.result:
            yield self.dot(request)
        yield from self.figures()
        yield from self.strip()
        yield "</svg>"

    def describe(self) -> str:
        plan, count = self.result.plan, len(self.holds)
        return (
            f"{plan.method}, {plan.rate:g} requests/s, each a database update;"
            f" {count} migrations meanwhile; as recorded, in real time"
        )

    # What stands still, and what is lit

    def scenery(self) -> Iterator[str]:
        yield f'<text x="20" y="{MIDDLE - 105}" font-size="15">clients</text>'
        yield (
            f'<text x="{GATE}" y="{MIDDLE - 105}" font-size="15" text-anchor="middle">'
            "AwesomeProxy</text>"
        )
        yield f'<path d="M0 {MIDDLE}H{GATE}" stroke="{FAINT}"/>'
        for name, (x, y) in BOXES.items():
            yield f'<path d="M{GATE} {MIDDLE}L{x} {y}" stroke="{FAINT}"/>'
            yield (
                f'<rect x="{x}" y="{y - 40}" width="170" height="80" rx="8"'
                f' fill="#f6f8fa" stroke="{FAINT}"/>'
            )
            yield self.shown(
                f'<g><path d="M{GATE} {MIDDLE}L{x} {y}" stroke="{GREEN}" stroke-width="2"/>'
                f'<rect x="{x}" y="{y - 40}" width="170" height="80" rx="8" fill="#eef7f1"'
                f' stroke="{GREEN}" stroke-width="2"/>',
                "</g>",
                self.serving(name),
            )
            yield f'<text x="{x + 85}" y="{y + 62}" text-anchor="middle">{name}</text>'

    def serving(self, name: str) -> list[tuple[float, bool]]:
        """When a backend is the one that gets the requests."""
        changes = [(0.0, name == self.source)]
        for hold in self.holds:
            changes.append((LEAD + hold.began, False))
            changes.append((LEAD + hold.ended, name == hold.target))
        return changes

    def gate(self) -> Iterator[str]:
        closed = [(0.0, False)]
        for hold in self.holds:
            closed += [(LEAD + hold.began, True), (LEAD + hold.ended, False)]
        # The answers go back below it: they pass whether it is closed or not.
        top, bottom = MIDDLE - 75, MIDDLE + 36
        for part in ((top, MIDDLE - 16), (MIDDLE + 16, bottom)):
            yield (
                f'<path d="M{GATE} {part[0]}V{part[1]}" stroke="{INK}" stroke-width="6"'
                ' stroke-linecap="round"/>'
            )
        yield self.shown(
            f'<g><path d="M{GATE} {MIDDLE - 16}V{MIDDLE + 16}" stroke="{ORANGE}"'
            f' stroke-width="6"/><text x="{GATE + 12}" y="{top + 8}"'
            f' fill="{ORANGE}" font-weight="600">holding</text>',
            "</g>",
            closed,
        )

    # A request

    def dot(self, request: Request) -> str:
        """A request: to the gate, perhaps to wait there, to the backend, and back."""
        due, done = LEAD + request.due, LEAD + request.done
        box = BOXES[self.act.backends.get(request.n, self.source)]
        # Spread in the box and on the way, so that one does not hide another.
        row = request.n * 7 % 11 - 5
        seat = (box[0] + 25 + request.n * 5 % 9 * 15, box[1] + row * 6)
        way = MIDDLE + row * 2
        held = request.held or 0.0
        go = min(due + held, done - 0.02)
        hop = min(HOP, (done - go) / 2)
        place = GATE - 14
        if held:
            place -= QUEUE * self.before_in_line(request)
        stations = [
            (due - LEAD, -10, way),
            (due - 0.1, place, way if not held else MIDDLE),
            (go, place, way if not held else MIDDLE),
            (go + hop, *seat),
            (done - 0.02, *seat),
            (done + LEAD / 2, GATE, MIDDLE + 75 + row * 3),
            (done + LEAD, -10, MIDDLE + 75 + row * 4),
        ]
        moves = self.animate(
            "animateTransform", 'attributeName="transform" type="translate"', stations
        )
        colours = [(0.0, BLUE)]
        if held:
            colours += [(due - 0.1, ORANGE), (go + hop, BLUE)]
        failed = request.outcome > RequestOutcome.OK
        colours.append((done, RED if failed else GREEN))
        times = ";".join(self.time(at) for at, _ in colours)
        values = ";".join(colour for _, colour in colours)
        return (
            f'<circle r="5"><animate attributeName="fill" calcMode="discrete" keyTimes="{times}"'
            f' values="{values}" dur="{self.length:.2f}s" repeatCount="indefinite"/>{moves}'
            "</circle>"
        )

    def before_in_line(self, request: Request) -> int:
        """How many were held already when this one came."""
        return sum(
            bool(other.held) and other.due + (other.held or 0.0) > request.due
            for other in map(self.result.__getitem__, range(request.n))
        )

    # Figures and latencies

    def figures(self) -> Iterator[str]:
        ends = sorted((LEAD + r.done, r.outcome > RequestOutcome.OK) for r in self.result)
        step, at = 0.25, 0.0
        last = ends[-1][0] + step
        while at <= last:
            answered = sum(end <= at for end, _ in ends)
            failed = sum(end <= at and bad for end, bad in ends)
            until = self.length if at + step > last else at + step
            yield self.shown(
                f'<text x="20" y="{MIDDLE + 125}">{answered} answered, {failed} failed',
                "</text>",
                [(0.0, at == 0.0), (at, True), (until, False)]
                if at
                else [(0, True), (step, False)],
            )
            at += step

    def strip(self) -> Iterator[str]:
        left, top, width, height = STRIP
        highest = max(r.done - r.due for r in self.result)
        span = self.length - 2 * LEAD - TAIL

        def spot(request: Request) -> str:
            x = left + width * request.due / span
            y = top + height * (1 - (request.done - request.due) / highest)
            return f"M{x:.0f} {y:.0f}h0"

        yield (
            f'<path d="M{left} {top}v{height}h{width}" fill="none" stroke="{FAINT}"/>'
            f'<text x="{left - 8}" y="{top + 10}" text-anchor="end" font-size="11">'
            f"{highest:.1f} s</text>"
            f'<text x="{left - 8}" y="{top + height}" text-anchor="end" font-size="11">0</text>'
            f'<text x="{left}" y="{top - 8}" font-size="12">'
            f"how long each request took, {len(self.result)} in all; held ones are orange</text>"
            f'<text x="{left}" y="{top + height + 24}" font-size="12">'
            f"{escape(self.describe())}</text>"
        )
        for held, colour in ((False, BLUE), (True, ORANGE)):
            spots = "".join(spot(r) for r in self.result if bool(r.held) is held)
            yield (
                f'<path d="{spots}" stroke="{colour}" stroke-width="4"'
                ' stroke-linecap="round" opacity=".7"/>'
            )
        cursor = [(LEAD, left, 0), (LEAD + span, left + width, 0)]
        moves = self.animate(
            "animateTransform", 'attributeName="transform" type="translate"', cursor
        )
        yield f'<path d="M0 {top - 4}v{height + 4}" stroke="{INK}">{moves}</path>'

    # Parts of the SVG

    def time(self, at: float) -> str:
        return f"{min(max(at / self.length, 0.0), 1.0):.4f}".rstrip("0").rstrip(".")

    def animate(self, tag: str, what: str, stations: Sequence[tuple[float, float, float]]) -> str:
        first, last = stations[0], stations[-1]
        stops = [(0.0, *first[1:]), *stations, (self.length, *last[1:])]
        times = ";".join(self.time(at) for at, _, _ in stops)
        values = ";".join(f"{x:.0f} {y:.0f}" for _, x, y in stops)
        return (
            f'<{tag} {what} keyTimes="{times}" values="{values}" dur="{self.length:.2f}s"'
            ' repeatCount="indefinite"/>'
        )

    def shown(self, opening: str, closing: str, changes: Sequence[tuple[float, bool]]) -> str:
        """An element that is there only part of the time."""
        times = ";".join(self.time(at) for at, _ in changes)
        values = ";".join("visible" if there else "hidden" for _, there in changes)
        return (
            f'{opening}<animate attributeName="visibility" calcMode="discrete" keyTimes="{times}"'
            f' values="{values}" dur="{self.length:.2f}s" repeatCount="indefinite"/>{closing}'
        )
