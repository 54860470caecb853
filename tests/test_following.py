"""Nodes that share a registry: what one is told the others do, and a receipt is of them all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_fake import Nodes, pause, some_nodes
from plane_stage import (
    GET,
    OK,
    Origin,
    Wire,
    always,
    eventually,
    ok,
    one_request,
    reactor,
    turns,
    twisted_test,
)
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from awesomeproxy.control import commands, status
from awesomeproxy.control.table import Call
from awesomeproxy.defining import define_all
from awesomeproxy.following import Everything
from awesomeproxy.migrate import planning
from awesomeproxy.migrate.waiting import LeftUnfinished, RolledBack
from awesomeproxy.migrating import InTheWay, NotMigrating
from awesomeproxy.model import Ledger, Mode
from awesomeproxy.node import Node
from awesomeproxy.pausing import NotDrained, Overtaken
from awesomeproxy.registry.interface import Unreachable

QUIET = Call(1, lambda method, params: None)


def table(*origins: Origin, **more: Any) -> dict[str, Any]:
    """The definition of a site with a backend ``on0``, ``on1`` and so on at each server."""
    backends = {
        f"on{number}": {"servers": [f"http://127.0.0.1:{origin.number}"]}
        for number, origin in enumerate(origins)
    }
    return {"hosts": ["blog.example"], "backend": "on0", "backends": backends, **more}


async def connect(nodes: Nodes, name: str, data: bytes = GET) -> Wire:
    """A client of a node, that asks."""
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", nodes.port(name))
    wire: Wire = await connectProtocol(endpoint, Wire())  # type: ignore[no-untyped-call]
    wire.write(data)
    return wire


async def ask(nodes: Nodes, name: str) -> int:
    """The status that a node answers with."""
    wire = await connect(nodes, name)
    answer = await wire.answer()
    wire.abort()
    return answer.status


async def defined(nodes: Nodes, *origins: Origin, by: str = "web1", **more: Any) -> None:
    """Define the blog at one node, and wait until all have it."""
    await define_all(nodes[by], {"blog": table(*origins, **more)})
    await eventually(
        lambda: all("blog" in node.sites for node in nodes.nodes.values()), "a definition"
    )


def owner(node: Node) -> str | None:
    """Which other node migrates the blog, as one knows."""
    entry = node.migrating.entry_of("blog")
    return entry.owner if entry is not None else None


def modes(nodes: Nodes) -> set[tuple[Mode, str]]:
    """What all nodes do with the blog."""
    found = [node.plane.observed("blog") for node in nodes.nodes.values()]
    return {(each.mode, each.backend) for each in found if each is not None}


async def _with(
    directory: Path,
    test: Callable[[Nodes, list[Origin]], Awaitable[None]],
    *scripts: Callable[[Wire], Any] | None,
) -> None:
    origins = [Origin(script).listen() for script in scripts]
    try:
        async with some_nodes(directory, "web1", "web2") as nodes:
            await test(nodes, origins)
    finally:
        for origin in origins:
            await origin.refuse()


@twisted_test
async def test_a_site_that_is_added_at_one_node_is_served_by_all(tmp_path: Path) -> None:
    """And no more by any, once it is removed at another."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        assert [await ask(nodes, name) for name in ("web1", "web2")] == [200, 200]
        await nodes["web2"].registry.undefine("blog")
        await eventually(lambda: not any(n.sites for n in nodes.nodes.values()), "its end")
        assert await ask(nodes, "web1") == 404

    await _with(tmp_path, test, always(OK))


