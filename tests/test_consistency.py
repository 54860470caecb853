"""What keys of a configuration say of each other, and how contradictions are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from config_stage import ACME, SITE, TLS, problems, text_with

from awesomeproxy import config, consistency
from awesomeproxy.model import Listen
from awesomeproxy.shapes import Spot

NO_CERTIFICATE = (
    "is true, but there is no certificate; "
    "add certificates to [tls], or an [acme] table and tls.acme to sites"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            TLS + text_with("[[listen]]", "tls = true\nh2c = true"),
            "listen[0].h2c: is for listeners without TLS; "
            "write false: with TLS, http2 offers HTTP/2",
        ),
        (
            text_with("[[listen]]", 'proxy_protocol = ["::1"]').replace("tcp:80", "haproxy:tcp:80"),
            "listen[0].proxy_protocol: is for an endpoint that leaves PROXY headers alone; "
            "make that tcp:PORT",
        ),
        (
            text_with() + "[[listen]]\nendpoint = 'tcp:443'\ntls = true",
            f"listen[1].tls: {NO_CERTIFICATE}",
        ),
        (
            ACME
            + text_with("[sites.a]", "tls.acme = true").replace('"a.example"', '"*.a.example"'),
            'sites.a.tls.acme: is true, but no certificate can be issued for "*.a.example", only '
            "for exact hosts; write false and add its certificate to [tls], "
            "or make it another site",
        ),
        (
            text_with("[sites.a.backends.old]", 'send_proxy = "v2"').replace("http:", "h2c:"),
            "sites.a.backends.old.send_proxy: is for connections of one client each, which those "
            'to h2:// and h2c:// servers are not; write ""',
        ),
        (
            text_with("[sites.a.backends.old]", 'tls.key = "/k"').replace("http:", "https:"),
            "sites.a.backends.old.tls.certificate: is missing, but there is a key; "
            "name the file of its chain",
        ),
        *(
            (
                text_with("[sites.a.backends.old]", f'tls = {{verify = false, {key} = "/ca"}}')
                .replace("http:", "https:")
                .replace('name = "/ca"', 'name = "app"'),
                "sites.a.backends.old.tls.verify: is false, but there is a ca_file or a name to "
                "verify; remove these, or write true",
            )
            for key in ("ca_file", "name")
        ),
        ("[acme]\nterms_agreed = true\n" + text_with(), "acme.directory: is missing; add it"),
    ],
)
def test_what_contradicts_itself_is_told_with_what_to_change(text: str, said: str) -> None:
    """Keys that are good each by itself, and not together, give one problem, in these words."""
    assert problems(text) == (f"f.toml: {said}",)


@pytest.mark.parametrize("endpoint", ["ssl:443:privateKey=/k", "haproxy:ssl:443", "SSL:443"])
def test_an_endpoint_with_tls_of_its_own_gets_no_second(endpoint: str) -> None:
    """``tls`` is for endpoints without it."""
    spot = Spot("f.toml")
    consistency.check_listen(Listen(endpoint, tls=True), spot)
    assert spot.lines() == (
        "f.toml: tls: is true, but the endpoint has TLS of its own; make that tcp:PORT",
    )


@pytest.mark.parametrize(
    "text",
    [
        TLS + text_with("[[listen]]", "tls = true"),
        ACME + text_with("[[listen]]", "tls = true"),  # sites can be added by command
        ACME + text_with("[sites.a]", "tls.acme = true"),
        ACME + "[tls]\ndefault = 'a.example'\n" + text_with("[sites.a]", "tls.acme = true"),
        TLS + "default = 'www.a.example'\n" + text_with(),
        text_with("[[listen]]", "tls = false\nh2c = true"),
        text_with("[sites.a]", 'tls = {hsts = "730d", hsts_subdomains = true}'),
        text_with("[sites.a]", 'access = {allow = ["10.0.0.0/8"], deny = ["10.0.0.0/8"]}'),
        text_with("[sites.a.backends.old]", "tls = {verify = true}"),  # as it is anyway
        text_with(
            "[sites.a.backends.old]",
            'servers = ["http://a", "https://b", "h2://c"]\ntls = {verify = false, sni = "d"}',
        ),
        text_with("[sites.a.backends.old]", 'servers = ["https://a"]\ntls.certificate = "/c"'),
        text_with("[sites.a.backends.old]", 'servers = ["unix:/s"]\nsend_proxy = "v1"'),
    ],
)
def test_what_agrees_is_taken(text: str) -> None:
    """Keys that have to do with each other and do not contradict are no problem."""
    config.parse(text, "f.toml")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("tls = 1\n" + text_with("[[listen]]", "tls = true"), ["tls"]),
        ("acme = 1\n" + text_with("[sites.a]", "tls.acme = true"), ["acme"]),
        (
            "[acme]\neab_key_id = 'a b'\neab_key_file = '/k'\nterms_agreed = 1\n" + text_with(),
            ["acme.directory", "acme.terms_agreed", "acme.eab_key_id"],
        ),
        (
            text_with("[[listen]]", "tls = true").replace(
                "backend = ", "tls.acme = 'yes'\nbackend = "
            ),
            ["sites.a.tls.acme"],
        ),
        (
            text_with("[sites.a.backends.old]", 'servers = ["https:"]\ntls.ca_file = "/c"'),
            ["sites.a.backends.old.servers[0]"],
        ),
        (
            text_with("[sites.a.backends.old]", 'tls = {key = "/k", certificate = 1}').replace(
                "http:", "https:"
            ),
            ["sites.a.backends.old.tls.certificate"],
        ),
    ],
)
def test_nothing_is_said_of_what_follows_from_another_problem(text: str, keys: list[str]) -> None:
    """A key that is wrong is not missing as well."""
    assert [line.split(": ")[1] for line in problems(text)] == keys


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


def test_a_site_overlaps_with_others_but_not_with_itself() -> None:
    """A site that is defined anew does not collide with what it was."""
    other = replace(SITE, name="b")
    assert list(consistency.Claims([SITE]).overlaps(SITE)) == []
    assert list(consistency.Claims([replace(other, path="/b")]).overlaps(SITE)) == []
    assert list(consistency.Claims([SITE]).overlaps(other)) == [
        '"a.example" with path "/" is claimed by site "a" and by site "b"; '
        "give one of them another host or path"
    ]
