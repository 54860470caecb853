"""wrk, the load over HTTP/1.1: started, stopped when enough was measured, its report read.

wrk takes whole seconds only, so it is started for an hour and interrupted, upon
which it reports as usual.

wrk offers what OpenSSL offers and cannot be told otherwise; so OpenSSL is, by a
configuration file (:data:`OFFER`).  When wrk connects anew it resumes its last TLS
session, so it cannot count handshakes.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import Report
from bench.processes import HOST, BenchError, end, program, spawn

# The environment in which OpenSSL's clients offer what bench.certificates.TERMS says.
OFFER = {"OPENSSL_CONF": str(Path(__file__).parent / "openssl.cnf")}

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


def parse(text: str, seconds: float) -> Report:
    """Read wrk's report; raises :exc:`BenchError` if it is none."""
    requests = _REQUESTS.search(text)
    if requests is None:
        raise BenchError(f"wrk did not report: {text.strip()[-500:] or 'no output'}")
    bad = _BAD_STATUS.search(text)
    socket = _SOCKET.search(text)
    errors = [int(n) for n in socket.groups()] if socket else [0, 0, 0, 0]
    ways = ("not 2xx or 3xx", "connect errors", "read errors", "write errors", "timeouts")
    counted = dict(zip(ways, [int(bad[1]) if bad else 0, *errors], strict=True))
    return Report(int(requests[1]), sum(counted.values()), seconds, counted)


class _Running:
    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._start = time.monotonic()

    @property
    def over(self) -> bool:
        return self._popen.poll() is not None

    def stop(self) -> Report:
        self._popen.send_signal(signal.SIGINT)
        seconds = time.monotonic() - self._start
        try:
            output, _ = self._popen.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            raise BenchError("wrk did not stop within 30 s") from None
        return parse(output.decode(errors="replace"), seconds)


@dataclass(frozen=True, slots=True)
class Wrk:
    """So many connections that are kept, with a request at a time on each."""

    connections: int
    headers: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def start(self, url: str, seconds: float) -> Iterator[_Running]:
        """Ask for ``url`` until stopped, within an hour."""
        argv = [program("wrk"), "-t1", f"-c{self.connections}", "-d1h", "--timeout", "10s"]
        for name, value in {"Host": HOST, **self.headers}.items():
            argv += ["-H", f"{name}: {value}"]
        popen = spawn([*argv, url], "load", env=OFFER, stderr=subprocess.STDOUT)
        try:
            yield _Running(popen)
        finally:
            end(popen)

    def run(self, url: str, seconds: float) -> Report:
        """Ask for ``url`` for ``seconds``."""
        with self.start(url, seconds) as running:
            time.sleep(seconds)
            return running.stop()
