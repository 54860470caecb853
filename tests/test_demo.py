"""The demo: played for real, in short; interrupted; and robbed of its processes."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from awesomeproxy.control.arguments import parse
from awesomeproxy.demo.animation import animation
from awesomeproxy.demo.database import Count, Database
from awesomeproxy.demo.report import Act, Report
from awesomeproxy.demo.stage import free_ports
from awesomeproxy.load.outcome import RequestOutcome
from awesomeproxy.load.plan import Plan
from awesomeproxy.load.result import Result

PATIENCE = 30.0  # seconds for what has to happen
SHORT = ("--migrations", "2", "--every", "0.5", "--kills", "1", "--rate", "60")
DEMO = [sys.executable, "-m", "awesomeproxy", "demo"]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a short name, as the path of a Unix socket has to be."""
    directory = Path(tempfile.mkdtemp(prefix="demo-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def playing(scratch: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo whose load has begun."""
    demo = subprocess.Popen(
        [*DEMO, "--picture", str(scratch / "demo.png")],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if " ended, " in line:
            break
    yield demo
    demo.kill()
    demo.communicate()


def processes_of(scratch: Path) -> dict[int, str]:
    """The command lines of the processes that have something to do with a directory."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{scratch}/awesomeproxy-demo-" in words:
            found[int(entry.parent.name)] = words
    return found


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.02)


def test_a_short_demo_fails_no_request_and_applies_every_update_once(scratch: Path) -> None:
    """Migrations, a restart under a pause, a kill under traffic: nothing is lost or doubled."""
    picture = scratch / "out" / "demo.png"
    done = subprocess.run(
        [*DEMO, *SHORT, "--json", "--picture", str(picture)],
        env={**os.environ, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["passed"]
    assert [report[name] for name in ("failed", "lost", "duplicated", "ambiguous")] == [0] * 4
    assert report["migrations"] == 2
    assert report["held"] > 0
    assert [ledger["target"] for ledger in report["ledgers"]] == ["web2", "web1"]
    assert [act["method"] for act in report["acts"]] == ["POST", "PUT"]
    assert all(act["updates"]["applied"] == act["load"]["requests"] for act in report["acts"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list(scratch.glob("awesomeproxy-demo-*"))


def test_an_interrupted_demo_leaves_nothing_behind(
    playing: subprocess.Popen[str], scratch: Path
) -> None:
    """Ctrl-C ends all its processes and removes its files; the status says so."""
    playing.send_signal(signal.SIGINT)
    assert playing.wait(PATIENCE) == 130
    assert not processes_of(scratch)
    assert not list(scratch.glob("awesomeproxy-demo-*"))


def test_a_process_that_dies_unasked_is_told_with_its_last_words(
    playing: subprocess.Popen[str], scratch: Path
) -> None:
    """The demo ends with status 1, what died, and the tail of its log."""
    (daemon,) = (pid for pid, words in processes_of(scratch).items() if "twistd" in words)
    os.kill(daemon, signal.SIGKILL)
    _, complaint = playing.communicate(timeout=PATIENCE)
    assert playing.returncode == 1
    assert "awesomeproxy demo: the daemon has died unasked (" in complaint
    assert "the last it said:" in complaint
    assert "serves 1 site" in complaint
    assert not processes_of(scratch)


def test_the_processes_of_a_killed_demo_end_with_it(
    playing: subprocess.Popen[str], scratch: Path
) -> None:
    """Even SIGKILL leaves no daemon and no backend behind."""
    assert len(processes_of(scratch)) == 3
    playing.kill()
    wait_until(lambda: not processes_of(scratch))


def test_the_site_finishes_what_it_has_begun_when_it_is_told_to_stop(scratch: Path) -> None:
    """On SIGTERM the request at work is answered; then the process ends with status 0."""
    path = scratch / "updates.sqlite"
    database = Database.create(path)
    (port,) = free_ports(1)
    site = subprocess.Popen(
        [
            *(sys.executable, "-m", "awesomeproxy.demo.site", "--name", "web1"),
            *("--port", str(port), "--database", str(path), "--think", "1", "1"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert site.stdout is not None
        assert site.stdout.readline() == "web1 is ready\n"
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        client.request("POST", "/update/7")
        wait_until(lambda: database.count("POST", []).applied == 1)
        site.terminate()
        assert client.getresponse().read() == b"update 7 by web1\n"
        client.close()
        assert site.wait(PATIENCE) == 0
    finally:
        site.kill()
        site.communicate()
        database.close()


def test_an_update_that_is_done_twice_shows(tmp_path: Path) -> None:
    """POST is applied as often as it comes, PUT of one number once; the count tells."""
    database = Database.create(tmp_path / "updates.sqlite")
    for n in (0, 1, 1, 2):
        database.update("POST", n, "web1")
        database.update("PUT", n, "web2")
    assert database.count("POST", [0, 1, 5]) == Count(
        applied=3, lost=1, duplicated=1, unacknowledged=1
    )
    assert database.count("PUT", [0, 1, 2]) == Count(
        applied=3, lost=0, duplicated=0, unacknowledged=0
    )
    assert database.backends("PUT") == {0: "web2", 1: "web2", 2: "web2"}
    database.close()


def an_act(count: Count, outcomes: tuple[RequestOutcome, ...]) -> Act:
    result = Result(Plan("http://localhost/update/{n}", 1, len(outcomes), method="POST"))
    for n, outcome in enumerate(outcomes):
        result.issue(float(n))
        result.sent[n] = n + 0.1
        result.finish(n, n + 0.5, outcome, 200, 0.2 if n == 1 else -1.0)
    result.marks.append((0.5, "migrate to web2"))
    result.elapsed = float(len(outcomes))
    return Act("POST", result, count, dict.fromkeys(range(len(outcomes)), "web1"))


FINE = Count(applied=3, lost=0, duplicated=0, unacknowledged=0)
ALL_OK = (RequestOutcome.OK,) * 3
LEDGER = {
    "source": "web1",
    "target": "web2",
    "outcome": "done",
    "pause": 0.3,
    "steps": {"check": 0.01, "drain": 0.2},
}


def test_the_summary_is_one_line() -> None:
    """Everything that matters is in it, in a fixed order."""
    report = Report([an_act(FINE, ALL_OK), an_act(FINE, ALL_OK)], [LEDGER], retried=4)
    assert report.passed
    assert report.summary() == (
        "failed=0 lost=0 duplicated=0 ambiguous=0 held=2 retried=4 migrations=1"
        " longest_wait=0.2s requests=6"
    )


@pytest.mark.parametrize(
    ("count", "outcomes", "ambiguous"),
    [
        (FINE, (*ALL_OK[1:], RequestOutcome.STATUS), 0),
        (FINE, (*ALL_OK[1:], RequestOutcome.UNFINISHED), 0),
        (Count(2, 1, 0, 0), ALL_OK, 0),
        (Count(3, 0, 1, 0), ALL_OK, 0),
        (FINE, ALL_OK, 1),
    ],
    ids=["failed", "cut off", "lost", "duplicated", "ambiguous"],
)
def test_whatever_is_not_exactly_once_does_not_pass(
    count: Count, outcomes: tuple[RequestOutcome, ...], ambiguous: int
) -> None:
    """One request is enough."""
    act = an_act(count, outcomes)
    if RequestOutcome.UNFINISHED in outcomes:
        act.result.finished -= 1
    assert not Report([act], ambiguous=ambiguous).passed


def test_a_picture_shows_the_acts_in_a_row() -> None:
    """The second act begins a gap after the first, with its marks and its holds."""
    one = Report([an_act(FINE, ALL_OK), an_act(FINE, ALL_OK)]).as_one()
    assert [round(request.due) for request in one] == [0, 1, 2, 5, 6, 7]
    assert [request.n for request in one if request.held is not None] == [1, 4]
    assert (5.5, "migrate to web2") in one.marks
    assert one.failed == 0


def test_an_animation_has_a_dot_for_every_request() -> None:
    """It is XML, without a script, and plays by itself."""
    act = an_act(FINE, ALL_OK)
    root = ElementTree.fromstring(animation(act, [LEDGER]))
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{name}circle")) == len(act.result)
    assert not root.findall(f".//{name}script")
    assert root.findall(f".//{name}animateTransform")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--picture", "demo.gif"], "--picture demo.gif: name a file that ends in .png or .svg"),
        (["--animate", "demo.png"], "--animate demo.png: name a file that ends in .svg"),
        (["--rate", "0"], "'0' is no number above 0"),
        (["--kills", "-1"], "'-1' is no count; write a number from 0"),
        (["--reference", "--animate", "a.svg"], "are two different runs"),
    ],
)
def test_a_demo_that_cannot_be_played_is_not_begun(words: list[str], complaint: str) -> None:
    """Status 2, with what was wrong."""
    done = subprocess.run([*DEMO, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_asking_for_help_imports_no_reactor() -> None:
    """The command's module is cheap to import."""
    code = "import sys, awesomeproxy.demo.command; sys.exit('twisted' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("words", [["demo"], ["load", "http://localhost/"]])
def test_json_is_printed_only_when_asked_for(words: list[str]) -> None:
    """Before the command's name, or after it."""
    assert parse(words).json is False
    assert parse([*words, "--json"]).json is True
    assert parse(["--json", *words]).json is True
