"""Commands of the operator's own around the steps of a migration, run for real."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from daemon_stage import Daemon, Failed, Stage, a_stage, twisted_fixture, twisted_test

from awesomeproxy.migrate.steps import of
from awesomeproxy.movers.shell import MOST

stage = twisted_fixture(a_stage)

NOTE = """#!/bin/sh
{ printf '%s ' "$AWESOMEPROXY_WHEN" "$AWESOMEPROXY_STEP" "$AWESOMEPROXY_NAME" \\
    "$AWESOMEPROXY_SOURCE" "$AWESOMEPROXY_TARGET"; cat; } >>"$1"
"""


def hook(step: str, when: str, *command: object, more: str = "") -> str:
    words = json.dumps(list(map(str, command)))
    return f'[[hooks]]\nstep = "{step}"\nwhen = "{when}"\ncommand = {words}\n{more}'


async def serving(stage: Stage, *hooks: str) -> Daemon:
    """A daemon with the site ``blog`` on ``one``, and hooks."""
    daemon, _, _ = await stage.blog()
    daemon.config.write_text(daemon.text + "\n".join(("", *hooks, "")))
    await daemon.ask("reload")
    return daemon


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """A command that notes what it is told in the file that it is given."""
    path = tmp_path / "note"
    path.write_text(NOTE)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def noted(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The environment's words and the JSON of each call."""
    lines = path.read_text().splitlines()
    return [
        (line.partition(" {")[0].strip(), json.loads("{" + line.partition(" {")[2]))
        for line in lines
    ]


@twisted_test
async def test_each_step_has_its_hooks(stage: Stage, note: Path, tmp_path: Path) -> None:
    """Those before it come before it, those after it after it, with what it is about."""
    book = tmp_path / "book"
    names = [step.name for step in of(carrying=False)]
    daemon = await serving(
        stage, *(hook(name, when, note, book) for name in names for when in ("before", "after"))
    )
    await daemon.ask("migrate", site="blog", to="two")
    calls = noted(book)
    assert [words for words, _ in calls] == [
        f"{when} {name} blog one two" for name in names for when in ("before", "after")
    ]
    words, facts = calls[-1]
    assert words == "after clean blog one two"
    assert facts == {
        "when": "after",
        "step": "clean",
        "migration": 1,
        "name": "blog",
        "source": "one",
        "target": "two",
        "along": [],
    }


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["check", "hold", "drain", "switch", "verify"])
@twisted_test
async def test_a_hook_that_fails_rolls_back(stage: Stage, step: str, when: str) -> None:
    """Its words are told, the source serves, and traffic has met nothing but a wait."""
    daemon = await serving(stage, hook(step, when, "sh", "-c", "echo no >&2; exit 1"))
    load = daemon.load()
    await load.flows()
    with pytest.raises(Failed, match=f"the hook {when} the step '{step}': .*no"):
        await daemon.ask("migrate", site="blog", to="two")
    site = await daemon.site()
    assert (site["backend"], site["mode"]) == ("one", "open")
    await load.flows()
    await load.passes()


@twisted_test
async def test_a_hook_before_everything_is_part_of_the_check(stage: Stage) -> None:
    """For whoever calls it off, and for whoever comes second."""
    daemon = await serving(stage, hook("check", "before", "sleep", "60", more='time = "60s"'))
    moving = daemon.ask("migrate", site="blog", to="two")
    await daemon.until_site(migration={"target": "two", "step": "check"})
    with pytest.raises(Failed, match=r"is being migrated to two \(check\)"):
        await daemon.ask("migrate", site="blog", to="two")
    await daemon.ask("abort", site="blog")
    with pytest.raises(Failed, match="rolled back in the step 'check': it was aborted"):
        await moving


@twisted_test
async def test_a_hook_that_takes_too_long_rolls_back(stage: Stage) -> None:
    """It is ended when its time is over."""
    slow = hook("drain", "before", "sleep", "60", more='time = "200ms"')
    daemon = await serving(stage, slow)
    with pytest.raises(Failed, match=r"it has taken more than 0\.2 s"):
        await daemon.ask("migrate", site="blog", to="two")
    assert (await daemon.site())["state"] == "open"


@twisted_test
async def test_a_hook_may_print_as_much_as_it_likes(stage: Stage) -> None:
    """Nobody reads it."""
    much = hook("hold", "before", "head", "-c", str(2 * MOST), "/dev/zero", more='time = "60s"')
    daemon = await serving(stage, much)
    assert (await daemon.ask("migrate", site="blog", to="two"))["outcome"] == "done"


@pytest.mark.parametrize("step", ["release", "clean"])
@twisted_test
async def test_after_the_commit_a_hook_can_fail(stage: Stage, step: str) -> None:
    """There is nothing to roll back any more: it is told in the log."""
    daemon = await serving(stage, hook(step, "before", "sh", "-c", "echo too late >&2; exit 1"))
    ledger = await daemon.ask("migrate", site="blog", to="two")
    assert ledger["outcome"] == "done"
    assert "too late" in daemon.log


@twisted_test
async def test_a_rollback_has_hooks(stage: Stage, note: Path, tmp_path: Path) -> None:
    """What a hook has done can be undone there."""
    book = tmp_path / "book"
    daemon = await serving(
        stage,
        hook("verify", "before", "false"),
        *(hook("roll back", when, note, book) for when in ("before", "after")),
    )
    with pytest.raises(Failed):
        await daemon.ask("migrate", site="blog", to="two")
    assert [words for words, _ in noted(book)] == [
        "before roll back blog one two",
        "after roll back blog one two",
    ]


@twisted_test
async def test_what_is_copied_and_abandoned_has_hooks(
    stage: Stage, note: Path, tmp_path: Path
) -> None:
    """They come within the rollback; one that fails changes nothing of it."""
    book = tmp_path / "book"
    one, two = stage.two()
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    noting = [
        hook(step, when, note, book)
        for step in ("roll back", "abandon")
        for when in ("before", "after")
    ]
    daemon = await stage.serving(
        '[filesystems.data]\nmover = "command"\nnode = "node1"',
        *(f'options.{step} = ["true"]' for step in ("fence", "unfence", "sync")),
        f'on.node1.path = "{tmp_path}/one"\non.n2.path = "{tmp_path}/two"',
        '[sites.blog]\nhosts = ["blog.test"]\nbackend = "one"\nfilesystem = "data"',
        f'backends.one = {{ servers = ["{one.url}"], node = "node1" }}',
        f'backends.two = {{ servers = ["{two.url}"], node = "n2" }}',
        *("[nodes.n2]", hook("sync", "before", "false")),
        *(*noting, hook("abandon", "before", "false")),
    )
    with pytest.raises(Failed, match="rolled back in the step 'fence'"):
        await daemon.ask("migrate", site="blog", to="two")
    assert [words.removesuffix(" blog one two") for words, _ in noted(book)] == [
        *("before roll back", "before abandon", "after abandon", "after roll back"),
    ]
    assert (await daemon.site())["backend"] == "one"


@twisted_test
async def test_hooks_are_for_those_that_they_name(stage: Stage) -> None:
    """A hook of another site's does not run."""
    daemon = await serving(stage, hook("hold", "before", "false", more='only = ["shop"]'))
    ledger = await daemon.ask("migrate", site="blog", to="two")
    assert ledger["outcome"] == "done"
