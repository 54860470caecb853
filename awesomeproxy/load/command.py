"""``awesomeproxy load URL``: sends requests at a constant rate and counts every outcome.

Exit status: 0 if all went as expected, 1 if anything failed, 2 if the run could not
be done as described, 130 if it was interrupted with nothing failed until then.

Importing this module is cheap; Twisted and the packages of the ``load`` extra are
imported once a run is really wanted.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awesomeproxy.load.plan import EXPECTED, Plan, PlanError, parse_statuses

if TYPE_CHECKING:
    from awesomeproxy.load.result import Result

PASSED, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

_SPARE_FILES = 64  # file descriptors needed besides the connections


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("url", metavar="URL", help="{n} in it is the number of the request")
    add = parser.add_argument
    add(
        "--rate",
        type=float,
        default=100.0,
        metavar="N",
        help="requests a second (100); 0: as fast as the connections allow",
    )
    add("--duration", type=float, default=10.0, metavar="SECONDS", help="for how long (10)")
    add("--connections", type=int, default=256, metavar="N", help="open at once, at most (256)")
    add("--method", metavar="NAME", help="GET, or POST if there is a body")
    add(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="with {n}; may be repeated",
    )
    add("--body", default="", metavar="TEXT", help="with {n}; @FILE: what is in the file")
    add(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="of a request, from when it was due (30)",
    )
    add("--expect", metavar="STATUSES", help="such as 200 or 2xx,404 (any 2xx and 3xx)")
    add(
        "--expect-body",
        default="",
        metavar="TEXT",
        help="in each response, with {n}; /.../ is a regular expression",
    )
    add("--unix", default="", metavar="PATH", help="connect to this Unix socket")
    add("--insecure", action="store_true", help="https: accept any certificate")
    add("--json", action="store_true", help="print the result as JSON")
    add(
        "--picture",
        type=Path,
        metavar="FILE",
        help="draw each request's latency over time, .png or .svg",
    )


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the arguments describe.

    :raises PlanError: if they make none.
    """
    body = _body(options.body)
    return Plan(
        url=options.url,
        rate=options.rate,
        duration=options.duration,
        connections=options.connections,
        method=(options.method or ("POST" if body else "GET")).upper(),
        headers=tuple(_header(line) for line in options.header),
        body=body,
        timeout=options.timeout,
        expect=parse_statuses(options.expect) if options.expect else EXPECTED,
        expect_body=options.expect_body,
        unix=options.unix,
        insecure=options.insecure,
    )


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise PlanError(f"--header {line!r} has no colon: write 'Name: value'")
    return name.strip(), value.strip()


def _body(text: str) -> bytes:
    if not text.startswith("@"):
        return text.encode()
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        raise PlanError(f"--body {text}: {error.strerror}") from error


def main(options: argparse.Namespace) -> int:
    """Do the run and print what came of it.

    :returns: the exit status.
    """
    try:
        plan = plan_of(options)
        _check_picture(options.picture)
        _need_files(plan.connections)
        _import_extras(options)
        result = _run(plan)
    except PlanError as error:
        print(f"awesomeproxy load: {error}", file=sys.stderr)
        return WRONG_USE
    except ImportError as error:
        print(
            f"awesomeproxy load: {error.name} is not installed: pip install 'awesomeproxy[load]'",
            file=sys.stderr,
        )
        return WRONG_USE
    return report(result, options)


def report(result: Result, options: argparse.Namespace) -> int:
    """Print a result, and draw it if that is wanted.

    :returns: the exit status.
    """
    from awesomeproxy.load.picture import draw
    from awesomeproxy.load.summary import summary

    print(json.dumps(result.as_json()) if options.json else summary(result))
    if options.picture:
        try:
            draw(result, options.picture)
        except OSError as error:
            print(f"awesomeproxy load: {options.picture}: {error.strerror}", file=sys.stderr)
            return WRONG_USE
    if not result.passed:
        return FAILED
    return INTERRUPTED if result.interrupted else PASSED


def _check_picture(path: Path | None) -> None:
    from awesomeproxy.load.picture import SUFFIXES

    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise PlanError(f"--picture {path}: name a file that ends in .png or .svg")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PlanError(f"--picture {path}: its directory is missing or cannot be written to")


def _need_files(connections: int) -> None:
    """Raise the limit of open files as far as it takes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _SPARE_FILES
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise PlanError(
            f"--connections {connections}: at most {hard - _SPARE_FILES} are possible here "
            "(raise the hard limit of open files, ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _import_extras(options: argparse.Namespace) -> None:
    """Find out before the run what would be missing after it."""
    import hdrh.histogram  # type: ignore[import-untyped]  # noqa: F401

    if sys.stderr.isatty():
        import rich  # noqa: F401
    if options.picture:
        import matplotlib.figure  # noqa: F401


def _run(plan: Plan) -> Result:
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.error import ReactorNotRunning
    from twisted.python.failure import Failure

    from awesomeproxy.load.progress import progress_on
    from awesomeproxy.load.run import Run

    the_reactor: Any = reactor
    display = progress_on(plan, sys.stderr)
    load = Run(reactor, plan, display.update)
    over: Deferred[None] = Deferred()
    failures: list[Failure] = []

    def begin() -> None:
        run = Deferred.fromCoroutine(load.go())
        run.addErrback(failures.append)
        run.addBoth(end)

    def end(_: object) -> None:
        over.callback(None)
        with contextlib.suppress(ReactorNotRunning):  # it is stopping, after Ctrl-C
            the_reactor.stop()

    def interrupt() -> Deferred[None]:
        load.abandon()
        return over

    the_reactor.callWhenRunning(begin)
    the_reactor.addSystemEventTrigger("before", "shutdown", interrupt)
    gc.collect()
    gc.freeze()  # collections during the run need not look at all that was imported
    try:
        the_reactor.run()
    finally:
        display.close()
    for failure in failures:
        failure.raiseException()
    return load.result
