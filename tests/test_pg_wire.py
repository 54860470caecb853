"""When a session of PostgreSQL is between two transactions, by what passes on the wire."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awesomeproxy.proxy.pgwire import CANCEL, GSS, SSL, PostgresSession, error

CLIENT, SERVER = "client", "server"
Said = tuple[str, bytes]


def message(kind: str, body: bytes = b"") -> bytes:
    """One message, of either side."""
    return kind.encode() + (len(body) + 4).to_bytes(4, "big") + body


def start(code: int = 3 << 16, body: bytes = b"user\0app\0\0") -> bytes:
    """A startup packet, or what comes instead of one."""
    return (len(body) + 8).to_bytes(4, "big") + code.to_bytes(4, "big") + body


def ready(status: str = "I") -> Said:
    return SERVER, message("Z", status.encode())


def ask(*kinds: str) -> Said:
    """The client says messages of these kinds, each with a little in it."""
    return CLIENT, b"".join(message(kind, b"" if kind == "S" else b"select 1\0") for kind in kinds)


def tell(*kinds: str) -> Said:
    return SERVER, b"".join(message(kind, b"something\0") for kind in kinds)


LOGIN: list[Said] = [
    (CLIENT, start()),
    (SERVER, message("R", bytes(4)) + message("S", b"a\0b\0") + message("K", bytes(8))),
    ready(),
]


def session(*said: Said) -> PostgresSession:
    """A session in which all that was said."""
    made = PostgresSession()
    hear(made, said)
    return made


def hear(made: PostgresSession, said: Iterable[Said]) -> None:
    for who, data in said:
        (made.from_client if who is CLIENT else made.from_server)(data)


# Each: what is said after the login, and whether the session is idle then.
CASES: dict[str, tuple[list[Said], bool]] = {
    "nothing": ([], True),
    "a query": ([ask("Q")], False),
    "its rows": ([ask("Q"), tell("T", "D", "C")], False),
    "answered": ([ask("Q"), tell("T", "D", "C"), ready()], True),
    "failed": ([ask("Q"), tell("E"), ready()], True),
    "in a transaction": ([ask("Q"), tell("C"), ready("T")], False),
    "in a failed one": ([ask("Q"), tell("E"), ready("E")], False),
    "committed": ([ask("Q"), ready("T"), ask("Q"), ready()], True),
    "the next one on its way": ([ask("Q"), ask("Q"), ready()], False),
    "both answered": ([ask("Q", "Q"), ready(), ready()], True),
    "extended, without a Sync": ([ask("P", "B", "E", "H"), tell("1", "2", "C")], False),
    "extended": ([ask("P", "B", "E", "S"), tell("1", "2", "C"), ready()], True),
    "a pipeline, half answered": ([ask(*"PBESBES"), tell("1", "C"), ready()], False),
    "a pipeline": ([ask(*"PBESBES"), ready(), ready()], True),
    "parsed while another is answered": ([ask("Q"), ask("P"), ready()], False),
    "a call of a function": ([ask("F"), tell("V"), ready()], True),
    "a notice": ([tell("N", "A", "S")], True),
    "COPY TO": ([ask("Q"), tell("H", "d", "d", "c", "C"), ready()], True),
    "COPY FROM, begun": ([ask("Q"), tell("G")], False),
    "COPY FROM, rows": ([ask("Q"), tell("G"), ask("d", "d", "c"), tell("C")], False),
    "COPY FROM": ([ask("Q"), tell("G"), ask("d", "d", "c"), tell("C"), ready()], True),
    "COPY FROM, unasked": ([ask("Q", "d", "c"), tell("G", "C"), ready()], True),
    "COPY FROM, and a query behind": ([ask("Q"), tell("G"), ask("d", "c", "Q"), ready()], False),
    "COPY FROM, extended, without the Sync that counts": (
        [ask(*"PBES"), tell("G"), ask("d", "c"), tell("C")],
        False,
    ),
    "COPY FROM, extended, all said before": ([ask(*"PBESdcS"), tell("G", "C"), ready()], True),
    "COPY FROM, extended, all but the Sync": ([ask(*"PBESdc"), tell("G")], False),
    "COPY FROM, extended": (
        [ask(*"PBES"), tell("G"), ask("d", "c", "S"), tell("C"), ready()],
        True,
    ),
    "COPY FROM, failed, while rows come": (
        [ask("Q"), tell("G"), ask("d"), tell("E"), ready(), ask("d", "d", "c")],
        True,
    ),
    "COPY FROM, failed, then a query": (
        [ask("Q"), tell("G"), ask("d"), tell("E"), ready(), ask("Q")],
        False,
    ),
    "COPY FROM, given up": ([ask("Q"), tell("G"), ask("d", "f"), tell("E"), ready()], True),
    "goodbye": ([ask("X")], False),
}


@pytest.mark.parametrize("name", CASES)
def test_when_a_session_is_idle(name: str) -> None:
    """It is idle when all that was asked for is answered, outside a transaction."""
    said, idle = CASES[name]
    assert session(*LOGIN, *said).idle is idle


@pytest.mark.parametrize("name", CASES)
def test_where_what_is_said_is_cut_makes_no_difference(name: str) -> None:
    """Cut at any place, or byte for byte, it comes to the same, and never is idle in between."""
    said, idle = CASES[name]
    for index, (who, data) in enumerate(said):
        for at in range(1, len(data)):
            made = session(*LOGIN, *said[:index], (who, data[:at]))
            inside = message_ends(data, at)
            if not inside:
                assert not made.idle, (index, at)
            hear(made, [(who, data[at:]), *said[index + 1 :]])
            assert made.idle is idle, (index, at)
    letters = [(who, data[at : at + 1]) for who, data in [*LOGIN, *said] for at in range(len(data))]
    assert session(*letters).idle is idle


def message_ends(data: bytes, at: int) -> bool:
    """Whether a message of ``data`` ends at that place."""
    place = 0
    while place < at:
        place += 1 + int.from_bytes(data[place + 1 : place + 5], "big")
    return place == at


@pytest.mark.parametrize(
    "said",
    [
        [],
        [(CLIENT, start()[:3])],
        [(CLIENT, start())],
        [(CLIENT, start(SSL, b""))],
        [(CLIENT, start(SSL, b"")), (SERVER, b"N")],
        [(CLIENT, start(GSS, b"")), (SERVER, b"N"), (CLIENT, start(SSL, b"")), (SERVER, b"N")],
        [*LOGIN[:2], (CLIENT, message("p", b"secret\0"))],
    ],
)
def test_before_the_login_nothing_can_be_lost(said: list[Said]) -> None:
    """A session that has not logged in is idle, and the client can be told so."""
    made = session(*said)
    assert made.idle
    assert made.between
    assert made.goodbye_to_server() == b""


def test_what_a_client_asks_before_it_is_let_in_counts() -> None:
    """The ReadyForQuery of the login answers none of it."""
    made = session(LOGIN[0], ask("Q"), *LOGIN[1:])
    assert not made.idle
    hear(made, [ready()])
    assert made.idle


@pytest.mark.parametrize(
    "said",
    [
        [(CLIENT, start(SSL, b"")), (SERVER, b"S")],
        [(CLIENT, start(GSS, b"")), (SERVER, b"G")],
        [(CLIENT, start(GSS, b"")), (SERVER, b"N"), (CLIENT, start(SSL, b"")), (SERVER, b"S")],
        [(CLIENT, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")],  # TLS at once
        [(CLIENT, b"GET / HTTP/1.1\r\n\r\n")],
        [(CLIENT, start(2 << 16))],
        [*LOGIN, (SERVER, b"N\0\0\0\3")],
        [*LOGIN, (CLIENT, b"Q\0\0\0\0")],
        [*LOGIN, ask("Q"), tell("W")],  # replication
        [*LOGIN, *([ask("Q", "S")] * 600)],
    ],
)
def test_what_cannot_be_followed_is_opaque_for_ever(said: list[Said]) -> None:
    """Neither side can be told anything, and it is never idle again."""
    made = session(*said)
    assert made.opaque
    hear(made, [ready(), ask("Q"), ready()])
    assert made.opaque
    assert not made.idle
    assert not made.between


def test_a_server_that_refuses_encryption_with_an_error_is_understood() -> None:
    """What comes instead of a letter is an ErrorResponse."""
    made = session((CLIENT, start(SSL, b"")), (SERVER, message("E", b"SFATAL\0\0")))
    assert not made.opaque


def test_a_cancel_is_left_alone() -> None:
    """A connection that cancels ends by itself, and at once."""
    made = session((CLIENT, start(CANCEL, bytes(8))))
    assert (made.idle, made.opaque, made.between) == (False, False, False)


def test_many_questions_of_one_kind_are_no_burden() -> None:
    """A long pipeline is counted, not kept."""
    made = session(*LOGIN, *([ask("B", "E", "S")] * 5000))
    hear(made, [ready()] * 4999)
    assert not made.idle
    hear(made, [ready()])
    assert made.idle


def test_both_sides_are_told_goodbye_in_their_words() -> None:
    """An ErrorResponse of class 57 for the client, Terminate for the server."""
    made = session(*LOGIN)
    assert made.goodbye_to_server() == b"X\0\0\0\4"
    words = made.goodbye_to_client()
    assert words[:1] == b"E"
    assert int.from_bytes(words[1:5], "big") == len(words) - 1
    fields = words[5:].split(b"\0")
    assert fields[:3] == [b"SFATAL", b"VFATAL", b"C57P01"]
    assert fields[3].startswith(b"Mterminating connection")
    assert fields[4:] == [b"", b""]
    assert made.refusal("why") == error("57P03", "why")


@settings(deadline=None, database=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([CLIENT, SERVER]), st.binary(max_size=40)), max_size=12))
def test_anything_at_all_is_survived(said: list[Said]) -> None:
    """Whatever passes, nothing is raised, and little is kept."""
    made = session(*said)
    assert made.idle in (True, False)


@settings(deadline=None, database=None, max_examples=200)
@given(st.lists(st.sampled_from(sorted(CASES)), max_size=8))
def test_cases_follow_each_other(names: list[str]) -> None:
    """A session that has come back to idle is as good as new."""
    made = session(*LOGIN)
    for name in names:
        said, idle = CASES[name]
        if idle:
            hear(made, said)
            assert made.idle, name
