"""What is carried in one migration, as one thing: in which order, and how it fails."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from carrying_stage import Mover, Script, Service
from daemon_stage import reactor, twisted_test
from twisted.internet.defer import CancelledError, Deferred

from awesomeproxy.migrate.carriage import Carriage, Stand
from awesomeproxy.model import Reach
from awesomeproxy.model import Service as Settings
from awesomeproxy.movers.interface import Estimate, MoverError
from awesomeproxy.movers.shell import Shell
from awesomeproxy.movers.warrant import Warrant
from awesomeproxy.together import together


def carriage(script: Script) -> Carriage:
    """A filesystem and a database, and the services of a database and a site."""
    movers = [Mover("data", script), Mover("shop", script)]
    leaving: list[Any] = [Service("shop@one", script), Service("blog@one", script)]
    arriving: list[Any] = [Service("shop@two", script), Service("blog@two", script)]
    return Carriage(movers, leaving, arriving, Warrant("test"))


@twisted_test
async def test_what_uses_others_is_closed_first_and_opened_last() -> None:
    """Sites before databases before filesystems; and the other way round."""
    script = Script()
    carried = carriage(script)
    await carried.stop_source()
    await carried.fence()
    assert script.said == ["stop blog@one", "stop shop@one", "fence shop", "fence data"]
    script.said.clear()
    await carried.unfence()
    await carried.start_source()
    assert script.said == ["unfence data", "unfence shop", "start shop@one", "start blog@one"]
    script.said.clear()
    await carried.start_target()
    await carried.stop_target()
    assert script.said == ["start shop@two", "start blog@two", "stop blog@two", "stop shop@two"]


@twisted_test
async def test_what_is_to_be_carried_is_added_up() -> None:
    """So is what has been, as it comes."""
    script = Script(sizes=[3, 4])
    carried = carriage(script)
    assert await carried.estimate() == Estimate(2000, 7)
    told: list[int] = []
    rounds = await carried.presync(told.append, iter(range(9)).__next__)
    assert [(each.size, each.seconds) for each in rounds] == [(100, 1), (100, 2)]
    assert [each.pending for each in rounds] == [4, 4]
    assert await carried.sync(told.append) == 20
    assert told == [100, 200, 10, 20]
    assert carried.carried == 220


@twisted_test
async def test_the_first_failure_ends_the_others() -> None:
    """And is the one that is told, whatever the others say of their end."""
    ended: list[str] = []

    async def hang(name: str, ends: Exception | None = None) -> int:
        try:
            await Deferred()
        except CancelledError:
            ended.append(name)
            if ends is not None:
                raise ends from None
            raise
        return 0

    async def fail() -> int:
        raise MoverError("the first")

    later = Deferred[None]()

    async def fail_later() -> int:
        await later
        raise MoverError("the first")

    at_once: list[Coroutine[Any, Any, int]] = [hang("one"), fail(), hang("two")]
    with pytest.raises(MoverError, match="the first"):
        await together(at_once)
    assert ended == ["one", "two"]
    running = Deferred.fromCoroutine(
        together([hang("three", MoverError("a consequence")), fail_later(), hang("four")])
    )
    later.callback(None)
    with pytest.raises(MoverError, match="the first"):
        await running
    assert ended[2:] == ["three", "four"]


@pytest.mark.parametrize("step", ["detach", "clean", "abandon"])
@twisted_test
async def test_what_cannot_be_tidied_up_keeps_no_other_from_it(step: str) -> None:
    """It is told when the others are done."""
    script = Script(faults={f"{step} data": [MoverError("no such luck")]}, hangs={f"{step} shop"})
    running = Deferred.fromCoroutine(getattr(carriage(script), step)())
    assert script.said == [f"{step} data", f"{step} shop"]
    running.cancel()
    with pytest.raises(MoverError, match="no such luck"):
        await running
    assert script.said[2:] == [f"end {step} shop"]


@twisted_test
async def test_a_cancellation_ends_all_of_them() -> None:
    """Nothing is left running, and who takes its time to end is waited for."""
    slow = Deferred[None]()
    ended: list[str] = []

    async def hang(name: str) -> None:
        try:
            await Deferred()
        finally:
            if name == "slow":
                await slow
            ended.append(name)

    results: list[Any] = []
    running = Deferred.fromCoroutine(together([hang("fast"), hang("slow"), hang("fast")]))
    running.addErrback(lambda failure: results.append(failure.value))
    running.cancel()
    assert (ended, results) == (["fast", "fast"], [])
    slow.callback(None)
    assert ended == ["fast", "fast", "slow"]
    assert isinstance(results[0], CancelledError)


@twisted_test
async def test_nothing_together_is_done_at_once() -> None:
    """A migration may have services and nothing to carry."""
    assert await together([]) == []


@twisted_test
async def test_a_service_is_started_and_stopped_by_its_commands(tmp_path: Path) -> None:
    """With their words as they are; one without a command has nothing to be done."""
    file = str(tmp_path / "it is; here")
    shell = Shell(reactor, Reach("n1"))
    stand = Stand("blog on one", Settings(start=("touch", file), stop=("rm", file)), shell)
    await stand.start()
    assert Path(file).exists()
    await stand.stop()
    assert not Path(file).exists()
    with pytest.raises(
        MoverError, match=r"blog on one: cannot stop its service: rm .*No such file"
    ):
        await stand.stop()
    await Stand("blog on one", Settings(), shell).start()


@twisted_test
async def test_a_service_that_takes_too_long_is_ended() -> None:
    """It has as long as it was given."""
    shell = Shell(reactor, Reach("n1"))
    stand = Stand("blog on one", Settings(start=("sleep", "60"), time=0.1), shell)
    began = time.monotonic()
    with pytest.raises(MoverError, match=r"cannot start its service: sleep 60: .* more than 0.1 s"):
        await stand.start()
    assert time.monotonic() - began < 10
