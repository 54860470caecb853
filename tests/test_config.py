"""The configuration file: what it may say, what it comes to, and how mistakes are told."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck as Health
from hypothesis import example, given, settings
from hypothesis import strategies as st

from awesomeproxy import config, model
from awesomeproxy.config import ConfigError
from awesomeproxy.model import Backend, HealthCheck, Listen, Server, Settings, Site

HERE = Path(__file__).parent
ETC = HERE.parent / "etc"
EXAMPLE = (ETC / "awesomeproxy.toml").read_text("utf-8")

# A small good file.
TABLES = {
    "[node]": ['name = "node1"'],
    "[[listen]]": ['endpoint = "tcp:80"'],
    "[sites.a]": ['hosts = ["a.example"]', 'backend = "old"'],
    "[sites.a.backends.old]": ['servers = ["http://10.0.0.1:8080"]'],
}
# What errors say often, by the word that config_mistakes.txt has for it.
MISTAKES = (HERE / "config_mistakes.txt").read_text("utf-8")
OFTEN = dict(re.findall("^(<[A-Z_0-9]+>) (.*)", MISTAKES, re.MULTILINE))

OLD = Server("http://10.0.0.1:8080", "http", "10.0.0.1", 8080)
SITE = Site("a", ("a.example",), "old", {"old": Backend("old", (OLD,))})
SETTINGS = Settings(
    name="node1",
    state_dir="/var/lib/awesomeproxy",
    control="/run/awesomeproxy/control.sock",
    access_log="",
    listen=(Listen("tcp:80"),),
    sites={"a": SITE},
)


def text_with(table: str = "", line: str = "") -> str:
    """The small good file, but for ``line``, which takes the place of one with its key."""
    key = line.partition(" = ")[0]
    text = ""
    for header, lines in TABLES.items():
        kept = [old for old in lines if header != table or old.partition(" = ")[0] != key]
        text += "\n".join([header, *kept, line if header == table else "", ""])
    return text


def problems(text: str) -> tuple[str, ...]:
    """What is said to be wrong with ``text``."""
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "f.toml")
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def mistakes() -> Iterator[tuple[str, str, str]]:
    """The table, the line and what is said of it, of each in ``config_mistakes.txt``."""
    table = line = ""
    for each in MISTAKES.splitlines():
        if each.startswith("["):
            table = each
        elif each.startswith("    "):
            yield table, line, re.sub("<[A-Z_0-9]+>", lambda word: OFTEN[word[0]], each.strip())
        line = each


@pytest.mark.parametrize(("table", "line", "said"), list(mistakes()))
def test_a_bad_line_is_told_with_its_file_key_and_remedy(table: str, line: str, said: str) -> None:
    """Each bad line gives exactly one problem, in these words."""
    assert problems(text_with(table, line)) == (f"f.toml: {said}",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "listen: is missing; add [[listen]], in two brackets, with an endpoint"),
        ("listen = []", "listen: is empty; write [[listen]], in two brackets, with an endpoint"),
        (
            '[listen]\nendpoint = "tcp:80"',
            "listen: a table is not a list; write [[listen]], in two brackets, with an endpoint",
        ),
        ("[[listen]]", "listen[0].endpoint: is missing; add it"),
        ("listen = [80]", "listen[0]: 80 is not a table; write key = value pairs"),
        (
            '[[listen]]\nendpoint = "tcp:80"\n[[listen]]\nendpoint = "tcp:80"',
            "listen[1]: a table is here twice; leave one out",
        ),
        (text_with() + "\n[site.b]", 'site: is not a key here; did you mean "sites"?'),
        (text_with() + "\n[x]", "x: is not a key here; the keys are node, listen, sites"),
        (
            'sites = "a"\n[[listen]]\nendpoint = "tcp:80"',
            'sites: "a" is not a table; write a table for each name',
        ),
        (
            'sites.a = "b"\n[[listen]]\nendpoint = "tcp:80"',
            'sites.a: "b" is not a table; write key = value pairs',
        ),
        (
            "node = 1\n[[listen]]\nendpoint = 'tcp:80'",
            "node: 1 is not a table; write key = value pairs",
        ),
        (
            text_with().replace('hosts = ["a.example"]\n', ""),
            'sites.a.hosts: is missing; add a list, as in ["example.com"]',
        ),
        (text_with().replace('backend = "old"\n', ""), "sites.a.backend: is missing; add it"),
        (
            text_with().partition("[sites.a.backends.old]")[0],
            "sites.a.backends: is missing; add it",
        ),
        (
            text_with().partition("[sites.a.backends.old]")[0] + "backends = {}",
            "sites.a.backends: is empty; add at least one",
        ),
        (
            text_with().replace("sites.a", 'sites."a b"'),
            f'sites."a b": "a b" cannot be a name; {OFTEN["<NAME>"]}',
        ),
        (
            text_with("[node]", f"drain_time = 0x{'f' * 5000}"),
            f"node.drain_time: a huge number is out of range; {OFTEN['<FROM_0>']}",
        ),
        (
            text_with("[sites.a]", f'hosts = ["{"a." * 130}a"]'),
            f'sites.a.hosts[0]: "{"a." * 38}a..." is not a host name: '
            f"it is longer than 253 characters; {OFTEN['<HOST>']}",
        ),
    ],
)
def test_a_bad_table_is_told_with_its_file_key_and_remedy(text: str, said: str) -> None:
    """Each bad table gives exactly one problem, in these words."""
    assert problems(text) == (f"f.toml: {said}",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[node]\nname 3",
            "line 2, column 6: is not TOML: "
            "Expected '=' after a key in a key/value pair; correct it there",
        ),
        (
            "a = 1\na = 2\n",
            "line 2, column 6: is not TOML: Cannot overwrite a value; correct it there",
        ),
        ("a = '", 'end of document: is not TOML: Expected "\'"; correct it there'),
        ("\ufeffa = 1", "line 1, column 1: is not TOML: Invalid statement; correct it there"),
        ("a = " + "[" * 9999, "is nested too deeply; remove some brackets"),
        ("a = " + "9" * 5000, "has a number with too many digits; shorten it"),
    ],
)
def test_what_is_not_toml_is_told_with_its_place(text: str, said: str) -> None:
    """A syntax error has its line and column."""
    assert problems(text) == (f"f.toml: {said}",)


def test_all_problems_are_told_at_once_in_the_order_of_the_tables() -> None:
    """One reading tells the problems of every table, and nothing that merely follows from one."""
    text = """
        extra = 1
        [node]
        drain_time = "x"
        [[listen]]
        endpoint = "foo"
        [[listen]]
        max_head = 0
        [sites.a]
        hosts = ["a.example", ":"]
        path = "blog"
        backend = "new"
        bypass = {header = "X-Preview", secret = "hush"}
        [sites.a.backends.old]
        servers = ["a", "http://b"]
        [sites.b]
        hosts = ["a.example"]
        backend = "old"
        backends.old = {servers = 1}
    """
    assert [line.split(": ")[1] for line in problems(text)] == [
        "extra",
        "node.drain_time",
        "listen[0].endpoint",
        "listen[1].endpoint",
        "listen[1].max_head",
        "sites.a.hosts[1]",
        "sites.a.path",
        "sites.a.backends.old.servers[0]",
        "sites.a.bypass.secret",
        "sites.a.backend",
        "sites.b.backends.old.servers",
    ]


def test_two_sites_with_the_same_host_and_path_are_both_named() -> None:
    """What two sites both claim is told with the names of the two."""
    other = """
        [sites.b]
        hosts = ["b.example", "A.example"]
        backend = "x"
        backends.x.servers = ["http://x"]
    """
    assert problems(text_with() + other) == (
        'f.toml: sites.b.hosts: "a.example" with path "/" is claimed by site "a" '
        'and by site "b"; give one of them another host or path',
    )


def test_the_same_path_with_and_without_a_final_slash_is_one_path() -> None:
    """``/blog`` and ``/blog/`` on one host collide."""
    text = (
        text_with("[sites.a]", 'path = "/blog"')
        + """
        [sites.b]
        hosts = ["a.example"]
        path = "/blog/"
        backend = "x"
        backends.x.servers = ["http://x"]
    """
    )
    assert len(problems(text)) == 1


def test_sites_may_share_a_host_if_their_paths_differ() -> None:
    """A host belongs to several sites, each with its own path."""
    text = (
        text_with("[sites.a]", 'path = "/blog"')
        + """
        [sites.b]
        hosts = ["a.example"]
        backend = "x"
        backends.x.servers = ["http://x"]
    """
    )
    assert [site.path for site in config.parse(text, "f.toml").sites.values()] == ["/blog", "/"]


def test_overlaps_is_told_of_a_site_against_others_but_not_against_itself() -> None:
    """A site that is defined anew does not collide with what it was."""
    other = replace(SITE, name="b")
    assert list(config.overlaps(SITE, [SITE])) == []
    assert list(config.overlaps(SITE, [replace(other, path="/b")])) == []
    assert list(config.overlaps(other, [SITE])) == [
        '"a.example" with path "/" is claimed by site "a" and by site "b"; '
        "give one of them another host or path"
    ]


def test_a_secret_is_in_no_error() -> None:
    """Whatever is wrong with a bypass, its secret is not repeated."""
    text = text_with("[sites.a]", 'bypass = {header = "a b", secret = "hush", secrets = "hush"}')
    assert "hush" not in str(problems(text))


def test_a_small_file_comes_to_the_defaults_of_the_model() -> None:
    """What is not written is what the model says."""
    assert config.parse(text_with(), "f.toml") == SETTINGS


def test_no_site_is_needed() -> None:
    """Sites can all be added by command."""
    assert config.parse("[[listen]]\nendpoint = 'tcp:80'", "f.toml").sites == {}


def test_a_node_is_called_by_its_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a name the host name is taken, and told if it will not do."""
    text = text_with().replace('name = "node1"', "")
    monkeypatch.setattr("os.uname", lambda: UName("box7"))
    assert config.parse(text, "f.toml").name == "box7"
    monkeypatch.setattr("os.uname", lambda: UName("(none)"))
    assert problems(text) == (
        f'f.toml: node.name: the host name "(none)" cannot be a name; {OFTEN["<NAME>"]}',
    )


