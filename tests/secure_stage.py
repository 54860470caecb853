"""Python's own TLS at one end of a connection, to test ours at the other.

A :class:`TlsWire` is a :class:`~plane_stage.Wire` whose script sees what is inside TLS:
``write`` encrypts, and what has come is in ``buffer``.  What goes over the socket is the
test's to delay, to break or to end; whether the other end has said goodbye before it
closed is in ``goodbye``.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plane_stage import Wire, eventually, reactor
from tls_stage import Authority, client_trust
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import directlyProvides


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for all tests of a module."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def place(authority: Authority) -> Path:
    """A directory with the certificate of ``blog.example``, to be configured."""
    path = authority.directory / "certificates"
    authority.issue("blog.example", path=path / "blog.crt")
    return path


class TlsWire(Wire):
    """One end of a connection, in Python's TLS."""

    def __init__(
        self,
        context: ssl.SSLContext,
        name: str | None = "blog.example",
        *,
        server: bool = False,
        drip: int = 0,
        before: bytes = b"",
        half_closeable: bool = False,
    ) -> None:
        """
        :param name: that is asked for; for a server, nothing.
        :param drip: at most so many bytes are sent in a turn of the reactor; 0: all.
        :param before: is sent before the handshake.
        :param half_closeable: it stays open when the other end sends no more.
        """
        super().__init__()
        if half_closeable:
            directlyProvides(self, IHalfCloseableProtocol)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._in, self._out, server_side=server, server_hostname=None if server else name
        )
        self.shaken = False
        self.goodbye = False
        self.fault: ssl.SSLError | None = None
        self.raw = bytearray()  # whatever has come, as it came
        self._drip = drip
        self._to_send = bytearray(before)
        self._to_encrypt = b""
        self._dripping = False

    def connectionMade(self) -> None:
        super().connectionMade()
        self._go_on()

    def dataReceived(self, data: bytes) -> None:
        self.raw += data
        self._in.write(data)
        self._go_on()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._dripping = False
        super().connectionLost(reason)

    def readConnectionLost(self) -> None:
        """If it is half-closeable: the other end sends no more, but may still read."""

    def writeConnectionLost(self) -> None:
        """The same; it never closes half by itself."""

    def _go_on(self) -> None:
        come = []
        try:
            if not self.shaken:
                self.tls.do_handshake()
                self.shaken = True
                self._encrypt()
            while data := self.tls.read(1 << 16):
                come.append(data)
            self.goodbye = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # the same, after our own
            self.goodbye = True
        except ssl.SSLError as fault:
            self.fault = fault
        if come:
            super().dataReceived(b"".join(come))
        self._send()

    def _encrypt(self) -> None:
        data, self._to_encrypt = self._to_encrypt, b""
        for at in range(0, len(data), 1 << 14):
            self.tls.write(data[at : at + (1 << 14)])

    def _send(self) -> None:
        self._to_send += self._out.read()
        if not self._drip:
            self.transport.write(bytes(self._to_send))
            self._to_send.clear()
        elif not self._dripping:
            self._dripping = True
            reactor.callLater(0, self._drop)

    def _drop(self) -> None:
        if self._dripping and self._to_send:
            self.transport.write(bytes(self._to_send[: self._drip]))
            del self._to_send[: self._drip]
            reactor.callLater(0, self._drop)
        else:
            self._dripping = False

    def write(self, data: bytes) -> None:
        """Encrypt and send, once the handshake is done."""
        self._to_encrypt += data
        if self.shaken:
            self._encrypt()
            self._send()

    def write_raw(self, data: bytes) -> None:
        """Send as it is, in the middle of whatever there is."""
        self._to_send += data
        self._send()

    def say_goodbye(self) -> None:
        """Say that no more follows; the connection stays open."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self._send()

    async def ready(self) -> None:
        """Wait for the end of the handshake."""
        await eventually(lambda: self.shaken or self.closed or self.fault, "the handshake")
        assert self.shaken, self.fault or "closed"

    async def end(self) -> bytes:
        """All that comes until the other end has said goodbye or is gone."""
        await eventually(lambda: self.goodbye or self.closed, "the end")
        data, self.buffer = self.buffer, b""
        return data


def trusting(authority: Authority, **more: Any) -> Callable[[], TlsWire]:
    """Makes clients that trust an authority."""
    context = client_trust(authority, *more.pop("protocols", ()))
    for name, value in more.pop("context", {}).items():
        setattr(context, name, value)
    return lambda: TlsWire(context, **more)
