"""A session of PostgreSQL, followed closely enough to know when it is between transactions.

Every message but the very first has one byte that says what it is, and a length (PostgreSQL,
"Frontend/Backend Protocol").  The server ends its answer to a query, and to each Sync of the
extended protocol, with ReadyForQuery, which says whether a transaction is open.  So a session
is idle when the last of these said that none is, there has been one for all that asks for
one, and nothing of another message has gone to the server.

What asks for one is counted, since a client need not wait for an answer before it asks again.
COPY is the one thing that upsets the count: while the server takes rows it ignores Sync.

What follows a TLS or GSSAPI handshake cannot be read, and the session is opaque.  Replication
never comes to an end, so that it is taken for opaque as well.
"""

from __future__ import annotations

from collections import deque

from awesomeproxy.proxy.dbsession import SHUTDOWN, Session

SSL, GSS, CANCEL = 80877103, 80877104, 80877102  # what comes instead of a version
LONGEST_START = 10_000  # bytes of a startup packet, as the server has it
MOST_PENDING = 1000  # kinds of questions in turn without an answer, before it is given up
ASKS = frozenset(b"QFS")  # Query, FunctionCall, Sync: each is answered with ReadyForQuery
ROWS = frozenset(b"dcf")  # CopyData, CopyDone, CopyFail
ROWS_END = frozenset(b"cf")
TERMINATE = b"X\0\0\0\4"


def error(code: str, message: str) -> bytes:
    """An ErrorResponse after which the connection ends.

    :param code: five characters (PostgreSQL, "Error Codes").
    """
    fields = b"SFATAL\0VFATAL\0C%b\0M%b\0\0" % (code.encode(), message.encode())
    return b"E" + (len(fields) + 4).to_bytes(4, "big") + fields


class Messages:
    """Cuts what one side says into messages; keeps no more of them than a few bytes."""

    __slots__ = ("_first", "_head", "_kind", "_left", "bad")

    def __init__(self) -> None:
        self._head = b""
        self._kind = 0
        self._first = -1
        self._left = 0  # bytes of the present message that are still to come
        self.bad = False  # it is not this protocol

    @property
    def between(self) -> bool:
        """Whether no message is under way."""
        return not self._left and not self._head

    def feed(self, data: bytes) -> list[tuple[int, int]]:
        """The messages that end in ``data``: of each its kind, and its first byte (or -1)."""
        ended: list[tuple[int, int]] = []
        if self._head:
            data = self._head + data
            self._head = b""
        position, size = 0, len(data)
        while position < size:
            if self._left:
                if self._first < 0:
                    self._first = data[position]
                taken = min(self._left, size - position)
                position += taken
                self._left -= taken
                if self._left:
                    break
            elif size - position < 5:
                self._head = data[position:]
                break
            else:
                self._kind = data[position]
                self._left = int.from_bytes(data[position + 1 : position + 5], "big") - 4
                self._first = -1
                position += 5
                if self._left < 0:
                    self.bad = True
                    break
                if self._left:
                    continue
            ended.append((self._kind, self._first))
        return ended


