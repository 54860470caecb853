"""What every registry promises, whatever it keeps its records in.

The registry says what *should* be: one :class:`~awesomeproxy.model.Placement` per
site, database and filesystem, with a generation that grows by one with each
change.  Nobody locks a site.  Whoever wants to change a placement says which
generation it has seen, and the change is made only if that is still the one
stored; of several that try at once, one wins, and the others get a
:class:`Conflict` that names it.

It also keeps the journal of migrations.  A migration is an :class:`Entry` that
goes one of two ways::

    begin ──> running ──commit──> committed ──finish──> done
              │  ↑ └─────────finish───────────────────> rolled back
              └hold┘

Each arrow changes the placement and the journal in one transaction, and with them
the placements of all that is moved or held *along* with the site, so that
after a crash at any point the entry says which way to go: an entry that is
``running`` is rolled back, one that is ``committed`` is rolled forward.

Last, it remembers the definitions of sites that were added by a command rather
than by the configuration file.

Every method answers with a Deferred of its own.  Nothing is answered before it
would survive a power cut, except :meth:`IRegistry.step`.  A change that fails
with any :class:`RegistryError` has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from twisted.internet.defer import Deferred
from zope.interface import Interface

from awesomeproxy.model import Generation, Placement

State = Literal["running", "committed", "done", "rolled back"]


@dataclass(frozen=True, slots=True)
class Companion:
    """What is moved along with a site, or only held with it: then ``source`` is ``target``."""

    site: str
    source: str
    target: str
    generation: Generation  # of the last placement that the migration wrote


@dataclass(frozen=True, slots=True)
class Entry:
    """One migration in the journal."""

    id: int
    site: str
    source: str  # the backends it moves from ...
    target: str  # ... and to
    generation: Generation  # of the last placement that this migration wrote
    step: str = ""  # the last one that was begun
    state: State = "running"
    reason: str = ""  # why it was rolled back
    ledger: dict[str, Any] | None = None  # JSON values, once it is finished
    began: float = 0.0  # unix time, for people; nothing is ordered by it
    along: tuple[Companion, ...] = ()
    owner: str = ""  # the node that carries it out, of a cluster ...
    life: int = 0  # ... and its membership then

    @property
    def unfinished(self) -> bool:
        """Still to be rolled back or forward."""
        return self.state in ("running", "committed")

    def concerns(self, name: str) -> bool:
        """Whether ``name`` is moved or held in it."""
        return name == self.site or any(name == each.site for each in self.along)


class RegistryError(Exception):
    """The registry cannot be used, or refuses; the message says why and what to do."""


class Conflict(RegistryError):
    """Somebody else has changed the placement first.

    ``stored`` is what they made of it, None if the site is not placed.
    """

    def __init__(self, site: str, expected: Generation, stored: Placement | None) -> None:
        self.site, self.expected, self.stored = site, expected, stored
        found = (
            f'it is at {stored.generation}, changed by "{stored.by}"'
            if stored
            else "it is not placed"
        )
        super().__init__(f"{site}: generation {expected} was expected, but {found}")


class Busy(RegistryError):
    """The site has a migration that is not finished: ``entry``."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        super().__init__(
            f"{entry.site}: migration {entry.id} from {entry.source} to {entry.target} "
            f"is {entry.state}; wait until it is finished"
        )


class NotAllowed(RegistryError):
    """A change that cannot follow what is recorded, such as a commit after a rollback."""


class Superseded(NotAllowed):
    """Another node has taken the migration over."""


class Unreachable(RegistryError):
    """The registry cannot be reached; nothing was changed."""


class Doubtful(RegistryError):
    """The registry was lost while it was asked: it may have been changed, or not.

    ``made`` answers whether, as is known by then, it was changed and still is as it was changed.
    """

    def __init__(self, message: str, made: Callable[[], bool] = lambda: False) -> None:
        super().__init__(message)
        self.made = made


