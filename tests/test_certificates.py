"""The certificates of a node: which are found, which a client gets, what a change does."""

from __future__ import annotations

import os
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from OpenSSL import SSL
from tls_stage import (
    Authority,
    Ends,
    Kind,
    client_trust,
    key_pem,
    private,
    rsa_key,
    shake,
)

from awesomeproxy.model import Tls
from awesomeproxy.tls.accepting import Accepted, Refused
from awesomeproxy.tls.certificates import TICKET_KEYS_LIFE, Certificates
from awesomeproxy.tls.pairs import PairError, check_mode

DAY = 86_400.0
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


class Stage:
    """A directory of certificates, and what a node makes of it."""

    def __init__(self, path: Path) -> None:
        self.authority = Authority(path / "authority")
        self.path = path / "certificates"
        self.path.mkdir()
        self.now = time.time()
        self._ends: list[Ends] = []

    def issue(self, name: str, *more: str, **how: object) -> Path:
        """A certificate for names, in the directory, in the file of the first one."""
        path = self.path / f"{name.replace('*', '_')}.crt"
        self.authority.issue(name, *more, path=path, **how)  # type: ignore[arg-type]
        return path

    def certificates(self, *places: Path | str, default: str = "") -> Certificates:
        """What is in the directory, or in ``places``; with the clock of the stage."""
        found = tuple(map(str, places or [self.path]))
        made = Certificates(Tls(found, default), clock=lambda: self.now)
        made.take(made.read())
        return made

    def connect(
        self,
        certificates: Certificates,
        name: str | None,
        *protocols: str,
        http2: bool = True,
        session: ssl.SSLSession | None = None,
        context: ssl.SSLContext | None = None,
    ) -> tuple[ssl.SSLSocket, Accepted]:
        """A client that is given a certificate, and a byte."""
        client, server, failures = self.try_(
            certificates, name, *protocols, http2=http2, session=session, context=context
        )
        assert failures == (None, None)
        server.send(b"x")
        assert client.recv(1) == b"x"
        return client, server

    def try_(
        self,
        certificates: Certificates,
        name: str | None,
        *protocols: str,
        http2: bool = True,
        session: ssl.SSLSession | None = None,
        context: ssl.SSLContext | None = None,
    ) -> tuple[ssl.SSLSocket, Accepted, tuple[Exception | None, Exception | None]]:
        """A client that tries to shake hands."""
        ends = Ends()
        self._ends.append(ends)
        context = context or client_trust(self.authority, *protocols)
        client = ends.ask(context, name, session)
        server = certificates.accept(ends.server, http2)
        return client, server, shake(client, server)

    def given(self, certificates: Certificates, name: str | None) -> set[str] | None:
        """The names of the certificate that a client gets; None: its handshake failed."""
        client, server, failures = self.try_(certificates, name)
        if any(failures):
            assert all(failures)
            assert server.served is None
            return None
        found = client.getpeercert()
        assert found is not None
        return {str(entry[1]) for entry in found["subjectAltName"]}

    def close(self) -> None:
        for ends in self._ends:
            ends.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def problem(stage: Stage, *places: Path | str) -> str:
    """The one problem that there is."""
    (found,) = stage.certificates(*places).problems
    return found


# Which files belong together


def test_a_key_is_beside_its_certificate_or_in_the_same_file(stage: Stage) -> None:
    """The suffixes are those that are in use."""
    stage.issue("a.test")
    for number, suffix in enumerate(("pem", "cert")):
        issued = stage.authority.issue(f"b{number}.test", path=stage.path / f"b{number}.{suffix}")
        assert issued.key.name == f"b{number}.key"
    issued = stage.authority.issue("c.test")
    private(stage.path / "c.crt", issued.certificate.read_bytes())
    private(stage.path / "c.crt.key", issued.key.read_bytes())
    stage.authority.issue("d.test").combined(stage.path / "d.pem")
    certificates = stage.certificates()
    assert not certificates.problems
    assert certificates.names() == {"a.test", "b0.test", "b1.test", "c.test", "d.test"}


