"""A node that is reached through ssh: Debian's ``sshd`` on this machine, with files of its own.

Neither side looks at the keys or the configuration of whoever runs the tests.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from daemon_stage import free_ports
from stage_waiting import HOST, reactor, until

from awesomeproxy.movers.shell import Reach, Shell

SBIN = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
SSHD = shutil.which("sshd", path=SBIN) or "sshd (install Debian's package openssh-server)"
NAME, OTHER = "far", "farther"  # what the node is called, for ssh and for us; by two names

# A home of its own: what the user's shell reads there at each login may take long.
_SERVER = """
ListenAddress {host}:{port}
HostKey {here}/host_key
AuthorizedKeysFile {here}/client_key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv HOME={here}
MaxStartups 100
MaxSessions 100
"""

_CLIENT = """
Host {name} {other}
    HostName {host}
    Port {port}
    User {user}
    IdentityFile {here}/client_key
    IdentitiesOnly yes
    HostKeyAlias {name}
    UserKnownHostsFile {here}/known_hosts
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
"""


@dataclass
class SshStage:
    """The server, and shells that reach it."""

    directory: Path  # its path has no spaces
    process: subprocess.Popen[bytes] | None = None
    shells: list[Shell] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = free_ports(1)[0]
        # A socket's path must be short, which that of a test's directory is not.
        self.control = tempfile.mkdtemp(prefix="ssh-")
        for name in ("host_key", "client_key"):
            key = str(self.directory / name)
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key]
            subprocess.run(command, check=True)
        host_key = (self.directory / "host_key.pub").read_text()
        (self.directory / "known_hosts").write_text(f"{NAME} {host_key}")
        values = {
            "name": NAME,
            "other": OTHER,
            "host": HOST,
            "port": self.port,
            "user": getpass.getuser(),
            "here": self.directory,
        }
        (self.directory / "sshd_config").write_text(_SERVER.format(**values))
        (self.directory / "ssh_config").write_text(_CLIENT.format(**values))

    def reach(self, name: str = NAME) -> Reach:
        """How the node is reached, by one of its names."""
        return Reach(name, name, str(self.directory / "ssh_config"))

    def shell(self, name: str = NAME, *, shared: bool = True) -> Shell:
        """A shell on the node; ``shared`` says whether connections are."""
        shell = Shell(reactor, self.reach(name), self.control if shared else "")
        self.shells.append(shell)
        return shell

    @property
    def log(self) -> str:
        """What the server has written."""
        return (self.directory / "sshd.log").read_text()

    async def start(self) -> None:
        """Start it; returns when it takes connections."""
        Path("/run/sshd").mkdir(exist_ok=True)  # where it locks its other half in
        config = str(self.directory / "sshd_config")
        with open(self.directory / "sshd.log", "wb") as log:
            self.process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        process = self.process
        await until(lambda: "Server listening" in self.log or process.poll() is not None, "sshd")
        assert process.poll() is None, self.log

    def processes(self) -> list[int]:
        """The server, those that serve a connection, and what runs for them."""
        return [] if self.process is None else [self.process.pid, *descendants(self.process.pid)]

    def signal(self, number: int) -> None:
        """Send a signal to all of :meth:`processes`, as when the node hangs or loses power."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def stop(self) -> None:
        """End it, and all that it serves."""
        self.signal(signal.SIGKILL)
        process, self.process = self.process, None
        if process is not None:
            await until(lambda: process.poll() is not None, "the end of sshd")

    async def close(self) -> None:
        """Leave nothing behind."""
        for shell in self.shells:
            await shell.close()
        await self.stop()
        shutil.rmtree(self.control)


async def a_shell_here() -> AsyncIterator[Shell]:
    """One that runs commands on this node."""
    shell = Shell(reactor, Reach("here"))
    yield shell
    await shell.close()


def runs(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def descendants(ancestor: int) -> list[int]:
    """The processes that one has started, and that these have started."""
    parents = {pid: parent(pid) for pid in map(int, filter(str.isdigit, os.listdir("/proc")))}
    found: list[int] = []
    reached = {ancestor}
    while reached:
        reached = {pid for pid, parent in parents.items() if parent in reached}
        found += reached
    return found


def parent(pid: int) -> int:
    """The process that has started it; 0: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:  # it has just ended
        return 0


async def an_ssh_stage(tmp_path: Path) -> AsyncIterator[SshStage]:
    """A server that runs, for ``ssh = twisted_fixture(an_ssh_stage)``."""
    directory = tmp_path / "ssh"
    directory.mkdir()
    stage = SshStage(directory)
    await stage.start()
    yield stage
    await stage.close()
