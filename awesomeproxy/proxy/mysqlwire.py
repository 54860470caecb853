"""A session of MySQL or MariaDB, followed closely enough to know when it is between transactions.

All is said in packets: three bytes of length, one that counts, and the payload ("MySQL
Client/Server Protocol").  The server greets, the client logs in, and from then on each packet
of the client is a command.  The packet that ends the answer to a command, OK or EOF, has flags
that say whether a transaction is open.  What has to be known of an answer is therefore where it
ends, and that depends on the command and on what the two have agreed on at the login.

An error has no flags: what was so before is taken to be so still.

What is encrypted or compressed cannot be read, and the session is opaque.  So it is after a
command that is not known here, and where a server sends its binlog, which never ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from awesomeproxy.proxy.dbsession import SHUTDOWN, Session

MOST = 0xFFFFFF  # bytes of a payload; one that is as long goes on in the next packet
KEPT = 512  # bytes of each payload that are looked at: a greeting may have as many
MOST_PENDING = 1000  # commands without an answer, before it is given up
QUIT = b"\x01\0\0\0\x01"
# Capabilities (as MariaDB's mysql_com.h has them).
COMPRESS, TLS, DEPRECATE_EOF, ZSTD = 1 << 5, 1 << 11, 1 << 24, 1 << 26
# Flags of the server's status.
IN_TRANSACTION, MORE_RESULTS, CURSOR = 0x0001, 0x0008, 0x0040
OK, LOCAL_FILE, EOF, ERROR = 0x00, 0xFB, 0xFE, 0xFF
PROGRESS = 0xFFFF  # of MariaDB: an "error" that says how far a long statement is
# Commands, by how they are answered.
COM_QUIT, COM_STATISTICS, COM_CHANGE_USER, COM_PREPARE, COM_FETCH = 0x01, 0x09, 0x11, 0x16, 0x1C
COM_FIELD_LIST = 0x04
UNANSWERED = frozenset((0x18, 0x19))  # COM_STMT_SEND_LONG_DATA, COM_STMT_CLOSE
RESULTS = frozenset((0x03, 0x17, 0xFA))  # COM_QUERY, COM_STMT_EXECUTE, COM_STMT_BULK_EXECUTE
# COM_INIT_DB, CREATE_DB, DROP_DB, REFRESH, SHUTDOWN, PROCESS_KILL, DEBUG, PING, STMT_RESET,
# SET_OPTION, RESET_CONNECTION: one packet.
PLAIN = frozenset((0x02, 0x05, 0x06, 0x07, 0x08, 0x0C, 0x0D, 0x0E, 0x1A, 0x1B, 0x1F))
KNOWN = RESULTS | PLAIN | {COM_STATISTICS, COM_CHANGE_USER, COM_PREPARE, COM_FETCH, COM_FIELD_LIST}


def error(sequence: int, message: str, *, state: bool = True) -> bytes:
    """An ERR packet of a server that shuts down.

    :param sequence: the packet's number.
    :param state: whether the SQLSTATE is there, which is so once the client has logged in.
    """
    code = (1053).to_bytes(2, "little")  # ER_SERVER_SHUTDOWN
    payload = b"\xff" + code + (b"#08S01" if state else b"") + message.encode()
    return len(payload).to_bytes(3, "little") + bytes((sequence,)) + payload


def length_encoded(data: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer at a place in ``data``, and the place behind it.

    :raise IndexError: it is not there.
    """
    first = data[at]
    size = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(first, 0)
    if not size:
        return first, at + 1
    if len(data) < at + 1 + size:
        raise IndexError(at)
    return int.from_bytes(data[at + 1 : at + 1 + size], "little"), at + 1 + size


