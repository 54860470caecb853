"""Certificates of sites, without an authority that would issue any: what is kept, and when."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from acme import messages
from acme_stage import a_site
from daemon_stage import free_ports, twisted_fixture, twisted_test
from scripted_authority import ScriptedAuthority, a_scripted_authority
from stage_waiting import HOST, reactor, until
from tls_stage import Authority
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from awesomeproxy import config
from awesomeproxy.acme.backoff import LONGEST, LONGEST_ASKED, Backoff, after
from awesomeproxy.acme.certificate import Certificate, from_pem, to_pem
from awesomeproxy.acme.errors import AcmeError
from awesomeproxy.acme.faults import seconds, translated, words
from awesomeproxy.acme.keeper import NO_AUTHORITY, PACE, Keeper
from awesomeproxy.acme.obtaining import NO_LIBRARY
from awesomeproxy.acme.order import new_key
from awesomeproxy.acme.status import State
from awesomeproxy.acme.store import Account, Store
from awesomeproxy.acme.threads import LIMIT, Threads
from awesomeproxy.model import Acme

scripted = twisted_fixture(a_scripted_authority)

DIRECTORY = "https://acme.example/directory"
DAY = 86400.0
NO = AcmeError("no")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def told() -> Iterator[Callable[[], list[str]]]:
    """What is logged as an error."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)  # type: ignore[arg-type]
    yield lambda: [formatEvent(each) for each in events if each["log_level"] is LogLevel.error]
    globalLogPublisher.removeObserver(events.append)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state" / "acme")


def save(
    store: Store, authority: Authority, *hosts: str, site: str = "blog", days: float = 90
) -> Certificate:
    """Keep a certificate for a site, as if it had been issued."""
    issued = authority.issue(*hosts, days=days)
    chain, key = issued.certificate.read_text(), issued.key.read_bytes()
    return store.save_certificate(site, DIRECTORY, chain, key)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Waiting


def test_waits_double_from_a_minute_to_twelve_hours() -> None:
    """The first wait is a minute, each is twice the one before, none is over twelve hours."""
    waits = [after(failures, NO, 0.0) for failures in range(1, 14)]
    assert waits[:4] == [60, 120, 240, 480]
    assert waits[-1] == LONGEST
    assert after(10_000, NO, 0.0) == LONGEST


def test_waits_are_shortened_at_random() -> None:
    """Those who failed together do not come back together."""
    assert after(1, NO, 0.0) > after(1, NO, 0.5) > after(1, NO, 1.0) >= 45


def test_what_lasts_is_tried_again_late() -> None:
    """A mistake in the configuration is not tried every minute."""
    assert after(1, AcmeError("no", lasting=True), 0.0) == LONGEST


@pytest.mark.parametrize(("asked", "wait"), [(5.0, 60.0), (7200.0, 7200.0), (1e9, LONGEST_ASKED)])
def test_a_wait_is_as_long_as_the_authority_asks(asked: float, wait: float) -> None:
    """Retry-After makes a wait longer, never shorter, and not for ever."""
    assert after(1, AcmeError("no", retry_after=asked), 0.0) == wait


def test_a_backoff_counts_down_and_begins_anew() -> None:
    """The wait is over when its time has passed; after a success it is short again."""
    clock = Clock()
    backoff = Backoff(clock, lambda: 0.0)
    assert backoff.left == 0
    backoff.fail(NO)
    backoff.fail(NO)
    assert (backoff.left, backoff.error, backoff.failures) == (120, "no", 2)
    clock.advance(121)
    assert backoff.left == 0
    backoff.clear()
    assert backoff.fail(NO) == 60


def test_retry_after_is_a_number_or_a_date() -> None:
    """Both forms of RFC 9110 are understood; anything else asks for nothing."""
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert seconds("120") == 120
    assert 3500 < seconds(later) <= 3600
    assert [seconds(text) for text in ("", "soon", "-5", "1e9", "²")] == [0.0] * 5
    assert seconds("Thu, 01 Jan 1970 00:00:00 GMT") == 0


# Certificates


@pytest.mark.parametrize(("life", "before", "left"), [(90, 30, 30), (90, 10, 10), (6, 30, 2)])
def test_renewal_is_due_before_the_end(life: float, before: float, left: float) -> None:
    """So much before the end as is configured, or in the last third of a short life."""
    certificate = Certificate(DIRECTORY, frozenset(), 0.0, life * DAY)
    assert certificate.due(before * DAY) == (life - left) * DAY


