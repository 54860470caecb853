"""wrk, the load: started, stopped when enough was measured, and its report read.

wrk takes whole seconds only, so it is started for an hour and interrupted, upon
which it reports as usual.  It asks as fast as it is answered, the same for all.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from bench.processes import HOST, BenchError, end, program, spawn

# What a browser sends with a request for a page.
BROWSER_HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,"
    "image/png,image/svg+xml,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "https://bench.test/articles/2024/a-page-that-links-here",
    "DNT": "1",
    "Connection": "keep-alive",
    "Cookie": "session=6f1d0c9be2a14b7c8f3a5d7e9b0c1a2d; theme=dark; consent=necessary%2Cstats",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-User": "?1",
    "Priority": "u=0, i",
}

_REQUESTS = re.compile(r"^\s*(\d+) requests in ", re.M)
_BAD_STATUS = re.compile(r"^\s*Non-2xx or 3xx responses:\s*(\d+)", re.M)
_SOCKET = re.compile(
    r"^\s*Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", re.M
)


@dataclass(frozen=True, slots=True)
class Report:
    """What wrk counted."""

    requests: int
    bad_status: int
    connect: int
    read: int
    write: int
    timeout: int

    @property
    def failed(self) -> int:
        """Requests that got an error, a wrong answer, or none in time."""
        return self.bad_status + self.connect + self.read + self.write + self.timeout

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests, {self.bad_status} not 2xx or 3xx, socket errors: "
            f"connect {self.connect}, read {self.read}, write {self.write}, timeout {self.timeout}"
        )


def parse(text: str) -> Report:
    """Read wrk's report; raises :exc:`BenchError` if it is none."""
    requests = _REQUESTS.search(text)
    if requests is None:
        raise BenchError(f"wrk did not report: {text.strip()[-500:] or 'no output'}")
    bad = _BAD_STATUS.search(text)
    socket = _SOCKET.search(text)
    errors = [int(n) for n in socket.groups()] if socket else [0, 0, 0, 0]
    return Report(int(requests[1]), int(bad[1]) if bad else 0, *errors)


class Load:
    """A running wrk."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    def stop(self) -> Report:
        """End the load and return what it counted; raises :exc:`BenchError` without a report."""
        self._popen.send_signal(signal.SIGINT)
        try:
            output, _ = self._popen.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            raise BenchError("wrk did not stop within 30 s") from None
        return parse(output.decode(errors="replace"))


@contextmanager
def load(url: str, connections: int, headers: Mapping[str, str] | None = None) -> Iterator[Load]:
    """Ask for ``url`` over so many connections from the load's core, until stopped."""
    argv = [program("wrk"), "-t1", f"-c{connections}", "-d1h", "--timeout", "10s"]
    for name, value in {"Host": HOST, **(headers or {})}.items():
        argv += ["-H", f"{name}: {value}"]
    popen = spawn([*argv, url], "load", stderr=subprocess.STDOUT)
    try:
        yield Load(popen)
    finally:
        end(popen)


def run(
    url: str, connections: int, seconds: float, headers: Mapping[str, str] | None = None
) -> Report:
    """Load ``url`` for so many seconds."""
    with load(url, connections, headers) as running:
        time.sleep(seconds)
        return running.stop()
