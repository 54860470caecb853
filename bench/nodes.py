"""Two nodes on this machine, for a site to be moved between: the daemon's, and one behind ssh.

They share a mount namespace, so that nobody else sees what is mounted there, and all of it is
gone with its last process.
"""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, end, free_port, program, spawn

FAR = "two"  # what the node behind ssh is called; the daemon's is "bench"
LATE = 15.0  # seconds that a server has to be there

# The sockets and locks of zfs-fuse and sshd have fixed places below /run.
_HOLD = "mount -t tmpfs tmpfs /run && mkdir /run/lock /run/sshd && exec "
_ZFS_FUSE = "zfs-fuse --no-daemon --no-kstat-mount --enable-xattr"

# A home of its own: what the user's shell reads at each login would be measured as well.
_SERVER = """
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/client_key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv HOME={directory}
"""

_CLIENT = """
Host {name}
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {directory}/client_key
    IdentitiesOnly yes
    HostKeyAlias {name}
    UserKnownHostsFile {directory}/known_hosts
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
"""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Both of them."""

    directory: Path
    enter: Sequence[str]  # the words before a command that is to run there

    @property
    def ssh_config(self) -> Path:
        """What leads to the far one."""
        return self.directory / "ssh_config"

    def run(self, *argv: str) -> str:
        """What a command prints there; raises :exc:`BenchError` if it fails."""
        done = subprocess.run([*self.enter, *argv], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def until(self, *argv: str) -> None:
        """Wait until a command succeeds."""
        late = time.monotonic() + LATE
        while True:
            try:
                self.run(*argv)
                return
            except BenchError:
                if time.monotonic() > late:
                    raise
            time.sleep(0.05)


@contextmanager
def nodes(directory: Path, *, zfs: bool) -> Iterator[Nodes]:
    """Have them, with files in ``directory``; with ZFS in user space, if asked for.

    Raises :exc:`BenchError` if something does not start.
    """
    if os.geteuid() != 0:
        raise BenchError("only root can mount; run it as root")
    hold = _HOLD + (_ZFS_FUSE if zfs else "sleep infinity")
    slave = [program("unshare"), "--mount", "--propagation", "slave"]
    with (directory / "nodes.log").open("wb") as log:
        out = log.fileno()
        holder = spawn([*anywhere(), *slave, "sh", "-c", hold], "load", stdout=out, stderr=out)
        made = Nodes(
            directory,
            [*anywhere(), program("nsenter"), f"--mount=/proc/{holder.pid}/ns/mnt", "--"],
        )
        try:
            made.until("test", "-d", "/run/sshd")
            if zfs:
                made.until("zpool", "list")
            _configure(directory)
            argv = [program("sshd"), "-D", "-e", "-f", str(directory / "sshd_config")]
            sshd = spawn([*made.enter, *argv], "load", stdout=out, stderr=out)
            try:
                made.until("ssh", "-F", str(made.ssh_config), FAR, "true")
                yield made
            finally:
                end(sshd)
        finally:
            end(holder)


def anywhere() -> list[str]:
    """The words before a command that may use all cores, as movers do."""
    return [program("taskset"), "-c", f"0-{(os.cpu_count() or 1) - 1}"]


def _configure(directory: Path) -> None:
    for name in ("host_key", "client_key"):
        argv = [program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f"]
        subprocess.run([*argv, str(directory / name)], check=True, capture_output=True)
    values = {
        "name": FAR,
        "port": free_port(),
        "user": getpass.getuser(),
        "directory": directory,
    }
    (directory / "known_hosts").write_text(f"{FAR} {(directory / 'host_key.pub').read_text()}")
    (directory / "sshd_config").write_text(_SERVER.format(**values))
    (directory / "ssh_config").write_text(_CLIENT.format(**values))
