"""What becomes of a request before it comes to a gate, whatever HTTP it has come in.

Each test that says nothing else holds for HTTP/1.1 and HTTP/2, with TLS.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from edge_stage import Edge, edge
from h2_wire import ask
from plane_stage import Answer, Wire, answering, fields_of, ok, one_request, twisted_test
from secure_stage import authority, place
from tls_stage import Authority

from awesomeproxy.model import (
    Access,
    Backend,
    Bypass,
    Desired,
    Listen,
    Mode,
    Placement,
    Site,
    SiteTls,
)

__all__ = ["authority", "place"]  # fixtures

BOTH = pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
LOCAL = ip_network("127.0.0.0/8")
REDIRECT = SiteTls(redirect=True)
YEAR = 365 * 86400.0


async def asked(
    on: Edge,
    http2: bool,
    host: str = "blog.example",
    *,
    name: str | None = "blog.example",
    secure: bool = True,
    path: str = "/",
    more: tuple[tuple[str, str], ...] = (),
    method: str = "GET",
) -> Any:
    """What is answered: something with a status, fields to be had by name, and a body."""
    if http2:
        client = await on.http2(name, secure=secure)
        client.send(ask(1, *more, authority=host, path=path, method=method))
        answer: Any = await client.response(1)
        client.wire.abort()
        return answer
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{n}: {v}" for n, v in more), "", ""]
    data = "\r\n".join(lines).encode()
    wire = await on.tls(name, data=data) if secure else await on.plain(data)
    http1: Answer = await wire.answer()
    wire.abort()
    return http1


def other_sites(on: Edge) -> None:
    """Besides ``blog``: ``wide`` with two names below one, and ``shop`` on another."""
    backends = {"there": Backend("there", (on.on.origin.server,))}
    for name, hosts in (("wide", ("*.wide.example", "wide.example")), ("shop", ("shop.example",))):
        on.on.plane.apply(Desired(Site(name, hosts, "there", backends), Placement(name, "there")))


@pytest.fixture(scope="module")
def places(authority: Authority) -> Path:
    """A certificate for each of several sites, the wildcard's for all of them."""
    path = authority.directory / "several"
    authority.issue("blog.example", path=path / "blog.crt")
    authority.issue("shop.example", path=path / "shop.crt")
    authority.issue("*.wide.example", "wide.example", path=path / "wide.crt")
    return path


# One connection, one site


@BOTH
@pytest.mark.parametrize(
    ("name", "host", "status"),
    [
        ("blog.example", "blog.example", 200),
        ("blog.example", "BLOG.Example:443", 200),
        ("blog.example", "blog.example.", 200),
        ("blog.example", "shop.example", 421),
        ("shop.example", "blog.example", 421),
        ("blog.example", "nobody.example", 404),
        ("a.wide.example", "b.wide.example", 200),
        ("a.wide.example", "wide.example", 200),
        ("A.Wide.Example", "a.wide.example", 200),
        ("stranger.example", "blog.example", 421),
        ("no_host!.example", "blog.example", 421),
        (None, "shop.example", 200),
    ],
)
@twisted_test
async def test_a_connection_is_for_the_site_it_was_opened_for(
    name: str | None, host: str, status: int, http2: bool, authority: Authority, places: Path
) -> None:
    """A request for another site than its handshake has named is misdirected (421)."""
    async with edge(authority, places, answering, default="blog.example") as on:
        other_sites(on)
        assert (await asked(on, http2, host, name=name)).status == status


@BOTH
@twisted_test
async def test_paths_of_one_host_may_be_several_sites(
    http2: bool, authority: Authority, place: Path
) -> None:
    """A handshake names a host: all the sites of that host may be asked for."""
    async with edge(authority, place, answering) as on:
        backends = {"there": Backend("there", (on.on.origin.server,))}
        site = Site("admin", ("blog.example",), "there", backends, path="/admin")
        on.on.plane.apply(Desired(site, Placement("admin", "there")))
        assert (await asked(on, http2, path="/admin/x")).status == 200
        assert on.on.plane.sites["admin"].requests == 1
        assert (await asked(on, http2, path="/x")).status == 200


@BOTH
@twisted_test
async def test_a_misdirected_request_reaches_no_server(
    http2: bool, authority: Authority, places: Path
) -> None:
    """What is answered 421 goes nowhere, and says for whom the connection is."""
    async with edge(authority, places) as on:
        other_sites(on)
        answer = await asked(on, http2, "blog.example", name="shop.example")
        assert b"shop.example" in answer.body
        assert not on.on.origin.wires


# To TLS


