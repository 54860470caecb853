"""Contexts for connections to servers, and whether who answers there is who was meant.

A server is believed if somebody who is trusted has signed its certificate, and if that
certificate is for the name the server is known by.  The former OpenSSL checks during
the handshake, the latter :func:`verify_peer` after it.  Either says what is wrong in
words, as :exc:`Unverified`; it is an ``SSL.Error``, so that nobody who treats these as
the failure of the handshake they are can take such a server for a good one.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from twisted.logger import Logger

from awesomeproxy.model import Backend, Server, ServerTls
from awesomeproxy.tls.contexts import context, prove
from awesomeproxy.tls.pairs import PairError, read_pair, unusable

log = Logger()

_CODES: Final = SSL.X509VerificationCodes
_UNKNOWN_SIGNER: Final = (
    "nobody who is trusted has signed its certificate; name who has in tls.ca_file"
)
_REASONS: Final = {
    _CODES.ERR_CERT_HAS_EXPIRED: "its certificate has expired; renew it there",
    _CODES.ERR_CERT_NOT_YET_VALID: "its certificate is not valid yet; compare the clocks",
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: (
        "its certificate is signed by itself; name that certificate in tls.ca_file to trust it"
    ),
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: _UNKNOWN_SIGNER,
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT: _UNKNOWN_SIGNER,
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: _UNKNOWN_SIGNER,
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: _UNKNOWN_SIGNER,
    _CODES.ERR_INVALID_PURPOSE: "its certificate is not for a server; have another one issued",
}


class Unverified(SSL.Error):
    """Whoever has answered is not known to be the server that was meant."""


class ClientContexts:
    """The contexts for servers, made when first needed and shared where they are alike.

    What the system trusts takes a megabyte in each context, so it matters that they are.
    """

    def __init__(self) -> None:
        self._made: dict[object, SSL.Context] = {}

    def get(self, backend: Backend, server: Server) -> SSL.Context:
        """The context for connections to a server.

        :raise PairError: a file that it needs cannot be used.
        """
        tls = backend.tls
        # One that is not verified is its own, so that each is named in the log.
        key = (tls, server.http2, () if tls.verify else (backend.name, server.url))
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = client_context(backend, server)
        return made

    def forget(self) -> None:
        """Read all files again, as they are needed; connections keep what they have."""
        self._made.clear()


def client_context(backend: Backend, server: Server) -> SSL.Context:
    """A new context for connections to a server of ``backend``.

    :raise PairError: a file that it needs cannot be used.
    """
    tls = backend.tls
    made = context(SSL.TLS_CLIENT_METHOD)
    made.set_alpn_protos([b"h2" if server.http2 else b"http/1.1"])
    if tls.verify:
        made.set_verify(SSL.VERIFY_PEER, _verified)
        _trust(made, tls.ca_file)
    else:
        made.set_verify(SSL.VERIFY_NONE)
        log.warn(
            "{backend}: {server} is not verified: whoever answers there is believed and gets"
            " the requests; remove verify = false from its tls table",
            backend=backend.name,
            server=server.url,
        )
    if tls.certificate:
        pair = read_pair(tls.certificate, tls.key)
        try:
            prove(made, pair)
        except SSL.Error as problem:
            raise unusable(pair, problem) from None
    return made


def identity(tls: ServerTls, server: Server) -> str:
    """The host name or IP address that a server's certificate must be for."""
    return tls.name or server.host


def server_name(tls: ServerTls, server: Server) -> bytes | None:
    """The name to ask for in the handshake (SNI); an IP address is none (RFC 6066, section 3)."""
    name = tls.sni or identity(tls, server)
    return None if _is_address(name) else name.encode("ascii")


def verify_peer(connection: SSL.Connection, name: str) -> None:
    """Check that the certificate of a connection whose handshake is done is for ``name``.

    :param name: a host name or an IP address.
    :raise Unverified: it is not.
    """
    certificate = connection.get_peer_certificate(as_cryptography=True)
    if certificate is None:
        raise Unverified("it has shown no certificate")
    verify = verify_certificate_ip_address if _is_address(name) else verify_certificate_hostname
    try:
        verify(certificate, name)
    except (VerificationError, CertificateError, ValueError):
        raise Unverified(
            f"its certificate is for {_names(certificate)}, not for {name};"
            " if that is the right server, put the name into tls.name"
        ) from None


def _verified(
    connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, fine: int
) -> bool:
    if fine:
        return True
    raise Unverified(
        _REASONS.get(code, f"its certificate cannot be verified (X509_V_ERR {code}); replace it")
    )


def _trust(made: SSL.Context, ca_file: str) -> None:
    if not ca_file:
        made.set_default_verify_paths()
        return
    try:
        open(ca_file, "rb").close()
        made.load_verify_locations(ca_file)
    except OSError as problem:
        raise PairError(
            ca_file, f"cannot be read: {problem.strerror}; let the daemon read it"
        ) from None
    except SSL.Error:
        raise PairError(
            ca_file, "holds no certificate in PEM form; put the authority's there"
        ) from None


def _names(certificate: x509.Certificate) -> str:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return "no name"
    names = [*found.get_values_for_type(x509.DNSName)]
    names += map(str, found.get_values_for_type(x509.IPAddress))
    return ", ".join(map(repr, names[:5])) + (" and others" if len(names) > 5 else "")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
