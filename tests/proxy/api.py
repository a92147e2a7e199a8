"""An API by script, over real sockets, and what is asked of it."""

from __future__ import annotations

import asyncio
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.egress import tls_context
from grok_oauth_proxy.proxy.upstream import Answer, Request, Upstream, UpstreamFailure

Script = Callable[[StreamReader, StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Length: 2\r\n\r\nhi"


class Api:
    """Serves one script a connection, and counts the connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.url = ""
        self.tls = tls_context()
        self.wall = 1000.0

    @asynccontextmanager
    async def serving(self, script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        running: set[asyncio.Task[None]] = set()

        async def connected(reader: StreamReader, writer: StreamWriter) -> None:
            self.connections += 1
            task = asyncio.current_task()
            assert task is not None
            running.add(task)
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await script(reader, writer)
            writer.close()
            running.discard(task)

        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if tls else ''}://localhost:{port}/v1"
        async with server:
            yield
            for task in running:
                task.cancel()
            await asyncio.gather(*running)

    def upstream(
        self, *, connect_timeout: float = 5.0, read_timeout: float = 5.0, proxy: str | None = None
    ) -> Upstream:
        return Upstream(
            self.url,
            proxy=proxy,
            tls=self.tls,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            clock=Clock(wall=lambda: self.wall),
        )


def says(*pieces: bytes, then_hold: bool = False) -> Script:
    """Reads one head, then writes the pieces, and closes or holds the connection."""

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then_hold:
            await reader.read()

    return script


def each(answer: bytes) -> Script:
    """Gives the same answer to each request on a connection."""

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)

    return script


def get(method: str = "GET") -> Request:
    return Request(method, b"/v1/models", [(b"host", b"x")], None)


def post(body: AsyncIterator[bytes], *framing: tuple[bytes, bytes]) -> Request:
    return Request("POST", b"/v1/files", [(b"host", b"x"), *framing], body)


class Taken:
    """A sink that takes all."""

    full = False

    def __init__(self) -> None:
        self.body = b""

    def write(self, data: bytes) -> bool:
        self.body += data
        return True

    async def drained(self) -> None:
        raise AssertionError("it is never full")


async def whole(answer: Answer) -> bytes:
    taken = Taken()
    rest = await answer.pour(taken)
    return taken.body + rest


ROUNDS = 1000


async def rounds(number: int) -> None:
    """Wait until as many requests elsewhere were answered: whatever is not held back goes on meanwhile."""
    other = Api()
    async with other.serving(each(WHOLE)):
        upstream = other.upstream()
        for _ in range(number):
            await whole(await upstream.send(get()))
        await upstream.aclose()


async def outcome(api: Api, request: Request) -> tuple[int, bytes] | str:
    """Status and body, or the kind of the failure; `truncated after` what had come."""
    upstream = api.upstream()
    taken = Taken()
    try:
        answer = await upstream.send(request)
        taken.write(await answer.pour(taken))
    except UpstreamFailure as failure:
        return f"{failure.kind} {taken.body.decode('latin-1')}".strip()
    finally:
        await upstream.aclose()
    return answer.status, taken.body


SWITCHING = b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