def test_directories_as_certbot_makes_them_are_found_below_a_place(stage: Stage) -> None:
    """Through the symbolic links that it sets, and with whatever else it puts there."""
    for name in ["a.test", "b.test"]:
        archive = stage.authority.issue(name).certbot(stage.path.parent / "archive" / name)
        live = stage.path / name
        live.mkdir()
        for file in archive.iterdir():
            (live / file.name).symlink_to(file)
        (live / "chain.pem").write_bytes(stage.authority.ca_file.read_bytes())
        (live / "cert.pem").symlink_to(archive / "fullchain.pem")
        (live / "README").touch()
    (stage.path / "empty").mkdir()
    certificates = stage.certificates()
    assert (certificates.problems or certificates.names()) == {"a.test", "b.test"}
    assert stage.certificates(stage.path / "a.test").names() == {"a.test"}


def test_files_can_be_named_one_by_one(stage: Stage) -> None:
    """The key of each is found as in a directory; its neighbours are not looked at."""
    stage.issue("b.test")
    combined = stage.authority.issue("c.test").combined(stage.path.parent / "c")
    certbot = stage.authority.issue("d.test").certbot(stage.path.parent / "d")
    certificates = stage.certificates(stage.issue("a.test"), combined, certbot / "fullchain.pem")
    assert not certificates.problems
    assert certificates.names() == {"a.test", "c.test", "d.test"}


def test_files_that_are_still_being_written_are_passed_over(stage: Stage) -> None:
    """Their names begin with a dot."""
    (stage.path / ".a.pem").write_text("half of a certif")
    (problem,) = stage.certificates().problems
    assert problem.startswith(f"tls.certificates: there is no certificate in {stage.path}; ")


def test_a_further_place_need_not_exist(stage: Stage) -> None:
    """And is looked at when it does."""
    later = stage.path / "later"
    certificates = Certificates(Tls(), (str(later),))
    assert certificates.take(certificates.read()) == []
    stage.authority.issue("a.test", path=later / "a.pem")
    assert certificates.take(certificates.read()) == []
    assert certificates.covers("a.test")


# What is wrong with them


def test_a_place_that_does_not_exist_is_told(stage: Stage) -> None:
    """With what to do."""
    said = problem(stage, stage.path / "nowhere")
    assert said == f"{stage.path}/nowhere: does not exist; create it, or remove it from [tls]"


def test_a_key_of_another_certificate_is_told(stage: Stage) -> None:
    """Of the same kind or not."""
    path = stage.issue("a.test")
    kinds: tuple[Kind, ...] = ("ec", "rsa")
    for key in kinds:
        other = stage.authority.issue("b.test", key=key)
        private(path.with_suffix(".key"), other.key.read_bytes())
        assert problem(stage) == (
            f"{path.with_suffix('.key')}: the private key is not that of the certificate in"
            f" {path}; put the two that belong together there"
        )


def test_an_rsa_key_that_is_damaged_is_told(stage: Stage) -> None:
    """It has the right modulus, but nobody would believe what it signs."""
    path = stage.issue("a.test", key="rsa")
    numbers = rsa_key().private_numbers()
    damaged = type(numbers)(
        numbers.p,
        numbers.q,
        numbers.d ^ (1 << 100),
        numbers.dmp1 ^ (1 << 100),
        numbers.dmq1,
        numbers.iqmp,
        numbers.public_numbers,
    ).private_key(unsafe_skip_rsa_key_validation=True)
    private(path.with_suffix(".key"), key_pem(damaged))
    assert "is not that of the certificate" in problem(stage)


