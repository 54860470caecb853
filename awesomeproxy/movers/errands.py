"""Short commands on a node, which are run there by a :mod:`.resident`.

To start an ssh for a command, even over a connection that is there already, takes many times
as long as ``zfs get`` or ``mount`` do themselves; in a pause each of them counts.  What takes
long, reads or writes a stream, or goes on beside another is for :class:`.Shell` to run.
"""

from __future__ import annotations

from collections.abc import Sequence

from awesomeproxy.movers.resident import Resident
from awesomeproxy.movers.shell import TIME, Shell, ShellError, last_lines

# Runs commands until one fails.  Answers with what the last one ended with, its number, all
# that they have printed, and the last one's error output.  Where the other end of an ssh is
# gone, nobody takes the blanks between, which ends it.
_PROGRAM = b"""
import os, subprocess
def answer_to(*errands):
    printed, environment = "", {**os.environ, "LC_ALL": "C"}
    for number, argv in enumerate(errands):
        print(end=" ", flush=True)
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, env=environment
            )
        except OSError as problem:
            return [127, number, printed, f"{argv[0]}: {problem.strerror}"]
        printed += done.stdout.decode(errors="replace")
        if done.returncode:
            break
    return [done.returncode, number, printed, done.stderr.decode(errors="replace")]
"""


class Errands:
    """Runs them for one thing on one node, in turn; in English, whatever the node speaks."""

    def __init__(self, shell: Shell, name: str) -> None:
        """
        :param name: of the thing; whatever is done for another one need not be waited for.
        """
        self._shell = shell
        self._resident = Resident(shell, name, _PROGRAM)

    async def run(self, *argv: str, time: float = TIME) -> str:
        """What a command has printed.

        :param time: seconds that it may take.
        :raise ShellError: it has failed, or taken too long.
        """
        return await self.all(argv, time=time)

    async def all(self, *commands: Sequence[str], time: float = TIME) -> str:
        """What commands have printed, one after the other; if one fails the others are not run.

        :param time: seconds that all of them may take.
        :raise ShellError: one has failed, or they have taken too long.
        """
        try:
            status, number, printed, complaint = await self._resident.ask(*commands, time=time)
        except ShellError as problem:
            text = problem.said or str(problem)
            raise ShellError(
                f"{self._shell.says(commands[0])}: {text}", None, problem.said
            ) from None
        if status:
            said = last_lines(complaint)
            text = said or f"ended with status {status}"
            raise ShellError(f"{self._shell.says(commands[number])}: {text}", status, said)
        return str(printed)
