"""Sites are served where their filesystems are mounted, whoever has mounted them.

The mount table is a real one, of a mount namespace of the test's own; the node around it
follows a script.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from daemon_stage import twisted_fixture, twisted_test
from mount_stage import Namespace, namespace
from residence_stage import House, a_database, a_site
from stage_waiting import reactor, until
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from awesomeproxy.lookout import NotThere
from awesomeproxy.model import FILESYSTEM, Mode, Placement
from awesomeproxy.residence import Elsewhere

DATA = FILESYSTEM + "data"


class Stage:
    """A house, and what is mounted around it: ``a`` and ``b`` are both this node's."""

    def __init__(self, house: House, space: Namespace, directory: Path) -> None:
        self.house = house
        self.residence = house.residence
        self.space = space
        self.paths = {name: str(directory / name) for name in ("a", "b", "c")}
        for path in self.paths.values():
            Path(path).mkdir()

    def mount(self, *names: str, how: str = "rw") -> None:
        for name in names:
            self.space.run("mount", "-t", "tmpfs", f"-o{how}", name, self.paths[name])

    def unmount(self, *names: str) -> None:
        for name in names:
            self.space.run("umount", self.paths[name])

    def remount(self, name: str, how: str) -> None:
        self.space.run("mount", f"-oremount,{how}", self.paths[name])

    async def begin(self, node: str = "a", mode: Mode = Mode.OPEN, **more: Any) -> None:
        """The site ``blog`` lives in a filesystem that is recorded on ``node``."""
        await self.house.add(a_site("blog", node, *(each for each in "abc" if each != node)))
        await self.house.begin(self.paths, node, mode, **more)

    async def serves(self, backend: str) -> None:
        await until(lambda: not self.absent and self.backend == backend, f"blog {backend}")

    async def holds(self, why: str) -> None:
        await until(lambda: why in self.absent, why)

    @property
    def absent(self) -> str:
        return self.house.absent("blog")

    @property
    def backend(self) -> str:
        return self.house.placements["blog"].backend


@twisted_fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    with namespace() as space:
        made = Stage(House(space.table), space, tmp_path)
        yield made
        made.residence.stop()


@twisted_test
async def test_a_site_waits_while_its_filesystem_is_not_mounted(stage: Stage) -> None:
    """And goes on when it is again, once a server is well."""
    stage.mount("a")
    await stage.begin()
    await stage.serves("on-a")
    stage.unmount("a")
    await stage.holds("nothing is mounted on")
    await until(lambda: stage.house.where() == "holding a")
    stage.house.ill = {"on-a"}
    stage.house.checks.clear()
    stage.house.served.clear()
    stage.mount("a")
    await until(lambda: len(stage.house.checks) > 1, "the checks")
    assert "no server is well yet" in stage.absent
    assert stage.house.where() == "open a"
    assert not stage.house.served  # not even for a moment
    stage.house.ill = set()
    await stage.serves("on-a")
    assert (await stage.house.registry.placements())[DATA].mode is Mode.OPEN


@twisted_test
async def test_a_site_follows_its_filesystem(stage: Stage) -> None:
    """It is placed where that is mounted, which is written down."""
    stage.mount("a")
    await stage.begin()
    stage.unmount("a")
    stage.mount("b")
    await stage.serves("on-b")
    stored = await stage.house.registry.placements()
    assert (stored["blog"].backend, stored["blog"].by) == ("on-b", "mounted on b")
    assert stage.house.where() == "open b"
    assert "blog on-b" in stage.house.checks


@twisted_test
async def test_a_database_waits_for_its_filesystem_and_follows_it(stage: Stage) -> None:
    """What holds for sites holds for databases that live in it."""
    house = stage.house
    await house.add_database(a_database("shop", "a", "b"))
    stage.mount("a")
    await stage.begin()
    assert not house.absent("database:shop")
    stage.unmount("a")
    await until(lambda: "nothing is mounted on" in house.absent("database:shop"), "the unmount")
    stage.mount("b")
    await until(lambda: not house.absent("database:shop"), "the other place")
    assert house.placements["database:shop"].backend == "on-b"
    assert "database:shop on-b" in house.checks


@twisted_test
async def test_a_look_at_where_a_site_was_says_nothing_of_where_it_is(stage: Stage) -> None:
    """The filesystem goes on while the servers of the first place are asked."""
    stage.mount("b")
    answer: Deferred[None] = Deferred()
    stage.house.asked = [answer]
    stage.house.ill = {"on-c"}
    await stage.begin()
    await until(lambda: stage.house.checks == ["blog on-b"], "a check")
    stage.mount("c")
    stage.unmount("b")
    await until(lambda: stage.backend == "on-c", "the other place")
    answer.callback(None)
    await until(lambda: stage.house.checks[1:] == ["blog on-c"], "another check")
    assert "no server is well yet" in stage.absent
    stage.house.ill = set()
    await stage.serves("on-c")


