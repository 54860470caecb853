"""One order, from its first request to the chain of a new certificate.

Every request to the authority is made in a thread; what lies between them is done in the
reactor, the challenges among it: they are there from before the authority is told until
it has looked, or the order has come to any other end.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from ipaddress import ip_address
from typing import Any

from acme.crypto_util import make_csr
from acme.messages import AuthorizationResource
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from twisted.internet.task import deferLater

from awesomeproxy.acme.authority import Authority, challenge_of, fault_of, pending
from awesomeproxy.acme.errors import AcmeError
from awesomeproxy.acme.store import Account, Store
from awesomeproxy.acme.threads import Threads
from awesomeproxy.addresses import is_address
from awesomeproxy.model import Acme

PROVE = 300.0  # seconds until the authority should have looked at every proof
FIRST_LOOK = 0.25  # seconds until we look whether it has; then twice as many each time ...
SLOWEST_LOOK = 10.0  # ... but no more, whatever Retry-After says


class Order:
    """A certificate for some hosts, under way."""

    def __init__(
        self,
        reactor: Any,
        threads: Threads,
        authority: Authority,
        challenges: MutableMapping[bytes, bytes],
        hosts: Iterable[str],
    ) -> None:
        """
        :param authority: one that is open.
        :param challenges: what is served, by path, whichever site is asked for.
        """
        self._reactor = reactor
        self._threads = threads
        self._authority = authority
        self._challenges = challenges
        self._hosts = tuple(hosts)

    async def bring(self) -> tuple[str, bytes]:
        """The chain and its key, both in PEM.

        :raise AccountUnknown: the account is to be registered anew; nothing was asked of it.
        :raise AcmeError: there is no certificate.
        """
        key, csr = await self._threads.call(request_for, self._hosts)
        order = await self._threads.call(self._authority.order, csr)
        await self._prove([each for each in order.authorizations if pending(each)])
        return await self._threads.call(self._authority.issue, order), key

    async def _prove(self, authorizations: list[AuthorizationResource]) -> None:
        wanted = [challenge_of(each) for each in authorizations]
        proofs = dict(self._authority.proof(challenge) for challenge in wanted)
        self._challenges.update(proofs)
        try:
            for challenge in wanted:
                await self._threads.call(self._authority.answer, challenge)
            looked_at = await self._looked_at(authorizations)
        finally:
            for path in proofs:
                self._challenges.pop(path, None)
        faults = [fault for fault in map(fault_of, looked_at) if fault]
        if faults:
            raise AcmeError(f"the authority has not found the proof: {'; '.join(faults)}")

    async def _looked_at(
        self, authorizations: list[AuthorizationResource]
    ) -> list[AuthorizationResource]:
        """The same, when the authority has made up its mind about each."""
        waited, pause = 0.0, FIRST_LOOK
        done = []
        for each in authorizations:
            now, asked = await self._threads.call(self._authority.look, each)
            while pending(now):
                if waited > PROVE:
                    host = each.body.identifier.value
                    raise AcmeError(f"{host}: the authority has not looked in {PROVE:g} s")
                wait = min(max(pause, asked), SLOWEST_LOOK)
                await deferLater(self._reactor, wait)
                waited += wait
                pause *= 2
                now, asked = await self._threads.call(self._authority.look, each)
            done.append(now)
        return done


def enter(acme: Acme, store: Store) -> Authority:
    """A conversation with the authority, as the account of ours that is kept.  Blocks.

    :raise AcmeError: there is none to be had; nothing was ordered.
    """
    store.prepare()
    account = store.account(acme.directory)
    if account is None:
        # Kept before it is used: who forgets it in between is known by it again.
        account = Account(acme.directory, new_key().decode())
        store.save_account(account)
    authority = Authority(acme, account)
    try:
        known = authority.open()
        if known != account:
            store.save_account(known)
    except BaseException:
        authority.close()
        raise
    return authority


def new_key() -> bytes:
    """A new key on the curve P-256, in PEM."""
    key = generate_private_key(SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def request_for(hosts: Iterable[str]) -> tuple[bytes, bytes]:
    """A new key, and a request for a certificate of it, both in PEM."""
    key = new_key()
    names = [host for host in hosts if not is_address(host)]
    addresses = [ip_address(host) for host in hosts if is_address(host)]
    return key, make_csr(key, names, ipaddrs=addresses)
