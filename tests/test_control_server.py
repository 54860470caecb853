"""The control socket's server, spoken to over a real Unix socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from control_stage import Talk, Theatre, connect, serve, twisted_fixture, twisted_test

from awesomeproxy.control.connection import Limits
from awesomeproxy.control.protocol import LINE_MAX

REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"resume","params":{"site":"blog"}}\n'
RESUMED = {"site": "blog", "backend": "old", "generation": 8, "released": 3}


@twisted_fixture
async def theatre(tmp_path: Path) -> AsyncIterator[Theatre]:
    served = await serve(str(tmp_path / "control.sock"))
    yield served
    await served.close()


@twisted_fixture
async def talk(theatre: Theatre) -> AsyncIterator[Talk]:
    talk = await connect(theatre.path)
    yield talk
    await leave(talk)


async def leave(talk: Talk) -> None:
    talk.transport.loseConnection()
    if not talk.lost.called:
        await talk.lost


def line(id: Any, method: str, **params: Any) -> bytes:
    message = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
    return json.dumps(message).encode() + b"\n"


async def answers(talk: Talk, count: int = 1) -> list[dict[str, Any]]:
    return [json.loads(text) for text in await talk.lines(count)]


@twisted_test
async def test_a_request_is_answered_wherever_it_is_cut(talk: Talk) -> None:
    for cut in range(1, len(REQUEST)):
        talk.transport.write(REQUEST[:cut])
        # An answered request in between makes sure that both parts are read apart.
        other = await connect(talk.transport.getPeer().name.decode())
        other.transport.write(REQUEST)
        await other.lines(1)
        await leave(other)
        talk.transport.write(REQUEST[cut:])
        assert await answers(talk) == [{"jsonrpc": "2.0", "id": 1, "result": RESUMED}]


@twisted_test
async def test_requests_that_come_at_once_are_each_answered_in_turn(talk: Talk) -> None:
    talk.transport.write(b"".join(line(n, "resume", site="blog") for n in range(20)))
    assert [answer["id"] for answer in await answers(talk, 20)] == list(range(20))


@twisted_test
async def test_blank_lines_and_carriage_returns_are_no_matter(talk: Talk) -> None:
    talk.transport.write(b"\n\r\n  \n" + REQUEST.replace(b"\n", b"\r\n"))
    assert (await answers(talk))[0]["result"] == RESUMED


@twisted_test
async def test_progress_comes_before_the_result_under_the_commands_id(talk: Talk) -> None:
    talk.transport.write(line("p", "pause", site="blog"))
    hold, drain, result = await answers(talk, 3)
    params = {"id": "p", "step": "hold", "message": "generation 7", "generation": 7}
    assert hold == {"jsonrpc": "2.0", "method": "progress", "params": params}
    assert drain["params"] == {"id": "p", "step": "drain", "message": "0 in flight"}
    assert result["id"] == "p"
    assert result["result"]["generation"] == 7


WRONG: list[tuple[bytes, int, str]] = [
    (b"garbage\n", -32700, "not a line of JSON"),
    (b"\x00\xff\xfe\n", -32700, "not a line of JSON"),
    (b"GET / HTTP/1.1\r\n", -32700, "not a line of JSON"),
    (b"[" + REQUEST.strip() + b"]\n", -32600, "batches are not supported"),
    (b"{}\n", -32600, 'a request has "jsonrpc": "2.0"'),
    (b'{"jsonrpc":"2.0","method":"resume"}\n', -32600, 'a request has an "id"'),
    (line(1, "explode"), -32601, 'there is no command "explode"; there are: backend.add'),
    (line(1, "__init__"), -32601, "there is no command"),
    (line(1, "resume"), -32602, "resume needs the parameter 'site': a string"),
    (line(1, "resume", site=5), -32602, "resume: 'site' must be a string, not 5"),
    (line(1, "resume", site="a", to="b"), -32602, 'resume has no parameter "to"; it takes: site'),
    (line(1, "pause", site="a", timeout="1"), -32602, "'timeout' must be a number or null"),
    (line(1, "pause", site="a", then="x"), -32602, '\'then\' must be "refuse" or "resume" or null'),
    (line(1, "resume", site="nowhere"), -32602, "there is no site 'nowhere'; there is: blog"),
    (line(1, "resume", site="lost"), 1, "another command came first; try again"),
]


@pytest.mark.parametrize(("bad", "code", "message"), WRONG)
@twisted_test
async def test_what_is_wrong_is_answered_and_harms_nothing(
    talk: Talk, bad: bytes, code: int, message: str
) -> None:
    talk.transport.write(bad)
    (answer,) = await answers(talk)
    assert answer["error"]["code"] == code
    assert message in answer["error"]["message"]
    talk.transport.write(REQUEST)
    assert (await answers(talk))[0]["result"] == RESUMED


@twisted_test
async def test_a_lost_race_names_the_winner(talk: Talk) -> None:
    talk.transport.write(line(1, "resume", site="lost"))
    (answer,) = await answers(talk)
    assert answer["error"]["data"]["winner"]["by"] == "resume"
    assert answer["error"]["data"]["reason"] == answer["error"]["message"]


@twisted_test
async def test_a_bug_in_a_command_is_logged_and_answered(talk: Talk, logged_failures: Any) -> None:
    talk.transport.write(line(1, "resume", site="broken"))
    (answer,) = await answers(talk)
    assert answer["error"]["code"] == -32603
    assert "resume failed inside the daemon: RuntimeError('a bug')" in answer["error"]["message"]
    assert len(logged_failures.flush(RuntimeError)) == 1


@twisted_test
async def test_a_result_that_is_not_json_is_a_bug_in_the_command(
    talk: Talk, logged_failures: Any
) -> None:
    talk.transport.write(line(1, "unwritable"))
    assert (await answers(talk))[0]["error"]["code"] == -32603
    assert len(logged_failures.flush(TypeError)) == 1


@twisted_test
async def test_a_line_longer_than_the_limit_is_refused_and_the_connection_closed(
    talk: Talk,
) -> None:
    talk.transport.write(REQUEST + b"x" * (LINE_MAX + 1))
    first, second = await answers(talk, 2)
    assert first["result"] == RESUMED
    assert second["id"] is None
    assert second["error"]["code"] == -32600
    assert f"a line is longer than {LINE_MAX} bytes" in second["error"]["message"]
    await talk.lost


@twisted_test
async def test_a_line_as_long_as_the_limit_is_answered(talk: Talk) -> None:
    padding = b" " * (LINE_MAX - len(REQUEST) + 1)
    talk.transport.write(padding + REQUEST)
    assert (await answers(talk))[0]["result"] == RESUMED


@twisted_test
async def test_commands_run_side_by_side_and_are_answered_as_they_end(
    theatre: Theatre, talk: Talk
) -> None:
    talk.transport.write(line(1, "pause", site="slow") + line(2, "resume", site="blog"))
    assert [answer.get("id") for answer in await answers(talk, 2)] == [None, 2]
    theatre.stage.go.callback(None)
    assert [answer.get("id") for answer in await answers(talk, 2)] == [None, 1]


@twisted_test
async def test_an_id_in_use_is_refused(theatre: Theatre, talk: Talk) -> None:
    talk.transport.write(line(1, "pause", site="slow") + line(1, "resume", site="blog"))
    _, refusal = await answers(talk, 2)
    assert refusal["id"] is None
    assert "the id 1 is that of a command still running" in refusal["error"]["message"]
    theatre.stage.go.callback(None)
    assert [answer.get("id") for answer in await answers(talk, 2)] == [None, 1]


@twisted_test
async def test_a_connection_runs_so_many_commands_at_once_and_no_more(talk: Talk) -> None:
    for id in range(17):
        talk.transport.write(line(id, "watch"))
    (refusal,) = await answers(talk)
    assert refusal["id"] == 16
    assert refusal["error"]["code"] == -32000
    assert "this connection runs 16 commands, as many as it may" in refusal["error"]["message"]


@twisted_test
async def test_one_connection_too_many_is_told_so_and_closed(tmp_path: Path) -> None:
    served = await serve(str(tmp_path / "s"), Limits(connections=2))
    talks = [await connect(served.path) for _ in range(3)]
    (refusal,) = await answers(talks[2])
    assert refusal["error"]["code"] == -32000
    assert "has 2 connections, as many as it takes" in refusal["error"]["message"]
    await talks[2].lost
    talks[0].transport.write(REQUEST)
    assert (await answers(talks[0]))[0]["result"] == RESUMED
    await leave(talks[0])
    again = await connect(served.path)
    again.transport.write(REQUEST)
    assert (await answers(again))[0]["result"] == RESUMED
    await served.close()
    await again.lost
    await talks[1].lost


@twisted_test
async def test_events_reach_a_watcher_in_order(theatre: Theatre, talk: Talk) -> None:
    theatre.stage.events = [{"number": number} for number in range(100)]
    talk.transport.write(line(1, "watch"))
    got = await answers(talk, 100)
    assert [event["params"]["number"] for event in got] == list(range(100))
    assert {event["method"] for event in got} == {"event"}


@twisted_test
async def test_a_watch_ends_with_its_client(theatre: Theatre) -> None:
    talk = await connect(theatre.path)
    talk.transport.write(line(1, "watch"))
    await theatre.stage.started
    await leave(talk)
    assert await theatre.stage.ended == "cancelled"


@twisted_test
async def test_any_other_command_goes_on_without_its_client(theatre: Theatre) -> None:
    talk = await connect(theatre.path)
    talk.transport.write(line(1, "pause", site="slow"))
    await theatre.stage.started
    await leave(talk)
    other = await connect(theatre.path)
    other.transport.write(REQUEST)
    await other.lines(1)
    assert not theatre.stage.ended.called
    theatre.stage.go.callback(None)
    assert await theatre.stage.ended == "done"
    await leave(other)


@twisted_test
async def test_a_client_that_is_gone_before_its_error_harms_nothing(theatre: Theatre) -> None:
    talk = await connect(theatre.path)
    talk.transport.write(line(1, "nothing") * 1000 + b"half a li")
    talk.transport.abortConnection()
    await talk.lost
    other = await connect(theatre.path)
    other.transport.write(REQUEST)
    assert (await answers(other))[0]["result"] == RESUMED
    await leave(other)


@twisted_test
async def test_a_watcher_that_does_not_read_is_dropped_with_a_last_error(tmp_path: Path) -> None:
    served = await serve(str(tmp_path / "s"), Limits(queue=100_000))
    served.stage.events = [{"text": "x" * 1000}] * 2000
    talk = await connect(served.path)
    talk.transport.pauseProducing()
    talk.transport.write(line("w", "watch"))
    assert await served.stage.ended == "cancelled"
    talk.transport.resumeProducing()
    *events, last = await answers(talk, 3000)
    assert 0 < len(events) < 2000
    assert last["id"] == "w"
    assert last["error"]["code"] == -32000
    assert "this client has not read" in last["error"]["message"]
    await served.close()


@twisted_test
async def test_a_watcher_that_never_reads_again_is_cut_off(tmp_path: Path) -> None:
    served = await serve(str(tmp_path / "s"), Limits(queue=100_000, grace=0.01))
    served.stage.events = [{"text": "x" * 1000}] * 2000
    talk = await connect(served.path)
    talk.transport.pauseProducing()
    talk.transport.write(line("w", "watch"))
    assert await served.stage.ended == "cancelled"
    await served.close()  # which waits until every connection is gone
    talk.transport.resumeProducing()
    await talk.lost


@twisted_test
async def test_a_client_that_does_not_read_its_answers_is_not_read_from(
    theatre: Theatre, talk: Talk
) -> None:
    talk.transport.pauseProducing()
    for id in range(200):
        talk.transport.write(line(id, "flood", bytes=100_000))
    other = await connect(theatre.path)
    other.transport.write(REQUEST)
    assert (await answers(other))[0]["result"] == RESUMED
    await leave(other)
    talk.transport.resumeProducing()
    got = await answers(talk, 200)
    assert [answer["id"] for answer in got] == list(range(200))
    assert {len(answer["result"]["text"]) for answer in got} == {100_000}


@twisted_test
async def test_stopping_the_port_ends_watches_and_closes_connections(tmp_path: Path) -> None:
    served = await serve(str(tmp_path / "s"))
    talk = await connect(served.path)
    talk.transport.write(line(1, "watch"))
    await served.stage.started
    await served.close()
    assert await served.stage.ended == "cancelled"
    await talk.lost
    assert not (tmp_path / "s").exists()


@twisted_test
async def test_the_ports_repr_says_what_it_carries(theatre: Theatre, talk: Talk) -> None:
    talk.transport.write(REQUEST)
    await talk.lines(1)
    assert repr(theatre.port).endswith("1 connections>")
