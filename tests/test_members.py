"""Nodes that share a real Redis: who is there, who has drained, and who takes whose place."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from fellows_stage import LEASE, Host, fellows, together
from pytest_twisted import ensureDeferred  # type: ignore[import-untyped]
from redis_stage import Redis, redis
from stage_waiting import reactor, until, until_async
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.logger import capturedLogs

from awesomeproxy.cluster.interface import Roll
from awesomeproxy.cluster.redis import LEFT_OUT, TWIN
from awesomeproxy.model import Mode, Placement
from awesomeproxy.node import Node, Stopping
from awesomeproxy.registry.interface import Conflict, NotAllowed, Unreachable


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis for all these tests; each has a prefix of its own."""
    with redis(tmp_path_factory.mktemp("redis")) as started:
        yield started


async def rolled(host: Any, held: Placement, missing: tuple[str, ...] = ()) -> Roll:
    """What a roll-call says, once those are missing that should be."""

    async def call() -> Roll | None:
        roll: Roll = await host.fellows.roll([held])
        return roll if sorted(node for _, node in roll.missing) == sorted(missing) else None

    roll = await until_async(call, f"the roll without {missing}")
    assert roll is not None
    return roll


@ensureDeferred
async def test_nodes_know_each_other(server: Redis, tmp_path: Path) -> None:
    """Who has joined is live for all, and who leaves has left, and joins with another life."""
    async with fellows("a b", server, tmp_path, on_registry_loss='"hold"') as (a, b):
        await until(lambda: a.state(b) == "live" and b.state(a) == "live")
        (there,) = [each for each in a.fellows.members() if each.name == "b"]
        assert (there.life, there.loss, there.lease) == (1, "hold", LEASE)
        assert there.digest == a.fellows.members()[0].digest
        assert abs(a.fellows.now() - b.fellows.now()) < 1.0
        await b.fellows.leave()
        await until(lambda: a.state(b) == "left")
        assert ("member", "b") in a.heard
        await b.fellows.join()
        await until(lambda: a.state(b) == "live")
        assert [each.life for each in a.fellows.members()] == [1, 2]


@ensureDeferred
async def test_a_wrong_clock_ends_no_hold(
    server: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even before the node has joined: it is the registry's that says when a hold is over."""
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + 3600)
    async with fellows("a", server, tmp_path):
        wrong = Host("b", server, tmp_path.name)
        await wrong.open(tmp_path / "wrong")
        try:
            assert abs(wrong.fellows.now() - true()) < 600
        finally:
            await wrong.registry.close()


@ensureDeferred
async def test_a_node_without_beats_is_late_and_then_gone(server: Redis, tmp_path: Path) -> None:
    """Those that beat stay live meanwhile, by the clocks of all."""
    async with fellows("a b c", server, tmp_path) as (a, b, c):
        await together([a, b], 1.5)
        assert a.state(c) == b.state(c) == "late"
        await together([a, b], 1.0)
        assert a.state(c) == b.state(c) == "gone"
        assert a.state(b) == b.state(a) == "live"
        assert "c is silent" in a.fellows.trouble()
        assert "node fence c" in a.fellows.trouble()
        await together([c], 0.2)
        await together([a, b], 1.5)
        assert a.state(c) == "late"  # it was there for a moment
        assert a.fellows.trouble() == ""


@ensureDeferred
async def test_a_roll_names_all_that_have_drained(server: Redis, tmp_path: Path) -> None:
    """Whoever holds it hears when the last one has; a report of an older hold counts for none."""
    async with fellows("a b c", server, tmp_path) as (a, _, c):
        c.drains = False
        held = await a.place("blog")
        roll = await rolled(a, held, missing=("c",))
        assert not roll.complete
        assert ("drained", "blog") not in a.heard
        c.drains = True
        c.fellows.report(c.held()[0], {})
        await until(lambda: ("drained", "blog") in a.heard, "the last report")
        roll = await rolled(a, held)
        assert roll.complete
        assert [each.node for each in roll.reports["blog"]] == ["a", "b", "c"]
        assert {each.generation for each in roll.reports["blog"]} == {held.generation}
        late = c.held()[0]
        c.drains = False
        again = await a.place("blog")
        await until(lambda: "blog" in c.placements and c.placements["blog"] == again)
        c.fellows.report(late, {})
        await c.settle()
        assert not (await rolled(a, again, missing=("c",))).complete


