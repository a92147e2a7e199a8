"""300 event streams at 50 chunks a second: a source that stamps its chunks, and a reader that looks at them.

Both run as processes of their own: `python -m scripts.benchmark.streams source|read …`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from urllib.parse import urlsplit

import uvloop

PACE = 0.02
_PADDING = "x" * 150


async def source(port: int, certificate: str) -> None:
    """Streams to whoever asks, each chunk with the time it was written, until ended."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    streams: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), b":0"
        )
        await reader.readexactly(int(length.split(b":")[1]))
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        streams.add(writer)
        await reader.read()
        streams.discard(writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port, ssl=context):
        slices = 10
        while True:
            # The streams are served in slices, so that chunks come spread over the time, not in bursts.
            for number in range(slices):
                began = time.monotonic()
                for at, writer in enumerate(list(streams)):
                    if at % slices == number and not writer.is_closing():
                        event = f'data: {{"t":{time.monotonic_ns()},"text":"{_PADDING}"}}\n\n'.encode()
                        writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await asyncio.sleep(max(0.0, PACE / slices - (time.monotonic() - began)))


async def read(url: str, count: int, seconds: float, authority: str) -> None:
    """Read `count` streams for `seconds`; print the chunks and their delays in ms as JSON."""
    parts = urlsplit(url)
    context = ssl.create_default_context(cafile=authority) if parts.scheme == "https" else None
    delays: list[float] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
        writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n\r\n")
        status = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in status:
            raise ConnectionError(status)
        try:
            while True:
                line = await reader.readuntil(b"\n")
                if line.startswith(b'data: {"t":'):
                    now = time.monotonic_ns()
                    delays.append((now - int(line[11 : line.index(b",")])) / 1e6)
        finally:
            writer.close()

    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(0.002)
    await asyncio.sleep(1)
    broken = sum(task.done() for task in tasks)
    delays.clear()
    print("steady", flush=True)
    await asyncio.sleep(seconds)
    taken = sorted(delays)
    for task in tasks:
        broken += task.done()
        task.cancel()
    await asyncio.wait(tasks)
    print(
        json.dumps(
            {"chunks": len(taken), "p50_ms": at(taken, 0.5), "p99_ms": at(taken, 0.99), "broken": broken}
        )
    )


def at(taken: list[float], share: float) -> float:
    """The value below which this share of the sorted values lies."""
    return taken[int(len(taken) * share)] if taken else float("nan")


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    if role == "source":
        uvloop.run(source(int(rest[0]), rest[1]))
    else:
        uvloop.run(read(rest[0], int(rest[1]), float(rest[2]), rest[3]))
