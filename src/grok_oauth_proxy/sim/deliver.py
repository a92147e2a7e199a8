"""Putting a reply on the wire the way the request's directives ask for."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from grok_oauth_proxy.sim.directives import Directives
from grok_oauth_proxy.sim.exchange import Exchange
from grok_oauth_proxy.sim.reply import Header, Reply

SPLIT_BYTES = 7
BODILESS = (204, 304)


async def deliver(exchange: Exchange, reply: Reply, directives: Directives, chunk_delay: float) -> None:
    """Send `reply`, or as much of it as the directives allow; `chunk_delay` in seconds, for paced replies."""
    if directives.cut == "head":
        exchange.abort()
    elif directives.cut == "length":
        await _promise_too_much(exchange, reply)
    elif directives.cut or directives.hang:
        await _send_part(exchange, reply, directives)
    elif reply.chunks is not None:
        await _send_chunks(exchange, reply, directives, chunk_delay)
    else:
        await _send_whole(exchange, coded(reply, _coding(exchange, directives)))


def _coding(exchange: Exchange, directives: Directives) -> str | None:
    accepted = b",".join(value for name, value in exchange.headers if name == b"accept-encoding")
    if directives.br and b"br" in accepted:
        return "br"
    return "gzip" if directives.gzip else None


def coded(reply: Reply, coding: str | None) -> Reply:
    """`reply` with its body in this content coding, if that is JSON."""
    if coding is None or reply.content_type != "application/json" or not reply.body:
        return reply
    headers = (*reply.headers, (b"content-encoding", coding.encode()), (b"vary", b"accept-encoding"))
    body = gzip.compress(reply.body, mtime=0) if coding == "gzip" else _brotli(reply.body)
    return replace(reply, body=body, headers=headers)


def _brotli(data: bytes) -> bytes:
    """A Brotli stream of at most 64 KiB, stored (RFC 7932 §9.2): a window of 16 bits, one block, the end."""
    return ((len(data) - 1) << 4 | 1 << 20).to_bytes(3, "little") + data + b"\x03"


def head(reply: Reply, *framing: Header) -> list[Header]:
    """The response headers: type, the reply's own, then framing."""
    kind = [(b"content-type", reply.content_type.encode())] if reply.content_type else []
    return [*kind, *reply.headers, *framing]


async def _send_whole(exchange: Exchange, reply: Reply) -> None:
    if reply.status in BODILESS:
        await exchange.start(reply.status, list(reply.headers))
        await exchange.write(b"", last=True)
        return
    await exchange.start(reply.status, head(reply, (b"content-length", b"%d" % len(reply.body))))
    await exchange.write(reply.body, last=True)


async def _send_chunks(exchange: Exchange, reply: Reply, directives: Directives, chunk_delay: float) -> None:
    await exchange.start(reply.status, head(reply))
    for number, chunk in enumerate(reply.chunks or ()):
        if number and reply.paced:
            await asyncio.sleep(chunk_delay)
        for piece in _pieces(chunk, "split" in directives.sse):
            await exchange.write(piece)
    await exchange.write(b"", last=True)


async def _send_part(exchange: Exchange, reply: Reply, directives: Directives) -> None:
    """The head and a first part of the body; then the end of the connection, or silence."""
    chunks = list(reply.chunks) if reply.chunks is not None else _halves(reply.body)
    await exchange.start(reply.status, head(reply))
    for chunk in islice(chunks, 1 if directives.hang else (len(chunks) + 1) // 2):
        await exchange.write(chunk)
    if directives.hang:
        await asyncio.Event().wait()
    exchange.close()


async def _promise_too_much(exchange: Exchange, reply: Reply) -> None:
    body = reply.body if reply.chunks is None else b"".join(reply.chunks)
    await exchange.start(reply.status, head(reply, (b"content-length", b"%d" % (len(body) + 1))))
    await exchange.write(body[: len(body) // 2])
    exchange.close()


def _halves(body: bytes) -> list[bytes]:
    middle = len(body) // 2
    return [body[:middle], body[middle:]]


def _pieces(chunk: bytes, split: bool) -> Iterable[bytes]:
    return _slices(chunk) if split else (chunk,)


def _slices(chunk: bytes) -> Iterator[bytes]:
    for start in range(0, len(chunk), SPLIT_BYTES):
        yield chunk[start : start + SPLIT_BYTES]
