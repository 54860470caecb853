"""What ``twistd awesomeproxy`` and ``twist awesomeproxy`` run.

The configuration is read before the process goes to the background, so that what is
wrong with it is said where it can be seen.  Everything else -- registry, sockets --
begins with the service, in the process that stays.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.usage import Options as BaseOptions

from awesomeproxy import __version__, config
from awesomeproxy.config import ConfigError
from awesomeproxy.control.every import table
from awesomeproxy.control.listening import ControlSocketError
from awesomeproxy.control.render import reloaded
from awesomeproxy.control.server import listen as listen_control
from awesomeproxy.control.text import Style
from awesomeproxy.node import Node
from awesomeproxy.registry.interface import RegistryError
from awesomeproxy.reloading import reload

log = Logger()

# What may stand in the way of a start without a fault of ours: no traceback then.
EXPECTED = (OSError, CannotListenError, ConfigError, ControlSocketError, RegistryError)


class Options(BaseOptions):
    """Options of the ``awesomeproxy`` service."""

    optParameters = (
        ("config", "c", "/etc/awesomeproxy/awesomeproxy.toml", "The configuration file."),
    )

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"awesomeproxy {__version__}")
        raise SystemExit(0)


class NodeService(Service):
    """A node's life, tied to its process: signals, start and stop."""

    name = "awesomeproxy"

    def __init__(self, path: str, settings: Any, reactor: Any) -> None:
        self._reactor = reactor
        self._node = Node(reactor, path, settings)
        self._started: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin; a node that cannot start ends the process with status 1."""
        super().startService()  # type: ignore[no-untyped-call]
        self._reactor.callWhenRunning(self._start)

    def _start(self) -> None:
        self._take_signals()
        self._started = Deferred.fromCoroutine(self._node.start(self._open_control))
        self._started.addCallbacks(lambda _: self._settle(), self._cannot_start)

    def _open_control(self, path: str) -> Deferred[IListeningPort]:
        return listen_control(self._reactor, path, table, self._node)

    def _settle(self) -> None:
        """Spare the garbage collector what stays for good: it costs tens of milliseconds."""
        gc.collect()
        gc.freeze()

    def _cannot_start(self, failure: Failure) -> None:
        log.critical("awesomeproxy cannot start: {why}", why=failure.getErrorMessage())
        if not isinstance(failure.value, EXPECTED):
            log.failure("awesomeproxy cannot start", failure)
        # Twisted ends with 0; this comes after all else, the removal of its pidfile included.
        atexit.register(os._exit, 1)
        if self._reactor.running:
            self._reactor.stop()

    def stopService(self) -> Deferred[None]:
        """Stop accepting, finish what is in flight, answer what is held, and let go."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._node.stop())

    def _take_signals(self) -> None:
        """SIGTERM and SIGINT stop, the second time at once; SIGHUP reloads."""

        def stop(number: int, frame: object) -> None:
            for again in (signal.SIGTERM, signal.SIGINT):
                signal.signal(again, lambda number, frame: os._exit(128 + number))
            self._soon(self._reactor.stop)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, lambda number, frame: self._soon(self._reload))

    def _soon(self, function: Callable[[], object]) -> None:
        self._reactor.callFromThread(function)

    def _reload(self) -> None:
        deferred = Deferred.fromCoroutine(reload(self._node))
        deferred.addCallbacks(
            lambda result: log.info("reloaded: {what}", what=reloaded(result, Style())),
            lambda failure: log.error(
                "not reloaded, nothing has changed: {why}", why=failure.getErrorMessage()
            ),
        )


def makeService(options: Options) -> IService:
    """The service, for the configuration file that the options name.

    :raise SystemExit: the file cannot be used; the message says where and why.
    """
    from twisted.internet import reactor

    # Its timers go by the time of day: if that is set back, none would fire for as long, and the
    # other nodes would take this one for gone.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    path = os.path.abspath(options["config"])
    try:
        settings = config.load(path)
    except config.ConfigError as problem:
        # UsageError would come with a traceback from some of Twisted's runners.
        sys.exit(f"awesomeproxy cannot start: {problem}")
    return NodeService(path, settings, reactor)
