"""The client's request body: read once from the connection, kept while small enough to be sent again."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Final

from grok_oauth_proxy.asgi import Receive

_LOOK: Final = 0.25
"""Seconds between two looks at a connection that is not read, because the upload it carries has stalled."""
# Closed by the other side. Where poll does not tell it (macOS), only a reset is seen.
_HUNG_UP: Final = getattr(select, "POLLRDHUP", 0)


class ClientGone(Exception):
    """The client closed its connection; nobody waits for the answer."""


class RequestBody:
    """Streams what the client sends. `count`: bytes so far; `kept_whole`: whether it can be sent again.

    `hung_up` tells of a client that has closed its connection, without reading from it.
    """

    def __init__(self, receive: Receive, *, expected: bool, limit: int, hung_up: Callable[[], bool]) -> None:
        self._receive = receive
        self._hung_up = hung_up
        self._limit = limit
        self._kept: list[bytes] = []
        self._ended = asyncio.Event()
        if not expected:
            self._ended.set()
        self.count = 0
        self.kept_whole = True

    def __repr__(self) -> str:
        return f"RequestBody(count={self.count}, ended={self._ended.is_set()})"

    async def stream(self) -> AsyncIterator[bytes]:
        """What is kept, then what still comes. Raises `ClientGone`."""
        for chunk in list(self._kept):
            yield chunk
        while not self._ended.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            self._keep(chunk)
            if not message.get("more_body", False):
                self._ended.set()
            if chunk:
                yield chunk

    def abandon(self) -> None:
        """The answer has come: nothing will be sent again, so nothing is kept."""
        self.kept_whole = False
        self._kept.clear()
        self._limit = -1

    async def wait_gone(self) -> None:
        """Return when the client has closed its connection. Reads from it only after the body has ended."""
        while not self._ended.is_set():
            if self._hung_up():
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _LOOK)
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _keep(self, chunk: bytes) -> None:
        self.count += len(chunk)
        if self.count > self._limit:
            self.kept_whole = False
            self._kept.clear()
        elif chunk:
            self._kept.append(chunk)


def has_hung_up(transport: asyncio.Transport) -> bool:
    """Whether the other side has closed the connection, even if what it sent before is still unread."""
    if (descriptor := transport.get_extra_info("socket").fileno()) < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, _HUNG_UP)
    return bool(poll.poll(0))


async def unless_gone(body: RequestBody, work: Coroutine[None, None, None]) -> None:
    """Run `work`; cancel it at once and raise `ClientGone` when the client goes away first."""
    working = asyncio.create_task(work, name="exchange")
    watching = asyncio.create_task(body.wait_gone(), name="client-watch")
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.wait({working, watching})
    working.result()