class Packets:
    """Cuts what one side says into packets; keeps no more of each than its beginning."""

    __slots__ = ("_continues", "_head", "_left", "_number", "_payload", "_size")

    def __init__(self) -> None:
        self._head = b""
        self._left = 0  # bytes of the present packet that are still to come
        self._number = 0
        self._size = 0
        self._payload = b""
        self._continues = False  # the next packet is the rest of this one

    @property
    def between(self) -> bool:
        """Whether no packet is under way."""
        return not self._left and not self._head and not self._continues

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """The packets that end in ``data``: of each its number, its length, and its beginning."""
        if self._head:
            data = self._head + data
            self._head = b""
        position, size = 0, len(data)
        while position < size:
            if not self._left:
                if size - position < 4:
                    self._head = data[position:]
                    return
                self._left = int.from_bytes(data[position : position + 3], "little")
                if not self._continues:
                    self._size, self._payload = 0, b""
                    self._number = data[position + 3]
                self._size += self._left
                self._continues = self._left == MOST
                position += 4
            taken = min(self._left, size - position)
            room = KEPT - len(self._payload)
            if room > 0 and taken:
                self._payload += data[position : position + min(taken, room)]
            position += taken
            self._left -= taken
            if not self._left and not self._continues:
                yield self._number, self._size, self._payload


