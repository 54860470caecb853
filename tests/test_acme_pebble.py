"""Certificates from a real authority: Debian's pebble, which makes no exceptions."""

from __future__ import annotations

import signal
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path

import pytest
from acme_stage import AcmeStage, a_site, an_acme_stage
from cryptography import x509
from daemon_stage import Stage, a_stage, free_ports, site, twisted_fixture, twisted_test
from stage_waiting import HOST, PATIENCE, reactor, until, until_async
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from awesomeproxy.acme.keeper import STILL_DUE
from awesomeproxy.acme.status import State
from awesomeproxy.acme.store import Store

stage = twisted_fixture(an_acme_stage)
daemons = twisted_fixture(a_stage)

MINUTE = 60.0
HOUR = 3600.0
MAC = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


def serial(path: Path) -> int:
    """What tells one certificate from the next."""
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def accounts(stage: AcmeStage) -> int:
    """How many accounts the authority has."""
    return stage.pebble.log.count("accounts in memory")


def orders(stage: AcmeStage) -> int:
    """How many orders the authority has taken."""
    return stage.pebble.log.count("orders in the db")


# Issuing


@twisted_test
async def test_a_site_gets_a_certificate_for_all_its_hosts(stage: AcmeStage) -> None:
    """One certificate, its chain and its key; the proofs are there for as long as it takes."""
    await stage.pebble.start()
    keeper = stage.keeper(None, a_site("blog", "blog.test", "www.blog.test"))
    status = await stage.comes(keeper, State.VALID)
    assert stage.issued == ["blog"]
    kept = Store(stage.state).certificate("blog")
    assert kept is not None
    assert kept.hosts == {"blog.test", "www.blog.test"}
    assert kept.directory == stage.pebble.url
    assert status.not_after == kept.ends > time.time()
    assert len(x509.load_pem_x509_certificates(stage.file().read_bytes())) == 2
    assert len(set(stage.web.asked)) == 2
    assert not stage.web.challenges


@twisted_test
async def test_more_hosts_take_another_certificate(stage: AcmeStage) -> None:
    """It is ordered as soon as the site has them; until then the old one is in use."""
    await stage.pebble.start()
    keeper = stage.keeper(None, a_site())
    await stage.comes(keeper, State.VALID)
    keeper.define(a_site("blog", "blog.test", "news.test"))
    status = keeper.status("blog")
    assert status is not None
    assert (status.state, status.not_after is not None) == (State.ORDERING, True)
    await stage.comes(keeper, State.VALID)
    kept = Store(stage.state).certificate("blog")
    assert kept is not None
    assert kept.hosts == {"blog.test", "news.test"}


@twisted_test
async def test_nonces_that_are_refused_are_no_matter(stage: AcmeStage) -> None:
    """The authority refuses one in four, as it likes; nothing is heard of that."""
    await stage.pebble.start(PEBBLE_WFE_NONCEREJECT="25")
    status = await stage.comes(stage.keeper(None, a_site()), State.VALID)
    assert status.failures == 0


@twisted_test
async def test_what_is_proved_already_is_not_proved_again(stage: AcmeStage) -> None:
    """An authority that remembers a proof looks at that of the new host only."""
    await stage.pebble.start(PEBBLE_AUTHZREUSE="100")
    keeper = stage.keeper(None, a_site())
    await stage.comes(keeper, State.VALID)
    asked = len(stage.web.asked)
    keeper.define(a_site("again", "blog.test", "new.test"))
    await stage.comes(keeper, State.VALID, "again")
    assert len(set(stage.web.asked[asked:])) == 1


@twisted_test
async def test_sites_with_the_same_hosts_share_an_order(stage: AcmeStage) -> None:
    """Each has a file of its own, so that one may go and leave the other its certificate."""
    await stage.pebble.start()
    keeper = stage.keeper(None, a_site(), a_site("api", "blog.test"))
    await stage.comes(keeper, State.VALID, "api")
    await stage.comes(keeper, State.VALID)
    assert serial(stage.file("api")) == serial(stage.file())
    assert orders(stage) == 1
    assert sorted(stage.issued) == ["api", "blog"]
    keeper.undefine("blog")
    assert stage.file("api").exists()
    assert not stage.file().exists()


# Renewing


