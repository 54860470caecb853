"""OpenSSL's contexts, for either side of the proxy.

Both speak TLS 1.2 and 1.3 in Mozilla's intermediate profile: forward secrecy and
authenticated encryption only, and the client may choose among the ciphers, as it knows
best what its processor is fast at.  The profile's finite-field suites are left out:
whoever speaks TLS 1.2 at all has elliptic curves, and they would let a client make the
server compute for a hundred times what its own request costs (CVE-2002-20001).

So is it with the groups for the exchange of keys: those of the profile, and no finite
fields, which OpenSSL would offer in TLS 1.3 as well.

A context must not be changed once a connection has used it, so there is no way to:
whenever something is to be different, a new one is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

from awesomeproxy.tls.pairs import Pair

CIPHERS: Final = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    b"ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    b"ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
CIPHERS_13: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
GROUPS: Final = b"X25519:P-256:P-384"
# Where OpenSSL has it (3.5).  With "*": as a client we offer keys in both at once, so that
# servers without it cost no second round.
HYBRID: Final = b"*X25519MLKEM768:*"
SESSION_LIFE: Final = 86_400  # seconds, as Mozilla has it

# Of the binding, as pyOpenSSL has no way to say which groups there may be.
_library: Any = Binding().lib

Select = Callable[[SSL.Connection, list[bytes]], bytes]


def context(method: int) -> SSL.Context:
    """What all contexts have in common.

    :param method: ``SSL.TLS_SERVER_METHOD`` or ``SSL.TLS_CLIENT_METHOD``.
    """
    made = SSL.Context(method)
    made.set_min_proto_version(SSL.TLS1_2_VERSION)
    made.set_cipher_list(CIPHERS)
    made.set_tls13_ciphersuites(CIPHERS_13)
    _set_groups(made)
    made.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    made.set_mode(SSL.MODE_RELEASE_BUFFERS)  # an idle connection has no use for 34 KB
    # Sessions are in tickets, with the client; what is not kept here cannot fill memory.
    made.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return made


def _set_groups(made: SSL.Context) -> None:
    handle: Any = made._context
    if not _library.SSL_CTX_set1_curves_list(handle, HYBRID + GROUPS):
        _library.ERR_clear_error()
        if not _library.SSL_CTX_set1_curves_list(handle, GROUPS):
            raise SSL.Error([("", "", "OpenSSL lacks the groups X25519, P-256 and P-384")])


def server_context(select: Select, pair: Pair | None = None) -> SSL.Context:
    """A context for connections of clients.

    :param select: chooses among the protocols that a client offers (ALPN).
    :param pair: what is proved with; None: nothing can be, and a handshake fails.
    :raise SSL.Error: OpenSSL does not take the pair, for example because it is too weak.
    """
    made = context(SSL.TLS_SERVER_METHOD)
    made.set_timeout(SESSION_LIFE)
    # The same for all, so that a session outlives the context it was made with.
    made.set_session_id(b"awesomeproxy")
    made.set_alpn_select_callback(select)
    if pair is not None:
        prove(made, pair)
    return made


def prove(made: SSL.Context, pair: Pair) -> None:
    """Have a new context prove with ``pair`` who we are.

    :raise SSL.Error: OpenSSL does not take the pair.
    """
    made.use_certificate(pair.chain[0])
    for signer in pair.chain[1:]:
        made.add_extra_chain_cert(signer)
    made.use_privatekey(pair.key)
