"""What keeps a migration's commands from being carried out when they come too late.

A network that is cut keeps what was sent, and delivers it when it is whole again.  By then
the migration may have been undone, over another connection, and the site be in use at the
source; a command that closes it would come out of nowhere.  So every command that goes to
another node looks there first whether its migration's warrant has been *withdrawn*, which
is what the first command does that undoes something.  It leaves a note there, an empty file
that a reboot takes away.

Who stays on a node, and is asked (:mod:`.resident`), looks anew for each question, and
whoever has the warrant withdrawn there waits until none is being answered any more.
"""

from __future__ import annotations

from collections.abc import Sequence

LATE = "it comes too late: this was undone"
# $1: the note's name.  Where the user has no directory for such things there is /tmp.
_PLACE = 'w=${XDG_RUNTIME_DIR:-/run}; [ -w "$w" ] || w=/tmp; w=$w/$1; shift; '
_FORWARD = f'{_PLACE}[ ! -e "$w" ] || {{ echo "{LATE}" >&2; exit 75; }}; exec "$@"'
_UNDO = f'{_PLACE}: >>"$w" || exit; exec "$@"'
# The same in Python, for a resident: whether ``name`` permits what is asked.  If it is withdrawn
# that is noted.  Returned is a lock, to be closed after the answer.
PERMIT = f"""
def permit(name, withdrawn):
    import fcntl, os
    place = os.environ.get("XDG_RUNTIME_DIR", "/run")
    note = os.path.join(place if os.access(place, os.W_OK) else "/tmp", name)
    if withdrawn:
        open(note, "a").close()
    lock = open(note.rpartition("-")[0] + ".lock", "a")
    fcntl.flock(lock, fcntl.LOCK_EX if withdrawn else fcntl.LOCK_SH)
    if os.path.exists(note) and not withdrawn:
        lock.close()
        raise OSError("{LATE}")
    return lock
"""


class Warrant:
    """That of one migration."""

    def __init__(self, name: str) -> None:
        """
        :param name: of the migration, like no other's on any node; as a file can be called.
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
