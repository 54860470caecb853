"""The servers that are measured, and the origin behind them.

Each runs as its text in :mod:`bench.configurations` says, until the end of its
``with``.  Syslog costs HAProxy more than a file does, so it is also measured with a
file.  Only ``twisted.web.proxy`` has no log, nor does it know how to keep a connection
to the origin.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from bench import configurations
from bench.configurations import LARGE, MEGABYTE, SMALL, SMALL_BODY
from bench.processes import (
    MODULES,
    BenchError,
    Process,
    Role,
    end,
    free_port,
    module,
    program,
    scratch,
    serving,
    spawn,
)


class Proxy(Protocol):
    """What starts a proxy."""

    def __call__(
        self, origin: Process, /, *, certificate: Path | None = None
    ) -> AbstractContextManager[Process]:
        """Run it in front of ``origin``, over TLS if there is a ``certificate``."""


def script(name: str) -> str:
    """The path of a program that was installed next to this Python."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else program(name)


def _tls(text: str, certificate: Path | None) -> str:
    return text.format(certificate=certificate) if certificate else ""


@contextmanager
def origin() -> Iterator[Process]:
    """nginx on the load's core, answering from memory: what the proxies forward to."""
    with scratch() as directory:
        port = free_port()
        (directory / LARGE.lstrip("/")).write_bytes(b"x" * MEGABYTE)
        http = configurations.ORIGIN.format(
            port=port, directory=directory, small=SMALL, body=SMALL_BODY
        )
        with _nginx("origin", http, "load", port, directory, None) as process:
            yield process


@contextmanager
def _nginx(
    name: str, http: str, role: Role, port: int, directory: Path, certificate: Path | None
) -> Iterator[Process]:
    config = directory / "nginx.conf"
    config.write_text(configurations.NGINX.format(directory=directory, http=http))
    argv = [program("nginx"), "-e", "stderr", "-p", str(directory), "-c", str(config)]
    with serving(name, argv, role, port, directory, certificate=certificate) as process:
        yield process


@contextmanager
def nginx(origin: Process, /, *, certificate: Path | None = None) -> Iterator[Process]:
    """nginx as a reverse proxy: no bar, but a second opinion on what C costs."""
    with scratch() as directory:
        port = free_port()
        tls = _tls(configurations.NGINX_TLS, certificate)
        http = configurations.NGINX_PROXY.format(
            directory=directory, port=port, origin=origin.port, tls=tls
        )
        with _nginx("nginx", http, "proxy", port, directory, certificate) as process:
            yield process


@contextmanager
def _haproxy(name: str, log: str, origin: Process, certificate: Path | None) -> Iterator[Process]:
    with scratch() as directory:
        port = free_port()
        tls = _tls(configurations.HAPROXY_TLS, certificate)
        config = directory / "haproxy.cfg"
        config.write_text(
            configurations.HAPROXY.format(port=port, log=log, origin=origin.port, tls=tls)
        )
        argv = [program("haproxy"), "-db", "-f", str(config)]
        with serving(name, argv, "proxy", port, directory, certificate=certificate) as process:
            yield process


@contextmanager
def haproxy(origin: Process, /, *, certificate: Path | None = None) -> Iterator[Process]:
    """HAProxy, with its log going to a syslog socket that is drained on the load's core."""
    syslog = free_port()
    sink = spawn([*module("sink"), str(syslog)], "load", env=MODULES)
    try:
        assert sink.stdout is not None
        sink.stdout.readline()  # it listens
        with _haproxy("haproxy", f"127.0.0.1:{syslog}", origin, certificate) as process:
            yield process
    finally:
        end(sink)


@contextmanager
def haproxy_file(origin: Process, /, *, certificate: Path | None = None) -> Iterator[Process]:
    """HAProxy, with its log going to a file: cheaper than syslog, and so a harder rival."""
    with _haproxy("haproxy-file", "stdout format raw", origin, certificate) as process:
        yield process


@contextmanager
def caddy(origin: Process, /, *, certificate: Path | None = None) -> Iterator[Process]:
    """Caddy, its Go scheduler bound to one processor."""
    with scratch() as directory:
        port = free_port()
        config = directory / "Caddyfile"
        config.write_text(
            configurations.CADDY.format(
                directory=directory,
                port=port,
                origin=origin.port,
                scheme="https" if certificate else "http",
                tls=_tls(configurations.CADDY_TLS, certificate),
            )
        )
        argv = [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]
        home = str(directory)
        env = {"GOMAXPROCS": "1", "HOME": home, "XDG_DATA_HOME": home, "XDG_CONFIG_HOME": home}
        with serving(
            "caddy", argv, "proxy", port, directory, env=env, certificate=certificate
        ) as process:
            yield process


@contextmanager
def webproxy(origin: Process, /, *, certificate: Path | None = None) -> Iterator[Process]:
    """Twisted's own ``twisted.web.proxy``; without TLS, or :exc:`BenchError` is raised."""
    if certificate is not None:
        raise BenchError("twisted.web.proxy is not measured with TLS")
    with scratch() as directory:
        port = free_port()
        argv = [*module("webproxy"), str(port), str(origin.port)]
        with serving("webproxy", argv, "proxy", port, directory, env=MODULES) as process:
            yield process


@contextmanager
def awesomeproxy(
    *origins: Process, certificate: Path | None = None, twistd_options: Sequence[str] = ()
) -> Iterator[Process]:
    """Our daemon, one process, with a site ``bench`` and a backend per origin: a, b, …

    Its control socket is ``control.sock`` in the process's directory.
    """
    with scratch() as directory:
        port = free_port()
        config = directory / "awesomeproxy.toml"
        config.write_text(
            configurations.awesomeproxy(directory, port, [o.port for o in origins], certificate)
        )
        argv = daemon(config, *twistd_options)
        with serving(
            "awesomeproxy", argv, "proxy", port, directory, certificate=certificate
        ) as process:
            yield process


def daemon(config: Path, *twistd_options: str) -> list[str]:
    """The command that runs our daemon."""
    argv = [script("twistd"), "-n", "--pidfile=", *twistd_options]
    return [*argv, "awesomeproxy", "--config", str(config)]


PROXIES: dict[str, Proxy] = {
    "awesomeproxy": awesomeproxy,
    "haproxy": haproxy,
    "haproxy-file": haproxy_file,
    "nginx": nginx,
    "caddy": caddy,
    "webproxy": webproxy,
}
