"""Network namespaces on bridges: machines, as far as their networks are concerned."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field

from servers_stage import run

from bench.cable import Cable, End, Nature, ip


@dataclass
class Bridge:
    """A network that namespaces are plugged into; the test is on it, too, as number 1."""

    name: str
    net: str  # the first three numbers of its addresses

    @classmethod
    def lay(cls) -> Bridge:
        """One that nobody else uses."""
        number = secrets.randbelow(64 * 256)
        made = cls(f"ap{secrets.token_hex(3)}", f"10.{128 + number // 256}.{number % 256}")
        ip("link", "add", made.name, "type", "bridge")
        ip("address", "add", f"{made.address(1)}/24", "dev", made.name)
        ip("link", "set", made.name, "up")
        return made

    def address(self, number: int) -> str:
        return f"{self.net}.{number}"

    def close(self) -> None:
        subprocess.run(["ip", "link", "delete", self.name], check=False)


@dataclass
class Space:
    """A namespace with a cable to each of some bridges."""

    name: str
    cables: dict[str, Cable | str] = field(default_factory=dict)  # by bridge; a str is a device

    @classmethod
    def make(cls) -> Space:
        made = cls(f"ap{secrets.token_hex(4)}")
        ip("netns", "add", made.name)
        ip("-n", made.name, "link", "set", "lo", "up")
        return made

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a command there, which ends with the test."""
        return ("setpriv", "--pdeathsig", "KILL", "--", "nsenter", f"--net=/run/netns/{self.name}")

    def plug(self, bridge: Bridge, number: int, nature: Nature | None = None) -> str:
        """Connect it to a bridge; its address there.

        :param nature: of the cable, if it is not to be a perfect one.
        """
        address = bridge.address(number)
        inner, outer = f"c{len(self.cables)}", f"ap{secrets.token_hex(5)}"
        if nature is None:
            peer = ("type", "veth", "peer", "name", inner, "netns", self.name)
            ip("link", "add", outer, *peer)
            ip("link", "set", outer, "master", bridge.name, "up")
            ip("-n", self.name, "address", "add", f"{address}/24", "dev", inner)
            ip("-n", self.name, "link", "set", inner, "up")
            self.cables[bridge.name] = outer
        else:
            here = End(outer, bridge=bridge.name)
            there = End(inner, self.name, f"{address}/24")
            self.cables[bridge.name] = Cable(here, there, nature)
        return address

    def cut(self, bridge: Bridge, *, off: bool = True) -> None:
        """Pull the cable to a bridge, or put it back."""
        cable = self.cables[bridge.name]
        assert isinstance(cable, str)
        ip("link", "set", cable, "down" if off else "up")

    def silence(self, bridge: Bridge, *, off: bool = True) -> None:
        """Lose every packet to and from a bridge while the cable looks as if it were well."""
        cable = self.cables[bridge.name]
        assert isinstance(cable, str)
        ip("link", "set", cable, *(["nomaster"] if off else ["master", bridge.name]))

    def close(self) -> None:
        """End all that runs there, and take it away."""
        for cable in self.cables.values():
            if isinstance(cable, Cable):
                cable.close()
        for pid in run("ip", "netns", "pids", self.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", self.name], check=False)
