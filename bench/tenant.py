"""A site that is written to, as a service of a node: ``tenant.py DIRECTORY PORT NOTE`` starts it.

It answers every request with how many bytes it has written, which is RATE a second: it writes
over the files of its directory, one chosen at random after another.  NOTE is a file outside
of it, for the number of its process, which has a lock on it for as long as it lives.  It needs
nothing but Python's own library.  Once it is started it takes connections; to start it twice
does nothing.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import sys
import threading
import time
from contextlib import suppress

RATE = 5_000_000  # bytes a second
ANSWER = "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}"

written = 0


def start(directory: str, port: str, note: str) -> None:
    """Have it run, in a process of its own."""
    try:
        listener = socket.create_server(("127.0.0.1", int(port)), backlog=128)
    except OSError:  # it does already
        return
    lock = open(note, "w")  # noqa: SIM115 - the child keeps it
    fcntl.flock(lock, fcntl.LOCK_EX)
    pid = os.fork()
    if pid:
        lock.write(str(pid))
        lock.flush()
        return
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # who has started it waits until they are closed
        os.dup2(nothing, number)
    threading.Thread(target=write, args=(directory,), daemon=True).start()
    while True:
        talk, _ = listener.accept()
        with talk, suppress(OSError):
            if talk.recv(65536):
                talk.sendall(ANSWER.format(len(str(written)), written).encode())


def write(directory: str) -> None:
    """Write, as fast as it should."""
    global written
    names = os.listdir(directory)
    began = time.monotonic()
    while True:
        with open(os.path.join(directory, random.choice(names)), "r+b") as file:
            written += file.write(os.urandom(os.fstat(file.fileno()).st_size))
        time.sleep(max(0.0, began + written / RATE - time.monotonic()))


if __name__ == "__main__":
    start(*sys.argv[1:])
