"""A Redis in a network namespace, at the end of a cable."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.cable import Cable, End, Nature, ip
from bench.processes import BenchError, end, program, spawn

SPACE, HERE, THERE = "bench-redis", "10.79.0.1", "10.79.0.2"
PORT = 6379
PATIENCE = 10.0  # seconds until it answers


class Redis:
    """One that runs; its address is that of the cable's other end."""

    host = THERE
    port = PORT

    def command(self, *words: str) -> str:
        """What it answers.  This does not go over the cable."""
        argv = [*_inside(), program("redis-cli"), "-h", THERE, *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    def counted(self) -> Mapping[str, int]:
        """Since it was started: ``commands`` that it was sent, not counting what those were
        made of, and the bytes that have come ``in`` and gone ``out``."""
        text = self.command("info", "everything")
        scripts = re.findall(r"^cmdstat_eval(?:sha)?:calls=(\d+)", text, re.MULTILINE)
        found = {"commands": sum(map(int, scripts))}
        for name, field in (("in", "total_net_input_bytes"), ("out", "total_net_output_bytes")):
            if (line := re.search(rf"^{field}:(\d+)", text, re.MULTILINE)) is None:
                raise BenchError(f"Redis says nothing of {field}")
            found[name] = int(line[1])
        return found


def _inside() -> list[str]:
    return [program("nsenter"), f"--net=/run/netns/{SPACE}", "--"]


@contextmanager
def redis(directory: Path, delay: float) -> Iterator[Redis]:
    """Run one until the end of the ``with``; packets take ``delay`` seconds each way."""
    subprocess.run(["ip", "netns", "delete", SPACE], capture_output=True, check=False)
    ip("netns", "add", SPACE)
    cable = None
    try:
        ip("-n", SPACE, "link", "set", "lo", "up")
        here, there = End("bench-redis", "", f"{HERE}/30"), End("redis", SPACE, f"{THERE}/30")
        cable = Cable(here, there, Nature(delay=delay))
        words = ["--port", str(PORT), "--bind", THERE, "--protected-mode", "no", "--save", ""]
        words += ["--appendonly", "yes", "--dir", str(directory)]
        server = spawn(
            [*_inside(), program("redis-server"), *words], "load", stdout=subprocess.DEVNULL
        )
        try:
            made = Redis()
            late = time.monotonic() + PATIENCE
            while made.command("ping") != "PONG\n":
                if time.monotonic() > late:
                    raise BenchError("Redis does not answer")
                time.sleep(0.05)
            yield made
        finally:
            end(server)
    finally:
        if cable is not None:
            cable.close()
        ip("netns", "delete", SPACE)
