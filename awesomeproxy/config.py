"""The configuration file: TOML in, :class:`~awesomeproxy.model.Settings` out.

This is the vocabulary: one shape per table, one line per key; what keys say of
each other is checked in :mod:`awesomeproxy.consistency`.  Defaults are those of
:mod:`awesomeproxy.model`: a key that is not in the file is not passed on.
Everything that is wrong with a file is told at once, in one
:class:`ConfigError`, and nothing of such a file is used.

Sites and backends that are added by a command come as JSON tables with the same
keys, through :func:`site_from_table` and :func:`backend_from_table`.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from awesomeproxy import addresses, consistency, model
from awesomeproxy.clusters import CLUSTER
from awesomeproxy.databases import DATABASE, SERVICE
from awesomeproxy.endpoints import endpoint, optional_endpoint
from awesomeproxy.migrate.steps import WHAT
from awesomeproxy.model import Backend, Filesystem, Settings, Site
from awesomeproxy.movers.kind import Kind
from awesomeproxy.movers.reading import ByMover, anything
from awesomeproxy.quantities import choice, count, duration, flag, size, status_range
from awesomeproxy.shapes import Named, Several, Shape, Spot

T = TypeVar("T")
_TOML_POSITION = re.compile(r"(.*) \(at (.*)\)", re.DOTALL)
_NODE_DEFAULTS = {
    "state_dir": "/var/lib/awesomeproxy",
    "control": "/run/awesomeproxy/control.sock",
    "access_log": "",
}
_HELD = {"max_requests": "max_held", "max_bytes": "max_held_bytes"}  # of node.hold


class ConfigError(Exception):
    """A configuration that cannot be used, with everything that is wrong with it.

    ``problems`` has one line for each: ``FILE: KEY.PATH: what was wrong; what to do``.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def load(path: str) -> Settings:
    """The settings in the file ``path``.

    Raises :class:`ConfigError` if it cannot be read, or cannot be used.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
    except UnicodeDecodeError as problem:
        line = problem.object.count(b"\n", 0, problem.start) + 1
        raise ConfigError([f"{path}: line {line}: is not UTF-8; save the file as UTF-8"]) from None
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
        why = getattr(problem, "strerror", None) or str(problem)
        raise ConfigError(
            [f"{path}: cannot be read: {why}; name a file that exists and that you may read"]
        ) from None
    with uncollected():
        return parse(text, path)


@contextmanager
def uncollected() -> Iterator[None]:
    """Do not look for garbage meanwhile: there is next to none in what is read and kept.

    With ten thousand sites a third of the time went into looking through them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def parse(text: str, source: str) -> Settings:
    """The settings in ``text``; ``source`` is what errors call it.

    Raises :class:`ConfigError` if it cannot be used.
    """
    import pickle
    import tomllib  # not above: those who read only the tables of commands do without it

    try:
        # What tomllib uses up on its way lies between the parts of what it returns, and could not
        # be given back.  So that is put down elsewhere: 60 MB less with ten thousand sites.
        packed = pickle.dumps(tomllib.loads(text))
    except tomllib.TOMLDecodeError as problem:
        match = _TOML_POSITION.fullmatch(str(problem))
        said, where = match.groups() if match else (str(problem), "somewhere")
        raise ConfigError([f"{source}: {where}: is not TOML: {said}; correct it there"]) from None
    except RecursionError:
        raise ConfigError([f"{source}: is nested too deeply; remove some brackets"]) from None
    except ValueError:  # the one that tomllib lets through is of int()
        raise ConfigError([f"{source}: has a number with too many digits; shorten it"]) from None
    spot = Spot(source)
    return _used(_FILE.read(pickle.loads(packed), spot), spot)


def site_from_table(name: str, table: Mapping[str, object], source: str) -> Site:
    """The site ``name`` that ``table`` defines, as ``[sites.NAME]`` does in the file.

    ``source`` is what errors call the table.  Raises :class:`ConfigError`.
    """
    spot = Spot(source)
    return _used(Named(_SITE).read_one(name, table, spot.at("sites").at(name)), spot)


