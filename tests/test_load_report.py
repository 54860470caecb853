"""What a load run's result is turned into: JSON, a summary, a picture, an exit status."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.python.failure import Failure

from awesomeproxy.load import command
from awesomeproxy.load.outcome import RequestOutcome
from awesomeproxy.load.picture import draw
from awesomeproxy.load.plan import Plan, PlanError
from awesomeproxy.load.progress import LiveProgress, PlainProgress, progress_on
from awesomeproxy.load.result import Latency, Progress, Result
from awesomeproxy.load.summary import summary

reactor: Any = the_reactor

F = TypeVar("F", bound=Callable[..., object])
twisted_test: Callable[[F], F] = pytest_twisted.ensureDeferred
twisted_fixture: Callable[[F], F] = pytest_twisted.async_yield_fixture

URL = "http://shop.example/orders/{n}"
DRIVER = """
import argparse, sys
from awesomeproxy.load import command
parser = argparse.ArgumentParser()
command.add_arguments(parser)
sys.exit(command.main(parser.parse_args()))
"""


def a_result(count: int = 1000) -> Result:
    """A result with everything in it: held requests, each kind of failure, marks."""
    result = Result(Plan(URL, rate=100, duration=count / 100))
    failures = [outcome for outcome in RequestOutcome if outcome.failed]
    for n in range(count - 1):
        result.issue(n / 100)
        result.sent[n] = n / 100
        outcome = failures[n] if n < len(failures) else RequestOutcome.OK
        status = 0 if not outcome.answered else 503 if outcome is RequestOutcome.STATUS else 200
        held = 0.5 if n % 100 == 50 else -1.0
        result.finish(n, n / 100 + 0.002 + max(held, 0), outcome, status, held)
    result.issue((count - 1) / 100)  # under way when the run was cut short
    result.elapsed = count / 100
    result.marks += [(2.0, "pause shop"), (2.5, "resume $hop_")]
    result.reasons["reset: closed"] = 1
    return result


def test_the_json_has_all_counts_and_is_plain() -> None:
    result = a_result()
    value = json.loads(json.dumps(result.as_json()))
    assert set(value) == {
        "plan", "began", "elapsed", "interrupted", "passed", "requests", "unsent", "failed",
        "rate", "outcomes", "statuses", "reasons", "strays", "held", "latency", "service_time",
        "connections", "client", "marks",
    }  # fmt: skip
    assert value["outcomes"] == {
        "unfinished": 1,
        "ok": 992,
        "status": 1,
        "wrong body": 1,
        "refused": 1,
        "reset": 1,
        "truncated": 1,
        "timed out": 1,
        "malformed": 1,
    }
    assert sum(value["outcomes"].values()) == value["requests"] == 1000
    assert value["failed"] == 7
    assert value["statuses"] == {"200": 993, "503": 1}
    assert value["held"] == {"requests": 10, "longest": 0.5}
    assert set(value["latency"]) == {
        "min", "mean", "max", "p50", "p90", "p99", "p99.9", "p99.99"
    }  # fmt: skip


def test_without_an_answer_there_is_no_latency() -> None:
    value = Result(Plan(URL)).as_json()
    assert (value["latency"], value["service_time"], value["passed"]) == (None, None, True)


def test_percentiles_have_three_digits() -> None:
    latency = Latency.of(n / 1000 for n in range(1, 10_001))
    assert latency is not None
    assert (latency.min, latency.max) == (0.001, 10.0)
    assert latency.mean == pytest.approx(5.0005)
    for percentile, value in latency.percentiles.items():
        assert value == pytest.approx(percentile / 10, rel=0.001)


def test_the_summary_names_what_failed() -> None:
    text = summary(a_result())
    assert "7 of 999 requests failed." in text
    assert "992 ok" in text
    assert "request 0    status 503, due at 0.000 s" in text
    assert "held" in text


def test_the_summary_of_a_good_run_says_so() -> None:
    assert summary(Result(Plan(URL))).endswith("No request failed.")


def test_the_summary_warns_of_a_client_that_is_the_bottleneck() -> None:
    result = a_result()
    result.cpu = result.elapsed
    assert "The client itself was busy 100%" in summary(result)


def test_a_picture_is_a_png_or_an_svg_by_its_name(tmp_path: Path) -> None:
    draw(a_result(), tmp_path / "a.png")
    draw(a_result(), str(tmp_path / "a.svg"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


def test_a_picture_of_nothing_can_be_drawn(tmp_path: Path) -> None:
    draw(Result(Plan(URL)), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def some_progress(elapsed: float) -> Progress:
    return Progress(
        elapsed=elapsed,
        issued=100,
        finished=90,
        failed=1,
        held=2,
        in_flight=4,
        waiting=6,
        rate=50.0,
        median=0.001,
        longest=0.5,
    )


def test_progress_without_a_terminal_is_plain_lines_now_and_then() -> None:
    out = StringIO()
    display = progress_on(Plan(URL), out)
    assert isinstance(display, PlainProgress)
    for half_seconds in range(1, 9):
        display.update(some_progress(half_seconds / 2))
    display.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1] == (
        "   2.0 s  90 ended, 50/s, median 1.000 ms, longest 500.000 ms, 4 in flight, "
        "6 waiting for a connection, 2 held, 1 failed"
    )


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_redrawn() -> None:
    out = Terminal()
    display = progress_on(Plan(URL), out)
    assert isinstance(display, LiveProgress)
    display.update(some_progress(1.0))
    display.close()
    assert "90 ended" in out.getvalue()


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_arguments_make_a_plan(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\x00{n}")
    plan = command.plan_of(
        options(
            URL, "--rate", "5000", "--duration", "30", "--connections", "9", "--header", "A: b",
            "--body", f"@{tmp_path}/body", "--timeout", "3", "--expect", "201",
            "--expect-body", "{n}", "--unix", "/s",
        )
    )  # fmt: skip
    assert plan == Plan(
        URL,
        rate=5000,
        duration=30,
        connections=9,
        method="POST",
        headers=(("A", "b"),),
        body=b"\x00{n}",
        timeout=3,
        expect=frozenset({201}),
        expect_body="{n}",
        unix="/s",
    )


@pytest.mark.parametrize("arguments", [["--header", "nonsense"], ["--body", "@/no/such/file"]])
def test_arguments_that_make_no_plan_are_refused(arguments: list[str]) -> None:
    with pytest.raises(PlanError, match=arguments[0]):
        command.plan_of(options(URL, *arguments))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ftp://a"], "http://host"),
        ([URL, "--expect", "good"], "expected status 'good'"),
        ([URL, "--picture", "a.gif"], "ends in .png or .svg"),
        ([URL, "--picture", "/no/such/place/a.png"], "/no/such/place/a.png"),
        ([URL, "--connections", "2000000000"], "ulimit"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sent(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(options(*arguments)) == command.WRONG_USE
    said = capsys.readouterr()
    assert said.err.startswith("awesomeproxy load: ")
    assert says in said.err
    assert said.out == ""


@pytest.mark.parametrize("module", ["hdrh", "matplotlib"])
def test_a_missing_package_is_told_with_the_remedy(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in [*sys.modules]:
        if name.split(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    picture = str(tmp_path / "a.png")
    assert command.main(options(URL, "--picture", picture)) == command.WRONG_USE
    assert "pip install 'awesomeproxy[load]'" in capsys.readouterr().err


def test_the_exit_status_says_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    good, stray, cut = Result(Plan(URL)), Result(Plan(URL)), Result(Plan(URL))
    stray.strays = 1
    cut.interrupted = True
    wanted = options(URL, "--json")
    assert [command.report(r, wanted) for r in (good, a_result(), stray, cut)] == [0, 1, 1, 130]
    assert len(capsys.readouterr().out.splitlines()) == 4


class Always(Protocol):
    """Answers whatever comes with the status of its factory."""

    transport: Any
    factory: Any

    def connectionMade(self) -> None:
        self.factory.talks.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % self.factory.status)
        if self.factory.asked is not None:
            self.factory.asked()


class Command(ProcessProtocol):
    """Runs the command as a process of its own, as it runs a reactor."""

    def __init__(self, *arguments: str) -> None:
        self.ended: Deferred[int] = Deferred()
        self.out = self.err = b""
        self.process = reactor.spawnProcess(
            self, sys.executable, [sys.executable, "-c", DRIVER, *arguments], env=os.environ
        )

    def outReceived(self, data: bytes) -> None:
        self.out += data

    def errReceived(self, data: bytes) -> None:
        self.err += data

    def processEnded(self, reason: Failure) -> None:
        status: Any = reason.value
        self.ended.callback(status.exitCode)


Answer = Callable[..., str]


@twisted_fixture
async def answering() -> AsyncIterator[Answer]:
    """Starts a server that always answers with one status, and tells its URL."""
    factory: Any = Factory.forProtocol(Always)
    factory.noisy = False
    factory.talks = []
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")

    def start(status: int, asked: Callable[[], None] | None = None) -> str:
        factory.status, factory.asked = status, asked
        return f"http://127.0.0.1:{port.getHost().port}/{{n}}"

    yield start
    await port.stopListening()
    for talk in factory.talks:
        talk.transport.abortConnection()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
@twisted_test
async def test_the_command_runs_prints_draws_and_exits(
    answering: Answer, tmp_path: Path, status: int, code: int
) -> None:
    picture = tmp_path / "run.svg"
    process = Command(
        answering(status), "--rate", "100", "--duration", "0.2", "--json", "--picture", str(picture)
    )
    assert await process.ended == code, process.err
    result = json.loads(process.out)
    assert (result["requests"], result["statuses"]) == (20, {str(status): 20})
    assert picture.exists()


@twisted_test
async def test_ctrl_c_prints_what_has_been_measured(answering: Answer) -> None:
    requests = 0

    def asked() -> None:
        nonlocal requests
        requests += 1
        if requests == 5:
            process.process.signalProcess(signal.SIGINT)

    process = Command(answering(200, asked), "--rate", "50", "--duration", "600", "--json")
    assert await process.ended == command.INTERRUPTED, process.err
    result = json.loads(process.out)
    assert result["interrupted"]
    assert result["outcomes"]["ok"] >= 4


def test_importing_the_command_is_cheap() -> None:
    import subprocess

    program = """
import sys
from awesomeproxy.load import command
print([name for name in ("twisted", "matplotlib", "rich", "hdrh") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ran.stdout == b"[]\n"
