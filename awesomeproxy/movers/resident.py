"""A Python program that stays on a node and answers questions there.

To start Python takes longer than most of what a mover asks it, and in a pause each start
counts.  So the program is started once for all movers of a thing, and anew when it has gone.
It goes by itself when it was not asked anything for a while.  As it may have gone before any
question, it knows nothing of those before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from awesomeproxy.movers.shell import TIME, Gone, Shell, ShellError
from awesomeproxy.movers.warrant import PERMIT

IDLE = 60  # seconds
# Takes its program from its input, as many bytes as it is told, and then question by question.
_LOAD = f"""
import json, signal, sys
{PERMIT}
size, idle, name = sys.argv[1:]
exec(compile(sys.stdin.buffer.read(int(size)), name, "exec"))
while True:
    signal.alarm(int(idle))
    asked = sys.stdin.buffer.readline()
    signal.alarm(0)
    if not asked:
        break
    warrant, words = json.loads(asked)
    lock = None
    try:
        lock = permit(*warrant) if warrant else None
        answer = [True, answer_to(*words) if words else None]
    except OSError as problem:
        answer = [False, str(problem)]
    if lock is not None:
        lock.close()
    print(json.dumps(answer), flush=True)
"""


class Resident:
    """One such program."""

    def __init__(self, shell: Shell, name: str, program: bytes, idle: int = IDLE) -> None:
        """
        :param name: of what it is for; there is one for each on a node.
        :param program: defines ``answer_to``, which gets the words of a question, and returns
            what can be written as JSON or raises OSError.
        :param idle: seconds without a question after which it goes.
        """
        self._shell = shell
        self._program = program
        self._argv = ("python3", "-ISc", _LOAD, str(len(program)), str(idle), name)

    async def ready(self) -> None:
        """Have it running, for whoever asks soon.

        :raise ShellError: it cannot be started.
        """
        await self.ask(changes=False)

    async def ask(
        self, *words: str | Sequence[str], time: float = TIME, changes: bool = True
    ) -> Any:
        """What it answers.

        If it goes with the question open it is asked once more: it may have been about to.

        :param time: seconds that it may take.
        :param changes: it may change something, which needs the shell's warrant; what does not
            is not waited for when that is withdrawn.
        :raise ShellError: what it says is wrong, or why it does not answer.
        """
        warrant = self._shell.warrant if changes and not self._shell.local else None
        permit = [warrant.name, warrant.withdrawn] if warrant is not None else None
        question = json.dumps([permit, words]).encode()
        try:
            said = await self._stay().ask(question, time)
        except Gone:
            said = await self._stay().ask(question, time)
        well, answer = json.loads(said)
        if not well:
            raise ShellError(answer, 1, answer)
        return answer

    def _stay(self) -> Any:
        return self._shell.stay(*self._argv, first=self._program)