@twisted_test
async def test_a_certificate_is_renewed_before_it_ends(stage: AcmeStage) -> None:
    """A short-lived one in the last third of its life, and not a minute earlier."""
    stage.pebble.validity = 3600
    await stage.pebble.start()
    passed = [0.0]
    keeper = stage.keeper(None, a_site(), now=lambda: time.time() + passed[0])
    status = await stage.comes(keeper, State.VALID)
    first = serial(stage.file())
    assert status.not_after is not None
    assert status.next_look is not None
    assert status.not_after - status.next_look == pytest.approx(1200, abs=1)

    def passes(seconds: float) -> None:
        passed[0] += seconds
        stage.clock.advance(seconds)

    passes(2300)
    assert (keeper.status("blog") or status).state is State.VALID
    await stage.pebble.stop()
    stage.pebble.validity = 36000  # its clock does not go along
    await stage.pebble.start()
    passes(101)
    assert (keeper.status("blog") or status).state is State.ORDERING
    await stage.comes(keeper, State.VALID)
    assert serial(stage.file()) != first
    assert stage.issued == ["blog", "blog"]


@twisted_test
async def test_a_clock_that_is_wrong_does_not_wear_out_the_authority(stage: AcmeStage) -> None:
    """A certificate that seems to end as soon as it is issued is used, and not replaced at once."""
    stage.pebble.validity = 3600
    await stage.pebble.start()
    keeper = stage.keeper(None, a_site(), now=lambda: time.time() + 3000)
    status = await stage.comes(keeper, State.WAITING)
    assert status.error == STILL_DUE
    assert (stage.issued, orders(stage)) == (["blog"], 1)
    stage.clock.advance(MINUTE)
    await stage.comes(keeper, State.ORDERING)


# Again


@twisted_test
async def test_a_restart_uses_what_was_there(stage: AcmeStage) -> None:
    """Neither a certificate nor an account is asked for twice."""
    await stage.pebble.start()
    keeper = stage.keeper(None, a_site())
    await stage.comes(keeper, State.VALID)
    keeper.stop()
    first = serial(stage.file())
    keeper = stage.keeper(None, a_site(), a_site("shop"))
    await stage.comes(keeper, State.VALID, "shop")
    assert serial(stage.file()) == first
    assert (accounts(stage), orders(stage)) == (1, 2)


@twisted_test
async def test_an_account_that_is_forgotten_is_registered_anew(stage: AcmeStage) -> None:
    """An authority that has lost everything is told again who we are, with the same key."""
    await stage.pebble.start()
    keeper = stage.keeper(None, a_site())
    await stage.comes(keeper, State.VALID)
    before = Store(stage.state).account(stage.pebble.url)
    await stage.pebble.stop()
    await stage.pebble.start()
    keeper.define(a_site("shop"))
    status = await stage.comes(keeper, State.VALID, "shop")
    after = Store(stage.state).account(stage.pebble.url)
    assert before is not None
    assert after is not None
    assert (status.failures, after.key) == (0, before.key)
    assert after.url != before.url


@twisted_test
async def test_a_key_the_authority_knows_finds_its_account(stage: AcmeStage) -> None:
    """A crash between the registration and its record leaves no second account."""
    await stage.pebble.start()
    keeper = stage.keeper(None, a_site())
    await stage.comes(keeper, State.VALID)
    store = Store(stage.state)
    known = store.account(stage.pebble.url)
    assert known is not None
    store.save_account(replace(known, url=""))
    keeper.define(a_site("shop"))
    await stage.comes(keeper, State.VALID, "shop")
    assert store.account(stage.pebble.url) == known
    assert accounts(stage) == 1


@twisted_test
async def test_another_address_for_mail_is_told(stage: AcmeStage) -> None:
    """The authority hears of it with the next order, and once."""
    await stage.pebble.start()
    keeper = stage.keeper(stage.pebble.acme(email="me@example.com"), a_site())
    await stage.comes(keeper, State.VALID)
    keeper.configure(stage.pebble.acme(email="you@example.com"))
    keeper.define(a_site("shop"))
    await stage.comes(keeper, State.VALID, "shop")
    known = Store(stage.state).account(stage.pebble.url)
    assert known is not None
    assert known.email == "you@example.com"


# Failing


@twisted_test
async def test_a_proof_that_is_not_found_is_told_and_tried_again(stage: AcmeStage) -> None:
    """In the authority's words, a minute later; other sites do not wait for it."""
    stage.names.unknown.add("blog.test")
    await stage.pebble.start()
    keeper = stage.keeper(None, a_site(), a_site("shop"))
    await stage.comes(keeper, State.VALID, "shop")
    status = await stage.comes(keeper, State.WAITING)
    assert status.error.startswith("the authority has not found the proof: blog.test: ")
    assert "blog.test" in status.error.partition("proof: blog.test: ")[2]
    assert status.failures == 1
    assert not stage.web.challenges
    stage.clock.advance(MINUTE - 1)
    assert (keeper.status("blog") or status).state is State.WAITING
    stage.clock.advance(1)
    await stage.comes(keeper, State.ORDERING)
    status = await stage.comes(keeper, State.WAITING)
    assert status.failures == 2
    stage.names.unknown.clear()
    stage.clock.advance(2 * MINUTE)
    status = await stage.comes(keeper, State.VALID)
    assert (status.error, status.failures) == ("", 0)


