"""The nouns: what a site is, where it is placed, and what a move of it reports.

Everything here is a frozen value without I/O.  The configuration file is read
into these, the registry stores them, the data plane is handed them, and the
control protocol prints them.  Times are seconds (float) and sizes are bytes
(int) throughout.

A :class:`Site` is a *definition*: what clients ask for and which backends could
serve it.  A :class:`Placement` is *state*: on which backend it is now, and
whether its gate should be open.  Each change of a placement has a larger
generation than the one before; all ordering comes from that number.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Literal

Network = IPv4Network | IPv6Network
Generation = int


DATABASE = "database:"  # before a database's name, where sites have theirs as it is
FILESYSTEM = "filesystem:"  # the same before a filesystem's


class Mode(enum.StrEnum):
    """What a site's gate should be."""

    OPEN = "open"
    HOLDING = "holding"


class Outcome(enum.Enum):
    """How a wait ended; see :mod:`awesomeproxy.happenings`."""

    RELEASED = "released"  # what was waited for has happened
    TIMED_OUT = "timed out"  # a deadline passed first
    REFUSED = "refused"  # it will not happen, or there was no room to wait
    GONE = "gone"  # whoever waited has left


@dataclass(frozen=True, slots=True)
class Server:
    """One address of a backend: ``http://host:port``, ``unix:/path``, and so on.

    ``https`` and ``h2`` are over TLS; ``h2`` and ``h2c`` are spoken to in HTTP/2.  ``tcp`` is
    that of a database.
    """

    scheme: Literal["http", "https", "h2", "h2c", "unix", "tcp"]
    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def url(self) -> str:
        """All of it, as in a configuration."""
        if self.scheme == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def tls(self) -> bool:
        """Whether connections to it are encrypted."""
        return self.scheme in ("https", "h2")

    @property
    def http2(self) -> bool:
        """Whether it is spoken to in HTTP/2."""
        return self.scheme in ("h2", "h2c")

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """The active check of a backend's servers: a GET every so often."""

    path: str = "/"
    host: str = ""  # the Host header; empty: the site's first exact host
    interval: float = 2.0
    timeout: float = 1.0
    rise: int = 2  # successes in a row that bring a server back
    fall: int = 3  # failures in a row that take it out
    status: tuple[int, int] = (200, 399)  # inclusive range that counts as healthy


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How the servers of a backend prove who they are, and we to them."""

    verify: bool = True
    ca_file: str = ""  # PEM of who may have signed for them; empty: whom the system trusts
    name: str = ""  # what their certificate must be for; empty: the host of the URL
    sni: str = ""  # the name asked for in the handshake; empty: the one that is verified
    certificate: str = ""  # PEM of our own chain, for servers that want to know us ...
    key: str = ""  # ... and of its key; empty: in the same file


@dataclass(frozen=True, slots=True)
class Service:
    """What runs for a backend, and has to be stopped and started when data moves."""

    start: tuple[str, ...] = ()  # a command and its arguments; empty: there is nothing to do
    stop: tuple[str, ...] = ()
    time: float = 30.0  # seconds that either may take


@dataclass(frozen=True, slots=True)
class Backend:
    """A named place that can serve a site."""

    name: str
    servers: tuple[Server, ...]
    balance: Literal["round_robin", "least_connections"] = "round_robin"
    health: HealthCheck | None = None
    max_fails: int = 3  # passive check: failures in a row that take a server out ...
    fail_timeout: float = 5.0  # ... for so long (nginx: max_fails, fail_timeout)
    max_idle: int = 64  # pooled idle connections per server
    idle_timeout: float = 4.0  # below the server's own keep-alive timeout
    tls: ServerTls = ServerTls()
    send_proxy: Literal["", "v1", "v2"] = ""  # a PROXY header on each connection to a server
    node: str = ""  # where it stands
    service: Service = Service()


@dataclass(frozen=True, slots=True)
class HoldLimits:
    """How much may wait at a gate.  ``max_time`` is per request."""

    max_requests: int = 10_000
    max_bytes: int = 256 * 1024 * 1024
    max_time: float = 60.0


@dataclass(frozen=True, slots=True)
class SiteTimeouts:
    """HAProxy's names: ``connect``, ``server`` (here ``response``), ``tunnel``."""

    connect: float = 3.0  # to open a connection to a server
    response: float = 60.0  # without a byte from the server while it owes one
    tunnel: float = 3600.0  # without a byte either way on an upgraded connection
    websocket: float = 3600.0  # the same if what is spoken there is WebSocket


