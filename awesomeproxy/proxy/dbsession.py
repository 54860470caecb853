"""What a connection to a database is in the middle of, as far as that can be known.

A *session* listens to both sides of one connection and says whether it could be ended now
without anybody losing anything: whether it is *idle*, between two transactions, with nothing
under way either way.  It never changes what passes.  Where it cannot follow, since what is
spoken is encrypted, or unknown to it, it is *opaque*, and never idle.

Here is the session of which nothing is known, whatever is spoken.  Those of PostgreSQL and of
MySQL are in :mod:`awesomeproxy.proxy.pgwire` and :mod:`awesomeproxy.proxy.mysqlwire`.
"""

from __future__ import annotations

SHUTDOWN = "the database is being moved or held; connect again"


class Session:
    """One connection that is not understood; also the base of those that are."""

    halves = True  # whether the end of one direction says nothing of the other

    def __init__(self) -> None:
        self.opaque = True  # it cannot be followed, from the beginning or any more
        self.opening = b""  # what the client has begun with, while it has no answer to that

    @property
    def idle(self) -> bool:
        """Whether it is between transactions, with nothing under way either way."""
        return False

    @property
    def between(self) -> bool:
        """Whether the client can be told something: nothing of a message is under way to it."""
        return False

    def turned_away(self, data: bytes) -> bool:
        """Whether ``data``, from the server, says that it does not let anybody in yet."""
        return False

    def from_client(self, data: bytes) -> None:
        """The client has said ``data``, and the server will hear it."""

    def from_server(self, data: bytes) -> None:
        """The server has said ``data``, and the client will hear it."""

    def goodbye_to_client(self) -> bytes:
        """What a client is told whose session is ended, if it is :attr:`between`."""
        return b""

    def goodbye_to_server(self) -> bytes:
        """What a client says to a server when it goes, if it is :attr:`idle`."""
        return b""

    @staticmethod
    def refusal(why: str) -> bytes:
        """What a client is told that cannot be connected, before anything else was said.

        :param why: for people.
        """
        return b""