def backend_from_table(name: str, table: Mapping[str, object], source: str) -> Backend:
    """The backend ``name`` that ``table`` defines, as ``[sites.SITE.backends.NAME]`` does.

    ``source`` is what errors call the table.  Raises :class:`ConfigError`.
    """
    spot = Spot(source)
    return _used(Named(_BACKEND).read_one(name, table, spot.at("backends").at(name)), spot)


def _used(made: T | None, spot: Spot) -> T:
    """What was ``made``, if nothing was wrong with it."""
    if spot.marred or made is None:
        raise ConfigError(spot.lines())
    return made


def _settings(
    listen: tuple[model.Listen, ...],
    sites: Mapping[str, Site] | None = None,
    node: Mapping[str, Any] | None = None,
    **others: Any,
) -> Settings:
    fields = {"name": os.uname().nodename, **_NODE_DEFAULTS, **(node or {})}
    held = {_HELD[key]: limit for key, limit in fields.pop("hold", {}).items()}
    return Settings(listen=listen, sites=sites or {}, **fields, **held, **others)


_NETWORKS = Several(addresses.network, 'a list, as in ["10.0.0.0/8"]', empty=True)

_CERTIFICATES = Several(
    addresses.absolute_path, 'a list, as in ["/etc/awesomeproxy/certificates"]', empty=True
)

_HEALTH = Shape(
    model.HealthCheck,
    {
        "path": addresses.request_path,
        "host": addresses.host_header,
        "interval": duration(),
        "timeout": duration(),
        "rise": count(),
        "fall": count(),
        "status": status_range,
    },
)

_BACKEND = Shape(
    Backend,
    {
        "servers": Several(addresses.server, 'a list, as in ["http://10.0.0.1:8080"]'),
        "balance": choice("round_robin", "least_connections"),
        "health": _HEALTH,
        "max_fails": count(),
        "fail_timeout": duration(),
        "max_idle": count(zero=True),
        "idle_timeout": duration(),
        "tls": Shape(
            model.ServerTls,
            {
                "verify": flag,
                "ca_file": addresses.some_path,
                "name": addresses.server_name,
                "sni": addresses.sni_name,
                "certificate": addresses.some_path,
                "key": addresses.some_path,
            },
            check=consistency.check_server_tls,
        ),
        "send_proxy": choice("", "v1", "v2"),
        "node": addresses.optional_name,
        "service": SERVICE,
    },
    needed={"servers": ()},
    check=consistency.check_backend,
)

_SITE = Shape(
    Site,
    {
        "hosts": Several(addresses.host_name, 'a list, as in ["example.com"]'),
        "path": addresses.path_prefix,
        "backend": addresses.name,
        "backends": Named(_BACKEND),
        "hold": Shape(
            model.HoldLimits,
            {"max_requests": count(), "max_bytes": size(), "max_time": duration()},
        ),
        "timeouts": Shape(
            model.SiteTimeouts,
            {
                "connect": duration(),
                "response": duration(),
                "tunnel": duration(),
                "websocket": duration(),
            },
        ),
        "retry": Shape(model.Retry, {"attempts": count(), "budget": duration(zero=True)}),
        "ramp": Shape(model.Ramp, {"start": count(zero=True), "double_every": duration()}),
        "drain": Shape(model.Drain, {"time": duration(zero=True), "tunnels": duration(zero=True)}),
        "bypass": Shape(
            model.Bypass,
            {
                "networks": _NETWORKS,
                "header": addresses.header_name,
                "secret": addresses.secret,
            },
            check=consistency.check_bypass,
        ),
        "access": Shape(model.Access, {"allow": _NETWORKS, "deny": _NETWORKS}),
        "tls": Shape(
            model.SiteTls,
            {
                "redirect": flag,
                "hsts": duration(zero=True, years=10),
                "hsts_subdomains": flag,
                "acme": flag,
            },
            check=consistency.check_site_tls,
        ),
        "filesystem": addresses.optional_name,
        "uses": Several(addresses.name, 'a list, as in ["shop"]', empty=True),
        "max_body": size(zero=True),
        "max_in_flight": count(),
        "reuse_unsafe": duration(zero=True),
    },
    needed={"hosts": (), "backend": "", "backends": {}},
    check=consistency.check_site,
)