@ensureDeferred
async def test_a_roll_of_what_was_changed_is_a_conflict(server: Redis, tmp_path: Path) -> None:
    """It says what is stored now."""
    async with fellows("a b", server, tmp_path) as (a, b):
        held = await a.place("blog")
        await until(lambda: "blog" in b.registry.view.placements)
        opened = await b.place("blog", Mode.OPEN)
        with pytest.raises(Conflict) as caught:
            await a.fellows.roll([held])
        assert caught.value.stored == opened


@ensureDeferred
async def test_who_has_left_is_not_waited_for(server: Redis, tmp_path: Path) -> None:
    """And whoever waits is told so at once."""
    async with fellows("a b", server, tmp_path) as (a, b):
        b.drains = False
        held = await a.place("blog")
        await rolled(a, held, missing=("b",))
        await b.fellows.leave()
        await until(lambda: ("drained", "blog") in a.heard, "the last report")
        assert (await rolled(a, held)).complete


@ensureDeferred
async def test_a_leave_that_a_fail_over_loses_is_known_to_be_lost(
    server: Redis, tmp_path: Path
) -> None:
    """Pauses wait for that node again, and it can be fenced."""
    async with fellows("a b", server, tmp_path) as (a, b):
        held = await a.place("blog")
        server.keep(tmp_path.name)
        await b.fellows.leave()
        await until(lambda: a.state(b) == "left")
        await b.registry.close()
        server.lose(tmp_path.name)
        a.registry.link.renew("the test breaks it")
        await until(lambda: a.registry.link.epoch == 1 and a.registry.link.ready)
        await rolled(a, held, missing=("b",))
        assert a.state(b) == "live"
        await a.pass_time(2.0)
        assert a.state(b) == "gone"
        await a.fellows.fence("b", "it was stopped")
        assert (await rolled(a, held)).complete


@ensureDeferred
async def test_only_a_lease_that_is_over_is_expired(server: Redis, tmp_path: Path) -> None:
    """After one and a quarter of it, and not if it was renewed meanwhile."""
    async with fellows("a b", server, tmp_path, on_registry_loss='"hold"') as (a, b):
        b.drains = False
        held = await a.place("blog")
        await together([a, b], 0.5)
        await together([a], 1.2)
        assert a.state(b) == "late"
        assert not await a.fellows.expire("b")
        await together([a], 0.6)
        assert a.state(b) == "gone"
        await together([b], 0.2)  # it is there again, and nobody has seen that yet
        assert not await a.fellows.expire("b")
        await rolled(a, held, missing=("b",))
        await together([a], 2.0)
        assert await a.fellows.expire("b")
        await until(lambda: a.state(b) == "expired")
        assert (await rolled(a, held)).complete
        assert await a.fellows.expire("b")  # nobody waits for it, whoever has seen to that


@ensureDeferred
async def test_a_node_that_serves_on_never_expires(server: Redis, tmp_path: Path) -> None:
    """Somebody has to make sure that it does not, and say so."""
    async with fellows("a b", server, tmp_path) as (a, b):
        await together([a], 5.0)
        assert a.state(b) == "gone"
        assert not await a.fellows.expire("b")
        fenced = await a.fellows.fence("b", "it is off")
        assert (fenced.name, fenced.life, fenced.state) == ("b", 1, "fenced")
        assert a.state(b) == "fenced"
        with pytest.raises(NotAllowed, match="fenced already"):
            await a.fellows.fence("b", "twice")
        with pytest.raises(NotAllowed, match="not known"):
            await a.fellows.fence("x", "nobody")


@ensureDeferred
async def test_a_node_is_forgotten_once_it_is_no_member(server: Redis, tmp_path: Path) -> None:
    """By all of them."""
    async with fellows("a b c", server, tmp_path) as (a, b, c):
        with pytest.raises(NotAllowed, match="live; stop it"):
            await a.fellows.remove("b")
        await b.fellows.leave()
        await until(lambda: a.state(b) == "left")
        await a.fellows.remove("b")
        await until(lambda: a.state(b) == c.state(b) == "unknown")
        with pytest.raises(NotAllowed, match="no node b"):
            await a.fellows.remove("b")


