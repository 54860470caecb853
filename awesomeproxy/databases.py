"""What the configuration file may say of databases; see :mod:`awesomeproxy.config`."""

from __future__ import annotations

from pathlib import PurePosixPath

from awesomeproxy import addresses, model
from awesomeproxy.endpoints import endpoint
from awesomeproxy.model import Database, PgBouncer
from awesomeproxy.movers.kind import Kind
from awesomeproxy.movers.reading import ByMover, anything
from awesomeproxy.quantities import choice, count, duration, show
from awesomeproxy.shapes import Named, Shape, Spot

SOCKET = ".s.PGSQL."  # what PostgreSQL's clients want a Unix socket to be called, and the port


def check_database(database: Database, spot: Spot) -> None:
    """The backend it starts on is its own, and what is in front of it suits it."""
    known = " or ".join(map(show, database.backends))
    if database.backend and database.backend not in database.backends and known:
        spot.at("backend").wrong(
            f"{show(database.backend)} is not a backend of this database; write {known}"
        )
    if database.via == "pgbouncer":
        if database.protocol != "postgres" and not spot.at("protocol").marred:
            spot.at("protocol").wrong(
                f'is {show(database.protocol)}, but PgBouncer speaks PostgreSQL; write "postgres"'
            )
        if database.pgbouncer is None and not spot.at("pgbouncer").marred:
            spot.at("pgbouncer").wrong(
                "is missing, but clients come via it; add its address and database"
            )
    elif database.pgbouncer is not None and not spot.at("via").marred:
        spot.at("via").wrong('is missing, but there is a pgbouncer; write "pgbouncer"')
    if database.mover and database.filesystem:
        spot.at("mover").wrong("is one way to move it, and filesystem another; remove one of them")
    for backend in database.backends.values():
        place = spot.at("backends").at(backend.name)
        if database.mover and not spot.at("mover").marred:
            if backend.place is None:
                place.at("place").wrong("is missing; say where the mover finds the database")
            if not backend.node:
                place.at("node").wrong("is missing; name the node on which it stands")
        elif backend.place is not None and not spot.at("mover").marred:
            place.at("place").wrong("is for a mover, but the database has none; add mover")


def check_pgbouncer(pgbouncer: PgBouncer, spot: Spot) -> None:
    """Its Unix socket has a name that PostgreSQL's clients find it by."""
    name = PurePosixPath(pgbouncer.address.path).name if pgbouncer.address.path else SOCKET + "1"
    if not name.startswith(SOCKET) or not name.removeprefix(SOCKET).isdecimal():
        spot.at("address").wrong(
            f"{show(pgbouncer.address.url)} is not a socket of PgBouncer; write it as in "
            f'"unix:/run/postgresql/{SOCKET}6432"'
        )


_NOWHERE = model.Server("tcp", "nowhere", 1)

SERVICE = Shape(
    model.Service,
    {"start": addresses.command, "stop": addresses.command, "time": duration()},
)


def _backend(kind: Kind | None) -> Shape[model.DatabaseBackend]:
    return Shape(
        model.DatabaseBackend,
        {
            "server": addresses.database_server,
            "node": addresses.optional_name,
            "service": SERVICE,
            "place": anything if kind is None else kind.place,
        },
        needed={"server": _NOWHERE},
    )


_PGBOUNCER = Shape(
    PgBouncer,
    {
        "address": addresses.database_server,
        "database": addresses.label,
        "user": addresses.label,
        "password_file": addresses.some_path,
    },
    needed={"address": _NOWHERE, "database": ""},
    check=check_pgbouncer,
)


def _shape(kind: Kind | None) -> Shape[Database]:
    return Shape(
        Database,
        {
            "endpoint": endpoint,
            "backend": addresses.name,
            "backends": Named(_backend(kind)),
            "protocol": choice("tcp", "postgres", "mysql"),
            "hold": Shape(model.HoldLimits, {"max_requests": count(), "max_time": duration()}),
            "timeouts": Shape(
                model.DatabaseTimeouts, {"connect": duration(), "idle": duration(zero=True)}
            ),
            "retry": Shape(model.DatabaseRetry, {"budget": duration(zero=True)}),
            "drain": Shape(
                model.DatabaseDrain,
                {
                    "time": duration(zero=True),
                    "grace": duration(zero=True),
                    "tunnels": duration(zero=True),
                },
            ),
            "max_connections": count(),
            "via": choice("", "pgbouncer"),
            "pgbouncer": _PGBOUNCER,
            "filesystem": addresses.optional_name,
            "mover": addresses.optional_name,
            "options": anything if kind is None else kind.options,
        },
        needed={"endpoint": "", "backend": "", "backends": {}},
        check=check_database,
    )


DATABASE = ByMover("database", _shape)
