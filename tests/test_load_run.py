"""The load client against servers that answer well, badly, late and not at all."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from stage_waiting import until
from twisted.internet import reactor as the_reactor
from twisted.internet import ssl
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from awesomeproxy.load.alarm import KernelAlarm, ReactorAlarm
from awesomeproxy.load.outcome import RequestOutcome
from awesomeproxy.load.plan import Plan, PlanError
from awesomeproxy.load.result import Progress
from awesomeproxy.load.run import Run, run

reactor: Any = the_reactor

F = TypeVar("F", bound=Callable[..., object])
twisted_test: Callable[[F], F] = pytest_twisted.ensureDeferred
twisted_fixture: Callable[[F], F] = pytest_twisted.async_yield_fixture

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nEnd: yes\r\n\r\n"
)


class Talk(Protocol):
    """A server's side of a connection: hands each whole request to the test."""

    transport: Any

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = b""
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.server.talks.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            self.server.requests.append(head + b"\r\n\r\n" + rest[:length])
            self.server.answer(self)

    def connectionLost(self, reason: object = None) -> None:
        self.lost.callback(None)

    def say(self, data: bytes, *, end: bool = False) -> None:
        self.transport.write(data)
        if end:
            self.transport.loseConnection()


class Server(Factory):
    """Listens, and remembers what it was asked."""

    noisy = False

    def __init__(self, answer: Callable[[Talk], object]) -> None:
        self.answer = answer
        self.talks: list[Talk] = []
        self.requests: list[bytes] = []
        self.port: IListeningPort

    def buildProtocol(self, addr: object) -> Talk:
        return Talk(self)

    def url(self, path: str = "/{n}", scheme: str = "http") -> str:
        address: Any = self.port.getHost()
        return f"{scheme}://127.0.0.1:{address.port}{path}"

    def targets(self) -> list[str]:
        return [request.split(b" ", 2)[1].decode() for request in self.requests]

    async def close(self) -> None:
        await maybeDeferred(self.port.stopListening)
        for talk in self.talks:
            if not talk.lost.called:
                talk.transport.abortConnection()
            await talk.lost


Serve = Callable[..., Server]


