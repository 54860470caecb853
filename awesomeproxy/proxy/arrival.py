"""What is known of a client before its first request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrival:
    """A client that has come: over which address, and what its handshake has said."""

    address: str  # without a port; "unix" for one that has none
    port: int = 0
    local: str = ""  # the address that it has come to ...
    local_port: int = 0  # ... and the port
    tls: bool = False
    server_name: str = ""  # the name its TLS handshake has asked for (RFC 6066), in lower case
    counted: bool = False  # among the connections of its address
