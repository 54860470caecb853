"""What is kept on disk: our account with each authority, and the certificates.

::

    state_dir/acme/accounts/HOST-HASH.json    the account with one authority, and its key
    state_dir/acme/certificates/SITE.pem      chain and key of a site's certificate
    state_dir/acme/retired/SITE.pem           the same, of a site that wants none at present

A file is written beside its place, flushed to the disk and then moved there, so that at
any moment the old one or the new one is whole.  Nobody but the daemon's user may read
any of it.  A site that is taken away and comes back soon gets its certificate back:
authorities count how many they issue.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm

from awesomeproxy.acme.certificate import Certificate, from_pem, to_pem
from awesomeproxy.acme.errors import AcmeError

_UNUSABLE = (ValueError, TypeError, UnsupportedAlgorithm)  # by which cryptography says so
_SPACE = 16 * 1024  # bytes that a certificate takes, and then some
_NEW = ".new"  # the end of the name of a file that is being written


@dataclass(frozen=True, slots=True)
class Account:
    """Who we are to an authority."""

    directory: str  # the URL of its directory
    key: str = field(repr=False)  # PEM
    url: str = ""  # of the account; empty: not registered yet
    email: str = ""  # that the authority has been told


class Store:
    """The files, below one directory.  Its methods block for as long as the disk does."""

    def __init__(self, path: Path) -> None:
        """
        :param path: of the directory; it is made when there is something to keep.
        """
        self.path = path
        self.certificates = path / "certificates"
        self._accounts = path / "accounts"
        self._retired = path / "retired"

    def prepare(self) -> None:
        """See that a certificate could be kept: authorities count those they issue.

        :raise AcmeError: it could not.
        """
        probe = self.certificates / f"probe{_NEW}"
        self._write(probe, bytes(_SPACE))
        probe.unlink()

    # Accounts

    def account(self, directory: str) -> Account | None:
        """Our account with an authority, if there is one.

        :raise AcmeError: there is one, but it cannot be read.
        """
        path = self._account_path(directory)
        try:
            account = Account(**json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise AcmeError(
                f"{path}: is not an account: {error}; move it away, and a new one is registered",
                common=True,
                lasting=True,
            ) from None
        return account

    def save_account(self, account: Account) -> None:
        """Keep our account with an authority.

        :raise AcmeError: it cannot be written.
        """
        self._write(self._account_path(account.directory), json.dumps(asdict(account)).encode())

    def _account_path(self, directory: str) -> Path:
        digest = sha256(directory.encode()).hexdigest()[:16]
        return self._accounts / f"{urlsplit(directory).hostname}-{digest}.json"

    # Certificates

    def file(self, site: str) -> Path:
        """Where the certificate of a site is, if there is one."""
        return self.certificates / _name(site)

    def certificate(self, site: str) -> Certificate | None:
        """What there is for a site; one that had been retired is in use again.

        :raise AcmeError: there is one, but it cannot be read.
        """
        path = self.file(site)
        try:
            if not path.exists():
                (self._retired / path.name).rename(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AcmeError(f"{path}: cannot be used: {error}") from None
        return _read(path)[1]

    def save_certificate(self, site: str, directory: str, chain: str, key: bytes) -> Certificate:
        """Keep a site's new certificate.

        :param chain: PEM, as it came from the authority; ``key`` likewise, of ours.
        :raise AcmeError: it is not for that key, or cannot be written.
        """
        try:
            text = to_pem(directory, chain, key)
        except _UNUSABLE as error:
            raise AcmeError(f"what the authority has issued cannot be used: {error}") from None
        self._write(self.file(site), text)
        return from_pem(text)

    def copy(self, source: str, site: str) -> Certificate:
        """Keep one site's certificate for another site, too.

        :raise AcmeError: it cannot be read or written.
        """
        text, found = _read(self.file(source))
        self._write(self.file(site), text)
        return found

    def retire(self, site: str) -> None:
        """Take a site's certificate out of use."""
        with suppress(FileNotFoundError):  # there is none
            self._retired.mkdir(mode=0o700, exist_ok=True)
            self.file(site).rename(self._retired / _name(site))

    def tidy(self, sites: Collection[str], now: float) -> None:
        """Retire the certificates of all but ``sites``; remove what nobody will need again.

        :param now: unix time.
        """
        kept = set(map(_name, sites))
        for path in self.path.glob(f"*/*{_NEW}"):  # a crash has left it behind
            path.unlink()
        if self.path.exists():
            self._retired.mkdir(mode=0o700, exist_ok=True)
        for path in self.certificates.glob("*.pem"):
            if path.name not in kept:
                path.rename(self._retired / path.name)
        for path in self._retired.glob("*.pem"):
            try:
                over = from_pem(path.read_bytes()).ends < now
            except _UNUSABLE:
                over = True
            if over:
                path.unlink()

    def _write(self, path: Path, text: bytes) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for directory in (self.path, path.parent):  # parents are made with the umask
                directory.chmod(0o700)
            descriptor, new = tempfile.mkstemp(suffix=_NEW, prefix=path.name, dir=path.parent)
            try:
                with open(descriptor, "wb") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(descriptor)
                os.replace(new, path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(new)
                raise
            _flush(path.parent)
        except OSError as error:
            raise AcmeError(
                f"{path}: cannot be written: {error.strerror}; make room for it, and see that"
                " the daemon's user may write there",
                common=True,
            ) from None


def _read(path: Path) -> tuple[bytes, Certificate]:
    try:
        text = path.read_bytes()
        return text, from_pem(text)
    except (OSError, *_UNUSABLE) as error:
        raise AcmeError(f"{path}: cannot be used: {error}") from None


def _name(site: str) -> str:
    # A directory with a file fullchain.pem would be taken for certbot's, with one
    # certificate.  No other site can be called "fullchain+".
    return f"{site}.pem" if site != "fullchain" else "fullchain+.pem"


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