class PostgresSession(Session):
    """One connection to PostgreSQL; see the module."""

    halves = False  # either side's end is the end

    def __init__(self) -> None:
        super().__init__()
        self.opaque = False
        self._started = False  # the startup packet has passed
        self._starting = b""  # what has come of it, or of a request before it
        self._handshakes = 0  # requests for encryption that the server has not answered
        self._cancels = False  # all it does is to cancel what another session does
        self._client = Messages()
        self._server = Messages()
        self._status = -1  # of the last ReadyForQuery
        self._pending: deque[list[int]] = deque()  # kinds of questions, and how many in a row
        self._unasked = False  # something was said that no ReadyForQuery will follow by itself
        self._copying = False  # the server takes rows
        self._left = False

    @property
    def idle(self) -> bool:
        """Whether nothing is under way; as long as nobody has logged in, nothing can be."""
        if self.opaque or self._cancels or self._left or self._pending or self._unasked:
            return False
        if not self._server.between or not self._client.between:
            return False
        return self._status < 0 or (self._status == ord("I") and not self._copying)

    @property
    def between(self) -> bool:
        """Whether an ErrorResponse could be put in now."""
        return not self.opaque and not self._cancels and self._server.between

    def goodbye_to_client(self) -> bytes:
        """As the server itself says it when it is shut down."""
        return error("57P01", f"terminating connection due to administrator command: {SHUTDOWN}")

    def goodbye_to_server(self) -> bytes:
        """Terminate; before the login nobody says anything."""
        return TERMINATE if self._status >= 0 else b""

    @staticmethod
    def refusal(why: str) -> bytes:
        """As the server itself says it while it starts."""
        return error("57P03", why)

    def turned_away(self, data: bytes) -> bool:
        """Whether it starts or stops, and says so instead of asking who it is."""
        return bool(self.opening) and data[:1] == b"E" and b"\0C57P03\0" in data

    # The client

    def from_client(self, data: bytes) -> None:
        if self.opaque or self._cancels:
            return
        if not self._started:
            data = self._start(data)
            if not data:
                return
        for kind, _ in self._client.feed(data):
            self._asked(kind)
        if self._client.bad:
            self.opaque = True

    def _start(self, data: bytes) -> bytes:
        """Take the first message, which has no kind; return what is behind it."""
        data = self._starting + data
        self._starting = b""
        while len(data) >= 8:
            length = int.from_bytes(data[:4], "big")
            code = int.from_bytes(data[4:8], "big")
            if code in (SSL, GSS) and length == 8:
                self._handshakes += 1
                data = data[8:]
            elif code == CANCEL:
                self._cancels = True
                return b""
            elif code >> 16 != 3 or not 8 < length <= LONGEST_START:
                self.opaque = True  # another protocol, or TLS without having asked for it
                return b""
            elif len(data) < length:
                break
            else:
                self._started = True
                self.opening = data[:length]
                return data[length:]
        self._starting = data
        return b""

    def _asked(self, kind: int) -> None:
        if kind in ASKS:
            if self._copying and kind == ord("S"):
                return
            self._unasked = False
            self._append(kind)
        elif kind in ROWS:
            if not self._pending and not self._copying and not self._unasked:
                return  # the server has given up the COPY before, and takes no notice
            if kind in ROWS_END:
                if not self._copying:
                    self._append(kind)
                self._copying = False
            if not self._pending:
                self._unasked = True  # there is a Sync to come
        elif kind == ord("X"):
            self._left = True
        elif kind != ord("p"):  # which belongs to the login
            self._unasked = True

    def _append(self, kind: int) -> None:
        pending = self._pending
        if pending and pending[-1][0] == kind:
            pending[-1][1] += 1
        elif len(pending) < MOST_PENDING:
            pending.append([kind, 1])
        else:
            self.opaque = True

    # The server

    def from_server(self, data: bytes) -> None:
        if self.opaque or self._cancels:
            return
        while self._handshakes and data:
            if data[:1] == b"E":
                self._handshakes = 0  # an ErrorResponse of a server that knows no such thing
            elif data[:1] == b"N":
                self._handshakes -= 1
                data = data[1:]
            else:
                self.opaque = True
                return
        if data and self._started:
            self.opening = b""
        for kind, first in self._server.feed(data):
            if kind == ord("Z"):
                self._answered(first)
            elif kind == ord("G"):
                self._takes_rows()
            elif kind == ord("W"):
                self.opaque = True
        if self._server.bad:
            self.opaque = True

    def _answered(self, status: int) -> None:
        welcome = self._status < 0
        self._status = status
        self._copying = False
        if welcome:
            return
        pending = self._pending
        while pending and pending[0][0] in ROWS_END:
            pending.popleft()
        if pending:
            pending[0][1] -= 1
            if not pending[0][1]:
                pending.popleft()

    def _takes_rows(self) -> None:
        """CopyInResponse: until the client says that all rows are there, Sync is ignored."""
        pending = list(self._pending)
        asked = pending[:1] if pending and pending[0][0] != ord("S") else []  # the Query for it
        rest = pending[len(asked) :]
        ended = next((at for at, (kind, _) in enumerate(rest) if kind in ROWS_END), None)
        self._copying = ended is None
        ignored = rest[:ended]
        behind = [] if ended is None else rest[ended + 1 :]
        self._pending = deque([*asked, *(each for each in ignored if each[0] != ord("S")), *behind])
        if not self._pending and not self._copying:
            self._unasked = True  # the Sync that counts has not been said yet