@ensureDeferred
async def test_a_command_makes_sure_that_a_node_is_off(server: Redis, tmp_path: Path) -> None:
    """It is run when somebody waits for a node that is gone, and its success counts."""
    written = tmp_path / "fenced"
    command = [sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"]
    keys = {"fence_command": repr([*command, str(written)])}
    async with fellows("a b", server, tmp_path, **keys) as (a, b):
        b.deafen()
        b.drains = False
        held = await a.place("blog")
        await rolled(a, held, missing=("b",))
        assert not await a.fellows.expire("b")
        await together([a], 2.0)
        assert not written.exists()
        assert not await a.fellows.expire("b")
        await until(lambda: ("drained", "blog") in a.heard, "the fence")
        assert written.read_text() == "b"
        await until(lambda: a.state(b) == "fenced")
        assert (await rolled(a, held)).complete


@ensureDeferred
async def test_who_is_cut_off_with_an_old_master_fences_nobody(tmp_path: Path) -> None:
    """There all others seem to be gone, and are well where the replicas are."""
    ran = tmp_path / "ran"
    command = [sys.executable, "-c", f"open({str(ran)!r}, 'w')"]
    keys = {"replicas": "1", "fence_command": repr(command)}
    with redis(tmp_path / "one") as own:
        follow = ("--replicaof", f"127.0.0.1 {own.port}")
        with redis(tmp_path / "two", *follow) as replica:
            async with fellows("a b", own, tmp_path, **keys) as (a, b):
                b.deafen()
                replica.stop(signal.SIGKILL)
                await together([a], 2.0)
                assert a.state(b) == "gone"
                assert not await a.fellows.expire("b")
                assert not a.fellows._fencing._running
                assert not ran.exists()
                replica.start()

                async def fenced() -> bool:
                    await a.fellows.expire("b")
                    return ran.exists()

                await until_async(fenced, "the command")
                await until(lambda: a.state(b) == "fenced")


@ensureDeferred
async def test_a_command_that_fails_fences_nobody(server: Redis, tmp_path: Path) -> None:
    """It is told, and not run again for the same life."""
    ran = tmp_path / "ran"
    command = [sys.executable, "-c", f"open({str(ran)!r}, 'a').write('x'); raise SystemExit(3)"]
    async with fellows("a b", server, tmp_path, fence_command=repr(command)) as (a, b):
        await together([a], 2.0)
        with capturedLogs() as logged:
            await a.fellows.expire("b")
            await until(lambda: "could not be fenced" in str(logged), "its failure")
        assert not await a.fellows.expire("b")
        await a.settle()
        assert a.state(b) == "gone"
        assert ran.read_text() == "x"


@ensureDeferred
async def test_questions_are_answered_by_those_who_are_there(server: Redis, tmp_path: Path) -> None:
    """All answers, some, and one that does not come."""
    async with fellows("a b c", server, tmp_path) as (a, b, c):
        never: Deferred[int] = Deferred()
        for host in (a, b, c):
            host.fellows.answers("double", lambda number, host=host: [host.name, 2 * number])
        a.fellows.answers("slow", lambda: 1)
        b.fellows.answers("slow", lambda: 2)
        c.fellows.answers("slow", lambda: never)
        await until(lambda: a.state(c) == "live")
        everybody = await a.fellows.ask("double", {"number": 4}, 9.0)
        assert everybody == {name: [name, 8] for name in "abc"}
        assert await a.fellows.ask("double", {"number": 1}, 9.0, ["b"]) == {"b": ["b", 2]}
        assert await a.fellows.ask("what?", {}, 9.0) == {}  # which nobody waits for
        asked = a.fellows.ask("slow", {}, 9.0)
        for host in (a, b, c, a):
            await host.settle()
        assert not asked.called
        a.reactor.advance(9.0)
        answers = await asked
        assert answers.items() <= {"a": 1, "b": 2}.items()
        assert "a" in answers
        given_up = a.fellows.ask("slow", {}, 9.0)
        given_up.cancel()
        with pytest.raises(CancelledError):
            await given_up
        assert a.fellows._asking._waiting == {}


@ensureDeferred
async def test_a_node_that_was_left_out_drops_all_and_joins_again(
    server: Redis, tmp_path: Path
) -> None:
    """Nothing that it had in flight goes on; what it holds is reported under its new life."""
    async with fellows("a b", server, tmp_path, on_registry_loss='"hold"') as (a, b):
        held = await a.place("blog")
        await rolled(a, held)
        b.deafen()
        await together([a], 2.0)
        assert a.state(b) == "gone"
        assert await a.fellows.expire("b")
        b.did.clear()
        await b.freeze(2.0)
        await b.pass_time(0.05)
        await until(lambda: "resume" in b.did, "the new life")
        assert b.did == [f"withhold: {LEFT_OUT}", "lapse", "cut", "withhold no more", "resume"]
        assert b.registry.life == 2
        assert b.permit.until > b.reactor.seconds()
        await until(lambda: a.state(b) == "live")
        roll = await rolled(a, held)
        assert [each.node for each in roll.reports["blog"]] == ["a", "b"]


@ensureDeferred
async def test_a_fence_is_heard_of_at_once(server: Redis, tmp_path: Path) -> None:
    """A node that lives drops all without waiting for the time of its next beat."""
    async with fellows("a b", server, tmp_path) as (a, b):
        b.did.clear()
        await a.fellows.fence("b", "it was thought to be off")
        await until(lambda: b.registry.life == 2, "another life")
        await until(lambda: not b.withheld)
        assert b.did == [f"withhold: {LEFT_OUT}", "lapse", "cut", "withhold no more"]


@ensureDeferred
async def test_of_two_daemons_with_one_name_the_first_serves_nothing(
    server: Redis, tmp_path: Path
) -> None:
    """Until the other one has left, or has died; they do not take turns."""
    async with fellows("a b", server, tmp_path) as (a, b):
        twin = Host("a", server, tmp_path.name)
        await twin.open(tmp_path / "twin")
        a.did.clear()  # it may hear of the other at once
        await twin.fellows.join()
        try:
            await together([a, b, twin], 1.0)
            told = f"withhold: {TWIN.format(name='a')}"
            assert a.did[:3] == [told, "lapse", "cut"]
            assert a.did.count("cut") == 1
            a.registry.link.renew("the test breaks it")
            await until(lambda: not a.registry.link.ready)
            await until(lambda: a.registry.link.ready)
            assert (a.registry.life, twin.registry.life) == (1, 2)
            assert "name of its own" in a.fellows.trouble()
            assert "cut" not in twin.did
            held = await b.place("blog")
            assert (await rolled(b, held)).complete
        finally:
            await twin.fellows.leave()
            await twin.registry.close()
        await together([a, b], 0.5)
        await until(lambda: a.registry.life == 3)
        await until(lambda: not a.withheld)
        assert a.fellows.trouble() == ""


@ensureDeferred
async def test_why_the_first_of_two_daemons_holds_is_said(server: Redis, tmp_path: Path) -> None:
    """When its lease is over, too: the registry answers, but not to this one."""
    async with fellows("a", server, tmp_path, on_registry_loss='"hold"') as (a,):
        twin = Host("a", server, tmp_path.name)
        await twin.open(tmp_path / "twin")
        await twin.fellows.join()
        try:
            await together([a, twin], 1.0)
            assert a.withheld == TWIN.format(name="a")
        finally:
            await twin.fellows.leave()
            await twin.registry.close()


@ensureDeferred
async def test_a_frozen_node_that_nobody_left_out_goes_on(server: Redis, tmp_path: Path) -> None:
    """But it has read first what was changed meanwhile."""
    async with fellows("a b", server, tmp_path) as (a, b):
        b.did.clear()
        b.reactor.rightNow += 3 * LEASE
        held = await a.place("blog")
        await b.freeze(0)
        await b.pass_time(0.05)  # a beat from before that was under way says nothing
        await until(lambda: "resume" in b.did, "the answer")
        assert b.did == ["resume"]
        assert b.placements["blog"] == held
        assert b.registry.life == 1


@ensureDeferred
async def test_a_lost_registry_is_held_for_and_come_back_to(tmp_path: Path) -> None:
    """One that holds does when its lease is not renewed; back again, all is reported anew."""
    with redis(tmp_path / "redis") as own:
        async with fellows("a b", own, tmp_path, on_registry_loss='"hold"') as (a, b):
            held = await a.place("blog")
            before = a.registry.link.epoch
            own.stop()
            await until(lambda: not a.registry.link.connected and not b.registry.link.connected)
            assert ("link", "") in a.heard
            assert "cannot be reached" in a.fellows.trouble()
            with pytest.raises(Unreachable):
                await a.fellows.roll([held])
            a.did.clear()
            await together([a], 2.0)
            assert [each.partition(":")[0] for each in a.did] == ["withhold", "lapse", "cut"]
            assert "cannot be reached" in a.withheld
            own.start()
            await until(lambda: a.registry.link.ready and b.registry.link.ready)
            assert a.registry.link.epoch == before + 1
            assert a.did[-1] == "withhold no more"
            assert a.registry.life == 1
            assert a.fellows.trouble() == ""
            assert (await rolled(a, held)).complete
            assert a.state(b) == "live"  # nobody could beat while it was away


@pytest.mark.parametrize("loss", ["serve", "hold"])
@ensureDeferred
async def test_who_joins_is_a_member_when_replicas_know(loss: str, tmp_path: Path) -> None:
    """Or on the side of a new master pauses would be complete without a node that serves."""
    with redis(tmp_path / "one") as own:
        follow = ("--replicaof", f"127.0.0.1 {own.port}")
        with redis(tmp_path / "two", *follow) as replica:
            replica.stop(signal.SIGKILL)
            a = Host("a", own, tmp_path.name, replicas="1", on_registry_loss=f'"{loss}"')
            await a.open(tmp_path / "a")
            joining = Deferred.fromCoroutine(a.fellows.join())
            try:
                await until(lambda: "0 of 1 replicas" in a.fellows.trouble(), "the count")
                assert not joining.called
                assert a.permit.until == inf  # it is not counted yet
                replica.start()
                await joining
                assert a.permit.until < inf
                assert a.registry.life == 1
            finally:
                await a.fellows.leave()
                await a.registry.close()


@ensureDeferred
async def test_a_daemon_that_waits_to_be_a_member_can_be_stopped(
    server: Redis, tmp_path: Path
) -> None:
    """It has served nothing, and nobody waits for it."""
    settings = Host("a", server, tmp_path.name, replicas="1").settings
    node = Node(reactor, "test", replace(settings, state_dir=str(tmp_path)))
    starting = Deferred.fromCoroutine(node.start(lambda path: fail(AssertionError(path))))
    await until(lambda: "0 of 1 replicas" in node.cluster.trouble(), "the count")
    await node.stop()
    with pytest.raises(Stopping):
        await starting


@ensureDeferred
async def test_a_lease_is_renewed_by_what_replicas_have(tmp_path: Path) -> None:
    """Not by a Redis alone, in whose place there may be another by now; nor is a roll complete."""
    keys = {"replicas": "1", "on_registry_loss": '"hold"'}
    with redis(tmp_path / "one") as own:
        follow = ("--replicaof", f"127.0.0.1 {own.port}")
        with redis(tmp_path / "two", *follow) as replica:
            replica.until("master_link_status:up", "INFO", "replication")
            async with fellows("a", own, tmp_path, **keys) as (a,):

                async def released() -> bool:
                    await a.pass_time(0.05)
                    return not a.withheld and a.permit.until > a.reactor.seconds() + LEASE / 2

                await until_async(released, "a beat that counts")
                assert await a.registry.link.replicas() == 1
                replica.stop(signal.SIGKILL)
                await a.pass_time(1.2)
                assert a.withheld
                await until(lambda: "0 of 1 replicas" in a.fellows.trouble(), "the count")
                assert await a.registry.link.replicas() == 0
                roll = await rolled(a, await a.place("blog"))
                assert (roll.missing, roll.firm, roll.complete) == ((), False, False)
                replica.start()
                await until_async(released, "a beat that counts again")


@ensureDeferred
async def test_who_was_left_out_holds_until_replicas_know(tmp_path: Path) -> None:
    """It is a member again, but those who follow another master would not wait for it."""
    with redis(tmp_path / "one") as own:
        follow = ("--replicaof", f"127.0.0.1 {own.port}")
        with redis(tmp_path / "two", *follow) as replica:
            async with fellows("a b", own, tmp_path, replicas="1") as (a, b):
                await a.fellows.fence("b", "it is off")
                replica.stop(signal.SIGKILL)
                await b.pass_time(0.25)
                await until(lambda: b.registry.life == 2, "its new life")
                await until(lambda: "0 of 1 replicas" in b.fellows.trouble(), "the count")
                await b.pass_time(0.25)
                assert b.withheld == LEFT_OUT
                replica.start()

                async def released() -> bool:
                    await b.pass_time(0.05)
                    return not b.withheld

                await until_async(released, "a beat that counts")


@ensureDeferred
async def test_one_node_inherits_a_migration(server: Redis, tmp_path: Path) -> None:
    """Its owner is gone; of those that would, one has it, and its owner is refused."""
    async with fellows("a b c", server, tmp_path) as (a, b, c):
        opened = await a.place("blog", Mode.OPEN)
        entry = await a.registry.begin("blog", "old", "new", opened, opened.generation)
        assert (entry.owner, entry.life) == ("a", 1)
        await until(lambda: entry.id in b.registry.view.entries)
        await until(lambda: entry.id in c.registry.view.entries)
        await together([b, c], 1.2)
        assert b.taken == c.taken == []
        await together([b, c], 1.0)
        await until(lambda: b.taken or c.taken, "the heir")
        await together([b, c], 1.0)
        (taken,) = b.taken + c.taken
        assert taken.owner in ("b", "c")
        with pytest.raises(NotAllowed, match="was taken over"):
            await a.registry.step(entry.id, "sync")


@ensureDeferred
async def test_a_migration_of_a_node_that_has_left_is_inherited_at_once(
    server: Redis, tmp_path: Path
) -> None:
    """Nothing has to be waited for."""
    async with fellows("a b", server, tmp_path) as (a, b):
        opened = await a.place("blog", Mode.OPEN)
        entry = await a.registry.begin("blog", "old", "new", opened, opened.generation)
        await until(lambda: entry.id in b.registry.view.entries)
        await a.fellows.leave()
        await until(lambda: b.state(a) == "left")
        b.reactor.advance(1.0)
        (taken,) = await until(lambda: b.taken, "the heir")
        assert (taken.id, taken.owner, taken.life) == (entry.id, "b", 1)


@ensureDeferred
async def test_a_node_that_is_back_inherits_what_it_had_begun(
    server: Redis, tmp_path: Path
) -> None:
    """Before others do: it has what is left of it."""
    async with fellows("a b", server, tmp_path) as (a, b):
        opened = await a.place("blog", Mode.OPEN)
        entry = await a.registry.begin("blog", "old", "new", opened, opened.generation)
        await until(lambda: entry.id in b.registry.view.entries)
        await b.fellows.fence("a", "by mistake")
        await a.pass_time(0.25)
        await until(lambda: a.registry.life == 2, "its next life")
        await until(lambda: b.state(a) == "live")
        await together([a, b], 1.2)
        (taken,) = await until(lambda: a.taken, "the heir")
        assert (taken.owner, taken.life) == ("a", 2)
        await together([a, b], 1.5)
        assert b.taken == []


@ensureDeferred
async def test_without_a_registry_a_node_answers_itself(tmp_path: Path) -> None:
    """At once: nobody else would hear the question."""
    with redis(tmp_path / "redis") as own:
        async with fellows("a b", own, tmp_path) as (a, b):
            for host in (a, b):
                host.fellows.answers("name", lambda host=host: host.name)
            await until(lambda: a.state(b) == "live")
            own.stop()
            await until(lambda: not a.registry.link.connected)
            assert await a.fellows.ask("name", {}, 9.0) == {"a": "a"}
