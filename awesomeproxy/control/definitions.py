"""Definitions from a command line: what ``site add``, ``backend add`` and ``apply`` send.

They are tables with the configuration file's keys.  Whether they make sense the
daemon says; here it is only put together, from options and from a TOML file,
which may hold the site's table alone or a ``[sites.NAME]`` as in the
configuration.
"""

from __future__ import annotations

import argparse
import json
from typing import Any


class BadDefinition(Exception):
    """A definition that cannot be sent; the message says why and what to do."""


def site(args: argparse.Namespace) -> dict[str, Any]:
    """The parameters of ``site.add``: the file's table, and the options over it.

    :raises BadDefinition: if there is not enough of it, or the file cannot be used.
    """
    if not args.file and not (args.host and args.backend):
        raise BadDefinition("a site needs --host and --backend, or --from FILE.toml")
    definition = _table(args.file, args.name) if args.file else {}
    for key, value in (("hosts", args.host), ("path", args.path), ("backend", args.place)):
        if value is not None:
            definition[key] = value
    if args.backend:
        backends = {name: {"servers": servers} for name, servers in args.backend}
        definition["backends"] = definition.get("backends", {}) | backends
        definition.setdefault("backend", args.backend[0][0])
    return {"name": args.name, "definition": definition}


def sites(args: argparse.Namespace) -> dict[str, Any]:
    """The parameters of ``apply``: all tables ``[sites.NAME]`` of the file.

    :raises BadDefinition: if it cannot be used.
    """
    document = _document(args.file)
    tables = document.pop("sites", {})
    if document:
        raise BadDefinition(
            f"{args.file}: has {', '.join(sorted(document))}; sites are all that is applied, the"
            " rest belongs into the configuration file of each node"
        )
    if not isinstance(tables, dict) or not all(isinstance(each, dict) for each in tables.values()):
        raise BadDefinition(f"{args.file}: sites: is no table; write [sites.NAME]")
    for table in tables.values():
        _check(args.file, table)
    return {"sites": tables, "remove": args.remove}


def backend(args: argparse.Namespace) -> dict[str, Any]:
    """The parameters of ``backend.add``."""
    return {"site": args.site, "name": args.name, "definition": {"servers": args.servers}}


def name_and_servers(text: str) -> tuple[str, list[str]]:
    """``new=http://10.0.0.2:80,http://10.0.0.3:80`` as a name and its URLs.

    :raises argparse.ArgumentTypeError: if it is not written like that.
    """
    name, _, urls = text.partition("=")
    servers = [url for url in urls.split(",") if url]
    if not (name and servers):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no backend; write it as NAME=URL or NAME=URL,URL, "
            "as in new=http://10.0.0.2:8080"
        )
    return name, servers


def _table(path: str, name: str) -> dict[str, Any]:
    document = _document(path)
    if "sites" in document:
        sites = document["sites"]
        if not isinstance(sites, dict) or not isinstance(sites.get(name), dict):
            raise BadDefinition(
                f"{path}: has no table [sites.{name}]; add it, or name another site"
            )
        document = sites[name]
    _check(path, document)
    return document


def _document(path: str) -> dict[str, Any]:
    import tomllib  # most commands need it not, and it takes its time

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as problem:
        raise BadDefinition(
            f"{path}: cannot be read: {problem.strerror}; name a file that exists"
        ) from None
    except (ValueError, RecursionError) as problem:
        raise BadDefinition(f"{path}: is not TOML: {problem}; correct it there") from None


def _check(path: str, table: dict[str, Any]) -> None:
    """Whether a site's table can be sent."""
    try:
        json.dumps(table, allow_nan=False)
    except (TypeError, ValueError):
        raise BadDefinition(
            f"{path}: has a date, a time or a number such as nan; no key of a site takes one"
        ) from None
    if not isinstance(table.get("backends", {}), dict):
        raise BadDefinition(f"{path}: backends: is no table; write [backends.NAME]")
