"""A client's connection, and the certificate it is switched to during its handshake."""

from __future__ import annotations

import socket
from typing import cast

from OpenSSL import SSL

from awesomeproxy.tls.contexts import server_context
from awesomeproxy.tls.pairs import Pair


class Refused(SSL.Error):
    """There is nothing that this client could be given."""


class Served:
    """A pair that clients get, with the context for it, made when the first one comes."""

    __slots__ = ("_context", "pair")

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._context: SSL.Context | None = None

    def __repr__(self) -> str:
        return f"<Served {self.pair.source}>"

    @property
    def context(self) -> SSL.Context:
        """What a connection is switched to."""
        if self._context is None:
            self._context = server_context(select, self.pair)
        return self._context


class Accepted(SSL.Connection):
    """A connection of a client, which gets its certificate in the course of the handshake."""

    def __init__(self, base: SSL.Context, sock: socket.socket, http2: bool) -> None:
        """
        :param base: the context it begins on.
        :param sock: connected, and not blocking.
        :param http2: whether HTTP/2 may be agreed on.
        """
        super().__init__(base, sock)
        self.base = base  # OpenSSL calls back into it, and does not keep it alive
        self.http2 = http2
        self.served: Served | None = None
        self.set_accept_state()

    def switch(self, served: Served) -> None:
        """Go on with the certificate of ``served``."""
        self.served = served
        self.set_context(served.context)

    def do_handshake(self) -> None:
        """Go on with the handshake.

        :raise SSL.Error: it cannot go on: for now (``WantReadError``, ``WantWriteError``),
            or because it has failed.
        """
        super().do_handshake()
        if self.served is None:  # resuming a session takes no certificate
            raise Refused([("", "", "there is no certificate for this name")])


def select(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """Choose among the protocols that the client of an :class:`Accepted` offers (ALPN).

    :raise Refused: none of them is served.
    """
    if cast(Accepted, connection).http2 and b"h2" in offered:
        return b"h2"
    for protocol in (b"http/1.1", b"http/1.0"):
        if protocol in offered:
            return protocol
    # To go on without an agreement would let others pass as HTTP (RFC 7301, section 3.2).
    raise Refused([("", "", "none of the protocols that the client offers is served")])
