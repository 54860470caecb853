"""The authority, as our account sees it.  Every method blocks, and is for a thread.

The library's ways are kept where they do: its client makes the requests, signs them and
takes a problem document for an exception.  Added are what it leaves out: a nonce that is
refused more than once (RFC 8555, section 6.5), the wait a refusal asks for, and words
for operators (:mod:`.faults`).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from acme import challenges, errors, messages
from acme.client import ClientNetwork, ClientV2
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from josepy.b64 import b64decode
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC
from requests import Response

from awesomeproxy import __version__
from awesomeproxy.acme.errors import AcmeError
from awesomeproxy.acme.faults import seconds, translated, words
from awesomeproxy.acme.store import Account
from awesomeproxy.model import Acme

NETWORK = 20  # seconds for a connection, and between the bytes of an answer
ISSUE = 90.0  # seconds the authority may take to issue what has been proved
ROUNDS = 5  # of two nonces each, that may all be refused by accident


class Network(ClientNetwork):
    """The library's network, more patient about nonces, and with an ear for Retry-After."""

    def __init__(self, key: JWK, ca_file: str) -> None:
        super().__init__(key, alg=ES256, user_agent=f"awesomeproxy/{__version__}", timeout=NETWORK)
        if ca_file:
            self.verify_ssl: Any = ca_file  # as requests takes it
        self.retry_after = ""
        self.session.hooks["response"].append(self._came)

    def post(self, *args: Any, **kwargs: Any) -> Response:
        """As the library does, which is content with two nonces, several times."""
        for _ in range(ROUNDS - 1):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)

    def _came(self, response: Response, *args: Any, **kwargs: Any) -> None:
        self.retry_after = response.headers.get("Retry-After", "")


class Authority:
    """A conversation with the authority."""

    client: ClientV2

    def __init__(self, acme: Acme, account: Account) -> None:
        """
        :param account: who we are; it may have no URL yet.
        :raise AcmeError: a file that ``acme`` names cannot be used.
        """
        self._acme = acme
        if acme.ca_file:
            _check_ca(acme.ca_file)
        key = _account_key(account.key)
        self._key = JWKEC(key=key)
        self._account = account
        self._network = Network(self._key, acme.ca_file)

    def close(self) -> None:
        """Let go of the connections."""
        self._network.session.close()

    def open(self) -> Account:
        """Learn where everything is, and become known if we are not yet.

        :return: the account, with its URL.
        :raise AcmeError: that is not possible.
        """
        with self._translated(account=True):
            directory = ClientV2.get_directory(self._acme.directory, self._network)
            for key in ("newNonce", "newAccount", "newOrder"):
                if key not in directory.to_partial_json():
                    raise AcmeError(
                        f"{self._acme.directory}: is not the directory of an authority: it does"
                        f" not say {key}; correct directory in [acme]",
                        common=True,
                        lasting=True,
                    )
            self.client = ClientV2(directory, self._network)
            account = self._account
            if not account.url:
                return replace(account, url=self._register(), email=self._acme.email)
            known = messages.RegistrationResource(uri=account.url, body=messages.Registration())
            self._network.account = known
            if account.email != self._acme.email:
                self.client.update_registration(known, self._contact(messages.Registration))
                return replace(account, email=self._acme.email)
            return account

    def _register(self) -> str:
        if self.client.external_account_required() and not self._acme.eab_key_id:
            raise messages.Error.with_code(
                "externalAccountRequired", detail="it asks for an external account"
            )
        binding = None
        if self._acme.eab_key_id:
            binding = messages.ExternalAccountBinding.from_data(
                self._key.public_key(),
                self._acme.eab_key_id,
                _eab_key(self._acme.eab_key_file),
                self.client.directory,
            )
        new = self._contact(
            messages.NewRegistration,
            terms_of_service_agreed=self._acme.terms_agreed,
            external_account_binding=binding,
        )
        try:
            url: str = self.client.new_account(new).uri
        except errors.ConflictError as error:  # it has known the key from before
            url = error.location
            self._network.account = messages.RegistrationResource(uri=url, body=new)
        return url

    def _contact(self, kind: Any, **more: Any) -> Any:
        email = self._acme.email
        return kind.from_data(contact=(f"mailto:{email}",) if email else (), **more)

    def order(self, csr: bytes) -> messages.OrderResource:
        """Ask for a certificate; what is to be proved comes with the answer.

        :raise AccountUnknown: the account is to be registered anew.
        :raise AcmeError: there will be none.
        """
        with self._translated():
            return self.client.new_order(csr)

    def proof(self, challenge: messages.ChallengeBody) -> tuple[bytes, bytes]:
        """The path that is to be served for a challenge, and the body to serve there."""
        chall = challenge.chall
        assert isinstance(chall, challenges.HTTP01)
        return chall.path.encode(), chall.validation(self._key).encode()

    def answer(self, challenge: messages.ChallengeBody) -> None:
        """Say that the proof is there.

        :raise AcmeError: that cannot be said.
        """
        with self._translated():
            self.client.answer_challenge(challenge, challenge.chall.response(self._key))

    def look(
        self, authorization: messages.AuthorizationResource
    ) -> tuple[messages.AuthorizationResource, float]:
        """How far the authority is with it, and in how many seconds to look again.

        :raise AcmeError: it cannot be asked.
        """
        with self._translated():
            now, response = self.client.poll(authorization)
            return now, seconds(response.headers.get("Retry-After", ""))

    def issue(self, order: messages.OrderResource) -> str:
        """The chain, in PEM, once everything is proved.

        :raise AcmeError: there is none.
        """
        with self._translated():
            deadline = datetime.now() + timedelta(seconds=ISSUE)
            chain: str = self.client.finalize_order(order, deadline).fullchain_pem
            return chain

    @contextmanager
    def _translated(self, *, account: bool = False) -> Iterator[None]:
        self._network.retry_after = ""
        try:
            with translated(self._acme.directory, account=account):
                yield
        except AcmeError as error:
            error.retry_after = seconds(self._network.retry_after)
            raise


