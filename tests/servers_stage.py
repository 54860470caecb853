"""Two servers of a hosting provider, on this machine: each with its own network and mounts.

A server is a network namespace with an address of its own and a mount namespace, in which
``sshd`` runs and whatever else a test starts there.  The daemon of the test stands outside
of both, reaches them through ssh, and they reach its listeners through the server's gateway.
What is started in a server dies with it.

Nobody's ``~/.bashrc`` is read for a command there, which can take longer than the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon_stage import Daemon, free_ports
from ssh_stage import SSHD
from stage_waiting import until

from awesomeproxy.identity import identity

# A home of its own: what the user's shell reads there at each login may take long.
_SERVER = """
ListenAddress {address}:22
HostKey {keys}/host_key
AuthorizedKeysFile {keys}/client_key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv HOME={home}
MaxStartups 100
MaxSessions 100
"""

_CLIENT = """
Host {name}
    HostName {address}
    User root
    IdentityFile {keys}/client_key
    IdentitiesOnly yes
    HostKeyAlias any
    UserKnownHostsFile {keys}/known_hosts
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
"""


def run(*argv: str, **more: object) -> str:
    """What a command prints; AssertionError with its words if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{argv}: {done.stderr or done.stdout}"
    return str(done.stdout)


@dataclass
class Server:
    """One server; ``address`` is its own, ``gateway`` the daemon's on their network."""

    name: str
    directory: Path
    gateway: str
    address: str
    space: str  # what its namespace and its cables are called
    keeper: subprocess.Popen[bytes] | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """A command, to be run in the server."""
        assert self.keeper is not None
        return ["nsenter", f"--target={self.keeper.pid}", "--mount", "--net", "--", *argv]

    def run(self, *argv: str) -> str:
        """Run a command in the server; what it prints."""
        return run(*self.inside(argv))

    def spawn(self, *argv: str, log: str) -> subprocess.Popen[bytes]:
        """Start something in the server, that ends with it."""
        words = self.inside(["setpriv", "--pdeathsig", "KILL", "--", *argv])
        with open(self.directory / log, "ab") as out:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/"
            )
        self.processes.append(process)
        return process

    def create(self, bridge: str) -> None:
        """Make its network, plugged into ``bridge``, and its mounts."""
        host, own = f"{self.space}h", f"{self.space}s"
        run("ip", "netns", "add", self.space)
        run("ip", "link", "add", host, "type", "veth", "peer", "name", own, "netns", self.space)
        run("ip", "link", "set", host, "master", bridge, "up")
        inside = ("ip", "-n", self.space)
        run(*inside, "address", "add", f"{self.address}/24", "dev", own)
        run(*inside, "link", "set", own, "up")
        run(*inside, "link", "set", "lo", "up")
        self.directory.mkdir(parents=True)
        # A private one would keep what is mounted elsewhere from being unmounted.
        words = ["ip", "netns", "exec", self.space, "unshare", "--mount", "--propagation", "slave"]
        words += ["setpriv", "--pdeathsig", "KILL", "--", "sleep", "infinity"]
        self.keeper = subprocess.Popen(words, stdin=subprocess.DEVNULL)

    async def start(self, keys: Path) -> None:
        """Have it reached through ssh."""
        keeper = self.keeper
        assert keeper is not None
        await until(lambda: _command(keeper.pid) == "sleep", "the server's namespaces")
        config = self.directory / "sshd_config"
        config.write_text(_SERVER.format(address=self.address, keys=keys, home=self.directory))
        self.spawn(SSHD, "-D", "-e", "-f", str(config), log="sshd.log")
        log = self.directory / "sshd.log"
        await until(lambda: "Server listening" in log.read_text(), "sshd")

    def cut(self, *, off: bool = True) -> None:
        """Pull the network cable, or put it back."""
        run("ip", "link", "set", f"{self.space}h", "down" if off else "up")

    async def kill(self, name: str) -> None:
        """``kill -9`` of all of its processes that are called so, which have to be there."""
        pids = [pid for pid in self.pids() if _command(pid) == name]
        assert pids, f"there is no {name} on {self.name}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await until(lambda: not any(_command(pid) for pid in pids), f"the end of {name}")
        for process in self.processes:
            process.poll()  # reaped, or whoever is started next would find it alive

    def runs(self, name: str) -> bool:
        """Whether a process that is called so is there."""
        return any(_command(pid) == name for pid in self.pids())

    def pids(self) -> list[int]:
        """Its processes."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.space], capture_output=True, text=True, check=False
        )
        return list(map(int, listed.stdout.split()))

    def close(self) -> None:
        """End all that runs there, and take it away."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in (*self.processes, *([self.keeper] if self.keeper else [])):
            process.kill()
            process.wait()
        subprocess.run(["ip", "netns", "delete", self.space], check=False)
        for point in _mounted_in(self.directory):  # what closes a directory outlives it
            subprocess.run(["umount", "--lazy", point], check=False)


