"""What cannot be moved, and why: asked of both servers before anything is done."""

from __future__ import annotations

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.mariadb_closing import Closing
from awesomeproxy.movers.mariadb_following import Following
from awesomeproxy.movers.mariadb_server import MariadbServer, exactly
from awesomeproxy.movers.mariadb_settings import OURS
from awesomeproxy.movers.shell import ShellError

_ENGINES = ("InnoDB", "MyISAM", "Aria", "MEMORY", "CSV", "ARCHIVE")
_SPARE = 1.2  # times as much room as the database takes
_REFUSED = (  # {here}: the database; what a query finds cannot be moved
    (
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {here} "
        f"AND TABLE_NAME LIKE '{OURS.replace('_', chr(92) + '_')}%'",
        f"the table {{}} has a name that begins with {OURS}; rename it",
    ),
    (
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {here} "
        "AND TABLE_TYPE = 'SYSTEM VERSIONED'",
        "the table {} is system-versioned, and its history cannot be carried; drop the versioning",
    ),
    (
        "SELECT CONCAT(TABLE_NAME, ' (', ENGINE, ')') FROM information_schema.TABLES "
        "WHERE TABLE_SCHEMA = {here} AND TABLE_TYPE <> 'VIEW' AND "
        f"ENGINE NOT IN {_ENGINES}",
        f"the storage engine of the table {{}} cannot be moved; use {' or '.join(_ENGINES)}",
    ),
    (
        "SELECT CONCAT(TABLE_NAME, '.', COLUMN_NAME) FROM information_schema.COLUMNS "
        "WHERE TABLE_SCHEMA = {here} AND COLUMN_DEFAULT RLIKE '(next|last|set)val\\\\('",
        "the default of the column {} uses a sequence, and names its database; drop the default",
    ),
    (
        "SELECT CONSTRAINT_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE "
        "(CONSTRAINT_SCHEMA = {here}) <> (UNIQUE_CONSTRAINT_SCHEMA = {here})",
        "the foreign key {} joins it with another database; drop it",
    ),
    (
        "SELECT EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {here} "
        "AND EVENT_TYPE = 'ONE TIME' AND STATUS = 'ENABLED'",
        "the event {} happens only once, which could be while nobody can write; "
        "wait for it, or disable it",
    ),
    (
        "SELECT v.TABLE_NAME FROM information_schema.VIEWS v WHERE v.TABLE_SCHEMA = {here} "
        "AND NOT EXISTS (SELECT 1 FROM information_schema.COLUMNS c "
        "WHERE c.TABLE_SCHEMA = v.TABLE_SCHEMA AND c.TABLE_NAME = v.TABLE_NAME)",
        "the view {} cannot be used, for what it is made of is not there; drop it",
    ),
)
_USERS = (  # who has to exist on the target
    "SELECT DISTINCT DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA = {here} UNION "
    "SELECT DEFINER FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {here} UNION "
    "SELECT DEFINER FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {here} UNION "
    "SELECT DEFINER FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {here} UNION "
    "SELECT CONCAT(User, '@', Host) FROM mysql.db WHERE Db = {here} AND User <> ''"
)
_EVERYBODY = "SELECT IF(is_role = 'Y', User, CONCAT(User, '@', Host)) FROM mysql.user"


async def check(source: Closing, target: Closing) -> None:
    """Refuse what cannot be moved in any way.

    :raise MoverError: it cannot; the message says what to do.
    """
    database, one, two = source.database, source.server, target.server
    if target.database != database:
        raise MoverError(
            f"{database!r} is called {target.database!r} on {two.node}; "
            "a database has one name on all nodes"
        )
    await _check_servers(one, two)
    if database not in await one.databases():
        raise MoverError(
            f"there is no database {database!r} on {one.node}; if it has been moved away, "
            "what is left of it is in a database whose name begins with " + OURS
        )
    await _check_vacant(target)
    here = exactly(database)
    answers = await one.answers(*(query.format(here=here) for query, _ in _REFUSED))
    for (_, complaint), rows in zip(_REFUSED, answers, strict=True):
        if rows:
            raise MoverError(f"{database!r} on {one.node}: " + complaint.format(repr(rows[0][0])))
    for status in await one.named("SHOW ALL SLAVES STATUS"):
        if not status["Connection_name"].startswith(OURS):
            raise MoverError(
                f"{one.node} replicates from {status['Master_Host']}, which would write to "
                f"{database!r} whoever is kept from it; end that first"
            )
    await _check_company(one, two, database)


