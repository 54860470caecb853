"""A daemon whose gates let one of fifty requests pass that come while they hold.

It is there to be caught.  Run it as ``twistd`` is run.
"""

from __future__ import annotations

from itertools import count

from twisted.scripts.twistd import run

from awesomeproxy.gate import Gate

ONE_OF = 50
_come = count()
_enter = Gate.enter


def _leak(gate: Gate) -> bool:
    if gate.holding and not next(_come) % ONE_OF:
        gate.in_flight += 1
        return True
    return _enter(gate)


if __name__ == "__main__":
    Gate.enter = _leak  # type: ignore[assignment, method-assign]
    run()  # type: ignore[no-untyped-call]
