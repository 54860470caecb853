"""What an operator writes about a MariaDB database: where it is, and how it is to be moved.

Statements are run on the node itself, by its ``mariadb``, mostly through the server's socket.
Only for replication does a server have to reach another: ``replication`` of one node is
where the *other* node's server finds this one's.  Nobody writes a password for that: the
mover makes an account for the moment that it takes to connect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from awesomeproxy.addresses import port, server_name, some_path, text_of
from awesomeproxy.quantities import choice, show, size
from awesomeproxy.shapes import Shape, Spot

LONGEST_NAME = 64  # characters of any identifier
OURS = "awesomeproxy_"  # what the names of all that a mover makes begin with
_KEPT = ("information_schema", "mysql", "performance_schema", "sys")


def database_name(value: object) -> str:
    """The name of a database, but for those that a server, or a mover, has for itself."""
    text = text_of(value, "a database's name")
    if not 0 < len(text) <= LONGEST_NAME or "\0" in text or max(text) > "\uffff":
        raise ValueError(
            f"{show(text)} cannot be a database's name; write 1 to {LONGEST_NAME} characters "
            "of Unicode's first plane"
        )
    if text.endswith(" "):
        raise ValueError(f"{show(text)} ends with a space; MariaDB has no such databases")
    if text.lower() in _KEPT or text.lower().startswith(OURS):
        raise ValueError(f"{show(text)} is not one to be moved; write the name of one of yours")
    return text


def user_name(value: object) -> str:
    """The user whom the clients connect as."""
    text = text_of(value, "a user's name")
    if not text or not text.isprintable():
        raise ValueError(f'{show(text)} cannot be a user; write a name, as in "root"')
    return text


def some_host(value: object) -> str:
    """A host that has to be named."""
    host = server_name(value)
    if not host:
        raise ValueError('is empty; write a host name or an address, as in "10.0.0.1"')
    return host


@dataclass(frozen=True, slots=True)
class Replication:
    """Where the other node's server finds this one."""

    host: str
    port: int = 3306
    tls_ca: str = ""  # a file on the other node; empty: without TLS


@dataclass(frozen=True, slots=True)
class MariadbPlace:
    """Where a database is on one node, and how its server is reached from there."""

    database: str
    user: str = "root"
    socket: str = ""  # empty: the client's own idea, or the host
    host: str = ""
    port: int = 3306
    defaults_file: str = ""  # on the node
    replication: Replication | None = None


@dataclass(frozen=True, slots=True)
class MariadbOptions:
    """How a database is moved."""

    method: Literal["auto", "replicate", "dump"] = "auto"
    dump_below: int = 64 * 1024**2  # bytes
    checksum: Literal["full", "counts"] = "full"


def _check_place(made: MariadbPlace, spot: Spot) -> None:
    if made.host and made.socket:
        spot.at("host").wrong("is here beside a socket; leave one out")


PLACE = Shape(
    MariadbPlace,
    {
        "database": database_name,
        "user": user_name,
        "socket": some_path,
        "host": server_name,
        "port": port,
        "defaults_file": some_path,
        "replication": Shape(
            Replication,
            {"host": some_host, "port": port, "tls_ca": some_path},
            needed={"host": "localhost"},
        ),
    },
    needed={"database": "database"},
    check=_check_place,
)

OPTIONS = Shape(
    MariadbOptions,
    {
        "method": choice("auto", "replicate", "dump"),
        "dump_below": size(zero=True),
        "checksum": choice("full", "counts"),
    },
)

ABOUT: Mapping[str, str] = {
    "database": "the database's name; the same on all nodes",
    "user": "the user who moves it, with all rights",
    "socket": "the server's socket",
    "host": "where the server is, if the node does not reach it through a socket",
    "port": "the server's port, beside a host",
    "defaults_file": "a file for the clients on the node (as --defaults-extra-file), "
    "which may have the user's password",
    "replication": "where the other node's server finds this one: host, port, and tls_ca, a file "
    "on the other node, if it is to be asked for a certificate; no user: one is made for it",
    "method": "replicate: a copy, and what changes after it by replication; "
    "dump: dump and load while requests wait; "
    "auto: a dump if the database is smaller than dump_below",
    "dump_below": "how small a database has to be to be dumped",
    "checksum": "full: compare all rows of each table before the commit; counts: only how many",
}