@BOTH
@pytest.mark.parametrize(
    ("host", "path", "location"),
    [
        ("blog.example", "/a?b=c", "https://blog.example/a?b=c"),
        ("blog.example:8080", "/", "https://blog.example/"),
        ("blog.example:", "/", "https://blog.example/"),
        ("Blog.Example", "/%20", "https://Blog.Example/%20"),
    ],
)
@twisted_test
async def test_whoever_comes_without_tls_is_sent_there(
    host: str, path: str, location: str, http2: bool, authority: Authority, place: Path
) -> None:
    """308 to the same URL with https, without the port that was asked on."""
    async with edge(authority, place, tls=REDIRECT) as on:
        on.on.plane.https_port = 443
        answer = await asked(on, http2, host, secure=False, path=path, method="POST")
        assert (answer.status, answer["location"]) == (308, location)
        assert not on.on.origin.wires


@BOTH
@twisted_test
async def test_an_asterisk_is_sent_to_the_host(
    http2: bool, authority: Authority, place: Path
) -> None:
    """The URL that stands for ``OPTIONS *`` has no path."""
    async with edge(authority, place, tls=REDIRECT) as on:
        on.on.plane.https_port = 443
        answer = await asked(on, http2, secure=False, path="*", method="OPTIONS")
        assert (answer.status, answer["location"]) == (308, "https://blog.example")


@BOTH
@twisted_test
async def test_they_are_sent_to_the_port_that_has_tls(
    http2: bool, authority: Authority, place: Path
) -> None:
    """The port of the listener with TLS is named if it is not the usual one."""
    async with edge(authority, place, tls=REDIRECT) as on:
        answer = await asked(on, http2, "blog.example:80", secure=False)
        assert answer["location"] == f"https://blog.example:{on.secure_port}/"


@twisted_test
async def test_an_ipv6_address_keeps_its_brackets(authority: Authority, place: Path) -> None:
    """The colons of an address are not taken for that of a port."""
    async with edge(authority, place, tls=REDIRECT) as on:
        on.on.define(hosts=("[::1]",))
        for host in ("[::1]", "[::1]:80"):
            answer = await asked(on, False, host, secure=False)
            assert answer["location"] == f"https://[::1]:{on.secure_port}/"


@twisted_test
async def test_without_a_listener_of_its_own_tls_is_at_the_usual_port(
    authority: Authority, place: Path
) -> None:
    """Whoever lets another proxy do TLS finds it at 443."""
    async with edge(authority, place, tls=REDIRECT) as on:
        await on.on.plane.listen([Listen("tcp:port=0:interface=127.0.0.1")])
        answer = await asked(on, False, secure=False)
        assert answer["location"] == "https://blog.example/"


@twisted_test
async def test_the_first_of_several_listeners_is_named(authority: Authority, place: Path) -> None:
    """In the order of the configuration, also if it is new."""
    async with edge(authority, place, tls=REDIRECT) as on:
        plane = on.on.plane
        first, second = (Listen(f"tcp:{n}:interface=127.0.0.1", tls=True) for n in ("0", "port=0"))
        await plane.listen([Listen("tcp:0:interface=127.0.0.1:backlog=9"), first, second])
        found: dict[str, Any] = {text: port.getHost() for text, port in plane._ports.items()}
        assert plane.https_port == found[first.endpoint].port
        await plane.listen([Listen("tcp:0:interface=127.0.0.1:backlog=9"), second, first])
        assert plane.https_port == found[second.endpoint].port


@BOTH
@twisted_test
async def test_whoever_comes_with_tls_is_served(
    http2: bool, authority: Authority, place: Path
) -> None:
    """No redirect from where it would lead."""
    async with edge(authority, place, answering, tls=REDIRECT) as on:
        assert (await asked(on, http2)).status == 200


@BOTH
@pytest.mark.parametrize(
    ("networks", "proto", "status"),
    [((LOCAL,), "https", 200), ((LOCAL,), "http", 308), ((), "https", 308)],
)
@twisted_test
async def test_a_trusted_proxy_may_have_done_tls(
    networks: Any, proto: str, status: int, http2: bool, authority: Authority, place: Path
) -> None:
    """``X-Forwarded-Proto: https`` counts as TLS, from those who are trusted."""
    plain = {"trusted_proxies": networks}
    async with edge(authority, place, answering, tls=REDIRECT, plain=plain) as on:
        more = (("x-forwarded-proto", proto),)
        assert (await asked(on, http2, secure=False, more=more)).status == status


# The proof that a name is ours

PROOF = "/.well-known/acme-challenge/token"