def test_a_certificate_file_tells_all(authority: Authority) -> None:
    """It says who has issued it, for which hosts and addresses, and until when."""
    issued = authority.issue("blog.test", "192.0.2.7", days=90)
    text = to_pem(DIRECTORY, issued.certificate.read_text(), issued.key.read_bytes())
    found = from_pem(text)
    assert found.directory == DIRECTORY
    assert found.hosts == {"blog.test", "192.0.2.7"}
    assert found.ends > found.begins


def test_a_certificate_for_another_key_is_refused(authority: Authority) -> None:
    """What the authority sends is not taken on trust."""
    issued = authority.issue("blog.test")
    with pytest.raises(ValueError, match="not for the key"):
        to_pem(DIRECTORY, issued.certificate.read_text(), new_key())


# What is kept


def test_nobody_else_can_read_what_is_kept(store: Store, authority: Authority) -> None:
    """Directories are 0700 and files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        store.save_account(Account(DIRECTORY, new_key().decode()))
        save(store, authority, "blog.test")
    finally:
        os.umask(before)
    paths = [store.path, *store.path.rglob("*")]
    assert {mode(path) for path in paths if path.is_dir()} == {0o700}
    assert {mode(path) for path in paths if path.is_file()} == {0o600}


def test_an_account_is_kept_for_each_authority(store: Store) -> None:
    """What one authority knows of us is of no use with another."""
    account = Account(DIRECTORY, "a key", "https://acme.example/account/1", "me@example.com")
    store.save_account(account)
    assert store.account(DIRECTORY) == account
    assert store.account(DIRECTORY + "2") is None


def test_a_key_is_not_shown() -> None:
    """Whatever is made of an account for a log, its key is not in it."""
    assert "secret" not in repr(Account(DIRECTORY, "secret"))


@pytest.mark.parametrize("text", ["{", "[]", '{"directory": "x"}', '{"more": 1}'])
def test_a_broken_account_is_told(store: Store, text: str) -> None:
    """The error names the file and says what to do; the file is not written over."""
    store.save_account(Account(DIRECTORY, "a key"))
    (path,) = store.path.glob("accounts/*.json")
    path.write_text(text)
    with pytest.raises(AcmeError, match=f"{path}: .*move it away") as caught:
        store.account(DIRECTORY)
    assert caught.value.common


def test_a_write_that_fails_leaves_the_old_file(
    store: Store, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is the old certificate or the new one, and no half of either."""
    first = save(store, authority, "blog.test")
    issued = authority.issue("blog.test", "other.test")
    chain, key = issued.certificate.read_text(), issued.key.read_bytes()

    def fails(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fails)
        with pytest.raises(AcmeError, match="cannot be written: No space left on device"):
            store.save_certificate("blog", DIRECTORY, chain, key)
    assert store.certificate("blog") == first
    assert [path.name for path in store.certificates.iterdir()] == ["blog.pem"]


def test_what_cannot_be_written_is_known_before_it_is_ordered(store: Store, tmp_path: Path) -> None:
    """A certificate that cannot be kept is not asked for."""
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(AcmeError, match="cannot be written: Not a directory"):
        store.prepare()


def test_a_certificate_is_retired_and_comes_back(store: Store, authority: Authority) -> None:
    """A site that goes takes its certificate out of use; if it returns, it has it again."""
    kept = save(store, authority, "blog.test")
    store.retire("blog")
    store.retire("blog")
    assert not list(store.certificates.iterdir())
    assert store.certificate("blog") == kept
    assert store.certificates.joinpath("blog.pem").exists()


def test_tidying_keeps_what_is_wanted(store: Store, authority: Authority) -> None:
    """What a crash has left goes, what no site wants is retired, what has ended is removed."""
    for site, days in (("blog", 90.0), ("fullchain", 90.0), ("gone", 90.0), ("ended", -1.0)):
        save(store, authority, f"{site}.test", site=site, days=days)
    (store.certificates / "blog.pemabc.new").write_text("half")
    store.tidy(["blog", "fullchain"], datetime.now().timestamp())
    left = {str(path.relative_to(store.path)) for path in store.path.rglob("*.*")}
    assert left == {
        "certificates/blog.pem",
        "certificates/fullchain+.pem",
        "retired/gone.pem",
    }


