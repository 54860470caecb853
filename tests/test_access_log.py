"""What is written down of each request, and what if it cannot be."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from plane_stage import (
    END,
    GET,
    OK,
    Stage,
    answering,
    eventually,
    one_request,
    post,
    stage,
    turns,
    twisted_test,
)
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from awesomeproxy.model import HoldLimits, Mode
from awesomeproxy.proxy.accesslog import FLUSH_AT, KEEP_AT_MOST, AccessLog

LINE = re.compile(
    r"(?P<time>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z) (?P<client>\S+) (?P<site>\S+)"
    r' (?P<backend>\S+) (?P<server>\S+) "(?P<request>[^"]*)" (?P<status>[0-9]{3})'
    r" (?P<bytes>[0-9]+) (?P<held>[0-9.]+) (?P<total>[0-9.]+) (?P<id>\S+)"
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "access.log")


def lines(s: Stage, path: str) -> list[dict[str, str]]:
    """All that was logged, taken apart."""
    s.plane.access_log.flush()
    found = []
    for line in Path(path).read_text().splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        found.append(match.groupdict())
    return found


@twisted_test
async def test_a_request_is_one_line(path: str) -> None:
    async with stage(answering, plane={"access_log": path}) as s:
        answer = await s.ask(GET.replace(b"/ ", b"/a?b "))
        (line,) = lines(s, path)
        assert line["client"] == "127.0.0.1"
        assert (line["site"], line["backend"]) == ("blog", "here")
        assert line["server"] == str(s.origin.server)
        assert line["request"] == "GET /a?b HTTP/1.1"
        assert line["status"] == "200"
        assert int(line["bytes"]) == len(answer.head) + len(answer.body)
        assert (line["held"], line["total"]) == ("0.000", "0.000")
        assert f"X-Request-Id: {line['id']}\r\n".encode() in s.origin.received


@twisted_test
async def test_the_time_a_request_was_held_is_written_down(path: str) -> None:
    async with stage(plane={"access_log": path}) as s:
        s.place(Mode.HOLDING)
        client = await s.connect(GET)
        await s.held()
        await s.pass_time(2)
        s.place()
        server = await s.origin.accept()
        await one_request(server)
        await s.pass_time(1)
        server.write(OK)
        await client.answer()
        (line,) = lines(s, path)
        assert (line["held"], line["total"]) == ("2.000", "3.000")


@pytest.mark.parametrize(
    ("request_", "status", "logged"),
    [
        (b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", "404", "GET / HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400", "GET / HTTP/1.1"),
        (b"GET /x HTTP/1.1\r\n\r\n", "400", "GET /x HTTP/1.1"),
        (b"nonsense\r\n\r\n", "400", "-"),
        (post(b"hello"), "413", "POST / HTTP/1.1"),
        (
            b"POST / HTTP/1.1\r\nHost: blog.example\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n",
            "413",
            "POST / HTTP/1.1",
        ),
        (GET, "503", "GET / HTTP/1.1"),
    ],
)
@twisted_test
async def test_what_the_proxy_answers_itself_is_one_line_as_well(
    path: str, request_: bytes, status: str, logged: str
) -> None:
    full = HoldLimits(max_requests=0)
    async with stage(plane={"access_log": path}, max_body=4, hold=full) as s:
        s.place(Mode.HOLDING)
        answer = await s.ask(request_)
        (line,) = lines(s, path)
        assert (line["status"], line["request"]) == (status, logged)
        assert (line["client"], line["server"]) == ("127.0.0.1", "-")
        assert int(line["bytes"]) == len(answer.head) + len(answer.body)


@twisted_test
async def test_a_late_head_is_written_down(path: str) -> None:
    async with stage(plane={"access_log": path}) as s:
        client = await s.connect(b"GET / HT")
        await eventually(lambda: s.plane.clients)
        await turns()
        await s.pass_time(30)
        assert (await client.answer()).status == 408
        (line,) = lines(s, path)
        assert line["status"] == "408"


@twisted_test
async def test_a_client_that_leaves_is_499(path: str) -> None:
    async with stage(plane={"access_log": path}) as s:
        s.place(Mode.HOLDING)
        client = await s.connect(GET)
        await s.held()
        client.close()
        await s.held(0)
        (line,) = lines(s, path)
        assert (line["status"], line["client"], line["bytes"]) == ("499", "127.0.0.1", "0")


@twisted_test
async def test_a_stream_is_written_down_when_it_ends(path: str) -> None:
    async with stage(plane={"access_log": path}) as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await client.until(END)
        assert lines(s, path) == []
        client.close()
        await eventually(lambda: server.closed)
        (line,) = lines(s, path)
        assert line["status"] == "200"


@twisted_test
async def test_nothing_is_written_where_nothing_is_wanted() -> None:
    async with stage(answering) as s:
        assert not s.plane.access_log.enabled
        await s.ask()


# The log itself


def log(path: str) -> tuple[AccessLog, Clock]:
    clock: Any = Clock()
    return AccessLog(clock, path), clock


def test_lines_are_written_in_batches(path: str) -> None:
    access_log, clock = log(path)
    access_log.add(b"one", wall=lambda: 1e9 + 0.25)
    access_log.add(b"two", wall=lambda: 1e9 + 0.5)
    assert Path(path).read_text() == ""
    clock.advance(1)
    assert Path(path).read_text() == (
        "2001-09-09T01:46:40.250Z one\n2001-09-09T01:46:40.500Z two\n"
    )
    assert not clock.getDelayedCalls()
    access_log.close()


def test_a_full_batch_is_written_at_once(path: str) -> None:
    access_log, _clock = log(path)
    for _ in range(3):
        access_log.add(b"x" * FLUSH_AT)
    assert Path(path).stat().st_size > FLUSH_AT
    access_log.close()


def test_what_there_is_is_written_at_the_end(path: str) -> None:
    access_log, clock = log(path)
    access_log.add(b"last")
    access_log.close()
    assert Path(path).read_text().endswith("last\n")
    assert not clock.getDelayedCalls()


def test_a_log_that_was_moved_away_can_be_opened_anew(path: str) -> None:
    access_log, _clock = log(path)
    access_log.add(b"old")
    os.rename(path, path + ".1")
    access_log.add(b"old as well")
    access_log.reopen()
    access_log.add(b"new")
    access_log.close()
    assert Path(path + ".1").read_text().count("old") == 2
    assert Path(path).read_text().endswith("new\n")


def test_a_log_that_cannot_be_opened_anew_stays_in_use(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    access_log, _clock = log(str(directory / "access.log"))
    moved = tmp_path / "moved"
    directory.rename(moved)
    with pytest.raises(FileNotFoundError):
        access_log.reopen()
    access_log.add(b"still here")
    access_log.close()
    assert "still here" in (moved / "access.log").read_text()


def test_a_log_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        log(str(tmp_path / "no" / "access.log"))


def test_a_full_disk_keeps_a_bounded_number_of_lines_and_tells_of_the_rest() -> None:
    events: list[Any] = []
    observer: Any = events.append
    access_log, clock = log("/dev/full")
    globalLogPublisher.addObserver(observer)
    try:
        for _ in range(100):
            for _ in range(1000):
                access_log.add(b"x" * 100)
            clock.advance(1)
            assert access_log._size <= KEEP_AT_MOST + FLUSH_AT * 4
        access_log._path = "/dev/null"  # there is room again
        access_log.reopen()
        clock.advance(1)
        assert not access_log._lines
        told = [event["lost"] for event in events if "lost" in event]
        assert told
        assert told[0] > 10_000
    finally:
        globalLogPublisher.removeObserver(observer)
        access_log.close()


def test_a_full_disk_is_not_written_to_for_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    access_log, _clock = log("/dev/full")
    writes = 0
    write = os.write

    def counted(fd: int, data: bytes) -> int:
        nonlocal writes
        writes += 1
        return write(fd, data)

    monkeypatch.setattr(os, "write", counted)
    for _ in range(10_000):
        access_log.add(b"x" * 100)
    assert writes < 5
    access_log.close()


def test_a_pipe_that_nobody_reads_does_not_block(tmp_path: Path) -> None:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        log(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    access_log, clock = log(path)
    for _ in range(100):
        access_log.add(b"x" * 10_000)
        clock.advance(1)
    assert access_log._lines
    taken = b""
    while access_log._lines:
        taken += os.read(reader, 1 << 20)
        access_log.flush()
    taken += os.read(reader, 1 << 20)
    assert taken.count(b"\n") == 100
    os.close(reader)
    access_log.add(b"to nobody")
    access_log.flush()
    access_log.close()


def test_a_line_that_was_torn_is_finished_before_others_are_dropped(tmp_path: Path) -> None:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    access_log, _clock = log(path)
    for number in range(100):
        access_log.add(b"%d " % number + b"x" * 100_000)
        access_log.flush()
    taken = b""
    while access_log._lines:
        taken += os.read(reader, 1 << 20)
        access_log.flush()
    access_log.add(b"last")
    access_log.close()
    taken += os.read(reader, 1 << 20)
    os.close(reader)
    for line in taken.decode().splitlines():
        assert re.fullmatch(r"\S+Z ([0-9]+ x{100000}|last)", line), line[:50]
    assert taken.count(b"\n") < 101


@pytest.mark.parametrize("closed", [False, True])
def test_standard_output_may_be_a_pipe(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    reader, writer = os.pipe()
    access_log, clock = log("-")
    monkeypatch.setattr(access_log, "_fd", writer)
    if closed:
        os.close(reader)
    access_log.add(b"x" * 3_000_000)
    clock.advance(1)  # and it has not blocked
    assert access_log._lines
    access_log.add(b"y")
    access_log.close()
    if not closed:
        os.close(reader)