class UName:
    """As much of os.uname_result as is asked for."""

    def __init__(self, nodename: str) -> None:
        self.nodename = nodename


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("60", 60.0),
        ("0.5", 0.5),
        ('"250ms"', 0.25),
        ('"3ms"', 0.003),
        ('"1.5s"', 1.5),
        ('"5m"', 300.0),
        ('"1h"', 3600.0),
        ('"8760h"', 31_536_000.0),
    ],
)
def test_durations_are_seconds(written: str, seconds: float) -> None:
    """Each unit, and a bare number, comes to seconds as a float."""
    read = config.parse(text_with("[sites.a]", f"hold.max_time = {written}"), "f.toml")
    assert repr(read.sites["a"].hold.max_time) == repr(seconds)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1", 1),
        ('"7B"', 7),
        ('"32KB"', 32 << 10),
        ('"256 MB"', 256 << 20),
        ('"1GB"', 1 << 30),
        ('"1048576GB"', 1 << 50),
    ],
)
def test_sizes_are_bytes(written: str, size: int) -> None:
    """Each unit, a power of 1024, and a bare number comes to bytes."""
    read = config.parse(text_with("[sites.a]", f"hold.max_bytes = {written}"), "f.toml")
    assert read.sites["a"].hold.max_bytes == size


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("http://10.0.0.1:8080", OLD),
        ("http://App_1.Example", Server("http://app_1.example:80", "http", "app_1.example", 80)),
        ("HTTP://a:1", Server("http://a:1", "http", "a", 1)),
        ("http://[::1]:81", Server("http://[::1]:81", "http", "::1", 81)),
        ("http://[0:0::1]", Server("http://[::1]:80", "http", "::1", 80)),
        ("unix:/run/app.sock", Server("unix:/run/app.sock", "unix", path="/run/app.sock")),
    ],
)
def test_servers_have_one_spelling(url: str, server: Server) -> None:
    """A server's URL is lower case, and has its port."""
    assert config.backend_from_table("b", {"servers": [url]}, "f.toml").servers == (server,)


