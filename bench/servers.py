"""The servers that are measured, and the origin behind them.

Every proxy has one thread to work with, keeps connections to clients and to the
origin open, and writes one access log line a request, each in the way it is
usually run: HAProxy to syslog, nginx, Caddy and AwesomeProxy to a file.  Syslog
costs HAProxy more than a file does, so it is also measured with a file.  Only
``twisted.web.proxy`` has no log, nor does it know how to keep a connection to the
origin.  Where a default would make a proxy look worse than it is (Caddy keeps 32
idle connections, nginx closes after 1000 requests) it is raised, for all alike.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bench.processes import (
    HOST,
    MODULES,
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

SMALL = "/small"  # a 200 with a body of SMALL_BODY
LARGE = "/large"  # a 200 with a body of MEGABYTE bytes
SMALL_BODY = "a small answer\\n"
MEGABYTE = 1_000_000


def script(name: str) -> str:
    """The path of a program that was installed next to this Python."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else program(name)


NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    default_type text/plain;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    {http}
}}
"""

ORIGIN = """
    access_log off;
    sendfile on;
    tcp_nopush on;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {directory};
        location = {small} {{ return 200 "{body}"; }}
    }}
"""

NGINX_PROXY = """
    access_log {directory}/access.log combined;
    proxy_max_temp_file_size 0;
    upstream origin {{
        server 127.0.0.1:{origin};
        keepalive 128;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
"""

HAPROXY = """
global
    nbthread 1
    maxconn 4096
    log {log} local0
defaults
    mode http
    log global
    option httplog
    option forwardfor
    http-reuse always
    timeout connect 5s
    timeout client 300s
    timeout server 300s
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    default_backend origin
backend origin
    server origin 127.0.0.1:{origin}
"""

CADDY = """
{{
    admin off
    auto_https off
}}
http://:{port} {{
    bind 127.0.0.1
    log {{
        output file {directory}/access.log {{
            roll_disabled
        }}
    }}
    reverse_proxy 127.0.0.1:{origin} {{
        transport http {{
            keepalive_idle_conns 128
            keepalive_idle_conns_per_host 128
            compression off
        }}
    }}
}}
"""


@contextmanager
def origin() -> Iterator[Process]:
    """nginx on the load's core, answering from memory: what the proxies forward to."""
    with scratch() as directory:
        port = free_port()
        (directory / LARGE.lstrip("/")).write_bytes(b"x" * MEGABYTE)
        http = ORIGIN.format(port=port, directory=directory, small=SMALL, body=SMALL_BODY)
        with _nginx("origin", http, "load", port, directory) as process:
            yield process


@contextmanager
def _nginx(name: str, http: str, role: Role, port: int, directory: Path) -> Iterator[Process]:
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, http=http))
    argv = [program("nginx"), "-e", "stderr", "-p", str(directory), "-c", str(config)]
    with serving(name, argv, role, port, directory) as process:
        yield process


@contextmanager
def nginx(origin: Process) -> Iterator[Process]:
    """nginx as a reverse proxy: no bar, but a second opinion on what C costs."""
    with scratch() as directory:
        port = free_port()
        http = NGINX_PROXY.format(directory=directory, port=port, origin=origin.port)
        with _nginx("nginx", http, "proxy", port, directory) as process:
            yield process


@contextmanager
def haproxy(origin: Process) -> Iterator[Process]:
    """HAProxy, with its log going to a syslog socket that is drained on the load's core."""
    with scratch() as directory:
        port, syslog = free_port(), free_port()
        config = directory / "haproxy.cfg"
        config.write_text(HAPROXY.format(port=port, log=f"127.0.0.1:{syslog}", origin=origin.port))
        sink = spawn([*module("sink"), str(syslog)], "load", env=MODULES)
        try:
            assert sink.stdout is not None
            sink.stdout.readline()  # it listens
            argv = [program("haproxy"), "-db", "-f", str(config)]
            with serving("haproxy", argv, "proxy", port, directory) as process:
                yield process
        finally:
            end(sink)


@contextmanager
def haproxy_file(origin: Process) -> Iterator[Process]:
    """HAProxy, with its log going to a file: cheaper than syslog, and so a harder rival."""
    with scratch() as directory:
        port = free_port()
        config = directory / "haproxy.cfg"
        config.write_text(HAPROXY.format(port=port, log="stdout format raw", origin=origin.port))
        argv = [program("haproxy"), "-db", "-f", str(config)]
        with serving("haproxy-file", argv, "proxy", port, directory) as process:
            yield process


@contextmanager
def caddy(origin: Process) -> Iterator[Process]:
    """Caddy, its Go scheduler bound to one processor."""
    with scratch() as directory:
        port = free_port()
        config = directory / "Caddyfile"
        config.write_text(CADDY.format(directory=directory, port=port, origin=origin.port))
        argv = [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]
        home = str(directory)
        env = {"GOMAXPROCS": "1", "HOME": home, "XDG_DATA_HOME": home, "XDG_CONFIG_HOME": home}
        with serving("caddy", argv, "proxy", port, directory, env=env) as process:
            yield process


@contextmanager
def webproxy(origin: Process) -> Iterator[Process]:
    """Twisted's own ``twisted.web.proxy``."""
    with scratch() as directory:
        port = free_port()
        argv = [*module("webproxy"), str(port), str(origin.port)]
        with serving("webproxy", argv, "proxy", port, directory, env=MODULES) as process:
            yield process


@contextmanager
def awesomeproxy(*origins: Process, twistd_options: Sequence[str] = ()) -> Iterator[Process]:
    """Our daemon, one process, with a site ``bench`` and a backend per origin: a, b, …

    Its control socket is ``control.sock`` in the process's directory.
    """
    with scratch() as directory:
        port = free_port()
        config = directory / "awesomeproxy.toml"
        config.write_text(_configuration(directory, port, [o.port for o in origins]))
        argv = [script("twistd"), "-n", "--pidfile=", *twistd_options]
        argv += ["awesomeproxy", "--config", str(config)]
        with serving("awesomeproxy", argv, "proxy", port, directory) as process:
            yield process


def _configuration(directory: Path, port: int, origins: Sequence[int]) -> str:
    text = json.dumps  # a JSON string is a TOML string
    lines = [
        "[node]",
        'name = "bench"',
        f"state_dir = {text(str(directory / 'state'))}",
        f"control = {text(str(directory / 'control.sock'))}",
        f"access_log = {text(str(directory / 'access.log'))}",
        "max_connections = 18000",
        "drain_time = 2.0",
        "",
        "[[listen]]",
        f"endpoint = {text(f'tcp:{port}:backlog=4096:interface=127.0.0.1')}",
        "",
        "[sites.bench]",
        f"hosts = [{text(HOST)}]",
        'backend = "a"',
        "hold = { max_requests = 20000, max_time = 300.0 }",
    ]
    for letter, number in zip("abcdefgh", origins, strict=False):
        lines += [
            "",
            f"[sites.bench.backends.{letter}]",
            f"servers = [{text(f'http://127.0.0.1:{number}')}]",
        ]
    return "\n".join(lines) + "\n"


PROXIES: dict[str, Callable[[Process], AbstractContextManager[Process]]] = {
    "awesomeproxy": awesomeproxy,
    "haproxy": haproxy,
    "haproxy-file": haproxy_file,
    "nginx": nginx,
    "caddy": caddy,
    "webproxy": webproxy,
}
