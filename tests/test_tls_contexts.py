"""The contexts of both sides, in real handshakes with Python's own TLS as the other end."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from OpenSSL import SSL
from tls_stage import Authority, Ends, Issued, client_trust, shake
from twisted.logger import LogLevel, capturedLogs

from awesomeproxy.model import Backend, Server, ServerTls
from awesomeproxy.tls.accepting import Refused, select
from awesomeproxy.tls.contexts import server_context
from awesomeproxy.tls.pairs import PairError, read_pair
from awesomeproxy.tls.verifying import (
    ClientContexts,
    Unverified,
    client_context,
    identity,
    server_name,
    verify_peer,
)

PLAIN = Server("https", "a.test", 443)
H2 = Server("h2", "a.test", 443)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def pair(authority: Authority) -> Issued:
    return authority.subordinate().issue("a.test", "127.0.0.1")


@pytest.fixture
def ends() -> Iterator[Ends]:
    both = Ends()
    yield both
    both.close()


def backend(server: Server = PLAIN, **tls: object) -> Backend:
    return Backend("web", (server,), tls=ServerTls(**tls))  # type: ignore[arg-type]


def origin(issued: Issued, ends: Ends, ca_file: Path | None = None) -> ssl.SSLSocket:
    """A server's end; with ``ca_file`` it wants to know its client."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issued.certificate, issued.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca_file)
    return ends.answer(context)


def towards(sock: socket.socket, made: SSL.Context) -> SSL.Connection:
    """A client's end, on one of our contexts."""
    connection = SSL.Connection(made, sock)
    connection.set_connect_state()
    return connection


# Towards clients


