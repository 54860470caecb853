"""A new certificate, with all that this takes: the library, the account, and one order.

The ``acme`` library is an extra, and takes its time to be imported; nothing of it is
before a certificate is wanted.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from awesomeproxy.acme.errors import AccountUnknown, AcmeError
from awesomeproxy.acme.store import Store
from awesomeproxy.acme.threads import Threads
from awesomeproxy.model import Acme

NO_LIBRARY = "certificates need the acme library; pip install 'awesomeproxy[acme]'"

Challenges = MutableMapping[bytes, bytes]


async def obtain(
    reactor: Any,
    threads: Threads,
    acme: Acme,
    store: Store,
    challenges: Challenges,
    hosts: tuple[str, ...],
) -> tuple[str, bytes]:
    """The chain of a new certificate and its key, both in PEM.

    An account that the authority has forgotten is registered anew, with the same key.

    :param challenges: what is served, by path, whichever site is asked for.
    :raise AcmeError: there is none.
    """
    try:
        return await _order(reactor, threads, acme, store, challenges, hosts)
    except AccountUnknown:
        account = await threads.call(store.account, acme.directory)
        if account is not None:
            await threads.call(store.save_account, replace(account, url=""))
        return await _order(reactor, threads, acme, store, challenges, hosts)


async def _order(
    reactor: Any,
    threads: Threads,
    acme: Acme,
    store: Store,
    challenges: Challenges,
    hosts: tuple[str, ...],
) -> tuple[str, bytes]:
    try:
        await threads.call(import_module, "awesomeproxy.acme.order")
    except ImportError:
        raise AcmeError(NO_LIBRARY, common=True, lasting=True) from None
    from awesomeproxy.acme.order import Order, enter  # it is there by now

    authority = await threads.call(enter, acme, store)
    try:
        return await Order(reactor, threads, authority, challenges, hosts).bring()
    finally:
        authority.close()
