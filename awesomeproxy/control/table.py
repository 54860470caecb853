"""The table of commands: one typed function each, called by name.

::

    table = Table()

    @table.command("pause")
    async def pause(node: Node, call: Call, site: str, force: bool = False) -> Mapping[str, Any]:
        call.progress("drain", "3 requests in flight")
        ...

The first two parameters are the context the table is served with and the
:class:`Call`; the others are the command's parameters.  What a client sends is
held against their annotations and defaults before the function is called, so
that a function never sees a parameter it did not declare, misses one, or gets
one of the wrong type.

A command says that it could not be done by raising :class:`CommandFailed` (it
was begun, and undone) or :class:`BadRequest` (there is no such site, no such
backend: nothing was begun).
"""

from __future__ import annotations

import inspect
import json
import sys
import types
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from awesomeproxy.control.protocol import (
    FAILED,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    RequestId,
    RpcError,
)

Command = Callable[..., Coroutine[Any, Any, Any]]
C = TypeVar("C", bound=Command)


class CommandFailed(RpcError):
    """The command failed and was undone: nothing has changed.

    :param message: why, and what to do.
    :param winner: what made the change that this command lost against, as JSON.
    """

    def __init__(self, message: str, winner: Mapping[str, Any] | None = None) -> None:
        data: dict[str, Any] = {"reason": message}
        if winner is not None:
            data["winner"] = dict(winner)
        super().__init__(FAILED, message, data)


class BadRequest(RpcError):
    """A parameter makes no sense here: an unknown site, a backend that is in use."""

    def __init__(self, message: str) -> None:
        super().__init__(INVALID_PARAMS, message)


@dataclass(frozen=True, slots=True)
class Call:
    """One running command's way to speak to its client before it is done."""

    id: RequestId
    notify: Callable[[str, Mapping[str, Any]], None]

    def progress(self, step: str, message: str, **more: Any) -> None:
        """Tell the client where the command is; lost if the client has left."""
        self.notify("progress", {"id": self.id, "step": step, "message": message, **more})

    def event(self, **params: Any) -> None:
        """Tell a watching client what has happened."""
        self.notify("event", params)


@dataclass(frozen=True, slots=True)
class Kind:
    """What values a parameter takes: a check, and the words for it."""

    words: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a command."""

    name: str
    kind: Kind
    required: bool


class Table:
    """Commands by name."""

    def __init__(self) -> None:
        self._commands: dict[str, tuple[Command, tuple[Parameter, ...]]] = {}

    def __repr__(self) -> str:
        return f"<Table of {', '.join(sorted(self._commands))}>"

    def command(self, name: str) -> Callable[[C], C]:
        """Enter the decorated ``async def`` as ``name``.

        :raises TypeError: if a parameter has an annotation that JSON cannot be held against.
        """

        def enter(function: C) -> C:
            if name in self._commands:
                raise TypeError(f"there are two commands called {name!r}")
            self._commands[name] = function, tuple(_parameters(function))
            return function

        return enter

    def start(
        self, context: Any, method: str, params: Mapping[str, Any], call: Call
    ) -> Coroutine[Any, Any, Any]:
        """The coroutine that carries out ``method``, its parameters checked.

        :raises RpcError: if there is no such command, or a parameter is unknown, missing
            or of the wrong type.
        """
        try:
            function, parameters = self._commands[method]
        except KeyError:
            raise RpcError(
                METHOD_NOT_FOUND,
                f"there is no command {_shown(method)}; there are: "
                + ", ".join(sorted(self._commands)),
            ) from None
        _check(method, parameters, params)
        return function(context, call, **params)


def _check(method: str, parameters: tuple[Parameter, ...], params: Mapping[str, Any]) -> None:
    names = [parameter.name for parameter in parameters]
    for name in params:
        if name not in names:
            allowed = f"it takes: {', '.join(names)}" if names else "it takes none"
            raise BadRequest(f"{method} has no parameter {_shown(name)}; {allowed}")
    for parameter in parameters:
        if parameter.name not in params:
            if parameter.required:
                raise BadRequest(
                    f"{method} needs the parameter {parameter.name!r}: {parameter.kind.words}"
                )
        elif not parameter.kind.accepts(value := params[parameter.name]):
            raise BadRequest(
                f"{method}: {parameter.name!r} must be {parameter.kind.words}, not {_shown(value)}"
            )


def _parameters(function: Command) -> list[Parameter]:
    found = list(inspect.signature(function).parameters.values())
    return [
        Parameter(p.name, _kind(_annotation(function, p)), p.default is inspect.Parameter.empty)
        for p in found[2:]
    ]


def _annotation(function: Command, parameter: inspect.Parameter) -> Any:
    # One by one, not typing.get_type_hints: the context's type need not be importable here.
    if isinstance(parameter.annotation, str):
        return eval(parameter.annotation, getattr(function, "__globals__", {}))
    return parameter.annotation


def _kind(annotation: Any) -> Kind:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Literal:
        words = " or ".join(json.dumps(value) for value in arguments)
        return Kind(
            words, lambda value: any(type(value) is type(a) and value == a for a in arguments)
        )
    if origin in (Union, types.UnionType):
        kinds = [_kind(argument) for argument in arguments]
        return Kind(
            " or ".join(kind.words for kind in kinds),
            lambda value: any(kind.accepts(value) for kind in kinds),
        )
    if origin is list:
        item = _kind(arguments[0])
        return Kind(
            f"a list, each item {item.words}",
            lambda value: isinstance(value, list) and all(map(item.accepts, value)),
        )
    if origin in (dict, Mapping) and arguments[0] is str:
        item = _kind(arguments[1])
        words = "an object" if arguments[1] is Any else f"an object, each value {item.words}"
        return Kind(
            words,
            lambda value: isinstance(value, dict) and all(map(item.accepts, value.values())),
        )
    raise TypeError(f"{annotation!r} is no type that a command's parameter can have")


def _is_number(value: Any) -> bool:
    # 1e999 is JSON, and infinite; an integer may be too large for a float.
    return type(value) in (int, float) and abs(value) < sys.float_info.max


_PLAIN: Mapping[Any, Kind] = {
    str: Kind("a string", lambda value: isinstance(value, str)),
    int: Kind("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: Kind("a number", _is_number),
    bool: Kind("true or false", lambda value: isinstance(value, bool)),
    None: Kind("null", lambda value: value is None),
    type(None): Kind("null", lambda value: value is None),
    Any: Kind("anything", lambda value: True),
}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"
