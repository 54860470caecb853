"""All certificates of a node.

They come from files.  *Reading* these may take long and happens in a thread; *taking*
what was read is quick and happens between two turns of the reactor.  What cannot be
used changes nothing: if there was a good certificate in its place, that stays in use,
and the problem is told.  Only a file that is gone from its directory takes its
certificate along.

Each handshake begins on one context, which has no certificate, and is switched to the
context of the one that was chosen (:mod:`.choosing`).  If there is none, it fails: a
stranger's name is never answered with another site's certificate.  OpenSSL keeps the
keys of session tickets with the context that a connection began on.  So a session can
be resumed whatever happens to the certificates meanwhile, until that first context is
replaced, once a day, to let the keys go.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, cast

from OpenSSL import SSL

from awesomeproxy.model import Tls
from awesomeproxy.tls.accepting import Accepted, Served, select
from awesomeproxy.tls.choosing import Choice
from awesomeproxy.tls.contexts import server_context
from awesomeproxy.tls.pairs import Pair, PairError, read_pair, unusable
from awesomeproxy.tls.places import Files, Signature, find

TICKET_KEYS_LIFE: Final = 86_400.0  # seconds
SETTLED: Final = 2.0  # seconds since its last change after which a file is what it seems


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one pair's files."""

    files: Files
    place: str
    signature: Signature | None
    pair: Pair | None  # the last that could be used
    problem: str  # with the files as they are now


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found in the files, to be taken by :meth:`Certificates.take`."""

    settings: Tls
    entries: Mapping[str, Entry]  # by the path of the certificate
    problems: tuple[str, ...]  # with whole places


class Certificates:
    """The certificates of a node."""

    def __init__(
        self,
        settings: Tls,
        extra: tuple[str, ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        :param extra: further places; they need not exist.
        :param clock: the unix time.
        """
        self.settings = settings
        self.problems: tuple[str, ...] = ()  # all that there are now
        self.version = 0  # grows when clients may get another certificate than before
        self._extra = extra
        self._clock = clock
        self._entries: Mapping[str, Entry] = {}
        self._served: dict[str, Served] = {}  # by the path of the certificate
        self._choice = Choice()
        self._base = self._new_base()
        self._renew_base = clock() + TICKET_KEYS_LIFE

    def __repr__(self) -> str:
        return f"<Certificates: {len(self)}, {len(self.problems)} problems>"

    def __len__(self) -> int:
        """How many can be used."""
        return len(self._served)

    # Files

    def read(self, settings: Tls | None = None) -> Reading:
        """Read what has changed since the last that was taken.  For a thread: it blocks.

        :param settings: those that shall be used from now on; None: the present ones.
        """
        if settings is None:
            settings = self.settings
        known = self._entries
        entries: dict[str, Entry] = {}
        problems = []
        for place in (*settings.certificates, *self._extra):
            try:
                found = find(place)
            except FileNotFoundError:
                if place in self._extra:
                    continue
                problems.append(f"{place}: does not exist; create it, or remove it from [tls]")
            except OSError as problem:
                problems.append(
                    f"{place}: cannot be read: {problem.strerror}; let the daemon read it"
                )
            else:
                for files in found:
                    path = files.certificate
                    entries[path] = _look(files, place, known.get(path))
                continue
            # Nobody takes certificates away by making their place unreadable.
            entries.update((path, entry) for path, entry in known.items() if entry.place == place)
        return Reading(settings, entries, tuple(problems))

    def take(self, reading: Reading) -> list[str]:
        """Use what was read from now on; connections there are keep what they have.

        :return: the problems that have come up, one line each; they have not been logged.
        """
        now = self._clock()
        if now >= self._renew_base:
            self._base = self._new_base()
            self._renew_base = now + TICKET_KEYS_LIFE
        pairs = {path: entry.pair for path, entry in reading.entries.items() if entry.pair}
        before = self.pairs()
        default = reading.settings.default
        if pairs != before or default != self.settings.default or now >= self._choice.until:
            self._served = {
                path: self._served[path] if before.get(path) is pair else Served(pair)
                for path, pair in pairs.items()
            }
            self._choice = Choice(self._served.values(), default, now)
            self.version += 1
        self._entries = reading.entries
        self.settings = reading.settings
        told = self.problems
        self.problems = tuple(self._problems_of(reading, now))
        return [problem for problem in self.problems if problem not in told]

    def _problems_of(self, reading: Reading, now: float) -> Iterable[str]:
        yield from reading.problems
        yield from (entry.problem for entry in reading.entries.values() if entry.problem)
        yield from self._choice.misdated(now).values()
        if reading.settings.certificates and not reading.entries and not reading.problems:
            places = ", ".join(reading.settings.certificates)
            yield f"tls.certificates: there is no certificate in {places}; put one there"
        default = reading.settings.default
        if default and self._choice.default is None:
            yield (
                f"tls.default: there is no certificate for {default}; add one, or name another host"
            )

    # Connections

    def accept(self, sock: socket.socket, http2: bool) -> Accepted:
        """A connection on ``sock`` that waits for a client to begin the handshake.

        :param sock: connected, and not blocking.
        :param http2: whether HTTP/2 may be agreed on.
        """
        return Accepted(self._base, sock, http2)

    def _switch(self, connection: SSL.Connection) -> None:
        # OpenSSL asks in each handshake, also if it is about to resume a session or no name
        # was given; and twice in one that is retried (RFC 8446, section 4.1.4).
        served = self._choice.for_client(connection.get_servername())
        if served is not None:
            cast(Accepted, connection).switch(served)

    def _new_base(self) -> SSL.Context:
        base = server_context(select)
        base.set_tlsext_servername_callback(self._switch)
        return base

    # What there is

    def pairs(self) -> dict[str, Pair]:
        """Those in use, by the path of the certificate."""
        return {path: served.pair for path, served in self._served.items()}

    def covers(self, host: str) -> bool:
        """Whether there is a certificate for a host; the default does not count."""
        return self._choice.find(host) is not None

    def names(self) -> set[str]:
        """All names that there are certificates for; wildcards as they are."""
        return self._choice.names()

    def listing(self) -> list[dict[str, Any]]:
        """Every certificate: ``names``, ``source``, ``not_after`` (unix time) and ``problem``.

        One that cannot be used and never could has no names, and None for its end.
        """
        misdated = self._choice.misdated(self._clock())
        return [
            {
                "names": sorted(entry.pair.names) if entry.pair is not None else [],
                "source": path,
                "not_after": entry.pair.ends if entry.pair is not None else None,
                "problem": entry.problem or misdated.get(path, ""),
            }
            for path, entry in sorted(self._entries.items())
        ]

    def expiring(self, now: float, within: float) -> list[dict[str, Any]]:
        """What clients get and ends within so many seconds, or has; the first to end first.

        :return: ``names``, ``source`` and ``not_after`` of each.
        """
        ending = [pair for pair in self._choice.pairs() if pair.ends < now + within]
        return [
            {"names": sorted(pair.names), "source": pair.source, "not_after": pair.ends}
            for pair in sorted(ending, key=attrgetter("ends"))
        ]


def _look(files: Files, place: str, known: Entry | None) -> Entry:
    signature = files.signature()
    if known is not None and signature is not None:
        same = (files, place, signature) == (known.files, known.place, known.signature)
        if same:
            return known
    if signature is not None and time.time() - max(each.changed for each in signature) < SETTLED:
        signature = None  # it could change once more and look the same: read it again next time
    before = known.pair if known is not None else None
    try:
        pair = _usable(files)
    except PairError as problem:
        return Entry(files, place, signature, before, str(problem))
    if before is not None and pair.same(before):
        pair = before
    return Entry(files, place, signature, pair, "")


def _usable(files: Files) -> Pair:
    pair = read_pair(files.certificate, files.key)
    if not pair.names:
        raise PairError(
            pair.source,
            "is for no host: it has no subjectAltName; have it issued again with its hosts there",
        )
    try:
        server_context(select, pair)
    except SSL.Error as problem:
        raise unusable(pair, problem) from None
    return pair
