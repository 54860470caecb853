"""What has gone wrong between us and the authority, in words for operators."""

from __future__ import annotations


class AcmeError(Exception):
    """There is no certificate this time; the message says why and what to do."""

    def __init__(
        self,
        message: str,
        *,
        common: bool = False,
        lasting: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        """
        :param common: it would befall every site, not only this one.
        :param lasting: it will not go away by itself.
        :param retry_after: seconds for which the authority wants to be left alone.
        """
        super().__init__(message)
        self.common = common
        self.lasting = lasting
        self.retry_after = retry_after


class AccountUnknown(AcmeError):
    """The authority does not know our account any more."""
