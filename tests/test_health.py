"""Checks of servers, and knocks at those that refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plane_stage import (
    END,
    GET,
    OK,
    Origin,
    Stage,
    Wire,
    always,
    answering,
    eventually,
    fields_of,
    ok,
    one_request,
    stage,
    turns,
    twisted_test,
)

from awesomeproxy.model import Backend, HealthCheck, Mode, Server
from awesomeproxy.proxy.health import Unwell, check
from awesomeproxy.proxy.servers import LiveBackend, LiveServer

CHECK = HealthCheck(path="/up?x", interval=2.0, timeout=1.0, rise=2, fall=3)
HALF = b"HTTP/1.1 200 OK\r\nContent-Le"


class Patient:
    """A server whose checks are answered with what is in ``answer``, all else with OK."""

    def __init__(self, name: bytes = b"ok") -> None:
        self.answer: bytes | None = OK
        self.name = name
        self.checks = 0

    async def __call__(self, wire: Wire) -> None:
        while True:
            head, _ = await one_request(wire)
            if not head.startswith(b"GET /up"):
                wire.write(ok(self.name))
                continue
            self.checks += 1
            if self.answer is not None:
                wire.write(self.answer)
            else:
                wire.close()

    async def checked(self, s: Stage, times: int) -> None:
        """Let so many checks happen."""
        before = self.checks
        while self.checks < before + times:
            await s.pass_time(0.25)
        await turns(10)


def describe(s: Stage, number: int = 0) -> str:
    server = str(s.origins[number].server)
    return s.live.observed().servers["here"][server]


def live(server: Server) -> LiveServer:
    """A server as the data plane has it."""
    return LiveServer(server, LiveBackend(Backend("b", (server,))))


async def ask(s: Stage, server: Server, health: HealthCheck | None = CHECK) -> str:
    """Why a server is unwell, or nothing."""
    try:
        await check(s.plane, live(server), health, "blog.example", 1.0)
    except Unwell as why:
        return str(why)
    return ""


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (OK, ""),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nmore to c", ""),
        (b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "it answered 500"),
        (b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 404 No\r\n\r\n", "it answered 404"),
        (b"nonsense\r\n\r\n", "not well-formed"),
    ],
)
@twisted_test
async def test_a_check_judges_by_the_status(answer: bytes, why: str) -> None:
    async with stage(always(answer)) as s:
        found = await ask(s, s.origin.server)
        assert (why in found) if why else not found


@twisted_test
async def test_a_check_says_what_it_is() -> None:
    async with stage(answering) as s:
        await ask(s, s.origin.server)
        head = s.origin.received
        assert head.startswith(b"GET /up?x HTTP/1.1\r\n")
        fields = fields_of(head)
        assert fields[b"host"] == b"blog.example"
        assert fields[b"user-agent"] == b"awesomeproxy-health-check"
        await eventually(lambda: s.origin.wires[0].closed)


async def silent(wire: Wire) -> None:
    await wire.until(END)


async def gone(wire: Wire) -> None:
    await wire.until(END)
    wire.close()


@pytest.mark.parametrize("script", [silent, always(HALF)], ids=["silent", "slow"])
@twisted_test
async def test_a_check_that_is_not_answered_in_time_fails(script: Any) -> None:
    async with stage(script) as s:
        result = check(s.plane, live(s.origin.server), CHECK, "h", 1.0)
        await eventually(lambda: s.origin.received)
        await s.pass_time(1.25)
        with pytest.raises(Unwell, match="within 1 s"):
            await result


@twisted_test
async def test_a_check_says_why_it_failed() -> None:
    async with stage(gone) as s:
        assert "without an answer" in await ask(s, s.origin.server)
        await s.origin.refuse()
        assert "refused" in await ask(s, s.origin.server)
        assert "No such file" in await ask(s, Server("unix", path="/n"))
        assert await ask(s, Server("http", "no.invalid", 1))


@pytest.mark.parametrize("health", [CHECK, None], ids=["asks", "knocks"])
@twisted_test
async def test_a_check_that_is_cancelled_says_nothing_to_the_server(
    health: HealthCheck | None,
) -> None:
    async with stage() as s:
        result = check(s.plane, live(s.origin.server), health, "h", 1.0)
        result.cancel()
        with pytest.raises(Unwell):
            await result
        await turns(20)
        assert not s.origin.received


@twisted_test
async def test_a_server_may_have_a_name() -> None:
    origin = Origin(answering).listen()
    async with stage() as s:
        server = Server("http", "localhost", origin.number)
        result = check(s.plane, live(server), CHECK, "h", 5.0)
        await s.resolving(lambda: result.called)
        await result
    await origin.refuse()


@twisted_test
async def test_a_server_falls_and_rises_with_its_checks() -> None:
    patient, other = Patient(b"0"), Patient(b"1")
    async with stage(patient, other, backend={"health": CHECK}) as s:
        await patient.checked(s, 1)
        assert describe(s) == "up"
        patient.answer = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
        await patient.checked(s, 2)
        assert describe(s) == "up"
        await patient.checked(s, 1)
        await eventually(lambda: describe(s) == "down: it answered 503")
        assert {(await s.ask()).body for _ in range(4)} == {b"1"}
        patient.answer = OK
        await patient.checked(s, 1)
        assert describe(s) != "up"
        await patient.checked(s, 1)
        await eventually(lambda: describe(s) == "up")
        assert {(await s.ask()).body for _ in range(4)} == {b"0", b"1"}


@twisted_test
async def test_results_that_vary_change_nothing() -> None:
    patient = Patient()
    async with stage(patient, backend={"health": CHECK}) as s:
        for _ in range(3):
            patient.answer = None
            await patient.checked(s, 2)
            patient.answer = OK
            await patient.checked(s, 1)
            assert describe(s) == "up"


@twisted_test
async def test_requests_wait_until_the_only_server_is_well_again() -> None:
    patient = Patient()
    async with stage(patient, backend={"health": CHECK}) as s:
        patient.answer = None
        await patient.checked(s, 3)
        await eventually(lambda: describe(s) != "up")
        client = await s.connect(GET)
        await s.held()
        await s.pass_time(3)
        assert s.gate.waiting  # knocking helps nobody whom the check has found unwell
        patient.answer = OK
        await patient.checked(s, 2)
        assert (await client.answer()).status == 200


@twisted_test
async def test_nothing_is_asked_of_a_held_backend() -> None:
    patient = Patient()
    async with stage(patient, backend={"health": CHECK}) as s:
        await patient.checked(s, 1)
        s.place(Mode.HOLDING)
        await s.drained()
        before = len(s.origin.wires)
        await s.pass_time(20)
        assert len(s.origin.wires) == before
        s.place()
        await patient.checked(s, 1)


@twisted_test
async def test_a_check_that_is_under_way_is_broken_off_by_a_hold() -> None:
    async with stage(backend={"health": CHECK}) as s:
        for number in range(40):
            s.time.clock.advance(CHECK.interval)
            await turns(number % 8)  # until somewhere in the middle of a check
            s.place(Mode.HOLDING)
            await s.drained()
            await turns(5)  # what had been sent before arrives
            before = s.origin.received
            s.time.clock.advance(0.1)
            await turns(10)
            assert s.origin.received == before
            s.place()
        assert b"GET /up" in s.origin.received


@twisted_test
async def test_the_place_where_a_site_is_not_is_checked_while_it_is_held() -> None:
    patient = Patient()
    async with stage(patient, None, backend={"health": CHECK}) as s:
        s.place(Mode.HOLDING, "only1")
        await patient.checked(s, 3)
        assert s.gate.holding


@twisted_test
async def test_the_checks_of_a_definition_end_with_it() -> None:
    patient = Patient()
    async with stage(patient, backend={"health": CHECK}) as s:
        await patient.checked(s, 1)
        s.define(backends={"here": replace(s.site.backends["here"], health=None)})
        await turns(10)
        before = patient.checks
        await s.pass_time(10)
        assert patient.checks == before


@twisted_test
async def test_a_knock_brings_no_request() -> None:
    async with stage() as s:
        await s.origin.refuse()
        await s.connect(GET)
        await s.held()
        knocked = Origin()
        knocked.number = s.origin.number
        s.define(max_in_flight=1)
        s.place(Mode.HOLDING)
        knocked.listen()
        await s.pass_time(5)
        assert not knocked.wires
        s.place()
        server = await knocked.accept()
        await one_request(server)
        server.write(OK)
        assert (await s.clients[0].answer()).status == 200
        assert knocked.received.count(b"HTTP") == 1
        await knocked.refuse()
