"""Commands on a node: this one's by themselves, another's through ``ssh``.

A command that is given up (cancelled, or late) is ended with all that it has started here,
and one whose daemon dies is ended by the kernel.  On another node it is ssh's going that
ends it: its input ends and nobody takes its output.

Connections of ssh are shared (``ControlMaster``), since one costs a good part of a second,
and are given up when the other side has been silent for some seconds.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from awesomeproxy.model import Reach as Reach  # for whoever makes a shell
from awesomeproxy.movers.warrant import Warrant

log = Logger()

TIME = 60.0  # seconds that a command may take, unless it says otherwise
ALIVE = 2  # seconds between asking a silent node whether it is there
KEPT = 64 * 1024  # bytes of a command's error output that are kept: the last ones
MOST = 16 << 20  # bytes that a command may print of which all is kept
LOOK_EVERY = 0.25  # seconds between looks how much a pipe has carried
LEFT = 0.5  # seconds that pipes stay open, at the most, when their process has ended
PATIENCE = 200  # hundredths of a second that are left them as long as more comes out of them
ENDING = 500  # hundredths of a second that killed processes are waited for
SPLICED = 1 << 20  # bytes that are carried at one go, at the most
# A group of its own, so that all of it can be ended; and not outliving the daemon.
_LEASH = ("setsid", "setpriv", "--pdeathsig", "KILL", "--")
_SSH = (
    "ssh",
    "-oBatchMode=yes",
    "-oConnectTimeout=5",
    "-oServerAliveCountMax=3",
    "-oControlMaster=auto",
    "-oControlPersist=60",
)

# Of those that are the first at the same time one has the connection that is shared; what ssh
# says for the others tells nothing of their commands.
_NOT_SHARED = re.compile(r"^ControlSocket .* already exists, disabling multiplexing\r?\n", re.M)


class ShellError(Exception):
    """A command has failed, or was too late; the message has what it said of that."""

    def __init__(
        self,
        message: str,
        status: int | None = None,
        said: str = "",
        *,
        printed: str = "",
        errors: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status  # what it ended with; None: it was ended, or never began
        self.said = said  # the last lines of its error output
        self.printed = printed  # what it has printed all the same
        self.errors = errors  # its error output, as much of it as is kept


class Shell:
    """Runs commands on one node."""

    def __init__(self, reactor: Any, reach: Reach, control: str = "", alive: int = ALIVE) -> None:
        """
        :param control: a directory for the sockets of shared connections.
        :param alive: seconds after which a silent node is asked whether it is there; the
            third time that it does not answer it is given up.
        """
        self._alive = alive
        self.reach = reach
        self._reactor = reactor
        self._control = control
        self.warrant: Warrant | None = None
        self._staying: dict[tuple[str, ...], Stay] = {}

    def __repr__(self) -> str:
        return f"<Shell on {self.reach.name}>"

    @property
    def local(self) -> bool:
        """Whether it is this node."""
        return not self.reach.ssh

    def under(self, warrant: Warrant) -> Shell:
        """The same, for commands that another node carries out only under ``warrant``.

        It shares this one's connections, and what stays.
        """
        shell = copy.copy(self)
        shell.warrant = warrant
        return shell

    def ssh(self) -> list[str]:
        """The words of an ssh command up to, and without, the destination."""
        words = [*_SSH, f"-oServerAliveInterval={self._alive}"]
        if self._control:
            words.append(f"-oControlPath={self._control}/%C")
        if self.reach.config:
            words.append(f"-F{self.reach.config}")
        return words

    def command(self, argv: Sequence[str]) -> list[str]:
        """What has to be run here for ``argv`` to run there."""
        if self.local:
            return list(argv)
        return [*self.ssh(), self.reach.ssh, "--", shlex.join(argv)]

    def _warranted(self, argv: Sequence[str], patience: float = 0.0) -> list[str]:
        """The same, if its warrant permits it when it gets there; see :meth:`Warrant.around`."""
        if self.warrant is not None and not self.local:
            argv = self.warrant.around(argv, patience)
        return self.command(argv)

    async def run(
        self,
        *argv: str,
        input: bytes = b"",
        time: float = TIME,
        env: dict[str, str] | None = None,
        heard: Callable[[bytes], None] = lambda piece: None,
        end_only: bool = False,
        patience: float = 0.0,
    ) -> str:
        """What ``argv`` has printed.

        :param input: what it can read.
        :param time: seconds that it may take.
        :param env: added to its environment, here or there.
        :param heard: told each piece of what it prints as it comes.
        :param end_only: of what it prints only the end is wanted: it may print for ever.
        :param patience: of its warrant; see :meth:`Warrant.around`.
        :raise ShellError: it has failed, taken too long, or printed too much.
        """
        says = self.says(argv)
        if env:
            argv = ("env", *(f"{key}={value}" for key, value in env.items()), *argv)
        words = self._warranted(argv, patience)
        running = _Running(self._reactor, words, says, heard, end_only)
        try:
            return (await running.start(input, time)).decode(errors="replace")
        except BaseException:
            await running.end()
            raise

    async def pipe(
        self,
        argv: Sequence[str],
        to: Shell,
        to_argv: Sequence[str],
        *,
        progress: Callable[[int], None] = lambda size: None,
        time: float,
    ) -> int:
        """Run ``argv`` here and ``to_argv`` on ``to``, which reads what the first one prints.

        The bytes go from pipe to pipe inside the kernel.

        :param progress: told from time to time how many bytes have been carried.
        :return: how many there were.
        :raise ShellError: one of them has failed, or both together have taken too long.
        """
        sender = _Running(self._reactor, self._warranted(argv), self.says(argv))
        taker = _Running(self._reactor, to._warranted(to_argv), to.says(to_argv))
        relay = _Relay(self._reactor)
        meter = LoopingCall(lambda: progress(relay.size))
        meter.clock = self._reactor
        try:
            with relay.ends() as (writing, reading):
                given = sender.start(b"", time, output=writing)
                taken = taker.start(b"", time, input_from=reading)
            measured = meter.start(LOOK_EVERY)
            try:
                await _both(given, taken, sender)
                await relay.done
            finally:
                meter.stop()
                await measured
        except BaseException:
            await sender.end()
            await taker.end()
            await relay.done
            raise
        progress(relay.size)
        return relay.size

    def stay(self, *argv: str, first: bytes = b"") -> Stay:
        """The command ``argv``, which stays until the shell is closed, or it ends by itself.

        It asks for no warrant: whoever asks it something has to.

        :param first: what it is given to read when it is started; one that runs is taken as it is.
        """
        staying = self._staying.get(argv)
        if staying is None or staying.over:
            staying = Stay(self._reactor, self.command(argv), self.says(argv), first)
            self._staying[argv] = staying
        return staying

    @property
    def staying(self) -> list[int]:
        """The processes, on this node, of those that stay."""
        return [stay.pid for stay in self._staying.values() if not stay.over]

    async def close(self) -> None:
        """Let go of a shared connection, and of what stays."""
        for stay in self._staying.values():
            await stay.end()
        if not self.local and self._control:
            with suppress(ShellError):
                ended = [*self.ssh(), "-Oexit", self.reach.ssh]
                running = _Running(self._reactor, ended, "ssh -O exit")
                await running.start(b"", 5.0)

    def says(self, argv: Sequence[str]) -> str:
        """A command, and where it is run, for people."""
        where = "" if self.local else f"{self.reach.name}: "
        text = shlex.join(argv)
        return where + (text if len(text) <= 160 else text[:157] + "...")


class Gone(ShellError):
    """A command that stays has ended, with a question open."""


class Stay:
    """A command that answers each line it reads with a line, in turn."""

    def __init__(self, reactor: Any, argv: list[str], says: str, first: bytes) -> None:
        self._reactor = reactor
        self._heard: list[bytes] = []  # the pieces of the answer that is being heard
        self._open: list[Deferred[bytes]] = []  # questions, the oldest first
        self._why: Gone | None = None
        self._running = _Running(reactor, argv, says, self._hear)
        self._running.start(first, None).addBoth(self._ends)
        self.pid = self._running.group

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._why is not None

    async def ask(self, question: bytes, time: float) -> bytes:
        """What it answers.  If nobody waits for the answer any more, the command is ended.

        :param question: a line without its end, as is the answer.
        :param time: seconds that it may take.
        :raise Gone: it has ended meanwhile.
        :raise ShellError: it has taken too long.
        """
        if self._why is not None:
            raise self._why
        answer: Deferred[bytes] = Deferred()
        late = self._reactor.callLater(time, answer.errback, ShellError(f"no answer in {time:g} s"))
        self._open.append(answer)
        try:
            self._running.write(question + b"\n")
            return await answer
        except Gone:
            raise
        except BaseException:
            await self.end()
            raise
        finally:
            if late.active():
                late.cancel()

    async def end(self) -> None:
        """End it, if it still runs, and all that it has started; returns when it has."""
        await self._running.end()

    def _hear(self, piece: bytes) -> None:
        self._heard.append(piece)
        if b"\n" not in piece:  # an answer can be long, and be heard in very many
            return
        *lines, rest = b"".join(self._heard).split(b"\n")
        self._heard = [rest]
        for line in lines:
            answer = self._open.pop(0)
            if not answer.called:
                answer.callback(line)

    def _ends(self, result: bytes | Failure) -> None:
        problem = result.value if isinstance(result, Failure) else None
        said = problem.said if isinstance(problem, ShellError) else ""
        self._why = Gone(str(problem or "it has ended"), None, said)
        left, self._open = self._open, []
        for answer in left:
            if not answer.called:
                answer.errback(self._why)


async def _both(given: Deferred[bytes], taken: Deferred[bytes], sender: _Running) -> None:
    """Wait for both; what the taker says of a failure counts for more than a broken pipe."""
    problem: ShellError | None = None
    try:
        await taken
    except ShellError as failed:
        problem = failed
        await sender.end()  # it may have nothing to send for long, and would not notice
    except CancelledError:  # both are ended by who has called this
        given.addErrback(lambda failure: None)
        raise
    try:
        await given
    except ShellError as failed:
        problem = problem or failed
    if problem is not None:
        raise problem


class _Relay:
    """Carries bytes from one pipe to another, and counts them; they never leave the kernel."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.size = 0
        self.done: Deferred[None] = Deferred()

    @contextmanager
    def ends(self) -> Iterator[tuple[int, int]]:
        """Where to write, and where to read it; begins to carry when both have been given away."""
        source, writing = os.pipe()
        reading, target = os.pipe()
        try:
            yield writing, reading
        finally:
            os.close(writing)
            os.close(reading)
            Thread(target=self._carry, args=(source, target), name="relay", daemon=True).start()

    def _carry(self, source: int, target: int) -> None:
        try:
            with suppress(OSError):  # the taker is gone: the sender will hear of it
                while size := os.splice(source, target, SPLICED):
                    self.size += size
        finally:
            os.close(source)
            os.close(target)
            with suppress(RuntimeError):
                self._reactor.callFromThread(self.done.callback, None)