@dataclass(frozen=True, slots=True)
class Retry:
    """What is done when no server can be reached, or one dies before it answers."""

    attempts: int = 3  # sends of one request at the most, where a resend is allowed
    budget: float = 15.0  # how long a request waits for a server that refuses connections


@dataclass(frozen=True, slots=True)
class Ramp:
    """The concurrency bound towards a backend that has just been released to.

    It starts at ``start``, and grows by one with each answer and twofold every
    ``double_every`` seconds, until ``Site.max_in_flight`` is reached.  ``start = 0``: no ramp.
    """

    start: int = 64
    double_every: float = 0.2


@dataclass(frozen=True, slots=True)
class Drain:
    """How long requests in flight may take to finish when a site is held."""

    time: float = 20.0  # requests, event streams and long polls; then the pause fails
    tunnels: float = 5.0  # upgraded connections; then they are closed (WebSockets: by then)


@dataclass(frozen=True, slots=True)
class Bypass:
    """Who passes a held gate, to try the new place: by network, or by a header with a secret."""

    networks: tuple[Network, ...] = ()
    header: str = ""
    secret: str = ""


@dataclass(frozen=True, slots=True)
class Access:
    """Which clients may ask for a site; all others are answered 403."""

    allow: tuple[Network, ...] = ()  # empty: everybody
    deny: tuple[Network, ...] = ()  # these not, even if they are allowed


@dataclass(frozen=True, slots=True)
class SiteTls:
    """What a site wants of TLS towards its clients."""

    redirect: bool = False  # whoever asks without TLS is sent to https
    hsts: float = 0.0  # seconds for which browsers shall insist on TLS (RFC 6797); 0: nothing said
    hsts_subdomains: bool = False  # the same for all names below the site's
    acme: bool = False  # have certificates for the site's hosts issued, see ``Acme``


@dataclass(frozen=True, slots=True)
class Site:
    """What clients ask for, and the backends that could serve it."""

    name: str
    hosts: tuple[str, ...]
    backend: str  # where it starts; the registry remembers where it is now
    backends: Mapping[str, Backend]
    path: str = "/"
    hold: HoldLimits = HoldLimits()
    timeouts: SiteTimeouts = SiteTimeouts()
    retry: Retry = Retry()
    ramp: Ramp = Ramp()
    drain: Drain = Drain()
    bypass: Bypass = Bypass()
    access: Access = Access()
    tls: SiteTls = SiteTls()
    filesystem: str = ""  # what it lives in: it is served only where that is mounted
    uses: tuple[str, ...] = ()  # databases: it is held while one of them moves
    max_body: int = 0  # bytes of a request body; 0: no limit
    max_in_flight: int = 1024  # more wait at the gate
    reuse_unsafe: float = 0.0  # idle age up to which a pooled connection may carry a POST


@dataclass(frozen=True, slots=True)
class DatabaseBackend:
    """A named place that can serve a database."""

    name: str
    server: Server
    node: str = ""  # where it stands
    service: Service = Service()
    place: Any = None  # what the mover has to know of the database there


@dataclass(frozen=True, slots=True)
class DatabaseTimeouts:
    """The same words as for sites."""

    connect: float = 3.0  # to open a connection to the server
    idle: float = 0.0  # without a byte either way; 0: for ever