def _mounted_in(directory: Path) -> list[str]:
    """The mount points beneath a directory, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in reversed(points) if point.startswith(f"{directory}/")]


def _command(pid: int) -> str:
    """What a process is called; empty: it is gone, though it may wait to be reaped."""
    with contextlib.suppress(OSError):
        head, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")
        return "" if rest[0] in "ZX" else head.partition(" (")[2]
    return ""


@dataclass
class Servers:
    """Both of them, and a daemon that is not configured yet."""

    one: Server
    two: Server
    daemon: Daemon
    keys: Path

    @property
    def both(self) -> tuple[Server, Server]:
        return self.one, self.two

    @property
    def nodes(self) -> str:
        """The tables of the nodes, for the configuration."""
        return ssh_tables(self.both, self.keys)


def tables(name: str, filesystem: str, port: int, *database: str) -> str:
    """A site with a filesystem and a database that are called as it is, on the first server.

    :param port: of the database's listener.
    """
    return "\n".join(
        [
            f'[filesystems.{name}]\nnode = "one"\n{filesystem}',
            f'[databases.{name}]\nendpoint = "tcp:{port}"\nbackend = "one"\ndrain.grace = 0.1',
            *database,
            f'[sites.{name}]\nhosts = ["blog.test"]\nbackend = "one"',
            f'filesystem = "{name}"\nuses = ["{name}"]',
        ]
    )


def backends(
    name: str, server: Server, files: str, port: int, service: Mapping[str, list[str]], *place: str
) -> str:
    """The same on one of both servers.

    :param port: of the database's server.
    """
    backend, node = f"backends.{server.name}", f'node = "{server.name}"'
    return "\n".join(
        [
            f"[filesystems.{name}.on.{server.name}]\n{files}",
            f'[databases.{name}.{backend}]\nserver = "tcp://{server.address}:{port}"\n{node}',
            f'[databases.{name}.{backend}.place]\ndatabase = "{name}"',
            *place,
            f'[sites.{name}.{backend}]\nservers = ["http://{server.address}:8000"]\n{node}',
            'health = { path = "/health", interval = "1s" }',
            *(f"service.{act} = {json.dumps(words)}" for act, words in service.items()),
        ]
    )


@contextlib.asynccontextmanager
async def servers_on(
    bridge: str, gateway: str, addresses: Mapping[str, str], directory: Path
) -> AsyncIterator[tuple[list[Server], Path]]:
    """Servers that run, and where the configuration is with which ssh reaches them.

    :param bridge: what they are plugged into.
    :param addresses: by what they are called.
    """
    keys = Path(tempfile.mkdtemp(prefix="servers-"))
    for name in ("host_key", "client_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name))
    (keys / "known_hosts").write_text(f"any {(keys / 'host_key.pub').read_text()}")
    servers = [
        Server(name, directory / name, gateway, address, f"ap{secrets.token_hex(4)}")
        for name, address in addresses.items()
    ]
    try:
        for server in servers:
            server.create(bridge)
        (keys / "ssh_config").write_text(
            "".join(
                _CLIENT.format(name=each.name, address=each.address, keys=keys) for each in servers
            )
        )
        for server in servers:
            await server.start(keys)
        yield servers, keys
    finally:
        for server in servers:
            server.close()
        shutil.rmtree(keys)


def ssh_tables(servers: Sequence[Server], keys: Path) -> str:
    """The tables of the nodes, for the configuration."""
    return "\n".join(
        f'[nodes.{each.name}]\nssh = "{each.name}"\nconfig = "{keys}/ssh_config"'
        for each in servers
    )


async def two_servers(tmp_path: Path) -> AsyncIterator[Servers]:
    """Two servers that run, for ``servers = twisted_fixture(two_servers)``."""
    number = random.randrange(64 * 256)
    bridge, net = f"ap{number:x}", f"10.{64 + number // 256}.{number % 256}"
    daemon = Daemon(tmp_path / "daemon", free_ports(1)[0])
    daemon.directory.mkdir()
    addresses = {"one": f"{net}.2", "two": f"{net}.3"}
    try:
        run("ip", "link", "add", bridge, "type", "bridge")
        run("ip", "address", "add", f"{net}.1/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        async with servers_on(bridge, f"{net}.1", addresses, tmp_path) as ((one, two), keys):
            try:
                yield Servers(one, two, daemon, keys)
            finally:
                if daemon.running:
                    await daemon.kill()
                for talk in daemon.talks:
                    await talk.close()
    finally:
        subprocess.run(["ip", "link", "delete", bridge], check=False)
        if (state := daemon.directory / "state").exists():
            for note in Path("/run").glob(f"awesomeproxy-{identity(state)}*"):
                note.unlink()
