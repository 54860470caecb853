"""What can be typed after ``awesomeproxy``, and which request it becomes.

Each command line that is for the daemon is parsed into a :class:`Remote`: the
method, the parameters and how to show the result.  ``--control`` and ``--json``
are taken before and after the command's name.  The parsers of ``load`` and
``demo`` are other modules' business, and heavy: they are asked only when that
is the command.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, NoReturn

from awesomeproxy import quantities
from awesomeproxy.control import definitions, nodetext, render
from awesomeproxy.control.text import Style

CONTROL_DEFAULT: Final = "/run/awesomeproxy/control.sock"
CONTROL_VARIABLE: Final = "AWESOMEPROXY_CONTROL"
ELSEWHERE: Final = {
    "load": ("awesomeproxy.load.command", "send load and report each answer that was not right"),
    "demo": ("awesomeproxy.demo.command", "run a small site here and move it under load"),
}
EPILOG: Final = """\
exit status:
  0  done
  1  failed and undone: nothing has changed
  2  the command line, or a name in it, makes no sense
  3  no daemon answers
  4  done, but there are ambiguous requests; reload: but certificates are wrong"""
ANSWER_TIMEOUT: Final = 60.0  # seconds without a word, for commands that do not wait for traffic


class Usage(Exception):
    """A command line that makes no sense.

    :param command: the words of the command, as far as they are known.
    :param usage: how it is written.
    """

    def __init__(self, command: str, message: str, usage: str = "") -> None:
        super().__init__(message)
        self.command = command
        self.usage = usage


@dataclass(frozen=True, slots=True)
class Remote:
    """A command for the daemon."""

    method: str
    params: Callable[[argparse.Namespace], Mapping[str, Any]]
    show: Callable[[Any, Style], str]
    timeout: float | None = ANSWER_TIMEOUT  # of silence, in seconds
    question: str = ""  # to be answered with yes before it is sent, unless --yes is given


class Parser(argparse.ArgumentParser):
    """An argument parser that raises :class:`Usage` instead of ending the process."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` together with how the command is written."""
        raise Usage(self.prog.partition(" ")[2], message, self.format_usage())


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The namespace of a command line.

    It has ``command`` (its words), ``control``, ``json`` and either ``remote``
    (:class:`Remote`), ``local`` (``"check"``, ``"version"``) or ``main`` (another module's).

    :raises Usage: if it makes no sense.
    """
    control = os.environ.get(CONTROL_VARIABLE) or CONTROL_DEFAULT
    parser = Parser(
        prog="awesomeproxy",
        description="Pause, move and watch the sites of an AwesomeProxy daemon.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_common(control, False)],
    )
    commands = _Commands(parser)
    _traffic(commands)
    _definitions(commands)
    _nodes(commands)
    _others(commands)
    chosen = _chosen(argv)
    for name, (module, help) in ELSEWHERE.items():
        leaf = commands.leaf(name, help)
        if name == chosen:
            found = import_module(module)
            found.add_arguments(leaf)
            # In place of its own --json, which would undo one before the command's name.
            leaf.add_argument(
                "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
            )
            leaf.set_defaults(main=found.main)
    args = parser.parse_args(argv)
    if "remote_of_one" in args and args.site is not None:
        args.remote = args.remote_of_one
    return args


class _Pairs(argparse.Action):
    """Collects ``NAME=VALUE`` words in a dict, each name once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        found = dict(getattr(namespace, self.dest) or {})
        for word in values:
            name, sign, value = word.partition("=")
            if not (name and sign and value):
                parser.error(f"{option_string}: {word!r} is not {self.metavar}")
            if name in found:
                parser.error(f"{option_string}: {name} is named twice; say once where it goes")
            found[name] = value
        setattr(namespace, self.dest, found)


class _Commands:
    """Adds commands to a parser; each takes the common options, too."""

    def __init__(self, parser: argparse.ArgumentParser, prefix: str = "") -> None:
        self._prefix = prefix
        self._parsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def leaf(self, name: str, help: str, **defaults: Any) -> Parser:
        """A command; ``defaults`` are put into its namespace."""
        parser = self._parsers.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            parents=[_common(argparse.SUPPRESS, argparse.SUPPRESS)],
            conflict_handler="resolve",  # `load` and `demo` may have options of the same names
        )
        parser.set_defaults(command=self._prefix + name, **defaults)
        return parser

    def branch(self, name: str, help: str) -> _Commands:
        """A command that consists of commands."""
        return _Commands(self._parsers.add_parser(name, help=help), f"{name} ")