@BOTH
@pytest.mark.parametrize("host", ["blog.example", "nobody.example", "10.0.0.1"])
@twisted_test
async def test_a_challenge_is_answered_before_everything_else(
    host: str, http2: bool, authority: Authority, place: Path
) -> None:
    """Whatever the host, and neither redirected, refused, nor held."""
    access = Access(deny=(LOCAL,))
    async with edge(authority, place, tls=REDIRECT, access=access) as on:
        on.on.place(Mode.HOLDING)
        on.on.plane.challenges[PROOF.encode()] = b"token.thumbprint"
        answer = await asked(on, http2, host, secure=False, path=PROOF)
        assert (answer.status, answer.body) == (200, b"token.thumbprint")
        assert answer["content-type"] == "application/octet-stream"


@BOTH
@twisted_test
async def test_a_challenge_that_is_not_ours_goes_to_the_server(
    http2: bool, authority: Authority, place: Path
) -> None:
    """A server may have certificates issued by itself."""
    async with edge(authority, place, answering) as on:
        on.on.plane.challenges[b"/.well-known/acme-challenge/another"] = b"another.thumbprint"
        assert (await asked(on, http2, secure=False, path=PROOF)).body == b"ok"


# What is said of TLS


@BOTH
@twisted_test
async def test_browsers_are_told_to_insist_on_tls(
    http2: bool, authority: Authority, place: Path
) -> None:
    """Strict-Transport-Security is on what is sent over TLS, and on nothing else."""
    async with edge(authority, place, answering, tls=SiteTls(hsts=YEAR)) as on:
        answer = await asked(on, http2)
        assert answer["strict-transport-security"] == "max-age=31536000"
        answer = await asked(on, http2, secure=False)
        assert answer["strict-transport-security"] is None


@BOTH
@twisted_test
async def test_they_are_told_so_of_the_names_below(
    http2: bool, authority: Authority, place: Path
) -> None:
    """``hsts_subdomains`` adds includeSubDomains."""
    tls = SiteTls(hsts=60, hsts_subdomains=True)
    async with edge(authority, place, answering, tls=tls) as on:
        answer = await asked(on, http2)
        assert answer["strict-transport-security"] == "max-age=60; includeSubDomains"


@BOTH
@twisted_test
async def test_what_the_server_says_of_it_is_kept(
    http2: bool, authority: Authority, place: Path
) -> None:
    """There is never more than one Strict-Transport-Security, and the server's wins."""
    own = ok(b"ok", b"strict-transport-security: max-age=1")

    async def script(wire: Any) -> None:
        await answering(wire, own)

    async with edge(authority, place, script, tls=SiteTls(hsts=YEAR)) as on:
        assert (await asked(on, http2))["strict-transport-security"] == "max-age=1"


@BOTH
@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
@twisted_test
async def test_the_server_is_told_how_the_client_came(
    secure: bool, http2: bool, authority: Authority, place: Path
) -> None:
    """X-Forwarded-Proto says whether there was TLS; what the client says of it is dropped."""
    heads = []

    async def script(wire: Any) -> None:
        heads.append((await one_request(wire))[0])
        wire.write(ok(b"ok"))

    async with edge(authority, place, script) as on:
        await asked(on, http2, secure=secure, more=(("x-forwarded-proto", "ftp"),))
        assert fields_of(heads[0])[b"x-forwarded-proto"] == (b"https" if secure else b"http")


# Who may ask

FOUR, SIX = ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")
HOME4, HOME6 = ip_network("192.0.2.7/32"), ip_network("2001:db8::7/128")


def v1(source: str) -> bytes:
    """A PROXY header with that address of a client."""
    six = ":" in source
    return f"PROXY TCP{6 if six else 4} {source} {'::1' if six else '127.0.0.1'} 5 80\r\n".encode()


