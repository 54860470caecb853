"""A mount namespace of a test's own: what is mounted there goes with it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from awesomeproxy.mountpoint import Look


class Namespace:
    """A process that does nothing, and the mount namespace that it keeps."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.table = f"/proc/{process.pid}/mountinfo"

    def command(self, *argv: str | Path) -> list[str]:
        """What runs ``argv`` in there."""
        return ["nsenter", f"--mount=/proc/{self._process.pid}/ns/mnt", "--", *map(str, argv)]

    def run(self, *argv: str | Path) -> None:
        """Run ``argv`` in there, which has to succeed."""
        subprocess.run(self.command(*argv), check=True, timeout=20)

    def start(self, script: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Begin to run a shell's script in there; ``$1`` is the first argument."""
        return subprocess.Popen(self.command("sh", "-euc", script, "sh", *arguments))


def _kernel_tells() -> bool:
    try:
        Look("/proc/self").at([b"/"])
    except OSError:
        return False
    return True


needs_telling_kernel = pytest.mark.skipif(
    not _kernel_tells(), reason="the kernel, older than 6.13, does not tell what is on a path"
)


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A mount namespace of its own, which nothing is propagated from."""
    holder = ["unshare", "--mount", "--propagation", "private"]
    process = subprocess.Popen(
        [*holder, "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"  # it is in its namespace
        yield Namespace(process)
    finally:
        process.communicate()  # the end of its input ends it
