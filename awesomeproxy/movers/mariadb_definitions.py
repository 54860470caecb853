"""What a database has beside its tables: views, routines, triggers and events, as statements.

They are taken from ``SHOW CREATE``, which has them as they were written, and made again with
what was set when they were: ``sql_mode``, character set and collation, for an event the time
zone.  ``mariadb-dump`` would do as much, but fails where a database's name has a quote, and
what it writes can be broken out of by a body that has its delimiter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from awesomeproxy.movers.mariadb_server import MariadbServer, exactly, name, table, text

_UTF8 = ("utf8", "utf8mb3", "utf8mb4")
_COMMON = "DEFINER, SQL_MODE, COLLATION_CONNECTION"
_FACTS = {  # what tells one definition from another, in information_schema
    "VIEW": (
        "SELECT 'VIEW', TABLE_NAME, '', VIEW_DEFINITION, CHECK_OPTION, DEFINER, SECURITY_TYPE, "
        "ALGORITHM, COLLATION_CONNECTION FROM information_schema.VIEWS WHERE TABLE_SCHEMA = {here}"
    ),
    "ROUTINE": (
        "SELECT ROUTINE_TYPE, SPECIFIC_NAME, '', DTD_IDENTIFIER, ROUTINE_DEFINITION, "
        "IS_DETERMINISTIC, SQL_DATA_ACCESS, SECURITY_TYPE, ROUTINE_COMMENT, "
        f"{_COMMON} FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {{here}}"
    ),
    "PARAMETER": (
        "SELECT 'PARAMETER', SPECIFIC_NAME, '', ROUTINE_TYPE, ORDINAL_POSITION, PARAMETER_MODE, "
        "PARAMETER_NAME, DTD_IDENTIFIER FROM information_schema.PARAMETERS "
        "WHERE SPECIFIC_SCHEMA = {here}"
    ),
    "EVENT": (
        "SELECT 'EVENT', EVENT_NAME, '', EVENT_DEFINITION, EVENT_TYPE, EXECUTE_AT, "
        "INTERVAL_VALUE, INTERVAL_FIELD, STARTS, ENDS, STATUS, ON_COMPLETION, EVENT_COMMENT, "
        f"TIME_ZONE, {_COMMON} FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {{here}}"
    ),
    "TRIGGER": (
        "SELECT 'TRIGGER', TRIGGER_NAME, EVENT_OBJECT_TABLE, EVENT_MANIPULATION, ACTION_ORDER, "
        f"ACTION_STATEMENT, ACTION_TIMING, {_COMMON} FROM information_schema.TRIGGERS "
        "WHERE TRIGGER_SCHEMA = {here}"
    ),
}
_BEFORE = ("TRIGGER", "FUNCTION", "PROCEDURE")  # are made before the tables have their names


@dataclass(frozen=True, slots=True)
class Definition:
    """Something that a database has beside its tables, and the statements that make it."""

    kind: str
    called: str
    statements: tuple[str, ...]

    @property
    def early(self) -> bool:
        """Whether it has to be there before the first statement that uses the tables."""
        return self.kind in _BEFORE


async def facts(
    server: MariadbServer, database: str, open_names: Mapping[str, str]
) -> list[list[str]]:
    """What all of them are, to be compared with what they are elsewhere, or later.

    :param open_names: what tables that have been renamed are called otherwise.
    """
    here = exactly(database)
    printed = await server.run(*(query.format(here=here) for query in _FACTS.values()))
    rows = table(printed)
    for row in rows:
        row[2] = open_names.get(row[2], row[2])
    return sorted(rows)


async def definitions(
    server: MariadbServer, database: str, kinds: Sequence[str]
) -> list[Definition]:
    """All of ``kinds``, triggers in the order in which they act."""
    here = exactly(database)
    rows = await server.rows(
        "SELECT kind, called FROM ("
        "SELECT 'TRIGGER' AS kind, TRIGGER_NAME AS called, ACTION_ORDER AS place "
        f"FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {here} UNION ALL "
        "SELECT ROUTINE_TYPE, SPECIFIC_NAME, 0 "
        f"FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {here} UNION ALL "
        "SELECT 'EVENT', EVENT_NAME, 0 "
        f"FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {here} UNION ALL "
        "SELECT 'VIEW', TABLE_NAME, 0 "
        f"FROM information_schema.VIEWS WHERE TABLE_SCHEMA = {here}) t ORDER BY kind, place, called"
    )
    wanted = [(kind, called) for kind, called in rows if kind in kinds]
    shown = [f"SHOW CREATE {kind} {name(database)}.{name(called)}" for kind, called in wanted]
    answers = table(await server.run(*shown)) if shown else []
    made = [
        Definition(kind, called, tuple(_making(kind, called, answer)))
        for (kind, called), answer in zip(wanted, answers, strict=True)
    ]
    views = {each.called: each for each in made if each.kind == "VIEW"}
    return [each for each in made if each.kind != "VIEW"] + _in_order(database, views)


def _in_order(database: str, views: dict[str, Definition]) -> list[Definition]:
    """Views, each after those that it is made of, which it names with their database."""
    uses = {
        called: [
            other
            for other in views
            if other != called and f"{name(database)}.{name(other)}" in view.statements[1]
        ]
        for called, view in views.items()
    }
    return [views[called] for called in TopologicalSorter(uses).static_order()]


def _making(kind: str, called: str, answer: list[str]) -> list[str]:
    """The statements that make it, where it is not or is already.

    :param answer: the row that ``SHOW CREATE`` has given.
    """
    if kind == "VIEW":
        statement, charset, collation = answer[1:4]
        statement = "CREATE OR REPLACE" + statement.removeprefix("CREATE")
        setting = []
    else:
        zone = [answer.pop(2)] if kind == "EVENT" else []
        mode, statement, charset, collation = answer[1:5]
        setting = [f"sql_mode = {text(mode)}", *(f"time_zone = {text(each)}" for each in zone)]
    if not statement.isascii() and charset not in _UTF8:
        charset = "utf8mb4"  # what it is written in here; it means the same
    setting.append(f"character_set_client = {charset}")
    setting.append(f"collation_connection = {collation}")
    drop = [] if kind == "VIEW" else [f"DROP {kind} IF EXISTS {name(called)}"]
    return [
        *drop,
        f"SET SESSION {', '.join(setting)}",
        statement,
        "SET SESSION sql_mode = '', time_zone = DEFAULT",
        "SET NAMES utf8mb4",
    ]