_LISTEN = Shape(
    model.Listen,
    {
        "endpoint": endpoint,
        "tls": flag,
        "http2": flag,
        "h2c": flag,
        "max_streams": count(),
        "proxy_protocol": _NETWORKS,
        "max_per_client": count(zero=True),
        "trusted_proxies": _NETWORKS,
        "max_head": size(),
        "max_target": size(),
        "max_headers": count(),
        "body_rate": size(zero=True),
        "write_rate": size(zero=True),
        "timeouts": Shape(
            model.ListenTimeouts,
            {
                "handshake": duration(),
                "head": duration(),
                "body": duration(),
                "idle": duration(),
                "write": duration(),
            },
        ),
    },
    needed={"endpoint": ""},
    check=consistency.check_listen,
)

_NODE = Shape(
    dict[str, Any],
    {
        "name": addresses.name,
        "state_dir": addresses.absolute_path,
        "control": addresses.socket_path,
        "access_log": addresses.log_path,
        "metrics": optional_endpoint,
        "drain_time": duration(zero=True),
        "max_connections": count(),
        "hold": Shape(dict[str, int], {"max_requests": count(), "max_bytes": size()}),
    },
)

_TLS = Shape(
    model.Tls,
    {
        "certificates": _CERTIFICATES,
        "default": addresses.server_name,
        "check_every": duration(),
    },
)

_ACME = Shape(
    model.Acme,
    {
        "directory": addresses.https_url,
        "email": addresses.email,
        "terms_agreed": flag,
        "ca_file": addresses.some_path,
        "renew_before": duration(),
        "eab_key_id": addresses.visible,
        "eab_key_file": addresses.some_path,
    },
    needed={"directory": ""},
    check=consistency.check_acme,
)

_HOOK = Shape(
    model.Hook,
    {
        "step": choice(*WHAT),
        "when": choice("before", "after"),
        "command": addresses.command,
        "time": duration(),
        "only": Several(
            addresses.placed_name, 'a list, as in ["blog", "database:shop"]', empty=True
        ),
    },
    needed={"step": "", "command": ()},
    check=consistency.check_hook,
)

_REACH = Shape(model.Reach, {"ssh": addresses.ssh_destination, "config": addresses.some_path})


def _filesystem(
    name: str, mover: str, node: str, on: Mapping[str, Any], mount_point: bool, options: Any = None
) -> Filesystem:
    return Filesystem(name, mover, node, on, options, mount_point)


def _filesystem_shape(kind: Kind | None) -> Shape[Filesystem]:
    known: dict[str, Any] = {"mover": addresses.name, "node": addresses.name, "mount_point": flag}
    # Without a mover nobody knows which keys there are.
    parts: dict[str, Any] = {"on": anything, "options": anything}
    if kind is not None:
        parts = {"on": Named(kind.place, told=False), "options": kind.options}
    return Shape(
        partial(_filesystem, mount_point=kind is not None and kind.mount_point),
        known | parts,
        needed={"mover": "", "node": "", "on": {}},
        check=consistency.check_filesystem,
    )


_FILE = Shape(
    _settings,
    {
        "node": _NODE,
        "cluster": CLUSTER,
        "tls": _TLS,
        "acme": _ACME,
        "listen": Several(_LISTEN, "[[listen]], in two brackets, with an endpoint"),
        "nodes": Named(_REACH, empty=True),
        "filesystems": Named(ByMover("filesystem", _filesystem_shape), empty=True),
        "hooks": Several(
            _HOOK, "[[hooks]], in two brackets, with a step and a command", empty=True
        ),
        "databases": Named(DATABASE, empty=True),
        "sites": Named(_SITE, empty=True),
    },
    needed={"listen": ()},
    check=consistency.check_file,
)
