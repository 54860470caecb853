"""A certificate with its chain and its private key, as they are read from files.

Whatever is wrong with them is found here, before a client meets it: each key signs
something that its certificate has to confirm, each certificate of a chain must have
signed the one before it, and a key that others can read is refused.  A problem is one
line that names the file, what is wrong with it and what to do.  Nothing that a key file
contains ever gets into such a line.

A key may be read by its owner alone (0600, 0400).  The one exception is what packages
of distributions do: a key owned by root that a group may read, too, which this process
is a member of (0640 root:ssl-cert).
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from OpenSSL import SSL

PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)

MAX_FILE: Final = 1024 * 1024  # bytes; a long chain has ten thousand
_KEY: Final = re.compile(
    rb"-----BEGIN (?P<what>[A-Z0-9 ]*PRIVATE KEY)-----.+?-----END (?P=what)-----", re.DOTALL
)
_PROOF: Final = b"whoever signs this has the key of the certificate"


class PairError(Exception):
    """A pair that cannot be used: the file, what is wrong with it, what to do.

    :param path: of the file.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A certificate that can be used, for its key is here as well."""

    source: str  # the file of the chain
    chain: tuple[x509.Certificate, ...]  # its own certificate first, then who has signed it
    key: PrivateKey = field(repr=False)
    names: frozenset[str]  # host names, wildcards and IP addresses it is for; lower case
    begins: float  # unix time
    ends: float  # unix time

    def same(self, other: Pair) -> bool:
        """Whether the certificates, and therefore the keys, are the same."""
        return self.chain == other.chain


def read_pair(certificate: str, key: str = "") -> Pair:
    """Read a certificate and its key.

    :param certificate: the PEM file of the chain.
    :param key: the PEM file of the key; empty: the same.
    :raise PairError: it cannot be used.
    """
    content, status = _read(certificate)
    chain = _chain(certificate, content)
    names, begins, ends = _about(certificate, chain[0])
    if key:
        content, status = _read(key)
    found = _private_key(key or certificate, content, beside=not key)
    check_mode(key or certificate, status)
    if not _fits(found, chain[0]):
        raise PairError(
            key or certificate,
            f"the private key is not that of the certificate in {certificate};"
            " put the two that belong together there",
        )
    return Pair(certificate, chain, found, names, begins, ends)


def unusable(pair: Pair, problem: SSL.Error) -> PairError:
    """What to say of a pair that OpenSSL does not take, for example because it is too weak."""
    errors = problem.args[0] if problem.args else ()
    why = f" ({errors[-1][-1]})" if errors else ""
    return PairError(
        pair.source, f"is nothing OpenSSL would use{why}; make a key of EC P-256 or RSA 2048 for it"
    )


def _read(path: str) -> tuple[bytes, os.stat_result]:
    try:
        # A FIFO would never end, and not even open, without O_NONBLOCK.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(number, "rb") as file:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):
                raise PairError(path, "is not a file; name a PEM file, or a directory of them")
            content = file.read(MAX_FILE + 1)
    except OSError as problem:
        raise PairError(
            path, f"cannot be read: {problem.strerror}; let the daemon read it, or remove it"
        ) from None
    if len(content) > MAX_FILE:
        raise PairError(
            path, f"is larger than {MAX_FILE} bytes; a certificate is not, name another file"
        )
    return content, status


def _chain(path: str, content: bytes) -> tuple[x509.Certificate, ...]:
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise PairError(path, "holds no certificate in PEM form; put one there, or remove the file")
    try:
        chain = tuple(x509.load_pem_x509_certificates(content))
    except ValueError:
        raise PairError(
            path, "holds a certificate that cannot be parsed; write the file anew"
        ) from None
    for number, (certificate, signer) in enumerate(pairwise(chain), 1):
        try:
            certificate.verify_directly_issued_by(signer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            raise PairError(
                path,
                f"certificate {number} of the chain was not signed by certificate {number + 1};"
                " put the server's own first, then who has signed it, and so on, and no others",
            ) from None
    return chain


def _about(path: str, certificate: x509.Certificate) -> tuple[frozenset[str], float, float]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        names: list[str] = []
    except ValueError:
        raise PairError(path, "its names cannot be parsed; have it issued again") from None
    else:
        names = [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]
        names += map(str, extension.value.get_values_for_type(x509.IPAddress))
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return frozenset(names), begins.timestamp(), ends.timestamp()


def _private_key(path: str, content: bytes, beside: bool) -> PrivateKey:
    blocks = list(_KEY.finditer(content))
    if not blocks:
        where = ", and there is no key file beside it" if beside else ""
        raise PairError(
            path, f"holds no private key in PEM form{where}; put the certificate's there"
        )
    if len(blocks) > 1:
        raise PairError(
            path, f"holds {len(blocks)} private keys; leave that of the certificate there"
        )
    block = blocks[0].group()
    if b"ENCRYPTED" in block:
        raise PairError(path, "the private key is encrypted; store it without a passphrase")
    try:
        # That it signs what its certificate confirms tells more than OpenSSL's own checks
        # of RSA keys, and is a hundred times faster.
        key = serialization.load_pem_private_key(block, None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise PairError(path, "the private key cannot be parsed; write the file anew") from None
    if not isinstance(key, PrivateKey):
        raise PairError(
            path, "the private key is of a kind that TLS does not use; make one of EC P-256 or RSA"
        )
    return key


def check_mode(path: str, status: os.stat_result) -> None:
    """Whether only those can read a private key who should.

    :raise PairError: others can.
    """
    mode = stat.S_IMODE(status.st_mode)
    if not mode & 0o077:
        return
    ours = status.st_gid in (os.getegid(), *os.getgroups())
    if not mode & 0o037 and status.st_uid == 0 and ours:
        return
    who = "everybody" if mode & 0o007 else "its group"
    raise PairError(
        path, f"holds a private key and is open to {who} (mode {mode:04o}); chmod 600 {path}"
    )


def _fits(key: PrivateKey, certificate: x509.Certificate) -> bool:
    digest = hashes.SHA256()
    try:
        public = certificate.public_key()
        match key, public:
            case rsa.RSAPrivateKey(), rsa.RSAPublicKey():
                proof = key.sign(_PROOF, padding.PKCS1v15(), digest)
                public.verify(proof, _PROOF, padding.PKCS1v15(), digest)
            case ec.EllipticCurvePrivateKey(), ec.EllipticCurvePublicKey():
                proof = key.sign(_PROOF, ec.ECDSA(digest))
                public.verify(proof, _PROOF, ec.ECDSA(digest))
            case ed25519.Ed25519PrivateKey(), ed25519.Ed25519PublicKey():
                public.verify(key.sign(_PROOF), _PROOF)
            case ed448.Ed448PrivateKey(), ed448.Ed448PublicKey():
                public.verify(key.sign(_PROOF), _PROOF)
            case _:
                return False
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