# Threads


@twisted_test
async def test_a_call_in_a_thread_returns_or_raises() -> None:
    """What the function does comes out, and it has not run in the reactor's thread."""
    threads = Threads(reactor)
    assert await threads.call(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await threads.call(divmod, 1, 0)
    assert threads.running == 0


@twisted_test
async def test_a_call_that_takes_too_long_is_left_behind() -> None:
    """Who waits is told; what the call returns in the end is dropped."""
    threads = Threads(reactor, time=0.01)
    end = threading.Event()
    with pytest.raises(AcmeError, match=r"more than 0\.01 s"):
        await threads.call(end.wait)
    assert threads.running == 1
    end.set()
    await until(lambda: not threads.running)


@twisted_test
async def test_calls_left_behind_are_bounded() -> None:
    """No more threads are begun while too many have not come back."""
    threads = Threads(reactor)
    end = threading.Event()
    calls = [Deferred.fromCoroutine(threads.call(end.wait)) for _ in range(LIMIT)]
    with pytest.raises(AcmeError, match="have not come back"):
        await threads.call(end.wait)
    end.set()
    for call in calls:
        await call


def test_a_call_does_not_keep_the_process_from_ending() -> None:
    """The reactor stops and the process ends, although the call goes on."""
    script = """
import time
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from awesomeproxy.acme.threads import Threads
Deferred.fromCoroutine(Threads(reactor).call(time.sleep, 3600))
reactor.callLater(0, reactor.stop)
reactor.run()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=60, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# Words for operators


def problem(code: str, detail: str = "it is so", **more: Any) -> messages.Error:
    values = {"typ": f"urn:ietf:params:acme:error:{code}", "detail": detail, **more}
    return messages.Error(**values)


def test_a_problem_is_told_in_one_line() -> None:
    """The authority's words, its code, and the same of each part."""
    part = problem(
        "caa",
        "CAA forbids it",
        identifier=messages.Identifier(typ=messages.IDENTIFIER_FQDN, value="blog.test"),
    )
    assert words(problem("compound", "see below", subproblems=(part,))) == (
        "see below (compound); blog.test: CAA forbids it (caa)"
    )


@pytest.mark.parametrize(
    ("code", "account", "common", "lasting", "says"),
    [
        ("rejectedIdentifier", False, False, False, "the authority refuses: it is so"),
        ("rateLimited", False, False, False, "has had enough"),
        ("rateLimited", True, True, False, "has had enough"),
        ("unauthorized", True, True, True, "refuses our account"),
        ("serverInternal", True, True, False, "refuses our account"),
        ("userActionRequired", False, True, False, "as the owner of the account"),
        ("externalAccountRequired", True, True, True, "set eab_key_id and eab_key_file"),
        ("accountDoesNotExist", False, False, False, "does not know our account"),
    ],
)
def test_a_refusal_says_whom_it_concerns(
    code: str, account: bool, common: bool, lasting: bool, says: str
) -> None:
    """Whether other sites fare the same, and whether it helps to wait."""
    with pytest.raises(AcmeError, match=says) as caught, translated(DIRECTORY, account=account):
        raise problem(code)
    assert (caught.value.common, caught.value.lasting) == (common, lasting)


# The keeper, and an authority that says what it is told to


async def waits(keeper: Keeper, site: str = "blog") -> str:
    """Wait until an order has failed; the error."""
    await until(lambda: (now := keeper.status(site)) and now.state is State.WAITING)
    status = keeper.status(site)
    assert status is not None
    assert status.troubled
    return status.error


@twisted_test
async def test_an_order_that_is_rate_limited_waits_as_told(scripted: ScriptedAuthority) -> None:
    """The site is tried again when the authority allows it; others are not kept waiting."""
    scripted.refuse("newOrder", 429, "rateLimited", "too many of these", {"Retry-After": "7200"})
    keeper = scripted.keeper(a_site(), a_site("shop"))
    assert await waits(keeper) == "the authority has had enough: too many of these (rateLimited)"
    await waits(keeper, "shop")
    assert scripted.orders == 2
    scripted.clock.advance(7199)
    assert scripted.orders == 2
    scripted.clock.advance(2)
    await until(lambda: scripted.orders == 3)


@twisted_test
async def test_what_befalls_all_is_tried_for_one(scripted: ScriptedAuthority) -> None:
    """While the authority is out of order, sites do not each go and see for themselves."""
    scripted.refuse("directory", 503)
    keeper = scripted.keeper(a_site(), a_site("shop"))
    for site in ("blog", "shop"):
        assert "the authority answers 503" in await waits(keeper, site)
    assert scripted.asked.count("directory") == 1
    scripted.clock.advance(60)
    await until(lambda: scripted.asked.count("directory") == 2)


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b"not here", "the authority answers 404"),
        (200, b"{}", "is not the directory of an authority: it does not say newNonce"),
        (200, b"<html>", "what the authority says cannot be used"),
    ],
)
@twisted_test
async def test_a_url_that_is_no_directory_is_told(
    scripted: ScriptedAuthority, status: int, body: bytes, says: str
) -> None:
    """The error names the URL."""
    scripted.say("directory", status, body)
    error = await waits(scripted.keeper(a_site()))
    assert scripted.url in error
    assert says in error


