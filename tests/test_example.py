"""The configuration that comes along: it works, shows all there is, and stands any edit."""

from __future__ import annotations

import configparser
import re
import tomllib
from dataclasses import fields, replace
from typing import Any

import pytest
from config_stage import ETC, problems
from hypothesis import HealthCheck as Health
from hypothesis import example, given, settings
from hypothesis import strategies as st

from awesomeproxy import config, model
from awesomeproxy.config import ConfigError
from awesomeproxy.model import Backend, HealthCheck, Listen, Settings, Site
from awesomeproxy.movers import finding

WHOLE = (ETC / "awesomeproxy.toml").read_text("utf-8")
NEEDED = ("directory", "endpoint", "backend", "server", "address", "database", "step", "command")
NEEDED_THERE = {  # and not elsewhere
    "## [cluster]": ("redis",),
    "## [filesystems.NAME]": ("mover", "node", "on.NODE.path"),
}
# Tables that are optional as a whole: not all of their keys have defaults.
CLUSTER = WHOLE[WHOLE.index("#[cluster]") : WHOLE.index("# ---- Certificates")]
AUTHORITY = WHOLE[WHOLE.index("#[acme]") : WHOLE.index("\n# ---- Listeners")]
MOVING = WHOLE[WHOLE.index("#[nodes.web2]") : WHOLE.index("# ---- Databases")]
# And one that some do without: not all of its keys have defaults either.
DATABASES = WHOLE[WHOLE.index("#[databases.shop]") : WHOLE.index("# ---- Sites")]
EXAMPLE = WHOLE
for each in (CLUSTER, AUTHORITY, DATABASES, MOVING):
    EXAMPLE = EXAMPLE.replace(each, "")

HEADER = re.compile(r"^#(?=\[)", re.MULTILINE)
BACKENDS = "[databases.shop.backends.old]"
OPTIONAL = re.compile(r"^#(?=[a-z0-9_.]+ = )", re.MULTILINE)
DEFAULT = config.parse(EXAMPLE, "example")
NODE = [
    *("name", "state_dir", "control", "access_log", "metrics", "drain_time", "max_connections"),
    "hold",
]


def uncommented(at: int | None = None) -> str:
    """The example with all its optional lines in force, or with just the one at ``at``."""
    if at is None:
        return OPTIONAL.sub("", EXAMPLE)
    return EXAMPLE[:at] + EXAMPLE[at + 1 :]


def test_the_example_loads() -> None:
    """The example is a working configuration with one site on one of two backends."""
    loaded = config.load(str(ETC / "awesomeproxy.toml"))
    assert loaded == DEFAULT
    assert loaded.sites["example"].backend == "old"


def test_the_example_of_a_move_loads() -> None:
    """The page's commands name what its configuration has."""
    page = (ETC.parent / "docs" / "moving.md").read_text("utf-8")
    written = page.partition("```toml\n")[2].partition("```")[0]
    node = '[node]\nname = "web1"\n[[listen]]\nendpoint = "tcp:80"'
    loaded = config.parse(f"{node}\n{written}", "example")
    asked = re.findall(r"awesomeproxy migrate (\w+) --to (\w+)(?: --with (\w+)=(\w+))?", page)
    assert ("blog", "two", "shop", "two") in asked
    for site, target, database, along in asked:
        assert target in loaded.sites[site].backends
        assert not database or along in loaded.databases[database].backends


@pytest.mark.parametrize(
    "at",
    [None, *(match.start() for match in OPTIONAL.finditer(EXAMPLE))],
    ids=["all", *(EXAMPLE[m.end() :].partition(" ")[0] for m in OPTIONAL.finditer(EXAMPLE))],
)
def test_the_example_shows_the_defaults(at: int | None) -> None:
    """Each optional line of the example, and all of them, says what holds without it."""
    # Its own name is the one thing that each node has another default for.
    assert replace(config.parse(uncommented(at), "example"), name=DEFAULT.name) == DEFAULT


def test_the_authority_of_the_example_lacks_only_an_agreement() -> None:
    """In force it shows all of its keys, with their defaults; agreeing is left to people."""
    text = HEADER.sub("", OPTIONAL.sub("", AUTHORITY))
    assert problems(text + EXAMPLE) == (
        "f.toml: acme.terms_agreed: is not true; "
        "read the authority's terms of service, and write true if you agree",
    )
    shown = tomllib.loads(text)["acme"]
    assert list(shown) == [field.name for field in fields(model.Acme)]
    agreed = text.replace("terms_agreed = false", "terms_agreed = true") + EXAMPLE
    acme = model.Acme(shown["directory"], terms_agreed=True)
    assert config.parse(agreed, "f.toml").acme == acme