def _common(control: str, json: Any) -> Parser:
    common = Parser(add_help=False)
    common.add_argument(
        "--control",
        metavar="PATH",
        default=control,
        help=f"the daemon's control socket (${CONTROL_VARIABLE}; {CONTROL_DEFAULT})",
    )
    common.add_argument("--json", action="store_true", default=json, help="print JSON, for scripts")
    return common


def _traffic(commands: _Commands) -> None:
    status = commands.leaf(
        "status",
        "show every site, or one in detail",
        remote=Remote("status", _given("site"), render.status),
        remote_of_one=Remote("status", _given("site"), render.site_details),
    )
    _site(status, optional=True)

    pause = commands.leaf(
        "pause",
        "hold a site's requests; done when nothing of it is in flight",
        remote=Remote(
            "pause", _given("site", "force", "timeout", "deadline", "then"), render.receipt, None
        ),
    )
    _site(pause)
    pause.add_argument(
        "--force", action="store_true", help="cut what is still in flight at the timeout"
    )
    _duration(pause, "--timeout", None, "how long requests in flight may take to finish")
    _duration(pause, "--for", None, "how long the hold may last", dest="deadline")
    pause.add_argument(
        "--then", choices=("refuse", "resume"), help="what the end of --for does with the site"
    )

    resume = commands.leaf(
        "resume",
        "let a site's requests go on",
        remote=Remote("resume", _given("site"), render.resumed),
    )
    _site(resume)

    migrate = commands.leaf(
        "migrate",
        "move a site to another of its backends",
        remote=Remote(
            "migrate",
            _given("site", "to", "databases", "dry_run", "max_pause", "force"),
            render.migration,
            None,
        ),
    )
    _site(migrate)
    migrate.add_argument("--to", metavar="BACKEND", required=True, help="where it goes")
    migrate.add_argument(
        "--with",
        dest="databases",
        nargs="+",
        action=_Pairs,
        metavar="DATABASE=BACKEND",
        help="a database that goes along, and where to",
    )
    migrate.add_argument("--dry-run", action="store_true", help="say what would be done")
    _duration(migrate, "--max-pause", 20.0, "how long its requests may be held")
    migrate.add_argument(
        "--force", action="store_true", help="cut what is still in flight when time is up"
    )

    abort = commands.leaf(
        "abort",
        "call off a migration; works until it has committed",
        remote=Remote("abort", _given("site"), render.aborted, None),
    )
    _site(abort)

    for name, help in (
        ("mounted", "say that a filesystem is mounted on a node, to be served from there"),
        ("unmounted", "say that a filesystem is not mounted on a node any more"),
    ):
        told = commands.leaf(
            name, help, remote=Remote(name, _given("filesystem", "node"), render.mounted)
        )
        told.add_argument("filesystem", metavar="FILESYSTEM")
        told.add_argument("--node", metavar="NODE", required=True, help="which node")

    watch = commands.leaf(
        "watch",
        "print what happens, as it happens",
        remote=Remote("watch", _given("site"), render.nothing, None),
    )
    _site(watch, optional=True)

    migrations = commands.leaf(
        "migrations",
        "show what was moved, and what that did to requests",
        remote=Remote("migrations", _given("site", "limit"), render.history),
    )
    _site(migrations, optional=True)
    migrations.add_argument("--limit", type=_positive, metavar="N", help="the last N only")


