"""The configuration file: what it may say, what it comes to, and how mistakes are told."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from config_stage import ETC, MISTAKES, OFTEN, OLD, SETTINGS, SITE, problems, text_with

from awesomeproxy import config, model
from awesomeproxy.config import ConfigError
from awesomeproxy.model import Backend, HealthCheck, Listen, Server, Settings, Site


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
        (
            text_with() + "\n[x]",
            "x: is not a key here; the keys are node, cluster, tls, acme, listen, nodes,"
            " filesystems, hooks, databases, sites",
        ),
        ('[[listen]]\nendpoint = "tcp:80"\n[cluster]', "cluster.redis: is missing; add it"),
        (
            text_with("[cluster]", 'redis = ["redis://r", "rediss://s/1"]') + 'master = "m"',
            "cluster.redis: has addresses that differ in more than host and port; write all with"
            ' "redis://" or all with "rediss://", and with the same database',
        ),
        (
            text_with("[cluster]", 'redis = "rediss://r"') + 'tls.key = "/k"',
            "cluster.tls.certificate: is missing, but there is a key; name the file of its chain",
        ),
        (
            text_with("[cluster]", 'sentinel_user = "u"') + 'master = "m"',
            "cluster.sentinel_password_file: is missing, but there is a sentinel_user; name the"
            " file of its password",
        ),
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
            text_with("[databases.d]").replace('endpoint = "tcp:5432"\n', ""),
            "databases.d.endpoint: is missing; add it",
        ),
        (
            text_with("[databases.d]").replace('backends.one.server = "tcp://10.0.0.1:5432"\n', ""),
            "databases.d.backends: is missing; add it",
        ),
        (
            text_with("[databases.d]").replace('one.server = "tcp://10.0.0.1:5432"', "one = {}"),
            "databases.d.backends.one.server: is missing; add it",
        ),
        (
            text_with("[databases.d]").replace('pgbouncer.database = "shop"\n', ""),
            "databases.d.pgbouncer.database: is missing; add it",
        ),
        (
            text_with("[databases.d]")
            .replace('pgbouncer.database = "shop"\n', "")
            .replace('pgbouncer.address = "tcp://10.0.0.9:6432"\n', ""),
            "databases.d.pgbouncer: is missing, but clients come via it; "
            "add its address and database",
        ),
        (
            text_with("[databases.d]").replace("databases.d", "databases.e")
            + text_with("[databases.d]").partition("[databases.d]")[2].join(["[databases.d]", ""]),
            'databases.d.endpoint: "tcp:5432" is that of the database "e"; '
            "give one of them another port",
        ),
        (
            text_with("[databases.d]").replace("[sites.a]\n", '[sites.a]\nuses = ["d", "e"]\n'),
            'sites.a.uses[1]: "e" is not a database; write "d", or add [databases.e]',
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
        ('"1.5d"', 129_600.0),
        ('"365d"', 31_536_000.0),
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
    ("url", "server", "spelt"),
    [
        ("http://10.0.0.1:8080", OLD, "http://10.0.0.1:8080"),
        ("http://App_1.Example", Server("http", "app_1.example", 80), "http://app_1.example:80"),
        ("HTTP://a:1", Server("http", "a", 1), "http://a:1"),
        ("http://[::1]:81", Server("http", "::1", 81), "http://[::1]:81"),
        ("https://a", Server("https", "a", 443), "https://a:443"),
        ("H2://a", Server("h2", "a", 443), "h2://a:443"),
        ("h2c://[::1]", Server("h2c", "::1", 80), "h2c://[::1]:80"),
        ("http://[0:0::1]", Server("http", "::1", 80), "http://[::1]:80"),
        ("unix:/run/app.sock", Server("unix", path="/run/app.sock"), "unix:/run/app.sock"),
    ],
)
def test_servers_have_one_spelling(url: str, server: Server, spelt: str) -> None:
    """A server's URL is lower case, and has its port."""
    assert config.backend_from_table("b", {"servers": [url]}, "f.toml").servers == (server,)
    assert str(server) == server.url == spelt


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
        [tls]
        certificates = ["/c.pem", "/c"]
        default = "A.example"
        check_every = 36
        [acme]
        directory = "https://ca.example:14000/dir"
        email = "a@a.example"
        terms_agreed = true
        ca_file = "/ca"
        renew_before = "37d"
        eab_key_id = "kid"
        eab_key_file = "/eab"
        [[listen]]
        endpoint = "tcp:1"
        tls = true
        http2 = false
        max_streams = 38
        proxy_protocol = ["192.0.2.9", "10.0.0.0/8"]
        max_per_client = 39
        trusted_proxies = ["10.0.0.0/8", "::1"]
        max_head = 5
        max_target = 6
        max_headers = 7
        body_rate = 8
        write_rate = 68
        timeouts = {handshake = 40, head = 9, body = 10, idle = 11, write = 12}
        [[listen]]
        endpoint = "unix:/u"
        h2c = true
        [sites.a]
        hosts = ["A.example", "b.example"]
        path = "/p/"
        backend = "y"
        hold = {max_requests = 13, max_bytes = 14, max_time = 15}
        timeouts = {connect = 16, response = 17, tunnel = 18, websocket = 41}
        retry = {attempts = 19, budget = 20}
        ramp = {start = 21, double_every = 22}
        drain = {time = 23, tunnels = 24}
        bypass = {networks = ["192.0.2.0/24"], header = "X-Preview", secret = "opensesame"}
        access = {allow = ["10.0.0.0/8"], deny = ["10.1.0.0/16", "::1"]}
        tls = {redirect = true, hsts = "730d", hsts_subdomains = true, acme = true}
        max_body = 25
        max_in_flight = 26
        reuse_unsafe = 27
        [sites.a.backends.x]
        servers = ["http://x"]
        [sites.a.backends.y]
        servers = ["https://y", "unix:/y"]
        send_proxy = "v2"
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
        [sites.a.backends.y.tls]
        ca_file = "/ca"
        name = "Y.example"
        sni = "sni.example"
        certificate = "/us.pem"
        key = "/us.key"
        [sites.a.backends.z]
        servers = ["https://z"]
        tls.verify = false
    """
    y = Backend(
        name="y",
        servers=(Server("https", "y", 443), Server("unix", path="/y")),
        balance="least_connections",
        health=HealthCheck("/up?deep=1", "h.example:8080", 32, 33, 34, 35, (200, 200)),
        max_fails=28,
        fail_timeout=29,
        max_idle=30,
        idle_timeout=31,
        tls=model.ServerTls(True, "/ca", "y.example", "sni.example", "/us.pem", "/us.key"),
        send_proxy="v2",
    )
    x = Backend("x", (Server("http", "x", 80),))
    z = Backend("z", (Server("https", "z", 443),), tls=model.ServerTls(False))
    site = Site(
        name="a",
        hosts=("a.example", "b.example"),
        backend="y",
        backends={"x": x, "y": y, "z": z},
        path="/p",
        hold=model.HoldLimits(13, 14, 15),
        timeouts=model.SiteTimeouts(16, 17, 18, 41),
        retry=model.Retry(19, 20),
        ramp=model.Ramp(21, 22),
        drain=model.Drain(23, 24),
        bypass=model.Bypass((ip_network("192.0.2.0/24"),), "x-preview", "opensesame"),
        access=model.Access(
            allow=(ip_network("10.0.0.0/8"),),
            deny=(ip_network("10.1.0.0/16"), ip_network("::1")),
        ),
        tls=model.SiteTls(True, 730 * 86400, True, True),
        max_body=25,
        max_in_flight=26,
        reuse_unsafe=27,
    )
    one = Listen(
        endpoint="tcp:1",
        tls=True,
        http2=False,
        max_streams=38,
        proxy_protocol=(ip_network("192.0.2.9"), ip_network("10.0.0.0/8")),
        max_per_client=39,
        trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("::1")),
        max_head=5,
        max_target=6,
        max_headers=7,
        body_rate=8,
        write_rate=68,
        timeouts=model.ListenTimeouts(40, 9, 10, 11, 12),
    )
    acme = model.Acme(
        directory="https://ca.example:14000/dir",
        email="a@a.example",
        terms_agreed=True,
        ca_file="/ca",
        renew_before=37 * 86400,
        eab_key_id="kid",
        eab_key_file="/eab",
    )
    assert config.parse(text, "f.toml") == Settings(
        name="n",
        state_dir="/s",
        control="/c",
        access_log="/a",
        listen=(one, Listen("unix:/u", h2c=True)),
        sites={"a": site},
        drain_time=1,
        max_connections=2,
        max_held=3,
        max_held_bytes=4,
        tls=model.Tls(("/c.pem", "/c"), "a.example", 36),
        acme=acme,
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


LIVES = (
    '[nodes.b]\nssh = "root@192.0.2.2"\n'
    '[filesystems.f]\nmover = "rsync"\nnode = "b"\non.node1.path = "/srv/f"\non.b.path = "/srv/f"\n'
)
IN_IT = text_with("[sites.a]", 'filesystem = "f"')


def test_a_site_lives_in_a_filesystem_that_is_on_the_nodes_of_its_backends() -> None:
    """All of them say which node that is."""
    there = text_with("[sites.a.backends.old]", 'node = "node1"').replace(
        'backend = "old"', 'backend = "old"\nfilesystem = "f"'
    )
    read = config.parse(LIVES + there, "f.toml")
    assert (read.sites["a"].filesystem, read.sites["a"].backends["old"].node) == ("f", "node1")
    assert read.nodes == {"b": model.Reach("b", "root@192.0.2.2")}
    found = read.filesystems["f"]
    assert (found.mover, found.node, sorted(found.places)) == ("rsync", "b", ["b", "node1"])
    assert problems(LIVES + IN_IT) == (
        "f.toml: sites.a.backends.old.node: has to be one on which the filesystem"
        ' "f" has a place; write "node1" or "b"',
    )


def test_the_mover_says_whether_paths_are_mount_points_unless_the_file_does() -> None:
    """So a directory on a disk of its own can be looked for in the mount table, too."""
    assert not config.parse(LIVES + text_with(), "f.toml").filesystems["f"].mount_point
    said = LIVES.replace('node = "b"', 'node = "b"\nmount_point = true') + text_with()
    assert config.parse(said, "f.toml").filesystems["f"].mount_point
    zfs = LIVES.replace("rsync", "zfs").replace('.path = "/srv/f"', ".dataset = 'tank/f'")
    zfs = zfs.replace("on.b", 'on.b.path = "/srv/f"\non.b')
    zfs = zfs.replace("on.node1", 'on.node1.path = "/srv/f"\non.node1')
    assert config.parse(zfs + text_with(), "f.toml").filesystems["f"].mount_point


CLUSTER = '[[listen]]\nendpoint = "tcp:80"\n[cluster]\n'


def test_a_cluster_has_a_redis_or_sentinels() -> None:
    """Ports, databases and how many replicas are wanted come with the kind."""
    one = config.parse(CLUSTER + 'redis = "redis://r.example"', "f.toml").cluster
    assert one == model.Cluster((("r.example", 6379),))
    two = config.parse(
        CLUSTER + 'redis = ["rediss://[::1]/2", "rediss://10.0.0.6:7/2"]\nmaster = "m"', "f.toml"
    ).cluster
    there = (("::1", 26379), ("10.0.0.6", 7))
    assert two == model.Cluster(there, tls=True, db=2, master="m", replicas=1)


def test_every_key_of_a_cluster_gets_where_it_belongs() -> None:
    """All of them, each with a value of its own."""
    text = """
        redis = ["rediss://r.example:1/3"]
        master = "m"
        user = "u"
        password_file = "/p"
        sentinel_user = "su"
        sentinel_password_file = "/sp"
        tls = { ca_file = "/ca", name = "R.example", certificate = "/c", key = "/k" }
        prefix = "p"
        lease = "4s"
        on_registry_loss = "hold"
        replicas = 2
        fence_command = ["off", "now"]
        fence_time = "5s"
    """
    assert config.parse(CLUSTER + text, "f.toml").cluster == model.Cluster(
        addresses=(("r.example", 1),),
        tls=True,
        db=3,
        master="m",
        user="u",
        password_file="/p",
        sentinel_user="su",
        sentinel_password_file="/sp",
        ca_file="/ca",
        verify_name="r.example",
        certificate="/c",
        key="/k",
        prefix="p",
        lease=4.0,
        on_registry_loss="hold",
        replicas=2,
        fence_command=("off", "now"),
        fence_time=5.0,
    )


def test_a_password_in_an_address_is_in_no_error() -> None:
    """Whatever else is wrong with it."""
    for redis in ('"redis://u:hush@r:x"', '["redis://hush@r", 3]', '"http://:hush@r/0"'):
        assert "hush" not in str(problems(CLUSTER + f"redis = {redis}"))


def test_sites_are_not_in_the_file_of_a_cluster() -> None:
    """Each is told, with the way that they are added."""
    assert problems(text_with() + '[cluster]\nredis = "redis://r"\n') == (
        "f.toml: sites.a: in a cluster sites are not in the file, so that all nodes have the"
        " same; move [sites] to a file of its own and say: awesomeproxy apply FILE",
    )