@twisted_test
async def test_an_authority_that_is_down_is_waited_for(stage: AcmeStage) -> None:
    """The certificates come when it is back."""
    keeper = stage.keeper(None, a_site(), a_site("shop"))
    status = await stage.comes(keeper, State.WAITING)
    assert status.error == (
        f"{stage.pebble.url}: the authority cannot be reached: Connection refused"
    )
    await stage.pebble.start()
    stage.clock.advance(MINUTE)
    await stage.comes(keeper, State.VALID)
    await stage.comes(keeper, State.VALID, "shop")


@twisted_test
async def test_an_authority_has_to_prove_who_it_is(stage: AcmeStage) -> None:
    """Nobody is trusted who was not signed for."""
    await stage.pebble.start()
    status = await stage.comes(stage.keeper(stage.pebble.acme(ca_file=""), a_site()), State.WAITING)
    assert "the authority does not prove who it is" in status.error
    assert "ca_file in [acme]" in status.error
    assert "POST" not in stage.pebble.log


@pytest.mark.parametrize("content", [None, "nonsense"])
@twisted_test
async def test_a_ca_file_that_cannot_be_used_is_told(stage: AcmeStage, content: str | None) -> None:
    """The error names the key and the file."""
    path = stage.directory / "ca.pem"
    if content is not None:
        path.write_text(content)
    keeper = stage.keeper(stage.pebble.acme(ca_file=str(path)), a_site())
    status = await stage.comes(keeper, State.WAITING)
    assert status.error.startswith(f"acme.ca_file: {path}: cannot be used: ")


# External accounts


@twisted_test
async def test_an_external_account_is_used(stage: AcmeStage) -> None:
    """With its identity and its key the authority knows whom it deals with."""
    stage.pebble.eab = {"kid-1": MAC}
    await stage.pebble.start()
    key = stage.directory / "eab.key"
    key.write_text(MAC + "\n")
    acme = stage.pebble.acme(eab_key_id="kid-1", eab_key_file=str(key))
    await stage.comes(stage.keeper(acme, a_site()), State.VALID)


@twisted_test
async def test_an_external_account_that_is_missing_is_told(stage: AcmeStage) -> None:
    """The error says which keys to set, and the authority is left alone for long."""
    stage.pebble.eab = {"kid-1": MAC}
    await stage.pebble.start()
    keeper = stage.keeper(None, a_site())
    status = await stage.comes(keeper, State.WAITING)
    assert "set eab_key_id and eab_key_file in [acme]" in status.error
    stage.clock.advance(11 * HOUR)
    await stage.comes(keeper, State.WAITING)
    assert stage.pebble.log.count("/dir -> ") == 1


@pytest.mark.parametrize(
    ("identity", "content", "says"),
    [
        ("kid-1", None, "eab.key: No such file or directory; name the file"),
        ("kid-1", "a", "eab.key: is not base64url; name the file"),
        ("kid-1", MAC[::-1], "the authority refuses our account"),
        ("kid-2", MAC, "the authority refuses our account"),
    ],
)
@twisted_test
async def test_an_external_account_that_is_wrong_is_told(
    stage: AcmeStage, identity: str, content: str | None, says: str
) -> None:
    """In the words of whoever finds out; the key is never among them."""
    stage.pebble.eab = {"kid-1": MAC}
    await stage.pebble.start()
    key = stage.directory / "eab.key"
    if content is not None:
        key.write_text(content)
    acme = stage.pebble.acme(eab_key_id=identity, eab_key_file=str(key))
    status = await stage.comes(stage.keeper(acme, a_site()), State.WAITING)
    assert says in status.error
    assert MAC not in status.error


# The daemon


def table(stage: AcmeStage, url: str = "") -> str:
    """The [acme] table for the stage's authority."""
    return "\n".join(
        [
            "[acme]",
            f'directory = "{url or stage.pebble.url}"',
            f'ca_file = "{stage.pebble.ca_file}"',
            "terms_agreed = true",
        ]
    )