@dataclass(frozen=True, slots=True)
class DatabaseDrain:
    """How long connections may stay when a database is held."""

    time: float = 20.0  # sessions in a transaction; then the pause fails
    grace: float = 0.5  # sessions between two transactions; then they are closed
    tunnels: float = 5.0  # connections of which nothing is known; then they are closed


@dataclass(frozen=True, slots=True)
class DatabaseRetry:
    """What is done when the server cannot be reached."""

    budget: float = 15.0  # how long a connection waits for a server that refuses it


@dataclass(frozen=True, slots=True)
class PgBouncer:
    """A PgBouncer in front of a database, and how its admin console is reached."""

    address: Server
    database: str  # the database's name there
    user: str = "pgbouncer"
    password_file: str = ""  # in the form of ~/.pgpass; empty: libpq's own


@dataclass(frozen=True, slots=True)
class Database:
    """A TCP service that sites use: a listener, and the backends that could serve it."""

    name: str
    endpoint: str  # a Twisted server endpoint string, for its clients
    backend: str  # where it starts; the registry remembers where it is now
    backends: Mapping[str, DatabaseBackend]
    protocol: Literal["tcp", "postgres", "mysql"] = "tcp"
    hold: HoldLimits = HoldLimits()
    timeouts: DatabaseTimeouts = DatabaseTimeouts()
    retry: DatabaseRetry = DatabaseRetry()
    drain: DatabaseDrain = DatabaseDrain()
    max_connections: int = 90  # more wait at the gate; the default of PostgreSQL is 100
    via: Literal["", "pgbouncer"] = ""  # what its clients connect through
    pgbouncer: PgBouncer | None = None
    filesystem: str = ""  # what it lives in, if its files are moved
    mover: str = ""  # what moves it; empty: nothing, it is only placed
    options: Any = None  # of the mover


@dataclass(frozen=True, slots=True)
class Hook:
    """A command that a migration runs before or after one of its steps."""

    step: str
    command: tuple[str, ...]
    when: Literal["before", "after"] = "before"
    time: float = 10.0  # seconds that it may take
    only: tuple[str, ...] = ()  # sites, and ``database:NAME``; empty: all


@dataclass(frozen=True, slots=True)
class Reach:
    """How commands come to a node."""

    name: str
    ssh: str = ""  # as ssh(1) takes it: a host, user@host, or a name in its configuration
    config: str = ""  # ssh's configuration file; empty: the daemon's user's own


@dataclass(frozen=True, slots=True)
class Filesystem:
    """Named storage that sites and databases live in.

    ``places`` has what the mover has to know of it on each node; all of them have a ``path``.
    """

    name: str
    mover: str
    node: str  # where it starts; the registry remembers where it is now
    places: Mapping[str, Any]
    options: Any = None  # of the mover
    mount_point: bool = True  # the paths are mount points: whether it is mounted says where it is


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a site is and what its gate should be, at one generation.

    A database has one as well, under ``database:NAME``, and a filesystem, whose backend is
    the node on which it is, under ``filesystem:NAME``.
    """

    site: str
    backend: str
    mode: Mode = Mode.OPEN
    generation: Generation = 1
    by: str = "configuration"  # what made this change, for the one who lost a race against it
    expires: float | None = None  # unix time at which a hold ends its welcome (see ``then``)
    then: Literal["refuse", "resume"] = "refuse"  # what the end of a hold does


@dataclass(frozen=True, slots=True)
class Desired:
    """All a worker needs to know of one site: its definition and its placement."""

    site: Site
    placement: Placement
    absent: str = ""  # why it cannot be served where it is placed, and has to be held


@dataclass(frozen=True, slots=True)
class DesiredDatabase:
    """All a worker needs to know of one database."""

    database: Database
    placement: Placement
    admits: frozenset[str] = frozenset()  # addresses whose connections pass even if it is held
    absent: str = ""  # why it cannot be served where it is placed, and has to be held


@dataclass(frozen=True, slots=True)
class Counters:
    """What has become of a site's requests since its worker started."""

    requests: int = 0  # taken in, answered or not
    held: int = 0  # had to wait at the gate
    released: int = 0  # waited and were forwarded
    departed: int = 0  # left while held
    refused: int = 0  # answered 503: no room to wait, or waited too long
    retried: int = 0  # sent again, where promise 2 allows
    ambiguous: int = 0  # may have been carried out; answered 502, not sent again
    failed: int = 0  # answered 502 or 504, or truncated, for any other reason

    def since(self, earlier: Counters) -> Counters:
        """What has been counted since ``earlier``."""
        return Counters(*(now - then for now, then in zip(self, earlier, strict=True)))

    def __iter__(self) -> Iterator[int]:
        """The numbers, in the order of the fields."""
        return (getattr(self, name) for name in self.__slots__)

    @classmethod
    def summed(cls, each: Iterable[Iterable[int]]) -> Counters:
        """The sum of several, or of their numbers."""
        return cls(*map(sum, zip(*each, strict=True)))


