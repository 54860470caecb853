"""Where requests come in: a Twisted server endpoint, checked before anything listens on it.

The text is handed to Twisted's own parser, with a reactor that opens nothing,
so that all the kinds that Twisted and its plugins know are allowed.  What the
parser raises is meant for programmers; it is put into words here.
"""

from __future__ import annotations

import re
from typing import Any

from awesomeproxy.addresses import socket_path, text_of
from awesomeproxy.quantities import show

_AN_ENDPOINT = (
    'write a Twisted server endpoint, as in "tcp:80", "tcp:8080:interface=127.0.0.1", '
    '"tcp6:80" or "unix:/run/awesomeproxy/http.sock"'
)


def endpoint(value: object) -> str:
    """A Twisted server endpoint, tried on a reactor that opens nothing."""
    text = text_of(value, "an endpoint")
    if not text.isprintable():
        raise ValueError(f"{show(text)} has an unprintable character; {_AN_ENDPOINT}")
    # Here, not above: most who read a configuration or a command have no need of Twisted.
    from twisted.internet.endpoints import serverFromString
    from twisted.internet.protocol import Factory

    reactor = _Reactor()
    try:
        found = serverFromString(reactor, text)  # type: ignore[no-untyped-call]
    except Exception as problem:  # each kind of endpoint, plugins included, raises its own
        fault = _fault_of_endpoint(text, problem)
        raise ValueError(f"{show(text)} {fault}; {_AN_ENDPOINT}") from None
    # Ports are not looked at until an endpoint listens.  The kinds that listen by other
    # means than the reactor (an inherited descriptor, standard input) must not do so here.
    if text.partition(":")[0].lower() in ("tcp", "tcp6", "ssl", "unix"):
        found.listen(Factory())
    if reactor.port is not None and not 0 <= reactor.port < 65536:
        raise ValueError(f"{show(text)} has no port from 0 to 65535; {_AN_ENDPOINT}")
    if reactor.path is not None:
        try:
            socket_path(reactor.path)
        except ValueError as problem:
            raise ValueError(f"{show(text)} has a bad path: {problem}") from None
    return text


def optional_endpoint(value: object) -> str:
    """The same, or empty."""
    return "" if value == "" else endpoint(value)


class _Reactor:
    """Notes what it is asked to listen on.

    Twisted has one like it for tests, which brings its test runner along: a megabyte.
    """

    def __init__(self) -> None:
        self.port: int | None = None
        self.path: object = None

    def listenTCP(self, port: int, *args: Any, **more: Any) -> None:
        self.port = port

    listenSSL = listenTCP

    def listenUNIX(self, address: object, *args: Any, **more: Any) -> None:
        self.path = address


def _fault_of_endpoint(text: str, problem: Exception) -> str:
    """What an endpoint's own exception comes to, said of its text."""
    said = str(problem)
    if match := re.search("Unknown endpoint type: '(.*)'", said):
        return f"is of the unknown kind {show(match[1])}"
    if match := re.search(r"missing .* argument: '(\w+)'", said):
        return f"lacks its {match[1]}"
    if match := re.search(r"unexpected keyword argument '(.*)'", said):
        return f"has {show(match[1])}, which its kind does not know"
    if match := re.search(r"multiple values for argument '(\w+)'", said):
        return f'has two values for {match[1]} (a ":" within a value is written "\\\\:")'
    if match := re.search(r"invalid literal for int\(\) with base [0-9]+: '(.*)'", said):
        return f"has {show(match[1])} where a number belongs"
    if "positional arguments but" in said:
        return 'has too many values (a ":" within a value is written "\\\\:")'
    if text.startswith("systemd:") and isinstance(problem, LookupError):
        return "asks for a socket that systemd has not passed to this process"
    if isinstance(problem, OSError) and problem.filename:
        return f"names {show(str(problem.filename))}, which cannot be read: {problem.strerror}"
    return f"cannot be taken apart ({type(problem).__name__}: {said})"
