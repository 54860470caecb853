"""What a database has beside its rows, and whether two databases have the same.

Logical replication carries rows.  A database is made here as the source is (encoding,
locale, owner), and gets at the end what has no rows: the places where sequences are, the
database's own settings and privileges, and the contents of materialised views.

Two tables are the same if they have as many rows and the same sum of the rows' 64-bit
hashes, each of the whole row as text.  A sum, since rows have no order, and since equal
rows must count as often as they are there.  It finds what goes wrong by accident.
"""

from __future__ import annotations

import difflib
import json
import re

from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.postgres_door import Found
from awesomeproxy.movers.postgres_refusals import SEQUENCES, TABLES
from awesomeproxy.movers.postgres_server import LONG, MAINTENANCE, PostgresServer, ident, literal
from awesomeproxy.together import together

_OWN_SETTINGS = ("awesomeproxy.", "default_transaction_read_only=")
# Settings that are lists of names: GUC_LIST_QUOTE in the server's guc.c.
_LISTS = (
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
)
_ELEMENT = re.compile(r'"((?:[^"]|"")*)"|([^\s,"]+)')
_SHOWN = 8  # lines of a difference, tables that differ
SCHEMA = ("--schema-only", "--no-publications", "--no-subscriptions")
WHOLE = ("--no-publications", "--no-subscriptions")


async def create(source: PostgresServer, name: str, target: PostgresServer, new: str) -> None:
    """Make an empty database ``new`` that is as ``name`` is."""
    like = await source.row(
        MAINTENANCE,
        "SELECT pg_encoding_to_char(encoding) AS encoding, datcollate AS collate,"
        " datctype AS ctype, datlocprovider AS provider, coalesce(daticulocale, '') AS icu,"
        f" pg_get_userbyid(datdba) AS owner FROM pg_database WHERE datname = {literal(name)}",
    )
    text = f"CREATE DATABASE {ident(new)} TEMPLATE template0 OWNER {ident(like['owner'])}"
    for option in ("encoding", "collate", "ctype"):
        word = option if option == "encoding" else f"LC_{option}"
        text += f" {word} {literal(like[option])}"
    if like["provider"] == "i":
        text += f" LOCALE_PROVIDER icu ICU_LOCALE {literal(like['icu'])}"
    await target.run(MAINTENANCE, text, time=600.0)
    if not await source.rows(name, "SELECT 1 FROM pg_namespace WHERE nspname = 'public'"):
        await target.run(new, "DROP SCHEMA public")


async def empty(server: PostgresServer, name: str) -> bool:
    """Whether a database has nothing in it."""
    row = await server.row(
        name,
        "SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
        " WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast'))"
        " + (SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace"
        " WHERE nspname NOT IN ('pg_catalog', 'information_schema'))"
        " + (SELECT count(*) FROM pg_largeobject_metadata) AS things",
    )
    return int(row["things"]) == 0


async def empty_tables(server: PostgresServer, name: str) -> None:
    """Take out the rows that extensions have put into their tables: they are carried, too."""
    tables = f"SELECT string_agg(format('ONLY %I.%I', n.nspname, c.relname), ', ') FROM {TABLES}"
    await server.script(
        name, f"SELECT 'TRUNCATE ' || t FROM ({tables}) AS q(t) WHERE t IS NOT NULL \\gexec"
    )


async def make_room(server: PostgresServer, name: str) -> None:
    """Drop the largest table of a database that is going to be dropped.

    The disk may be full.  That takes no room, and gives some; dropping a database begins with
    a checkpoint, which needs some, and without it PostgreSQL panics.
    """
    await server.script(
        name,
        f"SELECT format('DROP TABLE %I.%I CASCADE', n.nspname, c.relname) FROM {TABLES}"
        " AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype = 'e')"
        " ORDER BY pg_relation_size(c.oid) DESC LIMIT 1 \\gexec",
    )


async def carry_sequences(
    source: PostgresServer, name: str, target: PostgresServer, new: str
) -> None:
    """Put all sequences of the target to where those of the source are."""
    ask = "SELECT format('SELECT pg_catalog.setval(%%L, %%s, %%L);', %L, last_value, is_called)"
    statements = await source.script(
        name,
        f"SELECT string_agg(format({literal(ask + ' FROM %I.%I')}, format('%I.%I', n.nspname,"
        f" c.relname), n.nspname, c.relname), ' UNION ALL ') FROM {SEQUENCES} \\gexec",
    )
    if statements.strip():
        await target.script(new, statements, time=600.0)


async def carry_views(source: PostgresServer, name: str, target: PostgresServer, new: str) -> None:
    """Fill the target's materialised views that are filled at the source."""
    views = await source.column(
        name,
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n"
        " ON n.oid = c.relnamespace WHERE c.relkind = 'm' AND c.relispopulated",
    )
    problem: MoverError | None = None
    while views:  # one may need another first
        left = []
        for view in views:
            try:
                await target.run(new, f"REFRESH MATERIALIZED VIEW {view}", time=LONG)
            except MoverError as failed:
                problem = failed
                left.append(view)
        if len(left) == len(views) and problem is not None:
            raise problem
        views = left


