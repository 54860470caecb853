"""A small good configuration file to make mistakes in, and what is said of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from awesomeproxy import config
from awesomeproxy.config import ConfigError
from awesomeproxy.model import Backend, Listen, Server, Settings, Site

HERE = Path(__file__).parent
ETC = HERE.parent / "etc"

# The file.
TABLES = {
    "[node]": ['name = "node1"'],
    "[[listen]]": ['endpoint = "tcp:80"'],
    "[sites.a]": ['hosts = ["a.example"]', 'backend = "old"'],
    "[sites.a.backends.old]": ['servers = ["http://10.0.0.1:8080"]'],
}
# Tables that it does without.
MORE = {
    "[tls]": [],
    "[cluster]": ['redis = "redis://10.0.0.5:6379"'],
    "[acme]": ['directory = "https://ca.example/directory"', "terms_agreed = true"],
    "[nodes.b]": [],
    "[filesystems.f]": ['mover = "rsync"', 'node = "node1"', 'on.node1.path = "/srv/f"'],
    "[[hooks]]": ['step = "fence"', 'command = ["true"]'],
    "[databases.d]": [
        'endpoint = "tcp:5432"',
        'backend = "one"',
        'backends.one.server = "tcp://10.0.0.1:5432"',
        'protocol = "postgres"',
        'via = "pgbouncer"',
        'pgbouncer.address = "tcp://10.0.0.9:6432"',
        'pgbouncer.database = "shop"',
    ],
}
# What errors say often, by the word that config_mistakes.txt has for it.
MISTAKES = (HERE / "config_mistakes.txt").read_text("utf-8")
OFTEN = dict(re.findall("^(<[A-Z_0-9]+>) (.*)", MISTAKES, re.MULTILINE))

OLD = Server("http", "10.0.0.1", 8080)
SITE = Site("a", ("a.example",), "old", {"old": Backend("old", (OLD,))})
SETTINGS = Settings(
    name="node1",
    state_dir="/var/lib/awesomeproxy",
    control="/run/awesomeproxy/control.sock",
    access_log="",
    listen=(Listen("tcp:80"),),
    sites={"a": SITE},
)
TLS = '[tls]\ncertificates = ["/c.pem"]\n'
ACME = "[acme]\n" + "\n".join(MORE["[acme]"]) + "\n"


def text_with(table: str = "", line: str = "") -> str:
    """The small good file, but for ``line``, which takes the place of one with its key."""
    key = line.partition(" = ")[0]
    text = ""
    more = {table: MORE[table]} if table in MORE else {}
    for header, lines in {**TABLES, **more}.items():
        if table == "[cluster]" and header.startswith("[sites"):
            continue  # in a cluster there are none in the file
        kept = [old for old in lines if header != table or old.partition(" = ")[0] != key]
        text += "\n".join([header, *kept, line if header == table else "", ""])
    return text


def problems(text: str) -> tuple[str, ...]:
    """What is said to be wrong with ``text``."""
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "f.toml")
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems
