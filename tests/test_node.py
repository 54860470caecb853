"""The daemon as a process: how it starts, fails to, and stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from daemon_stage import (
    HOST,
    TWIST,
    TWISTD,
    Daemon,
    Stage,
    a_stage,
    site,
    twisted_fixture,
    twisted_test,
    until,
)
from twisted.internet.threads import deferToThread

stage = twisted_fixture(a_stage)


async def _fails(daemon: Daemon, *texts: str) -> None:
    """A start fails with status 1, and one line says why."""
    daemon.spawn()
    assert await daemon.exits() == 1, daemon.log
    lines = [line for line in daemon.log.splitlines() if "cannot start" in line]
    assert len(lines) == 1, daemon.log
    for text in texts:
        assert text in daemon.log
    assert "Traceback" not in daemon.log
    assert "Unhandled" not in daemon.log


# How it fails to start


@twisted_test
async def test_a_configuration_with_mistakes_is_told_with_all_of_them(stage: Stage) -> None:
    """Before anything is begun."""
    daemon = stage.daemon()
    daemon.configure('[sites.blog]\nhosts = ["blog.test"]\nbackend = "a"\nfoo = 1')
    await _fails(daemon, "awesomeproxy.toml: sites.blog.foo", "sites.blog.backends")
    assert not (daemon.directory / "state").exists()


@twisted_test
async def test_a_configuration_file_that_is_missing_is_named(stage: Stage) -> None:
    """With what to do about it."""
    daemon = stage.daemon()
    await _fails(daemon, f"{daemon.config}: cannot be read: No such file", "name a file")


@twisted_test
async def test_a_port_that_is_in_use_is_named(stage: Stage) -> None:
    """And the control socket is not left behind."""
    daemon = stage.daemon()
    daemon.configure()
    with socket.create_server((HOST, daemon.port)):
        await _fails(daemon, f"{HOST}:{daemon.port}", "in use")
    assert not os.path.exists(daemon.control)
    await daemon.start()


@twisted_test
async def test_a_second_daemon_on_the_same_state_is_refused(stage: Stage) -> None:
    """It names the process that has the directory; the first one does not notice."""
    first = await stage.serving()
    second = stage.daemon()
    second.configure()
    second.config.write_text(second.text.replace(str(second.directory), str(first.directory)))
    await _fails(second, f"process {first.pid} is using this state directory")
    assert (await first.ask("status"))["node"]["pid"] == first.pid


@twisted_test
async def test_a_second_daemon_on_the_same_control_socket_is_refused(stage: Stage) -> None:
    """The first one goes on listening there."""
    first = await stage.serving()
    second = stage.daemon()
    second.configure()
    second.config.write_text(second.text.replace(second.control, first.control))
    await _fails(second, f"control socket {first.control}: another daemon is listening there")
    assert (await first.ask("status"))["node"]["pid"] == first.pid


@twisted_test
async def test_a_state_directory_that_cannot_be_one_is_named(stage: Stage) -> None:
    """Here because there is a file of that name."""
    daemon = stage.daemon()
    daemon.configure()
    (daemon.directory / "state").write_text("")
    await _fails(daemon, "the state directory cannot be written: File exists")


@twisted_test
async def test_a_state_file_that_is_corrupt_is_left_as_it_is(stage: Stage) -> None:
    """The message says what to do, and doing that helps."""
    daemon = await stage.serving()
    await daemon.kill()
    registry = daemon.directory / "state" / "registry.sqlite"
    registry.write_bytes(registry.read_bytes()[:-100])
    broken = registry.read_bytes()
    await _fails(daemon, "move registry.sqlite and registry.sqlite-wal aside")
    assert registry.read_bytes() == broken
    for name in ("registry.sqlite", "registry.sqlite-wal", "registry.sqlite-shm"):
        path = registry.with_name(name)
        if path.exists():
            path.rename(path.with_suffix(".aside"))
    await daemon.start()


@twisted_test
async def test_an_access_log_that_cannot_be_written_is_named(stage: Stage) -> None:
    """As any file that is needed and cannot be had."""
    daemon = stage.daemon()
    daemon.configure(node='access_log = "/nowhere/access.log"')
    await _fails(daemon, "/nowhere/access.log")


# How it starts


@twisted_test
async def test_the_daemon_starts_where_a_killed_one_left_its_socket(stage: Stage) -> None:
    """The name of a dead socket is in nobody's way."""
    daemon = await stage.serving()
    await daemon.kill()
    assert os.path.exists(daemon.control)
    await daemon.start()
    assert (await daemon.ask("status"))["node"]["pid"] == daemon.pid