class MysqlSession(Session):
    """One connection to MySQL or MariaDB; see the module."""

    halves = False  # either side's end is the end

    def __init__(self) -> None:
        super().__init__()
        self.opaque = False
        self._client = Packets()
        self._server = Packets()
        self._offered = -1  # capabilities of the server, once it has greeted
        self._agreed = -1  # of both, once the client has answered
        self._login = True  # the client is not logged in yet, or logs in again
        self._status = 0  # flags, of the last OK or EOF
        self._pending: deque[int] = deque()  # commands that are not answered to the end
        self._left = False
        self._local = False  # the client sends a file
        self._step = self._begins  # what the next packet of an answer is taken for
        self._blocks: list[int] = []  # how many definitions are still to come, and then more

    @property
    def idle(self) -> bool:
        """Whether nothing is under way; as long as nobody has logged in, nothing can be."""
        if self.opaque or self._left or self._pending or self._local:
            return False
        if not self._server.between or not self._client.between:
            return False
        return self._login or not self._status & IN_TRANSACTION

    @property
    def between(self) -> bool:
        """Whether an ERR packet could be put in as the answer to a command."""
        return not self.opaque and not self._login and self._server.between

    def goodbye_to_client(self) -> bytes:
        """What a server says that shuts down: the answer to the client's next command."""
        return error(1, f"Server shutdown in progress: {SHUTDOWN}")

    def goodbye_to_server(self) -> bytes:
        """COM_QUIT; before the login nobody says anything."""
        return b"" if self._login else QUIT

    @staticmethod
    def refusal(why: str) -> bytes:
        """In the place of the greeting."""
        return error(0, why, state=False)

    # The client

    def from_client(self, data: bytes) -> None:
        if self.opaque:
            return
        for number, size, payload in self._client.feed(data):
            if self._local:
                self._local = size > 0  # an empty packet ends the file
            elif self._login and (number or self._agreed < 0):
                self._logs_in(payload)
            else:  # maybe before it has heard that it is let in
                self._commands(payload)
            if self.opaque:
                return

    def _logs_in(self, payload: bytes) -> None:
        if self._agreed >= 0:
            return  # one of the packets of authentication
        wanted = int.from_bytes(payload[:4], "little")
        self._agreed = wanted & self._offered
        # An old client has sent two bytes; and nobody speaks before the greeting.
        if self._offered < 0 or len(payload) < 32 or self._agreed & (TLS | COMPRESS | ZSTD):
            self.opaque = True

    def _commands(self, payload: bytes) -> None:
        command = payload[0] if payload else -1
        if command == COM_QUIT:
            self._left = True
        elif command in KNOWN and len(self._pending) < MOST_PENDING:
            self._pending.append(command)
            if command == COM_CHANGE_USER and len(self._pending) == 1:
                self._login = True
        elif command not in UNANSWERED:
            self.opaque = True

    # The server

    def from_server(self, data: bytes) -> None:
        if self.opaque:
            return
        for _, size, payload in self._server.feed(data):
            try:
                self._hear(size, payload)
            except IndexError:  # shorter than it has to be
                self.opaque = True
            if self.opaque:
                return

    def _hear(self, size: int, payload: bytes) -> None:
        if self._offered < 0:
            self._greets(payload)
        elif self._login:
            self._lets_in(payload)
        elif not self._pending:
            self.opaque = payload[:1] != b"\xff"  # with which it ends the connection
        elif payload[:1] == b"\xff":
            if int.from_bytes(payload[1:3], "little") != PROGRESS:
                self._answered()
        else:
            self._step(size, payload)

    def _greets(self, payload: bytes) -> None:
        if payload[0] == ERROR:
            return
        end = payload.find(0, 1)
        fixed = payload[end + 1 :]
        if payload[0] != 10 or end < 0 or len(fixed) < 20:
            self.opaque = True
            return
        # Behind the version: thread 4, scramble 8, filler 1, capabilities 2, charset 1,
        # status 2, capabilities 2.
        low, high = fixed[13:15], fixed[18:20]
        self._offered = int.from_bytes(low + high, "little")

    def _lets_in(self, payload: bytes) -> None:
        if payload[0] == OK:
            self._login = False
            self._took(payload)
            if self._pending and self._pending[0] == COM_CHANGE_USER:
                self._answered()
        elif payload[0] == ERROR:
            self._pending.clear()

    def _took(self, payload: bytes) -> None:
        """An OK: take its flags, behind the two numbers of rows and of the last id."""
        _, at = length_encoded(payload, 1)
        _, at = length_encoded(payload, at)
        self._flags(payload, at)

    def _flags(self, payload: bytes, at: int) -> None:
        if len(payload) < at + 2:
            raise IndexError(at)
        self._status = int.from_bytes(payload[at : at + 2], "little")

    def _begins(self, size: int, payload: bytes) -> None:
        """The first packet of an answer."""
        command, first = self._pending[0], payload[0]
        if command == COM_STATISTICS:
            self._answered()
        elif command == COM_PREPARE:
            self._prepared(payload)
        elif command in (COM_FETCH, COM_FIELD_LIST):
            self._step = self._lists
            self._lists(size, payload)
        elif first == OK:
            self._took(payload)
            self._ended()
        elif first == EOF:
            self._ends(payload)
            self._ended()
        elif command not in RESULTS:
            self.opaque = True
        elif first == LOCAL_FILE:
            self._local = True
        else:
            columns, at = length_encoded(payload, 0)
            if size > at and not payload[at]:
                columns = 0  # MariaDB: the client remembers them from the time before
            self._define([columns])

    def _prepared(self, payload: bytes) -> None:
        """A statement is prepared: its columns and its parameters are defined."""
        if len(payload) < 9:
            raise IndexError
        columns = int.from_bytes(payload[5:7], "little")
        parameters = int.from_bytes(payload[7:9], "little")
        self._define([count for count in (parameters, columns) if count])

    def _define(self, blocks: list[int]) -> None:
        """So many definitions come in each block."""
        self._blocks = blocks
        self._step = self._defines
        self._next_block()

    def _defines(self, size: int, payload: bytes) -> None:
        """One of the definitions, or the EOF behind a block of them."""
        if self._blocks[0]:
            self._blocks[0] -= 1
            self._next_block()
        elif payload[0] == EOF:
            self._flags(payload, 3)
            del self._blocks[0]
            self._next_block()
        else:
            self.opaque = True

    def _next_block(self) -> None:
        if self._blocks and not self._blocks[0] and self._no_eof:
            del self._blocks[0]
        if self._blocks:
            return
        if self._pending[0] == COM_PREPARE:
            self._answered()
        elif self._status & CURSOR and not self._no_eof:
            self._ended()  # rows are to be fetched
        else:
            self._step = self._lists

    def _lists(self, size: int, payload: bytes) -> None:
        """A row, or what is behind the last of them."""
        if payload[:1] == b"\xfe" and size < (MOST if self._no_eof else 9):
            self._ends(payload)
            self._ended()

    @property
    def _no_eof(self) -> bool:
        return bool(self._agreed & DEPRECATE_EOF)

    def _ends(self, payload: bytes) -> None:
        """An EOF, or an OK in the place of one: take its flags."""
        if self._no_eof:
            self._took(payload)
        else:
            self._flags(payload, 3)

    def _ended(self) -> None:
        """A result is over; others may follow."""
        self._step = self._begins
        if not self._status & MORE_RESULTS:
            self._answered()

    def _answered(self) -> None:
        self._pending.popleft()
        self._step = self._begins
        if self._pending and self._pending[0] == COM_CHANGE_USER:
            self._login = True
