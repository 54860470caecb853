"""A whole daemon at the edge: TLS and HTTP/2 on its listeners, and operators at work."""

from __future__ import annotations

import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from daemon_stage import (
    HOST,
    Daemon,
    Origin,
    Stage,
    a_stage,
    free_ports,
    reactor,
    site,
    twisted_fixture,
    twisted_test,
    until,
)
from edge_stage import answering_http2
from h2_frames import MOST, Type, ping
from h2_wire import Client, ask
from plane_stage import Origin as ScriptedOrigin
from plane_stage import Wire
from secure_stage import TlsWire
from stage_waiting import until_async
from tls_stage import Authority, client_trust, private
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

stage = twisted_fixture(a_stage)
GET = b"GET / HTTP/1.1\r\nHost: blog.test\r\n\r\n"
CYCLES = 30


@dataclass
class EdgeDaemon:
    """A daemon that speaks HTTP/2 on both of its listeners."""

    stage: Stage
    daemon: Daemon
    secure: int
    authority: Authority
    certificate: Path

    async def connect(self, wire: Wire, port: int) -> None:
        endpoint = TCP4ClientEndpoint(reactor, HOST, port)
        await connectProtocol(endpoint, wire)  # type: ignore[no-untyped-call]
        self.stage.at_end.append(wire.transport.abortConnection)

    async def tls(self, *alpn: str) -> TlsWire:
        """A client whose TLS handshake is done."""
        wire = TlsWire(client_trust(self.authority, *alpn), "blog.test")
        await self.connect(wire, self.secure)
        await wire.ready()
        return wire

    async def http2(self, *, secure: bool = False) -> Client:
        """A client that speaks HTTP/2, after its first words."""
        wire: Wire
        if secure:
            wire = await self.tls("h2")
        else:
            wire = Wire()
            await self.connect(wire, self.daemon.port)
        nobody: Any = None  # a stage is only for tests that have one
        client = Client(wire, nobody)
        await client.greet()
        return client

    async def shown(self) -> int:
        """The number of the certificate that a new client is shown."""
        wire = await self.tls()
        der = wire.tls.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number

    async def answered(self, wire: Wire) -> bool:
        """Whether a request on an open connection is."""
        wire.write(GET)
        return (await wire.answer()).status == 200

    def replace(self, certificate: bytes | None = None) -> int:
        """Put another certificate in its place; return its number."""
        fresh = self.authority.issue("blog.test")
        pem = fresh.certificate.read_bytes()
        if certificate is None:
            private(self.certificate.with_suffix(".key"), fresh.key.read_bytes())
        private(self.certificate, pem if certificate is None else certificate)
        return x509.load_pem_x509_certificate(pem).serial_number


async def at_the_edge(
    on: Stage, text: str, tmp_path: Path, *, check_every: str = "1h", node: str = ""
) -> EdgeDaemon:
    """Start one."""
    authority = Authority(tmp_path / "authority")
    path = tmp_path / "certificates" / "blog.crt"
    authority.issue("blog.test", path=path)
    (secure,) = free_ports(1)
    listen = f"""h2c = true
        [[listen]]
        endpoint = "tcp:{secure}:interface={HOST}"
        tls = true
        [tls]
        certificates = ["{path.parent}"]
        check_every = "{check_every}"
    """
    daemon = await on.serving(text, listen=listen, node=node)
    return EdgeDaemon(on, daemon, secure, authority, path)


# Certificates


@twisted_test
async def test_a_new_certificate_is_noticed(stage: Stage, tmp_path: Path) -> None:
    """Within ``check_every``, with nothing said; connections go on."""
    on = await at_the_edge(stage, site("blog", stage.origin("one")), tmp_path, check_every="200ms")
    old = await on.tls()
    fresh = on.replace()

    async def look() -> bool:
        return await on.shown() == fresh

    await until_async(look, "the new certificate")
    assert await on.answered(old)


@twisted_test
async def test_a_reload_takes_a_new_certificate_at_once(stage: Stage, tmp_path: Path) -> None:
    """It is in use when the command has been answered; connections go on."""
    on = await at_the_edge(stage, site("blog", stage.origin("one")), tmp_path)
    old, before = await on.tls(), await on.shown()
    fresh = on.replace()
    assert await on.shown() == before
    assert (await on.daemon.ask("reload"))["warnings"] == []
    assert await on.shown() == fresh
    assert await on.answered(old)


@twisted_test
async def test_a_broken_certificate_is_refused_loudly(stage: Stage, tmp_path: Path) -> None:
    """The old one stays; ``reload``, ``status`` and the log name the file until it is mended."""
    on = await at_the_edge(stage, site("blog", stage.origin("one")), tmp_path)
    before = await on.shown()
    on.replace(b"-----BEGIN CERTIFICATE-----\nnonsense")
    (problem,) = (await on.daemon.ask("reload"))["warnings"]
    assert str(on.certificate) in problem
    assert await on.shown() == before
    told = (await on.daemon.ask("status"))["node"]["certificates"]
    assert told["problems"] == [problem]
    assert problem in on.daemon.log
    ended = await on.daemon.command("status")
    assert str(on.certificate) in ended.out
    fresh = on.replace()
    assert (await on.daemon.ask("reload"))["warnings"] == []
    assert (await on.daemon.ask("status"))["node"]["certificates"]["problems"] == []
    assert await on.shown() == fresh