@twisted_test
async def test_twist_runs_it_as_well(stage: Stage) -> None:
    """The newer runner, with the same service; it stops as cleanly."""
    daemon, one = stage.daemon(), stage.origin("one")
    daemon.configure(site("blog", one))
    daemon.spawn(TWIST)
    await daemon.serves()
    assert (await daemon.get("/")).text == "one /"
    daemon.signal(signal.SIGTERM)
    assert await daemon.exits() == 0


@twisted_test
async def test_twistd_puts_it_into_the_background(stage: Stage) -> None:
    """With a pidfile, that is removed at the end; a mistake in the file is said in front."""
    daemon, one = stage.daemon(), stage.origin("one")
    daemon.configure(site("blog", one))
    pidfile, log = daemon.directory / "pid", daemon.directory / "log"
    words = [sys.executable, "-c", TWISTD, f"--pidfile={pidfile}", f"--logfile={log}"]
    words += ["awesomeproxy", f"--config={daemon.config}"]

    def run() -> subprocess.CompletedProcess[str]:
        # A daemon keeps what it inherits: no pipe, or nobody would see the end of it.
        with open(daemon.directory / "log.0", "w") as said:
            return subprocess.run(words, cwd=daemon.directory, stdout=said, stderr=said, text=True)

    assert (await deferToThread(run)).returncode == 0
    pid = int(await until(lambda: pidfile.exists() and pidfile.read_text()))
    try:
        await until(lambda: log.exists() and " serves " in log.read_text())
        assert (await daemon.ask("status"))["node"]["pid"] == pid
        assert (await daemon.get("/")).text == "one /"
    finally:
        os.kill(pid, signal.SIGTERM)
    await until(lambda: not pidfile.exists())
    daemon.config.write_text("[node")
    assert (await deferToThread(run)).returncode == 1
    assert "cannot start" in daemon.log


@twisted_test
async def test_a_crowd_of_clients_is_let_in(stage: Stage) -> None:
    """More than Twisted's backlog of 50 can come while the daemon does something else."""
    daemon = await stage.serving()
    daemon.signal(signal.SIGSTOP)
    clients: list[socket.socket] = []
    try:
        clients.extend(
            socket.create_connection((HOST, daemon.port), timeout=0.5) for _ in range(300)
        )
    finally:
        daemon.signal(signal.SIGCONT)
        for client in clients:
            client.close()


@twisted_test
async def test_a_unix_listener_of_a_killed_daemon_is_in_nobodys_way(stage: Stage) -> None:
    """The next one takes its place."""
    daemon, one = stage.daemon(), stage.origin("one")
    path = daemon.directory / "http.sock"
    daemon.configure(f'[[listen]]\nendpoint = "unix:{path}"', site("blog", one))
    await daemon.start()
    await daemon.kill()
    await daemon.start()

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.1\r\nHost: blog.test\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: client.recv(4096), b""))

    assert (await deferToThread(ask)).endswith(b"one /")


# How it stops


@twisted_test
async def test_sigterm_lets_finish_what_is_in_flight(stage: Stage) -> None:
    """It takes no more, answers what is held with 503, waits for the rest, and exits with 0."""
    one, two = stage.two()
    daemon = await stage.serving(site("blog", one), site("shop", two))
    idle = await daemon.connect()
    idle.ask("/")
    await idle.gets(b"one /")
    slow = daemon.fetch("/later")
    await one.has("/later")
    await daemon.ask("pause", site="shop")
    held = daemon.fetch("/held", host="shop.test")
    await daemon.until_site("shop", held=1)
    daemon.signal(signal.SIGTERM)
    answer = await held
    assert (answer.status, "retry-after" in answer.headers) == (503, True)
    await until(lambda: idle.closed)
    with pytest.raises(Exception, match="refused"):
        await daemon.connect()
    assert daemon.running
    one.let_go()
    assert (await slow).text == "one /later"
    assert await daemon.exits() == 0
    assert "Traceback" not in daemon.log
    assert not os.path.exists(daemon.control)


@twisted_test
async def test_sigterm_waits_no_longer_than_it_may(stage: Stage) -> None:
    """What is still in flight after drain_time is cut, and looks cut."""
    daemon, _, _ = await stage.blog(node='drain_time = "300ms"')
    stream = await daemon.connect()
    stream.ask("/events")
    await stream.gets(b"data: 1")
    daemon.signal(signal.SIGINT)
    assert await daemon.exits() == 0
    await until(lambda: stream.closed)
    assert not stream.data.endswith(b"0\r\n\r\n")