@pytest.mark.parametrize(
    ("status", "lowest_and_highest"),
    [("200-399", (200, 399)), ("204", (204, 204)), (200, (200, 200))],
)
def test_a_status_range_has_both_ends(status: object, lowest_and_highest: tuple[int, int]) -> None:
    """One code is a range of one."""
    table = {"servers": ["http://a"], "health": {"status": status}}
    health = config.backend_from_table("b", table, "f.toml").health
    assert health == HealthCheck(status=lowest_and_highest)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp:80",
        "tcp:0",
        "tcp:8080:interface=127.0.0.1",
        "tcp6:80:interface=\\:\\:1",
        "unix:/run/awesomeproxy/http.sock",
        "haproxy:tcp:80",
    ],
)
def test_the_endpoints_of_twisted_are_taken(endpoint: str) -> None:
    """An endpoint is kept as it is written."""
    read = config.parse(f"[[listen]]\nendpoint = '{endpoint}'", "f.toml")
    assert read.listen == (Listen(endpoint),)


@pytest.mark.parametrize("path", ["/var/log/access.log", "-", ""])
def test_an_access_log_is_a_file_standard_output_or_nothing(path: str) -> None:
    """An absolute path, a dash, or an empty string."""
    text = text_with("[node]", f'access_log = "{path}"')
    assert config.parse(text, "f.toml").access_log == path


