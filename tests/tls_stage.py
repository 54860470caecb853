"""An authority for the tests, the certificates it issues, and handshakes to try them.

The authority lives in one directory of its own and is thrown away with it.  Keys are EC
P-256 unless a test wants RSA; that is made once, as it takes its time.

A handshake is between two ends of a pair of sockets, in one thread: each goes on as far
as it can, in turn, until both are through or have failed.
"""

from __future__ import annotations

import itertools
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

Kind = Literal["ec", "rsa"]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
End = SSL.Connection | ssl.SSLSocket


@dataclass(frozen=True, slots=True)
class Issued:
    """The files of one certificate: its chain and its key."""

    certificate: Path
    key: Path

    def combined(self, path: Path) -> Path:
        """Both in one file."""
        return private(path, self.certificate.read_bytes() + self.key.read_bytes())

    def certbot(self, directory: Path) -> Path:
        """Both in a directory, under the names that certbot gives them."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "fullchain.pem").write_bytes(self.certificate.read_bytes())
        private(directory / "privkey.pem", self.key.read_bytes())
        return directory


class Authority:
    """Signs certificates.

    :param directory: where its files, and those it issues, are written.
    :param above: the authority that has signed this one's certificate; none: itself.
    """

    def __init__(
        self, directory: Path, name: str = "Test Authority", above: Authority | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.name = _name(name)
        self.private_key = ec.generate_private_key(ec.SECP256R1())
        signer = above or self
        self.certificate = (
            _builder(self.name, signer.name, self.private_key, timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(_identifier(self.private_key), critical=False)
            .add_extension(_issuer(signer), critical=False)
            .sign(signer.private_key, hashes.SHA256())
        )
        # What it sends along with what it issues: itself, up to but without the root.
        self.chain: tuple[x509.Certificate, ...] = (
            () if above is None else (self.certificate, *above.chain)
        )
        self.ca_file = directory / f"{name.lower().replace(' ', '-')}.ca"
        self.ca_file.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        self._numbers: itertools.count[int] = (
            itertools.count(1) if above is None else above._numbers
        )

    def subordinate(self, name: str = "Test Subordinate") -> Authority:
        """An authority below this one."""
        return Authority(self.directory, name, self)

    def issue(
        self,
        *names: str,
        days: float = 90,
        key: Kind = "ec",
        path: Path | None = None,
        began: float = 1,
        bits: int = 2048,
    ) -> Issued:
        """A certificate for ``names``, host names and IP addresses.

        :param days: until it ends; less than 0: it has ended.
        :param path: of the certificate; the key is beside it, with the suffix ``.key``.
        :param began: days since it has begun; less than 0: it has not.
        :param bits: of an RSA key.
        """
        private_key = rsa_key(bits) if key == "rsa" else ec.generate_private_key(ec.SECP256R1())
        pem = certificate(self, names, private_key, days, began)
        if path is None:
            path = self.directory / f"issued-{next(self._numbers)}.crt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in (pem, *self.chain)))
        return Issued(path, private(path.with_suffix(".key"), key_pem(private_key)))


class Ends:
    """Two connected sockets that do not block, a client's and a server's."""

    def __init__(self) -> None:
        self.client, self.server = socket.socketpair()
        self._open: list[socket.socket] = [self.client, self.server]
        for sock in self._open:
            sock.setblocking(False)

    def close(self) -> None:
        """Close both, under whatever they have been given."""
        for sock in self._open:
            sock.close()

    def ask(
        self, context: ssl.SSLContext, name: str | None, session: ssl.SSLSession | None = None
    ) -> ssl.SSLSocket:
        """Python's own TLS at the client's end; it asks for ``name``."""
        return self._wrapped(
            context.wrap_socket(
                self.client, server_hostname=name, do_handshake_on_connect=False, session=session
            )
        )

    def answer(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Python's own TLS at the server's end."""
        return self._wrapped(
            context.wrap_socket(self.server, server_side=True, do_handshake_on_connect=False)
        )

    def _wrapped(self, sock: ssl.SSLSocket) -> ssl.SSLSocket:
        self._open.append(sock)
        return sock


def shake(client: End, server: End) -> tuple[Exception | None, Exception | None]:
    """Bring a handshake to its end; return what it failed with, if it did, on either side."""
    waiting = [client, server]
    failures: dict[End, Exception] = {}
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
            except (SSL.WantReadError, ssl.SSLWantReadError):
                continue
            except (SSL.Error, ssl.SSLError) as failure:
                failures[end] = failure
            waiting.remove(end)
    return failures.get(client), failures.get(server)


def client_trust(authority: Authority, *protocols: str) -> ssl.SSLContext:
    """What such a client trusts, and the protocols it offers; it compares no names."""
    context = ssl.create_default_context(cafile=authority.ca_file)
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def certificate(
    authority: Authority, names: Sequence[str], key: Key, days: float, began: float = 1
) -> x509.Certificate:
    """A certificate for ``names`` and the public half of ``key``."""
    builder = _builder(_name("leaf"), authority.name, key, timedelta(days=days), began)
    if names:
        found = x509.SubjectAlternativeName([_general(name) for name in names])
        builder = builder.add_extension(found, critical=False)
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(_issuer(authority), critical=False)
        .sign(authority.private_key, hashes.SHA256())
    )


def _issuer(authority: Authority) -> x509.AuthorityKeyIdentifier:
    """Who has signed it: Python 3.13 believes no chain that does not say so (RFC 5280, 4.2.1.1)."""
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.private_key.public_key())


def key_pem(key: Key) -> bytes:
    """A private key as it is kept in files."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """The one RSA key of all tests."""
    return rsa.generate_private_key(65537, bits)


def private(path: Path, content: bytes) -> Path:
    """Write a file that only its owner can read, in place of one that may be there."""
    fresh = path.with_name(f".{path.name}.fresh")
    with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(content)
    fresh.replace(path)
    return path


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, lasts: timedelta, began: float = 1
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    begins = min(now - timedelta(days=began), now + lasts - timedelta(days=1))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(now + lasts)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _identifier(key: Key) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
