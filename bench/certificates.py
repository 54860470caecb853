"""One certificate for all servers of a figure, and the terms all are to agree to.

Servers differ in what they prefer, Go's cannot even be told which cipher of TLS 1.3
to take.  So it is the clients that leave no choice: they offer one version, one cipher
and one group, whatever the server.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from bench.processes import HOST

Kind = Literal["P-256", "RSA-2048"]


class Terms(NamedTuple):
    """What a client and a server agree on in a handshake."""

    version: str
    cipher: str
    group: str

    def __str__(self) -> str:
        return ", ".join(self)


TERMS = Terms("TLSv1.3", "TLS_AES_128_GCM_SHA256", "X25519")


def make(kind: Kind, directory: Path) -> Path:
    """Write a key and a certificate for :data:`HOST`, signed by itself, to one PEM file there."""
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if kind == "P-256":
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = directory / f"{kind}.pem"
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return path
