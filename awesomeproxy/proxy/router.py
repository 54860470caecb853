"""Which site a request is for: by host, then by the longest path prefix.

Exact host names come before wildcards, and a longer wildcard before a shorter
one.  A name nobody has configured finds nothing: there is no default site.

The last answers are remembered by the Host field as it came, which spares the
usual request everything but one look-up.  Strangers can fill that memory, so it
is emptied when it is full.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from awesomeproxy.model import Site
from awesomeproxy.proxy.requests import HOST

REMEMBERED = 4096


class HasSite(Protocol):
    """What can be routed to: something with a site's definition."""

    @property
    def site(self) -> Site:
        """The definition."""


S = TypeVar("S", bound=HasSite)


class BadHost(Exception):
    """A Host field that cannot name a host."""


class Routes(Generic[S]):
    """The sites of one host, the longest prefix first."""

    __slots__ = ("_prefixes", "only")

    def __init__(self) -> None:
        self._prefixes: list[tuple[bytes, S]] = []
        self.only: S | None = None  # the site, if the path does not matter

    def add(self, site: S) -> None:
        """Add a site that has this host."""
        self._prefixes.append((site.site.path.rstrip("/").encode(), site))
        self._prefixes.sort(key=lambda entry: -len(entry[0]))
        self._sum_up()

    def fall_back(self, routes: Routes[S]) -> None:
        """Where no path matches, try those of ``routes``."""
        self._prefixes.extend(routes._prefixes)
        self._sum_up()

    def _sum_up(self) -> None:
        prefix, site = self._prefixes[0]
        self.only = None if prefix else site

    def find(self, target: bytes) -> S | None:
        """The site for a target: ``/blog`` is for ``/blog``, ``/blog/x``, not ``/blogs``."""
        path = target.partition(b"?")[0]
        for prefix, site in self._prefixes:
            if not prefix or path == prefix or path.startswith(prefix + b"/"):
                return site
        return None


class Router(Generic[S]):
    """Finds sites.  It is made anew when the sites change."""

    def __init__(self, sites: Iterable[S] = ()) -> None:
        self._exact: dict[str, Routes[S]] = {}
        self._wild: dict[str, Routes[S]] = {}
        self._remembered: dict[bytes, Routes[S]] = {}
        for site in sites:
            for host in site.site.hosts:
                wild = host.startswith("*.")
                table = self._wild if wild else self._exact
                table.setdefault(host[1:] if wild else host, Routes()).add(site)

    def find(self, host: bytes, target: bytes) -> S | None:
        """The site that a request is for, or None.

        :param host: the Host field as it came.
        :raise BadHost: it is malformed.
        """
        routes = self._remembered.get(host)
        if routes is None:
            routes = self._look_up(host)
            if routes is None:
                return None
            if len(self._remembered) >= REMEMBERED:
                self._remembered.clear()
            self._remembered[host] = routes
        return routes.only or routes.find(target)

    def _look_up(self, host: bytes) -> Routes[S] | None:
        if not HOST.match(host):
            raise BadHost(host)
        name = host.decode("ascii").lower()
        if not name.endswith("]"):
            head, colon, port = name.rpartition(":")
            if colon and (not port or port.isdigit()):
                name = head
        name = name.rstrip(".")
        found = [self._exact[name]] if name in self._exact else []
        dot = name.find(".", 1)  # a wildcard stands for at least one letter
        while dot >= 0:
            if name[dot:] in self._wild:
                found.append(self._wild[name[dot:]])
            dot = name.find(".", dot + 1)
        if not found:
            return None
        merged: Routes[S] = Routes()
        for routes in found:
            merged.fall_back(routes)
        return merged