def test_a_chain_out_of_order_is_told(stage: Stage) -> None:
    """By the first certificate that was not signed by the next."""
    issued = stage.authority.subordinate().issue("a.test", path=stage.path / "a.crt")
    leaf, signer = issued.certificate.read_bytes().split(b"-----END CERTIFICATE-----\n")[:2]
    end = b"-----END CERTIFICATE-----\n"
    issued.certificate.write_bytes(leaf + end + stage.authority.ca_file.read_bytes() + signer + end)
    assert "certificate 1 of the chain was not signed by certificate 2; put" in problem(stage)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.crt", b"", "holds no certificate in PEM form; "),
        (
            "a.crt",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "holds a certificate that cannot be parsed; ",
        ),
        ("a.crt", b"x" * 1_048_577, "is larger than 1048576 bytes; "),
        ("a.key", b"", "holds no private key in PEM form; "),
        (
            "a.key",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "the private key cannot be parsed; ",
        ),
        (
            "a.key",
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "the private key is encrypted; store it without a passphrase",
        ),
        (
            "a.key",
            2 * b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "holds 2 private keys; ",
        ),
    ],
)
def test_a_file_with_something_else_in_it_is_told(
    stage: Stage, name: str, content: bytes, said: str
) -> None:
    """By its name, and what was looked for."""
    stage.authority.issue("a.test", path=stage.path / "a.crt")
    private(stage.path / name, content)
    assert problem(stage).startswith(f"{stage.path / name}: {said}")


def test_a_certificate_without_a_key_anywhere_is_told(stage: Stage) -> None:
    """Nor is there one in a file beside it."""
    stage.issue("a.test").with_suffix(".key").unlink()
    assert "a.test.crt: holds no private key in PEM form, and there is no key file" in problem(
        stage
    )


def test_a_certificate_for_no_host_is_told(stage: Stage) -> None:
    """No client would look at its common name."""
    stage.authority.issue(path=stage.path / "a.crt")
    assert problem(stage).startswith(f"{stage.path}/a.crt: is for no host: ")


def test_a_pair_that_is_too_weak_is_told(stage: Stage) -> None:
    """As OpenSSL says it."""
    assert "(ee key too small)" in problem(stage, stage.issue("a.test", key="rsa", bits=1024))


def test_what_is_no_file_is_told(stage: Stage) -> None:
    """Rather than waited for without an end."""
    os.mkfifo(stage.path / "a.pem")
    assert problem(stage).startswith(f"{stage.path}/a.pem: is not a file; ")


@pytest.mark.parametrize(
    ("mode", "who"), [(0o604, "everybody"), (0o640, "its group"), (0o602, "everybody")]
)
def test_a_key_that_others_can_read_is_refused(stage: Stage, mode: int, who: str) -> None:
    """Until its mode is as it should be."""
    key = stage.issue("a.test").with_suffix(".key")
    if os.geteuid() == 0:
        os.chown(key, 65534, 65534)
    key.chmod(mode)
    certificates = stage.certificates()
    assert certificates.problems == (
        f"{key}: holds a private key and is open to {who} (mode {mode:04o}); chmod 600 {key}",
    )
    key.chmod(0o600)
    assert certificates.take(certificates.read()) == []
    assert not certificates.problems
    assert certificates.covers("a.test")


@pytest.mark.parametrize(
    ("mode", "owner", "ours", "fine"),
    [
        (0o640, 0, True, True),
        (0o440, 0, True, True),
        (0o640, 0, False, False),
        (0o640, 1000, True, False),
        (0o660, 0, True, False),
        (0o644, 0, True, False),
    ],
)
def test_a_group_of_ours_may_read_what_root_owns(
    mode: int, owner: int, ours: bool, fine: bool
) -> None:
    """As distributions have it: root:ssl-cert 0640."""
    group = os.getegid() if ours else 54321
    status = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, group, 0, 0, 0, 0))
    with nullcontext() if fine else pytest.raises(PairError, match="chmod 600 a"):
        check_mode("a.key", status)


def test_nothing_of_a_key_gets_into_what_is_said(stage: Stage) -> None:
    """Nor into how the certificates show themselves."""
    path = stage.issue("a.test", key="rsa")
    content = path.with_suffix(".key").read_text()
    secret = content.splitlines()[3]
    private(path.with_suffix(".key"), content.replace("A", "B").encode())
    (stage.path / "b.crt").write_text(content)
    private(stage.path / "c.crt", b"-----BEGIN CERTIFICATE-----\n" + content.encode())
    stage.authority.issue("d.test").combined(stage.path / "d.pem").chmod(0o644)
    certificates = stage.certificates()
    assert len(certificates.problems) == 4
    everything = f"{certificates.problems}{certificates!r}{certificates.read()}"
    assert secret not in everything
    assert "PRIVATE KEY--" not in everything
    assert secret not in f"{certificates.listing()}"