@twisted_test
async def test_what_is_mounted_twice_stays_where_it_is_recorded(stage: Stage) -> None:
    """The other place is a conflict, until the recorded one is gone."""
    stage.mount("a")
    await stage.begin()
    stage.mount("b")
    await until(lambda: stage.residence.conflicts == {"data": "b"}, "the conflict")
    await stage.serves("on-a")
    assert stage.residence.status()[0]["trouble"] == "it is mounted on b as well"
    assert [event["event"] for event in stage.house.events] == ["conflict"]
    stage.unmount("a")
    await stage.serves("on-b")
    assert stage.residence.conflicts == {}


@twisted_test
async def test_a_conflict_ends_when_the_other_place_is_unmounted(stage: Stage) -> None:
    """Nobody has noticed anything."""
    stage.mount("a")
    await stage.begin()
    stage.mount("b")
    await until(lambda: stage.residence.conflicts, "the conflict")
    stage.unmount("b")
    await until(lambda: not stage.residence.conflicts, "the end of the conflict")
    await stage.serves("on-a")


@pytest.mark.parametrize(
    ("mounted", "mode", "node"),
    [
        (["a"], Mode.OPEN, "a"),
        (["a"], Mode.HOLDING, "a"),
        (["b"], Mode.OPEN, "b"),
        (["b"], Mode.HOLDING, "b"),
        (["a", "b"], Mode.OPEN, "a"),
        (["a", "b"], Mode.HOLDING, "a"),
        (["b", "c"], Mode.HOLDING, "b"),
    ],
)
@twisted_test
async def test_a_daemon_that_starts_looks_where_filesystems_are(
    stage: Stage, mounted: list[str], mode: Mode, node: str
) -> None:
    """If the recorded place is one of two, it is that."""
    stage.mount(*mounted)
    await stage.begin(mode=mode)
    await stage.serves(f"on-{node}")
    assert stage.house.where() == f"open {node}"
    if len(mounted) > 1:
        await until(lambda: stage.residence.conflicts, "the conflict")


@twisted_test
async def test_a_daemon_that_starts_holds_what_is_mounted_nowhere(stage: Stage) -> None:
    """Its place is not forgotten."""
    await stage.begin()
    await stage.holds("nothing is mounted")
    await until(lambda: stage.house.where() == "holding a")
    assert stage.backend == "on-a"


@twisted_test
async def test_nothing_is_placed_before_it_is_known_what_a_dead_daemon_was_moving(
    stage: Stage,
) -> None:
    """Its target may be mounted, and must not be served from if it has not committed."""
    stage.mount("b")
    house = stage.house
    await house.add(a_site("blog", "a", "b"))
    placed = await house.registry.place(Placement(DATA, "a", Mode.HOLDING), 0)
    house.placements[DATA] = placed
    await stage.residence.start({"data": house.filesystem(stage.paths)})
    house.travelling = {DATA, "blog"}
    stage.residence.begin()
    await deferLater(reactor, 0.05)
    assert (house.where(), stage.backend) == ("holding a", "on-a")
    house.travelling = set()
    stage.unmount("b")
    stage.mount("a")
    stage.residence.settle(["data"])
    await stage.serves("on-a")


@twisted_test
async def test_what_is_mounted_read_only_does_not_count(stage: Stage) -> None:
    """As a source is that was fenced; it is there again when it can be written to."""
    stage.mount("a")
    await stage.begin()
    stage.remount("a", "ro")
    await stage.holds("read-only")
    stage.mount("b")
    await stage.serves("on-b")
    stage.remount("a", "rw")
    await until(lambda: stage.residence.conflicts == {"data": "a"}, "the conflict")
    assert stage.backend == "on-b"


@twisted_test
async def test_the_mounts_of_a_migration_are_no_events(stage: Stage) -> None:
    """What was seen meanwhile counts at its end."""
    stage.mount("a")
    await stage.begin()
    stage.house.travelling = {DATA, "blog"}
    stage.remount("a", "ro")
    stage.mount("b")
    await until(lambda: stage.residence.lookout.sees("data", "b"))
    await stage.residence.lookout.wait("data", "b")
    assert (stage.house.where(), stage.backend) == ("open a", "on-a")
    assert stage.house.losses[0] == f"{DATA} a: it is mounted read-only"
    stage.house.travelling = set()
    stage.residence.settle(["data"])
    await stage.serves("on-b")


