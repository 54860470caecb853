"""Certificates obtained and renewed for the sites that want them (RFC 8555).

An *authority* issues a certificate to whoever proves that a host is theirs: it names a
token, and looks whether ``http://HOST/.well-known/acme-challenge/TOKEN`` answers with
what only the holder of the account's key can say (HTTP-01).  The proxy answers that
itself, ahead of any site, so it works while a site is held, or nowhere at all.

:mod:`.keeper` knows which sites want a certificate and when the next is due;
:mod:`.order` brings one order to its end; :mod:`.authority` speaks with the authority,
in threads (:mod:`.threads`), because the ``acme`` library waits for its answers;
:mod:`.store` keeps the account and the certificates on disk.
"""
