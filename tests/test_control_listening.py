"""Where the control socket may be put, and what is there already."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from control_stage import connect, serve, twisted_test

from awesomeproxy.control.listening import ControlSocketError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@twisted_test
async def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    with umask(0):
        served = await serve(str(tmp_path / "s"))
    assert mode(tmp_path / "s") == 0o600
    assert mode(tmp_path / "s.lock") == 0o600
    await served.close()


@twisted_test
async def test_missing_directories_are_made(tmp_path: Path) -> None:
    with umask(0o022):
        served = await serve(str(tmp_path / "run" / "awesomeproxy" / "s"))
    assert mode(tmp_path / "run" / "awesomeproxy") == 0o755
    await served.close()


@twisted_test
async def test_a_dead_daemons_socket_is_replaced(tmp_path: Path) -> None:
    stale(tmp_path / "s")
    served = await serve(str(tmp_path / "s"))
    talk = await connect(served.path)
    talk.transport.loseConnection()
    await talk.lost
    await served.close()


@twisted_test
async def test_a_live_daemons_socket_is_left_to_it(tmp_path: Path) -> None:
    served = await serve(str(tmp_path / "s"))
    with pytest.raises(ControlSocketError, match="another daemon is listening there; stop it"):
        await serve(str(tmp_path / "s"))
    talk = await connect(served.path)
    talk.transport.loseConnection()
    await talk.lost
    await served.close()


@twisted_test
async def test_a_daemon_too_busy_to_answer_is_alive(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(tmp_path / "s"))
        busy.listen(0)
        waiting.connect(str(tmp_path / "s"))
        with pytest.raises(ControlSocketError, match="another daemon is listening"):
            await serve(str(tmp_path / "s"))


@twisted_test
async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ControlSocketError, match="which is no socket; move it away"):
        await serve(str(tmp_path / "s"))
    assert (tmp_path / "s").read_text() == "precious"


@twisted_test
async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlSocketError, match=r"control socket .*/file/s: .*; name another"):
        await serve(str(tmp_path / "file" / "s"))


@twisted_test
async def test_a_path_too_long_for_a_socket_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ControlSocketError, match="at most 107 bytes; name a shorter one"):
        await serve(str(tmp_path / ("s" * 150)))


@twisted_test
async def test_a_stopped_daemon_takes_its_socket_away(tmp_path: Path) -> None:
    served = await serve(str(tmp_path / "s"))
    await served.close()
    assert not (tmp_path / "s").exists()


@twisted_test
async def test_a_socket_that_someone_removed_hinders_no_stop(tmp_path: Path) -> None:
    served = await serve(str(tmp_path / "s"))
    (tmp_path / "s").unlink()
    await served.close()


@twisted_test
async def test_the_socket_of_a_successor_is_not_taken_away(tmp_path: Path) -> None:
    first = await serve(str(tmp_path / "s"))
    (tmp_path / "s").unlink()
    second = await serve(str(tmp_path / "s"))
    await first.close()
    talk = await connect(second.path)
    talk.transport.loseConnection()
    await talk.lost
    await second.close()