@twisted_test
async def test_a_definition_may_be_heard_before_its_placement(tmp_path: Path) -> None:
    """The message with that was lost; the site is served when it is read."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        nodes.shared.silent.add("web2")
        await define_all(nodes["web1"], {"blog": table(*origins)})
        following = nodes["web2"].membership.following
        following.take_over(Everything([], ["blog"], []))
        assert "is not placed" in nodes["web2"].misfits["blog"]
        following.take_over(Everything(["blog"], [], []))
        assert nodes["web2"].misfits == {}
        assert await ask(nodes, "web2") == 200

    await _with(tmp_path, test, always(OK))


@twisted_test
async def test_a_receipt_has_a_report_of_every_node(tmp_path: Path) -> None:
    """It is not given while one of them has a request in flight; a resume lets all go on."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        client = await connect(nodes, "web2")
        server = await origins[0].accept()
        await one_request(server)
        pausing = pause(nodes["web1"], "blog")
        await eventually(lambda: {mode for mode, _ in modes(nodes)} == {Mode.HOLDING}, "the hold")
        assert not pausing.called
        server.write(OK)
        await client.answer()
        receipt = await pausing
        assert [report.node for report in receipt.workers] == ["web1", "web2"]
        assert {report.generation for report in receipt.workers} == {receipt.generation}
        assert not any(report.in_flight for report in receipt.workers)
        await nodes["web2"].pauses.resume("blog", "resume")
        await eventually(lambda: {mode for mode, _ in modes(nodes)} == {Mode.OPEN}, "the resume")
        client.abort()

    await _with(tmp_path, test, None)


@twisted_test
async def test_a_pause_fails_that_a_node_says_nothing_of(tmp_path: Path) -> None:
    """It is named, and the pause is undone everywhere."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        nodes.shared.silent.add("web2")
        with pytest.raises(NotDrained, match=r"after 0\.1 s web2 had not said.*undone"):
            await pause(nodes["web1"], "blog", timeout=0.1)
        nodes.shared.silent.clear()
        nodes.shared.changed()
        await eventually(lambda: {mode for mode, _ in modes(nodes)} == {Mode.OPEN}, "the undoing")

    await _with(tmp_path, test, always(OK))


@twisted_test
async def test_a_pause_that_fails_undoes_none_of_another_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose operator has a receipt by then, though it met a hold that was there."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        lost = Unreachable("the registry cannot be reached")
        monkeypatch.setattr(nodes["web1"].cluster, "roll", lambda held: fail(lost))
        failing = pause(nodes["web1"], "blog", 1.0)
        await eventually(lambda: {mode for mode, _ in modes(nodes)} == {Mode.HOLDING}, "the hold")
        receipt = await pause(nodes["web2"], "blog")
        with pytest.raises(NotDrained, match="held for a pause at another node"):
            await failing
        stored = (await nodes["web2"].registry.placements())["blog"]
        assert (stored.mode, stored.generation) == (Mode.HOLDING, receipt.generation)

    await _with(tmp_path, test, None)


@twisted_test
async def test_nobody_waits_for_a_node_whose_lease_is_over(tmp_path: Path) -> None:
    """It holds by itself then; the receipt has no report of it."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        nodes.shared.silent.add("web2")
        pausing = pause(nodes["web1"], "blog")
        await eventually(lambda: nodes["web1"].plane.sites["blog"].drained, "the drain")
        nodes.shared.become("web2", "gone")
        receipt = await pausing
        assert [report.node for report in receipt.workers] == ["web1"]
        assert nodes.shared.states["web2"] == "expired"
        nodes.shared.silent.clear()

    await _with(tmp_path, test, always(OK))


@twisted_test
async def test_a_resume_at_another_node_ends_a_pause_that_waits(tmp_path: Path) -> None:
    """Who has asked for it is told who was it."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        client = await connect(nodes, "web2")
        server = await origins[0].accept()
        pausing = pause(nodes["web1"], "blog")
        await eventually(lambda: {mode for mode, _ in modes(nodes)} == {Mode.HOLDING}, "the hold")
        await nodes["web2"].pauses.resume("blog", "resume")
        with pytest.raises(Overtaken) as caught:
            await pausing
        assert caught.value.winner.by == "resume"
        server.write(OK)
        client.abort()

    await _with(tmp_path, test, None)


@twisted_test
async def test_a_node_that_starts_holds_what_is_held_before_it_serves(tmp_path: Path) -> None:
    """Its first request waits, and a pause that comes then has its report as well."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        await pause(nodes["web1"], "blog")
        await nodes.start("web3")
        client = await connect(nodes, "web3")
        await eventually(lambda: nodes["web3"].plane.sites["blog"].gate.waiting, "a held request")
        assert not origins[0].received
        receipt = await pause(nodes["web2"], "blog")
        assert [report.node for report in receipt.workers] == ["web1", "web2", "web3"]
        resumed = await commands.resume(nodes["web1"], QUIET, site="blog")
        assert resumed["released"] == 1
        assert (await client.answer()).status == 200
        client.abort()

    await _with(tmp_path, test, always(OK))


