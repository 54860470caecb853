"""The ``awesomeproxy`` command, run as a process of its own against a real server."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from control_stage import LEDGER, RECEIPT, Theatre, serve, twisted_fixture, twisted_test
from twisted.internet.threads import deferToThread

from awesomeproxy import __version__
from awesomeproxy.control.cli import main

COMMAND = [sys.executable, "-m", "awesomeproxy"]
PLAIN = {**os.environ, "NO_COLOR": "", "TERM": "xterm", "COLUMNS": "200"}

Ended = subprocess.CompletedProcess[str]


@twisted_fixture
async def theatre(tmp_path: Path) -> AsyncIterator[Theatre]:
    served = await serve(str(tmp_path / "control.sock"))
    yield served
    await served.close()


def run(*words: str, **environment: str) -> Ended:
    return subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=PLAIN | environment,
    )


async def ask(theatre: Theatre, *words: str, **environment: str) -> Ended:
    """Run a command against ``theatre``, whose reactor goes on meanwhile."""
    return await deferToThread(run, *words, AWESOMEPROXY_CONTROL=theatre.path, **environment)


# What is sent

SENT: list[tuple[str, str, dict[str, Any]]] = [
    ("status", "status", {}),
    ("status blog", "status", {"site": "blog"}),
    ("pause blog", "pause", {"site": "blog", "force": False}),
    (
        "pause blog --force --timeout 20s --for 10m --then resume",
        "pause",
        {"site": "blog", "force": True, "timeout": 20.0, "deadline": 600.0, "then": "resume"},
    ),
    ("pause --timeout 250ms blog", "pause", {"site": "blog", "force": False, "timeout": 0.25}),
    ("pause --timeout 1.5 blog", "pause", {"site": "blog", "force": False, "timeout": 1.5}),
    ("resume blog", "resume", {"site": "blog"}),
    (
        "migrate blog --to new",
        "migrate",
        {"site": "blog", "to": "new", "dry_run": False, "max_pause": 20.0, "force": False},
    ),
    (
        "migrate blog --to new --dry-run --max-pause 5s --force",
        "migrate",
        {"site": "blog", "to": "new", "dry_run": True, "max_pause": 5.0, "force": True},
    ),
    (
        "site add shop --host shop.example www.shop.example --host *.shop.example --path /x "
        "--backend a=http://10.0.0.1:80,http://10.0.0.2:80 b=unix:/run/b.sock --place b",
        "site.add",
        {
            "name": "shop",
            "definition": {
                "hosts": ["shop.example", "www.shop.example", "*.shop.example"],
                "path": "/x",
                "backend": "b",
                "backends": {
                    "a": {"servers": ["http://10.0.0.1:80", "http://10.0.0.2:80"]},
                    "b": {"servers": ["unix:/run/b.sock"]},
                },
            },
        },
    ),
    (
        "site add shop --host shop.example --backend a=http://10.0.0.1:80?x=1",
        "site.add",
        {
            "name": "shop",
            "definition": {
                "hosts": ["shop.example"],
                "backend": "a",
                "backends": {"a": {"servers": ["http://10.0.0.1:80?x=1"]}},
            },
        },
    ),
    ("site remove shop", "site.remove", {"name": "shop"}),
    (
        "backend add blog c http://10.0.0.4:80 http://10.0.0.5:80",
        "backend.add",
        {
            "site": "blog",
            "name": "c",
            "definition": {"servers": ["http://10.0.0.4:80", "http://10.0.0.5:80"]},
        },
    ),
    ("backend remove blog c", "backend.remove", {"site": "blog", "name": "c"}),
    ("migrations blog --limit 3", "migrations", {"site": "blog", "limit": 3}),
]


@pytest.mark.parametrize(("words", "method", "params"), SENT)
@twisted_test
async def test_a_command_line_becomes_a_request(
    theatre: Theatre, words: str, method: str, params: dict[str, Any]
) -> None:
    ended = await ask(theatre, *words.split())
    assert (ended.returncode, ended.stderr) == (0, "")
    assert theatre.stage.asked == [(method, params)]


FILES = {
    "alone": 'hosts = ["a.example"]\nbackend = "x"\n[backends.x]\nservers = ["http://h:1"]\n',
    "as in the configuration": '[sites.shop]\nhosts = ["a.example"]\nbackend = "x"\n'
    '[sites.shop.backends.x]\nservers = ["http://h:1"]\n[sites.other]\nhosts = ["o"]\n',
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
@twisted_test
async def test_a_site_is_added_from_a_file_with_options_over_it(
    theatre: Theatre, tmp_path: Path, text: str
) -> None:
    (tmp_path / "shop.toml").write_text(text)
    words = ("site", "add", "shop", "--from", str(tmp_path / "shop.toml"))
    assert (await ask(theatre, *words)).returncode == 0
    assert (await ask(theatre, *words, "--backend", "y=http://h:2", "--host", "b")).returncode == 0
    plain = {"hosts": ["a.example"], "backend": "x", "backends": {"x": {"servers": ["http://h:1"]}}}
    backends = {"x": {"servers": ["http://h:1"]}, "y": {"servers": ["http://h:2"]}}
    assert [params["definition"] for _, params in theatre.stage.asked] == [
        plain,
        {"hosts": ["b"], "backend": "x", "backends": backends},
    ]


BAD_FILES = {
    "hosts = [": "is not TOML: Invalid value",
    "[sites.other]": "has no table [sites.shop]; add it, or name another site",
    "sites = 3": "has no table [sites.shop]; add it, or name another site",
    "a = 2020-01-01": "has a date, a time or a number such as nan; no key of a site takes one",
    "a = nan": "has a date, a time or a number such as nan; no key of a site takes one",
    "backends = 1": "backends: is no table; write [backends.NAME]",
    "a = '\\u0000\udcff'": "is not TOML: 'utf-8' codec can't decode",
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.items())
def test_a_file_that_is_no_definition_is_told_why(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(text, errors="surrogateescape")
    assert main(["site", "add", "shop", "--from", str(path)]) == 2
    assert f"awesomeproxy: site add shop: {path}: {message}" in capsys.readouterr().err


# What went wrong

WRONG: list[tuple[str, str]] = [
    ("", "awesomeproxy: the following arguments are required: COMMAND\nusage: awesomeproxy"),
    ("pasue blog", "awesomeproxy: argument COMMAND: invalid choice: 'pasue' (choose from"),
    ("pause", "awesomeproxy: pause: the following arguments are required: SITE\nusage:"),
    ("pause a b", "awesomeproxy: unrecognized arguments: b"),
    ("pause a --forc", "awesomeproxy: unrecognized arguments: --forc"),
    ("pause a --timeout", "awesomeproxy: pause: argument --timeout: expected one argument"),
    ("pause a --timeout soon", '--timeout: "soon" is not a duration; write a number of seconds'),
    ("pause a --timeout=-3", "argument --timeout: -3.0 is out of range; write more than 0"),
    ("pause a --timeout 0s", 'argument --timeout: "0s" is out of range; write more than 0'),
    ("pause a --timeout nan", "argument --timeout: nan is out of range; write more than 0"),
    ("pause a --for 5w", 'argument --for: "5w" is not a duration'),
    ("pause a --then stop", "pause: argument --then: invalid choice: 'stop'"),
    ("resume", "awesomeproxy: resume: the following arguments are required: SITE"),
    ("resume a --force", "awesomeproxy: unrecognized arguments: --force"),
    ("migrate a", "awesomeproxy: migrate: the following arguments are required: --to"),
    ("migrate --to b", "awesomeproxy: migrate: the following arguments are required: SITE"),
    ("migrate a --to b --with x=1 x=2", "--with: x is named twice; say once where it goes"),
    ("migrate a --to b --with x=1 --with x=1", "--with: x is named twice"),
    ("migrate a --to b --max-pause x", 'argument --max-pause: "x" is not a duration'),
    ("site", "awesomeproxy: site: the following arguments are required: COMMAND"),
    ("site add", "awesomeproxy: site add: the following arguments are required: NAME"),
    ("site add a", "site add a: a site needs --host and --backend, or --from FILE.toml"),
    ("site add a --host h", "site add a: a site needs --host and --backend, or --from"),
    ("site add a --backend b=http://c", "site add a: a site needs --host and --backend, or"),
    ("site add a --backend b", "argument --backend: 'b' is no backend; write it as NAME=URL"),
    ("site add a --backend =b", "argument --backend: '=b' is no backend; write it as NAME=URL"),
    ("site add a --backend b=,", "argument --backend: 'b=,' is no backend; write it as NAME=URL"),
    ("site add a --from /no", "site add a: /no: cannot be read: No such file or directory; name"),
    ("site explode a", "awesomeproxy: site: argument COMMAND: invalid choice: 'explode'"),
    ("site show", "awesomeproxy: site show: the following arguments are required: SITE"),
    ("backend add a b", "awesomeproxy: backend add: the following arguments are required: URL"),
    ("backend remove a", "backend remove: the following arguments are required: NAME"),
    ("migrations --limit 0", "migrations: argument --limit: '0' is no count; write a number from"),
    ("migrations --limit x", "migrations: argument --limit: 'x' is no count; write a number from"),
    ("status a b", "awesomeproxy: unrecognized arguments: b"),
    ("reload now", "awesomeproxy: unrecognized arguments: now"),
    ("check", "awesomeproxy: check: the following arguments are required: FILE"),
    ("--control", "awesomeproxy: argument --control: expected one argument"),
    ("load", "awesomeproxy: load: the following arguments are required: URL"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_bad_command_line_is_told_what_is_wrong(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("awesomeproxy: ")
    assert message in err


@pytest.mark.parametrize("words", [words for words, _ in WRONG])
def test_a_bad_command_line_is_told_in_json_to_a_script(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["error"]["code"] == -32602


FAILED: list[tuple[str, int, str]] = [
    (
        "pause nowhere",
        2,
        "awesomeproxy: pause nowhere: there is no site 'nowhere'; there is: blog\n",
    ),
    (
        "pause lost",
        1,
        "awesomeproxy: pause lost: another command came first; try again if it is still wanted "
        "(generation 9 by resume came first: it is open on new); nothing has changed\n",
    ),
    (
        "resume unspeakable",
        1,
        "awesomeproxy: resume unspeakable: it said \\x1b[31mred\\nand more; nothing has changed\n",
    ),
    ("status nowhere", 2, "awesomeproxy: status nowhere: there is no site 'nowhere'"),
    ("migrate nowhere --to x", 2, "awesomeproxy: migrate nowhere: there is no site 'nowhere'"),
    ("watch nowhere", 2, "awesomeproxy: watch nowhere: there is no site 'nowhere'"),
    ("migrations nowhere", 2, "awesomeproxy: migrations nowhere: there is no site 'nowhere'"),
    ("backend remove nowhere x", 2, "awesomeproxy: backend remove nowhere: there is no site"),
]


@pytest.mark.parametrize(("words", "status", "message"), FAILED)
@twisted_test
async def test_an_error_of_the_daemon_goes_to_standard_error(
    theatre: Theatre, words: str, status: int, message: str
) -> None:
    ended = await ask(theatre, *words.split())
    assert (ended.returncode, ended.stdout) == (status, "")
    assert ended.stderr.startswith(message)


@twisted_test
async def test_a_bug_in_the_daemon_is_a_failure_that_points_to_its_log(
    theatre: Theatre, logged_failures: Any
) -> None:
    ended = await ask(theatre, "pause", "broken")
    assert ended.returncode == 1
    assert "pause failed inside the daemon: RuntimeError('a bug'); look at its log" in ended.stderr
    assert "nothing has changed" not in ended.stderr
    assert len(logged_failures.flush(RuntimeError)) == 1


def test_without_a_daemon_the_status_is_3(tmp_path: Path) -> None:
    ended = run("status", AWESOMEPROXY_CONTROL=str(tmp_path / "none"))
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.startswith("awesomeproxy: status: no daemon: there is no socket")


@pytest.mark.parametrize("words", ["pause blog", "watch", "reload", "site show a"])
def test_without_a_daemon_a_script_gets_an_error(
    tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", "--control", str(tmp_path / "none"), *words.split()]) == 3
    assert "no daemon" in json.loads(capsys.readouterr().out)["error"]["message"]


# Exit statuses of what was done

OUTCOMES = [
    ("migrate blog --to new", 0, "blog: old -> new done at generation 8", ""),
    ("migrate undone --to new", 1, "rolled back at generation 8: new is down", ""),
    (
        "migrate unsure --to new",
        4,
        "2 ambiguous",
        "awesomeproxy: migrate unsure: 2 requests are ambiguous: they may have been carried out",
    ),
    ("migrate blog --to new --dry-run", 0, "nothing was done: this was a dry run", ""),
    ("migrate blog --to bad --dry-run", 1, "problem: backend 'bad' has no server that is up", ""),
]


@pytest.mark.parametrize(("words", "status", "out", "err"), OUTCOMES)
@twisted_test
async def test_the_exit_status_says_what_became_of_a_migration(
    theatre: Theatre, words: str, status: int, out: str, err: str
) -> None:
    ended = await ask(theatre, *words.split())
    assert ended.returncode == status
    assert out in ended.stdout
    assert ended.stderr.startswith(err)
    for_scripts = await ask(theatre, "--json", *words.split())
    assert for_scripts.returncode == status
    assert for_scripts.stderr == ""
    assert json.loads(for_scripts.stdout)["site"] == words.split()[1]


@twisted_test
async def test_an_answer_of_another_version_is_shown_as_it_came(theatre: Theatre) -> None:
    ended = await ask(theatre, "resume", "modern")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == {"site": "modern", "places": ["a", "b"]}


# Options that go anywhere


@pytest.mark.parametrize("words", ["--json pause blog", "pause --json blog", "pause blog --json"])
@twisted_test
async def test_json_is_the_result_as_it_came_wherever_it_is_asked_for(
    theatre: Theatre, words: str
) -> None:
    ended = await ask(theatre, *words.split())
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == RECEIPT


@pytest.mark.parametrize("words", ["pause lost --json", "--json pause lost"])
@twisted_test
async def test_json_errors_are_the_daemons_error_as_it_came(theatre: Theatre, words: str) -> None:
    ended = await ask(theatre, *words.split())
    assert (ended.returncode, ended.stderr) == (1, "")
    error = json.loads(ended.stdout)["error"]
    assert error["code"] == 1
    assert error["data"]["winner"]["by"] == "resume"


@pytest.mark.parametrize("after", [False, True])
@twisted_test
async def test_the_socket_is_named_before_or_after_the_command(
    theatre: Theatre, after: bool
) -> None:
    control = ("--control", theatre.path)
    words = ("resume", "blog", *control) if after else (*control, "resume", "blog")
    ended = await deferToThread(run, *words, AWESOMEPROXY_CONTROL="/nonexistent/socket")
    assert ended.returncode == 0
    assert ended.stdout == "blog: open on old at generation 8; 3 requests released\n"


# Progress and colours


def run_on_terminal(words: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a command with a terminal for all of its output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=PLAIN | environment
    )
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 65536):
            seen += data
    except OSError:  # EIO: the other end is closed
        pass
    finally:
        os.close(ours)
    return process.wait(60), seen.decode().replace("\r\n", "\n")


@twisted_test
async def test_progress_is_shown_on_a_terminal_as_it_comes(theatre: Theatre) -> None:
    environment = {"AWESOMEPROXY_CONTROL": theatre.path, "NO_COLOR": "1"}
    status, seen = await deferToThread(run_on_terminal, ["pause", "blog"], environment)
    assert status == 0
    assert seen.splitlines()[:3] == [
        "  hold       generation 7",
        "  drain      0 in flight",
        "blog: holding on old at generation 7; drained in 250 ms",
    ]


@twisted_test
async def test_progress_is_not_shown_to_scripts(theatre: Theatre) -> None:
    environment = {"AWESOMEPROXY_CONTROL": theatre.path}
    _, seen = await deferToThread(run_on_terminal, ["pause", "blog", "--json"], environment)
    assert json.loads(seen) == RECEIPT
    assert (await ask(theatre, "pause", "blog")).stderr == ""


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
@twisted_test
async def test_there_are_colours_on_a_terminal_that_wants_them(
    theatre: Theatre, environment: dict[str, str], coloured: bool
) -> None:
    environment = {"AWESOMEPROXY_CONTROL": theatre.path, **environment}
    _, seen = await deferToThread(run_on_terminal, ["status"], environment)
    assert ("\033[" in seen) == coloured
    assert "\033[" not in (await ask(theatre, "status")).stdout


# Watch


async def watching(theatre: Theatre, *words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*COMMAND, "watch", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=PLAIN | {"AWESOMEPROXY_CONTROL": theatre.path},
    )
    await theatre.stage.started
    return process


@twisted_test
async def test_watch_prints_one_json_event_a_line_as_they_come(theatre: Theatre) -> None:
    theatre.stage.events = [{"site": "blog", "event": "held"}, {"site": "blog", "held": 3}]
    process = await watching(theatre, "--json")
    assert process.stdout is not None
    lines = [await deferToThread(process.stdout.readline) for _ in range(2)]
    assert [json.loads(line) for line in lines] == theatre.stage.events
    assert process.poll() is None
    theatre.stage.go.callback(None)
    assert await deferToThread(process.communicate, None, 60) == ("", "")
    assert process.returncode == 0


@twisted_test
async def test_watch_prints_a_line_an_event_for_people(theatre: Theatre) -> None:
    theatre.stage.events = [
        {"time": 0.0, "site": "blog", "event": "hold", "generation": 7, "by": "pause"},
        {"time": 0.0, "message": "reloaded"},
    ]
    theatre.stage.go.callback(None)
    ended = await ask(theatre, "watch", TZ="UTC")
    assert ended.stdout.splitlines() == [
        "00:00:00 blog hold generation=7 by=pause",
        "00:00:00 - reloaded",
    ]


@twisted_test
async def test_an_interrupted_watch_ends_in_the_daemon_too(theatre: Theatre) -> None:
    process = await watching(theatre)
    process.send_signal(signal.SIGINT)
    assert await theatre.stage.ended == "cancelled"
    assert await deferToThread(process.communicate, None, 60) == ("", "")
    assert process.returncode == 130


@twisted_test
async def test_an_interrupted_pause_goes_on_in_the_daemon_and_says_so(theatre: Theatre) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--control", theatre.path, "pause", "slow"],
        stderr=subprocess.PIPE,
        text=True,
    )
    await theatre.stage.started
    process.send_signal(signal.SIGINT)
    _, err = await deferToThread(process.communicate, None, 60)
    assert "awesomeproxy: pause slow: interrupted here, but it goes on in the daemon" in err
    assert process.returncode == 130
    assert not theatre.stage.ended.called
    theatre.stage.go.callback(None)
    assert await theatre.stage.ended == "done"


@twisted_test
async def test_a_watch_whose_reader_leaves_ends_quietly(theatre: Theatre) -> None:
    theatre.stage.events = [{"text": "x" * 1000}] * 500
    process = await watching(theatre)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = await deferToThread(process.communicate, None, 60)
    assert (process.returncode, err) == (0, "")


@twisted_test
async def test_a_watch_without_its_daemon_is_told_so(tmp_path: Path) -> None:
    served = await serve(str(tmp_path / "s"))
    process = await watching(served)
    await served.close()
    _, err = await deferToThread(process.communicate, None, 60)
    assert process.returncode == 3
    assert "closed the connection before it answered" in err


# Commands that need no daemon


def test_version_is_told_without_a_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"awesomeproxy {__version__}\n"
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": __version__}


CONFIGURATION = """
[[listen]]
endpoint = "tcp:8080"

