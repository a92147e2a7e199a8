"""The client's request body: read once from the connection, kept while small enough to be sent again."""

from __future__ import annotations

from collections.abc import AsyncIterator

from grok_oauth_proxy.asgi import Receive


class ClientGone(Exception):
    """The client closed its connection; nobody waits for the answer."""


class RequestBody:
    """What the client sends. `count`: bytes so far; `kept_whole`: whether it can be sent again.

    `begun`: some of it has come already, so that a look at it waits for nothing.
    """

    def __init__(self, receive: Receive, *, expected: bool, begun: bool, limit: int) -> None:
        self._receive = receive
        self._expected = expected
        self._begun = begun
        self._limit = limit
        self._kept: list[bytes] = []
        self._unkept = b""
        self._ended = not expected
        self.count = 0
        self.kept_whole = True

    def __repr__(self) -> str:
        return f"RequestBody(count={self.count}, ended={self._ended})"

    async def outgoing(self) -> bytes | AsyncIterator[bytes] | None:
        """The body as it is to be sent: whole if it is known already, else as it comes; None without one."""
        if not self._expected:
            return None
        if self._begun and not (self._ended or self.count):
            first = await self._fetch()
            if not self.kept_whole:
                self._unkept = first
        if self._ended and self.kept_whole:
            return b"".join(self._kept)
        return self.stream()

    async def stream(self) -> AsyncIterator[bytes]:
        """What is kept, then what still comes. Raises `ClientGone`."""
        for chunk in list(self._kept):
            yield chunk
        if self._unkept:
            chunk, self._unkept = self._unkept, b""
            yield chunk
        while not self._ended:
            if chunk := await self._fetch():
                yield chunk

    def abandon(self) -> None:
        """The answer has come: nothing will be sent again, so nothing is kept."""
        self.kept_whole = False
        self._kept.clear()
        self._limit = -1

    async def _fetch(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        self._ended = not message.get("more_body", False)
        self.count += len(chunk)
        if self.count > self._limit:
            self.kept_whole = False
            self._kept.clear()
        elif chunk:
            self._kept.append(chunk)
        return chunk
