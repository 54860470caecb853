"""What becomes of migrations that a dead daemon has left, when there was nothing to carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from awesomeproxy.model import Mode, Placement
from awesomeproxy.registry.interface import Companion, Entry, IRegistry, Superseded


def is_own_hold(placement: Placement) -> bool:
    """Whether a migration holds, rather than a pause that was there before it."""
    own = placement.then == "resume" and placement.expires is None
    return placement.mode is Mode.HOLDING and own


async def recover(
    registry: IRegistry,
    mine: Callable[[Entry], bool] = lambda entry: True,
    carries: Callable[[Entry], bool] = lambda entry: False,
    leave: Callable[[Entry], None] = lambda entry: None,
) -> list[tuple[Entry, str]]:
    """Take migrations that a crash has left to their ends; before anything is served.

    :param mine: whether it is for this node to do that.
    :param carries: whether there is data of one to be seen to; then it is left as it is ...
    :param leave: ... and handed to this.
    :return: the other entries, and what has become of each.
    """
    ended: list[tuple[Entry, str]] = []
    placements = await registry.placements()
    for left in filter(mine, await registry.unfinished()):
        try:
            entry = await registry.take_over(left.id, left.owner, left.life)
        except Superseded:  # another node has seen that we were gone
            continue
        if carries(entry):
            leave(entry)
            continue
        forward = entry.state == "committed"
        last = []
        moves: list[Entry | Companion] = [entry, *entry.along]
        for each in moves:
            stored = placements[each.site]
            # A later change than the migration's own (an operator's resume) stands.
            opens = stored.generation == each.generation and is_own_hold(stored)
            placed = replace(
                stored,
                backend=each.target if forward else each.source,
                by="recovery after a crash",
            )
            last.append(replace(placed, mode=Mode.OPEN, then="refuse") if opens else placed)
        reason = "" if forward else f"the daemon died during the step {entry.step or 'hold'!r}"
        state: Literal["done", "rolled back"] = "done" if forward else "rolled back"
        main, *along = last
        await registry.finish(entry.id, state, main, main.generation, reason, None, along)
        ended.append((entry, state))
    return ended
