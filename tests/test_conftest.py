"""The guard over all tests catches what it is there to catch, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = '''
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python import log


class Server(Protocol):
    """Tells when a client has come and when it has gone."""

    def connectionMade(self):
        self.factory.server = self
        self.factory.served.callback(None)

    def connectionLost(self, reason):
        self.factory.lost.callback(None)


async def connection():
    factory = Factory.forProtocol(Server)
    factory.served = Deferred()
    factory.lost = Deferred()
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    client = await connectProtocol(
        TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), Protocol()
    )
    await factory.served
    await port.stopListening()
    return client, factory


def test_dirty_unhandled_error():
    fail(ValueError("nobody looked"))


def test_dirty_unhandled_error_in_a_cycle():
    deferred = fail(ValueError("nobody looked"))
    deferred.itself = deferred


@ensureDeferred
async def test_dirty_unhandled_error_of_a_coroutine():
    async def coroutine():
        await deferLater(reactor, 0)
        raise ValueError("nobody looked")

    Deferred.fromCoroutine(coroutine())
    await deferLater(reactor, 0.01)


def test_dirty_log_err():
    log.err(ValueError("nobody looked"))


def test_dirty_logger_failure():
    try:
        raise ValueError("nobody looked")
    except ValueError:
        Logger().failure("oh")


def test_dirty_delayed_call():
    reactor.callLater(60, print)


def test_dirty_port():
    reactor.listenTCP(0, Factory(), interface="127.0.0.1")


@ensureDeferred
async def test_dirty_connection():
    await connection()


@ensureDeferred
async def test_dirty_writer():
    client, factory = await connection()
    factory.server.transport.pauseProducing()
    client.transport.pauseProducing()
    client.transport.write(b"x" * 10_000_000)


def test_clean():
    """Nothing of what the tests before have left is put down to this one."""


def test_clean_failure_expected(logged_failures):
    fail(ValueError("nobody looked"))
    assert [f.type for f in logged_failures.flush(ValueError)] == [ValueError]


@ensureDeferred
async def test_clean_port_stopped():
    await reactor.listenTCP(0, Factory(), interface="127.0.0.1").stopListening()


@ensureDeferred
async def test_clean_connection_closing():
    client, factory = await connection()
    client.transport.loseConnection()


@ensureDeferred
async def test_clean_threadpool():
    await deferToThread(print)
'''

LEFT = {
    "unhandled_error": "ValueError: nobody looked",
    "unhandled_error_in_a_cycle": "ValueError: nobody looked",
    "unhandled_error_of_a_coroutine": "ValueError: nobody looked",
    "log_err": "ValueError: nobody looked",
    "logger_failure": "ValueError: nobody looked",
    "delayed_call": "<DelayedCall",
    "port": "tcp.Port",
    "connection": "<Server #0 on",
    "writer": "tcp.Client",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of :data:`TESTS` under the conftest of this directory."""
    directory = tmp_path_factory.mktemp("guarded")
    shutil.copy(Path(__file__).with_name("conftest.py"), directory)
    (directory / "test_guarded.py").write_text(TESTS)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--tb=short"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_behind_is_an_error(report: str, name: str) -> None:
    """Each kind of leaving is an error of the very test that left it, and is named."""
    assert f"ERROR test_guarded.py::test_dirty_{name} - " in report
    section = report.split(f" ERROR at teardown of test_dirty_{name} ")[1].split("\n___")[0]
    assert "the test left behind:" in section
    assert LEFT[name] in section


def test_nothing_else_is_an_error(report: str) -> None:
    """Clean tests pass: ports stopped, connections closing, threads, expected failures."""
    assert f"{len(LEFT) + 5} passed, {len(LEFT)} errors" in report
