"""What has to agree between the keys of a configuration, once each was read by itself.

The checks are those of the shapes in :mod:`awesomeproxy.config`: each is given what was
made of a table, and notes what contradicts itself in it.  A key that has been noted already
holds a default or a blank; nothing is said of what merely follows from that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from awesomeproxy import addresses
from awesomeproxy.model import (
    Acme,
    Backend,
    Bypass,
    Cluster,
    Database,
    Filesystem,
    Hook,
    Listen,
    ServerTls,
    Settings,
    Site,
    SiteTls,
)
from awesomeproxy.quantities import show
from awesomeproxy.shapes import Spot

SHORTEST_LEASE = 3.0  # seconds: a beat each fifth of it, and a look each half


class Claims:
    """Which sites claim a host with a path: a look-up each, however many sites there are."""

    def __init__(self, sites: Iterable[Site] = ()) -> None:
        self._names: dict[tuple[str, str], list[tuple[int, str]]] = {}
        self._count = 0
        for site in sites:
            self.add(site)

    def add(self, site: Site) -> None:
        """Enter what ``site`` claims."""
        for host in site.hosts:
            self._names.setdefault((host, site.path), []).append((self._count, site.name))
        self._count += 1

    def overlaps(self, site: Site) -> Iterator[str]:
        """What ``site`` and any other that was added both claim, a text for each."""
        found = [
            (order, index, host, name)
            for index, host in enumerate(site.hosts)
            for order, name in self._names.get((host, site.path), ())
            if name != site.name
        ]
        for _, _, host, name in sorted(found):  # first what the first of them claims, and so on
            yield (
                f"{show(host)} with path {show(site.path)} is claimed by site "
                f"{show(name)} and by site {show(site.name)}; "
                "give one of them another host or path"
            )


def unissued(site: Site, settings: Settings) -> str:
    """Why nobody would issue the certificates that ``site`` wants; empty: somebody will."""
    if not site.tls.acme:
        return ""
    if settings.acme is None:
        return "is true, but nothing says who issues certificates; add an [acme] table"
    if find_spec("acme") is None:
        return "is true, but the acme library is missing; pip install 'awesomeproxy[acme]'"
    return ""


def unknown_databases(site: Site, settings: Settings) -> Iterator[tuple[int, str]]:
    """Which databases ``site`` uses that are not there: where in its list, and a text."""
    for index, name in enumerate(site.uses):
        if name not in settings.databases:
            known = " or ".join(map(show, settings.databases))
            remedy = f"write {known}, or add" if known else "add"
            yield index, f"{show(name)} is not a database; {remedy} [databases.{name}]"


def check_file(settings: Settings, spot: Spot) -> None:
    """The name the node gets by default, and what tables of the file say of each other."""
    try:
        addresses.name(settings.name)
    except ValueError as problem:  # none was written, and the default will not do
        spot.at("node").at("name").wrong(f"the host name {problem}")
    earlier = Claims()
    for name, site in settings.sites.items():
        place = spot.at("sites").at(name)
        if settings.cluster is not None:
            place.wrong(
                "in a cluster sites are not in the file, so that all nodes have the same; move"
                " [sites] to a file of its own and say: awesomeproxy apply FILE"
            )
        if not place.at("path").marred:
            for text in earlier.overlaps(site):
                place.at("hosts").wrong(text)
            earlier.add(site)
        if not spot.at("acme").marred and (text := unissued(site, settings)):
            place.at("tls").at("acme").wrong(text)
        if not spot.at("databases").marred:
            for index, text in unknown_databases(site, settings):
                place.at("uses").item(index).wrong(text)
    _check_endpoints(settings, spot)
    _check_metrics(settings, spot)
    _check_certificates(settings, spot)
    _check_nodes(settings, spot)


def _check_endpoints(settings: Settings, spot: Spot) -> None:
    """No two listen at the same place, as far as that can be seen from what is written."""
    others = [
        (
            f"the database {show(name)}",
            database.endpoint,
            spot.at("databases").at(name).at("endpoint"),
        )
        for name, database in settings.databases.items()
    ]
    if settings.metrics:
        others.append(("the metrics page", settings.metrics, spot.at("node").at("metrics")))
    taken = {listen.endpoint: "a [[listen]]" for listen in settings.listen}
    for what, endpoint, place in others:
        owner = taken.setdefault(endpoint, what)
        if owner != what and not place.marred:
            place.wrong(f"{show(endpoint)} is that of {owner}; give one of them another port")


def _check_metrics(settings: Settings, spot: Spot) -> None:
    """What a page of them takes is there."""
    if settings.metrics and find_spec("prometheus_client") is None:
        spot.at("node").at("metrics").wrong(
            "is given, but the prometheus_client library is missing;"
            " pip install 'awesomeproxy[metrics]'"
        )


def _check_certificates(settings: Settings, spot: Spot) -> None:
    """That there are some, or an authority that will issue them, where they are needed."""
    wanted = any(site.tls.acme for site in settings.sites.values())
    if settings.tls.certificates or settings.acme is not None or wanted:
        return
    if any(spot.at(key).marred for key in ("tls", "acme", "sites")):
        return
    remedy = "add certificates to [tls], or an [acme] table and tls.acme to sites"
    if settings.tls.default:
        spot.at("tls").at("default").wrong(f"names one certificate, but there is none; {remedy}")
    for index, listen in enumerate(settings.listen):
        if listen.tls:
            place = spot.at("listen").item(index).at("tls")
            place.wrong(f"is true, but there is no certificate; {remedy}")


def _check_nodes(settings: Settings, spot: Spot) -> None:
    """What stands or lies on a node is on one that is known; what lives somewhere can."""
    for name, filesystem in settings.filesystems.items():
        for node in filesystem.places:
            if text := _unknown(node, settings):
                spot.at("filesystems").at(name).at("on").at(node).wrong(text)
    if spot.at("filesystems").marred:
        return
    for table, found in (("sites", settings.sites), ("databases", settings.databases)):
        for name, each in found.items():
            for keys, text in homeless(each, settings):
                place = spot.at(table).at(name)
                for key in keys:
                    place = place.at(key)
                place.wrong(text)


def _unknown(node: str, settings: Settings) -> str:
    if not node or node == settings.name or node in settings.nodes:
        return ""
    known = sorted({settings.name, *settings.nodes})
    return (
        f"{show(node)} is not a node; write {' or '.join(map(show, known))}, "
        "or add a table [nodes.NAME]"
    )


def homeless(site: Site | Database, settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with where a site or a database stands and lives: each key, and a text."""
    for backend in site.backends.values():
        if text := _unknown(backend.node, settings):
            yield ("backends", backend.name, "node"), text
    if not site.filesystem:
        return
    lives = settings.filesystems.get(site.filesystem)
    if lives is None:
        remedy = f"add [filesystems.{site.filesystem}]"
        yield ("filesystem",), f"{show(site.filesystem)} is not a filesystem; {remedy}"
        return
    for backend in site.backends.values():
        if backend.node not in lives.places:
            yield (
                ("backends", backend.name, "node"),
                f"has to be one on which the filesystem {show(site.filesystem)} has a place; "
                f"write {' or '.join(map(show, lives.places)) or 'one'}",
            )