class _Running(ProcessProtocol):
    """One process, from its start to its end."""

    transport: Any = None

    def __init__(
        self,
        reactor: Any,
        argv: list[str],
        says: str,
        heard: Callable[[bytes], None] = lambda piece: None,
        end_only: bool = False,
    ) -> None:
        self._reactor = reactor
        self._heard = heard
        self._end_only = end_only
        self._argv = [*_LEASH, *argv]
        self._says = says
        self._out = bytearray()
        self._err = b""
        self._done: Deferred[bytes] | None = None
        self._ended: list[Deferred[None]] = []
        self._late: Any = None  # the timer of its time
        self._left: Any = None  # and that of its pipes
        self._fresh = False  # there may be more in them
        self._patience = PATIENCE
        self._why = ""  # it was ended by us
        self.group = 0
        self._over = False
        self._stays = False

    def start(
        self,
        input: bytes,
        time: float | None,
        *,
        output: int | None = None,
        input_from: int | None = None,
    ) -> Deferred[bytes]:
        """Begin; fires with what it has printed, or fails with ShellError.

        :param time: seconds that it may take; None: it stays.  Then its input is left open, and
            what it prints is not kept.
        """
        done: Deferred[bytes] = Deferred(lambda _: self._give_up())
        self._done = done
        self._stays = time is None
        files: dict[int, Any] = {0: "w", 1: "r", 2: "r"}
        if output is not None:
            files[1] = output
        if input_from is not None:
            files[0] = input_from
        try:
            self._reactor.spawnProcess(self, self._argv[0], self._argv, os.environ, childFDs=files)
        except OSError as problem:
            self._done = None
            done.errback(ShellError(f"{self._says}: cannot be started: {problem.strerror}"))
            return done
        self.group = self.transport.pid or 0  # it may have ended already
        if time is not None and self._left is None:
            why = f"it has taken more than {time:g} s"
            self._late = self._reactor.callLater(time, self._kill, why)
        if input_from is None:
            if input:
                self.transport.write(input)
            if not self._stays:
                self.transport.closeStdin()
        return done

    async def end(self) -> None:
        """End it, if it still runs, and all that it has started; returns when it has."""
        if self.transport is None:
            return
        if not self._over:
            gone: Deferred[None] = Deferred()
            self._ended.append(gone)
            self._kill("it was given up")
            await gone
        for _ in range(ENDING):
            if not _lives(self.group):
                return
            await deferLater(self._reactor, 0.01)

    def _give_up(self) -> None:
        self._done = None  # the Deferred fails by itself
        self._kill("it was given up")

    def _kill(self, why: str) -> None:
        self._why = self._why or why
        if self.transport is None or self._over:
            return
        if self.group:
            with suppress(OSError):  # also where only those are left that it has started
                os.killpg(self.group, signal.SIGKILL)
        if self.transport.pid is not None:
            with suppress(OSError):  # before it had a group of its own
                os.kill(self.transport.pid, signal.SIGKILL)
        # Not at once: while it is told of a process's end Twisted bears no other's.
        self._reactor.callLater(0, self._let_go)

    def _let_go(self) -> None:
        # Who has left the group may hold its pipes for ever.
        gone = Failure(ConnectionLost())  # type: ignore[no-untyped-call]
        for pipe in list(self.transport.pipes.values()):
            pipe.connectionLost(gone)

    def write(self, data: bytes) -> None:
        """Have it read ``data``, if it still runs."""
        if self.transport is not None and not self._over:
            self.transport.write(data)

    def outReceived(self, data: bytes) -> None:
        self._fresh = True
        if not self._stays and not self._why:
            self._keep(data)
        self._heard(data)

    def _keep(self, data: bytes) -> None:
        self._out += data
        if self._end_only and len(self._out) > 2 * KEPT:  # not each time: that would be dear
            del self._out[:-KEPT]
        elif len(self._out) > MOST:
            self._out.clear()
            self._kill(f"it has printed more than {MOST >> 20} MB")

    def errReceived(self, data: bytes) -> None:
        self._fresh = True
        self._err = (self._err + data)[-KEPT:]

    def processExited(self, reason: Failure) -> None:
        if self._late is not None and self._late.active():
            self._late.cancel()
        self._fresh = True
        self._left = self._reactor.callLater(LEFT, self._leave)

    def _leave(self) -> None:
        if self._fresh and self._patience:  # however late this is, what is in them is read first
            self._fresh = False
            self._patience -= 1
            self._left = self._reactor.callLater(0.01, self._leave)
            return
        log.warn("{says}: what it has left running keeps its output open", says=self._says)
        self._left = self._reactor.callLater(0, self._let_go)

    def processEnded(self, reason: Failure) -> None:
        self._over = True
        if self._left is not None and self._left.active():
            self._left.cancel()
        status = getattr(reason.value, "exitCode", None)
        done, self._done = self._done, None
        if done is not None and not done.called:
            if status == 0 and not self._why:
                done.callback(bytes(self._out))
            else:
                printed, errors = (
                    bytes(each).decode(errors="replace") for each in (self._out, self._err)
                )
                errors = _NOT_SHARED.sub("", errors)
                said = last_lines(errors)
                why = self._complaint(reason, said)
                done.errback(ShellError(why, status, said, printed=printed, errors=errors))
        ended, self._ended = self._ended, []
        for gone in ended:
            gone.callback(None)

    def _complaint(self, reason: Failure, said: str) -> str:
        if self._why:
            return f"{self._says}: {self._why}" + (f": {said}" if said else "")
        number = getattr(reason.value, "signal", None)
        status = getattr(reason.value, "exitCode", None)
        how = f"was ended by signal {number}" if number else f"ended with status {status}"
        return f"{self._says}: {said or how}"


def last_lines(complaint: str) -> str:
    """The end of a command's error output, in one line."""
    lines = complaint.strip().splitlines()
    return " / ".join(line for line in lines[-5:] if line.strip())


def _lives(group: int) -> bool:
    """Whether a process of the group still runs; those that only wait to be reaped do not."""
    for name in filter(str.isdigit, os.listdir("/proc") if group else ()):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            state, _, of_group = file.read().rpartition(b")")[2].split()[:3]
            if int(of_group) == group and state not in b"ZX":
                return True
    return False
