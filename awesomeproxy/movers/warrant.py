"""What keeps a migration's commands from being carried out when they come too late.

A network that is cut keeps what was sent, and delivers it when it is whole again.  By then
the migration may have been undone, over another connection, and the site be in use at the
source; a command that closes it would come out of nowhere.  So every command that goes to
another node looks there first whether its migration's warrant has been *withdrawn*, which
is what the first command does that undoes something.  It leaves a note there, an empty file
that a reboot takes away.

Who stays on a node, and is asked (:mod:`.resident`), looks anew for each question that is
to change something, and whoever has the warrant withdrawn there waits until none of them is
being answered any more.  Programs that rsync starts on the other node need no warrant:
without it they do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

LATE = "it comes too late: this was undone"
# $1: the note's name.  Where the user may not write to /run he may to a directory of his own.
# What undoes is done though it cannot be noted.
_PLACE = 'for w in /run "$XDG_RUNTIME_DIR" /tmp; do [ -w "$w" ] && break; done; w=$w/$1; shift; '
_FORWARD = f'{_PLACE}[ ! -e "$w" ] || {{ echo "{LATE}" >&2; exit 75; }}; exec "$@"'
_UNDO = f'{_PLACE}( : >>"$w" ) 2>/dev/null; exec "$@"'
# The same in Python, for a resident: whether ``name`` permits what is asked.  If it is withdrawn
# that is noted.  Returned is a lock, to be closed after the answer: a byte for each migration.
PERMIT = f"""
def permit(name, withdrawn):
    import fcntl, os
    places = ["/run", os.environ.get("XDG_RUNTIME_DIR") or "/tmp", "/tmp"]
    note = os.path.join(next(each for each in places if os.access(each, os.W_OK)), name)
    daemon, _, number = note.rpartition("-")
    try:
        if withdrawn:
            open(note, "a").close()
        lock = open(daemon + ".lock", "a+")
    except OSError:
        if withdrawn:
            return None
        raise
    fcntl.lockf(lock, fcntl.LOCK_EX if withdrawn else fcntl.LOCK_SH, 1, int(number))
    if os.path.exists(note) and not withdrawn:
        lock.close()
        raise OSError("{LATE}")
    return lock
"""


class Warrant:
    """That of one migration."""

    def __init__(self, name: str) -> None:
        """
        :param name: of the migration, like no other's on any node, as a file can be called; a
            hyphen and a number are its end.
        """
        self.name = name
        self.withdrawn = False

    def __repr__(self) -> str:
        return f"<Warrant {self.name}{': withdrawn' if self.withdrawn else ''}>"

    def withdraw(self) -> None:
        """From now on commands undo: where one of them comes no other is begun any more."""
        self.withdrawn = True

    def around(self, argv: Sequence[str]) -> list[str]:
        """The words that carry out ``argv``, if they may."""
        guard = _UNDO if self.withdrawn else _FORWARD
        return ["sh", "-c", guard, "sh", self.name, *argv]