@pytest.mark.parametrize(("bad", "says"), [(9, "not you (unauthorized)"), (10, "stale (badNonce)")])
@twisted_test
async def test_nonces_are_refused_for_a_while(
    scripted: ScriptedAuthority, bad: int, says: str
) -> None:
    """A request whose nonce is refused is repeated with another, but not for ever."""
    scripted.bad_nonces = bad
    assert says in await waits(scripted.keeper(a_site()))


@twisted_test
async def test_an_error_is_told_loudly_once(
    scripted: ScriptedAuthority, told: Callable[[], list[str]]
) -> None:
    """The log does not fill with what status says anyway."""
    scripted.refuse("newAccount", 403, "unauthorized", "you are not welcome")
    keeper = scripted.keeper(a_site())
    await waits(keeper)
    scripted.clock.advance(LONGEST)
    await until(lambda: scripted.asked.count("newAccount") == 2)
    await waits(keeper)
    await until(lambda: scripted.idle(keeper))
    assert [line for line in told() if "not welcome" in line] == [
        "blog: there is no certificate: the authority refuses our account: you are not welcome"
        f" (unauthorized); next try in {LONGEST:.0f} s"
    ]


@twisted_test
async def test_a_renewal_that_fails_is_not_told_as_if_there_were_none(
    scripted: ScriptedAuthority, authority: Authority, told: Callable[[], list[str]]
) -> None:
    """The log says until when the present certificate is good."""
    scripted.refuse("newOrder", 403, "unauthorized", "no")
    old = authority.issue("blog.test", days=1, began=30)
    chain, key = old.certificate.read_text(), old.key.read_bytes()
    kept = Store(scripted.path).save_certificate("blog", scripted.url, chain, key)
    scripted.keeper(a_site())
    await until(lambda: bool(told()))
    ends = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(kept.ends))
    assert f"blog: there is no new certificate; the present one ends on {ends}: " in told()[0]


@twisted_test
async def test_an_order_under_way_is_abandoned(scripted: ScriptedAuthority) -> None:
    """A keeper that stops does not wait for an authority that does not answer."""
    scripted.hang("newOrder")
    keeper = scripted.keeper(a_site())
    await until(lambda: scripted.orders)
    status = keeper.status("blog")
    assert status is not None
    assert status.state is State.ORDERING
    keeper.stop()
    assert scripted.idle(keeper)


@twisted_test
async def test_a_site_that_goes_is_ordered_nothing(scripted: ScriptedAuthority) -> None:
    """Its order is abandoned, and the next site has its turn."""
    scripted.hang("newOrder")
    keeper = scripted.keeper(a_site(), a_site("shop"))
    await until(lambda: scripted.orders == 1)
    keeper.undefine("blog")
    await until(lambda: scripted.orders == 2)
    assert [status.site for status in keeper.statuses()] == ["shop"]


@twisted_test
async def test_another_configuration_is_tried_at_once(scripted: ScriptedAuthority) -> None:
    """After a reload nobody waits for what has been mended."""
    scripted.refuse("newOrder", 403, "unauthorized", "no")
    keeper = scripted.keeper(a_site())
    await waits(keeper)
    keeper.configure(scripted.acme(renew_before=DAY))
    await until(lambda: scripted.orders == 2)