@twisted_fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers that answer with the function given."""
    servers: list[Server] = []

    def start(answer: Callable[[Talk], object], unix: str = "", tls: Any = None) -> Server:
        server = Server(answer)
        if unix:
            server.port = reactor.listenUNIX(unix, server)
        elif tls is not None:
            server.port = reactor.listenSSL(0, server, tls, interface="127.0.0.1")
        else:
            server.port = reactor.listenTCP(0, server, interface="127.0.0.1")
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.close()


def says(data: bytes, *, end: bool = False) -> Callable[[Talk], None]:
    return lambda talk: talk.say(data, end=end)


def aborts(data: bytes = b"") -> Callable[[Talk], None]:
    """Send ``data`` if any, then reset the connection once it has arrived."""

    def answer(talk: Talk) -> None:
        talk.transport.write(data)
        reactor.callLater(0.02, talk.transport.abortConnection)

    return answer


def few(url: str, **options: Any) -> Plan:
    """A plan of four requests within 20 ms."""
    return Plan(url, **{"rate": 200, "duration": 0.02, "timeout": 5, **options})


def ended(result: Any) -> dict[str, int]:
    """How many requests ended how, without the zeros."""
    return {outcome.word: count for outcome, count in result.outcomes().items() if count}


GOOD = {
    "a length": says(OK),
    "chunks and a trailer": says(CHUNKED),
    "the end of the connection": says(b"HTTP/1.1 200 OK\r\n\r\nhello", end=True),
    "HTTP/1.0": says(b"HTTP/1.0 200 OK\r\n\r\nhello", end=True),
    "Connection: close": says(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), end=True),
    "an unannounced end": says(OK, end=True),
    "no body": says(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "not modified": says(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
    "interim responses": says(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK
    ),
}


@pytest.mark.parametrize("name", GOOD)
@twisted_test
async def test_a_whole_response_is_ok(serve: Serve, name: str) -> None:
    server = serve(GOOD[name])
    result = await run(reactor, few(server.url()))
    assert ended(result) == {"ok": 4}
    assert result.passed
    assert sorted(server.targets()) == ["/0", "/1", "/2", "/3"]


BAD = {
    "status": (says(OK.replace(b"200 OK", b"503 Busy")), "status"),
    "closed without an answer": (says(b"", end=True), "reset"),
    "reset without an answer": (aborts(), "reset"),
    "cut in the head": (says(OK[:20], end=True), "truncated"),
    "cut in a body with a length": (says(OK[:-1], end=True), "truncated"),
    "cut in the chunks": (says(CHUNKED[:-14], end=True), "truncated"),
    "cut before the end of the chunks": (says(CHUNKED[:-2], end=True), "truncated"),
    "reset in a body with a length": (aborts(OK[:-1]), "truncated"),
    "reset in a body without a length": (aborts(b"HTTP/1.1 200 OK\r\n\r\nhel"), "truncated"),
    "cut after an interim response": (says(b"HTTP/1.1 100 C\r\n\r\n", end=True), "truncated"),
    "no answer": (lambda talk: None, "timed out"),
    "half an answer": (says(OK[:-1]), "timed out"),
    "wrong body": (says(OK.replace(b"hello", b"jello")), "wrong body"),
    "not HTTP": (says(b"SSH-2.0-OpenSSH\r\n"), "malformed"),
    "a bad chunk": (says(CHUNKED.replace(b"\r\n5\r\n", b"\r\nfive\r\n")), "malformed"),
}


@pytest.mark.parametrize("name", BAD)
@twisted_test
async def test_every_way_to_fail_is_told_apart_and_nothing_is_sent_twice(
    serve: Serve, name: str
) -> None:
    answer, outcome = BAD[name]
    server = serve(answer)
    plan = few(server.url(), timeout=0.2, expect_body="hello", method="POST", body=b"{n}")
    result = await run(reactor, plan)
    assert ended(result) == {outcome: 4}
    assert (result.failed, result.passed) == (4, False)
    assert sorted(server.targets()) == ["/0", "/1", "/2", "/3"]


@twisted_test
async def test_a_refused_connection_fails_the_request_it_was_for() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        result = await run(reactor, few(f"http://127.0.0.1:{taken.getsockname()[1]}/"))
    assert ended(result) == {"refused": 4}
    assert result.unsent == 4
    assert "refused" in next(iter(result.reasons))


@twisted_test
async def test_a_missing_unix_socket_counts_as_refused(tmp_path: Path) -> None:
    result = await run(reactor, few("http://a/", unix=str(tmp_path / "none")))
    assert ended(result) == {"refused": 4}


@twisted_test
async def test_a_unix_socket_is_connected_to_under_the_host_of_the_url(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(says(OK), unix=str(tmp_path / "s"))
    result = await run(reactor, few("http://shop.example/", unix=str(tmp_path / "s")))
    assert ended(result) == {"ok": 4}
    assert b"\r\nHost: shop.example\r\n" in server.requests[0]


@twisted_test
async def test_the_expected_statuses_can_be_others(serve: Serve) -> None:
    server = serve(says(OK.replace(b"200 OK", b"404 Not Found")))
    assert (await run(reactor, few(server.url(), expect=frozenset({404})))).passed
    refused = await run(reactor, few(server.url(), expect=frozenset({200})))
    assert refused.statuses() == {404: 4}
    assert refused.failed == 4


@twisted_test
async def test_to_head_the_head_is_all_whatever_length_it_tells(serve: Serve) -> None:
    server = serve(says(OK[:-5]))
    result = await run(reactor, few(server.url(), method="HEAD", connections=1))
    assert ended(result) == {"ok": 4}
    assert result.opened == 1


@pytest.mark.parametrize("response", [OK, CHUNKED], ids=["length", "chunks"])
@twisted_test
async def test_a_response_may_come_in_two_parts_cut_anywhere(serve: Serve, response: bytes) -> None:
    def answer(talk: Talk) -> None:
        cut = len(server.requests) % len(response)
        talk.transport.getHandle().send(response[:cut])
        reactor.callLater(0.002, talk.transport.write, response[cut:])

    server = serve(answer)
    plan = Plan(server.url(), rate=500, duration=len(response) / 500, expect_body="hello")
    assert ended(await run(reactor, plan)) == {"ok": len(response)}


@pytest.mark.parametrize("garbage", [b"HTT", b"garbage\r\n", OK], ids=["part", "text", "response"])
@twisted_test
async def test_bytes_behind_a_response_are_strays_and_end_the_connection(
    serve: Serve, garbage: bytes
) -> None:
    server = serve(says(OK + garbage))
    result = await run(reactor, few(server.url(), expect_body="hello"))
    assert ended(result) == {"ok": 4}
    assert (result.strays, result.opened, result.passed) == (4, 4, False)


@twisted_test
async def test_a_body_in_answer_to_head_is_a_stray(serve: Serve) -> None:
    result = await run(reactor, few(serve(says(OK)).url(), method="HEAD"))
    assert (ended(result), result.strays) == ({"ok": 4}, 4)


@twisted_test
async def test_bytes_on_an_idle_connection_are_strays(serve: Serve) -> None:
    def answer(talk: Talk) -> None:
        talk.say(OK)
        reactor.callLater(0.02, talk.say, b"HTTP/1.1 408 Timeout\r\n\r\n")
        talk.lost.addCallback(lambda _: load.stop())

    load = Run(reactor, Plan(serve(answer).url(), rate=0.1, duration=600))
    result = await load.go()
    assert (ended(result), result.strays) == ({"ok": 1}, 1)


@twisted_test
async def test_every_request_is_another_and_the_rate_is_kept_to_the_request(serve: Serve) -> None:
    server = serve(says(OK))
    plan = Plan(
        server.url("/a/{n}"),
        rate=2000,
        duration=0.25,
        method="POST",
        headers=(("X-Number", "{n}"),),
        body=b"body {n}",
    )
    result = await run(reactor, plan)
    assert ended(result) == {"ok": 500}
    assert Counter(server.targets()) == Counter(f"/a/{n}" for n in range(500))
    for request in server.requests:
        n = request.split(b" ", 2)[1].removeprefix(b"/a/")
        assert b"\r\nX-Number: " + n + b"\r\n" in request
        assert request.endswith(b"\r\n\r\nbody " + n)


@twisted_test
async def test_the_latency_counts_from_when_a_request_was_due(serve: Serve) -> None:
    def answer(talk: Talk) -> None:
        reactor.callLater(0.2 if len(server.requests) == 1 else 0, talk.say, OK)

    server = serve(answer)
    result = await run(reactor, Plan(server.url(), rate=100, duration=0.1, connections=1))
    assert [request.due for request in result] == [n / 100 for n in range(10)]
    assert all(request.sent >= result[0].done for request in list(result)[1:])
    # Nine were sent after the stall and answered at once; that they waited shows.
    latency = result.latency()
    assert latency is not None
    assert latency.min >= 0.1


@twisted_test
async def test_no_more_connections_are_open_than_allowed(serve: Serve) -> None:
    def answer(talk: Talk) -> None:
        reactor.callLater(0.01, talk.say, OK)

    server = serve(answer)
    result = await run(reactor, Plan(server.url(), rate=1000, duration=0.1, connections=3))
    assert ended(result) == {"ok": 100}
    assert len(server.talks) == 3


@twisted_test
async def test_a_request_that_finds_no_free_connection_in_time_has_timed_out(serve: Serve) -> None:
    server = serve(lambda talk: None)
    result = await run(reactor, few(server.url(), connections=1, timeout=0.1, rate=2000))
    assert ended(result) == {"timed out": 40}
    # Those that got the connection of one that had timed out were sent, the others never.
    assert len(server.requests) == 40 - result.unsent
    assert result.reasons["timed out: no connection was free"] == result.unsent > 0


@twisted_test
async def test_a_closed_loop_goes_on_until_its_time_is_over(serve: Serve) -> None:
    server = serve(says(OK))
    result = await run(reactor, Plan(server.url(), rate=0, duration=0.2, connections=4))
    assert ended(result) == {"ok": len(server.requests)}
    assert len(set(server.requests)) == len(server.requests) > 4
    assert result.opened == 4


@twisted_test
async def test_a_connection_found_closed_is_replaced_and_no_failure(serve: Serve) -> None:
    # The end arrives along with the response, before the reactor has told of it.
    server = serve(says(OK, end=True))
    result = await run(reactor, Plan(server.url(), rate=0, duration=0.1, connections=2))
    assert result.replaced > 0
    assert ended(result) == {"ok": len(server.requests)}
    assert len(set(server.requests)) == len(server.requests)


@twisted_test
async def test_a_large_body_goes_out_whole(serve: Serve) -> None:
    body = b"0123456789abcdef" * 200_000
    server = serve(says(OK))
    result = await run(reactor, few(server.url(), method="PUT", body=body))
    assert ended(result) == {"ok": 4}
    assert all(request.endswith(b"\r\n\r\n" + body) for request in server.requests)


@twisted_test
async def test_held_requests_are_known_by_the_header(serve: Serve) -> None:
    def answer(talk: Talk) -> None:
        held = b"\r\nx-awesomeproxy-held: 1.5\r\n\r\n"
        talk.say(OK.replace(b"\r\n\r\n", held) if len(server.requests) == 2 else OK)

    server = serve(answer)
    result = await run(reactor, few(server.url()))
    assert sorted(request.held or 0.0 for request in result) == [0, 0, 0, 1.5]
    assert (result.held_requests, result.longest_hold) == (1, 1.5)


@twisted_test
async def test_the_fate_of_each_request_can_be_looked_up(serve: Serve) -> None:
    def answer(talk: Talk) -> None:
        bad = server.targets()[-1] == "/2"
        talk.say(OK.replace(b"200 OK", b"500 No") if bad else OK)

    server = serve(answer)
    result = await run(reactor, few(server.url()))
    assert list(result.acknowledged()) == [0, 1, 3]
    assert [request.n for request in result.failures()] == [2]
    assert (result[2].outcome, result[2].status) == (RequestOutcome.STATUS, 500)
    assert len(result) == 4
    with pytest.raises(IndexError):
        result[4]


@twisted_test
async def test_stopping_lets_what_is_under_way_end(serve: Serve) -> None:
    stop: Deferred[None] = Deferred()

    def answer(talk: Talk) -> None:
        reactor.callLater(0.02, talk.say, OK)
        if len(server.requests) == 5:
            stop.callback(None)

    server = serve(answer)
    result = await run(reactor, Plan(server.url(), rate=100, duration=600), stop=stop)
    assert 5 <= result.issued < 1000
    assert ended(result) == {"ok": result.issued}
    assert not result.interrupted


@twisted_test
async def test_abandoning_leaves_what_is_under_way_unfinished(serve: Serve) -> None:
    def answer(talk: Talk) -> None:
        if len(server.requests) < 3:
            talk.say(OK)

    server = serve(answer)
    load = Run(reactor, Plan(server.url(), rate=100, duration=600))
    going = Deferred.fromCoroutine(load.go())
    await until(lambda: load.result.finished == 2 < len(server.requests), "two answers of three")
    load.abandon()
    result = await going
    assert result.interrupted
    assert ended(result)["ok"] == 2
    assert ended(result)["unfinished"] >= 1
    assert result.passed


@twisted_test
async def test_a_cancelled_run_lets_go_of_its_connections(serve: Serve) -> None:
    def answer(talk: Talk) -> None:
        if len(server.requests) == 3:
            running.cancel()

    server = serve(answer)
    running = Deferred.fromCoroutine(run(reactor, Plan(server.url(), rate=100, duration=600)))
    with pytest.raises(CancelledError):
        await running
    for talk in server.talks:
        await talk.lost


@twisted_test
async def test_marks_are_kept_with_their_time(serve: Serve) -> None:
    def answer(talk: Talk) -> None:
        load.result.mark("here")
        talk.say(OK)

    load = Run(reactor, few(serve(answer).url()))
    result = await load.go()
    assert [text for _, text in result.marks] == ["here"] * 4
    assert all(0 <= at <= result.elapsed for at, _ in result.marks)


@twisted_test
async def test_progress_is_told_and_ends_with_the_whole(serve: Serve) -> None:
    told: list[Progress] = []
    await run(reactor, few(serve(says(OK)).url()), told.append)
    assert (told[-1].issued, told[-1].finished, told[-1].in_flight) == (4, 4, 0)


@twisted_test
async def test_a_host_name_is_looked_up_once(serve: Serve) -> None:
    server = serve(says(OK))
    result = await run(reactor, few(server.url().replace("127.0.0.1", "localhost")))
    assert ended(result) == {"ok": 4}


@twisted_test
async def test_a_host_without_an_address_is_a_mistake_in_the_plan() -> None:
    with pytest.raises(PlanError, match=r"no-such\.invalid"):
        await run(reactor, few("http://no-such.invalid/"))


def certificate(directory: Path) -> Any:
    """What a TLS server of 127.0.0.1 needs, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.IPAddress(IPv4Address("127.0.0.1"))
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = signed.public_bytes(Encoding.PEM)
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = directory / "server.pem"
    path.write_bytes(pem)
    return ssl.DefaultOpenSSLContextFactory(str(path), str(path))  # type: ignore[no-untyped-call]


