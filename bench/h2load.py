"""h2load, the load over HTTP/2, and over connections that serve but once.

h2load is given a number of requests rather than a time: of a time, the requests that
are under way at its end are not counted, and a stream that is never answered would
not be missed.  The number follows from how fast the last requests were answered.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.certificates import TERMS, Terms
from bench.load import Report
from bench.processes import BenchError, end, program, spawn

SILENCE = 10  # seconds after which a connection without a byte has failed
FIRST = 1000  # requests, as long as nothing is known of the server

_FINISHED = re.compile(r"^finished in ([\d.]+)(us|ms|s),", re.M)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_REQUESTS = re.compile(
    r"^requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, "
    r"(\d+) failed, (\d+) errored, (\d+) timeout",
    re.M,
)
_STATUS = re.compile(r"^status codes: \d+ 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", re.M)
_TERMS = re.compile(
    r"^TLS Protocol: (\S+)\nCipher: (\S+)\nServer Temp Key: (\S+).*\n"
    r"(?:Application protocol: (\S+))?",
    re.M,
)


def parse(text: str, protocol: str) -> Report:
    """Read h2load's report; raises :exc:`BenchError` if it is none.

    It raises that too if another than ``protocol``, or than :data:`TERMS`, was agreed on.
    """
    finished = _FINISHED.search(text)
    requests = _REQUESTS.search(text)
    status = _STATUS.search(text)
    if finished is None or requests is None or status is None:
        raise BenchError(f"h2load did not report: {text.strip()[-500:] or 'no output'}")
    total, done, succeeded, failed, errored, timeout = (int(n) for n in requests.groups())
    redirects, refusals, faults = (int(n) for n in status.groups())
    terms = _TERMS.search(text)
    if terms is None and errored < total:
        raise BenchError("h2load did not say what TLS was agreed on")
    if terms is not None and (Terms(*terms.groups()[:3]), terms[4]) != (TERMS, protocol):
        agreed = f"{Terms(*terms.groups()[:3])}, {terms[4]}"
        raise BenchError(f"not {TERMS}, {protocol} was agreed on, but {agreed}")
    counted = {
        "failed": failed,
        "errored": errored,
        "timeouts": timeout,
        "not 2xx": redirects + refusals + faults,
    }
    seconds = float(finished[1]) * _UNITS[finished[2]]
    # To h2load, 3xx is a success.
    return Report(done, total - succeeded + redirects, seconds, counted)


class _Running:
    def __init__(self, popen: subprocess.Popen[bytes], protocol: str, patience: float) -> None:
        self._popen = popen
        self._protocol = protocol
        self._patience = patience

    @property
    def over(self) -> bool:
        return self._popen.poll() is not None

    def stop(self) -> Report:
        try:
            output, _ = self._popen.communicate(timeout=self._patience)
        except subprocess.TimeoutExpired:
            raise BenchError(f"h2load did not end within {self._patience:.0f} s") from None
        return parse(output.decode(errors="replace"), self._protocol)


@contextmanager
def _started(
    url: str,
    requests: int,
    connections: int,
    options: Sequence[str],
    protocol: str,
    patience: float,
) -> Iterator[_Running]:
    argv = [program("h2load"), f"-n{requests}", f"-c{min(connections, requests)}", "-t1"]
    argv += [f"-N{SILENCE}s", f"--tls13-ciphers={TERMS.cipher}", f"--groups={TERMS.group}"]
    popen = spawn([*argv, *options, url], "load", stderr=subprocess.STDOUT)
    try:
        yield _Running(popen, protocol, patience)
    finally:
        end(popen)


@dataclass(frozen=True, slots=True)
class H2load:
    """So many connections that are kept, with so many streams at a time on each."""

    connections: int
    streams: int
    _rates: dict[str, float] = field(default_factory=dict)  # url -> requests a second

    @contextmanager
    def start(self, url: str, seconds: float) -> Iterator[_Running]:
        """Ask for ``url`` as often as can be answered in ``seconds``, going by the last run."""
        requests = max(FIRST, round(self._rates.get(url, 0.0) * seconds))
        options = (f"-m{self.streams}",)
        with _started(url, requests, self.connections, options, "h2", seconds * 4 + 60) as running:
            yield running

    def run(self, url: str, seconds: float) -> Report:
        """Ask for ``url`` for about ``seconds``."""
        with self.start(url, seconds) as running:
            report = running.stop()
        self._rates[url] = report.requests / report.seconds
        return report


@dataclass(frozen=True, slots=True)
class Handshakes:
    """So many connections at once, again and again, each new and with one request over HTTP/1.1.

    h2load keeps no TLS session, so that every handshake is a full one.
    """

    connections: int

    @contextmanager
    def start(self, url: str, seconds: float) -> Iterator[_Running]:
        """Connect, and ask for ``url``, once with each connection."""
        options = ("--h1",)
        with _started(url, self.connections, self.connections, options, "http/1.1", 60) as running:
            yield running

    def run(self, url: str, seconds: float) -> Report:
        """Do so until ``seconds`` have passed."""
        begun = time.monotonic()
        reports: list[Report] = []
        while time.monotonic() - begun < seconds:
            with self.start(url, seconds) as running:
                reports.append(running.stop())
        ways = reports[0].counted
        return Report(
            sum(r.requests for r in reports),
            sum(r.failed for r in reports),
            sum(r.seconds for r in reports),
            {way: sum(r.counted[way] for r in reports) for way in ways},
        )