@twisted_test
async def test_a_migration_moves_a_site_on_all_nodes(tmp_path: Path) -> None:
    """It waits for what another node has in flight, and its ledger counts what that held."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        client = await connect(nodes, "web2")
        server = await origins[0].accept()
        moving = nodes["web1"].moves.begin(
            planning.make(nodes["web1"].moves.world(), "blog", "on1", {}),
            max_pause=30.0,
            force=False,
            by="migrate",
            progress=lambda *_, **__: None,
        )
        await eventually(lambda: {mode for mode, _ in modes(nodes)} == {Mode.HOLDING}, "the hold")
        waiting = await connect(nodes, "web2")
        await eventually(lambda: nodes["web2"].plane.sites["blog"].gate.waiting, "a held request")
        server.write(OK)
        await client.answer()
        ledger = await moving
        assert (ledger.outcome, ledger.held, ledger.released) == ("done", 1, 1)
        assert ledger.silent == ()
        assert (await waiting.answer()).status == 200
        await eventually(lambda: modes(nodes) == {(Mode.OPEN, "on1")}, "the move")
        client.abort()
        waiting.abort()

    await _with(tmp_path, test, None, always(OK))


@twisted_test
async def test_what_was_counted_is_added_up_of_sites_at_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of very many it is that of the node that is asked, unless it is asked of one."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        assert [await ask(nodes, name) for name in ("web1", "web2", "web2")] == [200] * 3
        await eventually(lambda: not any(at_work(nodes)), "idle connections to be closed")
        assert await counted(nodes["web1"]) == ("everywhere", 3)
        monkeypatch.setattr(status, "COUNTED", 0)
        assert await counted(nodes["web1"]) == ("here", 1)
        assert await counted(nodes["web1"], "blog") == ("everywhere", 3)

    def at_work(nodes: Nodes) -> list[dict[str, Any]]:
        return [node.answering.status()["sites"] for node in nodes.nodes.values()]

    async def counted(node: Node, site: str | None = None) -> tuple[str, int]:
        told = await status.status(node, QUIET, site)
        return told["counted"], told["sites"][0]["counters"]["requests"]

    await _with(tmp_path, test, always(ok(b"", b"Connection: close")))


@twisted_test
async def test_a_site_that_does_not_fit_a_node_is_held_there(tmp_path: Path) -> None:
    """It says why, and serves the others; who has what is missing serves it."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await nodes.start(
            "web3",
            '[databases.shop]\nprotocol = "tcp"\nendpoint = "tcp:port=0:interface=127.0.0.1"\n'
            'backend = "a"\nbackends.a.server = "tcp://127.0.0.1:9"\n',
        )
        await defined(nodes, *origins, by="web3", uses=["shop"])
        assert await ask(nodes, "web3") == 200
        client = await connect(nodes, "web1")
        await eventually(lambda: nodes["web1"].plane.sites["blog"].gate.waiting, "a held request")
        assert "is not a database" in nodes["web1"].observed("blog").trouble
        client.abort()
        server = {"servers": ["http://127.0.0.1:9"]}
        other = {"hosts": ["other.test"], "backend": "a", "backends": {"a": server}}
        asked: Any = None  # nothing is told of how far it is
        await commands.site_add(nodes["web1"], asked, name="other", definition=other)
        assert nodes["web1"].placement("other").backend == "a"

    await _with(tmp_path, test, always(OK))