# Which one a client gets


def test_the_exact_name_comes_before_the_wildcard(stage: Stage) -> None:
    """And a wildcard stands for exactly one label; case does not matter."""
    stage.issue("*.a.test", "b.test")
    stage.issue("www.a.test")
    certificates = stage.certificates()
    assert stage.given(certificates, "www.a.test") == {"www.a.test"}
    assert stage.given(certificates, "WWW.A.Test") == {"www.a.test"}
    assert stage.given(certificates, "x.a.test") == {"*.a.test", "b.test"}
    assert stage.given(certificates, "b.test") == {"*.a.test", "b.test"}
    for name in ("x.www.a.test", "a.test", "test", "x.b.test"):
        assert not certificates.covers(name)
        assert stage.given(certificates, name) is None


def test_a_client_without_a_name_is_refused_if_there_are_several(stage: Stage) -> None:
    """If there is one only, it gets that."""
    stage.issue("a.test")
    assert stage.given(stage.certificates(), None) == {"a.test"}
    stage.issue("b.test")
    assert stage.given(stage.certificates(), None) is None


def test_the_default_is_for_all_other_names(stage: Stage) -> None:
    """And for clients that give none."""
    stage.issue("a.test")
    stage.issue("*.b.test")
    certificates = stage.certificates(default="www.b.test")
    for name in ("c.test", "x.y.b.test", None):
        assert stage.given(certificates, name) == {"*.b.test"}
    assert stage.given(certificates, "a.test") == {"a.test"}
    assert not certificates.covers("c.test")


def test_a_default_that_nothing_is_for_is_told(stage: Stage) -> None:
    """Strangers are refused until there is one, as if there were none."""
    stage.issue("a.test")
    certificates = stage.certificates(default="b.test")
    assert certificates.problems == (
        "tls.default: there is no certificate for b.test; add one, or name another host",
    )
    assert stage.given(certificates, "c.test") is None
    assert stage.given(certificates, None) is None


def test_without_any_certificate_everybody_is_refused(stage: Stage) -> None:
    """With the alert for that."""
    _, server, (seen, told) = stage.try_(stage.certificates(), "a.test")
    assert "handshake failure" in str(seen).lower()
    assert isinstance(told, SSL.Error)
    assert server.served is None


def test_of_several_for_a_name_the_one_that_lasts_longest_is_given(stage: Stage) -> None:
    """Whatever their files are called."""
    for name, days in (("1", 10), ("2", 30), ("3", 20)):
        stage.authority.issue("a.test", f"{name}.test", days=days, path=stage.path / f"{name}.crt")
    assert stage.given(stage.certificates(), "a.test") == {"a.test", "2.test"}


def test_an_elliptic_curve_comes_before_rsa(stage: Stage) -> None:
    """It costs a tenth; but only as long as it is valid."""
    stage.authority.issue("a.test", "ec.test", days=10, path=stage.path / "1.crt")
    stage.authority.issue("a.test", "rsa.test", days=30, key="rsa", path=stage.path / "2.crt")
    certificates = stage.certificates()
    assert stage.given(certificates, "a.test") == {"a.test", "ec.test"}
    stage.now += 11 * DAY
    certificates.take(certificates.read())
    assert stage.given(certificates, "a.test") == {"a.test", "rsa.test"}


# What is agreed on


