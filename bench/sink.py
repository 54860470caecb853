"""Takes syslog datagrams on a loopback port and forgets them: HAProxy's access log.

Run as ``python -m bench.sink PORT``; prints one line once it listens.
"""

from __future__ import annotations

import socket
import sys


def main() -> None:
    """Receive for ever."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        s.bind(("127.0.0.1", int(sys.argv[1])))
        print("listening", flush=True)
        buffer = bytearray(65536)
        while True:
            s.recv_into(buffer)


if __name__ == "__main__":
    main()