def _definitions(commands: _Commands) -> None:
    site = commands.branch("site", "add, remove or show sites")
    add = site.leaf(
        "add",
        "add a site, without a restart",
        remote=Remote("site.add", definitions.site, render.changed("added")),
    )
    add.add_argument("name", metavar="NAME")
    add.add_argument(
        "--host", nargs="+", action="extend", metavar="H", help="names it is asked for by"
    )
    add.add_argument(
        "--backend",
        nargs="+",
        action="extend",
        type=definitions.name_and_servers,
        metavar="NAME=URL[,URL...]",
        help="a place that can serve it, by its servers",
    )
    add.add_argument("--path", metavar="/x", help="only what is under this path")
    add.add_argument("--place", metavar="BACKEND", help="the backend it starts on")
    add.add_argument(
        "--from", dest="file", metavar="FILE.toml", help="the site's table; options go before it"
    )
    for name, help, show in (
        ("remove", "remove a site that was added by command", render.changed("removed")),
        ("show", "print a site's definition as TOML", render.definition),
    ):
        leaf = site.leaf(name, help, remote=Remote(f"site.{name}", _given(name="site"), show))
        _site(leaf)

    backend = commands.branch("backend", "add or remove a site's backends")
    add = backend.leaf(
        "add",
        "add a backend that a site can be moved to",
        remote=Remote("backend.add", definitions.backend, render.changed("added")),
    )
    _site(add)
    add.add_argument("name", metavar="NAME")
    add.add_argument("servers", nargs="+", metavar="URL")
    remove = backend.leaf(
        "remove",
        "remove a backend on which the site is not",
        remote=Remote("backend.remove", _given("site", "name"), render.changed("removed")),
    )
    _site(remove)
    remove.add_argument("name", metavar="NAME")

    apply = commands.leaf(
        "apply",
        "have the sites that a file says, all of them or none",
        remote=Remote("apply", definitions.sites, render.applied, None),
    )
    apply.add_argument("file", metavar="FILE.toml")
    apply.add_argument("--remove", action="store_true", help="remove the sites it does not say")


def _nodes(commands: _Commands) -> None:
    node = commands.branch("node", "show, empty, fence or forget the nodes of the cluster")
    node.leaf(
        "list",
        "show every node, and the registry that they share",
        remote=Remote("node.list", _given(), nodetext.listing),
    )
    drain = node.leaf(
        "drain",
        "move everything away that stands on a node",
        remote=Remote(
            "node.drain",
            _given("to", "at_once", "max_pause", "dry_run", node="name"),
            nodetext.drained,
            None,
        ),
    )
    _node(drain)
    drain.add_argument("--to", metavar="NODE", help="where to, if there is more than one other")
    drain.add_argument(
        "--at-once", type=_positive, metavar="N", default=1, help="how many migrations at a time"
    )
    _duration(drain, "--max-pause", 20.0, "how long requests of each may be held")
    drain.add_argument("--dry-run", action="store_true", help="say what would be moved")
    fence = node.leaf(
        "fence",
        "have nothing wait for a node that is off for certain",
        remote=Remote(
            "node.fence",
            _given("force", node="name"),
            nodetext.fenced,
            question="Pauses will not wait for {name} any more. If it still runs, it breaks their"
            " promises. Is it off?",
        ),
    )
    _node(fence)
    fence.add_argument("--yes", action="store_true", help="it is off; do not ask")
    fence.add_argument("--force", action="store_true", help="even if its last word is recent")
    remove = node.leaf(
        "remove",
        "forget a node that has left or was fenced",
        remote=Remote("node.remove", _given(node="name"), nodetext.removed),
    )
    _node(remove)


def _others(commands: _Commands) -> None:
    commands.leaf(
        "reload",
        "read the configuration file again",
        remote=Remote("reload", _given(), render.reloaded),
    )
    commands.leaf(
        "certificates",
        "show the certificates, when they expire and what is wrong with them",
        remote=Remote("certificates", _given(), render.certificates),
    )
    check = commands.leaf("check", "say whether a configuration file is fine", local="check")
    check.add_argument("file", metavar="FILE")
    commands.leaf("version", "print the version", local="version")


def _chosen(argv: Sequence[str]) -> str:
    words = iter(argv)
    for word in words:
        if word == "--control":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return ""


def _site(parser: Parser, optional: bool = False) -> None:
    parser.add_argument("site", metavar="SITE", nargs="?" if optional else None)


def _node(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE")


def _duration(
    parser: Parser, option: str, default: float | None, help: str, dest: str | None = None
) -> None:
    parser.add_argument(
        option,
        type=_seconds,
        default=default,
        metavar="TIME",
        dest=dest or option[2:].replace("-", "_"),
        help=f"{help}, as 20s, 250ms or 5m",
    )


_read_duration = quantities.duration()


def _seconds(text: str) -> float:
    try:
        amount: object = float(text)
    except ValueError:
        amount = text
    try:
        return _read_duration(amount)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; write a number from 1")
    return int(text)


def _given(*same: str, **renamed: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    # The parameters of these names, and of those whose name on the command line is another.
    names = {name: name for name in same} | renamed

    def params(args: argparse.Namespace) -> dict[str, Any]:
        values = {name: getattr(args, source) for name, source in names.items()}
        return {name: value for name, value in values.items() if value is not None}

    return params
