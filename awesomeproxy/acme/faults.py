"""What the ``acme`` library and what is below it raise, as an :class:`AcmeError`.

Their texts name objects and pools of connections; an operator wants the authority's own
words, or those of the operating system.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from ssl import SSLError

from acme import errors, messages
from josepy.errors import Error as JoseError
from requests import RequestException, Response

from awesomeproxy.acme.errors import AccountUnknown, AcmeError

# Problems that may be gone when we ask again; all else about an account is to be mended.
_PASSING = ("rateLimited", "serverInternal", "badNonce")


@contextmanager
def translated(url: str, retry_after: str = "", *, account: bool = False) -> Iterator[None]:
    """Raise what comes out of the block as an :class:`AcmeError`.

    :param url: of the authority's directory.
    :param account: the block is about the directory or our account, on which everything
        depends, and not about one order.
    """
    try:
        yield
    except messages.Error as error:
        raise _refusal(error, account) from error
    except errors.IssuanceError as error:
        raise _refusal(error.error, account) from error
    except errors.TimeoutError as error:
        raise AcmeError("the authority has not issued the certificate in time") from error
    except RequestException as error:
        raise _unreachable(url, error) from error
    except (errors.Error, JoseError) as error:
        raise _nonsense(url, error, account) from error


def seconds(retry_after: str) -> float:
    """What a Retry-After field asks for, in seconds from now; 0 if that is nothing usable."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:12])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def words(problem: messages.Error) -> str:
    """A problem document (RFC 7807) in one line."""
    text = f"{problem.detail or problem.title or 'it does not say why'} ({_code(problem)})"
    for part in problem.subproblems or ():
        where = f"{part.identifier.value}: " if part.identifier is not None else ""
        text += f"; {where}{words(part)}"
    return text


def _code(problem: messages.Error) -> str:
    return str(problem.typ).rpartition(":")[2]


def _refusal(problem: messages.Error, account: bool) -> AcmeError:
    code = _code(problem)
    if code == "accountDoesNotExist":
        return AccountUnknown(f"the authority does not know our account: {words(problem)}")
    if code == "userActionRequired":
        remedy = "; see to that as the owner of the account"
        return AcmeError(f"the authority wants you: {words(problem)}{remedy}", common=True)
    if code == "externalAccountRequired":
        remedy = "set eab_key_id and eab_key_file in [acme]"
        return AcmeError(
            f"the authority serves only whom it knows: {words(problem)}; {remedy}",
            common=True,
            lasting=True,
        )
    if code == "rateLimited":
        return AcmeError(f"the authority has had enough: {words(problem)}", common=account)
    if account:
        return AcmeError(
            f"the authority refuses our account: {words(problem)}",
            common=True,
            lasting=code not in _PASSING,
        )
    return AcmeError(f"the authority refuses: {words(problem)}")


def _unreachable(url: str, error: BaseException) -> AcmeError:
    root = error
    while (below := root.__cause__ or root.__context__) is not None:
        root = below
    why = getattr(root, "strerror", None) or str(root)
    if isinstance(root, SSLError):
        why = getattr(root, "verify_message", "") or why
        return AcmeError(
            f"{url}: the authority does not prove who it is: {why}; if it is your own, name"
            " who has signed for it as ca_file in [acme]",
            common=True,
        )
    return AcmeError(f"{url}: the authority cannot be reached: {why}", common=True)


def _nonsense(url: str, error: Exception, account: bool) -> AcmeError:
    said: object = error.args[0] if error.args else error
    if isinstance(said, tuple):  # a response, and why it cannot be read
        said = said[0]
    if not isinstance(said, Response):
        return AcmeError(f"{url}: what the authority says cannot be used: {said}", common=account)
    # One that says "not here" does so for good; one that is overloaded does not.
    return AcmeError(
        f"{said.url}: the authority answers {said.status_code} {said.reason}",
        common=account or said.status_code >= 500,
        lasting=account and 400 <= said.status_code < 500 and said.status_code != 429,
    )