@twisted_test
async def test_an_event_that_waits_for_its_turn_is_none_once_a_migration_has_begun(
    stage: Stage,
) -> None:
    """The migration would find its filesystem changed by somebody else."""
    stage.mount("a")
    await stage.begin()
    first = stage.residence.unmounted("data", "a")
    registry, writing = stage.house.registry, Deferred[None]()
    stage.house.registry = _Slow(registry, writing)
    one = Deferred.fromCoroutine(first)
    two = Deferred.fromCoroutine(stage.residence.mounted("data", "a"))
    stage.house.travelling = {DATA}
    stage.house.registry = registry
    writing.callback(None)
    await one
    assert (await two).mode is Mode.HOLDING
    assert stage.house.where() == "holding a"


class _Slow:
    def __init__(self, registry: Any, until: Deferred[None]) -> None:
        self._registry, self._until = registry, until

    def place(self, *args: Any) -> Any:
        return self._until.addCallback(lambda _: self._registry.place(*args))


@twisted_test
async def test_what_moves_to_where_it_is_mounted_as_well_is_no_conflict(stage: Stage) -> None:
    """The migration has placed it there, and has not yet ended."""
    stage.mount("a", "b")
    await stage.begin()
    await until(lambda: stage.residence.conflicts == {"data": "b"}, "the conflict")
    stage.house.travelling = {DATA, "blog"}
    (told,) = stage.residence.status()
    assert told["trouble"] == "it is mounted on b as well"
    stage.house.adopt(Placement(DATA, "b", generation=9))
    (told,) = stage.residence.status()
    assert (told["state"], told["trouble"]) == ("moving", "")


@twisted_test
async def test_a_look_is_not_patient(stage: Stage) -> None:
    """It says at once that something is not mounted, and why; here as on another node."""
    stage.mount("a")
    await stage.begin()
    await stage.residence.lookout.usable("data", "a")
    stage.remount("a", "ro")
    await until(lambda: "read-only" in stage.absent, "the change")
    with pytest.raises(NotThere, match="data is not mounted on a: it is mounted read-only"):
        await stage.residence.lookout.usable("data", "a")
    stage.house.remote = {"c"}
    stage.residence.configure({"data": stage.house.filesystem(stage.paths)})
    with pytest.raises(NotThere, match=r"data is not mounted on c: .*nowhere"):
        await stage.residence.lookout.usable("data", "c")


@twisted_test
async def test_waiting_for_a_mount_sees_one_that_turns_writable(stage: Stage) -> None:
    """It was mounted all the time, so nothing is mounted anew."""
    stage.mount("a")
    stage.mount("b", how="ro")
    await stage.begin()
    stage.house.travelling = {DATA}
    waiting = stage.residence.lookout.wait("data", "b")
    await deferLater(reactor, 0.05)
    assert not waiting.called
    stage.remount("b", "rw")
    await waiting


@twisted_test
async def test_waiting_for_a_mount_can_be_given_up(stage: Stage) -> None:
    """Nothing is left of it; and who stops the watch ends it."""
    await stage.begin()
    waiting = stage.residence.lookout.wait("data", "b")
    waiting.cancel()
    ended = stage.residence.lookout.wait("data", "b")
    stage.residence.stop()
    with pytest.raises(NotThere):
        await ended
    failures: list[Any] = []
    waiting.addErrback(failures.append)
    assert failures


@pytest.mark.parametrize("what", ["filesystem", "site"])
@twisted_test
async def test_what_cannot_be_recorded_is_recorded_later(stage: Stage, what: str) -> None:
    """An event is not lost because a disk is full."""
    stage.mount("a")
    await stage.begin()
    stage.unmount("a")
    await until(lambda: stage.house.where() == "holding a")
    registry = stage.house.registry
    if what == "filesystem":
        registry.broken = {"place"}
    else:
        stage.house.registry = _Sites(registry)
    stage.mount("b")
    await stage.holds("")
    await deferLater(reactor, 0.1)
    assert stage.backend == "on-a"
    assert stage.absent
    registry.broken = set()
    stage.house.registry = registry
    await stage.serves("on-b")