@twisted_test
async def test_keys_are_not_in_the_log(stage: Stage, tmp_path: Path) -> None:
    """Nothing of a private key is, even if it is put where it cannot be used."""
    on = await at_the_edge(stage, site("blog", stage.origin("one")), tmp_path)
    key = on.certificate.with_suffix(".key")
    line = key.read_text().splitlines()[1]
    on.replace(key.read_bytes())
    await on.daemon.ask("reload")
    key.chmod(0o644)
    (problem, *_) = (await on.daemon.ask("reload"))["warnings"]
    assert line not in on.daemon.log
    assert line not in problem


# Stopping


@pytest.mark.parametrize("secure", [False, True], ids=["h2c", "TLS"])
@twisted_test
async def test_a_stop_lets_streams_finish(secure: bool, stage: Stage, tmp_path: Path) -> None:
    """SIGTERM: GOAWAY, the answers that were due, an orderly end, and exit status 0."""
    origin = stage.origin("one")
    on = await at_the_edge(stage, site("blog", origin), tmp_path)
    client = await on.http2(secure=secure)
    for stream, path in ((1, "/later"), (3, "/begun")):
        client.send(ask(stream, path=path, authority="blog.test"))
    await origin.has("/later")
    await origin.has("/begun")
    on.daemon.signal(signal.SIGTERM)
    assert (await client.until(Type.GOAWAY)).number == MOST
    client.send(ask(5, authority="blog.test"))  # on its way when the proxy said so
    farewell = await client.until(Type.PING)
    client.send(ping(farewell.payload, ack=True))
    assert (await client.until(Type.GOAWAY)).number == 5
    assert (await client.response(5)).body == b"one /"
    await until(lambda: len(origin.waiting) == 2)
    origin.let_go()
    assert (await client.response(1)).body == b"one /later"
    assert (await client.response(3)).body == b"abc"
    await client.end()
    assert await on.daemon.exits() == 0


@twisted_test
async def test_a_stop_does_not_wait_for_ever(stage: Stage, tmp_path: Path) -> None:
    """After ``drain_time`` streams are cut off."""
    origin = stage.origin("one")
    on = await at_the_edge(stage, site("blog", origin), tmp_path, node='drain_time = "200ms"')
    client = await on.http2()
    client.send(ask(1, path="/later", authority="blog.test"))
    await origin.has("/later")
    on.daemon.signal(signal.SIGTERM)
    assert await on.daemon.exits() == 0
    await until(lambda: client.wire.closed, "the end of the connection")


# Pauses under load


class H2load:
    """Streams of many clients, so many a second, until all are answered."""

    def __init__(self, uri: str, port: int) -> None:
        clients, each, requests = 8, 60, 4800
        self._process = subprocess.Popen(
            [
                *f"h2load -c {clients} -m 10 --rps={each} -n {requests}".split(),
                f"--connect-to={HOST}:{port}",
                uri,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.requests = requests

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    async def passes(self) -> None:
        """Wait for its end, and see that nothing has failed."""
        await until(lambda: not self.running, "the end of h2load")
        assert self._process.stdout is not None
        said = self._process.stdout.read()
        found = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said)
        assert found, said
        assert [int(n) for n in found.groups()] == [self.requests, 0, 0, 0], said
        assert f"status codes: {self.requests} 2xx" in said, said

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.parametrize("kind", ["TLS to HTTP/1.1", "h2c to h2c"])
@twisted_test
async def test_thirty_pauses_fail_no_stream(kind: str, stage: Stage, tmp_path: Path) -> None:
    """Every pause drains to nothing, and every stream is answered."""
    secure = kind.startswith("TLS")
    served: Origin | ScriptedOrigin
    if secure:
        served = stage.origin("one")
        text = site("blog", served)
    else:
        served = ScriptedOrigin(answering_http2).listen()
        text = site("blog", stage.origin("one"))
        text = re.sub(r"http://[^\"]+", f"h2c://{HOST}:{served.number}", text)
    on = await at_the_edge(stage, text, tmp_path)
    scheme, port = ("https", on.secure) if secure else ("http", on.daemon.port)
    load = H2load(f"{scheme}://blog.test/", port)
    try:
        for _ in range(CYCLES):
            before = (await on.daemon.site())["counters"]["requests"]

            async def flows(since: int = before) -> bool:
                return bool((await on.daemon.site())["counters"]["requests"] > since + 20)

            await until_async(flows, "traffic")
            receipt = await on.daemon.ask("pause", site="blog")
            assert [(w["in_flight"], w["connections"]) for w in receipt["workers"]] == [(0, 0)]
            assert load.running, "it has ended before all pauses were made"
            await on.daemon.ask("resume", site="blog")
        await load.passes()
        counters = (await on.daemon.site())["counters"]
    finally:
        load.stop()
        await on.daemon.kill()
        if isinstance(served, ScriptedOrigin):
            await served.refuse()
    assert counters["requests"] == load.requests
    for name in ("failed", "ambiguous", "refused", "retried", "departed"):
        assert counters[name] == 0, counters