async def check_room(source: MariadbServer, target: MariadbServer, size: int) -> None:
    """Refuse a copy for which there is no room, if the node can see the server's disk."""
    directory = await target.value("SELECT @@GLOBAL.datadir")
    try:
        printed = await target.shell.run("df", "--output=avail", "--block-size=1", "--", directory)
    except ShellError:
        return
    free = int(printed.split()[-1])
    if free < size * _SPARE:
        raise MoverError(
            f"there are {free} bytes free in {directory} on {target.node}, "
            f"and the database has {size} on {source.node}; make room"
        )


async def check_following(following: Following) -> None:
    """Refuse what replication cannot carry."""
    one, two, database = following.source, following.target, following.database
    here = exactly(database)
    say = 'or write method = "dump"'
    if one.place.settings.replication is None:
        raise MoverError(
            f"{two.node} has to reach the server of {one.node} for replication; "
            f"write `replication` there, {say}"
        )
    if "," in database or "->" in database or database != database.strip():
        raise MoverError(
            f'a filter for replication cannot have the name {database!r}; write method = "dump"'
        )
    tables, ((log, form, id_one, domain_one),) = await one.answers(
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_TYPE <> 'VIEW' "
        f"AND TABLE_SCHEMA = {here} AND ENGINE <> 'InnoDB'",
        "SELECT @@GLOBAL.log_bin, @@GLOBAL.binlog_format, @@GLOBAL.server_id, "
        "@@GLOBAL.gtid_domain_id",
    )
    if tables:
        raise MoverError(
            f"the table {tables[0][0]!r} of {database!r} on {one.node} is not one of InnoDB, and "
            f"cannot be copied consistently while it is in use; convert it, {say}"
        )
    if (log, form) != ("1", "ROW"):
        raise MoverError(
            f"log_bin is {log} and binlog_format is {form} on {one.node}, and replication needs "
            f"1 and ROW; set them, {say}"
        )
    for status in await one.named("SHOW MASTER STATUS"):
        listed = status["Binlog_Do_DB"].split(",") if status["Binlog_Do_DB"] else [database]
        if database not in listed or database in status["Binlog_Ignore_DB"].split(","):
            raise MoverError(
                f"the binary log of {one.node} leaves {database!r} out; have it there, {say}"
            )
    ((log, slave_log, strict, id_two, domain_two),), ((slaves,),) = await two.answers(
        "SELECT @@GLOBAL.log_bin, @@GLOBAL.log_slave_updates, @@GLOBAL.gtid_strict_mode, "
        "@@GLOBAL.server_id, @@GLOBAL.gtid_domain_id",
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE COMMAND LIKE 'Binlog Dump%' "
        f"AND LEFT(USER, {len(OURS)}) <> '{OURS}'",
    )
    if id_one == id_two:
        raise MoverError(
            f"both servers have the server_id {id_one}; give them different ones, {say}"
        )
    await following.refuse_others()
    if log == "1" and slave_log == "0" and slaves != "0":
        raise MoverError(
            f"others replicate from {two.node}, and would not get what it replicates itself; "
            f"set log_slave_updates there, {say}"
        )
    shared = (log, slave_log) == ("1", "1") and domain_one == domain_two
    if shared and (strict == "1" or slaves != "0"):
        raise MoverError(
            f"both servers write in the GTID domain {domain_one}, and {two.node} would write "
            f"what it replicates in between; give them different gtid_domain_id, {say}"
        )


