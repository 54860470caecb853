"""What the applications of tests have in common: how they answer, and how they keep a file."""

from __future__ import annotations

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Application(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes) -> None:
        """Answer a request."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *what: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    request_queue_size = 100
    daemon_threads = True


def serve(address: str, port: int, application: type[Application]) -> None:
    """Serve until the end."""
    Server((address, port), application).serve_forever()


def keep(path: Path, text: str) -> None:
    """Write a new file, to the disk."""
    with open(path, "x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
