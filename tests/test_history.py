"""The checker finds what it is there to find, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from daemon_stage import (
    HOST,
    Daemon,
    Stage,
    a_stage,
    free_ports,
    twisted_fixture,
    twisted_test,
    until,
)
from history import ANY, Bytes, Event, History, Receipt, Release, promises, violations
from recorder import Door, Recorder
from stage_waiting import until_async

stage = twisted_fixture(a_stage)

LEAKY = (
    f"import runpy; runpy.run_path({str(Path(__file__).with_name('leaky.py'))!r}, None, '__main__')"
)
MANY = 120  # requests while it is held


def at(moment: int, site: str = "blog", backend: str = "old") -> Bytes:
    return Bytes(moment, site, backend, "web1", 100)


class TestViolations:
    def test_what_comes_after_the_receipt_and_before_the_release(self) -> None:
        events: list[Event] = [Receipt(10, "blog", "old", 7), Release(20, "blog")]
        (found,) = violations([*events, at(9), at(15), at(21)])
        assert found == (
            "blog: 100 bytes from web1 at old, 0.0 ms after the receipt of generation 7"
        )

    @pytest.mark.parametrize("backend", ["old", ANY])
    def test_of_the_backend_or_of_each(self, backend: str) -> None:
        events: list[Event] = [Receipt(10, "blog", backend, 7), at(15, backend="new")]
        assert len(violations(events)) == (backend == ANY)

    def test_of_no_other_site(self) -> None:
        assert not violations([Receipt(10, "blog", ANY, 7), at(15, site="shop")])

    def test_a_receipt_without_a_release_holds_for_good(self) -> None:
        assert len(violations([Receipt(10, "blog", ANY, 7), at(15), at(10**12)])) == 2

    def test_each_receipt_has_its_own_release(self) -> None:
        events: list[Event] = [
            *(Receipt(10, "blog", "old", 7), Release(20, "blog")),
            *(Receipt(30, "blog", "old", 9), Release(40, "blog")),
        ]
        assert not violations([*events, at(25), at(45)])
        assert len(violations([*events, at(25), at(35)])) == 1

    def test_the_order_of_recording_does_not_matter(self) -> None:
        events: list[Event] = [Receipt(10, "blog", ANY, 7), at(15), Release(20, "blog"), at(25)]
        assert violations(events) == violations(reversed(events)) != []


class TestADaemon:
    @pytest.fixture
    def recorder(self, tmp_path: Path) -> Iterator[Recorder]:
        made = Recorder(tmp_path / "record", [Door(HOST, free_ports(1)[0], "blog", "old")])
        yield made
        made.close()

    @twisted_test
    async def test_that_keeps_its_promise(self, stage: Stage, recorder: Recorder) -> None:
        daemon = started(stage, recorder)
        daemon.spawn()
        history = await paused_and_asked(await daemon.serves(), recorder)
        assert promises(history.events) == 1
        assert violations(history.events) == []
        assert len(set(recorder.paths())) == MANY + 1

    @twisted_test
    async def test_that_breaks_it_is_caught(self, stage: Stage, recorder: Recorder) -> None:
        daemon = started(stage, recorder)
        daemon.spawn(LEAKY, "-n", "--pidfile=")
        history = await paused_and_asked(await daemon.serves(), recorder)
        assert len(violations(history.events)) == -(-MANY // 50)


def started(stage: Stage, recorder: Recorder) -> Daemon:
    (door,) = recorder.doors
    daemon = stage.daemon()
    daemon.configure(
        "[sites.blog]",
        'hosts = ["blog.test"]',
        'backend = "old"',
        f'backends.old.servers = ["{door.url}"]',
    )
    return daemon


async def paused_and_asked(daemon: Daemon, recorder: Recorder) -> History:
    """Requests before, while and after a pause."""
    history = History()
    numbers = count()
    await daemon.get(f"/{next(numbers)}")
    receipt = await daemon.ask("pause", site="blog")
    history.receipt("blog", "old", receipt["generation"])
    answers = [daemon.fetch(f"/{next(numbers)}") for _ in range(MANY)]

    async def all_have_come() -> bool:
        passed = len(recorder.paths()) - 1
        return bool((await daemon.site())["held"] + passed == MANY)

    await until_async(all_have_come, "requests")
    history.released("blog")
    await daemon.ask("resume", site="blog")
    for answer in answers:
        await answer
    await until(lambda: len(recorder.paths()) == MANY + 1, "the record")
    history.read(recorder, {HOST: "node1"})
    return history