[sites.blog]
hosts = ["blog.example"]
backend = "old"
[sites.blog.backends.old]
servers = ["http://127.0.0.1:1"]
"""


def test_a_fine_file_is_called_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.toml"
    path.write_text(CONFIGURATION)
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: fine: 1 site, 1 listener\n"
    assert main(["check", str(path), "--json"]) == 0
    counts = {"sites": 1, "databases": 0, "filesystems": 0, "listeners": 1}
    answer = {"file": str(path), "problems": [], "warnings": []} | counts
    assert json.loads(capsys.readouterr().out) == answer


def test_a_bad_file_is_told_all_its_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.toml"
    path.write_text(CONFIGURATION.replace('"old"', '"older"').replace("hosts", "hots"))
    assert main(["check", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) >= 2
    assert all(line.startswith(f"{path}: sites.blog.") for line in err.splitlines())
    assert main(["check", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == err.splitlines()


@pytest.mark.parametrize(
    "words", ["", "status", "pause", "migrate", "watch", "site", "site add", "backend", "load"]
)
def test_help_is_no_error(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: awesomeproxy {words}".rstrip())


# The budget


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys; from awesomeproxy.control.cli import main; main(['status'])\n"
        "heavy = {'twisted', 'zope', 'rich', 'tomllib', 'asyncio', 'inspect', 'logging', 'ssl'}\n"
        "heavy |= {'awesomeproxy.model', 'awesomeproxy.config', 'awesomeproxy.control.table'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout == "['inspect']\n"  # by dataclasses


@twisted_test
async def test_history_and_definitions_are_shown(theatre: Theatre) -> None:
    history = (await ask(theatre, "migrations", TZ="UTC")).stdout.splitlines()
    assert history[0].split()[:6] == ["BEGAN", "SITE", "FROM", "TO", "WITH", "STATE"]
    assert history[1].split()[:7] == [
        *("2023-11-14", "22:13:20", "blog", "old", "new", "database:shop", "done"),
    ]
    shown = (await ask(theatre, "site", "show", "blog")).stdout
    assert shown.splitlines()[0] == "# from: file"
    assert "[backends.old]" in shown
    assert (await ask(theatre, "reload")).stdout == "added shop; removed old\n"
    assert LEDGER["site"] in (await ask(theatre, "site", "remove", "blog")).stdout
