"""When a session of MySQL or MariaDB is between two transactions, by what passes on the wire."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awesomeproxy.proxy.mysqlwire import COMPRESS, DEPRECATE_EOF, TLS, ZSTD, MysqlSession

CLIENT, SERVER = "client", "server"
Said = tuple[str, bytes]
QUERY, INIT_DB, FIELDS, STATISTICS, PING = b"\x03", b"\x02", b"\x04", b"\x09", b"\x0e"
CHANGE_USER, PREPARE, EXECUTE, LONG_DATA, CLOSE = b"\x11", b"\x16", b"\x17", b"\x18", b"\x19"
SET_OPTION, FETCH, QUIT = b"\x1b", b"\x1c", b"\x01"
OTHERS = 0xFFFFFFFF & ~(COMPRESS | TLS | DEPRECATE_EOF | ZSTD)
IN_TRANSACTION, AUTOCOMMIT, MORE, CURSOR = 1, 2, 8, 0x40


def packets(*payloads: bytes, first: int = 1) -> bytes:
    """Packets that follow each other."""
    return b"".join(
        len(payload).to_bytes(3, "little") + bytes((number % 256,)) + payload
        for number, payload in enumerate(payloads, first)
    )


def ask(command: bytes, body: bytes = b"select 1") -> Said:
    return CLIENT, packets(command + body, first=0)


def tell(*payloads: bytes) -> Said:
    return SERVER, packets(*payloads)


def ok(status: int = AUTOCOMMIT, head: int = 0, more: bytes = b"") -> bytes:
    """An OK; 70,000 rows and a large id make its numbers long."""
    numbers = b"\xfd\x70\x11\x01" + b"\xfe" + bytes(8)
    return bytes((head,)) + numbers + status.to_bytes(2, "little") + b"\0\0" + more


def eof(status: int = AUTOCOMMIT) -> bytes:
    return b"\xfe\0\0" + status.to_bytes(2, "little")


ERROR = b"\xff\x15\x04#28000no"
PROGRESS = b"\xff\xff\xff\x01\x01\x02\x00\x00\x00\x02go"
COLUMN = b"\x03def" + bytes(20)
ROW, NULLS = b"\x01a\x01b", b"\xfb\xfb"
PREPARED = b"\0" + bytes(4) + b"\x02\0" + b"\x01\0" + bytes(3)  # two columns, one parameter


def greeting(capabilities: int = OTHERS | DEPRECATE_EOF | COMPRESS | TLS | ZSTD) -> Said:
    low, high = capabilities.to_bytes(4, "little")[:2], capabilities.to_bytes(4, "little")[2:]
    fixed = bytes(4) + b"scramble" + b"\0" + low + b"\x2d" + b"\2\0" + high + b"\x15" + bytes(10)
    return SERVER, packets(b"\x0a5.5.5-10.11.6-MariaDB\0" + fixed + b"scramble2\0", first=0)


def answer(capabilities: int = OTHERS) -> Said:
    body = capabilities.to_bytes(4, "little") + bytes(4) + b"\x2d" + bytes(23) + b"app\0\0"
    return CLIENT, packets(body)


def login(capabilities: int = OTHERS) -> list[Said]:
    return [
        greeting(),
        answer(capabilities),
        (SERVER, packets(b"\xfemysql_native_password\0salt", first=2)),
        (CLIENT, packets(b"hash", first=3)),
        (SERVER, packets(ok(), first=4)),
    ]


def session(*said: Said) -> MysqlSession:
    made = MysqlSession()
    hear(made, said)
    return made


def hear(made: MysqlSession, said: Iterable[Said]) -> None:
    for who, data in said:
        (made.from_client if who is CLIENT else made.from_server)(data)


def rows(end: bytes, *, old: bool, more: bytes = b"") -> bytes:
    """A result of two columns; ``old``: with an EOF behind their definitions."""
    middle = [eof()] if old else []
    return packets(b"\x02" + more, COLUMN, COLUMN, *middle, ROW, NULLS, end)


# Each: what is said after the login, and whether the session is idle then.  First with EOFs.
OLD: dict[str, tuple[list[Said], bool]] = {
    "a result": ([ask(QUERY), (SERVER, rows(eof(), old=True))], True),
    "in a transaction": ([ask(QUERY), (SERVER, rows(eof(3), old=True))], False),
    "no rows": ([ask(QUERY), tell(b"\x01", COLUMN, eof(), eof())], True),
    "columns": ([ask(QUERY), tell(b"\x01", COLUMN, eof())], False),
    "failed between rows": ([ask(QUERY), tell(b"\x01", COLUMN, eof(), ROW, ERROR)], True),
    "several results": (
        [
            ask(QUERY),
            (SERVER, rows(eof(2 | MORE), old=True)),
            tell(ok(2 | MORE)),
            (SERVER, rows(eof(2 | MORE), old=True)),
            tell(ok()),
        ],
        True,
    ),
    "one of several results": ([ask(QUERY), (SERVER, rows(eof(2 | MORE), old=True))], False),
    "prepared": ([ask(PREPARE), tell(PREPARED, COLUMN, eof(), COLUMN, COLUMN, eof())], True),
    "half prepared": ([ask(PREPARE), tell(PREPARED, COLUMN, eof(), COLUMN, COLUMN)], False),
    "known columns": ([ask(EXECUTE), tell(b"\x02\x00", eof(), ROW, eof())], True),
    "a cursor": ([ask(EXECUTE), tell(b"\x01", COLUMN, eof(2 | CURSOR))], True),
    "fetched": ([ask(FETCH), tell(ROW, ROW, eof())], True),
    "a list of fields": ([ask(FIELDS), tell(COLUMN, COLUMN, eof())], True),
    "an option": ([ask(SET_OPTION), tell(eof())], True),
}
NEW: dict[str, tuple[list[Said], bool]] = {
    "nothing": ([], True),
    "a query": ([ask(QUERY)], False),
    "done": ([ask(QUERY), tell(ok())], True),
    "done, and what has changed": ([ask(QUERY), tell(ok(more=b"\x04tail"))], True),
    "begun": ([ask(QUERY), tell(ok(AUTOCOMMIT | IN_TRANSACTION))], False),
    "committed": ([ask(QUERY), tell(ok(3)), ask(QUERY), tell(ok())], True),
    "failed": ([ask(QUERY), tell(ERROR)], True),
    "failed in a transaction": ([ask(QUERY), tell(ok(3)), ask(QUERY), tell(ERROR)], False),
    "a result": ([ask(QUERY), (SERVER, rows(ok(head=0xFE), old=False))], True),
    "a result in a transaction": ([ask(QUERY), (SERVER, rows(ok(3, 0xFE), old=False))], False),
    "columns said to follow": (
        [ask(QUERY), (SERVER, rows(ok(head=0xFE), old=False, more=b"\x01"))],
        True,
    ),
    "known columns": ([ask(EXECUTE), tell(b"\x02\x00", ROW, ok(head=0xFE))], True),
    "half a result": ([ask(QUERY), tell(b"\x01", COLUMN, ROW)], False),
    "progress": ([ask(QUERY), tell(PROGRESS)], False),
    "progress, then done": ([ask(QUERY), tell(PROGRESS, PROGRESS, ok())], True),
    "prepared": ([ask(PREPARE), tell(PREPARED, COLUMN, COLUMN, COLUMN)], True),
    "prepared, nothing to define": ([ask(PREPARE), tell(bytes(12))], True),
    "not prepared": ([ask(PREPARE), tell(ERROR)], True),
    "executed": ([ask(EXECUTE), tell(ok())], True),
    "fetched": ([ask(FETCH), tell(b"\0row", ok(head=0xFE))], True),
    "long data, closed": ([ask(LONG_DATA), ask(CLOSE)], True),
    "statistics": ([ask(STATISTICS), tell(b"Uptime: 1")], True),
    "a ping": ([ask(PING, b""), tell(ok())], True),
    "another database": ([ask(INIT_DB), tell(ok())], True),
    "a file is asked for": ([ask(QUERY), tell(b"\xfbname")], False),
    "a file, half": ([ask(QUERY), tell(b"\xfbname"), (CLIENT, packets(b"a", first=2))], False),
    "a file, sent": (
        [ask(QUERY), tell(b"\xfbname"), (CLIENT, packets(b"a", b"b", b"", first=2))],
        False,
    ),
    "a file": (
        [ask(QUERY), tell(b"\xfbname"), (CLIENT, packets(b"a", b"", first=2)), tell(ok())],
        True,
    ),
    "two at once, one done": ([ask(QUERY), ask(QUERY), tell(ok())], False),
    "two at once": ([ask(QUERY), ask(QUERY), tell(ok()), tell(ok())], True),
    "another user, asked": ([ask(CHANGE_USER)], False),
    "another user": (
        [ask(CHANGE_USER), tell(b"\xfeplugin\0"), (CLIENT, packets(b"hash", first=3)), tell(ok())],
        True,
    ),
    "another user behind a query": ([ask(QUERY), ask(CHANGE_USER), tell(ok()), tell(ok())], True),
    "goodbye": ([ask(QUIT, b"")], False),
}
CASES = [
    *((f"old: {name}", OTHERS, *case) for name, case in OLD.items()),
    *((name, OTHERS | DEPRECATE_EOF, *case) for name, case in NEW.items()),
]
EACH = pytest.mark.parametrize(
    ("capabilities", "said", "idle"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)


@EACH
def test_when_a_session_is_idle(capabilities: int, said: list[Said], idle: bool) -> None:
    """It is idle when each command is answered to the end, outside a transaction."""
    made = session(*login(capabilities), *said)
    assert made.idle is idle
    assert not made.opaque


@EACH
def test_where_what_is_said_is_cut_makes_no_difference(
    capabilities: int, said: list[Said], idle: bool
) -> None:
    """Cut at any place, or byte for byte, it comes to the same, and is not idle in between."""
    for index, (who, data) in enumerate(said):
        for at in range(1, len(data)):
            made = session(*login(capabilities), *said[:index], (who, data[:at]))
            if not packet_ends(data, at):
                assert not made.idle, (index, at)
            hear(made, [(who, data[at:]), *said[index + 1 :]])
            assert made.idle is idle, (index, at)
    everything = [*login(capabilities), *said]
    made = session(*((w, data[i : i + 1]) for w, data in everything for i in range(len(data))))
    assert made.idle is idle


def packet_ends(data: bytes, at: int) -> bool:
    """Whether a packet of ``data`` ends at that place."""
    place = 0
    while place < at:
        place += 4 + int.from_bytes(data[place : place + 3], "little")
    return place == at


@pytest.mark.parametrize("count", range(5))
def test_before_the_login_nothing_can_be_lost(count: int) -> None:
    """A session that has not logged in is idle, and nobody is told anything."""
    made = session(*login()[:count])
    assert made.idle
    assert not made.between
    assert made.goodbye_to_server() == b""


def test_what_a_client_asks_before_it_is_let_in_counts() -> None:
    """MariaDB's connectors do not wait for the login."""
    made = session(greeting(), answer(), ask(QUERY), (SERVER, packets(ok(), first=2)))
    assert not made.idle
    hear(made, [tell(ok())])
    assert made.idle


