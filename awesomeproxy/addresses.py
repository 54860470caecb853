"""Names and places as people write them: hosts, networks, servers, paths, headers.

Readers as in :mod:`awesomeproxy.quantities`: a value goes in, a checked value in
its one canonical spelling comes out, or a :class:`ValueError` says what was
wrong; what to write instead.

Canonical spelling is what makes comparing safe.  Host names are lower case,
and a server's URL always carries its port, so two ways to write one thing
cannot pass for two things.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from sys import intern
from typing import Literal, NamedTuple, cast

from awesomeproxy.model import DATABASE, Network, Server
from awesomeproxy.quantities import count, show

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")  # "_" is no DNS host, but common
_HOST_PORT = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_MAIL = re.compile(r"[!-?A-~]+@[A-Za-z0-9.-]+")
_VISIBLE = re.compile(r"[!-~]*")
_LONGEST_LABEL = 63  # bytes; PostgreSQL's NAMEDATALEN, less a final zero
_LONGEST_SOCKET_PATH = 107  # bytes; unix(7): sun_path has 108, with a final zero

_A_SERVER = (
    'write "http://HOST:PORT", "https://HOST:PORT", "h2://HOST:PORT" (HTTP/2 over TLS), '
    '"h2c://HOST:PORT" (HTTP/2) or "unix:/absolute/path"'
)
A_COMMAND = 'a command and its arguments, as in ["systemctl", "start", "blog"]'
_A_DATABASE = 'write "tcp://HOST:PORT" or "unix:/absolute/path"'
_A_REDIS = 'write "redis://HOST:PORT", or "rediss://HOST:PORT" for TLS'
_LAST_DB = 1_000_000  # far over what any Redis has
_PORTS: dict[str, int] = {"http": 80, "https": 443, "h2": 443, "h2c": 80}


def text_of(value: object, what: str) -> str:
    """``value`` if it is a text; ``what`` it should be is for the error."""
    if not isinstance(value, str):
        raise ValueError(f"{show(value)} is not a text; write {what} in quotes")
    return value


def name(value: object) -> str:
    """The name of a node, a site or a backend."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"{show(value)} cannot be a name; "
            'write a letter or digit, then letters, digits, "_", "." or "-"'
        )
    return value


def optional_name(value: object) -> str:
    """A name, or nothing."""
    return "" if value == "" else name(value)


def placed_name(value: object) -> str:
    """The name of a site, or of a database with ``database:`` before it."""
    text = text_of(value, "a name")
    name(text.removeprefix(DATABASE))
    return text


def network(value: object) -> Network:
    """An IP network, or one address: ``"10.0.0.0/8"``, ``"192.0.2.7"``, ``"2001:db8::/32"``."""
    text = text_of(value, "a network")
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        whole = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f'{show(text)} is not a network; write one as in "10.0.0.0/8", '
            '"192.0.2.7" or "2001:db8::/32"'
        ) from None
    raise ValueError(f'{show(text)} has host bits set; write "{whole}" for the whole network')


def _fault_of_host(host: str) -> str:
    """What is wrong with a lower-case name or IPv4 address; empty: nothing."""
    if not host:
        return "is empty"
    if len(host) > 253:
        return "is longer than 253 characters"
    if not host.isascii():
        try:
            return f"is not ASCII (its A-label form is {show(host.encode('idna').decode())})"
        except UnicodeError:
            return "is not ASCII"
    if host.endswith("."):
        return "ends with a dot"
    labels = host.split(".")
    for label in labels:
        if not _LABEL.fullmatch(label):
            return f"has the bad label {show(label)}"
    if labels[-1].isdigit():
        try:
            IPv4Address(host)
        except ValueError:
            return "ends like an IPv4 address and is none"
    return ""


def host_name(value: object) -> str:
    """What a site answers to, in lower case: ``"example.com"``, or ``"*.example.com"``."""
    host = text_of(value, "a host name").lower()
    wanted = 'write it as in "example.com" or "*.example.com"'
    if re.search(r":[0-9]*$", host):
        raise ValueError(f"{show(value)} has a port; {wanted}: a site is found on every port")
    fault = _fault_of_host(host.removeprefix("*."))
    if fault:
        raise ValueError(f"{show(value)} is not a host name: it {fault}; {wanted}")
    return host


def _host_and_port(text: str) -> tuple[str, int | None]:
    """``HOST``, ``HOST:PORT``, ``[IPV6]`` or ``[IPV6]:PORT``, taken apart and checked."""
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"{show(text)} is not HOST:PORT (an IPv6 address needs [brackets])")
    host, port = match[1].lower(), int(match[2]) if match[2] else None
    if host.startswith("["):
        if "%" in host:
            raise ValueError(f"{show(host)} has a zone")
        try:
            host = str(IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"{show(host)} is not an IPv6 address") from None
    elif fault := _fault_of_host(host):
        raise ValueError(f"the host {show(host)} {fault}")
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"the port {port} is not between 1 and 65535")
    return host, port