@pytest.mark.parametrize(
    ("group", "taken"),
    [
        ("X25519", True),
        ("P-256", True),
        ("P-384", True),
        ("P-521", False),
        ("X448", False),
        ("ffdhe2048", False),
        ("ffdhe3072", False),
        ("ffdhe8192", False),
    ],
)
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_keys_are_exchanged_in_the_groups_of_the_profile(
    authority: Authority, group: str, taken: bool, version: str
) -> None:
    """With ``openssl s_client``: Python's own TLS cannot say which it wants."""
    pair = authority.issue("a.test", key="rsa")  # in TLS 1.2 one on a curve needs that curve
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        client = subprocess.Popen(
            ["openssl", *f"s_client {version} -groups {group} -connect 127.0.0.1:{port}".split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            sock, _ = listening.accept()
            with sock:
                read = read_pair(str(pair.certificate), str(pair.key))
                connection = SSL.Connection(server_context(select, read), sock)
                connection.set_accept_state()
                if taken:
                    connection.do_handshake()
                else:
                    with pytest.raises(SSL.Error):
                        connection.do_handshake()
        finally:
            client.kill()
            client.wait()


def test_ciphers_of_tls_1_2_are_those_of_the_intermediate_profile() -> None:
    """Without the finite-field ones."""
    offered = SSL.Connection(server_context(select)).get_cipher_list()
    assert sorted(offered) == sorted(
        [
            "TLS_AES_128_GCM_SHA256",
            "TLS_AES_256_GCM_SHA384",
            "TLS_CHACHA20_POLY1305_SHA256",
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-RSA-AES128-GCM-SHA256",
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-RSA-AES256-GCM-SHA384",
            "ECDHE-ECDSA-CHACHA20-POLY1305",
            "ECDHE-RSA-CHACHA20-POLY1305",
        ]
    )


def served(issued: Issued, sock: socket.socket) -> SSL.Connection:
    connection = SSL.Connection(
        server_context(
            lambda _, offered: offered[0], read_pair(str(issued.certificate), str(issued.key))
        ),
        sock,
    )
    connection.set_accept_state()
    return connection


@pytest.mark.parametrize(
    ("version", "spoken"),
    [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")],
)
@pytest.mark.parametrize("key", ["ec", "rsa"])
def test_either_version_is_spoken_with_either_key(
    authority: Authority,
    ends: Ends,
    version: ssl.TLSVersion,
    spoken: str,
    key: str,
) -> None:
    """With a chain that leads to what the client trusts."""
    context = client_trust(authority)
    context.minimum_version = context.maximum_version = version
    issued = authority.subordinate().issue("a.test", key=key)  # type: ignore[arg-type]
    client = ends.ask(context, "a.test")
    assert shake(client, served(issued, ends.server)) == (None, None)
    assert client.version() == spoken
    assert client.compression() is None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_older_versions_are_refused(authority: Authority, pair: Issued, ends: Ends) -> None:
    """TLS 1.1 and what came before (RFC 8996)."""
    context = client_trust(authority)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    _, failure = shake(ends.ask(context, "a.test"), served(pair, ends.server))
    assert "unsupported protocol" in str(failure)


def test_the_client_chooses_the_cipher(authority: Authority, pair: Issued, ends: Ends) -> None:
    """It may be one without AES in its processor."""
    context = client_trust(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256")
    client = ends.ask(context, "a.test")
    assert shake(client, served(pair, ends.server)) == (None, None)
    assert client.cipher() == ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLSv1.2", 256)


def test_a_pair_that_is_too_weak_is_not_taken(authority: Authority) -> None:
    """RSA with 1024 bits, for example."""
    issued = authority.issue("a.test", key="rsa", bits=1024)
    with pytest.raises(SSL.Error, match="key too small"):
        server_context(select, read_pair(str(issued.certificate), str(issued.key)))


def test_what_offers_only_strange_protocols_is_refused(
    authority: Authority, pair: Issued, ends: Ends
) -> None:
    """With the alert that RFC 7301 has for it, and not a word of HTTP."""
    from awesomeproxy.tls.accepting import Accepted, Served

    server = Accepted(server_context(select), ends.server, True)
    server.switch(Served(read_pair(str(pair.certificate), str(pair.key))))
    client = ends.ask(client_trust(authority, "ftp"), "a.test")
    seen, told = shake(client, server)
    assert isinstance(told, Refused)
    assert "no application protocol" in str(seen).lower()


# Towards servers


def test_a_server_is_verified_by_the_authority_that_is_named(
    authority: Authority, pair: Issued, ends: Ends
) -> None:
    """And then by its name, a host or an address."""
    client = towards(ends.client, client_context(backend(ca_file=str(authority.ca_file)), PLAIN))
    assert shake(client, origin(pair, ends)) == (None, None)
    verify_peer(client, "a.test")
    verify_peer(client, "127.0.0.1")
    for name in ("b.test", "127.0.0.2", "x.a.test", "::1"):
        with pytest.raises(Unverified, match=f"is for 'a.test', '127.0.0.1', not for {name}; "):
            verify_peer(client, name)


@pytest.mark.parametrize(("server", "protocol"), [(PLAIN, b"http/1.1"), (H2, b"h2")])
def test_the_protocol_of_the_server_is_asked_for(
    authority: Authority,
    pair: Issued,
    ends: Ends,
    server: Server,
    protocol: bytes,
) -> None:
    """HTTP/2 if it is marked so, HTTP/1.1 else."""
    client = towards(
        ends.client, client_context(backend(server, ca_file=str(authority.ca_file)), server)
    )
    assert shake(client, origin(pair, ends)) == (None, None)
    assert client.get_alpn_proto_negotiated() == protocol


def test_a_server_that_nobody_trusted_has_signed_for_is_unverified(
    pair: Issued, ends: Ends
) -> None:
    """By default that is whom the system trusts; the server is told, too."""
    client = towards(ends.client, client_context(backend(), PLAIN))
    problem, alert = shake(client, origin(pair, ends))
    assert isinstance(problem, Unverified)
    assert str(problem) == (
        "nobody who is trusted has signed its certificate; name who has in tls.ca_file"
    )
    assert "alert unknown ca" in str(alert)


def test_a_server_whose_certificate_has_expired_is_unverified(
    authority: Authority, ends: Ends
) -> None:
    """Whoever has signed it."""
    client = towards(ends.client, client_context(backend(ca_file=str(authority.ca_file)), PLAIN))
    problem, _ = shake(client, origin(authority.issue("a.test", days=-1), ends))
    assert isinstance(problem, Unverified)
    assert str(problem) == "its certificate has expired; renew it there"


def test_a_server_that_is_not_verified_is_named_in_the_log(pair: Issued, ends: Ends) -> None:
    """Each once, also if they are alike in all else."""
    contexts = ClientContexts()
    other = Server("https", "b.test", 443)
    trusting = backend(verify=False)
    with capturedLogs() as logged:
        for server in (PLAIN, other, PLAIN):
            made = contexts.get(trusting, server)
    assert [(e["log_level"], e["backend"], e["server"]) for e in logged] == [
        (LogLevel.warn, "web", "https://a.test:443"),
        (LogLevel.warn, "web", "https://b.test:443"),
    ]
    assert shake(towards(ends.client, made), origin(pair, ends)) == (None, None)


def test_a_server_can_be_shown_a_certificate_of_our_own(
    authority: Authority, pair: Issued, ends: Ends
) -> None:
    """Mutual TLS; such a certificate needs no names."""
    ours = authority.issue()
    made = client_context(
        backend(
            ca_file=str(authority.ca_file), certificate=str(ours.certificate), key=str(ours.key)
        ),
        PLAIN,
    )
    server = origin(pair, ends, authority.ca_file)
    client = towards(ends.client, made)
    assert shake(client, server) == (None, None)
    assert server.getpeercert(binary_form=True) is not None


def test_contexts_are_shared_until_they_are_forgotten(authority: Authority) -> None:
    """Among all servers for which they would be alike."""
    contexts = ClientContexts()
    one, other = backend(ca_file=str(authority.ca_file)), backend(ca_file=str(authority.ca_file))
    made = contexts.get(one, PLAIN)
    assert contexts.get(other, Server("https", "b.test", 1)) is made
    assert contexts.get(one, H2) is not made
    contexts.forget()
    assert contexts.get(one, PLAIN) is not made


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ca_file": "nowhere.pem"}, "nowhere.pem: cannot be read: No such file or directory; "),
        ({"ca_file": "empty.pem"}, "empty.pem: holds no certificate in PEM form; "),
        ({"certificate": "empty.pem"}, "empty.pem: holds no certificate in PEM form; "),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    """With what is wrong, and what to do."""
    (tmp_path / "empty.pem").touch()
    paths = {key: str(tmp_path / name) for key, name in settings.items()}
    with pytest.raises(PairError, match=said):
        client_context(Backend("web", (PLAIN,), tls=ServerTls(**paths)), PLAIN)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tls", "host", "verified", "asked"),
    [
        ({}, "a.test", "a.test", b"a.test"),
        ({"name": "b.test"}, "a.test", "b.test", b"b.test"),
        ({"name": "b.test", "sni": "c.test"}, "a.test", "b.test", b"c.test"),
        ({"sni": "c.test"}, "10.0.0.1", "10.0.0.1", b"c.test"),
        ({}, "10.0.0.1", "10.0.0.1", None),
        ({}, "::1", "::1", None),
    ],
)
def test_a_server_is_known_by_its_host_unless_another_name_is_given(
    tls: dict[str, str], host: str, verified: str, asked: bytes | None
) -> None:
    """No address is ever asked for by SNI."""
    server = Server("https", host, 443)
    assert identity(ServerTls(**tls), server) == verified  # type: ignore[arg-type]
    assert server_name(ServerTls(**tls), server) == asked  # type: ignore[arg-type]
