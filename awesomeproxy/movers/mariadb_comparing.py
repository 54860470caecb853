"""Whether an opened database is what a closed one was.

Tables are compared by their definitions, how many rows they have, and ``CHECKSUM TABLE``,
which goes through all rows and does not depend on their order.  What is beside tables is
compared with what was written down when the source was closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.mariadb_closing import Closing
from awesomeproxy.movers.mariadb_record import Closed
from awesomeproxy.movers.mariadb_server import LONG, MariadbServer, both, name, table

_AT_ONCE = 50  # tables that are looked at in one session
_LOOKS = ("definition", "number of rows", "checksum")  # the last, if asked for
_QUERIES = ("SHOW CREATE TABLE", "SELECT COUNT(*) FROM")
_COUNTER = re.compile(r" AUTO_INCREMENT=\d+")


async def compare(source: Closing, target: Closing, closed: Closed, full: bool) -> None:
    """See that they are the same.

    :param closed: what was written down when the source was closed.
    :param full: whether to compare all rows, or only how many there are.
    :raise MoverError: they are not; the message says where.
    """
    there, database = target.server, target.database
    names = await there.tables(database)
    for each in sorted(set(names) ^ set(closed.tables.values())):
        more = "has" if each in names else "lacks"
        raise MoverError(f"the copy of {database!r} on {there.node} {more} the table {each!r}")
    for part in _parts(sorted(closed.tables)):
        own = [closed.tables[each] for each in part]
        left, right = await both(
            _looks(source.server, source.place, part, full), _looks(there, database, own, full)
        )
        for was, here, copied in zip(own, left, right, strict=True):
            here[0] = _renamed(here[0], source.place, closed)
            for what, one, other in zip(_LOOKS, here, copied, strict=False):
                if one != other:
                    raise MoverError(
                        f"the table {was!r} of {database!r} on {there.node} is not what it was: "
                        f"its {what} is {other}, not {one}"
                    )
    now = await target.facts({})
    for fact in [*now, *closed.facts]:
        if fact not in now or fact not in closed.facts:
            raise MoverError(
                f"the {fact[0].lower()} {fact[1]!r} of {database!r} on {there.node} "
                "is not what it was"
            )


async def _looks(
    server: MariadbServer, database: str, names: list[str], full: bool
) -> list[list[str]]:
    """For each table its definition, the number of its rows and, perhaps, their checksum."""
    where = [f"{name(database)}.{name(each)}" for each in names]
    queries = [f"{what} {each}" for what in _QUERIES for each in where]
    if full:
        queries.append(f"CHECKSUM TABLE {', '.join(where)} EXTENDED")
    rows = table(await server.run(*queries, time=LONG))
    looks = [[_COUNTER.sub("", row[1])] for row in rows[: len(where)]]
    for position, row in enumerate(rows[len(where) :]):
        looks[position % len(where)].append(row[-1])
    return looks


def _renamed(definition: str, place: str, closed: Closed) -> str:
    """A definition with the names that tables, and keys named after them, have when open."""

    def replace(found: re.Match[str]) -> str:
        was = closed.tables.get(found[1])
        return name(was + (found[2] or "")) if was is not None else found[0]

    return re.sub(rf"`({place}_\d+)(_ibfk_\d+)?`", replace, definition)


def _parts(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]