async def carry_properties(
    source: PostgresServer, found: Found, target: PostgresServer, new: str
) -> None:
    """Give the target the source's own settings, privileges, limit and comment."""
    to, of = ident(new), f"d.oid = {found.oid}"
    settings = await source.rows(
        MAINTENANCE,
        "SELECT coalesce(rolname, '') AS role, unnest(setconfig) AS pair FROM pg_db_role_setting"
        f" LEFT JOIN pg_roles r ON r.oid = setrole WHERE setdatabase = {found.oid}",
    )
    statements = []
    if before := found.note("read_only"):
        settings.append({"role": "", "pair": f"awesomeproxy={before}"})
    for row in settings:
        role, pair = row["role"], row["pair"]
        if not role and pair.startswith(_OWN_SETTINGS):
            continue
        key, _, value = pair.partition("=")
        key = "default_transaction_read_only" if key == "awesomeproxy" else key
        whom = f"ROLE {ident(role)} IN DATABASE {to}" if role else f"DATABASE {to}"
        statements.append(f"ALTER {whom} SET {_setting(key, value)}")
    grants = await source.column(
        MAINTENANCE,
        f"SELECT format('GRANT %s ON DATABASE %s TO %s%s', privilege_type, {literal(to)}::text,"
        " CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,"
        " CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)"
        f" FROM pg_database d, aclexplode(datacl) WHERE {of}",
    )
    row = await source.row(
        MAINTENANCE,
        "SELECT datconnlimit AS limit, coalesce(shobj_description(d.oid, 'pg_database'), '')"
        f" AS comment, datacl IS NOT NULL AS granted FROM pg_database d WHERE {of}",
    )
    if row["granted"]:
        statements += [f"REVOKE ALL ON DATABASE {to} FROM PUBLIC", *grants]
    if row["comment"]:
        statements.append(f"COMMENT ON DATABASE {to} IS {literal(row['comment'])}")
    statements.append(f"ALTER DATABASE {to} CONNECTION LIMIT {row['limit']}")
    await target.run(MAINTENANCE, *statements)


def _setting(key: str, value: str) -> str:
    name = ".".join(ident(part) for part in key.split("."))
    if key not in _LISTS:
        return f"{name} = {literal(value)}"
    elements = [a.replace('""', '"') or b for a, b in _ELEMENT.findall(value)]
    return f"{name} = {', '.join(map(literal, elements)) or literal('')}"


async def schema(server: PostgresServer, name: str) -> str:
    """The definition of all that a database has, as one text that can be compared."""
    text = await server.dump(name, *SCHEMA)
    # Newer pg_dumps put a random word in.
    lines = [line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrest"))]
    return "\n".join(lines)


def difference(before: str, after: str) -> str:
    """What is not the same in two schemas, in a few words; empty: nothing."""
    if before == after:
        return ""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    changed = [line for line in lines if line[0] in "+-" and line[1:].strip(" +-")]
    return " / ".join(changed[:_SHOWN]) or "something"


async def compare(
    source: PostgresServer, name: str, target: PostgresServer, new: str, *, full: bool
) -> None:
    """See that both have the same tables with the same rows, and the same sequences.

    :param full: whether to look at the rows, rather than only to count them.
    :raise MoverError: they have not; it names the tables.
    """
    ours, theirs = await together([_summary(source, name, full), _summary(target, new, full)])
    wrong = sorted(each for each in {*ours, *theirs} if ours.get(each) != theirs.get(each))
    if wrong:
        told = [
            f"{each} ({ours.get(each, 'nothing')} there, {theirs.get(each, 'nothing')} here)"
            for each in wrong[:_SHOWN]
        ]
        raise MoverError(
            f"{name!r} on {target.node} is not as it is on {source.node}: {', '.join(told)}"
        )


async def _summary(server: PostgresServer, name: str, full: bool) -> dict[str, str]:
    """What stands for the contents of each table and sequence."""
    rows = "sum(hashtextextended(t::text, 0)::numeric)" if full else "''"
    table = f"SELECT json_build_array(%L, format('%%s rows %%s', count(*), {rows})) FROM ONLY %s t"
    sequence = "SELECT json_build_array(%L, format('at %%s %%s', last_value, is_called)) FROM %s"
    queries = " UNION ALL ".join(
        f"SELECT format({literal(query)}, of, of) AS query"
        f" FROM (SELECT format('%I.%I', n.nspname, c.relname) AS of FROM {relations}) AS q"
        for query, relations in ((table, TABLES), (sequence, SEQUENCES))
    )
    # So that what has a name in a row has the same one on both sides.
    out = await server.script(name, f"SET search_path = '';\n{queries} \\gexec", time=LONG)
    return dict(json.loads(line) for line in out.splitlines() if line)
