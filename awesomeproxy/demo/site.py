"""The demo's site: every request updates the database.

``POST /update/5`` adds a row for number 5, each time it is asked.  ``PUT /update/5`` is
idempotent: the site remembers by number and applies it once.  A request takes a while;
the update is done in the middle of it, so that a site that dies may have carried out
what it has not acknowledged, as real ones do.

On SIGTERM it stops accepting, finishes what it has begun, and exits.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from awesomeproxy.demo.database import Database

reactor: Any = the_reactor


class Update(Resource):
    """``/update/{n}``."""

    isLeaf = True

    def __init__(self, name: str, database: Database, think: tuple[float, float]) -> None:
        """
        :param name: of this backend, to be put down with each update.
        :param think: the shortest and the longest time that a request takes, in seconds.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._name = name
        self._database = database
        self._think = think
        self._busy = 0
        self._idle: Deferred[None] | None = None

    def render(self, request: Any) -> int | bytes:
        """Begin an update, or say that nothing else is done here."""
        method = request.method.decode("ascii", "replace")
        number = b"".join(request.postpath).decode("ascii", "replace")
        if method not in ("POST", "PUT") or not number.isdecimal():
            request.setResponseCode(405)
            return b"POST or PUT /update/{n}\n"
        self._busy += 1
        half = random.uniform(*self._think) / 2
        reactor.callLater(half, self._apply, request, method, int(number), half)
        return NOT_DONE_YET

    def _apply(self, request: Any, method: str, n: int, half: float) -> None:
        self._database.update(method, n, self._name)
        reactor.callLater(half, self._answer, request, n)

    def _answer(self, request: Any, n: int) -> None:
        if request.channel is not None:  # else the client has left
            request.setHeader(b"content-type", b"text/plain")
            request.write(b"update %d by %b\n" % (n, self._name.encode()))
            request.finish()
        # The answer is sent when the reactor next polls; only then is the work done.
        reactor.callLater(0, self._done)

    def _done(self) -> None:
        self._busy -= 1
        if not self._busy and self._idle is not None:
            self._idle.callback(None)

    def finished(self) -> Deferred[None] | None:
        """Fires when no request is being worked on; nothing if none is."""
        if self._busy:
            self._idle = Deferred()
        return self._idle


class Health(Resource):
    """``/health``: that it answers is what it says."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        """Say so."""
        return b"well\n"


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--think", type=float, nargs=2, default=(0.005, 0.02))
    options = parser.parse_args()
    update = Update(options.name, Database(options.database), tuple(options.think))
    root = Resource()  # type: ignore[no-untyped-call]
    root.putChild(b"update", update)
    root.putChild(b"health", Health())  # type: ignore[no-untyped-call]
    site = Site(root)  # type: ignore[no-untyped-call]
    port = reactor.listenTCP(options.port, site, backlog=1024, interface="127.0.0.1")
    reactor.addSystemEventTrigger("before", "shutdown", port.stopListening)
    reactor.addSystemEventTrigger("before", "shutdown", update.finished)
    reactor.callWhenRunning(print, f"{options.name} is ready", flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
