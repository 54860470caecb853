"""A node's certificates, as long as it lives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from daemon_stage import Stage, a_stage, reactor, site, twisted_fixture, twisted_test, until
from tls_stage import Authority
from twisted.logger import LogLevel, capturedLogs

from awesomeproxy.certifying import Certifying
from awesomeproxy.model import Tls

stage = twisted_fixture(a_stage)


class Kept:
    """A directory of certificates that is looked after, and the events there were."""

    def __init__(self, path: Path) -> None:
        self.authority = Authority(path / "authority")
        self.path = path / "certificates"
        self.path.mkdir()
        self.events: list[dict[str, Any]] = []
        self.certifying = self.at_intervals(0.02)

    def at_intervals(self, seconds: float) -> Certifying:
        """Look after it, at these intervals."""
        self.certifying = Certifying(
            reactor, Tls((str(self.path),), check_every=seconds), emit=self._note
        )
        return self.certifying

    def _note(self, **event: Any) -> None:
        self.events.append(event)

    def issue(self, name: str, *more: str) -> Path:
        path = self.path / f"{name}.crt"
        self.authority.issue(name, *more, path=path)
        return path

    async def covers(self, name: str) -> None:
        """Wait until there is a certificate for a name."""
        await until(lambda: self.certifying.certificates.covers(name), f"a certificate for {name}")


async def _kept(tmp_path: Path) -> AsyncIterator[Kept]:
    made = Kept(tmp_path)
    yield made
    await made.certifying.stop()


kept = twisted_fixture(_kept)


@twisted_test
async def test_what_there_is_at_the_start_is_used_from_the_start(kept: Kept) -> None:
    """Nobody who comes first is refused."""
    kept.issue("a.test")
    await kept.certifying.start()
    assert kept.certifying.certificates.covers("a.test")
    assert kept.events == [{"event": "certificates", "count": 1, "problems": []}]


@twisted_test
async def test_what_changes_later_is_noticed(kept: Kept) -> None:
    """Without anybody saying so."""
    kept.issue("a.test")
    await kept.certifying.start()
    path = kept.issue("b.test")
    await kept.covers("b.test")
    path.unlink()
    await until(lambda: not kept.certifying.certificates.covers("b.test"), "the removal")
    assert [event["count"] for event in kept.events] == [1, 2, 1]


@twisted_test
async def test_a_problem_is_logged_once(kept: Kept) -> None:
    """However often it is met; and so is the event of it."""
    path = kept.path / "a.pem"
    path.touch()
    with capturedLogs() as logged:
        await kept.certifying.start()
        kept.issue("b.test")
        await kept.covers("b.test")
    errors = [e["problem"] for e in logged if e["log_level"] is LogLevel.error]
    assert errors == [
        f"{path}: holds no certificate in PEM form; put one there, or remove the file"
    ]
    assert [event["problems"] for event in kept.events] == [errors, errors]


@twisted_test
async def test_a_look_can_be_had_at_once(kept: Kept) -> None:
    """Also if another one is under way."""
    kept.at_intervals(3600)
    await kept.certifying.start()
    kept.issue("a.test")
    kept.certifying.hurry()
    await kept.covers("a.test")
    async with kept.certifying.reading():
        kept.issue("b.test")
        kept.certifying.hurry()
    await kept.covers("b.test")


@twisted_test
async def test_what_was_read_for_other_settings_can_be_let_go(kept: Kept) -> None:
    """Then nothing has changed."""
    kept.issue("a.test")
    await kept.certifying.start()
    async with kept.certifying.reading(Tls()):
        pass
    assert kept.certifying.certificates.covers("a.test")
    async with kept.certifying.reading(Tls()) as take:
        take()
    assert not kept.certifying.certificates.covers("a.test")


@twisted_test
async def test_the_end_waits_for_a_look_that_is_under_way(kept: Kept) -> None:
    """And there is none after it."""
    await kept.certifying.start()
    kept.certifying.hurry()
    await until(lambda: kept.certifying._one.locked, "a look")
    await kept.certifying.stop()
    assert not kept.certifying._one.locked
    assert kept.certifying._timer is None


# The daemon


@twisted_test
async def test_operators_see_the_certificates_of_a_daemon(stage: Stage) -> None:
    """What is wrong with them or ends soon is in `status`, all of them in `certificates`."""
    authority = Authority(stage.directory / "authority")
    path = stage.directory / "certificates"
    good = authority.issue("a.test", "*.a.test", path=path / "a.crt")
    short = authority.issue("b.test", days=3.01, path=path / "b.crt")
    broken = path / "c.pem"
    broken.touch()
    tls = f'[tls]\ncertificates = ["{path}"]'
    daemon = await stage.serving(site("blog", stage.origin("one")), tls)
    said = f"{broken}: holds no certificate in PEM form; put one there, or remove the file"
    assert said in daemon.log
    certificates = (await daemon.ask("status"))["node"]["certificates"]
    assert (certificates["count"], certificates["problems"]) == (2, [said])
    assert [one["names"] for one in certificates["expiring"]] == [["b.test"]]
    status = (await daemon.command("status")).out
    assert said in status
    assert f"the certificate for b.test expires in 3d 00h; renew {short.certificate}" in status
    listed = (await daemon.command("certificates")).out.splitlines()
    assert listed[0].split() == ["NAMES", "EXPIRES", "SOURCE", "PROBLEM"]
    assert listed[1].startswith("*.a.test, a.test  20")
    assert str(good.certificate) in listed[1]
    assert listed[3].split(maxsplit=2)[0] == "none"
    assert listed[3].endswith(
        "  holds no certificate in PEM form; put one there, or remove the file"
    )


@twisted_test
async def test_what_is_doubtful_is_logged_at_the_start(stage: Stage) -> None:
    """An empty directory of certificates, and servers that nobody verifies."""
    empty = stage.directory / "empty"
    empty.mkdir()
    one = stage.origin("one")
    blog = site("blog", one).replace("http://", "https://") + "\ntls.verify = false"
    daemon = await stage.serving(blog, listen=f'[tls]\ncertificates = ["{empty}"]')
    said = f"tls.certificates: there is no certificate in {empty}; put one there"
    assert said in daemon.log
    assert said in (await daemon.command("status")).out
    doubt = "sites.blog.backends.one.tls.verify: is false"
    assert daemon.log.count(doubt) == 1
    assert doubt in (await daemon.command("status", "blog")).out


@twisted_test
async def test_a_reload_reads_the_certificates_again(stage: Stage) -> None:
    """From where its settings say then; what is wrong is in its answer."""
    authority = Authority(stage.directory / "authority")
    one = authority.issue("a.test", path=stage.directory / "one" / "a.crt")
    authority.issue("b.test", path=stage.directory / "two" / "b.crt")
    blog = site("blog", stage.origin("one"))

    def tls(place: Path, more: str = "") -> str:
        return f'[tls]\ncertificates = ["{place}"]\ncheck_every = "1h"\n{more}'

    daemon = await stage.serving(blog, tls(one.certificate.parent))
    authority.issue("c.test", path=one.certificate)
    assert (await daemon.ask("reload"))["warnings"] == []
    (listed,) = (await daemon.ask("certificates"))["certificates"]
    assert listed["names"] == ["c.test"]
    daemon.configure(blog, tls(stage.directory / "two", 'default = "d.test"'))
    said = "tls.default: there is no certificate for d.test; add one, or name another host"
    assert (await daemon.ask("reload"))["warnings"] == [said]
    (listed,) = (await daemon.ask("certificates"))["certificates"]
    assert listed["names"] == ["b.test"]
    assert said in (await daemon.command("reload")).out
