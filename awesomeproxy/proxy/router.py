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


class Prefixes(Generic[S]):
    """The sites of one host, by path prefix."""

    __slots__ = ("_longest", "below", "root")

    def __init__(self) -> None:
        self.root: S | None = None  # the site for all that no prefix is of
        # By prefix.  None before there is one: most hosts have one site, and may be very many.
        self.below: dict[bytes, S] | None = None
        self._longest = 0  # bytes of the longest prefix there has been

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self.root is not None or bool(self.below)

    def add(self, path: str, site: S) -> None:
        """Add a site that has this host, with that path."""
        prefix = _prefix(path)
        if not prefix:
            self.root = site
            return
        self.below = self.below or {}
        self.below[prefix] = site
        self._longest = max(self._longest, len(prefix))

    def remove(self, path: str, site: S) -> None:
        """Take it out, unless another has come in its place."""
        prefix = _prefix(path)
        if not prefix:
            self.root = None if self.root is site else self.root
        elif self.below and self.below.get(prefix) is site:
            del self.below[prefix]

    def find(self, path: bytes) -> S | None:
        """The site for a path: ``/blog`` is for ``/blog``, ``/blog/x``, not ``/blogs``."""
        if not self.below:
            return self.root
        end = len(path)
        if end > self._longest:
            end = path.rfind(b"/", 0, self._longest + 1)
        while end > 0:
            site = self.below.get(path[:end])
            if site is not None:
                return site
            end = path.rfind(b"/", 0, end)
        return self.root


def _prefix(path: str) -> bytes:
    return path.rstrip("/").encode()


class Routes(Generic[S]):
    """What a name leads to: the sites of each host that it matches, the nearest host first."""

    __slots__ = ("_hosts", "only")

    def __init__(self, hosts: list[Prefixes[S]]) -> None:
        self._hosts = hosts
        # The site, if the path does not matter.
        self.only = None if hosts[0].below else hosts[0].root

    def find(self, target: bytes) -> S | None:
        """The site for a target: where no path of a host matches, the next is tried."""
        path = target.partition(b"?")[0]
        for host in self._hosts:
            site = host.find(path)
            if site is not None:
                return site
        return None


class Router(Generic[S]):
    """Finds sites.  They can come and go one by one, at no more cost if there are many."""

    def __init__(self, sites: Iterable[S] = ()) -> None:
        self._exact: dict[str, Prefixes[S]] = {}
        self._wild: dict[str, Prefixes[S]] = {}
        self._remembered: dict[bytes, Routes[S]] = {}
        for site in sites:
            self.add(site)

    def add(self, site: S) -> None:
        """Find it from now on, as it is defined now."""
        for host in site.site.hosts:
            table, name = self._place(host)
            table.setdefault(name, Prefixes()).add(site.site.path, site)
        self._remembered.clear()

    def remove(self, site: S, definition: Site) -> None:
        """Find it no more.

        :param definition: what it was when it was added.
        """
        for host in definition.hosts:
            table, name = self._place(host)
            prefixes = table.get(name)
            if prefixes is not None:
                prefixes.remove(definition.path, site)
                if not prefixes:
                    del table[name]
        self._remembered.clear()

    def _place(self, host: str) -> tuple[dict[str, Prefixes[S]], str]:
        return (self._wild, host[1:]) if host.startswith("*.") else (self._exact, host)

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
        return Routes(found) if found else None
