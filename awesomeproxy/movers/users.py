"""Who uses a filesystem of a node: the processes that keep it from being closed to writers.

The kernel knows a filesystem by a number (``st_dev``), whatever path leads to it, in
whichever namespace, and so does this: every subvolume of a Btrfs has a number of its own.
"""

from __future__ import annotations

from awesomeproxy.movers.shell import Shell

SHOWN = 5  # processes that are named, at the most
LOOKING = 20.0  # seconds that the look may take

# $1: a path on the filesystem; $2: "writers" to leave out those who can only read.
# Prints the process ids.  A mapping counts as writing if what is written to it is shared.
_LOOK = r"""
device=$(stat -c %d -- "$1") || exit
{
    find -L /proc/[0-9]*/fd /proc/[0-9]*/map_files -mindepth 1 -maxdepth 1 -printf '%D %p\n'
    [ "$2" = writers ] ||
        find -L /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe -maxdepth 0 -printf '%D %p\n'
} 2>/dev/null | sed -n "s/^$device //p" | while IFS=/ read -r _ _ pid kind which; do
    case "$2 $kind" in
    "writers fd")
        flags=$(sed -n 's/^flags:[[:space:]]*//p' "/proc/$pid/fdinfo/$which" 2>/dev/null)
        case "$flags" in *[123567]) ;; *) continue ;; esac ;;
    "writers map_files")
        grep -q "^0*$which .w.s" "/proc/$pid/maps" 2>/dev/null || continue ;;
    esac
    echo "$pid"
done | sort -un | while read -r pid; do
    name=$(tr '\n' ' ' <"/proc/$pid/comm" 2>/dev/null) && echo "$name($pid)"
done
"""


async def users(shell: Shell, path: str, *, writers: bool = False) -> str:
    """The processes that have anything open on the filesystem of ``path``, for an error's text.

    :param writers: only those that can write to what they have open.
    :return: as in ``"mysqld (812), bash (4711)"``; empty: there are none.
    :raise ShellError: it cannot be told.
    """
    kind = "writers" if writers else "all"
    lines = (await shell.run("sh", "-c", _LOOK, "sh", path, kind, time=LOOKING)).splitlines()
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return ", ".join(lines[:SHOWN] + more)
