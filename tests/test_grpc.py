"""gRPC, end to end: a real client and a real server, and the proxy between them.

gRPC needs all of HTTP/2 at once: streams that go both ways at the same time, trailers that
say how a call has ended, resets that cancel one.  No method of gRPC is idempotent as far
as HTTP knows, so that whatever is sent twice, or not at all, shows.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from plane_stage import Stage, eventually, reactor, stage, twisted_test
from twisted.internet.threads import deferToThread

from awesomeproxy.model import Listen, Mode, Server

LISTEN = Listen("tcp:0:interface=127.0.0.1", h2c=True)
SECONDS = 10  # of a call, at the most; nothing is measured with it


class Service:
    """What the server does; messages are bytes."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.heard: list[bytes] = []  # to be added
        self.cancelled = threading.Event()
        self.go_on = threading.Event()

    def echo(self, message: bytes, context: Any) -> bytes:
        self.calls.append("echo")
        said = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-begin", said.get("x-said", "nothing")),))
        context.set_trailing_metadata((("x-end", "the end"), ("x-bytes-bin", b"\x00\xff")))
        return message

    def refuse(self, message: bytes, context: Any) -> bytes:
        self.calls.append("refuse")
        context.abort(grpc.StatusCode.NOT_FOUND, "there is no such thing: é")
        raise AssertionError  # abort does not return

    def count(self, message: bytes, context: Any) -> Iterator[bytes]:
        for number in range(int(message)):
            yield b"%d" % number

    def add(self, messages: Iterator[bytes], context: Any) -> bytes:
        self.calls.append("add")
        for message in messages:
            self.heard.append(message)
        return b"%d" % sum(map(int, self.heard))

    def talk(self, messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for message in messages:
            yield b"you said " + message

    def wait(self, message: bytes, context: Any) -> bytes:
        self.calls.append("wait")
        context.add_callback(self.cancelled.set)
        self.go_on.wait(SECONDS)
        return b"waited"

    def handlers(self) -> Any:
        kinds = {
            "echo": grpc.unary_unary_rpc_method_handler,
            "refuse": grpc.unary_unary_rpc_method_handler,
            "wait": grpc.unary_unary_rpc_method_handler,
            "count": grpc.unary_stream_rpc_method_handler,
            "add": grpc.stream_unary_rpc_method_handler,
            "talk": grpc.stream_stream_rpc_method_handler,
        }
        return grpc.method_handlers_generic_handler(
            "Test", {name: kind(getattr(self, name)) for name, kind in kinds.items()}
        )


@contextlib.contextmanager
def serving() -> Iterator[tuple[Service, int]]:
    """A gRPC server on a free port."""
    service = Service()
    pool = ThreadPoolExecutor(8)
    server = grpc.server(pool)
    server.add_generic_rpc_handlers((service.handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield service, port
    finally:
        service.go_on.set()
        server.stop(None).wait(SECONDS)
        pool.shutdown()


@contextlib.asynccontextmanager
async def calling() -> AsyncIterator[tuple[Stage, Service, Any]]:
    """The proxy in front of a gRPC server, and a client's channel to it."""
    with serving() as (service, port):
        server = Server("h2c", "127.0.0.1", port)
        async with stage(listen=LISTEN, backend={"servers": (server,)}) as on:
            # Calls wait for the server's threads, so time is the clock's own, not the test's.
            channel = grpc.insecure_channel(
                f"127.0.0.1:{on.plane.listening[0].port}",
                options=(("grpc.default_authority", "blog.example"),),
            )
            try:
                yield on, service, channel
            finally:
                await deferToThread(channel.close)


async def called(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """The result of a call that is made in a thread."""
    return await deferToThread(function, *args, timeout=SECONDS, **named)


@twisted_test
async def test_a_call_is_answered_with_its_metadata() -> None:
    """What is said before and behind a message arrives, in both directions."""
    async with calling() as (_, _service, channel):
        call = channel.unary_unary("/Test/echo").with_call
        answer, state = await called(call, b"hello", metadata=(("x-said", "this"),))
        assert answer == b"hello"
        assert dict(state.initial_metadata())["x-begin"] == "this"
        trailing = dict(state.trailing_metadata())
        assert (trailing["x-end"], trailing["x-bytes-bin"]) == ("the end", b"\x00\xff")


@twisted_test
async def test_an_error_keeps_its_status_and_its_words() -> None:
    """A response that is nothing but trailers is passed on as one."""
    async with calling() as (_, _service, channel):
        with pytest.raises(grpc.RpcError) as error:
            await called(channel.unary_unary("/Test/refuse"), b"")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        assert error.value.details() == "there is no such thing: é"


@twisted_test
async def test_streams_go_either_way_and_both() -> None:
    """Many messages out, many in, and both in turns."""
    async with calling() as (_, _service, channel):

        def all_kinds() -> tuple[list[bytes], bytes, list[bytes]]:
            counted = list(channel.unary_stream("/Test/count")(b"500", timeout=SECONDS))
            added = channel.stream_unary("/Test/add")(
                (b"%d" % n for n in range(500)), timeout=SECONDS
            )
            talk = channel.stream_stream("/Test/talk")
            said = list(talk((b"%d" % n for n in range(50)), timeout=SECONDS))
            return counted, added, said

        counted, added, said = await deferToThread(all_kinds)
        assert counted == [b"%d" % n for n in range(500)]
        assert int(added) == sum(range(500))
        assert said == [b"you said %d" % n for n in range(50)]


@twisted_test
async def test_a_message_larger_than_all_windows_arrives() -> None:
    """Three megabytes there and back need flow control on all four sides."""
    async with calling() as (_, _service, channel):
        message = bytes(range(256)) * 12_000
        assert await called(channel.unary_unary("/Test/echo"), message) == message


@twisted_test
async def test_a_client_may_be_silent_for_as_long_as_it_likes() -> None:
    """A call is a conversation: no rate is asked of what it sends."""
    async with calling() as (on, service, channel):
        more = threading.Event()

        def messages() -> Iterator[bytes]:
            yield b"1"
            more.wait(SECONDS)
            yield b"2"

        future = channel.stream_unary("/Test/add").future(messages())
        await eventually(lambda: service.calls, "the call")  # a connection has less time
        for _ in range(4):
            await on.pass_time(LISTEN.timeouts.body)
        more.set()
        assert await deferToThread(future.result, SECONDS) == b"3"


@twisted_test
async def test_a_call_in_which_nobody_speaks_any_more_ends() -> None:
    """What bounds other connections without a byte either way, ``timeouts.tunnel``, does here."""
    async with calling() as (on, service, channel):
        more = threading.Event()

        def messages() -> Iterator[bytes]:
            yield b"1"
            more.wait(SECONDS)

        future = channel.stream_unary("/Test/add").future(messages())
        await eventually(lambda: service.heard, "its message")  # nothing is said after it
        await on.pass_time(on.site.timeouts.tunnel + LISTEN.timeouts.body + 1)
        assert isinstance(await deferToThread(future.exception, SECONDS), grpc.RpcError)
        more.set()


@twisted_test
async def test_a_cancelled_call_stops_at_the_server() -> None:
    """A client that leaves is not waited for in vain: the server hears of it, and stops."""
    async with calling() as (on, service, channel):
        future = channel.unary_unary("/Test/wait").future(b"")
        await eventually(lambda: service.calls == ["wait"], "the call")
        future.cancel()
        await eventually(service.cancelled.is_set, "the server to hear of it")
        await on.quiet()
        assert (on.counters.failed, on.counters.ambiguous) == (0, 0)
        service.go_on.set()


@twisted_test
async def test_calls_wait_at_a_held_gate_and_are_made_once() -> None:
    """A pause is a slow call, not a failed one, though no call may be made twice."""
    async with calling() as (on, service, channel):
        await called(channel.unary_unary("/Test/echo"), b"before")
        on.place(Mode.HOLDING)
        await on.drained()
        futures = [channel.unary_unary("/Test/echo").future(b"%d" % n) for n in range(20)]
        await on.held(20)
        assert service.calls == ["echo"]
        assert not on.live.connections
        on.place()
        answers = await deferToThread(lambda: [f.result(timeout=SECONDS) for f in futures])
        assert answers == [b"%d" % n for n in range(20)]
        assert service.calls == ["echo"] * 21


@twisted_test
async def test_a_site_with_a_call_in_flight_is_not_drained() -> None:
    """What is in flight on a shared connection keeps the drain waiting."""
    async with calling() as (on, service, channel):
        future = channel.unary_unary("/Test/wait").future(b"")
        await eventually(lambda: service.calls == ["wait"], "the call")
        on.place(Mode.HOLDING)
        assert not on.live.drained
        assert len(on.live.connections) == 1
        service.go_on.set()
        assert await deferToThread(future.result, SECONDS) == b"waited"
        await on.drained()


assert reactor  # the stage's; threads report to it