@twisted_test
async def test_a_missing_library_is_told(
    scripted: ScriptedAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that was added by a command is told what to install."""
    monkeypatch.delitem(sys.modules, "awesomeproxy.acme.order")
    monkeypatch.setitem(sys.modules, "acme.crypto_util", None)
    assert await waits(scripted.keeper(a_site())) == NO_LIBRARY


@twisted_test
async def test_the_authority_s_address_may_be_dead(scripted: ScriptedAuthority) -> None:
    """An authority that cannot be reached is told with the system's reason."""
    (port,) = free_ports(1)
    keeper = scripted.keeper(a_site(), acme=Acme(f"http://{HOST}:{port}/", terms_agreed=True))
    assert await waits(keeper) == (
        f"http://{HOST}:{port}/: the authority cannot be reached: Connection refused"
    )


# The keeper alone


def a_keeper(path: Path, acme: Acme | None, **how: Any) -> Keeper:
    return Keeper(reactor, acme, path, {}, clock=Clock(), random=lambda: 0.0, **how)


def test_a_site_without_an_authority_says_so(tmp_path: Path) -> None:
    """A site that was added by a command may want what the file does not offer."""
    keeper = a_keeper(tmp_path / "acme", None)
    keeper.define(a_site())
    keeper.start()
    (status,) = keeper.statuses()
    assert (status.state, status.error, status.next_look) == (State.WAITING, NO_AUTHORITY, None)
    keeper.stop()


def test_what_is_kept_is_used_after_a_restart(store: Store, authority: Authority) -> None:
    """A certificate that is not due is left as it is, and looked at now and then."""
    kept = save(store, authority, "blog.test")
    clock = Clock()
    keeper = Keeper(reactor, Acme(DIRECTORY), store.path, {}, clock=clock, random=lambda: 0.0)
    keeper.define(a_site())
    keeper.start()
    (status,) = keeper.statuses()
    assert (status.state, status.not_after, status.error) == (State.VALID, kept.ends, "")
    assert status.as_json()["state"] == "valid"
    assert [call.getTime() for call in clock.getDelayedCalls()] == [PACE]
    keeper.stop()
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("why", ["hosts", "directory", "age", "missing", "broken"])
def test_a_certificate_is_due(store: Store, authority: Authority, why: str) -> None:
    """For other hosts, from another authority, near its end, not there, or of no use."""
    kept = save(store, authority, "blog.test", days=90)
    if why == "missing":
        store.retire("blog")
        (store.path / "retired" / "blog.pem").unlink()
    if why == "broken":
        (store.certificates / "blog.pem").write_text("nonsense")
    keeper = a_keeper(
        store.path,
        Acme(DIRECTORY + "2" if why == "directory" else DIRECTORY),
        now=lambda: kept.ends - (29 if why == "age" else 31) * DAY,
    )
    keeper.define(a_site("blog", "blog.test", *(["www.blog.test"] if why == "hosts" else [])))
    (status,) = keeper.statuses()
    assert status.state is State.QUEUED
    assert status.next_look is None


def test_a_site_that_wants_none_any_more_has_none(store: Store, authority: Authority) -> None:
    """Its certificate is out of use; another site's is not."""
    for site in ("blog", "shop"):
        save(store, authority, f"{site}.test", site=site)
    keeper = a_keeper(store.path, Acme(DIRECTORY))
    keeper.define(a_site())
    keeper.define(a_site("shop"))
    keeper.define(a_site(acme=False))
    keeper.undefine("stranger")
    assert [path.name for path in store.certificates.iterdir()] == ["shop.pem"]
    assert repr(keeper) == "<Keeper of 1 certificates, ordering none>"


def test_a_missing_library_is_a_mistake_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told before anything is served."""
    text = """
[acme]
directory = "https://acme.example/directory"
terms_agreed = true
[[listen]]
endpoint = "tcp:80"
[sites.blog]
hosts = ["blog.test"]
backend = "one"
tls.acme = true
[sites.blog.backends.one]
servers = ["http://127.0.0.1:8000"]
"""
    config.parse(text, "a.toml")
    monkeypatch.setitem(sys.modules, "acme", None)
    with pytest.raises(config.ConfigError) as caught:
        config.parse(text, "a.toml")
    assert caught.value.problems == (
        "a.toml: sites.blog.tls.acme: is true, but the acme library is missing;"
        " pip install 'awesomeproxy[acme]'",
    )