def check_hook(hook: Hook, spot: Spot) -> None:
    """There is something to run."""
    if not hook.command and not spot.at("command").marred:
        spot.at("command").wrong(f"is empty; write {addresses.A_COMMAND}")


def check_filesystem(filesystem: Filesystem, spot: Spot) -> None:
    """It starts on a node where it has a place."""
    if filesystem.node and filesystem.places and filesystem.node not in filesystem.places:
        spot.at("node").wrong(
            f"{show(filesystem.node)} has no place for it; "
            f"write {' or '.join(map(show, filesystem.places))}"
        )


def check_site(site: Site, spot: Spot) -> None:
    """The backend it starts on is its own, and certificates can be issued for its hosts."""
    known = " or ".join(map(show, site.backends))
    if site.backend and site.backend not in site.backends and known:
        spot.at("backend").wrong(
            f"{show(site.backend)} is not a backend of this site; write {known}"
        )
    for host in site.hosts if site.tls.acme else ():
        if host.startswith("*."):
            spot.at("tls").at("acme").wrong(
                f"is true, but no certificate can be issued for {show(host)}, only for exact hosts;"
                " write false and add its certificate to [tls], or make it another site"
            )


def check_bypass(bypass: Bypass, spot: Spot) -> None:
    """A header and its secret come together."""
    if bypass.header and not bypass.secret and not spot.at("secret").marred:
        spot.at("secret").wrong("is missing, but there is a header; add the secret it must carry")
    if bypass.secret and not bypass.header and not spot.at("header").marred:
        spot.at("header").wrong("is missing, but there is a secret; name the header it comes in")