@dataclass(frozen=True, slots=True)
class Observed:
    """What one worker reports of one site."""

    site: str
    generation: Generation
    backend: str
    mode: Mode
    state: str = "open"  # open, releasing, draining, holding, unreachable or refusing
    in_flight: int = 0
    held: int = 0
    held_bytes: int = 0
    tunnels: int = 0
    connections: int = 0  # open to servers of the site, idle ones included
    closed: int = 0  # requests and tunnels that were cut, since the last hold began
    ambiguous: int = 0  # requests that may have been carried out, since the last hold began
    longest_wait: float = 0.0  # of the last hold: the longest a released request waited
    counters: Counters = Counters()
    servers: Mapping[str, Mapping[str, str]] = field(
        default_factory=dict
    )  # backend -> url -> "up", "down: why"
    trouble: str = ""  # why requests are held although the gate should be open

    @property
    def drained(self) -> bool:
        """Held, and nothing of it is left towards a backend."""
        return (
            self.mode is Mode.HOLDING
            and not self.in_flight
            and not self.tunnels
            and not self.connections
        )


@dataclass(frozen=True, slots=True)
class Report:
    """One worker's line in a receipt."""

    node: str
    worker: str
    generation: Generation
    in_flight: int
    connections: int
    held: int
    closed: int = 0  # requests and tunnels that were cut, since the hold began
    ambiguous: int = 0  # requests that may have been carried out, since the hold began