def test_every_key_gets_where_it_belongs() -> None:
    """A file with a value of its own for every key comes to exactly these settings."""
    text = """
        [node]
        name = "n"
        state_dir = "/s"
        control = "/c"
        access_log = "/a"
        drain_time = 1
        max_connections = 2
        hold = {max_requests = 3, max_bytes = 4}
        [[listen]]
        endpoint = "tcp:1"
        trusted_proxies = ["10.0.0.0/8", "::1"]
        max_head = 5
        max_target = 6
        max_headers = 7
        body_rate = 8
        timeouts = {head = 9, body = 10, idle = 11, write = 12}
        [[listen]]
        endpoint = "unix:/u"
        [sites.a]
        hosts = ["A.example", "*.a.example", "192.0.2.1"]
        path = "/p/"
        backend = "y"
        hold = {max_requests = 13, max_bytes = 14, max_time = 15}
        timeouts = {connect = 16, response = 17, tunnel = 18}
        retry = {attempts = 19, budget = 20}
        ramp = {start = 21, double_every = 22}
        drain = {time = 23, tunnels = 24}
        bypass = {networks = ["192.0.2.0/24"], header = "X-Preview", secret = "opensesame"}
        max_body = 25
        max_in_flight = 26
        reuse_unsafe = 27
        [sites.a.backends.x]
        servers = ["http://x"]
        [sites.a.backends.y]
        servers = ["http://y", "unix:/y"]
        balance = "least_connections"
        max_fails = 28
        fail_timeout = 29
        max_idle = 30
        idle_timeout = 31
        [sites.a.backends.y.health]
        path = "/up?deep=1"
        host = "H.example:8080"
        interval = 32
        timeout = 33
        rise = 34
        fall = 35
        status = 200
    """
    y = Backend(
        name="y",
        servers=(Server("http://y:80", "http", "y", 80), Server("unix:/y", "unix", path="/y")),
        balance="least_connections",
        health=HealthCheck("/up?deep=1", "h.example:8080", 32, 33, 34, 35, (200, 200)),
        max_fails=28,
        fail_timeout=29,
        max_idle=30,
        idle_timeout=31,
    )
    site = Site(
        name="a",
        hosts=("a.example", "*.a.example", "192.0.2.1"),
        backend="y",
        backends={"x": Backend("x", (Server("http://x:80", "http", "x", 80),)), "y": y},
        path="/p",
        hold=model.HoldLimits(13, 14, 15),
        timeouts=model.SiteTimeouts(16, 17, 18),
        retry=model.Retry(19, 20),
        ramp=model.Ramp(21, 22),
        drain=model.Drain(23, 24),
        bypass=model.Bypass((ip_network("192.0.2.0/24"),), "x-preview", "opensesame"),
        max_body=25,
        max_in_flight=26,
        reuse_unsafe=27,
    )
    trusted = (ip_network("10.0.0.0/8"), ip_network("::1"))
    timeouts = model.ListenTimeouts(9, 10, 11, 12)
    listen = (Listen("tcp:1", trusted, 5, 6, 7, 8, timeouts), Listen("unix:/u"))
    assert config.parse(text, "f.toml") == Settings(
        "n", "/s", "/c", "/a", listen, {"a": site}, 1, 2, 3, 4
    )


def test_a_site_from_a_table_is_as_in_the_file() -> None:
    """A command's JSON has the same keys, and comes to the same site."""
    table = {
        "hosts": ["a.example"],
        "backend": "old",
        "backends": {"old": {"servers": ["http://10.0.0.1:8080"]}},
    }
    assert config.site_from_table("a", table, "command") == SITE


def test_a_bad_site_from_a_table_is_told_as_in_the_file() -> None:
    """The problems of a command's JSON have the same keys and words."""
    with pytest.raises(ConfigError) as caught:
        config.site_from_table("a/b", {"hosts": None, "backend": "x", "backends": {}}, "command")
    assert caught.value.problems == (
        f'command: sites."a/b": "a/b" cannot be a name; {OFTEN["<NAME>"]}',
        'command: sites."a/b".hosts: null is not a list; write a list, as in ["example.com"]',
        'command: sites."a/b".backends: is empty; add at least one',
    )


def test_a_bad_backend_from_a_table_is_told_by_its_name() -> None:
    """A backend by itself is told under ``backends``."""
    with pytest.raises(ConfigError) as caught:
        config.backend_from_table("new", {"servers": ["http://b:x"]}, "command")
    assert caught.value.problems == (
        'command: backends.new.servers[0]: "http://b:x" is not a server: "b:x" is not HOST:PORT '
        f"(an IPv6 address needs [brackets]); {OFTEN['<SERVER>']}",
    )


