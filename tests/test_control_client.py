"""The blocking client, against a real server and against things that are none."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from control_stage import Theatre, serve, twisted_fixture, twisted_test
from twisted.internet.threads import deferToThread

from awesomeproxy.control.client import Client, Unreachable
from awesomeproxy.control.connection import Limits
from awesomeproxy.control.protocol import RpcError


@twisted_fixture
async def theatre(tmp_path: Path) -> AsyncIterator[Theatre]:
    served = await serve(str(tmp_path / "control.sock"))
    yield served
    await served.close()


@contextmanager
def listener(path: str, script: Callable[[socket.socket], object]) -> Iterator[None]:
    """Something at ``path`` that does as ``script`` says with its one connection."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def serve_one() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                script(connection)

        thread = threading.Thread(target=serve_one)
        thread.start()
        yield
        thread.join()


def call(path: str, method: str, *, timeout: float | None = None, **params: Any) -> Any:
    with Client(path, timeout) as client:
        return client.call(method, params)


@twisted_test
async def test_a_call_returns_the_result(theatre: Theatre) -> None:
    assert (await deferToThread(call, theatre.path, "resume", site="blog"))["released"] == 3


@twisted_test
async def test_words_in_between_are_passed_on(theatre: Theatre) -> None:
    heard: list[tuple[str, Any]] = []

    def pause() -> Any:
        with Client(theatre.path) as client:
            return client.call("pause", {"site": "blog"}, lambda *word: heard.append(word))

    assert (await deferToThread(pause))["site"] == "blog"
    assert [(method, params["step"]) for method, params in heard] == [
        ("progress", "hold"),
        ("progress", "drain"),
    ]


@twisted_test
async def test_one_client_makes_many_calls(theatre: Theatre) -> None:
    def calls() -> list[int]:
        with Client(theatre.path) as client:
            return [client.call("resume", {"site": "blog"})["generation"] for _ in range(50)]

    assert await deferToThread(calls) == [8] * 50


@twisted_test
async def test_an_answer_longer_than_a_request_may_be_is_taken(theatre: Theatre) -> None:
    result = await deferToThread(call, theatre.path, "flood", bytes=3_000_000)
    assert len(result["text"]) == 3_000_000


@twisted_test
async def test_an_error_is_raised_with_its_code_and_data(theatre: Theatre) -> None:
    with pytest.raises(RpcError, match="another command came first") as caught:
        await deferToThread(call, theatre.path, "resume", site="lost")
    assert caught.value.code == 1
    assert caught.value.data is not None
    assert caught.value.data["winner"]["generation"] == 9


@twisted_test
async def test_a_refused_connection_says_why(tmp_path: Path) -> None:
    served = await serve(str(tmp_path / "s"), Limits(connections=0))
    with pytest.raises(RpcError, match="has 0 connections, as many as it takes"):
        await deferToThread(call, served.path, "status")
    await served.close()


@twisted_test
async def test_a_request_that_is_too_long_is_told_so(theatre: Theatre) -> None:
    with pytest.raises(RpcError, match="a line is longer than 8388608 bytes; send less at once"):
        await deferToThread(call, theatre.path, "resume", site="x" * 9_000_000)


@twisted_test
async def test_a_failing_callback_is_the_callers(theatre: Theatre) -> None:
    def failing(method: str, params: Any) -> None:
        raise BrokenPipeError("of the caller's own")

    def pause() -> None:
        with Client(theatre.path) as client:
            client.call("pause", {"site": "blog"}, failing)

    with pytest.raises(BrokenPipeError, match="of the caller's own"):
        await deferToThread(pause)


def test_where_there_is_no_socket_there_is_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"no daemon: there is no socket .*; start it with"):
        call(str(tmp_path / "s"), "status")


def test_behind_a_dead_socket_there_is_no_daemon(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with pytest.raises(Unreachable, match=r"no daemon: nothing listens at .* any more; start it"):
        call(str(tmp_path / "s"), "status")


def test_a_file_that_is_no_socket_is_no_daemon(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    with pytest.raises(Unreachable, match="no daemon: nothing listens at"):
        call(str(tmp_path / "s"), "status")


def test_a_path_that_is_too_long_is_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"cannot connect to .*: AF_UNIX path too long"):
        call(str(tmp_path / ("s" * 150)), "status")


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n", b"[]\n", b"\xff\n"])
def test_what_speaks_another_protocol_is_told_apart(tmp_path: Path, garbage: bytes) -> None:
    with (
        listener(str(tmp_path / "s"), lambda connection: connection.sendall(garbage)),
        pytest.raises(Unreachable, match="does not speak the control protocol"),
    ):
        call(str(tmp_path / "s"), "status")


@pytest.mark.parametrize("said", [b"", b'{"jsonrpc":"2.0","id":1,"resu'])
def test_an_answer_that_does_not_come_may_be_of_a_command_begun(
    tmp_path: Path, said: bytes
) -> None:
    with (
        listener(str(tmp_path / "s"), lambda connection: connection.sendall(said)),
        pytest.raises(Unreachable, match="before it answered; pause may have been begun: see"),
    ):
        call(str(tmp_path / "s"), "pause", site="blog")


def test_a_silent_daemon_is_waited_for_so_long_and_no_longer(tmp_path: Path) -> None:
    # It is silent until the client has left.
    with (
        listener(str(tmp_path / "s"), lambda connection: connection.recv(1)),
        pytest.raises(Unreachable, match=r"has not answered for 0\.01 s; look at its log"),
    ):
        call(str(tmp_path / "s"), "status", timeout=0.01)


def test_answers_to_others_are_passed_over(tmp_path: Path) -> None:
    said = b'{"jsonrpc":"2.0","id":9,"result":1}\n{"jsonrpc":"2.0","id":1,"result":2}\n'
    with listener(str(tmp_path / "s"), lambda connection: connection.sendall(said)):
        assert call(str(tmp_path / "s"), "status") == 2
