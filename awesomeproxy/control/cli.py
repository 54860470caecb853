"""The ``awesomeproxy`` command: a thin client of the daemon, for people and for scripts.

A command line becomes one request (:mod:`awesomeproxy.control.arguments`), its
answer becomes text (:mod:`awesomeproxy.control.render`) or, with ``--json``, is
printed as it came.  What happened is in the exit status:

0. done;
1. failed and undone: nothing has changed (a daemon that failed inside says so instead);
2. the command line, or a name in it, makes no sense;
3. no daemon answers;
4. done, but: there are ambiguous requests, which may have been carried out or not; or
   after a reload, something is wrong with certificates.

Errors are for people on standard error, ``awesomeproxy: pause blog: ...``; with
``--json`` they are ``{"error": {...}}`` on standard output.  A command that has
been sent goes on in the daemon when this one is interrupted, except ``watch``.
"""

from __future__ import annotations

import argparse
import enum
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from awesomeproxy.control import render
from awesomeproxy.control.arguments import Remote, Usage, parse
from awesomeproxy.control.client import Client, Unreachable
from awesomeproxy.control.definitions import BadDefinition
from awesomeproxy.control.meter import Meter
from awesomeproxy.control.protocol import (
    FAILED,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    RpcError,
)
from awesomeproxy.control.text import Style, clean


class Exit(enum.IntEnum):
    """The exit status."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    DONE_BUT = 4
    INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    :param argv: its words; ``None``: those of the process.
    :returns: the exit status.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        _forgiving(stream)
    try:
        args = parse(words)
    except Usage as problem:
        return _complain("--json" in words, problem.command, _usage(problem))
    except ImportError as problem:
        message = f"{problem}; install awesomeproxy[load]"
        return _complain("--json" in words, words[0], RpcError(INVALID_PARAMS, message))
    except SystemExit as end:  # --help
        return int(end.code or 0)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    site = getattr(args, "site", None) or getattr(args, "name", None)
    about = " ".join(filter(None, (args.command, site)))
    try:
        if "main" in args:
            return int(args.main(args))
        if "local" in args:
            return _check(args) if args.local == "check" else _version(args)
        return _ask(args, args.remote)
    except Usage as problem:
        return _complain("json" in args and args.json, about, _usage(problem))
    except BadDefinition as problem:
        return _complain(args.json, about, RpcError(INVALID_PARAMS, str(problem)))
    except (RpcError, Unreachable) as error:
        return _complain(args.json, about, error)
    except KeyboardInterrupt:
        if "remote" in args and args.command != "watch":
            goes_on = "interrupted here, but it goes on in the daemon: see `awesomeproxy status`"
            print(f"\nawesomeproxy: {about}: {goes_on}", file=sys.stderr)
        return Exit.INTERRUPTED
    except BrokenPipeError:  # `awesomeproxy watch | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE


def _ask(args: argparse.Namespace, remote: Remote) -> int:
    if remote.question and not args.yes:
        _confirm(remote.question.format(**vars(args)))
    style = _style(sys.stdout)
    meter: Meter | None = None
    if not args.json and sys.stderr.isatty():
        meter = Meter(sys.stderr, _style(sys.stderr))

    def notified(method: str, params: dict[str, Any]) -> None:
        if method == "event":
            print(json.dumps(params) if args.json else render.event(params, style), flush=True)
        elif meter is not None:
            meter.tell(params)

    with Client(args.control, remote.timeout) as client:
        try:
            result = client.call(remote.method, remote.params(args), notified)
        finally:
            if meter is not None:
                meter.close()
    status = _outcome(result)
    try:
        if args.command != "watch":
            print(json.dumps(result) if args.json else _shown(remote, result, style), flush=True)
    except BrokenPipeError:  # that no one reads it does not change what was done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if status is Exit.DONE_BUT and result.get("ambiguous") and not args.json:
        print(
            f"awesomeproxy: {args.command} {args.site}: {result['ambiguous']} requests are "
            "ambiguous: they may have been carried out; see the access log for which",
            file=sys.stderr,
        )
    return status


def _confirm(question: str) -> None:
    """Go on if the answer is yes."""
    if not sys.stdin.isatty():
        raise Usage("", f"{question} If so, say it with --yes")
    if input(f"{question} [yes/no] ").strip() != "yes":
        raise Usage("", "nothing was done, since the answer was not yes")


def _shown(remote: Remote, result: Any, style: Style) -> str:
    try:
        return remote.show(result, style)
    except (AttributeError, KeyError, TypeError):
        # A daemon of another version has done it all the same: show its answer as it came.
        return json.dumps(result, indent=2)


def _outcome(result: Any) -> Exit:
    if not isinstance(result, Mapping):
        return Exit.DONE
    if result.get("outcome") == "rolled back" or result.get("problems"):
        return Exit.FAILED
    return Exit.DONE_BUT if result.get("ambiguous") or result.get("warnings") else Exit.DONE


def _check(args: argparse.Namespace) -> int:
    from awesomeproxy import (  # heavier than a command that asks a daemon can afford
        checking,
        config,
    )

    result: dict[str, Any] = {"file": args.file, "problems": [], "warnings": []}
    try:
        settings = config.load(args.file)
        result |= {
            "sites": len(settings.sites),
            "databases": len(settings.databases),
            "filesystems": len(settings.filesystems),
            "listeners": len(settings.listen),
        }
        result["warnings"] = [f"{args.file}: {doubt}" for doubt in checking.doubts(settings)]
    except config.ConfigError as error:
        result["problems"] = list(error.problems)
    is_bad = bool(result["problems"])
    if args.json:
        print(json.dumps(result))
    else:
        stream = sys.stderr if is_bad else sys.stdout
        print(render.check(result, _style(stream)), file=stream)
    return Exit.FAILED if is_bad else Exit.DONE


def _version(args: argparse.Namespace) -> int:
    from awesomeproxy import __version__

    print(json.dumps({"version": __version__}) if args.json else f"awesomeproxy {__version__}")
    return Exit.DONE


def _complain(as_json: bool, about: str, error: RpcError | Unreachable) -> int:
    if isinstance(error, Unreachable):
        status, found = Exit.UNREACHABLE, {"code": None, "message": str(error)}
    else:
        is_usage = error.code in (INVALID_PARAMS, METHOD_NOT_FOUND)
        status, found = Exit.USAGE if is_usage else Exit.FAILED, error.as_json()
    if as_json:
        print(json.dumps({"error": found}))
        return status
    lines = clean(found["message"])
    if isinstance(error, RpcError):
        usage = (error.data or {}).get("usage")
        placement = (error.data or {}).get("winner")
        if placement:
            lines += f" ({render.winner(placement)})"
        if error.code == FAILED:
            lines += "; nothing has changed"
        if usage:
            lines += f"\n{usage}"
    print(": ".join(filter(None, ("awesomeproxy", about, lines))), file=sys.stderr)
    return status


def _usage(problem: Usage) -> RpcError:
    data = {"usage": problem.usage.strip()} if problem.usage else None
    return RpcError(INVALID_PARAMS, str(problem), data)


def _style(stream: IO[str]) -> Style:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return Style(colour=stream.isatty() and not plain)


def _forgiving(stream: Any) -> None:
    # A name that the terminal's encoding lacks is no reason to show nothing.
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
