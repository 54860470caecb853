"""A site moves with its filesystem and its service, there and back, under real traffic.

The two nodes are both this one; a real daemon has a real rsync carry a directory from one
place to another.  Each request writes a file: none may be lost or written twice, whatever is
killed meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import origin_service
import pytest
from daemon_stage import (
    HOST,
    Daemon,
    Failed,
    Load,
    Stage,
    a_stage,
    free_ports,
    twisted_fixture,
    twisted_test,
)
from ssh_stage import descendants
from stage_waiting import until, until_async
from test_crash import HONEST, Death, dies

from awesomeproxy.control.client import Unreachable

stage = twisted_fixture(a_stage)
HERE = Path(__file__).parent

STEPS = ("presync", "fence", "sync", "attach", "mount", "start", "verify", "commit", "clean")
SIDES = {"one": "node1", "two": "node2"}
# What is fenced is only marked: its service, which is stopped, is all that writes there.
SOURCE, TARGET = "$AWESOMEPROXY_SOURCE_PATH", "$AWESOMEPROXY_TARGET_PATH"
COPY = f'touch "{TARGET}.fenced"; rsync -a --delete "{SOURCE}/" "{TARGET}/" || [ $? = 24 ]'
COMMANDS = {
    "presync": COPY,
    "fence": f'touch "{SOURCE}.fenced"',
    "unfence": f'rm -f "{SOURCE}.fenced"',
    "sync": COPY,
    "attach": f'rm -f "{TARGET}.fenced"',
    "detach": f'touch "{TARGET}.fenced"',
    "verify": f'diff -r "{SOURCE}" "{TARGET}"',
}
BY_COMMANDS = "\n".join(
    [
        'mover = "command"',
        *(f"options.{s} = {json.dumps(['sh', '-euc', text])}" for s, text in COMMANDS.items()),
    ]
)


class House:
    """A daemon with the site ``blog``, whose files are in ``one`` and can go to ``two``."""

    def __init__(self, stage: Stage) -> None:
        self.daemon = stage.daemon()
        self.directory = stage.directory
        self.ports = dict(zip(SIDES, free_ports(2), strict=True))
        stage.at_end.append(self.clear)

    def configure(self, mover: str, *more: str) -> None:
        backends = [
            f"""
            [sites.blog.backends.{side}]
            servers = ["http://{HOST}:{port}"]
            node = "{SIDES[side]}"
            service.start = {json.dumps(self.command("start", side))}
            service.stop = {json.dumps(self.command("stop", side))}
            """
            for side, port in self.ports.items()
        ]
        places = [f'on.{node}.path = "{self.directory / side}"' for side, node in SIDES.items()]
        self.daemon.configure(
            "[nodes.node2]",
            *("[filesystems.data]", mover, 'node = "node1"', *places),
            *("[sites.blog]", 'hosts = ["blog.test"]', 'backend = "one"', 'filesystem = "data"'),
            *backends,
            *more,
        )

    def command(self, verb: str, side: str) -> list[str]:
        program = origin_service.__file__
        path = str(self.directory / side)
        return [sys.executable, program, verb, path, str(self.ports[side])]

    async def start(self, mover: str = 'mover = "rsync"', *more: str) -> Daemon:
        (self.directory / "one").mkdir(exist_ok=True)
        self.configure(mover, *more)
        subprocess.run(self.command("start", "one"), check=True)
        return await self.daemon.start()

    def clear(self) -> None:
        for side in SIDES:
            subprocess.run(self.command("stop", side), check=True)
            while os.path.ismount(self.directory / side):
                subprocess.run(["umount", str(self.directory / side)], check=True)

    def load(self) -> Load:
        return self.daemon.load(
            rate=50, method="POST", body=b"x", connections=32, duration=300.0, timeout=60.0
        )

    def running(self) -> set[str]:
        """The sides whose service runs."""
        notes = {side: self.directory / f"{side}.pid" for side in SIDES}
        return {side for side, note in notes.items() if origin_service.running(note)}

    def is_there(self, load: Load, side: str) -> None:
        """Every request that was acknowledged has been carried out, and none of them twice."""
        written = {path.name: path.read_text() for path in (self.directory / side).iterdir()}
        acknowledged = {str(number) for number in load.run.result.acknowledged()}
        assert acknowledged
        assert not acknowledged - written.keys()
        assert set(written.values()) == {"done\n"}

    async def settled(self) -> str:
        """Wait until nothing is left to be done; answer with where the site is."""

        async def look() -> dict[str, Any] | None:
            entries = (await self.daemon.ask("migrations"))["migrations"]
            ended = {entry["state"] for entry in entries} <= {"done", "rolled back"}
            found = await self.daemon.site()
            return found if ended and found["state"] == "open" and not found["migration"] else None

        found = await until_async(look, "the end of a migration")
        assert found is not None
        side: str = found["backend"]
        return side

    async def stands_on(self, side: str) -> None:
        """Placement, filesystem, service and the files themselves agree."""
        status = await self.daemon.ask("status")
        (data,) = status["filesystems"]
        assert (data["node"], data["state"], data["trouble"]) == (SIDES[side], "there", "")
        assert status["sites"][0]["backend"] == side
        assert self.running() == {side}
        (other,) = SIDES.keys() - {side}
        assert self.is_writable(side)
        assert not self.is_writable(other)

    def is_writable(self, side: str) -> bool:
        path = self.directory / side
        if not path.exists() or path.with_suffix(".fenced").exists():
            return False
        return not os.statvfs(path).f_flag & os.ST_RDONLY


@twisted_test
async def test_a_site_goes_to_and_fro_with_its_files(stage: Stage) -> None:
    """No request fails, none is lost, none is carried out twice."""
    house = House(stage)
    daemon = await house.start()
    load = house.load()
    await load.flows()
    for target in ("two", "one"):
        ledger = await daemon.ask("migrate", site="blog", to=target)
        assert (ledger["outcome"], ledger["failed"], ledger["ambiguous"]) == ("done", 0, 0)
        assert ledger["bytes_moved"] > 0
        await load.flows(10)
        await house.stands_on(target)
    result = await load.passes()
    house.is_there(load, "one")
    assert len(list((house.directory / "one").iterdir())) == result.finished
    foreseen = await daemon.ask("migrate", site="blog", to="two", dry_run=True)
    assert foreseen["problems"] == []
    assert foreseen["estimate"]["whole"] > 0


@pytest.mark.parametrize("how", [[], ["-l"]])
@twisted_test
async def test_a_source_that_is_unmounted_meanwhile_leads_back(
    stage: Stage, how: list[str]
) -> None:
    """An empty directory is not carried over what the target has of it."""
    house = House(stage)
    hook = json.dumps([str(HERE / "stop.sh"), str(house.directory)])
    for side in SIDES:
        (house.directory / side).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", house.directory / side], check=True)
    daemon = await house.start(
        'mover = "rsync"\nmount_point = true',
        f'[[hooks]]\nstep = "presync"\ncommand = {hook}\ntime = "60s"',
    )
    one, two = (house.directory / side for side in SIDES)
    load = house.load()
    await load.flows()
    await load.stop()
    for target in ("two", "one"):
        assert (await daemon.ask("migrate", site="blog", to=target))["outcome"] == "done"
    files = set(os.listdir(one))
    assert files
    (house.directory / "stop").write_text("presync")
    moving = daemon.ask("migrate", site="blog", to="two")
    await until((house.directory / "stopped").exists, "the stop")
    subprocess.run(house.command("stop", "one"), check=True)
    subprocess.run(["umount", *how, one], check=True)
    (house.directory / "stop").unlink()
    with pytest.raises(Failed, match="data cannot be used any more on node1: nothing is mounted"):
        await moving
    assert set(os.listdir(two)) == files
    site = await daemon.site()
    assert (site["backend"], "nothing is mounted" in site["trouble"]) == ("one", True)


class Kill:
    """Kills a step's rsync as soon as it is there."""

    def __init__(self, daemon: Daemon, step: str) -> None:
        self._pid = daemon.pid
        self._step = step
        self.killed = False

    def __call__(self, method: str, params: dict[str, Any]) -> None:
        if params.get("step") != self._step or self.killed:
            return
        while not (found := list(self._rsyncs())):
            pass
        os.kill(found[0], signal.SIGKILL)
        self.killed = True

    def _rsyncs(self) -> list[int]:
        return [pid for pid in descendants(self._pid) if name(pid) == "rsync"]


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.mark.parametrize("step", ["presync", "sync"])
@twisted_test
async def test_an_rsync_that_is_killed_costs_a_wait(stage: Stage, step: str) -> None:
    """The source serves again; the next try goes through."""
    house = House(stage)
    daemon = await house.start()
    load = house.load()
    await load.flows()
    kill = Kill(daemon, step)
    with pytest.raises(Failed, match=f"rolled back in the step '{step}'"):
        await daemon.ask("migrate", kill, site="blog", to="two")
    assert kill.killed
    assert await house.settled() == "one"
    await load.flows(10)
    assert house.running() == {"one"}
    assert (await daemon.ask("migrate", site="blog", to="two"))["outcome"] == "done"
    await load.flows(10)
    await load.passes()
    house.is_there(load, "two")


