"""What an operator writes about a PostgreSQL database: where it is, and how it is to be moved.

Statements are run on the node itself, by its ``psql``, mostly through the server's socket
and as the server's own user (``run_as``).  Only for replication does a server have to reach
another: ``conninfo`` of one node is what the *other* node's server connects to it with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from awesomeproxy.addresses import port, server_name, some_path, text_of
from awesomeproxy.quantities import choice, show, size
from awesomeproxy.shapes import Shape

_LONGEST_NAME = 63  # bytes; NAMEDATALEN - 1
_KEPT = ("postgres", "template0", "template1")
_PAIR = re.compile(r"\s*[a-z_]+\s*=\s*(?:'(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)+)(?=\s|$)", re.DOTALL)
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def database_name(value: object) -> str:
    """The name of a database, but for those that a server has for itself."""
    text = text_of(value, "a database's name")
    if not 0 < len(text.encode()) <= _LONGEST_NAME or "\0" in text:
        raise ValueError(
            f"{show(text)} cannot be a database's name; write 1 to {_LONGEST_NAME} bytes"
        )
    if text in _KEPT:
        raise ValueError(f"{show(text)} belongs to the server; write the name of one of yours")
    return text


def role_name(value: object) -> str:
    """The name of a role."""
    text = text_of(value, "a role's name")
    if not 0 < len(text.encode()) <= _LONGEST_NAME or "\0" in text:
        raise ValueError(f"{show(text)} cannot be a role; write 1 to {_LONGEST_NAME} bytes")
    return text


def system_user(value: object) -> str:
    """A user of the operating system, or nothing."""
    text = text_of(value, "a user's name")
    if text and not _USER.fullmatch(text):
        raise ValueError(f'{show(text)} cannot be a user; write a name, as in "postgres"')
    return text


def conninfo(value: object) -> str:
    """How a server is reached, as libpq takes it, or nothing; no error repeats it."""
    if not isinstance(value, str):
        raise ValueError('is not a text; write it in quotes, as in "host=db1 user=mover"')
    if _PAIR.sub("", value).strip() or "\0" in value:
        raise ValueError(
            "is not made of KEY=VALUE pairs; "
            'write it as in "host=10.0.0.1 port=5432 user=mover passfile=/etc/mover.pgpass"'
        )
    return value


@dataclass(frozen=True, slots=True)
class PostgresPlace:
    """Where a database is on one node, and how its server is reached from there."""

    database: str
    user: str = "postgres"
    port: int = 5432
    socket: str = ""  # the directory of the server's socket; empty: libpq's own idea
    host: str = ""  # instead of a socket
    run_as: str = ""  # the system's user who runs the programs; empty: the daemon's
    password_file: str = ""  # on the node
    conninfo: str = field(default="", repr=False)  # it may have a password
    programs: str = ""  # the directory of psql, pg_dump and pg_restore; empty: in PATH


@dataclass(frozen=True, slots=True)
class PostgresOptions:
    """How a database is moved."""

    method: Literal["auto", "replicate", "dump"] = "auto"
    dump_below: int = 64 * 1024**2  # bytes
    checksum: Literal["full", "counts"] = "full"


PLACE = Shape(
    PostgresPlace,
    {
        "database": database_name,
        "user": role_name,
        "port": port,
        "socket": some_path,
        "host": server_name,
        "run_as": system_user,
        "password_file": some_path,
        "conninfo": conninfo,
        "programs": some_path,
    },
    needed={"database": "database"},
    check=lambda made, spot: (
        spot.at("host").wrong("is here beside a socket; leave one out")
        if made.host and made.socket
        else None
    ),
)

OPTIONS = Shape(
    PostgresOptions,
    {
        "method": choice("auto", "replicate", "dump"),
        "dump_below": size(zero=True),
        "checksum": choice("full", "counts"),
    },
)

ABOUT: Mapping[str, str] = {
    "database": "the database's name",
    "user": "the role that moves it: a superuser, since logical replication needs one",
    "port": "the server's port; the name of its socket has it, too",
    "socket": "the directory of the server's socket",
    "host": "where the server is, if the node does not reach it through a socket",
    "run_as": 'the system\'s user who runs psql, as in "postgres"; the daemon has to be root then',
    "password_file": "a file of passwords on the node (as PGPASSFILE)",
    "conninfo": "how the other node's server reaches this one, for replication; with a role "
    "that has REPLICATION and can read all tables; the database's name is put in",
    "programs": "the directory of psql, pg_dump and pg_restore",
    "method": "replicate: logical replication; dump: dump and restore while requests wait; "
    "auto: a dump if the database is smaller than dump_below",
    "dump_below": "how small a database has to be to be dumped",
    "checksum": "full: compare each row of each table before the commit; counts: only how many",
}
