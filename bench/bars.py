"""The figures, and the bars and aims that each of them has.

A figure is one measurement and has one bar or several.  A bar must be reached; an aim,
which is a bar that does not bind, is what to work towards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure is to reach: ``at_most`` or ``at_least`` so much of ``unit``."""

    name: str
    figure: str
    what: str
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    aim: float | None = None  # beyond the bar
    binding: bool = True  # False: the bar itself is only an aim

    def passed(self, value: float) -> bool:
        """Whether ``value`` reaches the bar."""
        if self.at_most is not None and value > self.at_most:
            return False
        return self.at_least is None or value >= self.at_least

    def __str__(self) -> str:
        limit = f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"
        aim = f" (aim {self.aim:g})" if self.aim is not None else ""
        return f"{'' if self.binding else 'aim '}{limit} {self.unit}{aim}"


def _cost_bars(figure: str, what: str) -> tuple[Bar, ...]:
    return (
        Bar(f"{figure}-haproxy", figure, f"{what}: CPU, ours / HAProxy's", "x", 2.2, aim=1.5),
        Bar(f"{figure}-caddy", figure, f"{what}: CPU, ours / Caddy's", "x", 0.6),
        Bar(
            f"{figure}-webproxy",
            figure,
            f"{what}: CPU, twisted.web.proxy's / ours",
            "x",
            at_least=6.0,
        ),
    )


def _pause_bars(figure: str, mover: str) -> tuple[Bar, ...]:
    return (
        Bar(f"{figure}-pause", figure, f"longest pause of a move with {mover}", "ms", 2000.0),
        Bar(f"{figure}-share", figure, "of it not drain, last sync, service start", "ms", 100.0),
    )


BARS: tuple[Bar, ...] = (
    *_cost_bars("request", "small request"),
    *_cost_bars("headers", "browser's headers"),
    Bar("body-haproxy", "body", "1 MB answers: CPU, ours / HAProxy's", "x", 1.3),
    Bar("tls-haproxy", "tls", "small request over TLS: CPU, ours / HAProxy's", "x", 2.2),
    Bar(
        "handshakes-haproxy",
        "handshakes",
        "handshakes per CPU second, ours / HAProxy's",
        "x",
        at_least=0.7,
    ),
    Bar("h2-failed", "h2", "requests over HTTP/2 that failed", "requests", 0),
    Bar(
        "h2-caddy", "h2", "small request over HTTP/2: CPU, ours / Caddy's", "x", 1.0, binding=False
    ),
    Bar("held-memory", "held", "memory per held request", "KB", 8.0),
    Bar("held-failed", "held", "held requests that failed", "requests", 0),
    Bar("pauses-failed", "pauses", "failed during pause/resume cycles", "requests", 0),
    Bar("h2pauses-failed", "h2pauses", "the same over HTTP/2", "streams", 0),
    Bar("moves-failed", "moves", "failed during migrations", "requests", 0),
    Bar("wait-ledger", "wait", "longest pause of a migration, by ledger", "ms", 20.0),
    Bar("wait-client", "wait", "longest wait it added, by a client", "ms", 20.0),
    Bar("status-time", "status", "awesomeproxy status, start to exit", "ms", 150.0),
    Bar("mounts-cpu", "mounts", "a mount among 100,000: the watcher's CPU time", "ms", 200.0),
    Bar("mounts-others", "mounts", "of one that is not watched", "ms", 5.0),
    Bar("mounts-read", "mounts", "of a change for which the table is read", "ms", 200.0),
    Bar("mounts-stall", "mounts", "the longest it kept the reactor from its work", "ms", 20.0),
    Bar("sites-start", "sites", "10,000 sites: from the start until it listens", "s", 3.0),
    Bar("sites-memory", "sites", "memory of the daemon that has them", "MB", 100.0),
    Bar(
        "cluster-receipt", "cluster", "300 nodes, 40 ms: receipt beyond 3 round trips", "ms", 250.0
    ),
    Bar("cluster-start", "cluster", "10,000 sites in the registry: start", "s", 3.0),
    Bar("cluster-memory", "cluster", "memory of a node that has them", "MB", 100.0),
    *_pause_bars("pausezfs", "zfs"),
    *_pause_bars("pausersync", "rsync"),
)

FIGURES: Mapping[str, str] = {
    "request": "CPU time per proxied small request, 64 connections",
    "headers": "the same with the headers a browser sends",
    "body": "CPU time per MB of 1 MB answers",
    "tls": "CPU time per small request over TLS, 64 connections",
    "handshakes": "full TLS handshakes per second of CPU time",
    "h2": "HTTP/2 over TLS, 10 connections of 10 streams",
    "held": "15,000 requests held at once, then released",
    "pauses": "30 pause/resume cycles under load",
    "h2pauses": "the same over HTTP/2",
    "moves": "100 migrations between two origins under load",
    "wait": "the longest wait that a migration adds on an idle site",
    "status": "the time that awesomeproxy status takes",
    "mounts": "what a mount costs the watcher among 100,000 mounts",
    "sites": "the start, the memory and a reload of a daemon with 10,000 sites",
    "cluster": "how long 3, 30 and 300 nodes take to agree, near and far",
    "pausezfs": "the pause of a site that moves with 1 GB it writes to, with zfs",
    "pausersync": "the same with rsync",
}
