"""How many files the process may have open, and how many clients that leaves room for."""

from __future__ import annotations

import resource
import sys

from twisted.logger import Logger

log = Logger()

RESERVED = 64  # open files that are not for traffic: whatever comes, operators are answered


def open_files() -> int:
    """How many files may be open, the limit raised as far as it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def affordable(wanted: int) -> int:
    """How many clients the limit of open files leaves room for."""
    hard = open_files()
    # A fifth is for connections to servers.
    room = max(1, (hard - RESERVED) * 4 // 5)
    if wanted > room:
        log.warn(
            "max_connections is {wanted}, but the limit of open files ({hard}) leaves room"
            " for {room}; raise LimitNOFILE (systemd) or ulimit -n",
            wanted=wanted,
            hard=hard,
            room=room,
        )
    return min(wanted, room)
