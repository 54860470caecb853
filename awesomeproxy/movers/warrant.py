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

What has begun there goes on when nobody here waits for it any more, be it that it takes too
long or that the daemon has died.  A service that is being stopped would be stopped after it was
started again.  So a command can be *awaited*: what undoes begins when it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

LATE = "it comes too late: this was undone"
# $1: the note's name.  Where the user may not write to /run he may to a directory of his own.
# What undoes is done though it cannot be noted.
_PLACE = 'for w in /run "$XDG_RUNTIME_DIR" /tmp; do [ -w "$w" ] && break; done; w=$w/$1; shift; '
_FORWARD = f'{_PLACE}[ ! -e "$w" ] || {{ echo "{LATE}" >&2; exit 75; }}; '
# What is awaited is the child of a shell that has the note's name, and a mark, among its own
# words: it was there before it has looked for the note, so whoever has left that sees it.
_MARK = ":awaited"
_AWAIT = (
    "n=0; while [ $n -lt {tenths} ] && "
    f'grep -qszx -- "${{{{w##*/}}}}[{_MARK[0]}]{_MARK[1:]}" /proc/[0-9]*/cmdline; '
    'do printf " " || exit; n=$((n + 1)); sleep 0.1; done; '  # somebody has to take the blanks
)
_UNDO = f'{_PLACE}( : >>"$w" ) 2>/dev/null; '
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

    def around(self, argv: Sequence[str], patience: float = 0.0) -> list[str]:
        """The words that carry out ``argv``, if they may.

        :param patience: seconds for which they wait for those that have one as well, at the
            most, if they undo; 0: neither waits for the other.
        """
        if self.withdrawn:
            wait = _AWAIT.format(tenths=round(10 * patience)) if patience else ""
            return ["sh", "-c", f'{_UNDO}{wait}exec "$@"', "sh", self.name, *argv]
        if patience:
            guard, called = f'{_FORWARD}"$@"; exit "$?"', self.name + _MARK
            return ["sh", "-c", guard, called, self.name, *argv]
        return ["sh", "-c", f'{_FORWARD}exec "$@"', "sh", self.name, *argv]
