"""A cable between two namespaces: how long packets take, and that they get lost."""

from __future__ import annotations

import secrets
import select
import socket
import time
from collections.abc import Iterator

import pytest

from bench.cable import Cable, End, Nature, ip, within

DELAY = 0.02  # seconds each way
LOST = 0.5  # seconds after which a packet has got lost


@pytest.fixture
def spaces() -> Iterator[tuple[str, str]]:
    name = f"ap{secrets.token_hex(3)}"
    made = f"{name}a", f"{name}b"
    for space in made:
        ip("netns", "add", space)
    yield made
    for space in made:
        ip("netns", "delete", space)


@pytest.fixture
def cable(spaces: tuple[str, str]) -> Iterator[Cable]:
    one, two = spaces
    made = Cable(
        End("cable0", one, "10.77.0.1/30"),
        End("cable0", two, "10.77.0.2/30"),
        Nature(delay=DELAY),
    )
    yield made
    made.close()


class Echo:
    """Packets from one end to the other and back."""

    def __init__(self, one: str, two: str) -> None:
        self._here = within(one, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._there = within(two, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._there.bind(("10.77.0.2", 7))
        self._here.connect(("10.77.0.2", 7))

    def send(self, count: int) -> list[float]:
        """How long each was under way that came back, in seconds."""
        times = []
        for number in range(count):
            began = time.monotonic()
            self._here.send(b"%d" % number)
            if self._comes(self._there):
                self._there.sendto(*self._there.recvfrom(100))
                if self._comes(self._here):
                    assert self._here.recv(100) == b"%d" % number
                    times.append(time.monotonic() - began)
        return times

    def _comes(self, end: socket.socket) -> bool:
        return bool(select.select([end], [], [], LOST)[0])

    def close(self) -> None:
        self._here.close()
        self._there.close()


@pytest.fixture
def echo(cable: Cable, spaces: tuple[str, str]) -> Iterator[Echo]:
    made = Echo(*spaces)
    assert made.send(1)  # the first finds out whose address it is
    yield made
    made.close()


def test_packets_take_their_time_both_ways(echo: Echo) -> None:
    times = echo.send(10)
    assert len(times) == 10
    assert min(times) >= 2 * DELAY


def test_some_are_lost(cable: Cable, echo: Echo) -> None:
    cable.become(Nature(loss=0.5))
    assert 0 < len(echo.send(16)) < 16


def test_all_are_when_it_is_cut_until_it_is_mended(cable: Cable, echo: Echo) -> None:
    cable.become(Nature(cut=True))
    assert not echo.send(3)
    cable.become(Nature())
    assert len(echo.send(3)) == 3


def test_it_is_gone_when_it_is_closed(spaces: tuple[str, str]) -> None:
    one, two = spaces
    for _ in range(2):
        Cable(End("cable0", one), End("cable0", two)).close()
