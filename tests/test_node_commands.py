"""``node`` and ``apply`` of a daemon that is in no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon_stage import (
    Daemon,
    Ended,
    Failed,
    Origin,
    Stage,
    a_stage,
    site,
    twisted_fixture,
    twisted_test,
)

stage = twisted_fixture(a_stage)


NODES = '[nodes.n1]\nssh = "n1"\n[nodes.n2]\nssh = "n2"'


def standing(name: str, old: Origin, new: Origin) -> str:
    """A site on a backend on n1, that can go to n2."""
    return "\n".join(
        [
            f"[sites.{name}]",
            f'hosts = ["{name}.test"]',
            'backend = "old"',
            f'backends.old = {{ servers = ["{old.url}"], node = "n1" }}',
            f'backends.new = {{ servers = ["{new.url}"], node = "n2" }}',
        ]
    )


async def placed(daemon: Daemon) -> dict[str, str]:
    return {each["name"]: each["backend"] for each in (await daemon.ask("status"))["sites"]}


class TestNodes:
    @twisted_test
    async def test_there_is_the_one(self, stage: Stage) -> None:
        daemon, _, _ = await stage.blog()
        told = await daemon.ask("node.list")
        assert [(each["name"], each["state"]) for each in told["nodes"]] == [("node1", "live")]
        assert told["registry"].startswith("embedded, in ")
        assert (await daemon.ask("status"))["cluster"] is None
        ended = await daemon.command("node", "list")
        assert ended.out.splitlines()[1].startswith("node1*  live ")

    @pytest.mark.parametrize(
        ("words", "status", "why"),
        [
            ("fence node1 --yes", 1, "node1 is the node that you ask"),
            ("fence web9 --yes", 2, "there is no node 'web9'; there are: node1"),
            ("remove node1", 1, "node1 is live; stop it, or fence it"),
            ("drain web9", 2, "there is no node 'web9'; there are: node1"),
            ("drain node1 --to node1", 2, "name another node"),
        ],
    )
    @twisted_test
    async def test_what_makes_no_sense_is_refused(
        self, stage: Stage, words: str, status: int, why: str
    ) -> None:
        daemon, _, _ = await stage.blog()
        ended = await daemon.command("node", *words.split())
        assert (ended.status, ended.out) == (status, "")
        assert why in ended.err


class TestDrain:
    @twisted_test
    async def test_everything_moves_away(self, stage: Stage) -> None:
        one, two = stage.two()
        daemon = await stage.serving(
            standing("blog", one, two), standing("shop", one, two), node=NODES
        )
        dry = await daemon.command("node", "drain", "n1", "--dry-run")
        assert dry.out.splitlines()[:2] == ["blog: old -> new", "shop: old -> new"]
        assert await placed(daemon) == {"blog": "old", "shop": "old"}
        ended = await daemon.command("node", "drain", "n1", "--at-once", "2")
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.splitlines()[-1] == "n1: 2 moved; nothing is left there"
        assert await placed(daemon) == {"blog": "new", "shop": "new"}
        assert (await daemon.ask("node.drain", node="n1"))["plan"] == []

    @twisted_test
    async def test_the_first_that_fails_ends_it(self, stage: Stage) -> None:
        one, two = stage.two()
        dead = stage.origin("dead")
        await dead.close()
        sites = [
            standing(name, one, new) for name, new in zip("abc", (two, dead, two), strict=True)
        ]
        daemon = await stage.serving(*sites, node=NODES)
        ended = await daemon.command("node", "drain", "n1")
        assert ended.status == 1
        first, why = ended.out.splitlines()
        assert first.startswith("a: old -> new")
        assert why.startswith("stopped at b: the migration to new was rolled back in the step")
        assert why.endswith("; 1 of 3 have moved, 2 are on n1")
        assert await placed(daemon) == {"a": "new", "b": "old", "c": "old"}

    @twisted_test
    async def test_nothing_moves_when_one_has_nowhere_to_go(self, stage: Stage) -> None:
        one, two = stage.two()
        alone = site("alone", one) + '\nnode = "n1"'
        daemon = await stage.serving(standing("blog", one, two), alone, node=NODES)
        with pytest.raises(Failed, match="alone: it has no backend on another node"):
            await daemon.ask("node.drain", node="n1")
        assert (await placed(daemon))["blog"] == "old"


class TestApply:
    def file(self, tmp_path: Path, *sites: str) -> str:
        path = tmp_path / "sites.toml"
        path.write_text("\n".join(sites))
        return str(path)

    async def apply(self, daemon: Daemon, *words: str) -> Ended:
        return await daemon.command("apply", *words)

    @twisted_test
    async def test_what_is_new_or_another_is_defined(self, stage: Stage, tmp_path: Path) -> None:
        daemon, one, two = await stage.blog()
        ended = await self.apply(daemon, self.file(tmp_path, site("a", one), site("b", one)))
        assert ended.out.splitlines() == ["added: a, b", "unchanged: 0"]
        assert (await daemon.get("/", host="a.test")).status == 200
        changed = [site("a", one), site("b", one, two), site("c", one)]
        ended = await self.apply(daemon, self.file(tmp_path, *changed))
        assert ended.out.splitlines() == ["added: c", "changed: b", "unchanged: 1"]
        ended = await self.apply(daemon, self.file(tmp_path, *changed[:2]), "--remove")
        assert ended.out.splitlines() == ["removed: c", "unchanged: 2"]
        assert set(await placed(daemon)) == {"a", "b", "blog"}
        await daemon.kill()
        await daemon.start()
        assert set(await placed(daemon)) == {"a", "b", "blog"}

    @twisted_test
    async def test_nothing_changes_if_anything_is_wrong(self, stage: Stage, tmp_path: Path) -> None:
        daemon, one, two = await stage.blog()
        good = site("good", one)
        await self.apply(daemon, self.file(tmp_path, site("held", one), site("moved", one, two)))
        await daemon.ask("migrate", site="moved", to="two")
        await daemon.ask("pause", site="held")
        before = await placed(daemon)
        for wrong, options, status, why in (
            (site("blog", one), "", 2, "sites.blog: is in the configuration file"),
            (site("rival", one, hosts=("good.test",)), "", 2, "rival"),
            (site("moved", one), "", 2, "'two' is missing, and the site is placed there"),
            (site("moved", one, two), "--remove", 1, "held is held by 'pause'"),
        ):
            words = [self.file(tmp_path, good, wrong), *options.split()]
            ended = await self.apply(daemon, *words)
            assert (ended.status, ended.out) == (status, ""), wrong
            assert why in ended.err
            assert await placed(daemon) == before