def host_header(value: object) -> str:
    """What a Host header may say, in lower case: a host, with or without a port; or nothing."""
    text = text_of(value, "a host").lower()
    try:
        if text:
            _host_and_port(text)
    except ValueError as fault:
        raise ValueError(f'{fault}; write a host, as in "example.com"') from None
    return text


def server(value: object) -> Server:
    """One server of a backend: ``"http://HOST:PORT"``, ``"unix:/absolute/path"`` and so on."""
    url = text_of(value, "a server")
    if url.startswith("unix:"):
        return _unix(url)
    scheme, mark, rest = url.partition("://")
    scheme = scheme.lower()
    if not mark:
        raise ValueError(f"{show(url)} is not a server; {_A_SERVER}")
    if scheme not in _PORTS:
        raise ValueError(f"{show(url)} has the unknown scheme {show(scheme)}; {_A_SERVER}")
    for sign, part in (
        ("@", "a user name"),
        ("?", "a query"),
        ("#", "a fragment"),
        ("/", "a path"),
    ):
        if sign in rest:
            raise ValueError(f"{show(url)} has {part}, which a server has not; {_A_SERVER}")
    try:
        host, port = _host_and_port(rest)
    except ValueError as fault:
        raise ValueError(f"{show(url)} is not a server: {fault}; {_A_SERVER}") from None
    port = port or _PORTS[scheme]
    # One text for all servers: there may be very many.
    known = cast(Literal["http", "https", "h2", "h2c"], intern(scheme))
    return Server(known, host, port)


def _unix(url: str) -> Server:
    try:
        path = socket_path(url.removeprefix("unix:"))
    except ValueError as fault:
        raise ValueError(f"{show(url)} has a bad path: {fault}") from None
    return Server("unix", path=path)


def database_server(value: object) -> Server:
    """Where a database answers: ``"tcp://HOST:PORT"``, or ``"unix:/absolute/path"``."""
    url = text_of(value, "a server")
    if url.startswith("unix:"):
        return _unix(url)
    if not url.startswith("tcp://"):
        raise ValueError(f"{show(url)} is not the server of a database; {_A_DATABASE}")
    try:
        host, port = _host_and_port(url.removeprefix("tcp://"))
        if port is None:
            raise ValueError("there is no port")
    except ValueError as fault:
        raise ValueError(
            f"{show(url)} is not the server of a database: {fault}; {_A_DATABASE}"
        ) from None
    return Server("tcp", host, port)


class RedisServer(NamedTuple):
    """Where a Redis or a Sentinel answers, and which of its databases is meant."""

    tls: bool
    host: str
    port: int | None  # None: the usual one
    db: int


def redis_server(value: object) -> RedisServer:
    """A Redis: ``"redis://HOST:PORT"``, with TLS ``"rediss://..."``, either with ``/DB``.

    What may have a password in it is in no error.
    """
    url = text_of(value, "an address")
    scheme, mark, rest = url.partition("://")
    if "@" in url:
        raise ValueError(
            "has a user or a password in it; write them as user and password_file, and here "
            '"redis://HOST:PORT"'
        )
    if not mark or scheme not in ("redis", "rediss"):
        raise ValueError(f"{show(url)} is not an address of Redis; {_A_REDIS}")
    authority, _, db = rest.partition("/")
    try:
        host, number = _host_and_port(authority)
        if db and not (db.isascii() and db.isdigit() and int(db[:9]) < _LAST_DB):
            raise ValueError(f"{show(db)} is not the number of a database")
    except ValueError as fault:
        raise ValueError(f"{show(url)} is not an address of Redis: {fault}; {_A_REDIS}") from None
    return RedisServer(scheme == "rediss", host, number, int(db[:9] or 0))