class _Sites:
    """Cannot record where sites are."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def place(self, placement: Placement, *args: Any) -> Any:
        self._registry.broken = set() if placement.site == DATA else {"place"}
        return self._registry.place(placement, *args)


@twisted_test
async def test_who_stops_leaves_nothing_behind(stage: Stage) -> None:
    """Not even a site that waits for its servers, in the midst of a question."""
    answer: Deferred[None] = Deferred()
    stage.house.asked = [answer]
    stage.mount("b")
    await stage.begin()
    await until(lambda: stage.house.checks, "a check")
    stage.residence.stop()
    await deferLater(reactor, 0)
    assert stage.residence.status()  # still answers


@twisted_test
async def test_a_reload_changes_what_is_watched(stage: Stage) -> None:
    """What is not known yet does not count as mounted."""
    stage.mount("a", "c")
    await stage.begin()
    await stage.serves("on-a")
    moved = {**stage.paths, "a": stage.paths["c"]}
    known = stage.residence.configure({"data": stage.house.filesystem(moved)})
    assert "not been looked at" in stage.absent
    await known
    await stage.serves("on-a")
    stage.unmount("c")
    await stage.holds("nothing is mounted")
    known = stage.residence.configure({})
    assert stage.absent == ""
    await known


# Where this node cannot look


@twisted_test
async def test_other_nodes_are_told_of(stage: Stage) -> None:
    """By command: it is not there, it is somewhere else; the recorded one comes first."""
    stage.house.remote = {"a", "b", "c"}
    await stage.begin()
    residence = stage.residence
    assert (stage.absent, residence.lookout.sees("data", "a")) == ("", False)
    with pytest.raises(Elsewhere, match="awesomeproxy unmounted data --node a"):
        await residence.mounted("data", "b")
    assert residence.conflicts == {"data": "b"}
    await residence.unmounted("data", "b")
    assert residence.conflicts == {}
    await residence.unmounted("data", "a")
    assert "not mounted on a" in stage.absent
    await residence.mounted("data", "b")
    await stage.serves("on-b")
    await residence.unmounted("data", "c")  # where it is not
    await stage.serves("on-b")


@twisted_test
async def test_a_site_that_has_no_backend_there_waits(stage: Stage) -> None:
    """The others go on."""
    stage.house.remote = {"a", "b", "c"}
    await stage.house.add(a_site("news", "a"))
    await stage.begin()
    await stage.residence.unmounted("data", "a")
    await stage.residence.mounted("data", "b")
    await stage.serves("on-b")
    assert stage.house.absent("news") == "its filesystem data is on b"


@twisted_test
async def test_a_paused_site_follows_and_stays_paused(stage: Stage) -> None:
    """A mount opens nothing that somebody has closed."""
    stage.house.remote = {"a", "b", "c"}
    await stage.begin()
    seen = stage.house.placements["blog"]
    paused = Placement("blog", "on-a", Mode.HOLDING, by="pause")
    stage.house.adopt(await stage.house.registry.place(paused, seen.generation))
    await stage.residence.unmounted("data", "a")
    await stage.residence.mounted("data", "b")
    await stage.serves("on-b")
    assert stage.house.placements["blog"].mode is Mode.HOLDING


@twisted_test
async def test_a_directory_is_where_it_is_said_to_be(stage: Stage) -> None:
    """It is no mount point: nothing else tells where it is."""
    await stage.begin(mount_point=False)
    await stage.residence.lookout.usable("data", "a")
    assert stage.absent == ""
    await stage.residence.lookout.wait("data", "b")  # is there as soon as it is asked for


# A node that is lost


@twisted_test
async def test_a_filesystem_of_a_node_that_is_lost_is_followed_where_it_is_mounted(
    stage: Stage,
) -> None:
    """Requests wait from the time that its servers are seen to be dead."""
    stage.house.remote = {"c"}
    await stage.begin("c")
    await stage.serves("on-c")
    stage.house.cluster.states = {"c": "gone"}
    stage.house.ill = {"on-c"}
    stage.residence.look_after("c")
    await stage.holds("is not mounted on c")
    assert stage.house.where() == "holding c"
    stage.mount("b")
    await stage.serves("on-b")


@twisted_test
async def test_what_is_mounted_elsewhere_already_counts_once_the_node_is_lost(
    stage: Stage,
) -> None:
    """Until then it was a conflict."""
    stage.house.remote = {"c"}
    await stage.begin("c")
    stage.mount("b")
    await until(lambda: stage.residence.conflicts, "the conflict")
    stage.house.cluster.states = {"c": "fenced"}
    stage.residence.look_after("c")  # its servers answer, but it was fenced
    await stage.serves("on-b")


@pytest.mark.parametrize("state", ["gone", "left", "live", "late"])
@twisted_test
async def test_a_node_whose_servers_answer_keeps_its_sites(stage: Stage, state: str) -> None:
    """It has lost the registry, or its daemon is being started again."""
    stage.house.remote = {"c"}
    await stage.begin("c")
    stage.house.cluster.states = {"c": state}
    stage.house.checks.clear()
    stage.residence.look_after("c")
    if state in ("gone", "left"):
        await until(lambda: stage.house.checks, "the check")
    await deferLater(reactor, 0)
    assert stage.house.where() == "open c"
