"""What a server is asked and a client is told, on real sockets."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from plane_stage import (
    END,
    GET,
    LISTEN,
    OK,
    Answer,
    always,
    answering,
    eventually,
    fields_of,
    ok,
    one_request,
    post,
    stage,
    turns,
    twisted_test,
)

from awesomeproxy.model import Listen

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TEN = b"GET / HTTP/1.0\r\nHost: blog.example\r\n\r\n"
TEN_KEPT = b"GET / HTTP/1.0\r\nHost: blog.example\r\nConnection: keep-alive\r\n\r\n"


@twisted_test
async def test_a_request_is_answered_by_its_server() -> None:
    async with stage(answering) as s:
        answer = await s.ask()
        assert (answer.status, answer.reason, answer.body) == (200, "OK", b"ok")
        assert s.counters.requests == 1


@twisted_test
async def test_the_server_gets_the_request_and_where_it_came_from() -> None:
    async with stage() as s:
        client = await s.connect(
            b"GET /a?b HTTP/1.1\r\nHost: Blog.example:80\r\nX-Request-Id: mine\r\n"
            b"X-Forwarded-For: 9.9.9.9\r\nCookie: c\r\n\r\n"
        )
        server = await s.origin.accept()
        head = await server.until(END)
        fields = fields_of(head)
        assert head.startswith(b"GET /a?b HTTP/1.1\r\n")
        assert fields[b"host"] == b"Blog.example:80"
        assert fields[b"cookie"] == b"c"
        assert fields[b"x-forwarded-for"] == b"127.0.0.1"
        assert fields[b"x-forwarded-proto"] == b"http"
        assert fields[b"x-forwarded-host"] == b"Blog.example:80"
        assert fields[b"via"].startswith(b"1.1 awesomeproxy-")
        assert fields[b"x-request-id"] not in (b"", b"mine")
        server.write(OK)
        await client.answer()


@twisted_test
async def test_a_trusted_proxy_is_believed() -> None:
    listen = Listen(LISTEN.endpoint, trusted_proxies=(ip_network("127.0.0.0/8"),))
    async with stage(listen=listen) as s:
        client = await s.connect(
            b"GET / HTTP/1.1\r\nHost: blog.example\r\nX-Request-Id: theirs\r\n"
            b"X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nVia: 1.1 front\r\n\r\n"
        )
        server = await s.origin.accept()
        fields = fields_of(await server.until(END))
        assert fields[b"x-forwarded-for"] == b"9.9.9.9, 127.0.0.1"
        assert fields[b"x-forwarded-proto"] == b"https"
        assert fields[b"x-request-id"] == b"theirs"
        assert fields[b"via"].startswith(b"1.1 front, 1.1 awesomeproxy-")
        server.write(OK)
        await client.answer()


@twisted_test
async def test_fields_of_one_connection_are_not_passed_on_either_way() -> None:
    async with stage() as s:
        client = await s.connect(
            b"GET / HTTP/1.1\r\nHost: blog.example\r\nConnection: X-Own, keep-alive\r\n"
            b"X-Own: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: gzip\r\n\r\n"
        )
        server = await s.origin.accept()
        fields = fields_of(await server.until(END))
        own = {b"connection", b"x-own", b"keep-alive", b"proxy-connection", b"te"}
        assert not own & set(fields)
        server.write(ok(b"", b"Connection: X-Theirs", b"X-Theirs: 1", b"Keep-Alive: timeout=5"))
        answer = await client.answer()
        assert [name for name, _ in answer.fields] == ["content-length"]


@twisted_test
async def test_an_absolute_target_is_routed_by_its_authority() -> None:
    async with stage() as s:
        client = await s.connect(b"GET http://blog.example/x HTTP/1.1\r\nHost: other\r\n\r\n")
        server = await s.origin.accept()
        head = await server.until(END)
        assert head.startswith(b"GET /x HTTP/1.1\r\nHost: blog.example\r\n")
        server.write(OK)
        await client.answer()


@twisted_test
async def test_a_name_that_nobody_knows_gets_404_and_the_connection_goes_on() -> None:
    async with stage(answering) as s:
        client = await s.connect(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n" + GET)
        answer = await client.answer()
        assert answer.status == 404
        assert b"other.example" in answer.body
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("host", [b"a b", b"a@b", b"a/b"])
@twisted_test
async def test_a_host_that_is_none_gets_400(host: bytes) -> None:
    async with stage() as s:
        assert (await s.ask(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)).status == 400


@twisted_test
async def test_errors_are_json_for_those_who_ask() -> None:
    async with stage() as s:
        for request in (
            b"GET / HTTP/1.1\r\nHost: other.example\r\nAccept: application/json\r\n\r\n",
            b"GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n",
        ):
            assert (await s.ask(request))["content-type"] == "application/json"


# Bodies and their framing


@pytest.mark.parametrize(
    ("response", "body"),
    [
        (ok(b"hello"), b"hello"),
        (ok(b""), b""),
        (CHUNKED + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (ok(b"hello", b"Connection: close"), b"hello"),
    ],
    ids=["length", "empty", "chunked", "204", "304", "1.0", "close"],
)
@pytest.mark.parametrize("request_", [GET, TEN_KEPT, TEN], ids=["1.1", "1.0 kept", "1.0"])
@twisted_test
async def test_a_response_reaches_clients_of_either_version(
    response: bytes, body: bytes, request_: bytes
) -> None:
    async with stage() as s:
        client = await s.connect(request_)
        server = await s.origin.accept()
        await one_request(server)
        server.write(response)
        answer = await client.answer()
        assert answer.body == body
        assert answer.version == "1.1"
        if request_ is not GET:
            assert answer["transfer-encoding"] is None
        known = answer["content-length"] is not None or answer.status in (204, 304)
        closes = request_ is TEN or (request_ is TEN_KEPT and not known)
        if closes:
            assert answer["connection"] == "close"
            assert await client.rest() == b""
            assert not client.reset
        else:
            assert answer["connection"] == ("keep-alive" if request_ is TEN_KEPT else None)


@pytest.mark.parametrize("request_", [GET, TEN_KEPT], ids=["1.1", "1.0"])
@twisted_test
async def test_a_response_until_the_end_reaches_clients_of_either_version(request_: bytes) -> None:
    async with stage() as s:
        client = await s.connect(request_)
        server = await s.origin.accept()
        await one_request(server)
        server.write(b"HTTP/1.1 200 OK\r\n\r\nall ")
        await client.until(END)
        server.write(b"of it")
        server.close()
        if request_ is GET:
            assert await client.chunked() == (b"all of it", b"")
            assert not client.closed
        else:
            assert await client.rest() == b"all of it"
            assert not client.reset


@pytest.mark.parametrize("at", range(1, 60, 2))
@twisted_test
async def test_a_response_may_come_in_pieces(at: int) -> None:
    response = CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        await one_request(server)
        server.write(response[:at])
        await turns()
        server.write(response[at:])
        answer = await client.answer()
        assert (answer.body, answer.trailers) == (b"hello", b"X-Sum: 1\r\n")


@pytest.mark.parametrize(
    "response",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", CHUNKED, b"HTTP/1.1 200 OK\r\n\r\n"],
)
@twisted_test
async def test_head_has_no_body_and_its_connections_go_on(response: bytes) -> None:
    head = GET.replace(b"GET", b"HEAD")
    async with stage() as s:
        client = await s.connect(head)
        server = await s.origin.accept()
        await one_request(server)
        server.write(response)
        answer = await client.answer(head_only=True)
        assert answer["content-length"] == ("5" if b"5" in response else None)
        client.write(GET)
        await one_request(server)
        server.write(OK)
        assert (await client.answer()).body == b"ok"


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
    ids=["length", "chunked"],
)
@twisted_test
async def test_a_request_body_arrives_however_it_is_cut(framing: bytes) -> None:
    request = b"PUT / HTTP/1.1\r\nHost: blog.example\r\n" + framing
    async with stage() as s:
        for at in range(45, len(request), 3):
            client = await s.connect(request[:at])
            await turns()
            client.write(request[at:])
            server = await s.origin.accept()
            head, body = await one_request(server)
            assert body == b"hello"
            assert (b"content-length" in fields_of(head)) == (b"Length" in framing)
            server.write(ok(b"", b"Connection: close"))
            assert (await client.answer()).status == 200
            client.abort()


@twisted_test
async def test_trailers_travel_both_ways() -> None:
    async with stage() as s:
        client = await s.connect(
            b"POST / HTTP/1.1\r\nHost: blog.example\r\nTE: trailers\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n"
        )
        server = await s.origin.accept()
        fields = fields_of(await server.until(END))
        assert (fields[b"te"], fields[b"connection"]) == (b"trailers", b"TE")
        assert await server.chunked() == (b"a", b"X-Sum: 1\r\n")
        server.write(CHUNKED + b"1\r\nb\r\n0\r\nX-Sum: 2\r\nSet-Cookie: evil\r\n\r\n")
        answer = await client.answer()
        assert (answer.body, answer.trailers) == (b"b", b"X-Sum: 2\r\n")


# 1xx


@twisted_test
async def test_the_body_waits_for_the_servers_100() -> None:
    async with stage() as s:
        head, body = post(b"hello", b"Expect: 100-continue").split(END)
        client = await s.connect(head + END)
        server = await s.origin.accept()
        assert fields_of(await server.until(END))[b"expect"] == b"100-continue"
        await turns(10)
        assert client.all == b""
        server.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert (await client.answer()).status == 100
        client.write(body)
        assert await server.exactly(5) == b"hello"
        server.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_server_that_wants_no_body_says_so_at_once() -> None:
    async with stage() as s:
        head, _ = post(b"hello", b"Expect: 100-continue").split(END)
        client = await s.connect(head + END)
        server = await s.origin.accept()
        await server.until(END)
        server.write(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        assert (await client.answer()).status == 417
        assert await client.rest() == b""
        await eventually(lambda: server.closed)
        assert not s.counters.failed


@twisted_test
async def test_a_client_that_waits_for_the_100_is_not_late_and_the_server_is() -> None:
    async with stage() as s:
        head, _ = post(b"hello", b"Expect: 100-continue").split(END)
        client = await s.connect(head + END)
        server = await s.origin.accept()
        await server.until(END)
        await s.pass_time(s.site.timeouts.response - 1)
        assert client.all == b""
        await s.pass_time(2)
        assert (await client.answer()).status == 504


@twisted_test
async def test_interim_responses_are_for_clients_that_know_them() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with stage(always(early + early + OK)) as s:
        client = await s.connect(GET)
        for _ in range(2):
            interim = await client.answer()
            assert (interim.status, interim["link"]) == (103, "</a>")
        assert (await client.answer()).status == 200
        assert (await s.ask(TEN)).status == 200


@twisted_test
async def test_interim_responses_show_that_the_server_is_at_work() -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        for _ in range(3):
            await s.pass_time(s.site.timeouts.response * 0.9)
            server.write(b"HTTP/1.1 102 Processing\r\n\r\n")
            assert (await client.answer()).status == 102
        server.write(OK)
        assert (await client.answer()).status == 200


# Odds and ends of RFC 9110


@pytest.mark.parametrize("method", [b"OPTIONS", b"TRACE"])
@twisted_test
async def test_max_forwards_is_counted_down_and_ends_here(method: bytes) -> None:
    async with stage() as s:
        request = method + b" / HTTP/1.1\r\nHost: blog.example\r\nMax-Forwards: %b\r\n\r\n"
        assert (await s.ask(request % b"0")).status == 200
        assert (await s.ask(request % b"x")).status == 400
        assert not s.origin.wires
        client = await s.connect(request % b"5")
        server = await s.origin.accept()
        assert fields_of(await server.until(END))[b"max-forwards"] == b"4"
        server.write(OK)
        await client.answer()


@twisted_test
async def test_max_forwards_of_other_methods_is_left_alone() -> None:
    async with stage() as s:
        client = await s.connect(GET[:-2] + b"Max-Forwards: 0\r\n\r\n")
        server = await s.origin.accept()
        assert fields_of(await server.until(END))[b"max-forwards"] == b"0"
        server.write(OK)
        await client.answer()


@twisted_test
async def test_a_request_that_comes_back_is_a_loop() -> None:
    async with stage() as s:
        client = await s.connect(GET)
        server = await s.origin.accept()
        again = await s.ask(await server.until(END))
        assert again.status == 508
        server.write(OK)
        await client.answer()


@twisted_test
async def test_options_for_the_whole_server_is_forwarded_so() -> None:
    async with stage() as s:
        client = await s.connect(b"OPTIONS * HTTP/1.1\r\nHost: blog.example\r\n\r\n")
        server = await s.origin.accept()
        assert (await server.until(END)).startswith(b"OPTIONS * HTTP/1.1\r\n")
        server.write(OK)
        await client.answer()


# Pipelining


@twisted_test
async def test_pipelined_requests_are_answered_one_after_the_other() -> None:
    async with stage() as s:
        client = await s.connect(
            b"".join(b"GET /%d HTTP/1.1\r\nHost: blog.example\r\n\r\n" % n for n in range(3))
        )
        server = await s.origin.accept()
        for number in range(3):
            assert (await server.until(END)).startswith(b"GET /%d " % number)
            await turns(5)
            assert server.buffer == b""
            server.write(ok(b"%d" % number))
            assert (await client.answer()).body == b"%d" % number


@twisted_test
async def test_hundreds_of_requests_in_one_segment_are_all_answered() -> None:
    async with stage(answering) as s:
        client = await s.connect(GET * 700)
        for _ in range(700):
            assert (await client.answer()).status == 200
        assert len(s.origin.wires) == 1


@pytest.mark.parametrize("host", [b"nobody.example", b"a b"])
@twisted_test
async def test_hundreds_of_refusals_in_one_segment_are_all_told(host: bytes) -> None:
    async with stage() as s:
        client = await s.connect(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host * 1500)
        for _ in range(1500):
            assert (await client.answer()).status in (400, 404)


@twisted_test
async def test_good_requests_are_answered_before_the_fault_behind_them() -> None:
    async with stage(answering) as s:
        client = await s.connect(GET * 5 + b"GET / HTTP/1.1\r\n\r\n" + GET)
        for _ in range(5):
            assert (await client.answer()).status == 200
        last = await client.answer()
        assert (last.status, last["connection"]) == (400, "close")
        assert await client.rest() == b""


@twisted_test
async def test_a_body_behind_a_pipelined_request_is_read() -> None:
    async with stage() as s:
        head, body = post(b"hello").split(END)
        client = await s.connect(GET + head + END)
        first = await s.origin.accept()
        await one_request(first)
        await turns()
        first.write(OK)
        assert (await client.answer()).status == 200
        client.write(body)
        second = await s.origin.accept()
        assert (await one_request(second))[1] == b"hello"
        second.write(OK)
        assert (await client.answer()).status == 200


@twisted_test
async def test_a_client_that_takes_no_answers_is_not_asked_for_more() -> None:
    async with stage(always(ok(b"x" * 50_000))) as s:
        client = await s.connect()
        client.stop_reading()
        client.write(GET * 900)
        (there,) = s.plane.clients
        await eventually(lambda: there.transport.unsent)
        await turns(200)
        assert there.transport.unsent < 1024 * 1024
        client.read_on()
        for _ in range(900):
            assert len((await client.answer()).body) == 50_000


@twisted_test
async def test_a_request_behind_connection_close_is_not_answered() -> None:
    async with stage(answering) as s:
        client = await s.connect(GET[:-2] + b"Connection: close\r\n\r\n" + GET)
        answer = await client.answer()
        assert answer["connection"] == "close"
        assert await client.rest() == b""
        assert s.counters.requests == 1


@twisted_test
async def test_a_bad_request_closes_the_connection_in_an_orderly_way() -> None:
    async with stage() as s:
        client = await s.connect(b"nonsense\r\n\r\n" + b"x" * 200_000)
        assert (await client.answer()).status in (400, 501)
        assert await client.rest() == b""
        assert not client.reset


@twisted_test
async def test_a_fault_in_a_body_is_told_at_once_and_its_request_not_finished() -> None:
    async with stage() as s:
        client = await s.connect(
            b"POST / HTTP/1.1\r\nHost: blog.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
        )
        server = await s.origin.accept()
        await server.until(b"1\r\na\r\n")
        client.write(b"zz\r\n")
        answer: Answer = await client.answer()
        assert (answer.status, answer["connection"]) == (400, "close")
        await eventually(lambda: server.closed)
        assert server.buffer == b""