@twisted_test
async def test_a_held_site_gets_its_certificate(stage: AcmeStage, daemons: Stage) -> None:
    """The proxy proves its hosts itself; what is held stays held, and reaches no server."""
    one = daemons.origin("one")
    daemon = daemons.daemon()
    daemon.configure(site("blog", one), table(stage))
    stage.pebble.http = daemon.port
    await stage.pebble.start()
    await daemon.start()
    await daemon.ask("pause", site="blog")
    held = daemon.fetch("/held")
    await daemon.until_site(held=1)
    daemon.configure(site("blog", one, more="tls.acme = true"), table(stage))
    await daemon.ask("reload")

    async def issued() -> bool:
        acme = (await daemon.site())["acme"]
        return bool(acme and acme["state"] == "valid")

    await until_async(issued)
    assert (await daemon.site())["held"] == 1
    assert not one.asked
    kept = Store(daemon.directory / "state" / "acme").certificate("blog")
    assert kept is not None
    assert kept.hosts == {"blog.test"}
    await daemon.ask("resume", site="blog")
    assert (await held).status == 200
    listed = await daemon.ask("certificates")
    assert [one["names"] for one in listed["certificates"]] == [["blog.test"]]
    assert [one["site"] for one in listed["acme"]] == ["blog"]
    assert "blog  valid  " in (await daemon.command("certificates")).out
    assert "PRIVATE KEY" not in daemon.log


@twisted_test
async def test_what_is_issued_is_served(stage: AcmeStage, daemons: Stage) -> None:
    """Clients that come with TLS get it without a restart or a reload."""
    one = daemons.origin("one")
    daemon = daemons.daemon()
    (port,) = free_ports(1)
    secure = f'[[listen]]\nendpoint = "tcp:{port}:interface={HOST}"\ntls = true'
    daemon.configure(secure, site("blog", one, more="tls.acme = true"), table(stage))
    stage.pebble.http = daemon.port
    await stage.pebble.start()
    await daemon.start()

    async def shown() -> int:
        try:
            return await deferToThread(serial_served, port, "blog.test")
        except ssl.SSLError:  # there is none yet
            return 0

    served = await until_async(shown)
    assert served == serial(daemon.directory / "state" / "acme" / "certificates" / "blog.pem")


def serial_served(port: int, host: str) -> int:
    """The serial number of the certificate a client gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((HOST, port), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        certificate = connection.getpeercert(True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


@twisted_test
async def test_status_tells_who_has_no_certificate(stage: AcmeStage, daemons: Stage) -> None:
    """One line for each site in trouble, with the reason and the next try."""
    one = daemons.origin("one")
    daemon = await daemons.serving(site("blog", one, more="tls.acme = true"), table(stage))

    async def troubled() -> str:
        shown = await daemon.command("status")
        return shown.out if "no certificate" in shown.out else ""

    shown = await until_async(troubled)
    assert (
        f"blog: has no certificate: {stage.pebble.url}: the authority cannot be reached:"
        " Connection refused; next try in "
    ) in shown
    assert (await daemon.get("/")).status == 200
    shown = (await daemon.command("certificates")).out
    assert "blog  waiting  " in shown
    assert "Connection refused" in shown


@twisted_test
async def test_a_certificate_that_will_be_renewed_is_no_warning(
    stage: AcmeStage, daemons: Stage
) -> None:
    """One that lives for a few days is about to expire all the time."""
    stage.pebble.validity = 6 * 86400
    daemon = daemons.daemon()
    stage.pebble.http = daemon.port
    await stage.pebble.start()
    one = daemons.origin("one")
    daemon.configure(site("blog", one, more="tls.acme = true"), table(stage))
    await daemon.start()

    async def certificates() -> bool:
        return bool((await daemon.ask("status"))["node"]["certificates"]["count"])

    await until_async(certificates)
    assert (await daemon.ask("status"))["node"]["certificates"]["expiring"] == []


@twisted_test
async def test_a_daemon_stops_without_waiting_for_an_authority(
    stage: AcmeStage, daemons: Stage
) -> None:
    """One that has taken a connection and says nothing."""
    silent = Silent()
    port = reactor.listenTCP(0, silent, interface=HOST)
    try:
        url = f"https://{HOST}:{port.getHost().port}/dir"
        one = daemons.origin("one")
        daemon = await daemons.serving(site("blog", one, more="tls.acme = true"), table(stage, url))
        await until(lambda: silent.came)
        daemon.signal(signal.SIGTERM)
        assert await daemon.exits() == 0
        await until(lambda: silent.left)
    finally:
        await port.stopListening()


class Silent(Factory):
    """Takes connections and says nothing."""

    noisy = False

    def __init__(self) -> None:
        self.came = 0
        self.left = 0

    def buildProtocol(self, address: object) -> Protocol:
        protocol = Mute()
        protocol.factory = self
        return protocol


class Mute(Protocol):
    """Counts itself."""

    factory: Silent

    def connectionMade(self) -> None:
        self.factory.came += 1

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.left += 1
