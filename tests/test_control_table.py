"""The table of commands: parameters are held against annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pytest

from awesomeproxy.control.protocol import RpcError
from awesomeproxy.control.table import BadRequest, Call, CommandFailed, Table

table = Table()


@table.command("all")
async def all_kinds(
    context: list[Any],
    call: Call,
    text: str,
    whole: int = 0,
    number: float = 0.0,
    flag: bool = False,
    names: list[str] = [],  # noqa: B006 - never changed
    definition: dict[str, Any] | None = None,
    word: Literal["refuse", "resume"] | None = None,
    sizes: Mapping[str, int] | None = None,
    either: int | str = 0,
) -> Mapping[str, Any]:
    return {"text": text, "number": number, "word": word}


@table.command("none")
async def no_parameters(context: list[Any], call: Call) -> None:
    call.progress("step", "done")
    call.event(site="blog")


def start(method: str, params: Mapping[str, Any]) -> Any:
    coroutine = table.start([], method, params, Call(1, lambda *_: None))
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    return end.value.value


GOOD: list[dict[str, Any]] = [
    {"text": "a"},
    {"text": "", "whole": -3, "number": 3, "flag": True, "names": [], "definition": {}},
    {"text": "a", "number": 0.5, "names": ["a", "b"], "definition": {"a": [1]}, "word": "resume"},
    {"text": "a", "definition": None, "word": None, "sizes": {"a": 1}, "either": "x"},
]


@pytest.mark.parametrize("params", GOOD)
def test_parameters_of_the_annotated_types_are_taken(params: dict[str, Any]) -> None:
    assert start("all", params)["text"] == params["text"]


def test_a_parameter_that_is_not_given_has_its_default() -> None:
    assert start("all", {"text": "a"}) == {"text": "a", "number": 0.0, "word": None}


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "all needs the parameter 'text': a string"),
    ({"text": 1}, "all: 'text' must be a string, not 1"),
    ({"text": None}, "all: 'text' must be a string, not null"),
    ({"text": "a", "whole": 1.5}, "all: 'whole' must be an integer, not 1.5"),
    ({"text": "a", "whole": True}, "all: 'whole' must be an integer, not true"),
    ({"text": "a", "number": "1"}, "all: 'number' must be a number, not \"1\""),
    ({"text": "a", "number": False}, "all: 'number' must be a number, not false"),
    ({"text": "a", "number": float("inf")}, "all: 'number' must be a number, not Infinity"),
    ({"text": "a", "number": 10**400}, "all: 'number' must be a number, not 1000"),
    ({"text": "a", "flag": "yes"}, "all: 'flag' must be true or false, not \"yes\""),
    ({"text": "a", "flag": 0}, "all: 'flag' must be true or false, not 0"),
    ({"text": "a", "names": "a"}, "all: 'names' must be a list, each item a string, not \"a\""),
    ({"text": "a", "names": [1]}, "all: 'names' must be a list, each item a string, not [1]"),
    ({"text": "a", "definition": []}, "all: 'definition' must be an object or null, not []"),
    ({"text": "a", "word": "end"}, 'all: \'word\' must be "refuse" or "resume" or null, not "end"'),
    ({"text": "a", "sizes": {"a": "b"}}, "'sizes' must be an object, each value an integer or"),
    ({"text": "a", "either": []}, "all: 'either' must be an integer or a string, not []"),
    ({"text": "a", "texd": 1}, 'all has no parameter "texd"; it takes: text, whole, number'),
    ({"text": ["x" * 200]}, "all: 'text' must be a string, not [\"xxxxx"),
]


@pytest.mark.parametrize(("params", "message"), BAD)
def test_a_bad_parameter_is_named_with_what_is_allowed(
    params: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        start("all", params)
    assert message in caught.value.message
    assert len(caught.value.message) < 200
    assert caught.value.code == -32602


def test_a_command_without_parameters_says_so() -> None:
    with pytest.raises(BadRequest, match='none has no parameter "a"; it takes none'):
        start("none", {"a": 1})


def test_an_unknown_command_is_answered_with_those_there_are() -> None:
    with pytest.raises(RpcError) as caught:
        start("pasue", {})
    assert caught.value.code == -32601
    assert caught.value.message == 'there is no command "pasue"; there are: all, none'


def test_a_command_speaks_through_its_call() -> None:
    said: list[tuple[str, Mapping[str, Any]]] = []
    call = Call("a", lambda method, params: said.append((method, params)))
    with pytest.raises(StopIteration):
        table.start([], "none", {}, call).send(None)
    assert said == [
        ("progress", {"id": "a", "step": "step", "message": "done"}),
        ("event", {"site": "blog"}),
    ]


def test_two_commands_cannot_have_one_name() -> None:
    with pytest.raises(TypeError, match="two commands called 'none'"):
        table.command("none")(no_parameters)


def test_an_annotation_that_json_has_no_word_for_is_refused_at_once() -> None:
    async def odd(context: object, call: Call, when: complex) -> None: ...

    with pytest.raises(TypeError, match="complex"):
        Table().command("odd")(odd)


def test_a_context_type_need_not_be_importable() -> None:
    async def shy(context: Nowhere, call: Nothing, site: str) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    Table().command("shy")(shy)


def test_a_failure_says_why_and_who_won() -> None:
    assert CommandFailed("too late", {"by": "resume"}).as_json() == {
        "code": 1,
        "message": "too late",
        "data": {"reason": "too late", "winner": {"by": "resume"}},
    }
    assert CommandFailed("no").as_json()["data"] == {"reason": "no"}


def test_the_tables_repr_names_its_commands() -> None:
    assert repr(table) == "<Table of all, none>"