@twisted_test
async def test_a_daemon_that_is_killed_at_any_step_is_followed_by_one_that_knows(
    stage: Stage,
) -> None:
    """Before the commit all is as it was, after it all has moved; the journal says which."""
    house = House(stage)
    # The verifying may be over sooner than its announcement has come here.
    late = '[[hooks]]\nstep = "commit"\ncommand = ["sleep", "2"]'
    daemon = await house.start(BY_COMMANDS, late)
    load = house.load()
    side = "one"
    for step in STEPS:
        await load.flows(10)
        (target,) = SIDES.keys() - {side}
        death: Callable[..., None] = Death(daemon, step)
        await dies(daemon, daemon.ask("migrate", death, site="blog", to=target))
        await daemon.start()
        found = await house.settled()
        if step == "clean":
            assert found == target
        elif step != "commit":
            assert found == side, step
        side = found
        await load.flows(5)
        await house.stands_on(side)
    result = await load.stop()
    assert {outcome for outcome, count in result.outcomes().items() if count} <= HONEST
    house.is_there(load, side)


@twisted_test
async def test_a_daemon_that_is_told_to_stop_undoes_what_it_has_begun(stage: Stage) -> None:
    """Before it is gone; so that nothing is held while there is none."""
    house = House(stage)
    daemon = await house.start(BY_COMMANDS)

    def stop(method: str, params: dict[str, Any]) -> None:
        if params.get("step") == "sync":
            daemon.signal(signal.SIGTERM)

    with pytest.raises((Failed, Unreachable)):
        await daemon.ask("migrate", stop, site="blog", to="two")
    assert await daemon.exits() == 0
    assert house.running() == {"one"}
    assert house.is_writable("one")
    await daemon.start()
    await house.stands_on(await house.settled())
