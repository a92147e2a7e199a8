"""Connections to an API that behaves, and to one that does not, over real sockets."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from grok_oauth_proxy.proxy.body import ClientGone
from grok_oauth_proxy.proxy.tunnel import End
from grok_oauth_proxy.proxy.upstream import Answer, Request, UpstreamFailure
from tests.proxy.api import (
    OK,
    ROUNDS,
    SWITCHING,
    WHOLE,
    Api,
    each,
    get,
    outcome,
    post,
    rounds,
    says,
    whole,
)
from tests.proxy.egress import Greet, egress, http_proxy, socks_proxy

pytestmark = pytest.mark.anyio

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
INVALID = "invalid_answer"

ANSWERS: dict[str, tuple[bytes, tuple[int, bytes] | str]] = {
    "length": (WHOLE, (200, b"hi")),
    "chunked": (CHUNKED + b"1;x=y\r\nh\r\n1\r\ni\r\n0\r\n\r\n", (200, b"hi")),
    "trailers": (CHUNKED + b"2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n", (200, b"hi")),
    "until the end": (OK + b"\r\nhi", (200, b"hi")),
    "http/1.0": (b"HTTP/1.0 200 OK\r\n\r\nhi", (200, b"hi")),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", (200, b"")),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", (304, b"")),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + WHOLE, (200, b"hi")),
    "garbage after": (WHOLE + b"\r\n\r\nrubbish", (200, b"hi")),
    "a second answer": (WHOLE + WHOLE, (200, b"hi")),
    "nothing": (b"", "broken_off"),
    "half a head": (OK + b"Content-Len", "broken_off"),
    "too short": (OK + b"Content-Length: 3\r\n\r\nhi", "truncated hi"),
    "chunk cut": (CHUNKED + b"5\r\nhi", "truncated hi"),
    "no last chunk": (CHUNKED + b"2\r\nhi\r\n", "truncated hi"),
    "no end of trailers": (CHUNKED + b"2\r\nhi\r\n0\r\n", "truncated hi"),
    "two lengths": (OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi", INVALID),
    "listed lengths": (OK + b"Content-Length: 2, 2\r\n\r\nhi", INVALID),
    "signed length": (OK + b"Content-Length: +2\r\n\r\nhi", INVALID),
    "length and chunked": (OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", INVALID),
    "chunked and length": (CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n0\r\n\r\n", INVALID),
    "unknown coding": (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", INVALID),
    "chunked not last": (OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", INVALID),
    "chunk size": (CHUNKED + b"zz\r\nhi\r\n0\r\n\r\n", INVALID),
    "chunk without its end": (CHUNKED + b"2\r\nhiXX0\r\n\r\n", "invalid_answer hi"),
    "folded header": (OK + b"x: y\r\n z\r\nContent-Length: 0\r\n\r\n", INVALID),
    "bare line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", INVALID),
    "NUL": (OK + b"x: a\0b\r\nContent-Length: 0\r\n\r\n", INVALID),
    "CR": (OK + b"x: a\rb\r\nContent-Length: 0\r\n\r\n", INVALID),
    "blank before the colon": (OK + b"Content-Length : 0\r\n\r\n", INVALID),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", INVALID),
    "status of four digits": (b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", INVALID),
    "status below all": (b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n", INVALID),
    "interim with a body": (b"HTTP/1.1 104 Odd\r\nContent-Length: 3\r\n\r\nEVL" + WHOLE, INVALID),
    "interim in chunks": (CHUNKED.replace(b"200", b"104") + b"3\r\nEVL\r\n0\r\n\r\n" + WHOLE, INVALID),
    "chunked twice": (CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", INVALID),
    "chunked, then not": (CHUNKED[:-2] + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n", INVALID),
    "http/2.0": (b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", INVALID),
    "status beyond all": (b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", INVALID),
    "switched": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", INVALID),
    "endless header": (OK + b"x: " + b"y" * 200_000, INVALID),
    "endless headers": (OK + b"x: y\r\n" * 40_000, INVALID),
    "flood of interim answers": (b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000, INVALID),
    "endless trailers": (CHUNKED + b"0\r\n" + b"x: y\r\n" * 40_000, INVALID),
    "endless extension": (CHUNKED + b"2;" + b"x" * 200_000, INVALID),
}


@pytest.mark.parametrize(("sent", "expected"), ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("pieces", [1, 0], ids=["at once", "in pieces"])
async def test_answer(api: Api, sent: bytes, expected: tuple[int, bytes] | str, pieces: int) -> None:
    """Each answer is understood in one way or refused, however it is cut on the wire; none ends too soon."""
    step = len(sent) + 1 if pieces else max(3, len(sent) // 50)
    async with api.serving(says(*(sent[at : at + step] for at in range(0, len(sent), step)))):
        assert await outcome(api, get()) == expected


async def test_switch_that_was_not_asked_for(api: Api) -> None:
    """A 101 to a request that wanted no other protocol is no answer at all."""
    async with api.serving(says(ANSWERS["switched"][0], then_hold=True)):
        upstream = api.upstream()
        with pytest.raises(UpstreamFailure, match="invalid_answer"):
            await upstream.send(get())
        await upstream.aclose()


async def test_head_has_no_body(api: Api) -> None:
    """The answer to HEAD ends with its head, whatever length it tells."""
    async with api.serving(each(OK + b"Content-Length: 5\r\n\r\n")):
        assert await outcome(api, get("HEAD")) == (200, b"")


async def test_connection_is_used_again(api: Api) -> None:
    """Requests one after the other share a connection."""
    async with api.serving(each(WHOLE)):
        upstream = api.upstream()
        for _ in range(5):
            assert await whole(await upstream.send(get())) == b"hi"
        assert repr(upstream).endswith("open=1, idle=1)")
        await upstream.aclose()
    assert api.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE.replace(b"Content", b"Connection: close\r\nContent"),
        WHOLE + b"rubbish",
        WHOLE + WHOLE,
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    ],
    ids=["told to close", "garbage", "second answer", "http/1.0"],
)
async def test_connection_is_not_used_again(api: Api, answer: bytes) -> None:
    """After an answer that is the last, or that has something behind it, the next request dials anew."""
    async with api.serving(each(answer)):
        upstream = api.upstream()
        for _ in range(3):
            assert await whole(await upstream.send(get())) == b"hi"
        await upstream.aclose()
    assert api.connections == 3


async def test_too_long_idle(api: Api) -> None:
    """A connection that was idle for long by the wall clock, as after a suspend, is not trusted."""
    async with api.serving(each(WHOLE)):
        upstream = api.upstream()
        await whole(await upstream.send(get()))
        api.wall += 3600
        await whole(await upstream.send(get()))
        await upstream.aclose()
    assert api.connections == 2


async def test_warm_connections(api: Api) -> None:
    """Connections are there before they are asked for, and a request takes one of them."""
    async with api.serving(each(WHOLE)):
        upstream = api.upstream()
        assert await upstream.warm(3)
        assert await upstream.warm(3)
        assert repr(upstream).endswith("open=3, idle=3)")
        assert await whole(await upstream.send(get())) == b"hi"
        assert await upstream.warm(3)
        await upstream.aclose()
    assert api.connections == 3


async def test_warm_connections_are_renewed(api: Api) -> None:
    """Another connection is there before the idle one gets too old to be trusted."""
    async with api.serving(each(WHOLE)):
        upstream = api.upstream()
        await upstream.warm(1)
        api.wall += 50
        await upstream.warm(1)
        assert repr(upstream).endswith("open=2, idle=2)")
        api.wall += 10
        await whole(await upstream.send(get()))
        assert api.connections == 2
        await upstream.aclose()


async def test_no_warm_connection_to_be_had(api: Api) -> None:
    """An API that is out of reach is told by False, and nothing is raised."""
    async with api.serving(each(WHOLE)):
        pass
    assert not await api.upstream().warm(2)


async def test_warm_connection_that_was_closed(api: Api) -> None:
    """A connection that waited unused and ends before a byte of an answer says so, as one that had served."""

    async def script(reader: StreamReader, _writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with api.serving(script):
        upstream = api.upstream()
        await upstream.warm(1)
        with pytest.raises(UpstreamFailure) as caught:
            await upstream.send(get())
        assert (caught.value.kind, caught.value.stale) == ("broken_off", True)
        await upstream.aclose()


async def test_closed_after_it_served(api: Api) -> None:
    """A connection that ends before a byte of its second answer says so: it was closed while idle."""

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE)
        await reader.readuntil(b"\r\n\r\n")

    async with api.serving(script):
        upstream = api.upstream()
        await whole(await upstream.send(get()))
        with pytest.raises(UpstreamFailure) as caught:
            await upstream.send(get())
        assert (caught.value.kind, caught.value.stale) == ("broken_off", True)
        await upstream.aclose()


async def test_timeout(api: Api) -> None:
    """Silence for longer than the read timeout is a failure."""
    async with api.serving(says(OK + b"Content-Length: 9\r\n\r\nhi", then_hold=True)):
        upstream = api.upstream(read_timeout=0.2)
        answer = await upstream.send(get())
        assert await answer.chunk() == b"hi"
        with pytest.raises(UpstreamFailure, match="timeout"):
            await answer.chunk()
        await upstream.aclose()


async def test_slow_upload_is_no_silence(api: Api) -> None:
    """A client that pauses in the middle of its upload has as long as it likes."""

    async def slow() -> AsyncIterator[bytes]:
        yield b"h"
        await asyncio.sleep(0.5)  # longer than the timeout
        yield b"i"

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"hi")
        writer.write(WHOLE)

    async with api.serving(script):
        upstream = api.upstream(read_timeout=0.2)
        assert await whole(await upstream.send(post(slow(), (b"content-length", b"2")))) == b"hi"
        await upstream.aclose()


async def test_failed_handshakes_leave_nothing(api: Api) -> None:
    """A connection whose TLS handshake fails is not remembered."""

    async def no_tls(_reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(WHOLE)

    async with api.serving(no_tls):
        api.url = api.url.replace("http", "https")
        upstream = api.upstream()
        for _ in range(3):
            with pytest.raises(UpstreamFailure, match="unreachable"):
                await upstream.send(get())
        assert repr(upstream).endswith("open=0, idle=0)")
        await upstream.aclose()


async def test_answer_before_the_upload_ends(api: Api) -> None:
    """An answer that comes while the body is still being sent is had at once."""
    never = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await never.wait()

    async with api.serving(says(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno", then_hold=True)):
        upstream = api.upstream()
        answer = await upstream.send(post(endless(), (b"content-length", b"99999999")))
        assert (answer.status, await whole(answer)) == (413, b"no")
        await answer.aclose()
        assert repr(upstream).endswith("idle=0)")
        await upstream.aclose()


async def test_answer_before_the_request_is_sent(api: Api) -> None:
    """A connection that still holds most of a request, which the API never reads, takes no further one."""

    async def refuse(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE)
        await asyncio.Event().wait()

    size = 50_000_000
    upload = Request("POST", b"/", [(b"host", b"x"), (b"content-length", b"%d" % size)], bytes(size))
    async with api.serving(refuse):
        upstream = api.upstream()
        assert await whole(await upstream.send(upload)) == b"hi"
        assert await whole(await upstream.send(get())) == b"hi"
        assert api.connections == 2
        await upstream.aclose()


async def test_upload_waits_for_the_api(api: Api) -> None:
    """An API that does not read stops the reading of the client's body; giving up lets go of it."""
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(65536)

    stalled = asyncio.Event()

    async def deaf(_reader: StreamReader, writer: StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport
        await stalled.wait()

    async with api.serving(deaf):
        upstream = api.upstream()
        sending = asyncio.create_task(upstream.send(post(endless(), (b"transfer-encoding", b"chunked"))))
        await rounds(ROUNDS)
        assert 0 < taken < ROUNDS / 2
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        after = taken
        await asyncio.sleep(0)
        assert taken == after
        stalled.set()
        await upstream.aclose()


async def test_slow_client_slows_the_api(api: Api) -> None:
    """What nobody fetches is not read: the API is slowed down, and memory does not grow."""
    written = 0

    async def flood(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: 100000000\r\n\r\n")
        for _ in range(100):
            writer.write(bytes(1_000_000))
            await writer.drain()
            written += 1_000_000

    async with api.serving(flood):
        upstream = api.upstream()
        answer = await upstream.send(get())
        await rounds(ROUNDS)
        assert 0 < written < 50_000_000
        count = 0
        while (chunk := await answer.chunk()) is not None:
            count += len(chunk)
        assert count == 100_000_000
        await upstream.aclose()


class Narrow:
    """A sink that is full after each piece, until it is emptied."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.full = False
        self.emptied = asyncio.Event()

    def write(self, data: bytes) -> bool:
        assert not self.full
        self.pieces.append(data)
        self.full = True
        return False

    async def drained(self) -> None:
        await self.emptied.wait()
        self.emptied.clear()
        self.full = False


async def test_poured_into_what_is_full(api: Api) -> None:
    """While a sink is full it is given nothing, and the API is slowed down; later all arrives, in order."""
    size, written = 60_000_000, 0

    async def flood(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % size)
        while written < size:
            writer.write(written.to_bytes(4, "big") * 250_000)
            await writer.drain()
            written += 1_000_000

    async with api.serving(flood):
        upstream, sink = api.upstream(), Narrow()
        answer = await upstream.send(get())
        pouring = asyncio.create_task(answer.pour(sink))
        await rounds(ROUNDS)
        assert len(sink.pieces) == 1
        assert written < size - 10_000_000
        while not pouring.done():
            sink.emptied.set()
            await asyncio.sleep(0)
        body = b"".join(sink.pieces) + await pouring
        assert body == b"".join(n.to_bytes(4, "big") * 250_000 for n in range(0, size, 1_000_000))
        await upstream.aclose()


class Line:
    """The connection of an answer that is fed by hand."""

    patience = 5.0

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.resumed = 0

    def resume_reading(self) -> None:
        self.resumed += 1

    def switch(self) -> End:
        raise AssertionError("it speaks HTTP")

    def abort(self) -> None:
        raise AssertionError("it is whole")


async def test_full_is_full() -> None:
    """What comes before a full sink was emptied waits, and whenever something is taken more may come."""
    line, sink = Line(), Narrow()
    answer = Answer(line)
    pouring = asyncio.create_task(answer.pour(sink))
    await asyncio.sleep(0)
    for piece in (b"one", b"two", b"three"):
        answer.feed(piece)
        answer.tell()
    assert (sink.pieces, line.resumed, answer.waiting) == ([b"one"], 1, 8)
    sink.emptied.set()
    await rounds(1)
    assert (sink.pieces, line.resumed, answer.waiting) == ([b"one", b"twothree"], 2, 0)
    answer.end()
    answer.tell()
    sink.emptied.set()
    assert await pouring == b""


async def test_poured_until_it_breaks_off(api: Api) -> None:
    """A sink has what came before the answer broke off."""
    api_is_cut = asyncio.Event()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in (OK + b"Content-Length: 9\r\n\r\n", b"one", b"two"):
            writer.write(piece)
            await writer.drain()
            await rounds(1)
        api_is_cut.set()

    async with api.serving(script):
        assert await outcome(api, get()) == "truncated onetwo"
        assert api_is_cut.is_set()


async def test_client_that_goes(api: Api) -> None:
    """What the body raises is what the sender gets, and the connection is dropped."""

    async def breaks() -> AsyncIterator[bytes]:
        yield b"x"
        raise ClientGone

    async with api.serving(says(WHOLE, then_hold=True)):
        upstream = api.upstream()
        with pytest.raises(ClientGone):
            await upstream.send(post(breaks(), (b"content-length", b"5")))
        await upstream.aclose()


@pytest.mark.parametrize(
    "request_",
    [
        Request("GET\r\nX: y", b"/", [], None),
        Request("GET", b"/ HTTP/1.1\r\nx: y", [], None),
        Request("GET", b"/", [(b"x", b"y\r\nz: 1")], None),
        Request("GET", b"/", [(b"x\r\ny", b"z")], None),
        Request("GET", b"/", [(b"x", b"y\0z")], None),
        Request("GET", b"/", [(b"x", b"y\nz")], None),
    ],
)
async def test_no_request_is_two(api: Api, request_: Request) -> None:
    """Nothing in a request can end its head early."""
    async with api.serving(each(WHOLE)):
        assert await outcome(api, request_) == "bad_request"


@pytest.mark.parametrize("orderly", [True, False], ids=["closed", "reset"])
async def test_gone_before_the_switch(api: Api, orderly: bool) -> None:
    """A connection that is gone when a 101 is taken up is no end of a tunnel."""

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHING)
        await writer.drain()
        if not orderly:
            writer.transport.abort()

    async with api.serving(script):
        upstream = api.upstream()
        answer = await upstream.send(get()._replace(upgrade=True))
        with suppress(UpstreamFailure):
            assert await answer.chunk() is None
        with pytest.raises(UpstreamFailure) as caught:
            answer.switch()
        assert caught.value.kind == "truncated"
        await upstream.aclose()


@pytest.mark.parametrize(("scheme", "greet"), [("http", http_proxy), ("socks5", socks_proxy)])
async def test_egress_proxy(api: Api, scheme: str, greet: Greet) -> None:
    """Through either kind of egress proxy, with a login, the API is reached by its name."""
    asked: list[str] = []
    async with api.serving(each(WHOLE)), egress(greet, asked) as port:
        upstream = api.upstream(proxy=f"{scheme}://me:p%40ss@127.0.0.1:{port}")
        assert await whole(await upstream.send(get())) == b"hi"
        await upstream.aclose()
    assert asked == [f"me:p@ss@localhost:{api.url.split(':')[2].removesuffix('/v1')}"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nno!",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"SSH-2.0-x\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000,
    ],
    ids=["refuses", "half a head", "answers itself", "no HTTP", "hangs up", "endless"],
)
async def test_egress_proxy_that_opens_nothing(api: Api, answer: bytes) -> None:
    """What is no whole and plain opening of a tunnel gets no request through it."""
    got: list[bytes] = []

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        got.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        got.append(await reader.read())

    proxy = Api()
    async with proxy.serving(script):
        upstream = api.upstream(proxy=proxy.url.removesuffix("/v1"))
        with pytest.raises(UpstreamFailure, match="egress_refused") as caught:
            await upstream.send(get())
        await upstream.aclose()
    assert caught.value.sent is False
    assert b"".join(got[1:]) == b""


async def test_nobody_there(api: Api) -> None:
    """A port that is closed is unreachable, and nothing was sent."""
    async with api.serving(each(WHOLE)):
        pass
    upstream = api.upstream()
    with pytest.raises(UpstreamFailure, match="unreachable") as caught:
        await upstream.send(get())
    assert caught.value.sent is False