@pytest.mark.parametrize(
    ("http2", "offered", "agreed"),
    [
        (True, ("http/1.1", "h2"), "h2"),
        (False, ("h2", "http/1.1"), "http/1.1"),
        (True, ("http/1.1",), "http/1.1"),
        (True, ("spdy/3", "http/1.0"), "http/1.0"),
        (True, (), None),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_protocol_is_agreed_on(
    stage: Stage,
    version: ssl.TLSVersion,
    http2: bool,
    offered: tuple[str, ...],
    agreed: str | None,
) -> None:
    """HTTP/2 if both have it, and HTTP/1.1 with those who do not say."""
    stage.issue("a.test")
    context = client_trust(stage.authority, *offered)
    context.minimum_version = context.maximum_version = version
    client, server = stage.connect(stage.certificates(), "a.test", http2=http2, context=context)
    assert client.selected_alpn_protocol() == agreed
    assert server.get_alpn_proto_negotiated().decode() == (agreed or "")


# Sessions


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_is_resumed(stage: Stage, version: ssl.TLSVersion) -> None:
    """Also if its certificate has been replaced since it began."""
    path = stage.issue("a.test")
    stage.issue("b.test")
    certificates = stage.certificates()
    context = client_trust(stage.authority, "h2")
    context.maximum_version = version
    first, _ = stage.connect(certificates, "a.test", context=context)
    assert not first.session_reused
    stage.authority.issue("a.test", path=path)
    certificates.take(certificates.read())
    again, server = stage.connect(certificates, "a.test", context=context, session=first.session)
    assert again.session_reused
    assert again.selected_alpn_protocol() == "h2"
    assert server.served is not None
    assert server.served.pair.source == str(path)


def test_a_session_does_not_open_what_is_refused(stage: Stage) -> None:
    """A name whose certificate has been removed, though no certificate is needed."""
    path = stage.issue("a.test")
    stage.issue("b.test")
    certificates = stage.certificates()
    context = client_trust(stage.authority)
    first, _ = stage.connect(certificates, "a.test", context=context)
    path.unlink()
    certificates.take(certificates.read())
    _, _, (_, told) = stage.try_(certificates, "a.test", context=context, session=first.session)
    assert isinstance(told, Refused)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_keys_of_sessions_are_let_go_after_a_day(stage: Stage, version: ssl.TLSVersion) -> None:
    """Whoever gets hold of them later can read nothing older; the client just starts anew."""
    stage.issue("a.test")
    certificates = stage.certificates()
    context = client_trust(stage.authority)
    context.maximum_version = version
    first, _ = stage.connect(certificates, "a.test", context=context)
    stage.now += TICKET_KEYS_LIFE
    certificates.take(certificates.read())
    again, _ = stage.connect(certificates, "a.test", context=context, session=first.session)
    assert not again.session_reused


# Changes


def test_only_what_has_changed_is_read_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has stayed as it was for a while is known by how it looks."""
    monkeypatch.setattr("awesomeproxy.tls.certificates.SETTLED", 0.0)
    paths = [stage.issue(name) for name in ("a.test", "b.test")]
    certificates = stage.certificates()
    before = certificates.read()
    version = certificates.version
    certificates.take(before)
    assert certificates.version == version
    stage.authority.issue("b.test", "c.test", path=paths[1])
    after = certificates.read()
    assert after.entries[str(paths[0])] is before.entries[str(paths[0])]
    certificates.take(after)
    assert certificates.version == version + 1
    assert certificates.covers("c.test")


def test_a_new_certificate_is_given_without_disturbing_anybody(stage: Stage) -> None:
    """Who is connected goes on with the old one, and who is about to be gets the new one."""
    path = stage.issue("a.test")
    certificates = stage.certificates()
    old, old_server = stage.connect(certificates, "a.test")
    ends = Ends()
    client = ends.ask(client_trust(stage.authority), "a.test")
    server = certificates.accept(ends.server, True)
    stage.authority.issue("a.test", "new.test", path=path)
    assert certificates.take(certificates.read()) == []
    assert shake(client, server) == (None, None)
    ends.close()
    assert stage.given(certificates, "a.test") == {"a.test", "new.test"}
    assert old_server.send(b"still there") == 11
    assert old.recv(11) == b"still there"


def test_a_broken_new_version_keeps_the_old_one(stage: Stage) -> None:
    """It is told once, and remembered until it is mended."""
    path = stage.issue("a.test")
    certificates = stage.certificates()
    content = path.read_bytes()
    path.write_bytes(content[:200])
    (said,) = certificates.take(certificates.read())
    assert said.startswith(f"{path}: holds a certificate that cannot be parsed")
    assert certificates.problems == (said,)
    assert certificates.take(certificates.read()) == []
    assert certificates.problems == (said,)
    assert certificates.listing()[0]["problem"] == said
    assert stage.given(certificates, "a.test") == {"a.test"}
    path.write_bytes(content)
    assert certificates.take(certificates.read()) == []
    assert not certificates.problems


def test_a_certificate_whose_file_is_removed_is_not_given_any_more(stage: Stage) -> None:
    """Its directory says what there is."""
    path = stage.issue("a.test")
    stage.issue("b.test")
    certificates = stage.certificates()
    path.unlink()
    certificates.take(certificates.read())
    assert stage.given(certificates, "a.test") is None
    assert certificates.names() == {"b.test"}


def test_a_place_that_is_gone_takes_nothing_along(stage: Stage) -> None:
    """Certificates are not given up because a file system is not mounted."""
    stage.issue("a.test")
    certificates = stage.certificates()
    stage.path.rename(stage.path.with_name("elsewhere"))
    (said,) = certificates.take(certificates.read())
    assert said.startswith(f"{stage.path}: does not exist; ")
    assert stage.given(certificates, "a.test") == {"a.test"}


def test_other_settings_are_taken_together_with_what_was_read_for_them(stage: Stage) -> None:
    """A reading that is not taken changes nothing."""
    one, other = stage.issue("a.test"), stage.issue("b.test")
    certificates = stage.certificates(one)
    reading = certificates.read(Tls((str(other),), "b.test"))
    assert certificates.names() == {"a.test"}
    assert certificates.take(reading) == []
    assert certificates.names() == {"b.test"}
    assert stage.given(certificates, "c.test") == {"b.test"}


# Ends


def test_a_certificate_that_has_expired_is_given_and_told(stage: Stage) -> None:
    """It is told as soon as it has; one that nobody gets any more is not."""
    path = stage.issue("a.test", days=10)
    certificates = stage.certificates()
    stage.now += 10 * DAY + 1
    (said,) = certificates.take(certificates.read())
    assert said.startswith(f"{path}: expired on ")
    assert certificates.listing()[0]["problem"] == said
    assert stage.given(certificates, "a.test") == {"a.test"}
    stage.authority.issue("a.test", path=stage.path / "new.crt")
    assert certificates.take(certificates.read()) == []
    assert not certificates.problems


def test_a_certificate_that_is_not_valid_yet_is_told(stage: Stage) -> None:
    """And another one for the name comes before it."""
    path = stage.issue("a.test", "early.test", began=-1)
    certificates = stage.certificates()
    assert certificates.problems[0].startswith(f"{path}: is not valid before ")
    stage.authority.issue("a.test", days=10, path=stage.path / "present.crt")
    certificates.take(certificates.read())
    assert stage.given(certificates, "a.test") == {"a.test"}


def test_those_that_end_soon_are_listed(stage: Stage) -> None:
    """The first to end first, without those that have been replaced."""
    for name, days in (("a.test", 5), ("b.test", 3), ("c.test", 30)):
        stage.issue(name, days=days)
    stage.authority.issue("b.test", days=1, path=stage.path / "b-old.crt")
    certificates = stage.certificates()
    ending = certificates.expiring(stage.now, 14 * DAY)
    assert [one["names"] for one in ending] == [["b.test"], ["a.test"]]
    assert ending[0]["source"] == str(stage.path / "b.test.crt")
    assert stage.now + 2.9 * DAY < ending[0]["not_after"] < stage.now + 3.1 * DAY
    assert certificates.expiring(stage.now, DAY) == []


def test_the_listing_has_every_file(stage: Stage) -> None:
    """Those that cannot be used as well."""
    stage.issue("a.test", "*.a.test", "10.0.0.1")
    (stage.path / "b.pem").touch()
    good, bad = stage.certificates().listing()
    assert good["names"] == ["*.a.test", "10.0.0.1", "a.test"]
    assert (good["source"], good["problem"]) == (f"{stage.path}/a.test.crt", "")
    assert (bad["names"], bad["not_after"]) == ([], None)
    assert bad["problem"].startswith(bad["source"])