@dataclass(frozen=True, slots=True)
class Receipt:
    """What ``pause`` answers with: every worker that holds, with nothing in flight."""

    site: str
    backend: str
    generation: Generation
    drained_in: float
    workers: tuple[Report, ...]
    closed: int = 0  # requests and tunnels cut by --force or at the tunnels' deadline
    ambiguous: int = 0  # requests that may have been carried out: cut, or lost with a server

    def as_json(self) -> dict[str, Any]:
        """The receipt as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What one migration did to a site's requests."""

    site: str
    source: str
    target: str
    generation: Generation
    outcome: Literal["done", "rolled back", "planned"]
    reason: str = ""
    requests: int = 0
    held: int = 0
    released: int = 0
    departed: int = 0
    refused: int = 0
    retried: int = 0
    ambiguous: int = 0
    failed: int = 0
    longest_added_wait: float = 0.0
    bytes_moved: int = 0
    pause: float = 0.0  # from the hold to the release
    steps: Mapping[str, float] = field(default_factory=dict)  # name -> seconds
    silent: tuple[str, ...] = ()  # nodes whose requests are not in these numbers

    def as_json(self) -> dict[str, Any]:
        """The ledger as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ListenTimeouts:
    """Towards clients.  ``head`` is absolute: bytes that trickle in do not extend it."""

    handshake: float = 10.0  # for all that comes before HTTP: a PROXY header, a TLS handshake
    head: float = 10.0  # for a whole request head (HAProxy: http-request)
    body: float = 20.0  # grace before ``body_rate`` is enforced, and between body bytes
    idle: float = 75.0  # between requests of a connection (nginx: keepalive_timeout)
    write: float = 60.0  # between looks whether the client takes its answer, at ``write_rate``


@dataclass(frozen=True, slots=True)
class Listen:
    """One address that takes requests, and what it allows a client."""

    endpoint: str  # a Twisted server endpoint string
    tls: bool = False
    http2: bool = True  # offered to those who come with TLS
    h2c: bool = False  # HTTP/2 without TLS, to those who begin with it (RFC 9113, section 3.3)
    max_streams: int = 128  # requests at one time on a connection that speaks HTTP/2
    proxy_protocol: tuple[Network, ...] = ()  # who begins each connection with a PROXY header
    max_per_client: int = 0  # connections of one client address; 0: no limit
    trusted_proxies: tuple[Network, ...] = ()  # whose X-Forwarded-* and X-Request-Id are kept
    max_head: int = 32 * 1024  # 431
    max_target: int = 8 * 1024  # 414
    max_headers: int = 100  # 431
    body_rate: int = 512  # bytes a second a request body must reach; 408
    write_rate: int = 512  # bytes a second a client must take of an answer that waits; 0: one
    timeouts: ListenTimeouts = ListenTimeouts()


@dataclass(frozen=True, slots=True)
class Tls:
    """The certificates of the node."""

    certificates: tuple[str, ...] = ()  # PEM files, and directories of them
    default: str = ""  # the name whose certificate clients get that ask for no known one
    check_every: float = 5.0  # seconds between looks whether the files have changed


@dataclass(frozen=True, slots=True)
class Acme:
    """The authority that issues certificates (RFC 8555)."""

    directory: str  # its URL; https
    email: str = ""  # where it may write to
    terms_agreed: bool = False  # to the terms of service of the authority
    ca_file: str = ""  # PEM of who may have signed for the authority's own server
    renew_before: float = 30 * 86400.0  # seconds before the end of a certificate
    eab_key_id: str = ""  # external account binding, where the authority wants one ...
    eab_key_file: str = ""  # ... and the file of its key, in base64url


@dataclass(frozen=True, slots=True)
class Cluster:
    """The Redis that the nodes of a cluster share, and what a node does without it."""

    addresses: tuple[tuple[str, int], ...]  # hosts and ports: one Redis, or several Sentinels
    tls: bool = False
    db: int = 0
    master: str = ""  # what Sentinels call it; empty: there are none
    user: str = ""
    password_file: str = ""
    sentinel_user: str = ""
    sentinel_password_file: str = ""
    ca_file: str = ""  # of who signs its certificate; empty: the system's authorities
    verify_name: str = ""  # in its certificate; empty: the host's
    certificate: str = ""  # our own, with ``key``
    key: str = ""
    prefix: str = "awesomeproxy"  # of its keys
    lease: float = 10.0
    on_registry_loss: Literal["serve", "hold"] = "serve"
    replicas: int = 0  # that must have a receipt and a commit
    fence_command: tuple[str, ...] = ()  # the node's name is added
    fence_time: float = 30.0


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole configuration file."""

    name: str
    state_dir: str
    control: str
    access_log: str
    listen: tuple[Listen, ...]
    sites: Mapping[str, Site]
    nodes: Mapping[str, Reach] = field(default_factory=dict)
    filesystems: Mapping[str, Filesystem] = field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    databases: Mapping[str, Database] = field(default_factory=dict)
    drain_time: float = 30.0  # at SIGTERM, for requests in flight
    max_connections: int = 16_000  # of clients, all listeners together
    max_held: int = 50_000  # requests held, all sites together
    max_held_bytes: int = 1024 * 1024 * 1024  # the same in bytes
    tls: Tls = Tls()
    acme: Acme | None = None
    cluster: Cluster | None = None
    metrics: str = ""  # the endpoint of the metrics page; empty: there is none
