"""``awesomeproxy demo``: see a site move under load, and believe it.

Exit status: 0 if no request failed and every update was carried out exactly once,
1 if not, or if something did not start; 2 if it cannot be played as described; 130 if it
was interrupted.

Importing this module is cheap; Twisted and the packages of the ``load`` extra are
imported once the demo is really wanted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awesomeproxy.demo.script import DEMO, FILM, REFERENCE, Script, changed

if TYPE_CHECKING:
    from awesomeproxy.demo.report import Report
    from awesomeproxy.demo.show import Show

PASSED, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

_FILES = 8192  # file descriptors that the clients' connections may need


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add = parser.add_argument
    add(
        "--reference",
        action="store_true",
        help="the reference run: 3 minutes of requests of 3 seconds, a migration every 15",
    )
    add(
        "--picture",
        type=Path,
        metavar="FILE",
        help="where each request's latency is drawn, .png or .svg (out/demo.png)",
    )
    add(
        "--animate",
        type=Path,
        metavar="FILE.svg",
        help="play it so slowly that requests can be watched one by one, and draw that",
    )
    add("--rate", type=_positive, metavar="N", help=f"requests a second ({DEMO.rate:g})")
    add("--migrations", type=_count, metavar="N", help=f"how many ({DEMO.migrations})")
    add("--every", type=_positive, metavar="SECONDS", help=f"one each ({DEMO.every:g})")
    add("--kills", type=_count, metavar="N", help=f"under traffic ({DEMO.kills})")
    add("--json", action="store_true", help="print the report as JSON")


def script_of(options: argparse.Namespace) -> Script:
    """The script that the arguments ask for."""
    script = REFERENCE if options.reference else FILM if options.animate else DEMO
    return changed(
        script,
        rate=options.rate,
        migrations=options.migrations,
        every=options.every,
        kills=options.kills,
    )


def main(options: argparse.Namespace) -> int:
    """Play it, print what came of it, and return the exit status."""
    name = "reference" if options.reference else "demo"
    picture: Path = options.picture or Path("out") / f"{name}.png"
    try:
        _check(options, picture)
        return _main(options, picture)
    except ImportError as error:
        _complain(f"{error.name} is not installed: pip install 'awesomeproxy[load]'")
    except (OSError, ValueError) as error:
        _complain(str(error))
    return WRONG_USE


def _check(options: argparse.Namespace, picture: Path) -> None:
    """Find out before the performance what would be missing after it."""
    import hdrh.histogram  # type: ignore[import-untyped]  # noqa: F401
    import matplotlib.figure  # noqa: F401

    if options.reference and options.animate:
        raise ValueError("--reference and --animate are two different runs: name one")
    for option, path, suffixes in (
        ("--picture", picture, (".png", ".svg")),
        ("--animate", options.animate, (".svg",)),
    ):
        if path is None:
            continue
        if path.suffix.lower() not in suffixes:
            raise ValueError(f"{option} {path}: name a file that ends in {' or '.join(suffixes)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ValueError(f"{option} {path}: its directory cannot be written to")


def _main(options: argparse.Namespace, picture: Path) -> int:
    from awesomeproxy.demo.show import Show

    _allow_files()
    show = Show(sys.stderr if options.json else sys.stdout)
    script = script_of(options)
    try:
        report = _perform(script, show)
    except Exception as problem:
        _complain(str(problem) or repr(problem))
        return FAILED
    finally:
        show.close()
    if report is None:
        return INTERRUPTED
    _draw(report, options, picture)
    if options.json:
        print(json.dumps(report.as_json()))
    else:
        print(f"picture: {picture}")
        print(report.summary())
    return PASSED if report.passed else FAILED


def _perform(script: Script, show: Show) -> Report | None:
    """Play a script in a reactor of its own; nothing is returned if it was interrupted."""
    from twisted.internet import reactor
    from twisted.internet.defer import CancelledError, Deferred
    from twisted.internet.error import ReactorNotRunning
    from twisted.python.failure import Failure

    from awesomeproxy.demo.children import ChildFailed
    from awesomeproxy.demo.play import Performance
    from awesomeproxy.demo.stage import Stage

    the_reactor: Any = reactor
    over: Deferred[None] = Deferred()
    reports: list[Report] = []
    failures: list[Failure] = []
    deaths: list[ChildFailed] = []
    plays: list[Deferred[Report]] = []

    def died(problem: ChildFailed) -> None:
        deaths.append(problem)
        plays[0].cancel()

    async def perform() -> Report:
        stage = Stage(reactor, script.think, died)
        try:
            show.say("a daemon, two backends and a database are started ...")
            await stage.start()
            return await Performance(reactor, script, stage, show).play()
        finally:
            await stage.close()

    def begin() -> None:
        play = Deferred.fromCoroutine(perform())
        plays.append(play)
        play.addCallbacks(reports.append, failures.append)
        play.addBoth(end)

    def end(_: object) -> None:
        over.callback(None)
        with contextlib.suppress(ReactorNotRunning):  # it is stopping, after Ctrl-C
            the_reactor.stop()

    def interrupt() -> Deferred[None]:
        plays[0].cancel()
        return over

    the_reactor.callWhenRunning(begin)
    the_reactor.addSystemEventTrigger("before", "shutdown", interrupt)
    the_reactor.run()
    for death in deaths:
        raise death
    for failure in failures:
        if isinstance(failure.value, CancelledError):
            return None
        failure.raiseException()
    return reports[0]


def _draw(report: Report, options: argparse.Namespace, picture: Path) -> None:
    from awesomeproxy.load.picture import draw

    draw(report.as_one(), picture, report.title)
    report.picture = str(picture)
    if options.animate:
        from awesomeproxy.demo.animation import animation

        options.animate.write_text(animation(report.acts[0], report.ledgers))


def _allow_files() -> None:
    """Raise the limit of open files as far as needed, or as far as it goes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _complain(message: str) -> None:
    print(f"awesomeproxy demo: {message}", file=sys.stderr)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no count; write a number from 0")
    return int(text)
