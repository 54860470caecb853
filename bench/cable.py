"""A cable between two network namespaces, whose packets take their time and get lost.

What ``tc netem`` does, for kernels that have not got it: a device at each end, and between
them a process of its own that carries every packet from one to the other.  The packets are
real, and so is what TCP makes of it when one does not come.  The order is kept.

A cable is taken away with the process that carries its packets.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from bench.processes import BenchError

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
LARGEST = 65_536  # bytes of a packet
MOST_WAITING = 10_000  # packets each way; as in a real queue, more are lost


@dataclass(frozen=True, slots=True)
class End:
    """Where a cable ends: a device of a namespace, with an address or plugged into a bridge."""

    device: str
    space: str = ""  # the namespace's name; empty: that of the process
    address: str = ""  # with its prefix length, as 10.0.0.1/24
    bridge: str = ""


@dataclass(frozen=True, slots=True)
class Nature:
    """What becomes of packets."""

    delay: float = 0.0  # seconds, each way
    jitter: float = 0.0  # seconds more or less
    loss: float = 0.0  # of each packet, from 0 to 1
    cut: bool = False  # every packet is lost, and neither end notices


class Cable:
    """A cable that is plugged in at both ends."""

    def __init__(self, one: End, two: End, nature: Nature = Nature(), seed: int = 1) -> None:
        """
        :param seed: of which packets are lost.
        :raise BenchError: it cannot be laid; it needs root.
        """
        words = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "bench.cable"]
        words += [json.dumps([asdict(one), asdict(two)]), json.dumps(asdict(nature)), str(seed)]
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        self._answer("be laid")

    def become(self, nature: Nature) -> None:
        """Treat packets otherwise from now on; those under way arrive as they would have."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(nature)) + "\n")
        self._process.stdin.flush()
        self._answer("be changed")

    def close(self) -> None:
        """Take it away."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _answer(self, what: str) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ok\n":
            self.close()
            raise BenchError(f"a cable cannot {what}; its error is above")


def ip(*words: str) -> None:
    """Run ``ip``.

    :raise BenchError: with what it says, if it fails.
    """
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def within(space: str, function: Callable[[], T]) -> T:
    """What ``function`` returns in a namespace; sockets that it makes stay there."""
    with ThreadPoolExecutor(1) as pool:  # for the namespace is a thread's
        return pool.submit(_within, space, function).result()


def _within(space: str, function: Callable[[], T]) -> T:
    if space:
        where = os.open(f"/run/netns/{space}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(where, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(where)
    return function()


def plug(end: End) -> int:
    """Make the device of an end; its file, from which packets are read, and to which written."""

    def make() -> int:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        wish = struct.pack("16sH22x", end.device.encode(), IFF_TAP | IFF_NO_PI)
        fcntl.ioctl(device, TUNSETIFF, wish)
        return device

    device = within(end.space, make)
    inside = ("-n", end.space) if end.space else ()
    if end.address:
        ip(*inside, "address", "add", end.address, "dev", end.device)
    if end.bridge:
        ip(*inside, "link", "set", end.device, "master", end.bridge)
    ip(*inside, "link", "set", end.device, "up")
    return device


class Way:
    """One of the two directions."""

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self._sink = sink
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._latest = 0.0

    @property
    def due(self) -> float:
        """When the next packet arrives."""
        return self._under_way[0][0] if self._under_way else float("inf")

    def take(self, nature: Nature, chance: random.Random) -> None:
        """Take what has been sent."""
        while True:
            try:
                packet = os.read(self.source, LARGEST)
            except BlockingIOError:
                return
            if nature.cut or chance.random() < nature.loss or len(self._under_way) > MOST_WAITING:
                continue
            late = nature.delay + nature.jitter * chance.uniform(-1.0, 1.0)
            self._latest = max(self._latest, time.monotonic() + late)
            self._under_way.append((self._latest, packet))

    def deliver(self) -> None:
        """Let arrive what has been under way for long enough."""
        now = time.monotonic()
        while self.due <= now:
            with contextlib.suppress(OSError):  # that end is down
                os.write(self._sink, self._under_way.popleft()[1])


def carry(one: End, two: End, nature: Nature, chance: random.Random) -> None:
    """Carry packets until standard input ends; each of its lines is another nature."""
    files = plug(one), plug(two)
    ways = Way(*files), Way(*reversed(files))
    by_file = {way.source: way for way in ways}
    print("ok", flush=True)
    while True:
        due = min(way.due for way in ways)
        left = None if due == float("inf") else max(0.0, due - time.monotonic())
        ready, _, _ = select.select([*by_file, sys.stdin], [], [], left)
        for file in ready:
            if file in by_file:
                by_file[file].take(nature, chance)
            elif line := sys.stdin.readline():
                nature = Nature(**json.loads(line))
                print("ok", flush=True)
            else:
                return
        for way in ways:
            way.deliver()


def main(ends: str, nature: str, seed: str) -> None:
    """The process of one cable."""
    one, two = (End(**values) for values in json.loads(ends))
    values: dict[str, Any] = json.loads(nature)
    carry(one, two, Nature(**values), random.Random(int(seed)))


if __name__ == "__main__":
    main(*sys.argv[1:])
