"""A reverse proxy as ``twisted.web.proxy`` makes it, with no access log.

Run as ``python -m bench.webproxy PORT ORIGIN_PORT``.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.interfaces import IReactorCore, IReactorTCP
from twisted.web.http import Request
from twisted.web.proxy import ReverseProxyResource
from twisted.web.server import Site


class QuietSite(Site):
    """A site that writes no access log."""

    def log(self, request: Request) -> None:
        """Do nothing."""


def main() -> None:
    """Serve until a signal ends the process."""
    port, origin = (int(argument) for argument in sys.argv[1:])
    resource = ReverseProxyResource("127.0.0.1", origin, b"")  # type: ignore[no-untyped-call]
    site: Any = QuietSite(resource)  # type: ignore[no-untyped-call]
    IReactorTCP(reactor).listenTCP(port, site, backlog=4096, interface="127.0.0.1")
    IReactorCore(reactor).run()


if __name__ == "__main__":
    main()
