"""A certificate that was issued: its file, what is in it, and when the next is due.

The file has the chain and then its key, in PEM.  Its first line says which authority
has issued it (PEM allows text ahead of a block, RFC 7468, section 2): a certificate from
a staging authority is to be replaced once another is configured.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

_ISSUED_BY = "Issued through "


@dataclass(frozen=True, slots=True)
class Certificate:
    """What there is to know of a certificate, but for its key.  Times are unix times."""

    directory: str  # the URL of the authority's directory
    hosts: frozenset[str]
    begins: float
    ends: float

    def due(self, renew_before: float) -> float:
        """When to renew it.

        :param renew_before: seconds before its end; of one that is short-lived, the last
            third of its life is enough.
        """
        return self.ends - min(renew_before, (self.ends - self.begins) / 3)


def to_pem(directory: str, chain: str, key: bytes) -> bytes:
    """The text of a certificate's file.

    :param chain: PEM as the authority has sent it, the certificate for ``key`` first.
    :raise ValueError: that is not what it is.
    """
    certificates = x509.load_pem_x509_certificates(chain.encode())
    blocks = [certificate.public_bytes(Encoding.PEM) for certificate in certificates]
    text = b"".join([f"{_ISSUED_BY}{directory}\n".encode(), *blocks, key])
    from_pem(text)
    return text


def from_pem(text: bytes) -> Certificate:
    """What such a file says.

    :raise ValueError: it is not such a file, or its key is not that of the certificate.
    """
    first, *_ = x509.load_pem_x509_certificates(text)
    key = load_pem_private_key(text[text.rindex(b"-----BEGIN ") :], None)
    if _spki(first.public_key()) != _spki(key.public_key()):
        raise ValueError("the certificate is not for the key")
    says, _, directory = text.partition(b"\n")[0].decode().partition(_ISSUED_BY)
    return Certificate(
        directory.strip() if not says else "",
        frozenset(_hosts(first)),
        first.not_valid_before_utc.timestamp(),
        first.not_valid_after_utc.timestamp(),
    )


def _spki(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _hosts(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]