@pytest.mark.parametrize("end", [b"", b"abc"])
def test_what_is_longer_than_a_packet_goes_on_in_the_next(end: bytes) -> None:
    """A row of 16 MB is one, whatever its second packet begins with."""
    made = session(*login(OTHERS | DEPRECATE_EOF), ask(QUERY), tell(b"\x01", COLUMN))
    whole = b"\xfe" + bytes(0xFFFFFF - 1)
    hear(made, [(SERVER, packets(whole))])
    hear(made, [(SERVER, packets(end))])
    assert not made.idle
    hear(made, [tell(ok(head=0xFE))])
    assert made.idle


@pytest.mark.parametrize(
    "said",
    [
        [greeting(), answer(OTHERS | TLS)],
        [greeting(), answer(OTHERS | COMPRESS)],
        [greeting(), answer(OTHERS | ZSTD)],
        [answer()],
        [(SERVER, packets(b"\x09old", first=0))],
        [(SERVER, packets(b"\x0ashort\0", first=0))],
        [(SERVER, packets(b"", first=0))],
        [greeting(), (CLIENT, packets(b"\x05\xa6old"))],
        [*login(), ask(b"\x12")],  # COM_BINLOG_DUMP
        [*login(), ask(b"\x77")],
        [*login(), (CLIENT, packets(b"", first=0))],
        [*login(), tell(ok())],
        [*login(), ask(PING), tell(b"\x02")],
        [*login(), ask(QUERY), tell(b"\0\xfc")],
        [*login(), ask(PREPARE), tell(b"\0\0")],
        [*login(), ask(QUERY), tell(b"\x01", COLUMN, ROW)],
        [*login(), *([ask(PING)] * 1001)],
    ],
)
def test_what_cannot_be_followed_is_opaque_for_ever(said: list[Said]) -> None:
    """Neither side can be told anything, and it is never idle again."""
    made = session(*said)
    assert made.opaque
    hear(made, [tell(ok()), ask(QUERY), tell(ok())])
    assert made.opaque
    assert not made.idle
    assert not made.between