@pytest.mark.parametrize(
    ("access", "source", "status"),
    [
        (Access(), "192.0.2.7", 200),
        (Access(allow=(FOUR,)), "192.0.2.7", 200),
        (Access(allow=(FOUR,)), "198.51.100.1", 403),
        (Access(allow=(FOUR,)), "2001:db8::7", 403),
        (Access(allow=(FOUR,)), "::ffff:192.0.2.7", 200),
        (Access(allow=(SIX,)), "2001:db8::7", 200),
        (Access(allow=(SIX,)), "192.0.2.7", 403),
        (Access(deny=(FOUR,)), "192.0.2.7", 403),
        (Access(deny=(FOUR,)), "::ffff:192.0.2.7", 403),
        (Access(deny=(FOUR,)), "198.51.100.1", 200),
        (Access(deny=(SIX,)), "2001:db8::7", 403),
        (Access(allow=(FOUR,), deny=(HOME4,)), "192.0.2.7", 403),
        (Access(allow=(FOUR,), deny=(HOME4,)), "192.0.2.8", 200),
        (Access(allow=(SIX,), deny=(HOME6,)), "2001:db8::7", 403),
    ],
)
@twisted_test
async def test_access_is_for_whom_the_networks_say(
    access: Access, source: str, status: int, authority: Authority, place: Path
) -> None:
    """What counts is the address that the PROXY header says, IPv4 however it is written."""
    plain = {"proxy_protocol": (LOCAL,)}
    async with edge(authority, place, answering, access=access, plain=plain) as on:
        wire = await on.plain(v1(source) + b"GET / HTTP/1.1\r\nHost: blog.example\r\n\r\n")
        assert (await wire.answer()).status == status


@BOTH
@twisted_test
async def test_who_may_not_ask_is_told_so_and_written_down(
    http2: bool, authority: Authority, place: Path, tmp_path: Path
) -> None:
    """403, and a line in the access log."""
    log = tmp_path / "access.log"
    plane = {"access_log": str(log)}
    async with edge(authority, place, access=Access(deny=(LOCAL,)), plane=plane) as on:
        assert (await asked(on, http2)).status == 403
        assert not on.on.origin.wires
        await on.on.pass_time(2)
    line = log.read_text()
    version = "2.0" if http2 else "1.1"
    assert " 127.0.0.1 - - - " in line
    assert f'"GET / HTTP/{version}" 403 ' in line


@twisted_test
async def test_a_redirect_is_not_for_those_who_may_not_ask(
    authority: Authority, place: Path
) -> None:
    """Who is not welcome learns nothing else."""
    access = Access(deny=(LOCAL,))
    async with edge(authority, place, access=access, tls=REDIRECT) as on:
        assert (await asked(on, False, secure=False)).status == 403


@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
@twisted_test
async def test_the_server_hears_of_the_address_in_the_proxy_header(
    secure: bool, authority: Authority, place: Path
) -> None:
    """X-Forwarded-For has the client's, not that of the proxy in front."""
    heads = []

    async def script(wire: Any) -> None:
        heads.append((await one_request(wire))[0])
        wire.write(ok(b"ok"))

    both = {"proxy_protocol": (LOCAL,)}
    async with edge(authority, place, script, plain=both, secure=both) as on:
        request = b"GET / HTTP/1.1\r\nHost: blog.example\r\n\r\n"
        if secure:
            wire: Wire = await on.tls(data=request, before=v1("192.0.2.7"))
        else:
            wire = await on.plain(v1("192.0.2.7") + request)
        assert (await wire.answer()).status == 200
        assert fields_of(heads[0])[b"x-forwarded-for"] == b"192.0.2.7"


@pytest.mark.parametrize(("source", "passes"), [("192.0.2.7", True), ("192.0.2.8", False)])
@twisted_test
async def test_the_bypass_is_for_the_address_in_the_proxy_header(
    source: str, passes: bool, authority: Authority, place: Path
) -> None:
    """A held gate lets those by whose own address is in the networks."""
    plain = {"proxy_protocol": (LOCAL,)}
    bypass = Bypass(networks=(HOME4,))
    async with edge(authority, place, answering, bypass=bypass, plain=plain) as on:
        on.on.place(Mode.HOLDING)
        wire = await on.plain(v1(source) + b"GET / HTTP/1.1\r\nHost: blog.example\r\n\r\n")
        if passes:
            assert (await wire.answer()).status == 200
        else:
            await on.on.held()


@twisted_test
async def test_who_sends_no_proxy_header_where_one_is_due_is_not_answered(
    authority: Authority, place: Path
) -> None:
    """Those networks speak for others, or not at all."""
    async with edge(authority, place, plain={"proxy_protocol": (LOCAL,)}) as on:
        wire = await on.plain(b"GET / HTTP/1.1\r\nHost: blog.example\r\n\r\n")
        assert await wire.rest() == b""


@twisted_test
async def test_a_proxy_header_from_elsewhere_is_no_request(
    authority: Authority, place: Path
) -> None:
    """Who is not trusted with it gets 400 for it."""
    networks = {"proxy_protocol": (ip_network("10.0.0.0/8"),), "h2c": False}
    async with edge(authority, place, plain=networks) as on:
        wire = await on.plain(v1("192.0.2.7") + b"GET / HTTP/1.1\r\nHost: blog.example\r\n\r\n")
        assert (await wire.answer()).status == 400
