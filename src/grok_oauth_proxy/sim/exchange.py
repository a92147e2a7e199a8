"""One request and its answer on the wire, down to the TCP connection.

The law: the body is read before the answer begins (except when asked to be early), and from then on one task
alone waits for the client to go away.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from grok_oauth_proxy.sim.reply import Header


class ClientGoneError(Exception):
    """The client closed the connection before its answer ended."""


@dataclass
class Record:
    """What is remembered of a request; `status` None means no head was sent."""

    method: str
    target: str
    headers: list[list[str]]
    bearer_serial: int | None
    body_length: int | None = None
    body_sha256: str | None = None
    status: int | None = None
    aborted: bool = False


def target_of(scope: Scope) -> str:
    """The request target exactly as received, as latin-1 text; connection.py keeps it."""
    target: bytes = scope["state"]["target"]
    return target.decode("latin-1")


class Exchange:
    """The ASGI triple of one request, with the connection behind it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, on_settled: Callable[[], None]) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.target = target_of(scope)
        self.headers: list[Header] = list(scope["headers"])
        self.record: Record | None = None
        self._receive, self._send = receive, send
        self._on_settled: Callable[[], None] | None = on_settled
        self._finished = False
        self._closing = False

    def __repr__(self) -> str:
        return f"<Exchange {self.method} {self.target} finished={self._finished} closing={self._closing}>"

    async def body(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises ClientGoneError if it does not arrive whole."""
        length, digest = 0, hashlib.sha256()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            data: bytes = message.get("body", b"")
            length += len(data)
            digest.update(data)
            if data:
                yield data
            if not message.get("more_body", False):
                break
        if self.record:
            self.record.body_length, self.record.body_sha256 = length, digest.hexdigest()

    async def while_connected(self, work: Coroutine[object, object, None]) -> None:
        """Run `work`; cancel it and raise ClientGoneError when the client goes away first."""
        task = asyncio.create_task(work, name="sim-answer")
        watch = asyncio.create_task(self._disconnected(), name="sim-watch")
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done() and not (self._finished or self._closing):
                raise ClientGoneError
            await task
            if self._closing:
                await watch
        finally:
            for pending in (task, watch):
                pending.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: list[Header]) -> None:
        """Send the head."""
        if self.record:
            self.record.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of the body."""
        if last:
            self.settle()
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        if last:
            self._finished = True

    def settle(self) -> None:
        """Report once that this request is over, before the last byte: whoever reads that may ask at once."""
        report, self._on_settled = self._on_settled, None
        if report:
            report()

    def close(self) -> None:
        """Close the connection once everything written so far has left."""
        self._closing = True
        self.settle()
        self.scope["state"]["transport"].close()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._closing = True
        self.settle()
        self.scope["state"]["transport"].abort()