async def moving(
    nodes: Nodes, origins: list[Origin], at: str = "web2"
) -> tuple[Deferred[Ledger], Wire, Wire]:
    """A migration that ``web1`` has begun, and that waits for what is in flight at a node."""
    await defined(nodes, *origins)
    client = await connect(nodes, at)
    server = await origins[0].accept()
    migration = Deferred.fromCoroutine(
        nodes["web1"].migrating.migrate(
            "blog",
            "on1",
            databases={},
            max_pause=60.0,
            force=False,
            by="migrate",
            progress=lambda *_, **__: None,
        )
    )
    await eventually(lambda: {mode for mode, _ in modes(nodes)} == {Mode.HOLDING}, "the hold")
    await eventually(lambda: owner(nodes["web2"]) == "web1", "the entry")
    return migration, client, server


@pytest.mark.parametrize("how", ["gone", "started anew"])
@twisted_test
async def test_a_ledger_names_the_nodes_that_are_not_in_its_sums(how: str, tmp_path: Path) -> None:
    """What a node has counted that ends meanwhile is lost."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        migration, client, server = await moving(nodes, origins, at="web1")
        if how == "gone":
            nodes.shared.silent.add("web2")
            nodes.shared.become("web2", "gone")
        else:
            await nodes.stop("web2")
            await nodes.start("web2")
        server.write(OK)
        await client.answer()
        ledger = await migration
        assert (ledger.outcome, ledger.silent) == ("done", ("web2",))
        (entry,) = await nodes["web1"].registry.history("blog", 1)
        assert entry.ledger is not None
        assert entry.ledger["silent"] == ["web2"]
        client.abort()

    await _with(tmp_path, test, None, always(OK))


@twisted_test
async def test_a_migration_is_called_off_from_another_node(tmp_path: Path) -> None:
    """Which knows of it, and lets nobody else begin one."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        migration, client, server = await moving(nodes, origins)
        with pytest.raises(InTheWay, match="is being migrated to on1 by node web1"):
            nodes["web2"].migrating.check_idle("blog")
        assert await nodes["web2"].migrating.stop("blog", "it was aborted") == "on1"
        with pytest.raises(RolledBack, match="it was aborted"):
            await migration
        await eventually(lambda: modes(nodes) == {(Mode.OPEN, "on0")}, "the way back")
        await eventually(lambda: owner(nodes["web2"]) is None, "the end")
        with pytest.raises(NotMigrating):
            await nodes["web2"].migrating.stop("blog", "it was aborted")
        server.write(OK)
        client.abort()

    await _with(tmp_path, test, None, always(OK))


@twisted_test
async def test_a_migration_that_another_node_takes_over_is_left_to_it(tmp_path: Path) -> None:
    """It rolls back what had not committed; the first does nothing any more."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        migration, client, server = await moving(nodes, origins)
        (entry,) = await nodes["web2"].registry.unfinished()
        taken = await nodes["web2"].registry.take_over(entry.id, entry.owner, entry.life)
        assert taken.owner == "web2"
        nodes["web2"].membership.take_up([taken])
        with pytest.raises((LeftUnfinished, RolledBack)):
            await migration
        await eventually(lambda: modes(nodes) == {(Mode.OPEN, "on0")}, "the way back")
        store = nodes.shared.store
        await eventually(lambda: not store.entries(None, unfinished=True, limit=-1), "the end")
        (last,) = await nodes["web1"].registry.history("blog", 1)
        assert (last.state, last.owner) == ("rolled back", "web2")
        server.write(OK)
        client.abort()

    await _with(tmp_path, test, None, always(OK))


@twisted_test
async def test_a_node_that_was_killed_ends_what_it_has_left(tmp_path: Path) -> None:
    """Before it serves anything: its own entry, and nobody else's."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        registry: Any = nodes["web1"].registry
        seen = nodes["web1"].placement("blog")
        hold = replace(seen, mode=Mode.HOLDING, by="migrate", then="resume")
        nodes.shared.store.me = ("web3", 1)
        entry = await nodes.shared.registry.begin("blog", "on0", "on1", hold, seen.generation)
        nodes.shared.changed()
        await eventually(lambda: owner(nodes["web1"]) == "web3", "the entry")
        await nodes.start("web3")
        await eventually(lambda: modes(nodes) == {(Mode.OPEN, "on0")}, "the way back")
        (last,) = await registry.history("blog", 1)
        assert (last.id, last.state) == (entry.id, "rolled back")

    await _with(tmp_path, test, always(OK), always(OK))


