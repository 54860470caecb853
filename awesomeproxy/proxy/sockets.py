"""What the kernel knows of a connection that nobody has read from yet."""

from __future__ import annotations

import select
import socket


def is_silent(sock: socket.socket) -> bool:
    """Whether the peer of ``sock`` has, as far as the kernel knows, neither left nor spoken."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def waits_to_be_read(sock: socket.socket) -> bool:
    """Whether bytes have arrived on ``sock`` that nobody has read."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def has_left(sock: socket.socket) -> bool:
    """Whether the peer of ``sock`` has closed its side, be it behind bytes not read yet."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
