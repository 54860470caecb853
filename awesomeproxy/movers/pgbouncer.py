"""A PgBouncer in front of a database that moves: its clients keep their sessions.

PgBouncer's admin console is spoken to with ``psql``.  PAUSE lets each transaction come to its
end, closes the connections to the server one by one, and keeps what clients ask from then on;
RESUME lets it go on.  Since PgBouncer connects to the database's listener here, nothing of it
has to be changed in between: after a PAUSE nothing is open at the listener, and after the
RESUME it connects to the same address, behind which the database is somewhere else by then.

A PAUSE that takes too long is taken back: its console is closed first, since PgBouncer never
answers a PAUSE that a RESUME has overtaken (its issue 715), and then RESUME is sent, whatever
has become of the PAUSE.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from awesomeproxy import model
from awesomeproxy.databases import SOCKET
from awesomeproxy.movers.interface import MoverError
from awesomeproxy.movers.shell import Shell, ShellError

CONSOLE = "pgbouncer"  # the database that is none
ANSWER_TIME = 10.0  # seconds that PgBouncer may take for anything but a PAUSE
GRACE = 2.0  # seconds more than a PAUSE has, for psql to come and go
NOT_PAUSED = "is not paused"
TIMED_OUT = 124  # what timeout(1) ends with


class PgBouncer:
    """Pauses and resumes one database there."""

    def __init__(self, shell: Shell, settings: model.PgBouncer) -> None:
        """
        :param shell: of a node from which its address can be reached.
        """
        self._shell = shell
        self._settings = settings

    def __repr__(self) -> str:
        return f"<PgBouncer {self._settings.address}: {self._settings.database}>"

    async def pause(self, time: float) -> None:
        """Let no client of the database speak to its server; when this returns none does.

        It may be called again.  If it fails or is cancelled, clients go on as before.

        :param time: seconds that transactions may take to finish.
        :raise MoverError: they have not, or PgBouncer cannot be reached.
        """
        try:
            await self._ask("PAUSE", time)
        except ShellError as problem:
            raise MoverError(await self._taken_back(problem, time)) from None
        except BaseException:
            await self.resume()
            raise

    async def _taken_back(self, problem: ShellError, time: float) -> str:
        """RESUME after a PAUSE that has failed; what is to be said of both."""
        why = f"PgBouncer could not pause {self._settings.database}: {problem}"
        if problem.status is None or problem.status == TIMED_OUT:
            why = (
                f"PgBouncer could not pause {self._settings.database} within {time:g} s, since "
                "a client has not ended its transaction (with pool_mode = session: its session);"
                " try again, or with a longer time"
            )
        try:
            await self.resume()
        except MoverError as worse:
            return f"{why}; and then: {worse}"
        return why

    async def resume(self) -> None:
        """Let clients speak to the server; nothing happens if they may already.

        :raise MoverError: PgBouncer cannot be told.
        """
        try:
            await self._ask("RESUME", ANSWER_TIME)
        except ShellError as problem:
            if NOT_PAUSED not in str(problem):
                raise MoverError(
                    f"PgBouncer could not resume {self._settings.database}: {problem}; "
                    f"say RESUME at its admin console when it can be reached"
                ) from None

    async def _ask(self, command: str, time: float) -> None:
        settings, address = self._settings, self._settings.address
        host, port = address.host, str(address.port)
        if address.path:
            path = PurePosixPath(address.path)
            host, port = str(path.parent), path.name.removeprefix(SOCKET)
        quoted = settings.database.replace('"', '""')
        env = {"PGCONNECT_TIMEOUT": "5", "LC_ALL": "C"}
        if settings.password_file:
            env["PGPASSFILE"] = settings.password_file
        await self._shell.run(
            # On another node it is not enough to end ssh: psql would wait on.
            "timeout",
            f"{time:g}",
            "psql",
            "--no-psqlrc",
            "--no-password",
            "--quiet",
            f"--host={host}",
            f"--port={port}",
            f"--username={settings.user}",
            f"--dbname={CONSOLE}",
            f'--command={command} "{quoted}"',
            time=time + GRACE,
            env=env,
        )
