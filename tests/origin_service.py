"""A small service with files, as a command starts and stops it: ``start|stop DIRECTORY PORT``.

It writes one file for each request before it answers, and one more line into a file that is
there already: so what was lost shows, and what was done twice.  It keeps its process id
beside its directory.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Answers with the name of its directory."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    directory: Path

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with open(self.directory / self.path.strip("/"), "ab") as file:
            file.write(b"done\n")
        self._answer()

    def _answer(self) -> None:
        body = self.directory.name.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def running(note: Path) -> int:
    """The process that serves; 0 if none does."""
    try:
        pid = int(note.read_text())
        return pid if b"origin_service" in Path(f"/proc/{pid}/cmdline").read_bytes() else 0
    except (OSError, ValueError):
        return 0


def start(directory: Path, port: int, note: Path) -> None:
    if running(note):
        return
    Handler.directory = directory
    server = Server(("127.0.0.1", port), Handler)  # it listens before the command ends
    pid = os.fork()
    if pid:
        note.write_text(str(pid))
        return
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    server.serve_forever()


def stop(note: Path) -> None:
    """End it, and wait until it has gone."""
    while pid := running(note):
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.01)


if __name__ == "__main__":
    where = Path(sys.argv[2])
    beside = where.with_name(f"{where.name}.pid")
    if sys.argv[1] == "start":
        start(where, int(sys.argv[3]), beside)
    else:
        stop(beside)