def test_a_file_is_loaded(tmp_path: Path) -> None:
    """What is in a file is what its text comes to."""
    file = tmp_path / "a.toml"
    file.write_text(text_with())
    assert config.load(str(file)) == SETTINGS


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """No file, a directory, a path that is none, and a text in another encoding."""
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"[node]\n# caf\xe9\n")
    remedy = "name a file that exists and that you may read"
    for path, said in (
        (f"{tmp_path}/none", f"cannot be read: No such file or directory; {remedy}"),
        (str(tmp_path), f"cannot be read: Is a directory; {remedy}"),
        ("a\0b", f"cannot be read: embedded null byte; {remedy}"),
        (str(latin), "line 2: is not UTF-8; save the file as UTF-8"),
    ):
        with pytest.raises(ConfigError) as caught:
            config.load(path)
        assert caught.value.problems == (f"{path}: {said}",)


def test_importing_needs_no_twisted_and_reading_installs_no_reactor() -> None:
    """A command that reads a configuration starts quickly and leaves the reactor to choose."""
    code = (
        "import sys; from awesomeproxy import config;"
        "assert not any(name.startswith('twisted') for name in sys.modules);"
        "config.load(sys.argv[1]);"
        "assert 'twisted.internet.reactor' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(ETC / "awesomeproxy.toml")], check=True)


# ---- the example ---------------------------------------------------------------------

OPTIONAL = re.compile(r"^#(?=[a-z_.]+ = )", re.MULTILINE)
DEFAULT = config.parse(EXAMPLE, "example")
NODE = ["name", "state_dir", "control", "access_log", "drain_time", "max_connections", "hold"]


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


@pytest.mark.parametrize(
    "at",
    [None, *(match.start() for match in OPTIONAL.finditer(EXAMPLE))],
    ids=["all", *(EXAMPLE[m.end() :].partition(" ")[0] for m in OPTIONAL.finditer(EXAMPLE))],
)
def test_the_example_shows_the_defaults(at: int | None) -> None:
    """Each optional line of the example, and all of them, says what holds without it."""
    # Its own name is the one thing that each node has another default for.
    assert replace(config.parse(uncommented(at), "example"), name=DEFAULT.name) == DEFAULT


def test_the_example_shows_every_setting() -> None:
    """Each field of the settings has its line in the example."""
    shown = tomllib.loads(uncommented())
    site = shown["sites"]["example"]
    backend = site["backends"]["old"]
    listen = shown["listen"][0]
    of_node = {*NODE, "listen", "sites"} - {"hold"} | {"max_held", "max_held_bytes"}
    assert {field.name for field in fields(Settings)} == of_node
    assert list(shown["node"]) == NODE
    assert list(shown["node"]["hold"]) == ["max_requests", "max_bytes"]
    tables: list[tuple[dict[str, Any], Any]] = [
        (listen, Listen),
        (listen["timeouts"], model.ListenTimeouts),
        (site, Site),
        (site["hold"], model.HoldLimits),
        (site["timeouts"], model.SiteTimeouts),
        (site["retry"], model.Retry),
        (site["ramp"], model.Ramp),
        (site["drain"], model.Drain),
        (site["bypass"], model.Bypass),
        (backend, Backend),
        (backend["health"], HealthCheck),
    ]
    for table, of in tables:
        assert set(table) == {field.name for field in fields(of)} - {"name"}, of


def test_the_service_gives_the_daemon_room() -> None:
    """systemd waits longer than a drain, and allows two descriptors for each client."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ETC / "awesomeproxy.service")
    assert unit.getfloat("Service", "TimeoutStopSec") > DEFAULT.drain_time
    assert unit.getint("Service", "LimitNOFILE") > 2 * DEFAULT.max_connections


# ---- anything at all ------------------------------------------------------------------

KEYS = sorted(set(re.findall(r"[a-z_]+(?=[ .])", OPTIONAL.sub("", EXAMPLE))) | {"old", "", "a b"})
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
@given(st.integers(0, len(EXAMPLE)), st.integers(0, 40), st.text(max_size=10))
def test_any_edit_of_the_example_is_read_or_told(start: int, length: int, text: str) -> None:
    """No slip of the hand in a good file raises anything but a ConfigError."""
    whole = uncommented()
    assert_readable_or_told(config.parse, whole[:start] + text + whole[start + length :])


@ANYTHING
@given(st.text(), st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_any_table_is_read_or_told(name: str, table: dict[str, object]) -> None:
    """No JSON of a command raises anything but a ConfigError."""
    assert_readable_or_told(config.site_from_table, name, table)
    assert_readable_or_told(config.backend_from_table, name, table)
