"""How the servers that are measured are configured, to be read and criticised.

Every proxy has one thread to work with, keeps connections to clients and to the
origin open, and writes one access log line a request, each in the way it is
usually run: HAProxy to syslog, nginx, Caddy and AwesomeProxy to a file.  Where a
default would make a proxy look worse than it is (Caddy keeps 32 idle connections,
nginx closes after 1000 requests) it is raised, for all alike.

Those that speak TLS offer HTTP/2 and HTTP/1.1, and give tickets for sessions as is
their default; which version and cipher of TLS it is, is up to the clients.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import HOST, ROOT

SMALL = "/small"  # a 200 with a body of SMALL_BODY
LARGE = "/large"  # a 200 with a body of MEGABYTE bytes
SMALL_BODY = "a small answer\\n"
MEGABYTE = 1_000_000

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

# What NGINX_PROXY, HAPROXY and CADDY have in the place of {tls}, where they speak it.
NGINX_TLS = """ ssl http2;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        ssl_protocols TLSv1.2 TLSv1.3"""
HAPROXY_TLS = " ssl crt {certificate} alpn h2,http/1.1"
CADDY_TLS = "tls {certificate} {certificate}"

NGINX_PROXY = """
    access_log {directory}/access.log combined;
    proxy_max_temp_file_size 0;
    upstream origin {{
        server 127.0.0.1:{origin};
        keepalive 128;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096{tls};
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
    bind 127.0.0.1:{port} backlog 4096{tls}
    default_backend origin
backend origin
    server origin 127.0.0.1:{origin}
"""

CADDY = """
{{
    admin off
    auto_https off
    servers {{
        protocols h1 h2
    }}
}}
{scheme}://:{port} {{
    bind 127.0.0.1
    {tls}
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


# Who takes the lock knows that the process is gone.
_STOP = '[ ! -e "$1" ] || { kill -KILL "$(cat "$1")" 2>/dev/null; flock "$1" rm -f "$1"; }'


@dataclass(frozen=True, slots=True)
class Side:
    """Where a site that moves can be."""

    node: str
    port: int  # where it listens there
    place: Mapping[str, str]  # of its filesystem, as the mover wants it
    note: Path

    def service(self, act: str) -> list[str]:
        """The command that starts it, or stops it; both may be said twice."""
        if act == "stop":
            return ["sh", "-c", _STOP, "sh", str(self.note)]
        argv = [sys.executable, "-IS", str(ROOT / "bench" / "tenant.py")]
        return [*argv, self.place["path"], str(self.port), str(self.note)]


def awesomeproxy(
    directory: Path, port: int, origins: Sequence[int], certificate: Path | None
) -> str:
    """Our own configuration, with a site ``bench`` and a backend per origin: a, b, …"""
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
        f"tls = {text(certificate is not None)}",
        "",
        "[sites.bench]",
        f"hosts = [{text(HOST)}]",
        'backend = "a"' if origins else 'backend = "bench"\nfilesystem = "bench"',
        "hold = { max_requests = 20000, max_time = 300.0 }",
    ]
    if certificate is not None:
        lines += ["", "[tls]", f"certificates = [{text(str(certificate))}]"]
    for letter, number in zip("abcdefgh", origins, strict=False):
        lines += [
            "",
            f"[sites.bench.backends.{letter}]",
            f"servers = [{text(f'http://127.0.0.1:{number}')}]",
        ]
    return "\n".join(lines) + "\n"


def moving(
    directory: Path, port: int, mover: str, ssh_config: Path, far: str, sides: Sequence[Side]
) -> str:
    """Our own for a site that moves with its filesystem, between this node and ``far``."""
    lines = [
        awesomeproxy(directory, port, [], None),
        f"[nodes.{far}]",
        f"ssh = {_text(far)}",
        f"config = {_text(ssh_config)}",
        "[filesystems.bench]",
        f"mover = {_text(mover)}",
        f"node = {_text(sides[0].node)}",
    ]
    for side in sides:
        lines += [
            f"[filesystems.bench.on.{side.node}]",
            *(f"{key} = {_text(value)}" for key, value in side.place.items()),
            f"[sites.bench.backends.{side.node}]",
            f"servers = [{_text(f'http://127.0.0.1:{side.port}')}]",
            f"node = {_text(side.node)}",
            *(f"service.{act} = {json.dumps(side.service(act))}" for act in ("start", "stop")),
        ]
    return "\n".join(lines) + "\n"


def many(directory: Path, port: int, count: int) -> str:
    """Our own with so many sites, each with a host and two backends of its own; nobody serves."""
    lines = [
        "[node]",
        'name = "bench"',
        f"state_dir = {_text(directory / 'state')}",
        f"control = {_text(directory / 'control.sock')}",
        "[[listen]]",
        f"endpoint = {_text(f'tcp:{port}:interface=127.0.0.1')}",
    ]
    for number in range(count):
        lines += [
            f"[sites.site{number}]",
            f"hosts = [{_text(f'site{number}.example')}]",
            'backend = "a"',
        ]
        for letter, net in (("a", 1), ("b", 2)):
            server = f"http://10.{net}.{number // 250}.{number % 250 + 1}:8080"
            lines += [f"[sites.site{number}.backends.{letter}]", f"servers = [{_text(server)}]"]
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    return json.dumps(str(value))  # a JSON string is a TOML string