@twisted_test
async def test_what_is_withheld_waits_whatever_the_registry_says(tmp_path: Path) -> None:
    """And goes on when it is not any more."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        nodes["web1"].membership.withhold("the registry cannot be reached")
        client = await connect(nodes, "web1")
        await eventually(lambda: nodes["web1"].plane.sites["blog"].gate.waiting, "a held request")
        assert nodes["web1"].observed("blog").trouble == "the registry cannot be reached"
        assert await ask(nodes, "web2") == 200
        nodes["web1"].membership.withhold("")
        assert (await client.answer()).status == 200
        client.abort()

    await _with(tmp_path, test, always(OK))


@twisted_test
async def test_what_is_left_of_a_removed_site_is_cut_as_well(tmp_path: Path) -> None:
    """Others may define it again meanwhile, and are told that this node has nothing in flight."""

    async def test(nodes: Nodes, origins: list[Origin]) -> None:
        await defined(nodes, *origins)
        client = await connect(nodes, "web1")
        server = await origins[0].accept()
        await one_request(server)
        await nodes["web1"].registry.undefine("blog")
        await eventually(lambda: not nodes["web1"].sites, "its end")
        assert nodes["web1"].plane.is_leaving("blog")
        assert nodes["web1"].membership.cut_all() == 1
        await eventually(lambda: not nodes["web1"].plane.is_leaving("blog"), "the cut")
        client.abort()

    await _with(tmp_path, test, None)


@twisted_test
async def test_a_database_is_held_only_when_all_nodes_have_drained_its_sites(
    tmp_path: Path,
) -> None:
    """A request in flight on another node may need one more connection to it."""
    origins = [Origin(None).listen() for _ in range(3)]
    shop = (
        '[databases.shop]\nprotocol = "tcp"\nendpoint = "tcp:port=0:interface=127.0.0.1"\n'
        f'backend = "a"\nbackends.a.server = "tcp://127.0.0.1:{origins[1].number}"\n'
        f'backends.b.server = "tcp://127.0.0.1:{origins[2].number}"\n'
    )
    try:
        async with some_nodes(tmp_path, "web1", "web2", more=shop) as nodes:
            await defined(nodes, origins[0], uses=["shop"])
            client = await connect(nodes, "web2")
            server = await origins[0].accept()
            migration = nodes["web1"].migrating.migrate(
                "database:shop",
                "b",
                databases={},
                max_pause=60.0,
                force=False,
                by="migrate",
                progress=lambda *_, **__: None,
            )
            ended = Deferred.fromCoroutine(migration)
            await eventually(lambda: {m for m, _ in modes(nodes)} == {Mode.HOLDING}, "the hold")
            await turns(20)
            databases = [node.placement("database:shop") for node in nodes.nodes.values()]
            assert {(each.mode, each.backend) for each in databases} == {(Mode.OPEN, "a")}
            server.write(OK)
            assert (await ended).outcome == "done"
            await eventually(lambda: modes(nodes) == {(Mode.OPEN, "on0")}, "the release")
            databases = [node.placement("database:shop") for node in nodes.nodes.values()]
            assert {(each.mode, each.backend) for each in databases} == {(Mode.OPEN, "b")}
            client.abort()
    finally:
        for origin in origins:
            await origin.refuse()
