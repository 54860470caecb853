"""What the metrics page tells: families of samples, read from the node when it is asked.

A family of many sites comes in several pieces that follow each other, each of
:data:`SLICE` samples at the most, so that no piece takes long.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, get_args

from prometheus_client import ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)

from awesomeproxy import __version__
from awesomeproxy.cluster.interface import MemberState
from awesomeproxy.proxy.livedatabase import LiveDatabase
from awesomeproxy.proxy.site import LiveSite

if TYPE_CHECKING:  # a node by itself need not have what Redis takes
    from awesomeproxy.node import Node
    from awesomeproxy.registry.redis import RedisRegistry

SLICE = 250  # samples: some 2 ms

Live = TypeVar("Live", LiveSite, LiveDatabase)
Row = tuple[Sequence[str], float]  # the values of labels, and of a sample

# The fields of Counters.
_COUNTED = {
    "requests": "that were taken in",
    "held": "that had to wait at the gate",
    "released": "that waited and were forwarded",
    "departed": "whose client left while they waited",
    "refused": "that found no room to wait, or waited too long",
    "retried": "that were sent again, which was safe",
    "ambiguous": "that may have been carried out: answered 502, not sent again",
    "failed": "that failed for any other reason",
}
_NOT_OF_DATABASES = ("retried", "ambiguous")  # a connection is never opened for its client again


def families(node: Node) -> Iterator[Metric]:
    """All that there is to tell of a node, now."""
    yield InfoMetricFamily(
        "awesomeproxy",
        "The node and its program.",
        {"node": node.settings.name, "version": __version__},
    )
    yield from ProcessCollector(registry=None).collect()
    yield from _of_node(node)
    if not node.cluster.alone:
        yield from _of_cluster(node)
    yield from _gates("site", "requests", node.plane.sites)
    yield from _gates("database", "connections", node.plane.databases)
    yield from _servers(node)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"awesomeproxy_{name}", what, value)


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(f"awesomeproxy_{name}", what, value)


def _of_node(node: Node) -> Iterator[Metric]:
    plane, certificates = node.plane, node.certifying.certificates
    yield _gauge("connections", "Connections of clients.", len(plane.clients))
    yield _gauge(
        "connections_max", "Connections that clients may have at one time.", plane.max_connections
    )
    yield _gauge("held", "Requests that wait at the gates of all sites.", plane.held.requests)
    yield _gauge("held_bytes", "Bytes of these that are in memory.", plane.held.bytes)
    handshakes = CounterMetricFamily(
        "awesomeproxy_tls_handshakes", "TLS handshakes with clients.", labels=["result"]
    )
    handshakes.add_metric(["done"], plane.handshakes)
    handshakes.add_metric(["failed"], plane.handshakes_failed)
    yield handshakes
    yield _counter(
        "proxy_headers_refused", "Connections without a good PROXY header.", plane.bad_headers.count
    )
    yield _gauge("certificates", "Certificates in use.", len(certificates))
    yield _gauge(
        "certificate_problems", "Certificates that cannot be used.", len(certificates.problems)
    )
    ends = [pair.ends for pair in certificates.pairs().values()]
    if ends:
        yield _gauge(
            "certificate_expiry_seconds",
            "Until the first of them ends.",
            round(min(ends) - time.time(), 3),
        )
    yield _gauge("migrations", "Migrations that this node carries out now.", node.moves.count)
    yield from _pieces(
        "filesystem_there",
        "Whether a filesystem is where it is placed, and only there; 0 while it moves.",
        ["filesystem"],
        (
            ([each["name"]], each["state"] in ("mounted", "there") and not each["trouble"])
            for each in node.residence.status()
        ),
    )


def _of_cluster(node: Node) -> Iterator[Metric]:
    registry: RedisRegistry = node.registry  # type: ignore[assignment]
    link, cluster = registry.link, node.cluster
    yield _gauge(
        "registry_up", "Whether the registry can be reached and has been read.", link.ready
    )
    yield _gauge("registry_lost_seconds", "Since it could not be reached.", round(link.lost, 3))
    for name, count in {**link.counters, **registry.counters, **cluster.counters}.items():
        yield _counter(*_CLUSTER[name], count)
    yield _gauge(
        "pause_possible", "Whether a pause or a migration can complete now.", not cluster.trouble()
    )
    yield _gauge(
        "withheld",
        "Whether this node holds all sites for want of the registry.",
        bool(node.membership.withheld),
    )
    states = Counter(member.state for member in cluster.members())
    yield from _pieces(
        "cluster_nodes",
        "Nodes of the cluster, by what this node knows of them.",
        ["state"],
        (([state], states[state]) for state in get_args(MemberState)),
    )


_CLUSTER = {
    "reconnects": ("registry_reconnects", "Connections to the registry after the first."),
    "epochs": ("registry_epochs", "Times that it was seen to have lost what was written."),
    "mended": ("registry_mended", "Records that this node wrote again then."),
    "gaps": ("registry_gaps", "Changes that this node read late, as it was not told of them."),
    "beats": ("lease_beats", "Renewals of this node's lease."),
    "lapses": ("lease_lapses", "Times that it was over before it was renewed."),
}


def _gates(kind: str, what: str, lives: Mapping[str, Live]) -> Iterator[Metric]:
    """The gates of sites, or of databases."""
    capital = what.capitalize()
    gauges: dict[str, tuple[str, Callable[[Live], float]]] = {
        "open": (f"Whether {what} go on.", lambda live: live.gate.state == "open"),
        "in_flight": (f"{capital} at the backend.", lambda live: live.in_flight),
        "held": (f"{capital} that wait at the gate.", lambda live: live.gate.waiting),
        "generation": ("Of where it is placed.", lambda live: live.placement.generation),
    }
    for name, (words, value) in gauges.items():
        rows = (([key], value(live)) for key, live in list(lives.items()))
        yield from _pieces(f"{kind}_{name}", words, [kind], rows)
    for field, words in _COUNTED.items():
        if kind == "database" and field in _NOT_OF_DATABASES:
            continue
        rows = (([key], getattr(live.counters(), field)) for key, live in list(lives.items()))
        name = what if field == "requests" else f"{what}_{field}"
        yield from _pieces(
            f"{kind}_{name}", f"{capital} {words}.", [kind], rows, CounterMetricFamily
        )
    yield from _pieces(
        f"{kind}_placed",
        "On which backend it is placed.",
        [kind, "backend"],
        (([key, live.placement.backend], 1) for key, live in list(lives.items())),
    )


def _servers(node: Node) -> Iterator[Metric]:
    now = node.plane.seconds()
    return _pieces(
        "server_up",
        "Whether a server of a site is asked.",
        ["site", "backend", "server"],
        (
            ([name, backend, str(server.server)], server.usable(now))
            for name, live in list(node.plane.sites.items())
            for backend, found in live.backends.items()
            for server in found.servers
        ),
    )


def _pieces(
    name: str,
    what: str,
    labels: Sequence[str],
    rows: Iterable[Row],
    family: type[GaugeMetricFamily | CounterMetricFamily] = GaugeMetricFamily,
) -> Iterator[Metric]:
    rest = iter(rows)
    while piece := list(islice(rest, SLICE)):
        found = family(f"awesomeproxy_{name}", what, labels=labels)
        for values, value in piece:
            found.add_metric(values, value)
        yield found