def is_address(host: str) -> bool:
    """Whether ``host`` is an IP address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def server_name(value: object) -> str:
    """What a certificate is for: a host name or an IP address, in lower case; or nothing."""
    text = text_of(value, "a name").lower()
    if ":" in text:
        if is_address(text) and "%" not in text:
            return str(IPv6Address(text))
        fault = 'has a ":" and is not an IPv6 address'
    else:
        fault = _fault_of_host(text) if text else ""
    if fault:
        raise ValueError(
            f"{show(value)} is not the name of a server: it {fault}; "
            'write a host name, as in "app.internal", or an address'
        )
    return text


def sni_name(value: object) -> str:
    """What a TLS handshake asks for: a host name, never an address (RFC 6066); or nothing."""
    text = server_name(value)
    if is_address(text):
        raise ValueError(
            f"{show(text)} is an address, which no handshake can ask for; "
            'write a host name, as in "app.internal"'
        )
    return text


def port(value: object) -> int:
    """The port of a server."""
    number = count()(value)
    if number > 65535:
        raise ValueError(f"{show(number)} is not a port; write at most 65535")
    return number


def email(value: object) -> str:
    """An address for mail, or nothing."""
    text = text_of(value, "an address for mail")
    if text and not _MAIL.fullmatch(text):
        raise ValueError(f'{show(text)} is not an address for mail; write "NAME@HOST"')
    return text


def https_url(value: object) -> str:
    """A URL of ``https``, without a user or a fragment."""
    text = text_of(value, "a URL")
    host, _, path = text.removeprefix("https://").partition("/")
    wanted = 'write "https://HOST/PATH"'
    if not text.startswith("https://") or not _VISIBLE.fullmatch(path) or "#" in path:
        raise ValueError(f"{show(text)} is not a URL of https; {wanted}")
    try:
        _host_and_port(host)
    except ValueError as fault:
        raise ValueError(f"{show(text)} is not a URL of https: {fault}; {wanted}") from None
    return text


def absolute_path(value: object) -> str:
    """The path of a file or directory that does not depend on where the daemon stands."""
    path = text_of(value, "a path")
    if not path.startswith("/") or path.startswith("//") or not path.isprintable():
        raise ValueError(f'{show(path)} is not an absolute path; begin it with one "/"')
    return path


def some_path(value: object) -> str:
    """An absolute path, or nothing."""
    return "" if value == "" else absolute_path(value)


def log_path(value: object) -> str:
    """The absolute path of a log, ``-`` for standard output, or nothing."""
    return value if isinstance(value, str) and value in ("", "-") else absolute_path(value)


def socket_path(value: object) -> str:
    """The absolute path of a Unix socket, short enough for the kernel."""
    path = absolute_path(value)
    if len(path.encode()) > _LONGEST_SOCKET_PATH or path.endswith("/"):
        raise ValueError(
            f"{show(path)} cannot be a socket; "
            f'write at most {_LONGEST_SOCKET_PATH} bytes, without a "/" at the end'
        )
    return path


def _url_path(value: object, refused: str) -> str:
    path = text_of(value, "a path")
    bad = "".join(sorted({sign for sign in refused if sign in path}))
    if not path.startswith("/") or not _VISIBLE.fullmatch(path) or bad:
        raise ValueError(
            f'{show(path)} is not a path; begin it with "/", '
            f"and write visible ASCII without {' or '.join(map(show, refused))}"
        )
    return path


def path_prefix(value: object) -> str:
    """The beginning of the request paths that are a site's: ``/blog`` and ``/blog/`` are one."""
    return _url_path(value, "?#").rstrip("/") or "/"


def request_path(value: object) -> str:
    """What is asked for by a health check: a path, with or without a query."""
    return _url_path(value, "#")


def header_name(value: object) -> str:
    """The name of a header, in lower case; or nothing."""
    text = text_of(value, "a header's name")
    if text and not _TOKEN.fullmatch(text):
        raise ValueError(f'{show(text)} is not a header\'s name; write one as in "X-Preview"')
    return text.lower()


def command(value: object) -> tuple[str, ...]:
    """A command and its arguments, or nothing: ``["systemctl", "start", "blog"]``."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{show(value)} is not a list; write {A_COMMAND}")
    for word in value:
        if not isinstance(word, str) or "\0" in word:
            raise ValueError(f"{show(word)} is not a word of a command; write {A_COMMAND}")
    if value and not value[0]:
        raise ValueError(f"begins with an empty word; write {A_COMMAND}")
    return tuple(value)


def ssh_destination(value: object) -> str:
    """Whom ssh is to call, or nothing: ``root@192.0.2.2``, or a name of its configuration."""
    text = visible(value)
    if text.startswith("-"):
        raise ValueError(f'{show(text)} is an option; write a host, as in "root@192.0.2.2"')
    return text


def label(value: object) -> str:
    """What something is called in a database: printable, not empty, short enough for it."""
    text = text_of(value, "a name")
    if not text or not text.isprintable() or len(text.encode()) > _LONGEST_LABEL:
        raise ValueError(
            f"{show(text)} cannot be a name in a database; "
            f"write 1 to {_LONGEST_LABEL} bytes of printable characters"
        )
    return text


def visible(value: object) -> str:
    """A word of visible ASCII characters, or nothing."""
    text = text_of(value, "a word")
    if not _VISIBLE.fullmatch(text):
        raise ValueError(f"{show(text)} is not a word; write visible ASCII characters, no spaces")
    return text


def secret(value: object) -> str:
    """A secret for a header, which no error repeats; or nothing."""
    if not isinstance(value, str):
        raise ValueError("is not a text; write the secret in quotes")
    if value and (len(value) < 8 or not _VISIBLE.fullmatch(value)):
        raise ValueError(
            "is not a good secret; write at least 8 visible ASCII characters, no spaces"
        )
    return value