def test_compression_that_the_server_does_not_know_is_not_agreed_on() -> None:
    """What counts is what both have."""
    made = session(greeting(OTHERS), answer(OTHERS | COMPRESS), (SERVER, packets(ok(), first=2)))
    assert made.idle
    assert not made.opaque


def test_an_error_out_of_nowhere_is_the_servers_goodbye() -> None:
    """It may be said instead of the greeting, or when nothing was asked."""
    assert not session((SERVER, packets(ERROR, first=0))).opaque
    assert not session(*login(), tell(ERROR)).opaque


def test_both_sides_are_told_goodbye_in_their_words() -> None:
    """The answer to the next command for the client, COM_QUIT for the server."""
    made = session(*login())
    assert made.goodbye_to_server() == b"\x01\0\0\0\x01"
    words = made.goodbye_to_client()
    assert words[:4] == (len(words) - 4).to_bytes(3, "little") + b"\x01"
    assert words[4:].startswith(b"\xff\x1d\x04#08S01Server shutdown in progress")
    assert made.refusal("why") == b"\x06\0\0\0\xff\x1d\x04why"


@settings(deadline=None, database=None, max_examples=200)
@given(
    st.booleans(),
    st.lists(st.tuples(st.sampled_from([CLIENT, SERVER]), st.binary(max_size=40)), max_size=12),
)
def test_anything_at_all_is_survived(logged_in: bool, said: list[Said]) -> None:
    """Whatever passes, nothing is raised."""
    made = session(*(login() if logged_in else []), *said)
    assert made.idle in (True, False)


@settings(deadline=None, database=None, max_examples=200)
@given(st.lists(st.sampled_from(sorted(NEW)), max_size=8))
def test_cases_follow_each_other(names: list[str]) -> None:
    """A session that has come back to idle is as good as new."""
    made = session(*login(OTHERS | DEPRECATE_EOF))
    for name in names:
        said, idle = NEW[name]
        if idle:
            hear(made, said)
            assert made.idle, name