def check_backend(backend: Backend, spot: Spot) -> None:
    """What is said of connections to the servers suits the servers."""
    if backend.send_proxy and any(server.http2 for server in backend.servers):
        spot.at("send_proxy").wrong(
            "is for connections of one client each, which those to h2:// and h2c:// servers are"
            ' not; write ""'
        )
    if spot.at("servers").marred or any(server.tls for server in backend.servers):
        return
    if backend.tls != ServerTls():
        spot.at("tls").wrong('is for servers with "https://" or "h2://"; there is none, remove it')


def check_server_tls(tls: ServerTls, spot: Spot) -> None:
    """A key has its certificate, and what is to be verified is."""
    if tls.key and not tls.certificate and not spot.at("certificate").marred:
        spot.at("certificate").wrong("is missing, but there is a key; name the file of its chain")
    if not tls.verify and (tls.ca_file or tls.name):
        spot.at("verify").wrong(
            "is false, but there is a ca_file or a name to verify; remove these, or write true"
        )


def check_site_tls(tls: SiteTls, spot: Spot) -> None:
    """What holds for names below the site's holds for those."""
    if tls.hsts_subdomains and not tls.hsts and not spot.at("hsts").marred:
        spot.at("hsts").wrong("is missing, but there is hsts_subdomains; write for how long")


def check_listen(listen: Listen, spot: Spot) -> None:
    """One kind of HTTP/2, and neither TLS nor a PROXY header that the endpoint has taken off."""
    if listen.tls and listen.h2c:
        spot.at("h2c").wrong(
            "is for listeners without TLS; write false: with TLS, http2 offers HTTP/2"
        )
    kinds = listen.endpoint.lower().split(":")[:2]  # two: some kinds wrap another
    if listen.tls and "ssl" in kinds:
        spot.at("tls").wrong("is true, but the endpoint has TLS of its own; make that tcp:PORT")
    if listen.proxy_protocol and "haproxy" in kinds:
        spot.at("proxy_protocol").wrong(
            "is for an endpoint that leaves PROXY headers alone; make that tcp:PORT"
        )


def check_cluster(cluster: Cluster, spot: Spot) -> None:
    """There is one Redis, or Sentinels that are asked for it, and what is said of it suits it."""
    if len(cluster.addresses) > 1 and not cluster.master:
        spot.at("redis").wrong(
            'has several addresses, but there is no master; add master = "NAME" if these are'
            " Sentinels, or keep one"
        )
    for key in ("sentinel_user", "sentinel_password_file"):
        if getattr(cluster, key) and not cluster.master and not spot.at("master").marred:
            spot.at(key).wrong("is for Sentinels, but there is no master; remove it, or add that")
    for user, file in (("user", "password_file"), ("sentinel_user", "sentinel_password_file")):
        if spot.at(user).marred or spot.at(file).marred:
            continue
        if getattr(cluster, user) and not getattr(cluster, file):
            spot.at(file).wrong(f"is missing, but there is a {user}; name the file of its password")
    tls = cluster.ca_file or cluster.verify_name or cluster.certificate or cluster.key
    if tls and not cluster.tls and not spot.at("redis").marred:
        spot.at("tls").wrong('is for "rediss://"; write that, or remove it')
    elif cluster.key and not cluster.certificate and not spot.at("tls").marred:
        spot.at("tls").at("certificate").wrong(
            "is missing, but there is a key; name the file of its chain"
        )
    if cluster.lease < SHORTEST_LEASE:
        spot.at("lease").wrong(
            f"{cluster.lease:g} s is too short; write at least {SHORTEST_LEASE:g} s"
        )


def check_acme(acme: Acme, spot: Spot) -> None:
    """The terms are agreed to, and an external account has both its halves."""
    if not acme.terms_agreed and not spot.at("terms_agreed").marred:
        spot.at("terms_agreed").wrong(
            "is not true; read the authority's terms of service, and write true if you agree"
        )
    if bool(acme.eab_key_id) != bool(acme.eab_key_file):
        missing = "eab_key_file" if acme.eab_key_id else "eab_key_id"
        if not spot.at(missing).marred:
            spot.at(missing).wrong("is missing; eab_key_id and eab_key_file come together")
