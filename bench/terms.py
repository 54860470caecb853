"""What OpenSSL's clients and a server agree on: in the place of wrk, which does not tell.

Run as ``python -m bench.terms PORT CERTIFICATE`` in the environment
:data:`bench.wrk.OFFER`, it prints the version of TLS and the cipher.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys

from bench.certificates import TERMS
from bench.processes import HOST, MODULES, BenchError, Process, module
from bench.wrk import OFFER


def check(server: Process) -> None:
    """Raise :exc:`BenchError` unless a client like wrk agrees with ``server`` to the terms."""
    argv = [*module("terms"), str(server.port), str(server.certificate)]
    done = subprocess.run(
        argv,
        env={**os.environ, **MODULES, **OFFER},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"{server.name}: no TLS handshake: {done.stderr.strip()[-500:]}")
    agreed = done.stdout.split()
    if agreed != [TERMS.version, TERMS.cipher]:
        raise BenchError(f"{server.name}: not {TERMS} was agreed on, but {', '.join(agreed)}")


def main() -> None:
    """Shake hands and print."""
    port, certificate = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate)
    with (
        socket.create_connection((HOST, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as encrypted,
    ):
        cipher = encrypted.cipher()
        print(encrypted.version(), cipher and cipher[0])


if __name__ == "__main__":
    main()