@twisted_test
async def test_a_second_sigterm_ends_at_once(stage: Stage) -> None:
    """Whatever is still going on."""
    daemon, one, _ = await stage.blog()
    slow = daemon.fetch("/later")
    await one.has("/later")
    daemon.signal(signal.SIGTERM)
    await until(lambda: f"(TCP Port {daemon.port} Closed)" in daemon.log)
    assert daemon.running
    daemon.signal(signal.SIGTERM)
    assert await daemon.exits() == 128 + signal.SIGTERM
    await slow


@twisted_test
async def test_a_stopping_daemon_does_not_reload(stage: Stage) -> None:
    """Or it would listen again."""
    daemon, one, _ = await stage.blog()
    slow = daemon.fetch("/later")
    await one.has("/later")
    daemon.signal(signal.SIGTERM)
    await until(lambda: f"(TCP Port {daemon.port} Closed)" in daemon.log)
    daemon.signal(signal.SIGHUP)
    await until(lambda: "not reloaded" in daemon.log)
    with pytest.raises(Exception, match="refused"):
        await daemon.connect()
    one.let_go()
    await slow
    assert await daemon.exits() == 0


@twisted_test
async def test_a_stopping_daemon_undoes_what_has_not_come_to_its_end(stage: Stage) -> None:
    """A pause that drains and a migration are called off; the next daemon serves both sites."""
    one, two = stage.two()
    daemon = await stage.serving(site("blog", one, two), site("shop", one, two))
    slow = [daemon.fetch("/later", host=f"{name}.test") for name in ("blog", "shop")]
    await one.has("/later", 2)
    pause = daemon.command("pause", "blog")
    moving = daemon.command("migrate", "shop", "--to", "two")
    await daemon.until_site("blog", state="draining")
    await daemon.until_site("shop", migration={"target": "two", "step": "drain"})
    held = [daemon.fetch("/held", host=f"{name}.test") for name in ("blog", "shop")]
    for name in ("blog", "shop"):
        await daemon.until_site(name, held=1)
    daemon.signal(signal.SIGTERM)
    paused, moved = await pause, await moving
    assert (paused.status, moved.status) == (1, 1)
    assert "the daemon is stopping; the pause was undone" in paused.err
    assert "rolled back in the step 'drain': the daemon is stopping" in moved.err
    assert [(await answer).text for answer in held] == ["one /held", "one /held"]
    one.let_go()
    assert [(await answer).status for answer in slow] == [200, 200]
    assert await daemon.exits() == 0
    await daemon.start()
    for name in ("blog", "shop"):
        assert (await daemon.site(name))["state"] == "open"
    (entry,) = (await daemon.ask("migrations"))["migrations"]
    assert entry["state"] == "rolled back"


@twisted_test
async def test_a_client_that_stays_idle_does_not_delay_the_end(stage: Stage) -> None:
    """Nor one whose long answer had begun before the signal."""
    daemon, one, _ = await stage.blog()
    begun, silent = await daemon.connect(), await daemon.connect()
    begun.ask("/begun")
    await begun.gets(b"abc")
    daemon.signal(signal.SIGTERM)
    await until(lambda: silent.closed)
    one.let_go()
    await until(lambda: begun.closed)
    assert begun.data.endswith(b"0\r\n\r\n")
    assert await daemon.exits() == 0


@twisted_test
async def test_open_files_bound_the_connections(stage: Stage) -> None:
    """A limit that leaves no room for max_connections lowers it, and the log says so."""
    daemon = stage.daemon()
    daemon.configure()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 1064)); "
    daemon.spawn(limit + TWISTD, "-n", "--pidfile=")
    await daemon.serves()
    assert "limit of open files (1064) leaves room for 800" in daemon.log
    assert (await daemon.ask("status"))["node"]["max_connections"] == 800


@twisted_test
async def test_operators_are_answered_when_traffic_has_used_up_the_open_files(
    stage: Stage,
) -> None:
    """So many files are kept back from traffic."""
    daemon, one = stage.daemon(), stage.origin("one")
    daemon.configure(site("blog", one))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); "
    daemon.spawn(limit + TWISTD, "-n", "--pidfile=")
    await daemon.serves()
    for _ in range(60):
        (await daemon.connect()).send(b"GET /later HTTP/1.1\r\nHost: blog.test\r\n\r\n")
    await daemon.until_site(state="unreachable")
    receipt = await daemon.ask("pause", site="blog", timeout=0.1, force=True)
    assert receipt["generation"] == 2
