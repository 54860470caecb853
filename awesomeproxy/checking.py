"""What is doubtful about a configuration, though a daemon would start with it.

A file that is wrong in itself is refused (:mod:`awesomeproxy.config`).  Here is looked at
what it names: files that are not there, or that this user cannot use, and settings that
work and are hardly meant.  Only the files are read, and nothing is opened towards others.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from awesomeproxy.model import Settings, Site
from awesomeproxy.tls.certificates import Certificates
from awesomeproxy.tls.pairs import PairError
from awesomeproxy.tls.verifying import client_context


def doubts(settings: Settings) -> Iterator[str]:
    """What is doubtful, one line each: ``KEY: what it is; what to do``.  Reads files."""
    issued = Path(settings.state_dir) / "acme" / "certificates"
    certificates = Certificates(settings.tls, (str(issued),))
    certificates.take(certificates.read())
    for problem in certificates.problems:
        yield problem if problem.startswith("tls.") else f"tls.certificates: {problem}"
    yield from _of_node(settings)
    yield from _of_cluster(settings)
    yield from _of_acme(settings)
    for site in settings.sites.values():
        yield from unverified(site)
        yield from _of_servers(site)


def unverified(site: Site) -> Iterator[str]:
    """The backends of a site whose servers nobody verifies."""
    for backend in site.backends.values():
        if not backend.tls.verify:
            yield (
                f"sites.{site.name}.backends.{backend.name}.tls.verify: is false: whoever answers"
                " there is believed and gets the requests; name who has signed in tls.ca_file"
            )


def _of_node(settings: Settings) -> Iterator[str]:
    log = settings.access_log
    if log not in ("", "-"):
        place = log if os.path.exists(log) else os.path.dirname(log)
        if not os.access(place, os.W_OK):
            yield f"node.access_log: {log} cannot be written; create {place}, or let us write there"
    for name, reach in settings.nodes.items():
        if reach.config:
            yield from _readable(f"nodes.{name}.config", reach.config)


def _of_cluster(settings: Settings) -> Iterator[str]:
    cluster = settings.cluster
    if cluster is None:
        return
    for key in ("password_file", "sentinel_password_file"):
        if path := getattr(cluster, key):
            yield from _readable(f"cluster.{key}", path)
            if os.path.exists(path) and os.stat(path).st_mode & stat.S_IROTH:
                yield f"cluster.{key}: {path} can be read by others; say: chmod 600 {path}"
    for key, path in (
        ("ca_file", cluster.ca_file),
        ("certificate", cluster.certificate),
        ("key", cluster.key),
    ):
        if path:
            yield from _readable(f"cluster.tls.{key}", path)
    if cluster.master and len(cluster.addresses) == 1:
        yield "cluster.redis: is one Sentinel; name all of them, or nobody finds a new master"


def _of_acme(settings: Settings) -> Iterator[str]:
    acme = settings.acme
    if acme is None:
        return
    for key in ("ca_file", "eab_key_file"):
        if path := getattr(acme, key):
            yield from _readable(f"acme.{key}", path)
    if not any(site.tls.acme for site in settings.sites.values()):
        yield "acme: no site has certificates issued; write tls.acme = true for one"
        if find_spec("acme") is None:
            yield "acme: the acme library is missing; pip install 'awesomeproxy[acme]'"
    if all(listen.tls for listen in settings.listen):
        yield (
            "acme: the authority asks for its proof without TLS, but all listeners have it;"
            ' add one with endpoint = "tcp:80"'
        )


def _of_servers(site: Site) -> Iterator[str]:
    for backend in site.backends.values():
        server = next((server for server in backend.servers if server.tls), None)
        if server is None:
            continue
        key = f"sites.{site.name}.backends.{backend.name}.tls"
        # That nobody is verified is told elsewhere; here it would only be logged.
        quiet = replace(backend, tls=replace(backend.tls, verify=True))
        try:
            client_context(quiet, server)
        except PairError as problem:
            yield f"{key}: {problem}"


def _readable(key: str, path: str) -> Iterator[str]:
    try:
        open(path, "rb").close()
    except OSError as problem:
        yield f"{key}: {path} cannot be read: {problem.strerror}; create it, or let us read it"
