"""What a mover promises: to carry one thing from a place to another, in steps that can be undone.

A mover is made for one migration of one filesystem or one database, and its steps are
called in this order::

    check -> presync ... presync -> fence -> sync -> attach -> verify -> (commit) -> clean
                                    unfence          detach

``presync`` runs while the source is in use, any number of times; each time it carries what
has changed since the time before.  From ``fence`` on nothing can write to the source,
whoever tries, so that ``sync`` carries the last of it.  ``attach`` makes the target usable.
Until the commit all of it can be undone: ``detach``, then ``unfence``, then ``abandon``.

The daemon may be killed between any two instructions.  The one that is started next makes
the mover anew, from the configuration and the number of the migration, and calls what
undoes the steps that the journal says were begun, or ``clean``.  So a mover keeps nothing
in memory that it cannot find again, and what undoes a step, and ``clean``, must work
whether the step was finished, half done, or not begun, and when called again.

Every step may be cancelled (:meth:`twisted.internet.defer.Deferred.cancel` on the Deferred
that its coroutine runs in): then what it has started is ended before it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zope.interface import Attribute, Interface

from awesomeproxy.movers.kind import Kind as Kind  # what a mover is found by
from awesomeproxy.movers.shell import Shell

Progress = Callable[[int], None]  # told how many bytes the running step has carried so far


class MoverError(Exception):
    """It cannot be moved, or a step has failed; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the thing is, or is to be: a node, and what the mover has to know of it there.

    ``settings`` is what the kind's ``place`` shape has read.  Those of a filesystem have a
    ``path``, where it is mounted or the directory that it is.
    """

    node: str
    shell: Shell
    settings: Any
    address: tuple[str, int] | None = None  # where a database answers, for the proxy


@dataclass(frozen=True, slots=True)
class Job:
    """What a mover is made of."""

    name: str  # of the filesystem or database
    migration: int  # the number of the migration; unique for ever, the same after a crash
    source: Place
    target: Place
    options: Any  # what the kind's ``options`` shape has read
    reactor: Any
    scratch: str  # a directory of the daemon's own, for what has to survive a restart


@dataclass(frozen=True, slots=True)
class Estimate:
    """How much there is to carry, in bytes."""

    whole: int  # the thing itself
    pending: int  # what a presync or sync begun now would carry


class IMover(Interface):
    """One thing on its way; see the module.  All methods are coroutine functions.

    Any of them raises :class:`MoverError`.
    """

    job = Attribute("The :class:`Job` it was made for.")

    async def check() -> None:
        """Refuse what cannot be moved, before anything is done: a tool that is missing, a
        target that has something else in it, no room, data that this mover cannot carry.

        What is called off here is not abandoned: there is nothing to tidy up yet."""

    async def estimate() -> Estimate:
        """How much there is to carry now.  It may be called before every round."""

    async def presync(progress: Progress) -> int:
        """Carry what the target does not have yet, while the source is in use.

        A round that was broken off is taken up where it was, if that can be done.

        :return: how many bytes were carried.
        """

    async def fence() -> None:
        """Let nothing write to the source any more; when this returns nothing can."""

    async def unfence() -> None:
        """Let the source be written to as before the fence."""

    async def sync(progress: Progress) -> int:
        """Carry the last of it, after the fence.

        :return: how many bytes were carried.
        """

    async def attach() -> None:
        """Make the target usable: mounted, writable, complete."""

    async def detach() -> None:
        """Undo ``attach``: nothing can use the target any more."""

    async def verify() -> None:
        """See that the target has what the source has; it must not change either."""

    async def clean() -> None:
        """After the commit: leave the source closed to writers, and no more lying about than
        what makes the way back cheap."""

    async def abandon() -> None:
        """After a rollback: end what may still run, and keep what makes the next try cheap."""