@twisted_test
async def test_over_tls_connections_are_kept_as_well(serve: Serve, tmp_path: Path) -> None:
    server = serve(says(OK), tls=certificate(tmp_path))
    plan = Plan(
        server.url(scheme="https"), rate=50, duration=0.2, connections=1, insecure=True, timeout=5
    )
    result = await run(reactor, plan)
    assert ended(result) == {"ok": 10}
    assert result.strays == 0


@twisted_test
async def test_an_untrusted_certificate_fails_the_request_and_says_why(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(says(OK), tls=certificate(tmp_path))
    result = await run(reactor, few(server.url(scheme="https")))
    assert ended(result) == {"reset": 4}
    assert "certificate verify failed" in next(iter(result.reasons))
    assert server.requests == []


@pytest.mark.parametrize("kind", [KernelAlarm, ReactorAlarm])
@twisted_test
async def test_an_alarm_wakes_once_each_time_it_is_set(kind: Any) -> None:
    woken: list[Deferred[None]] = []
    alarm = kind(reactor, lambda: woken.pop().callback(None))
    for seconds in (0.0, alarm.finest, 0.01):
        waiter: Deferred[None] = Deferred()
        woken.append(waiter)
        alarm.set(seconds)
        await waiter
    alarm.cancel()


@pytest.mark.parametrize("kind", [KernelAlarm, ReactorAlarm])
@twisted_test
async def test_a_cancelled_alarm_does_not_wake(kind: Any) -> None:
    alarm = kind(reactor, lambda: pytest.fail("woken"))
    alarm.set(0.001)
    alarm.cancel()
    alarm.cancel()
    await deferLater(reactor, 0.005)
