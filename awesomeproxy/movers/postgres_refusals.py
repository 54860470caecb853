"""What a PostgreSQL mover refuses, before anything is done.

Each query here answers with sentences, one for each thing that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.postgres_server import MAINTENANCE, PostgresServer, literal
from awesomeproxy.movers.shell import ShellError

OLDEST = 15  # the major version that this is tested with; older ones lack statistics we need
_USER = re.compile(r"(?:^|\s)user\s*=\s*(?:'((?:[^'\\]|\\.)*)'|(\S+))")
_SHOWN = 20  # sentences in one error

# Tables of users, as n.nspname and c.relname, on condition that more is asked for.
_TABLES = (
    "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')"
    " AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%'"
)
TABLES = f"{_TABLES} AND c.relkind = 'r' AND c.relpersistence <> 't'"
SEQUENCES = f"{_TABLES} AND c.relkind = 'S' AND c.relpersistence <> 't'"

# What logical replication cannot carry, https://www.postgresql.org/docs/15/
# logical-replication-restrictions.html, and what would disturb it.
_UNCARRIED = (
    # Without an identity even the source's own updates would fail from now on.
    f"SELECT format('the table %I.%I has no primary key and no replica identity; add a key, or "
    "ALTER TABLE ... REPLICA IDENTITY FULL', n.nspname, c.relname)"
    f" FROM {TABLES} AND c.relpersistence = 'p' AND (c.relreplident = 'n'"
    " OR c.relreplident = 'd' AND NOT EXISTS"
    "   (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)"
    " OR c.relreplident = 'i' AND NOT EXISTS"
    "   (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident))",
    # The whole row is compared then, with the equality of each type.
    f"SELECT format('the table %I.%I has REPLICA IDENTITY FULL and the column %I of type %s, "
    "which has no equality; add a primary key, and use that', n.nspname, c.relname, a.attname,"
    " format_type(a.atttypid, a.atttypmod))"
    f" FROM pg_attribute a, {TABLES} AND c.relreplident = 'f' AND a.attrelid = c.oid"
    " AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid IN ('json'::regtype,"
    " 'xml'::regtype, 'point'::regtype, 'line'::regtype, 'lseg'::regtype, 'path'::regtype,"
    " 'box'::regtype, 'polygon'::regtype, 'circle'::regtype)",
    "SELECT format('the table %I.%I is unlogged, and its rows are not replicated; "
    "ALTER TABLE ... SET LOGGED', n.nspname, c.relname)"
    f" FROM {TABLES} AND c.relpersistence = 'u'",
    "SELECT format('there are %s large objects, which are not replicated', count(*))"
    " FROM pg_largeobject_metadata HAVING count(*) > 0",
    "SELECT format('the trigger %I of the table %I.%I fires on replicas as well, and would do "
    "its work twice; ALTER TABLE ... ENABLE TRIGGER without REPLICA or ALWAYS',"
    " t.tgname, n.nspname, c.relname)"
    f" FROM pg_trigger t, {_TABLES} AND t.tgrelid = c.oid AND t.tgenabled IN ('A', 'R')"
    " AND NOT t.tgisinternal",
    "SELECT format('the event trigger %I fires on replicas as well; ALTER EVENT TRIGGER ... "
    "ENABLE without REPLICA or ALWAYS', evtname) FROM pg_event_trigger"
    " WHERE evtenabled IN ('A', 'R')",
)


def subscriber(conninfo: str) -> str:
    """The role that replication logs in with; empty: it is not said."""
    found = _USER.search(conninfo)
    if found is None:
        return ""
    return re.sub(r"\\(.)", r"\1", found[1]) if found[1] is not None else found[2]


async def check_server(server: PostgresServer) -> int:
    """Refuse a server that cannot be used.

    :return: its major version.
    :raise MoverError: which says why.
    """
    user = server.settings.user
    said = await server.bare(
        "SELECT current_setting('server_version_num')::int / 10000, rolsuper"
        " FROM pg_catalog.pg_roles WHERE rolname = current_user"
    )
    version, _, privileged = said.partition("|")
    if int(version) < OLDEST:
        raise MoverError(f"PostgreSQL on {server.node} is version {version}; use {OLDEST} or later")
    if privileged != "t":
        raise MoverError(
            f"the role {user!r} on {server.node} is no superuser, which moving needs; "
            "ALTER ROLE ... SUPERUSER, or name another user"
        )
    return int(version)


async def check_tools(server: PostgresServer, program: str, version: int) -> None:
    """Refuse programs that are missing, or older than the server they have to read."""
    try:
        said = await server.place.shell.run(*server.launch(program), "--version")
    except ShellError:
        raise MoverError(
            f"there is no {program} on {server.node}; install it, or say where it is (programs)"
        ) from None
    found = re.search(r"\) ([0-9]+)", said)
    if found is not None and int(found[1]) < version:
        raise MoverError(
            f"{program} on {server.node} is version {found[1]}, and the server {version}; "
            "install a newer one, or say where it is (programs)"
        )


async def check_source(server: PostgresServer, name: str) -> None:
    """Refuse what neither way of moving carries."""
    own = f"(SELECT oid FROM pg_database WHERE datname = {literal(name)})"
    await _refuse(
        server,
        name,
        f"SELECT format('the transaction %L is prepared; commit it or roll it back', gid)"
        f" FROM pg_prepared_xacts WHERE database = {literal(name)}",
        "SELECT format('the subscription %I replicates into it; drop it', subname)"
        f" FROM pg_subscription WHERE subdbid = {own}",
        "SELECT format('the replication slot %I reads from it, and would be left behind; drop it',"
        f" slot_name) FROM pg_replication_slots WHERE datoid = {own}"
        " AND slot_name NOT LIKE 'awesomeproxy\\_%'",
    )


async def check_target(source: PostgresServer, name: str, target: PostgresServer) -> None:
    """Refuse a target that lacks what the database refers to."""
    own = f"(SELECT oid FROM pg_database WHERE datname = {literal(name)})"
    wanted = {
        "role": "SELECT DISTINCT rolname FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid"
        f" WHERE refclassid = 'pg_authid'::regclass AND (dbid = {own} OR objid = {own}"
        " AND classid = 'pg_database'::regclass) UNION SELECT rolname FROM pg_db_role_setting s"
        f" JOIN pg_roles r ON r.oid = s.setrole WHERE setdatabase = {own}"
        " UNION SELECT rolname FROM pg_database d JOIN pg_roles r ON r.oid = datdba"
        f" WHERE d.oid = {own}",
        "extension": "SELECT extname FROM pg_extension",
        "tablespace": "SELECT DISTINCT spcname FROM pg_class c JOIN pg_tablespace t"
        " ON t.oid = c.reltablespace WHERE spcname <> 'pg_global'",
    }
    there = {
        "role": "SELECT rolname FROM pg_roles",
        "extension": "SELECT name FROM pg_available_extensions",
        "tablespace": "SELECT spcname FROM pg_tablespace",
    }
    remedy = {
        "role": "make it there",
        "extension": "install it there",
        "tablespace": "make it there, or move what is in it",
    }
    needed = await source.rows(name, _by_kind(wanted))
    found = await target.rows(MAINTENANCE, _by_kind(there))
    missing = [
        f"the {row['kind']} {row['name']!r} is missing on {target.node}; {remedy[row['kind']]}"
        for row in needed
        if row not in found
    ]
    _complain(source, name, missing)


async def check_replication(source: PostgresServer, name: str, target: PostgresServer) -> None:
    """Refuse what logical replication cannot carry, and servers that are not set up for it."""
    reading = source.settings.conninfo
    if not reading:
        raise MoverError(
            f"the server on {target.node} has to reach that on {source.node} for replication; "
            f'write conninfo for {source.node}, or method = "dump"'
        )
    queries = [*_UNCARRIED]
    queries.append(
        "SELECT 'wal_level is not logical; set it, and restart the server'"
        " WHERE current_setting('wal_level') <> 'logical'"
    )
    # One slot and sender for all of it, and one at least for the copies of tables.
    for setting, used in (
        ("max_replication_slots", "pg_replication_slots"),
        ("max_wal_senders", "pg_stat_replication"),
    ):
        queries.append(
            f"SELECT '{setting} leaves none for two more; raise it, and restart the server'"
            f" WHERE current_setting('{setting}')::int < 2 + (SELECT count(*) FROM {used})"
        )
    if role := subscriber(reading):
        is_role = f"rolname = {literal(role)}"
        queries += [
            "SELECT format('the role %I of conninfo may not replicate; ALTER ROLE ... REPLICATION',"
            f" {literal(role)}) WHERE NOT EXISTS (SELECT FROM pg_roles WHERE {is_role}"
            " AND rolcanlogin AND (rolreplication OR rolsuper))",
            f"SELECT format('the role %I of conninfo cannot read %I.%I; GRANT pg_read_all_data to"
            " it', r.rolname, n.nspname, c.relname)"
            f" FROM pg_roles r, {TABLES} AND {is_role} AND c.relpersistence = 'p' AND NOT"
            " (has_table_privilege(r.oid, c.oid, 'SELECT')"
            " AND has_schema_privilege(r.oid, n.oid, 'USAGE'))",
            f"SELECT format('the role %I of conninfo does not see all rows of %I.%I; ALTER ROLE ..."
            " BYPASSRLS', r.rolname, n.nspname, c.relname)"
            f" FROM pg_roles r, {TABLES} AND {is_role} AND c.relrowsecurity"
            " AND NOT r.rolsuper AND NOT r.rolbypassrls",
        ]
    await _refuse(source, name, *queries, more='; or write method = "dump"')
    receiving = [
        f"SELECT '{setting} of {{}} is too low; set it to at least {least}'"
        f" WHERE current_setting('{setting}')::int < {least}"
        for setting, least in (
            ("max_logical_replication_workers", 2),
            ("max_replication_slots", 2),
            ("max_worker_processes", 3),
        )
    ]
    queries = [query.format(f"the server on {target.node}") for query in receiving]
    await _refuse(target, MAINTENANCE, *queries)


def _by_kind(queries: Mapping[str, str]) -> str:
    """One query of several, each of which answers with names of one kind."""
    return " UNION ALL ".join(
        f"SELECT {literal(kind)} AS kind, name FROM ({query}) AS q(name)"
        for kind, query in queries.items()
    )


async def _refuse(server: PostgresServer, name: str, *queries: str, more: str = "") -> None:
    union = " UNION ALL ".join(f"SELECT * FROM ({query}) AS q" for query in queries)
    _complain(server, name, await server.column(name, union), more)


def _complain(server: PostgresServer, name: str, wrong: list[str], more: str = "") -> None:
    if not wrong:
        return
    rest = len(wrong) - _SHOWN
    shown = [*wrong[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]
    raise MoverError(f"{name!r} cannot be moved from or to {server.node}: {'; '.join(shown)}{more}")
