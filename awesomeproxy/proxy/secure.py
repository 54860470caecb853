"""TLS on the sockets themselves.

A connection that is told :meth:`Secure.secure` becomes what this module says: OpenSSL
then reads and writes its socket, and all that Twisted does with a connection -- queue
what the kernel does not take, stop and resume, close in an orderly way or not -- stays
as it was.  Nothing is copied through buffers in between, and a request that arrives
takes one call of OpenSSL, as its answer does.

OpenSSL does not read ahead: what it has not given out is still in the kernel, where
epoll sees it.  So nothing waits inside for a turn that never comes, and a connection
that is not read from keeps nothing here.

A record is at the most 16 KB.  Several are read in one go, and sent in one, but only so
many that others have their turn.  That holds for what carries no data as well: a client
could send key updates as fast as they can be read, and nothing else, for as long as it
likes.
"""

from __future__ import annotations

# Twisted's own transports are largely untyped.
# mypy: disable-error-code="no-untyped-call, override"
import os
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL
from twisted.internet import tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionLost
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure

RECORD = 16 * 1024  # bytes, the most that one may carry (RFC 8446, section 5.1)
RECORDS = 4  # that are read, and ...
SEND = 8 * RECORD  # ... bytes that are sent, in one go
MORE = 4 * 1024  # whoever has sent so much in one record may have sent another

# Of the binding, as pyOpenSSL sets that mode for each connection and offers no way back.
_library: Any = Binding().lib
_clear_mode: Callable[[Any, int], object] | None = getattr(_library, "SSL_clear_mode", None)


class TlsFailed(ConnectionLost):
    """TLS has come to an end that was none of either side's wishes."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return self.why


class HandshakeFailed(TlsFailed):
    """TLS has not even begun."""


class Secure(tcp.Connection):
    """Mixed into a Twisted connection, in front of all else that reads or writes its socket."""

    _tempDataLen: int
    unsent: int
    tls: Any = None  # an SSL.Connection, until the connection is lost
    speaks_first = False  # a client begins the handshake
    _done: Callable[[], object] | None = None  # while the handshake is going on
    _stuck = False  # OpenSSL must write before it can go on reading

    def begin(self, tls: SSL.Connection, done: Callable[[], object]) -> None:
        """Begin the handshake; see :meth:`EagerWrites.secure`."""
        self.tls = tls
        self._done = done
        if _clear_mode is not None:  # OpenSSL must not look for data behind what is none
            _clear_mode(tls._ssl, _library.SSL_MODE_AUTO_RETRY)
        self.startReading()
        if self.speaks_first:
            self.startWriting()

    def _shake(self) -> Any:
        """Go on with the handshake, as far as it goes."""
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            self.stopWriting()
            self.startReading()
            return None
        except SSL.WantWriteError:
            self.stopReading()
            self.startWriting()
            return None
        except SSL.Error as problem:
            return HandshakeFailed(reason(problem))
        self.stopWriting()
        self.startReading()
        done, self._done = self._done, None
        assert done is not None
        done()
        return None

    # Reading

    def doRead(self) -> Any:
        """Hand what has arrived to the protocol."""
        if self._done is not None:
            return self._shake()
        receive = self.tls.recv
        why: Any = None
        rest: list[bytes] = []
        data = b""
        try:
            data = receive(RECORD)
            size = len(data)
            while size >= MORE and len(rest) < RECORDS - 1:
                rest.append(receive(RECORD))
                size = len(rest[-1])
        except SSL.WantReadError:
            pass
        except SSL.WantWriteError:
            self.stopReading()
            self.startWriting()
            self._stuck = True
        except SSL.ZeroReturnError:
            why = CONNECTION_DONE
        except SSL.SysCallError:
            why = CONNECTION_LOST  # also if there is no goodbye before the end
        except SSL.Error as problem:
            why = TlsFailed(reason(problem))
        if data:
            self.protocol.dataReceived(b"".join((data, *rest)) if rest else data)
            if self.disconnecting or self._aborting:
                return None  # it is about to end as the protocol wants it
        if why is CONNECTION_DONE and self.connected and self.producer is None and not self.unsent:
            # In turn (RFC 5246, section 7.2.1), but what is cut off must not look complete.
            self._say_goodbye()
        return why

    def stopReading(self) -> None:
        """Read no more until :meth:`startReading`, whatever OpenSSL needs."""
        self._stuck = False
        super().stopReading()

    # Writing

    def write(self, data: bytes) -> None:
        """Send ``data`` now as far as the kernel takes it; queue the rest."""
        if not self._tempDataLen and not self.dataBuffer and self.connected and data:
            if self._writeDisconnected or self._aborting:
                return
            sent = self._send(data)
            if sent == len(data):
                return
            if sent > 0:
                data = data[sent:]
        FileDescriptor.write(self, data)  # none that knows the socket

    def writeSomeData(self, data: bytes) -> Any:
        """Send what was queued, as far as the kernel takes it."""
        sent = self._send(data)
        return sent if sent >= 0 else CONNECTION_LOST

    def _send(self, data: bytes) -> int:
        """Send ``data``; return how much was sent, or -1 if nothing can be.

        What the kernel did not take must be tried again with no less data than before,
        and is: it comes first in the queue, and the queue only grows.
        """
        size = min(len(data), SEND)
        sent = 0
        try:
            if size:
                sent = self.tls.send(data)
            while sent < size:
                sent += self.tls.send(memoryview(data)[sent:])
        except SSL.WantWriteError:
            pass
        except SSL.Error:  # never that it wants to read: there is no renegotiation
            return sent or -1
        return sent

    def doWrite(self) -> Any:
        """The socket takes something again."""
        if self._done is not None and not self.disconnecting:
            return self._shake()
        if self._stuck:
            self.startReading()
            self._stuck = False
        return super().doWrite()

    # The end

    def _say_goodbye(self) -> bool:
        """Tell the peer that no more follows; return whether that has been sent."""
        try:
            self.tls.shutdown()
        except SSL.WantWriteError:
            return False
        except SSL.Error:
            pass  # it would not hear us
        return True

    def _postLoseConnection(self) -> Any:
        if self._say_goodbye():
            return super()._postLoseConnection()
        self.startWriting()
        return None

    def _closeWriteConnection(self) -> Any:
        if self._say_goodbye():
            return super()._closeWriteConnection()
        self._writeDisconnected = False
        self.startWriting()
        return None

    def connectionLost(self, why: Failure) -> None:
        """It is closed: OpenSSL must not touch the descriptor any more."""
        self.tls = self._done = None
        super().connectionLost(why)


def fault_of(why: Failure) -> str:
    """What was wrong with TLS, if that is why a connection was lost."""
    return str(why.value) if isinstance(why.value, TlsFailed) else ""


def reason(problem: SSL.Error) -> str:
    """What OpenSSL, or who was called back by it, says is wrong."""
    if isinstance(problem, SSL.SysCallError):
        number = problem.args[0]
        return os.strerror(number) if number > 0 else "the connection was closed"
    what = problem.args[0] if problem.args else ""
    if isinstance(what, list):
        what = ", ".join(text for _, _, text in what if text)
    return what or "TLS failed"