async def _check_servers(one: MariadbServer, two: MariadbServer) -> None:
    versions, cases, packets = [], [], []
    for server in (one, two):
        ((version, case, packet),), rights = await server.answers(
            "SELECT VERSION(), @@GLOBAL.lower_case_table_names, @@GLOBAL.max_allowed_packet",
            "SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES WHERE GRANTEE = "
            "CONCAT(QUOTE(SUBSTRING_INDEX(CURRENT_USER(), '@', 1)), '@', "
            "QUOTE(SUBSTRING_INDEX(CURRENT_USER(), '@', -1)))",
        )
        if "MariaDB" not in version:
            raise MoverError(f"the server of {server.node} is {version}; only MariaDB is moved")
        if ["SUPER"] not in rights:
            raise MoverError(
                f"the user {server.place.settings.user!r} on {server.node} has no SUPER "
                "privilege; grant all privileges"
            )
        versions.append([int(part) for part in version.split("-")[0].split(".")[:2]])
        cases.append(case)
        packets.append(int(packet))
    if versions[0] > versions[1]:
        raise MoverError(f"the server of {two.node} is older than that of {one.node}; upgrade it")
    if cases[0] != cases[1]:
        raise MoverError(
            f"lower_case_table_names is {cases[0]} on {one.node} and {cases[1]} on {two.node}; "
            "they have to agree"
        )
    if packets[0] > packets[1]:
        raise MoverError(
            f"max_allowed_packet is larger on {one.node} than on {two.node}; set it there, too"
        )
    try:
        await one.shell.run("mariadb-dump", "--version")
    except ShellError as problem:
        raise MoverError(f"{problem}; install MariaDB's client programs on {one.node}") from None


async def _check_vacant(target: Closing) -> None:
    """The name must be free on the target, but for an empty database."""
    here, node = exactly(target.database), target.server.node
    found = await target.server.column(
        f"SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {here} UNION "
        f"SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {here} "
        f"UNION SELECT EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {here}"
    )
    if found:
        raise MoverError(
            f"{node} has a database {target.database!r} with something in it ({found[0]!r}); "
            "see whose it is, then drop it"
        )


async def _check_company(one: MariadbServer, two: MariadbServer, database: str) -> None:
    """What is not in the database, and has to be there for it: users, settings."""
    here = exactly(database)
    settings = (
        "SELECT @@GLOBAL.event_scheduler, "
        "@@GLOBAL.log_bin AND NOT @@GLOBAL.log_bin_trust_function_creators"
    )
    users, events, functions, (set_one,) = await one.answers(
        _USERS.format(here=here),
        "SELECT EVENT_NAME FROM information_schema.EVENTS "
        f"WHERE EVENT_SCHEMA = {here} AND STATUS = 'ENABLED'",
        "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_TYPE = 'FUNCTION' "
        f"AND ROUTINE_SCHEMA = {here} AND IS_DETERMINISTIC = 'NO' "
        "AND SQL_DATA_ACCESS IN ('CONTAINS SQL', 'MODIFIES SQL DATA')",
        settings,
    )
    there, (set_two,) = await two.answers(_EVERYBODY, settings)
    for user in users:
        if user not in there:
            raise MoverError(
                f"the user {user[0]!r}, who defines something in {database!r} or has rights on "
                f"it, is not on {two.node}; create it there, with its rights"
            )
    if events and set_one[0] == "ON" and set_two[0] != "ON":
        raise MoverError(
            f"the event {events[0][0]!r} would not happen on {two.node}; set event_scheduler = ON"
        )
    for server, (_, strict) in ((one, set_one), (two, set_two)):
        if functions and strict == "1":
            raise MoverError(
                f"{server.node} would not take the function {functions[0][0]!r} again; "
                "set log_bin_trust_function_creators = 1"
            )
