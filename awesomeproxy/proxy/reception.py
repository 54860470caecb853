"""What becomes of a request before it has come to a gate: a site takes it, or an answer.

This is the same for all versions of HTTP, and for all a client may have sent: it is the
one place where requests are turned away for what they are.  What turns them away for what
goes on -- no room, a pause that lasts, a server that fails -- comes later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from awesomeproxy.model import Listen
from awesomeproxy.proxy.answers import Answer, explain, plain
from awesomeproxy.proxy.arrival import Arrival
from awesomeproxy.proxy.fields import number
from awesomeproxy.proxy.heads import Origin
from awesomeproxy.proxy.requests import Request
from awesomeproxy.proxy.router import BadHost

if TYPE_CHECKING:
    from awesomeproxy.proxy.plane import Plane
    from awesomeproxy.proxy.site import LiveSite


def receive(
    plane: Plane, listen: Listen, arrival: Arrival, origin: Origin, request: Request
) -> LiveSite | Answer:
    """The site for ``request``, which is given its identity; or what to answer at once."""
    if not (origin.trusted and request.request_id):
        request.request_id = plane.request_id()
    if plane.challenges and (proof := plane.challenges.get(request.target)) is not None:
        # Whoever asks for it decides whether a site may have a certificate at all, so it
        # comes before the site, its gate and its redirects (RFC 8555, section 8.3).
        return plain(200, b"application/octet-stream", proof)
    host = request.host or b""
    try:
        site = plane.router.find(host, request.target)
    except BadHost:
        return explain(400, "The Host field does not name a host.", request)
    if site is None:
        name = (request.host or b"no name").decode("latin-1")
        return explain(404, f"No site is known here by the name {name}.", request)
    if arrival.server_name and _misdirected(plane, arrival, request, site):
        return explain(
            421,
            f"This connection was opened for {arrival.server_name}, which is not this site.",
            request,
        )
    if site.guarded:
        refused = _guarded(plane, arrival, origin, request, site)
        if refused is not None:
            return refused
    if request.via is not None or request.max_forwards is not None:
        return _travelled(plane, request) or site
    return site


def _misdirected(plane: Plane, arrival: Arrival, request: Request, site: LiveSite) -> bool:
    """Whether the handshake has named another site (RFC 9110, section 7.4)."""
    name = arrival.server_name.encode()
    if request.host == name:
        return False
    try:
        return plane.router.find(name, request.target) is not site
    except BadHost:  # a handshake can name what is no host, and get the default certificate
        return True


def _guarded(
    plane: Plane, arrival: Arrival, origin: Origin, request: Request, site: LiveSite
) -> Answer | None:
    """What a site that is not for all, or not for all of a request, answers."""
    if not site.welcomes(arrival.address):
        return explain(403, "The site is not for clients of this address.", request)
    max_body = site.site.max_body
    if max(request.length, request.received) > max_body > 0:
        return explain(413, f"The request's body is longer than {max_body} bytes.", request)
    encrypted = arrival.tls or (origin.trusted and request.forwarded_proto == b"https")
    if site.site.tls.redirect and not encrypted:
        location = (b"Location", _encrypted(plane, request))
        return explain(308, "The site is to be asked over TLS.", request, location)
    return None


def _encrypted(plane: Plane, request: Request) -> bytes:
    """The URL under which the same is to be had over TLS."""
    name, colon, port = (request.host or b"").rpartition(b":")
    if not colon or not (port.isdigit() or not port):  # an IPv6 address ends in a bracket
        name = request.host or b""
    number = b"" if plane.https_port == 443 else b":%d" % plane.https_port
    path = b"" if request.target == b"*" else request.target  # RFC 9110, section 7.1
    return b"https://%b%b%b" % (name, number, path)


def _travelled(plane: Plane, request: Request) -> Answer | None:
    """What is answered to a request that has come to the end of its way."""
    if request.via is not None and plane.via_token in request.via:
        return explain(
            508,
            "The request has come back to this proxy: a server of the site is the proxy itself.",
            request,
        )
    if request.max_forwards is not None and request.method in (b"OPTIONS", b"TRACE"):
        # RFC 9110, section 7.6.2
        left = number(request.max_forwards)
        if left < 0:
            return explain(400, "Max-Forwards is not a number.", request)
        if left == 0:
            return explain(200, "Max-Forwards ended here.", request)
        request.max_forwards = b"%d" % (left - 1)
    return None
