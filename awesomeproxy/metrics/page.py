"""Where the metrics are asked for: ``GET /metrics``, in Prometheus's text format.

What is told of ten thousand sites takes a good second to write.  So the reactor is given
back after each piece; a thread for it would not do, as it would hold the interpreter's lock
for milliseconds each time that the reactor waits for a system call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

log = Logger()

CONNECTIONS = 16  # at one time; what a client has not taken yet of its page is in memory
IDLE = 75  # seconds that a connection without a request may stay: Prometheus asks each minute

Families = Callable[[], Iterator[Metric]]


def site(reactor: Any, families: Families) -> WrappingFactory:
    """What serves the page.

    :param families: what it tells; pieces of one family follow each other.
    """
    root = Resource()  # type: ignore[no-untyped-call]
    root.putChild(b"metrics", Page(reactor, families))
    return _Bounded(
        _Site(  # type: ignore[no-untyped-call]
            root, reactor=reactor, timeout=IDLE, parsePOSTFormSubmission=False
        )
    )


class Page(Resource):
    """``/metrics``."""

    isLeaf = True

    def __init__(self, reactor: Any, families: Families) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reactor = reactor
        self._families = families

    def render_GET(self, request: Request) -> int:
        """Begin to answer; the rest follows in later turns of the reactor."""
        writing = Deferred.fromCoroutine(self._write(request))
        request.notifyFinish().addErrback(lambda _: writing.cancel())
        writing.addErrback(self._failed, request)
        return NOT_DONE_YET

    async def _write(self, request: Any) -> None:
        request.setHeader(b"content-type", CONTENT_TYPE_LATEST.encode())
        before = ""
        for piece in self._families():
            text = generate_latest(_Only(piece))
            request.write(text if piece.name != before else _without_head(text))
            before = piece.name
            await deferLater(self._reactor, 0, lambda: None)
        request.finish()

    def _failed(self, failure: Any, request: Any) -> None:
        if not failure.check(CancelledError):  # the client has gone
            log.failure("the metrics page cannot be written", failure)
            request.loseConnection()  # or what there is would look whole


class _Site(Site):
    """Without a line in the daemon's log for each request."""

    noisy = False

    def log(self, request: Any) -> None:
        """Nothing."""


class _Bounded(WrappingFactory):
    """Has no more than so many connections."""

    noisy = False

    def buildProtocol(self, addr: IAddress) -> ProtocolWrapper | None:  # type: ignore[override]
        if len(self.protocols) >= CONNECTIONS:
            return None
        return super().buildProtocol(addr)


class _Only:
    """What the library takes for all that there is to tell."""

    def __init__(self, piece: Metric) -> None:
        self._piece = piece

    def collect(self) -> list[Metric]:
        return [self._piece]


def _without_head(text: bytes) -> bytes:
    """Samples only: what they are was said before.  A label has no line of its own."""
    return b"".join(line for line in text.splitlines(True) if not line.startswith(b"#"))