def challenge_of(authorization: messages.AuthorizationResource) -> messages.ChallengeBody:
    """The challenge we can meet.

    :raise AcmeError: it is not among those that are offered.
    """
    for challenge in authorization.body.challenges:
        if isinstance(challenge.chall, challenges.HTTP01):
            return challenge
    host = authorization.body.identifier.value
    raise AcmeError(f"the authority does not take a proof over HTTP (http-01) for {host}")


def fault_of(authorization: messages.AuthorizationResource) -> str:
    """Why an authorization is not valid, in the authority's words; empty if it is."""
    body = authorization.body
    if body.status == messages.STATUS_VALID:
        return ""
    said = [words(each.error) for each in body.challenges if each.error is not None]
    return f"{body.identifier.value}: {'; '.join(said) or f'its proof is {body.status.name}'}"


def pending(authorization: messages.AuthorizationResource) -> bool:
    """Whether something is still to be proved, or being looked at."""
    status = authorization.body.status
    return status in (messages.STATUS_PENDING, messages.STATUS_PROCESSING)


def _check_ca(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # SSLError is one
        raise AcmeError(
            f"acme.ca_file: {path}: cannot be used: {error.strerror}; name a PEM file with the"
            " certificate of who has signed for the authority's server",
            common=True,
            lasting=True,
        ) from None


def _account_key(pem: str) -> EllipticCurvePrivateKey:
    with suppress(ValueError, TypeError):
        key = load_pem_private_key(pem.encode(), None)
        if isinstance(key, EllipticCurvePrivateKey):
            return key
    raise AcmeError(
        "the key of our account cannot be used; move its file in state_dir/acme/accounts away,"
        " and a new one is registered",
        common=True,
        lasting=True,
    )


def _eab_key(path: str) -> str:
    try:
        key = "".join(Path(path).read_text().split())
        b64decode(key)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "is not base64url"
        raise AcmeError(
            f"acme.eab_key_file: {path}: {why}; name the file of the key that the authority"
            " has given you for the external account",
            common=True,
            lasting=True,
        ) from None
    return key
