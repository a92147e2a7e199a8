"""Many streams for minutes, with faults on both sides: `scripts/soak [--streams N] [--seconds S]`.

The API ends some streams by a reset or in the middle of a chunk, and pauses in others; some clients are slow
and some leave. Every stream must be whole, or show that it is not; in the end the proxy must hold no more
descriptors, tasks and memory than before, and nothing in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import ssl
import sys
import tempfile
import time
from asyncio import StreamReader, StreamWriter
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import uvloop

from scripts.benchmark.stage import Stage, Target, free_port

FAULTS = {"whole": 70, "pause": 10, "reset": 10, "cut": 10}
"""What the API does, and how often of a hundred."""
MANNERS = {"reads": 80, "dawdles": 10, "leaves": 10}
"""What the client does."""
EVENTS = 100
PACE = 0.05
_EVENT = b"data: " + b"x" * 180 + b"\n\n"
_UNTIL_IDLE = 65
"""Seconds after which no idle connection is kept any more."""
_MORE_MEMORY = 1.1
"""How much more may be resident afterwards: the allocator does not lay the same things out twice."""
_LAST = b"data: [DONE]\n\n"


async def source(port: int, certificate: str) -> None:
    """Streams `EVENTS` events for GET /v1/<fault>, or fails at it as its name says."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fault = head.split(b" ")[1].rsplit(b"/", 1)[1].decode()
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                breaks_at = random.randrange(EVENTS) if fault in ("reset", "cut", "pause") else -1
                for number in range(EVENTS):
                    if number == breaks_at and not await fail(writer, fault):
                        return
                    writer.write(b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT))
                    await writer.drain()
                    await asyncio.sleep(PACE)
                writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_LAST), _LAST))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port, ssl=context, backlog=2048) as server:
        await server.serve_forever()


async def fail(writer: StreamWriter, fault: str) -> bool:
    """Do what `fault` says; False when the connection has ended by it."""
    if fault == "pause":
        await asyncio.sleep(random.uniform(1, 10))
        return True
    if fault == "cut":
        writer.write(b"%x\r\n%b" % (len(_EVENT), _EVENT[:50]))
        writer.close()
    else:
        writer.transport.abort()
    return False


async def one_stream(host: str, port: int, fault: str, manner: str) -> str:
    """How it ended for the client: whole, truncated, left, or what should not be."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 14)
    received = b""
    try:
        writer.write(f"GET /v1/{fault} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        while data := await asyncio.wait_for(reader.read(4096), 60):
            received = received[-64:] + data
            if manner == "dawdles":
                await asyncio.sleep(1)
            elif manner == "leaves" and random.random() < 0.05:
                return "left"
    except ConnectionError:
        return "truncated"
    except TimeoutError:
        return "hung"
    finally:
        writer.close()
    return "whole" if received.endswith(_LAST + b"\r\n0\r\n\r\n") else "truncated"


def is_right(fault: str, manner: str, ended: str) -> bool:
    if ended == "left":
        return manner == "leaves"
    return ended == ("truncated" if fault in ("reset", "cut") else "whole")


async def load(url: str, streams: int, seconds: float) -> Counter[tuple[str, str, str]]:
    parts, until = urlsplit(url), time.monotonic() + seconds
    ended: Counter[tuple[str, str, str]] = Counter()

    async def client() -> None:
        await asyncio.sleep(random.uniform(0, 5))
        while time.monotonic() < until:
            (fault,) = random.choices(list(FAULTS), list(FAULTS.values()))
            (manner,) = random.choices(list(MANNERS), list(MANNERS.values()))
            how = await one_stream(parts.hostname or "", parts.port or 0, fault, manner)
            ended[fault, manner, how] += 1

    await asyncio.gather(*(client() for _ in range(streams)))
    return ended


class Held(NamedTuple):
    """What the proxy holds; `resident` in MB."""

    descriptors: int
    tasks: int
    resident: float


def held(target: Target, told: Path) -> Held:
    assert target.process is not None  # noqa: S101 - ours has one
    pid = target.process.pid
    told.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    while not told.exists() or not (tasks := told.read_text()):
        time.sleep(0.01)
    descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Held(descriptors, int(tasks), target.resident_bytes() / 1e6)


def in_flight(url: str) -> float:
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return float(text.split("\nproxy_requests_in_flight ")[1].split("\n")[0]) - 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--source", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.source:
        uvloop.run(source(int(arguments.source[0]), arguments.source[1]))
        return
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "scripts.benchmark.soak",
            "--source",
            str(port),
            str(stage.certificate),
        ]
        far = stage.start("source", command, f"https://localhost:{port}", PYTHONPATH=str(Path.cwd()))
        told = Path(folder) / "tasks"
        counted = ("scripts.benchmark.counted",)
        ours = stage.ours(
            far.url,
            stage.issuer(),
            entry=counted,
            PYTHONPATH=str(Path.cwd()),
            TASKS_FILE=str(told),
            PROXY_MAX_STREAMS="0",
            PROXY_MAX_REQUESTS="0",
        )
        # What is only ever made once is there afterwards, the allocator's room for so many streams above all.
        uvloop.run(load(ours.url, arguments.streams, arguments.seconds / 10))
        time.sleep(_UNTIL_IDLE)
        before = held(ours, told)
        ended = uvloop.run(load(ours.url, arguments.streams, arguments.seconds))
        time.sleep(_UNTIL_IDLE)
        after = held(ours, told)
        flying = in_flight(ours.url)
    wrong = {how: count for how, count in ended.items() if not is_right(*how)}
    print(f"{sum(ended.values())} streams: {Counter(how for _, _, how in ended.elements())}")
    print(f"ended as they should not: {wrong or 'none'}")
    print(f"in flight afterwards: {flying:.0f}")
    for name, then, now in zip(Held._fields, before, after, strict=True):
        print(f"{name}: {then:.0f} before, {now:.0f} after")
    more = (
        after.descriptors > before.descriptors + 5
        or after.tasks > before.tasks
        or after.resident > before.resident * _MORE_MEMORY
    )
    sys.exit(bool(wrong or flying or more))


if __name__ == "__main__":
    main()
