"""The file's sites and those added by command, put together."""

from __future__ import annotations

from typing import Any

import pytest

from awesomeproxy import config
from awesomeproxy.composing import compose
from awesomeproxy.config import ConfigError

FILE = """
[[listen]]
endpoint = "tcp:80"
[sites.blog]
hosts = ["blog.test"]
backend = "old"
backends.old.servers = ["http://10.0.0.1"]
"""
ACME = '[acme]\ndirectory = "https://ca.test/directory"\nterms_agreed = true\n'


def shop(**others: object) -> dict[str, Any]:
    """The table of a site that a command adds."""
    backends = {"one": {"servers": ["https://10.0.0.2"]}}
    return {"hosts": ["shop.test"], "backend": "one", "backends": backends, **others}


def problems(text: str, **added: dict[str, Any]) -> tuple[str, ...]:
    """What is said against the sites ``added`` to the file ``text``."""
    with pytest.raises(ConfigError) as caught:
        compose(config.parse(text, "f.toml"), added)
    return caught.value.problems


def test_certificates_are_issued_for_an_added_site_if_the_node_has_an_authority() -> None:
    """The site is as it would be in the file."""
    settings = config.parse(ACME + FILE, "f.toml")
    sites = compose(settings, {"shop": shop(tls={"acme": True})})
    assert list(sites) == ["blog", "shop"]
    assert sites["shop"].tls.acme


def test_an_added_site_wants_no_certificates_that_nobody_issues() -> None:
    """Without an authority the site is refused, with the words the file would get."""
    assert problems(FILE, shop=shop(tls={"acme": True})) == (
        "sites.shop.tls.acme: is true, but nothing says who issues certificates; "
        "add an [acme] table",
    )


def test_an_added_site_wants_no_certificates_that_cannot_be_issued() -> None:
    """A wildcard needs another proof than the proxy can give."""
    (said,) = problems(ACME + FILE, shop=shop(hosts=["*.shop.test"], tls={"acme": True}))
    assert said.startswith("added by command: sites.shop.tls.acme: is true, but no certificate")


def test_what_is_wrong_with_an_added_site_is_all_told() -> None:
    """A host that the file's site has, and certificates from nobody."""
    found = problems(FILE, shop=shop(hosts=["blog.test"], tls={"acme": True}))
    assert ["is claimed by site" in found[0], "[acme]" in found[1], len(found)] == [True, True, 2]


def test_an_added_backend_is_checked_as_the_file_is() -> None:
    """Its keys contradict each other or they do not."""
    plain = {"servers": ["http://10.0.0.2"], "tls": {"verify": False}}
    assert problems(FILE, blog={"backends": {"new": plain}}) == (
        'added by command: backends.new.tls: is for servers with "https://" or "h2://"; '
        "there is none, remove it",
    )
