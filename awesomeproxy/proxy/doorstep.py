"""What comes before HTTP: a PROXY header, a TLS handshake, and which HTTP it will be.

A connection that needs any of this stands on the doorstep first.  When all is settled
the transport is given another protocol, of the version that was agreed on, and the
doorstep is forgotten.  All of it has to be done within one deadline, which a byte now and
then does not move.

OpenSSL is not bothered with a client that says nothing.  What comes is left in the kernel
until it is known whose it is: the bytes behind a PROXY header are OpenSSL's to read.

Here is also decided who is turned away: whoever comes while there are too many, or has too
many connections already.  Such a client is told so in HTTP, once it can be.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IAddress
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from awesomeproxy.model import Listen
from awesomeproxy.proxy.arrival import Arrival
from awesomeproxy.proxy.client import TOO_MANY, ClientConnection
from awesomeproxy.proxy.http2 import Http2Connection
from awesomeproxy.proxy.interfaces import IVisitor
from awesomeproxy.proxy.proxyprotocol import BadHeader, parse
from awesomeproxy.proxy.requests import Refusal
from awesomeproxy.proxy.sockets import waits_to_be_read
from awesomeproxy.proxy.sweep import NEVER
from awesomeproxy.tls.accepting import Accepted

if TYPE_CHECKING:
    from awesomeproxy.proxy.plane import Plane

PREFACE = b"PRI * HTTP/2.0\r\n"  # as far as HTTP/1.1 reads it (RFC 9113, section 3.4)
PEEK = 8192  # bytes that are looked at: the longest PROXY header has fewer
TURNED_AWAY = 256  # clients more than there may be, who are told so
log = Logger()

TOO_MANY_OF_ONE = Refusal(429, "There are too many connections from this address.")


class Visits:
    """How many connections there are of each client address."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def enter(self, address: str) -> int:
        """One more; return how many there are now."""
        count = self._counts[address] = self._counts.get(address, 0) + 1
        return count

    def leave(self, address: str) -> None:
        """One less."""
        count = self._counts.get(address, 0)
        if count > 1:
            self._counts[address] = count - 1
        else:
            self._counts.pop(address, None)


@implementer(IVisitor)
class Doorstep(Protocol):
    """A connection of which it is not known yet who has opened it, or what it will speak."""

    transport: Any

    def __init__(self, plane: Plane, listen: Listen) -> None:
        self.plane = plane
        self.listen = listen
        self.address = ""
        self.deadline = NEVER
        self._port = 0
        self._local = ("", 0)
        self._counted = False
        self._come = b""  # what has come of a header, or of what may be a preface
        self._tls: Accepted | None = None
        self._turned_away: Refusal | None = None

    def __repr__(self) -> str:
        return f"<Doorstep {self.address}>"

    def connectionMade(self) -> None:
        """Somebody has come."""
        plane = self.plane
        peer, host = self.transport.getPeer(), self.transport.getHost()
        self._local = getattr(host, "host", "").removeprefix("::ffff:"), getattr(host, "port", 0)
        self.address = getattr(peer, "host", "unix").removeprefix("::ffff:")
        self._port = getattr(peer, "port", 0)
        if self.address != "unix":
            self.transport.setTcpNoDelay(True)
        self.deadline = plane.seconds() + self.listen.timeouts.handshake
        plane.client_came(self)
        if self._says_for_others():
            self.transport.look(self._look)
        else:
            self._known()

    def _says_for_others(self) -> bool:
        if not self.listen.proxy_protocol or self.address == "unix":
            return False
        address = ip_address(self.address.partition("%")[0])
        return any(address in network for network in self.listen.proxy_protocol)

    def _look(self) -> Any:
        """Take the PROXY header, and not a byte of what is behind it."""
        sock = self.transport.socket
        try:
            data = sock.recv(PEEK, socket.MSG_PEEK)
            if not data:
                return CONNECTION_DONE
            header = parse(self._come + data)
            sock.recv(len(data) if header is None else header.length - len(self._come))
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        except BadHeader as problem:
            self._complain(problem)
            return CONNECTION_LOST
        if header is None:
            self._come += data
            return None
        self._come = b""
        self.transport.look(None)
        if header.ends is not None:
            self.address = header.ends.source
            self._port = header.ends.source_port
            self._local = header.ends.destination, header.ends.destination_port
        self._known()
        return None

    def _complain(self, problem: BadHeader) -> None:
        count = self.plane.bad_headers.happened(self.plane.seconds())
        if count:
            log.warn(
                "{endpoint}: {address} begins without a header of the PROXY protocol, and is"
                " closed: {problem} ({count} of these since the last line); have it send one, or"
                " take it out of proxy_protocol",
                endpoint=self.listen.endpoint,
                address=self.address,
                problem=problem,
                count=count,
            )

    def _known(self) -> None:
        """It is known whose connection it is."""
        listen = self.listen
        if listen.max_per_client and self.address != "unix":
            self._counted = True
            if self.plane.visits.enter(self.address) > listen.max_per_client:
                self._turned_away = TOO_MANY_OF_ONE
        if len(self.plane.clients) > self.plane.max_connections:
            self._turned_away = TOO_MANY
        if listen.tls:
            self.transport.look(self._shake)
        elif not listen.h2c:
            self._go_in(False)

    def _shake(self) -> Any:
        """The client has something to say: that should be a handshake."""
        transport = self.transport
        try:
            if not transport.socket.recv(1, socket.MSG_PEEK):
                return CONNECTION_DONE  # somebody has looked whether we are there
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        transport.look(None)
        certificates = self.plane.certificates
        assert certificates is not None  # or there would be no such listener
        self._tls = certificates.accept(transport.socket, self.listen.http2)
        transport.secure(self._tls, self._shaken)
        return transport.doRead()

    def _shaken(self) -> None:
        """The handshake is done."""
        assert self._tls is not None
        self.plane.handshakes += 1
        self._go_in(self._tls.get_alpn_proto_negotiated() == b"h2")

    def dataReceived(self, data: bytes) -> None:
        """The first bytes of a client that may begin with HTTP/2."""
        self._come += data
        come = self._come[: len(PREFACE)]
        if come != PREFACE[: len(come)]:
            line, end, _ = self._come.partition(b"\n")
            # A first line that is none of HTTP/1.1 is answered in the other language.
            self._go_in(bool(end) and b" HTTP/" not in line)
        elif len(come) == len(PREFACE):
            self._go_in(True)

    def _go_in(self, http2: bool) -> None:
        """Let the client in, to speak the HTTP that was agreed on."""
        plane, listen = self.plane, self.listen
        name = b""
        if self._tls is not None:
            name = self._tls.get_servername() or b""
        arrival = Arrival(
            self.address,
            self._port,
            *self._local,
            tls=self._tls is not None,
            server_name=name.decode("latin-1").lower().rstrip("."),
            counted=self._counted,
        )
        kind = Http2Connection if http2 else ClientConnection
        protocol = kind(plane, listen, arrival, self._turned_away)
        plane.clients.discard(self)
        plane.sweep.remove(self)
        self._tls = None
        come, self._come = self._come, b""
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)  # type: ignore[no-untyped-call]
        if come:
            protocol.dataReceived(come)
        if http2 and plane.stopping:
            protocol.idle_close()  # which lets it ask what it was about to

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It was closed before it came to that."""
        self.transport.look(None)
        if self._tls is not None:
            self.plane.handshakes_failed += 1
            self._tls = None
        if self._counted:
            self.plane.visits.leave(self.address)
        self.plane.client_left(self)

    def expired(self, now: float) -> None:
        """It has taken too long."""
        self.abort()

    def idle_close(self) -> None:
        """The proxy stops: close, unless the client is about to ask something."""
        if self._tls is None and not self._come and not waits_to_be_read(self.transport.socket):
            self.deadline = NEVER
            self.transport.loseConnection()

    def abort(self) -> None:
        """Close it."""
        self.deadline = NEVER
        self.transport.abortConnection()


class ClientFactory(Factory):
    """Makes the connections of one listener."""

    noisy = False

    def __init__(self, plane: Plane, listen: Listen) -> None:
        self._plane = plane
        self.listen = listen

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """A connection has come in."""
        plane, listen = self._plane, self.listen
        if len(plane.clients) >= plane.max_connections + TURNED_AWAY:
            return None  # which closes it
        if plane.sockets >= plane.max_sockets * 9 // 10:
            return None  # the last are for servers
        if needs_doorstep(listen):
            return Doorstep(plane, listen)
        return ClientConnection(plane, listen)


def needs_doorstep(listen: Listen) -> bool:
    """Whether anything comes before HTTP/1.1 on a listener."""
    return bool(listen.tls or listen.h2c or listen.proxy_protocol or listen.max_per_client)
