"""Where the Redis is that may be written to: the one that is configured, or the one that
Sentinels name.

A library's own way to Sentinels neither uses TLS to the master nor bears a Sentinel that does
not answer; what has to be asked is one question, and it is asked of all of them at once.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from OpenSSL.SSL import Error as SSLError
from service_identity import VerificationError
from twisted.internet import ssl
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from txredisapi import RedisProtocol, ResponseError, SubscriberProtocol  # type: ignore[import-untyped]

from awesomeproxy.model import Cluster

CONNECT = 2.0  # seconds that a connection may take
SENTINEL = 2.0  # seconds that a Sentinel may take to answer
# Of a lease: for how long what was sent may be unacknowledged, or nothing may be heard.  Beats
# are sent every fifth of one, so a cable that is cut is noticed after 0.7 at the latest, even
# if the lease is shorter than the time that a reply may take.
DEAF = 0.5
PROBES = 2  # that the kernel sends in this time, where nothing else is sent


class Refused(Exception):
    """Redis, or a Sentinel, does not want us; the message says why."""


def password(path: str, key: str = "password_file") -> str:
    """The first line of a password file; empty: there is none.

    :param key: that it is named by, in the configuration.
    :raise Refused: it cannot be read.
    """
    if not path:
        return ""
    try:
        return Path(path).read_text().splitlines()[0].strip()
    except (OSError, IndexError, ValueError) as problem:
        raise Refused(f"cluster.{key}: no password can be read from {path}: {problem}") from None


async def authenticate(
    connection: RedisProtocol, user: str, word: str, key: str = "password_file"
) -> None:
    """Say who we are.

    :param key: that the password is named by, in the configuration.
    :raise Refused: that is not believed.
    """
    if not word:
        return
    try:
        await (connection.auth(word, user) if user else connection.auth(word))
    except ResponseError as problem:
        raise Refused(
            f"it refuses user {user or 'default'}: {problem}; see cluster.{key}"
        ) from None


def watch(connection: RedisProtocol, lease: float) -> None:
    """Have the kernel end a connection when the other side does not acknowledge any more.

    Else one to be told on, where nothing is ever asked, would stay as it is when a firewall
    has forgotten it; and this node would not hear what it is asked.

    :param lease: in seconds.
    """
    deaf = DEAF * lease
    every = max(1, int(deaf / PROBES))
    sock: socket.socket = connection.transport.socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * deaf))


class Master:
    """The way to the Redis of a cluster."""

    def __init__(self, reactor: Any, cluster: Cluster) -> None:
        self._reactor = reactor
        self._cluster = cluster

    async def find(self) -> tuple[str, int]:
        """Its host and port now.

        :raise Refused: no Sentinel knows.
        """
        cluster = self._cluster
        if not cluster.master:
            return cluster.addresses[0]
        word = password(cluster.sentinel_password_file, "sentinel_password_file")
        asked = [self._ask(address, word) for address in cluster.addresses]
        outcome: Any = await DeferredList(asked, fireOnOneCallback=True, consumeErrors=True)
        for each in asked:
            each.cancel()
        if isinstance(outcome, tuple):  # the first answer, and whose it is
            address: tuple[str, int] = outcome[0]
            return address
        reasons = [
            f"{host}:{port}: {failure.getErrorMessage() or 'no answer'}"
            for (host, port), (_, failure) in zip(cluster.addresses, outcome, strict=True)
        ]
        raise Refused(f"no Sentinel knows {cluster.master}: {'; '.join(reasons)}")

    def endpoint(self, address: tuple[str, int]) -> IStreamClientEndpoint:
        """How it, or a Sentinel, is reached."""
        host, port = address
        plain = HostnameEndpoint(self._reactor, host, port, timeout=CONNECT)
        if not self._cluster.tls:
            return plain
        return wrapClientTLS(self._tls(host), plain)

    def _tls(self, host: str) -> Any:
        cluster = self._cluster
        try:
            trusted = ssl.platformTrust()  # type: ignore[no-untyped-call]
            if cluster.ca_file:
                pem = Path(cluster.ca_file).read_text()
                end = "-----END CERTIFICATE-----"
                trusted = ssl.trustRootFromCertificates(  # type: ignore[no-untyped-call]
                    [ssl.Certificate.loadPEM((each + end).encode()) for each in pem.split(end)[:-1]]
                )
            ours = None
            if cluster.certificate:
                both = Path(cluster.certificate).read_text() + Path(cluster.key).read_text()
                ours = ssl.PrivateCertificate.loadPEM(both)  # type: ignore[no-untyped-call]
        except (OSError, ValueError, SSLError) as problem:
            raise Refused(f"cluster.tls: {problem}") from None
        return ssl.optionsForClientTLS(
            cluster.verify_name or host, trustRoot=trusted, clientCertificate=ours
        )

    def _ask(self, address: tuple[str, int], word: str) -> Deferred[tuple[str, int]]:
        asked: Deferred[tuple[str, int]] = Deferred.fromCoroutine(self._asked(address, word))
        return asked.addTimeout(SENTINEL, self._reactor)

    async def _asked(self, address: tuple[str, int], word: str) -> tuple[str, int]:
        connection: Any = await self.endpoint(address).connect(Connections())
        try:
            key = "sentinel_password_file"
            await authenticate(connection, self._cluster.sentinel_user, word, key)
            answer = await connection.execute_command(
                "SENTINEL", "get-master-addr-by-name", self._cluster.master
            )
        finally:
            connection.transport.abortConnection()
        if not answer:
            raise Refused(f"it knows no {self._cluster.master}")
        return answer[0].decode(), int(answer[1])


class _Telling:
    why_lost = ""  # what ended it

    def connectionLost(self, why: Failure) -> None:
        self.why_lost = why.getErrorMessage()
        if isinstance(why.value, SSLError | VerificationError):
            self.why_lost += "; see cluster.tls"
        super().connectionLost(why)  # type: ignore[misc]


class Asking(_Telling, RedisProtocol):  # type: ignore[misc]
    """A connection to ask on."""


class Hearing(_Telling, SubscriberProtocol):  # type: ignore[misc]
    """A connection to be told on."""


class Connections(Factory):
    """Makes connections to Redis that give bytes for bytes."""

    noisy = False

    def __init__(self, kind: type[Asking | Hearing] = Asking, timeout: float = 5.0) -> None:
        """
        :param timeout: seconds that a reply may take, or the connection is taken for lost.
        """
        self._kind = kind
        self._timeout = timeout

    def buildProtocol(self, addr: Any) -> Asking | Hearing:
        connection = self._kind(charset=None, replyTimeout=self._timeout, convertNumbers=False)
        connection.factory = self
        return connection
