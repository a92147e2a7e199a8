"""Thousands of answers, well and badly formed, read by our upstream and by aiohttp as the oracle."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.egress import tls_context
from grok_oauth_proxy.proxy.upstream import Request, Upstream, UpstreamFailure

EXAMPLES = 400
NAMES = ("content-type", "x-request-id", "x-a", "etag", "server", "retry-after")
VALUE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)


@dataclass
class Sent:
    """What the API writes for one request before it closes the connection, and what that means."""

    method: str
    raw: bytes
    pieces: list[int]
    status: int
    body: bytes | None
    """What a reader must take for the body; None: it is not whole."""
    surplus: bool
    """Something follows that belongs to no answer."""


@st.composite
def framed(draw: st.DrawFn, body: bytes) -> tuple[list[bytes], bytes, bytes | None, bool]:
    """Header lines, the bytes behind the head, what they mean (a body, or None), and whether more follows."""
    kind = draw(st.sampled_from(["length", "surplus", "missing", "chunked", "unended", "close"]))
    if kind in ("length", "surplus"):
        extra = draw(st.binary(min_size=1, max_size=9)) if kind == "surplus" else b""
        return [b"Content-Length: %d" % len(body)], body + extra, body, bool(extra)
    if kind == "missing":
        return [b"Content-Length: %d" % (len(body) + draw(st.integers(1, 999)))], body, None, False
    if kind == "close":
        return [], body, body, False
    size = draw(st.integers(1, 500))
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    extension = draw(st.sampled_from([b"", b";a=b", b";x"]))
    data = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    if kind == "unended":
        return [b"Transfer-Encoding: chunked"], data, None, False
    trailers = draw(st.sampled_from([b"", b"x-t: 1\r\n"]))
    return [b"Transfer-Encoding: chunked"], data + b"0\r\n" + trailers + b"\r\n", body, False


@st.composite
def answers(draw: st.DrawFn) -> Sent:
    method = draw(st.sampled_from(["GET", "GET", "GET", "HEAD", "DELETE"]))
    status = draw(st.sampled_from([200, 200, 200, 201, 206, 204, 304, 404, 429, 503, 599]))
    headers = [
        f"{draw(st.sampled_from(NAMES))}: {value.strip()}".encode("latin-1")
        for value in draw(st.lists(VALUE, max_size=4))
    ]
    lines, behind, body, surplus = draw(framed(draw(st.binary(max_size=1500))))
    if method == "HEAD" or status in (204, 304):
        lines, behind, body, surplus = [], b"", b"", False
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"]))
    reason = draw(st.sampled_from([b" OK", b" A longer one", b" "]))
    head = b"\r\n".join([b"HTTP/1.1 %d%b" % (status, reason), *headers, *lines, b"", b""])
    pieces = draw(st.lists(st.integers(1, 400), max_size=6))
    return Sent(method, interim + head + behind, pieces, status, body, surplus)


@dataclass
class Bench:
    """One API that answers as it is told, and both clients."""

    runner: asyncio.Runner = field(default_factory=lambda: asyncio.Runner(loop_factory=uvloop.new_event_loop))
    sent: Sent | None = None
    url: str = ""

    async def open(self) -> None:
        self.server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"
        self.session = aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())

    async def close(self) -> None:
        await self.session.close()
        self.server.close()
        await self.server.wait_closed()

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        assert self.sent is not None
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            rest = self.sent.raw
            for size in self.sent.pieces:
                writer.write(rest[:size])
                rest = rest[size:]
                await asyncio.sleep(0)
            writer.write(rest)
            await writer.drain()
        writer.close()

    async def ours(self, method: str) -> tuple[int, list[tuple[bytes, bytes]], bytes | None]:
        upstream = Upstream(
            self.url, proxy=None, tls=TLS, connect_timeout=5, read_timeout=5, clock=Clock(wall=lambda: 0.0)
        )
        body: bytes | None = b""
        answer = None
        try:
            answer = await upstream.send(Request(method, b"/v1/x", [(b"host", b"x")], None))
            while (chunk := await answer.chunk()) is not None:
                body = (body or b"") + chunk
        except UpstreamFailure:
            body = None
        await upstream.aclose()
        return (answer.status, answer.headers, body) if answer else (0, [], None)

    async def oracle(self, method: str) -> tuple[int, list[tuple[bytes, bytes]], bytes | None]:
        try:
            async with self.session.request(method, self.url, allow_redirects=False) as answer:
                headers = [(name.lower(), value) for name, value in answer.raw_headers]
                try:
                    return answer.status, headers, await answer.read()
                except aiohttp.ClientPayloadError:
                    return answer.status, headers, None
        except aiohttp.ClientError:
            return 0, [], None


TLS = tls_context()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    with bench.runner:
        bench.runner.run(bench.open())
        yield bench
        bench.runner.run(bench.close())


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(sent=answers())
def test_as_the_oracle_reads_it(bench: Bench, sent: Sent) -> None:
    """Status, headers, body and ending are what aiohttp makes of the same bytes, and what was meant."""
    bench.sent = sent
    status, headers, body = bench.runner.run(bench.ours(sent.method))
    assert (status, body) == (sent.status, sent.body)
    oracle = bench.runner.run(bench.oracle(sent.method))
    # With rubbish behind an answer, aiohttp gives up an answer that was whole, if both come at once.
    assert (status, headers, body) == oracle or (sent.surplus and oracle[2] is None)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(sent=answers(), data=st.data())
def test_cut_anywhere(bench: Bench, sent: Sent, data: Any) -> None:
    """Cut off at any byte, an answer is read as aiohttp reads it, and never taken for whole if it is not."""
    cut = data.draw(st.integers(0, len(sent.raw)))
    whole = Sent(sent.method, sent.raw[:cut], sent.pieces, sent.status, sent.body, sent.surplus)
    bench.sent = whole
    ours = bench.runner.run(bench.ours(sent.method))
    oracle = bench.runner.run(bench.oracle(sent.method))
    if sent.surplus and oracle[2] is None:
        assert ours[2] in (None, sent.body)
    elif oracle[2] is None:
        assert ours[2] is None
        assert ours[0] in (oracle[0], 0)
    else:
        # The oracle is content with an end before the last CRLF of the chunks.
        assert ours == oracle or ours == (*oracle[:2], None)
