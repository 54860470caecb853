"""A watcher of filesystems among 100,000 mounts, run as ``python -m bench.crowd ROUNDS``.

It has to be root, in a mount namespace of its own, which it fills; the mounts are gone with
it.  Another process mounts and unmounts something, again and again; what that costs is not
the watcher's.  In the end a JSON object says how many mounts there were, and by round and in
milliseconds

* ``cpu``: the CPU time, of all threads and with the kernel's part, that one mount of a
  watched filesystem has cost the watcher, and ``told`` how soon it was told;
* ``others_cpu``: the same for a mount that is not watched;
* ``read_cpu``, ``read_told``: the same for an unmounting after which something might be
  hidden, so that the whole table is read;
* ``stall``: the longest that the reactor, ticking every millisecond, did not tick meanwhile.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.task import LoopingCall, deferLater

from awesomeproxy.mountinfo import Mounting
from awesomeproxy.mounts import Mounts

COUNT = 100_000
SPARE = 10  # of those that the kernel allows in a namespace
GROUP = 1000  # filesystems, all of which are then bound to further places
WATCHED = 100
SETTLED = 1.5  # seconds after a change until all that comes of it has been done
TICK = 0.001  # seconds
BIND, RECURSIVE = 0x1000, 0x4000  # mount(2)

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: Path, target: Path, *, bind: bool = False) -> None:
    """Mount a new tmpfs, or ``source`` with all that is mounted in it."""
    fstype, flags = (None, BIND | RECURSIVE) if bind else (b"tmpfs", 0)
    if _libc.mount(bytes(source), bytes(target), fstype, flags, None):
        raise OSError(ctypes.get_errno(), "mount", str(target))


def unmount(target: Path) -> None:
    """Undo a mount."""
    if _libc.umount2(bytes(target), 0):
        raise OSError(ctypes.get_errno(), "umount", str(target))


def count() -> int:
    """How many mounts there are."""
    return Path("/proc/self/mountinfo").read_bytes().count(b"\n")


def crowd(base: Path) -> None:
    """Mount as much as is wanted, or allowed, somewhere in ``base``."""
    allowed = int(Path("/proc/sys/fs/mount-max").read_text())
    mount(Path("crowd"), base)
    free = min(COUNT, allowed - SPARE) - count()
    groups = free // (GROUP + 1)
    first = base / "group-00"
    for number in range(groups):
        group = base / f"group-{number:02}"
        group.mkdir()
        if group != first:
            mount(first, group, bind=True)
            continue
        mount(Path("group"), first)
        for member in range(GROUP):
            place = first / f"site-{member:03}-data"
            place.mkdir()
            mount(Path(f"tank/site-{member:03}"), place)
    for number in range(free - groups * (GROUP + 1)):
        place = base / f"rest-{number:03}"
        place.mkdir()
        mount(Path("rest"), place)


class Hand:
    """A process that mounts something on the paths it is sent, or takes it away again."""

    def __init__(self) -> None:
        self._line, other = socket.socketpair()
        if os.fork() == 0:
            self._line.close()
            try:
                while path := other.recv(4096):
                    target = Path(os.fsdecode(path[1:]))
                    unmount(target) if path[:1] == b"-" else mount(Path("hand"), target)
                    other.send(b".")
            finally:
                os._exit(0)
        other.close()

    def mount(self, target: Path) -> None:
        """Mount a tmpfs."""
        self._do(b"+", target)

    def unmount(self, target: Path) -> None:
        """Unmount it."""
        self._do(b"-", target)

    def _do(self, what: bytes, target: Path) -> None:
        self._line.send(what + bytes(target))
        if self._line.recv(1) != b".":
            raise OSError(f"{target} could not be mounted or unmounted")


class Watch:
    """The watcher, and what is measured of it."""

    def __init__(self, reactor: Any, base: Path, hand: Hand) -> None:
        self._reactor = reactor
        self._hand = hand
        self._ours, self._other = base / "watched-00", base / "other"
        names = {f"watched-{number:02}": base / f"watched-{number:02}" for number in range(WATCHED)}
        for place in (self._other, *names.values()):
            place.mkdir()
        self._mounts = Mounts(
            reactor, {name: Mounting(str(path)) for name, path in names.items()}, self._tell
        )
        self._told = 0.0

    def _tell(self, name: str, state: object) -> None:
        self._told = time.monotonic()

    async def run(self, rounds: int) -> dict[str, Any]:
        """All rounds."""
        await self._mounts.start()
        await deferLater(self._reactor, SETTLED)
        names = ("cpu", "told", "others_cpu", "read_cpu", "read_told", "stall")
        found: dict[str, Any] = {"mounts": count()} | {name: [] for name in names}
        for _ in range(rounds):
            cpu, told = await self._cost(partial(self._hand.mount, self._ours))
            found["cpu"].append(cpu)
            found["told"].append(told)
            cpu, _ = await self._cost(partial(self._hand.mount, self._other))
            found["others_cpu"].append(cpu)
            await self._cost(partial(self._hand.unmount, self._other))
            await self._stacked()
            cpu, told = await self._cost(partial(self._hand.unmount, self._ours))
            found["read_cpu"].append(cpu)
            found["read_told"].append(told)
            await self._cost(partial(self._hand.mount, self._ours))
            await self._stacked()
            found["stall"].append(await self._stall(partial(self._hand.unmount, self._ours)))
        self._mounts.stop()
        return found

    async def _stacked(self) -> None:
        """Have it mounted twice for a while: after that, only the table tells what is hidden."""
        await self._cost(partial(self._hand.mount, self._ours))
        await self._cost(partial(self._hand.unmount, self._ours))

    async def _cost(self, change: Callable[[], None]) -> tuple[float, float]:
        """CPU milliseconds that a change has cost, and those until it was told."""
        before, now = time.process_time(), time.monotonic()
        change()
        await deferLater(self._reactor, SETTLED)
        return (time.process_time() - before) * 1000, (self._told - now) * 1000

    async def _stall(self, change: Callable[[], None]) -> float:
        """Milliseconds between two ticks, at the most, after a change."""
        ticks: list[float] = []
        ticking = LoopingCall(lambda: ticks.append(time.monotonic()))
        ticking.clock = self._reactor
        change()
        ticked = ticking.start(TICK)
        await deferLater(self._reactor, SETTLED)
        ticking.stop()
        await ticked
        return max(after - before for before, after in itertools.pairwise(ticks)) * 1000


def main() -> None:
    """Fill the namespace, measure, report."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        base = Path(name)
        crowd(base)
        hand = Hand()
        reactor: Any = EPollReactor()  # type: ignore[no-untyped-call]
        reports: list[Any] = []

        def end(report: Any) -> None:
            reports.append(report)
            reactor.stop()

        running = Deferred.fromCoroutine(Watch(reactor, base, hand).run(int(sys.argv[1])))
        reactor.callWhenRunning(running.addBoth, end)
        reactor.run()
        _libc.umount2(bytes(base), 2)  # all of it: MNT_DETACH
    if not isinstance(reports[0], dict):
        reports[0].raiseException()
    print(json.dumps(reports[0]), flush=True)


if __name__ == "__main__":
    main()
