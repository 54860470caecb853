"""Definitions as tables: what is shown reads back to the same site."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest

from awesomeproxy import config
from awesomeproxy.control.render import definition
from awesomeproxy.control.text import Style
from awesomeproxy.model import Site
from awesomeproxy.tables import HIDDEN, table_of

MINIMAL = """
hosts = ["blog.test"]
backend = "old"
[backends.old]
servers = ["http://10.0.0.1:80"]
"""

FULL = """
hosts = ["blog.test", "*.blog.test"]
path = "/blog"
backend = "old"
hold = { max_requests = 5, max_bytes = "1MB", max_time = "90s" }
timeouts = { connect = "1s", response = "2s", tunnel = "3s", websocket = "4s" }
retry = { attempts = 1, budget = 0 }
ramp = { start = 0, double_every = "1s" }
drain = { time = 0, tunnels = 0 }
bypass = { networks = ["10.0.0.0/8", "2001:db8::/32"] }
access = { allow = ["10.0.0.0/8"], deny = ["10.0.0.7", "2001:db8::/32"] }
tls = { redirect = true, hsts = "730d", hsts_subdomains = true, acme = false }
max_body = "1MB"
max_in_flight = 7
reuse_unsafe = "2s"
[backends.old]
servers = ["http://10.0.0.1:80", "http://[2001:db8::1]:8080", "unix:/run/a.sock"]
balance = "least_connections"
max_fails = 1
fail_timeout = "1s"
max_idle = 0
idle_timeout = "1s"
health = { path = "/up", host = "x.test", interval = "1s", status = "200-204" }
send_proxy = "v2"
[backends.new]
servers = ["http://new.test:80", "https://new.test", "h2://[2001:db8::1]:8443"]
health.path = "/"
[backends.new.tls]
ca_file = "/etc/ca.pem"
name = "app.internal"
sni = "sni.internal"
certificate = "/etc/us.pem"
key = "/etc/us.key"
[backends.open]
servers = ["https://new.test"]
tls.verify = false
"""

ISSUED = f"tls.acme = true\n{MINIMAL}"


def _site(text: str) -> Site:
    return config.site_from_table("blog", tomllib.loads(text), "test")


@pytest.mark.parametrize("text", [MINIMAL, FULL, ISSUED])
def test_a_table_reads_back_to_the_same_site(text: str) -> None:
    """As JSON, and as the TOML that `site show` prints."""
    site = _site(text)
    table = table_of(site)
    assert config.site_from_table("blog", table, "test") == site
    shown = definition({"definition": table, "source": "file"}, Style(colour=False))
    assert _site(shown) == site


def test_what_is_at_its_default_is_left_out() -> None:
    """Only what was written is shown."""
    assert table_of(_site(MINIMAL)) == tomllib.loads(MINIMAL)


def test_the_names_of_files_are_shown() -> None:
    """Where a key is says nothing of the key: who looks after the site needs to know."""
    shown = table_of(_site(FULL))["backends"]["new"]["tls"]
    assert (shown["certificate"], shown["key"]) == ("/etc/us.pem", "/etc/us.key")


def test_a_secret_is_not_shown_and_what_is_shown_is_none() -> None:
    """A definition that comes back with it is refused, not open to who has read it."""
    secret = "opensesame"
    site = _site(f'bypass = {{ header = "X-Try", secret = "{secret}" }}\n{MINIMAL}')
    table = table_of(site)
    assert secret not in str(table)
    assert table["bypass"] == {"header": "x-try", "secret": HIDDEN}
    with pytest.raises(config.ConfigError, match="is not a good secret"):
        config.site_from_table("blog", table, "test")
    assert table_of(replace(site, name="shop")) == table