def test_the_cluster_of_the_example_shows_all_keys_with_their_defaults() -> None:
    """In force it only wants the sites out of the file."""
    text = HEADER.sub("", OPTIONAL.sub("", CLUSTER))
    (said,) = problems(text + EXAMPLE)
    assert said.startswith("f.toml: sites.example: in a cluster sites are not in the file")
    alone = config.parse(text + EXAMPLE[: EXAMPLE.index("[sites.example]")], "f.toml")
    assert alone.cluster == model.Cluster((("10.0.0.5", 6379),))
    shown = tomllib.loads(text)["cluster"]
    keys = {*shown, "addresses", "ca_file", "verify_name", "certificate", "key", "db"} - {"redis"}
    assert keys == {field.name for field in fields(model.Cluster)}
    assert list(shown["tls"]) == ["ca_file", "name", "certificate", "key"]


def test_the_database_of_the_example_shows_all_keys_with_their_defaults() -> None:
    """In force it is a working one; only via has to be there for a PgBouncer."""
    text = HEADER.sub("", OPTIONAL.sub("", DATABASES))
    assert problems(text + EXAMPLE) == (
        'f.toml: databases.shop.via: is missing, but there is a pgbouncer; write "pgbouncer"',
    )
    shown = tomllib.loads(text)["databases"]["shop"]
    bouncer, backend = shown.pop("pgbouncer"), shown["backends"]["old"]
    tables: list[tuple[dict[str, Any], Any, set[str]]] = [
        (shown, model.Database, {"name", "pgbouncer", "options"}),
        (shown["timeouts"], model.DatabaseTimeouts, set()),
        (shown["retry"], model.DatabaseRetry, set()),
        (shown["drain"], model.DatabaseDrain, set()),
        (shown["hold"], model.HoldLimits, {"max_bytes"}),
        (bouncer, model.PgBouncer, set()),
        (backend, model.DatabaseBackend, {"name", "place"}),
        (backend["service"], model.Service, set()),
    ]
    for table, of, others in tables:
        assert set(table) == {field.name for field in fields(of)} - others, of
    alone = text.partition("[databases.shop.pgbouncer]")[0] + text[text.index(BACKENDS) :]
    read = config.parse(alone + EXAMPLE, "f.toml").databases["shop"]
    server = model.Server("tcp", "10.0.0.1", 5432)
    backends = {"old": model.DatabaseBackend("old", server)}
    assert read == model.Database("shop", shown["endpoint"], "old", backends)
    via = text.replace('via = ""', 'via = "pgbouncer"').replace('"tcp"', '"postgres"')
    address = model.Server("unix", path="/run/postgresql/.s.PGSQL.6432")
    assert address.url == bouncer["address"]
    through = config.parse(via + EXAMPLE, "f.toml").databases["shop"].pgbouncer
    assert through == model.PgBouncer(address, "shop")


def test_what_is_moved_in_the_example_shows_all_keys_with_their_defaults() -> None:
    """In force it is a working one."""
    text = HEADER.sub("", OPTIONAL.sub("", MOVING))
    read = config.parse(text + EXAMPLE, "f.toml")
    shown = tomllib.loads(text)
    places = shown["filesystems"]["example"]["on"]
    assert list(shown["nodes"]["web2"]) == ["ssh", "config"]
    assert read.nodes == {"web2": model.Reach("web2")}
    assert set(shown["filesystems"]["example"]) == {"mover", "node", "mount_point", "on"}
    assert list(read.filesystems["example"].places) == list(places)
    alone = text.replace("mount_point = false", "")
    assert config.parse(alone + EXAMPLE, "f.toml").filesystems == read.filesystems
    (hook,) = shown["hooks"]
    assert set(hook) == {field.name for field in fields(model.Hook)}
    assert read.hooks == (model.Hook("fence", tuple(hook["command"])),)
    for mover in finding.names("filesystem"):
        assert f'"{mover}"' in text


