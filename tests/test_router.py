"""Which site a request is for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from awesomeproxy.model import Backend, Server, Site
from awesomeproxy.proxy.router import REMEMBERED, BadHost, Router

BACKENDS = {"a": Backend("a", (Server("http", "127.0.0.1", 1),))}


@dataclass
class Live:
    site: Site


def live(name: str, *hosts: str, path: str = "/") -> Live:
    return Live(Site(name, hosts, "a", BACKENDS, path=path))


ROUTER = Router(
    [
        live("exact", "example.com"),
        live("wild", "*.example.com"),
        live("deep", "*.deep.example.com"),
        live("named", "named.example.com", path="/only"),
        live("blog", "example.com", path="/blog"),
        live("archive", "example.com", path="/blog/archive/"),
        live("six", "[::1]"),
        live("number", "192.0.2.7"),
    ]
)


@pytest.mark.parametrize(
    ("host", "target", "name"),
    [
        (b"example.com", b"/", "exact"),
        (b"EXAMPLE.com", b"/", "exact"),
        (b"example.com:8080", b"/", "exact"),
        (b"example.com:", b"/", "exact"),
        (b"example.com.", b"/", "exact"),
        (b"example.com.:80", b"/", "exact"),
        (b"a.example.com", b"/", "wild"),
        (b"a.b.example.com", b"/", "wild"),
        (b"a.deep.example.com", b"/", "deep"),
        (b"deep.example.com", b"/", "wild"),
        (b"named.example.com", b"/only/x", "named"),
        (b"named.example.com", b"/other", "wild"),
        (b"example.com", b"/blog", "blog"),
        (b"example.com", b"/blog/", "blog"),
        (b"example.com", b"/blog?x", "blog"),
        (b"example.com", b"/blogs", "exact"),
        (b"example.com", b"/x?/blog", "exact"),
        (b"example.com", b"/blog/archive", "archive"),
        (b"example.com", b"/blog/archive/1", "archive"),
        (b"example.com", b"/blog/archived", "blog"),
        (b"example.com", b"*", "exact"),
        (b"[::1]", b"/", "six"),
        (b"[::1]:80", b"/", "six"),
        (b"192.0.2.7:80", b"/", "number"),
    ],
)
def test_a_request_finds_its_site(host: bytes, target: bytes, name: str) -> None:
    for _ in range(2):  # the second time it is remembered
        found = ROUTER.find(host, target)
        assert found is not None
        assert found.site.name == name


@pytest.mark.parametrize(
    "host",
    [b"", b"com", b"example.org", b"xexample.com", b"example.com.evil", b".example.com", b":80"],
)
def test_a_name_that_nobody_has_configured_finds_nothing(host: bytes) -> None:
    assert ROUTER.find(host, b"/") is None


def test_a_path_that_nobody_has_configured_finds_nothing() -> None:
    assert Router([live("a", "h", path="/a")]).find(b"h", b"/b") is None


@pytest.mark.parametrize(
    "host", [b"a b", b"a/b", b"a@b", b"a:b", b"a\xff", b"a:80:80", b"[::1", b"[x]", b"a\n", b'"a"']
)
def test_what_cannot_be_a_host_is_told_apart(host: bytes) -> None:
    with pytest.raises(BadHost):
        ROUTER.find(host, b"/")


def test_what_strangers_ask_for_is_not_remembered_without_a_bound() -> None:
    router = Router([live("wild", "*.example.com")])
    for number in range(3 * REMEMBERED):
        assert router.find(b"x%d.example.com" % number, b"/") is not None
        assert router.find(b"x%d.example.org" % number, b"/") is None
    assert len(router._remembered) <= REMEMBERED