class IRegistry(Interface):
    """Where every site is placed, which sites were added, and what migrations did."""

    def placements() -> Deferred[dict[str, Placement]]:
        """All placements, by the name of their site."""

    def place(new: Placement, expected: Generation) -> Deferred[Placement]:
        """Store ``new`` if the stored generation is ``expected``; 0: if it is not stored.

        The generation in ``new`` is ignored.  What is stored, and answered, has a
        larger one than ``expected``, without a cluster ``expected + 1``; a site that was
        forgotten and is placed again goes on from where it was, so that no worker takes it
        for old news.

        Fails with :class:`Conflict`.
        """

    def place_new(new: Sequence[Placement]) -> Deferred[list[Placement]]:
        """:meth:`place` what is not stored yet, all in one transaction or nothing.

        Fails with :class:`Conflict`.
        """

    def forget(site: str, expected: Generation) -> Deferred[None]:
        """Remove the placement of ``site`` if its generation is ``expected``.

        Fails with :class:`Conflict`, or with :class:`Busy` during a migration.
        """

    def definitions() -> Deferred[dict[str, dict[str, Any]]]:
        """The tables of the sites that were added by command, by name."""

    def define(name: str, table: dict[str, Any]) -> Deferred[None]:
        """Remember ``table``, JSON values as in the configuration file, for ``name``.

        Fails with TypeError or ValueError if there is anything else in it.
        """

    def undefine(name: str) -> Deferred[None]:
        """Remove the definition of ``name``, if there is one."""

    def begin(
        site: str,
        source: str,
        target: str,
        hold: Placement,
        expected: Generation,
        along: Sequence[tuple[Placement, str]] = (),
    ) -> Deferred[Entry]:
        """Record a migration and place ``hold``, which keeps the site on ``source``.

        It holds it, or leaves it open as it is, to be held later by :meth:`hold`.
        ``along`` are the placements of what comes along, each at the generation that was
        seen, with the target of each.

        Fails with :class:`Busy`, :class:`Conflict` or :class:`NotAllowed`.
        """

    def step(entry_id: int, name: str) -> Deferred[None]:
        """Record that a migration is about to begin the step ``name``.

        It may be lost in a power cut, with the steps after it: then the entry
        says less than was done, and the migration goes the same way regardless.

        Fails with :class:`NotAllowed` if the migration is finished.
        """

    def hold(
        entry_id: int,
        placement: Placement,
        expected: Generation,
        along: Sequence[Placement] = (),
    ) -> Deferred[dict[str, Placement]]:
        """Hold the site of a migration that has begun with an open one, and its company.

        This is its step ``hold``, which is in no power cut forgotten.  Some may stay open, to
        be held by another call.

        Answers with all that was placed, by name; fails with :class:`Conflict` or
        :class:`NotAllowed`.
        """

    def commit(
        entry_id: int,
        placement: Placement,
        expected: Generation,
        along: Sequence[Placement] = (),
    ) -> Deferred[dict[str, Placement]]:
        """Place the site on the target, still holding: from here on it rolls forward.

        ``along`` does the same for all that comes along, each at the generation that was
        seen; what is stored has a later one.

        Answers with all that was placed, by name.  It never fails because it is not known
        whether it was made: it waits until that is known.

        Fails with :class:`Conflict` or :class:`NotAllowed`.
        """

    def finish(
        entry_id: int,
        state: Literal["done", "rolled back"],
        placement: Placement,
        expected: Generation,
        reason: str = "",
        ledger: dict[str, Any] | None = None,
        along: Sequence[Placement] = (),
    ) -> Deferred[dict[str, Placement]]:
        """End a migration, with the placement that opens the gate, and ``along`` likewise.

        ``done``, on the target, only after :meth:`commit`; ``rolled back``, on
        the source, only before it.  ``ledger`` is made of JSON values.

        Answers with all that was placed, by name; fails with :class:`Conflict` or
        :class:`NotAllowed`.
        """

    def take_over(entry_id: int, owner: str, life: int) -> Deferred[Entry]:
        """Become the one that carries a migration out, in place of ``owner`` in its ``life``.

        Who calls it has made sure that it is gone; it can write nothing for it any more.

        Fails with :class:`NotAllowed` if it is finished, and with :class:`Superseded` if
        somebody else has it by now.
        """

    def unfinished() -> Deferred[list[Entry]]:
        """The migrations to be rolled back or forward, oldest first."""

    def history(site: str | None, limit: int) -> Deferred[list[Entry]]:
        """The last ``limit`` migrations that move or hold ``site`` (None: all), newest first.

        The newest 1000 are kept.
        """

    def subscribe(callback: Callable[[str], None]) -> Callable[[], None]:
        """Have ``callback`` called with a site's name after each change of it.

        It is a hint: it says that there is something to read, not what, and it
        may come late or twice.  Answers with what ends the subscription.
        """

    def close() -> Deferred[None]:
        """Let go of everything, once what has been asked is done.  May be called again."""
