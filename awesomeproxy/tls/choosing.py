"""Which of several certificates a client gets.

The one for exactly the name it asks for, else the one for the wildcard one label up
(RFC 9525, section 6.3), else the default, and without a default none.  A client that
names no host gets the default, or the only certificate there is.  Where there are
several for a name, one that is valid comes before one that is not, then one that is
cheap to prove before RSA, then the one that lasts longest.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from operator import attrgetter

from cryptography.hazmat.primitives.asymmetric import rsa

from awesomeproxy.tls.accepting import Served
from awesomeproxy.tls.pairs import Pair


class Choice:
    """The best certificate for each name, at one moment."""

    def __init__(self, served: Collection[Served] = (), default: str = "", now: float = 0) -> None:
        """
        :param default: the host whose certificate those get who ask for no known one.
        :param now: unix time.
        """
        self._exact: dict[bytes, Served] = {}
        self._wildcards: dict[bytes, Served] = {}  # by what follows the asterisk and the dot
        for one in sorted(served, key=lambda one: _rank(one.pair, now)):
            for name in one.pair.names:  # a later one is better
                if name.startswith("*."):
                    self._wildcards[name[2:].encode()] = one
                else:
                    self._exact[name.encode()] = one
        self.default = self.find(default) if default else None
        self._nameless = next(iter(served)) if not default and len(served) == 1 else self.default
        dates = [date for one in served for date in (one.pair.begins, one.pair.ends)]
        # When another one may be the best, or another problem come up.
        self.until = min((date for date in dates if date > now), default=float("inf"))

    def for_client(self, name: bytes | None) -> Served | None:
        """What a client gets.

        :param name: that it asks for, as it comes; None: it names none.
        """
        if name is None:
            return self._nameless
        return self._exact.get(name) or self._find(name.lower()) or self.default

    def find(self, host: str) -> Served | None:
        """What there is for a host, the default aside."""
        return self._find(host.lower().encode())

    def _find(self, name: bytes) -> Served | None:
        return self._exact.get(name) or self._wildcards.get(name.partition(b".")[2])

    def names(self) -> set[str]:
        """All names that there are certificates for; wildcards as they are."""
        wildcards = {f"*.{name.decode()}" for name in self._wildcards}
        return {name.decode() for name in self._exact} | wildcards

    def pairs(self) -> list[Pair]:
        """Those that somebody may get, in the order of their files."""
        chosen = {*self._exact.values(), *self._wildcards.values()}
        return sorted((one.pair for one in chosen), key=attrgetter("source"))

    def misdated(self, now: float) -> dict[str, str]:
        """The problems with the dates of those that somebody may get, by their files."""
        return {pair.source: problem for pair in self.pairs() if (problem := _misdated(pair, now))}


def _rank(pair: Pair, now: float) -> tuple[bool, bool, float]:
    return pair.begins <= now < pair.ends, not isinstance(pair.key, rsa.RSAPrivateKey), pair.ends


def _misdated(pair: Pair, now: float) -> str:
    if now >= pair.ends:
        return f"{pair.source}: expired on {_day(pair.ends)} and clients refuse it; renew it"
    if now < pair.begins:
        return (
            f"{pair.source}: is not valid before {_day(pair.begins)} and clients refuse it;"
            " look at the clock, or put the one before it back"
        )
    return ""


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