def test_the_example_shows_every_setting() -> None:
    """Each field of the settings has its line in the example."""
    shown = tomllib.loads(uncommented())
    site = shown["sites"]["example"]
    backend = site["backends"]["old"]
    listen = shown["listen"][0]
    of_node = {*NODE, "listen", "sites", "databases", "tls", "acme", "cluster"} - {"hold"} | {
        *("nodes", "filesystems", "hooks"),
        *("max_held", "max_held_bytes"),
    }
    assert {field.name for field in fields(Settings)} == of_node
    assert list(shown["node"]) == NODE
    assert list(shown["node"]["hold"]) == ["max_requests", "max_bytes"]
    tables: list[tuple[dict[str, Any], Any]] = [
        (shown["tls"], model.Tls),
        (listen, Listen),
        (listen["timeouts"], model.ListenTimeouts),
        (site, Site),
        (site["hold"], model.HoldLimits),
        (site["timeouts"], model.SiteTimeouts),
        (site["retry"], model.Retry),
        (site["ramp"], model.Ramp),
        (site["drain"], model.Drain),
        (site["bypass"], model.Bypass),
        (site["access"], model.Access),
        (site["tls"], model.SiteTls),
        (backend, Backend),
        (backend["health"], HealthCheck),
        (backend["tls"], model.ServerTls),
        (backend["service"], model.Service),
    ]
    for table, of in tables:
        its_own = {"name"} if of in (Site, Backend) else set()
        assert set(table) == {field.name for field in fields(of)} - its_own, of


def test_the_overview_has_the_keys_and_defaults_of_the_example() -> None:
    """Section by section, in the same order; what is no default in the example is needed."""
    told = [
        line if line.startswith("## ") else line[2:].rpartition(" | ")[0]
        for line in (ETC.parent / "docs" / "configuration.md").read_text("utf-8").splitlines()
        if line.startswith(("## ", "| `"))
    ]
    shown: list[str] = []
    needed: tuple[str, ...] = ()
    for line in WHOLE.splitlines():
        match = re.fullmatch(r"(#?)(?:(\[.*\])|([a-z0-9_.]+) = (.*))", line)
        if match is None:
            continue
        commented, table, key, default = match.groups()
        key = key and key.replace(".web2", ".NODE")
        if table:
            for name in (".example", ".shop", ".old", ".web2"):
                table = table.replace(name, ".NAME")
            shown.append(f"## {table}")
            needed = ("name", *NEEDED, *NEEDED_THERE.get(shown[-1], ()))
        elif key in needed:
            shown.append(f"`{key}` | " + ("host name" if key == "name" else "needed"))
        else:
            is_default = commented or key == "health.path"
            shown.append(f"`{key}` | " + (f"`{default}`" if is_default else "needed"))
    assert told == shown[: shown.index("## [sites.NAME.backends.new]")]


def test_the_service_gives_the_daemon_room() -> None:
    """systemd waits longer than a drain, and allows two descriptors for each client."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ETC / "awesomeproxy.service")
    assert unit.getfloat("Service", "TimeoutStopSec") > DEFAULT.drain_time
    assert unit.getint("Service", "LimitNOFILE") > 2 * DEFAULT.max_connections


# ---- anything at all ------------------------------------------------------------------

IN_FORCE = HEADER.sub("", OPTIONAL.sub("", WHOLE))
KEYS = sorted(set(re.findall(r"[a-z0-9_]+(?=[ .])", IN_FORCE)) | {"old", "", "a b"})
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["old", "1s", "tcp:", "http://[", "unix:/", "*.", "10.0.0.1/8", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=6)
    ),
    max_leaves=20,
)
ANYTHING = settings(deadline=None, database=None, suppress_health_check=[Health.too_slow])


def assert_readable_or_told(read: Any, *arguments: object) -> None:
    """``read`` gives settings, or a ConfigError with a printable line for each problem."""
    try:
        read(*arguments, "f.toml")
        return
    except ConfigError as error:
        told = error
    assert told.problems
    for problem in told.problems:
        assert problem.startswith("f.toml: ")
        assert problem.isprintable()


@ANYTHING
@given(st.text())
@example("a." * 5000 + "b = 1")
def test_any_text_is_read_or_told(text: str) -> None:
    """No text raises anything but a ConfigError."""
    assert_readable_or_told(config.parse, text)


@ANYTHING
@given(st.integers(0, len(IN_FORCE)), st.integers(0, 40), st.text(max_size=10))
def test_any_edit_of_the_example_is_read_or_told(start: int, length: int, text: str) -> None:
    """No slip of the hand in a good file raises anything but a ConfigError."""
    edited = IN_FORCE[:start] + text + IN_FORCE[start + length :]
    assert_readable_or_told(config.parse, edited)


@ANYTHING
@given(st.text(), st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_any_table_is_read_or_told(name: str, table: dict[str, object]) -> None:
    """No JSON of a command raises anything but a ConfigError."""
    assert_readable_or_told(config.site_from_table, name, table)
    assert_readable_or_told(config.backend_from_table, name, table)
