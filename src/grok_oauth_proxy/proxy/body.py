"""The client's request body: read once from the connection, kept while small enough to be sent again."""

from __future__ import annotations

from collections.abc import AsyncIterator

from grok_oauth_proxy.asgi import Receive


class ClientGone(Exception):
    """The client closed its connection; nobody waits for the answer."""


class RequestBody:
    """What the client sends. `count`: bytes so far; `kept_whole`: whether it can be sent again.

    `whole`: all of it, if that had come with the head; else it is received. Up to `limit` bytes are kept.
    """

    count = 0
    kept_whole = True
    _unkept = b""

    def __init__(self, receive: Receive, *, whole: bytes | None, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._kept: list[bytes] = []
        self.ended = whole is not None
        if whole:
            self._note(whole)
            if not self.kept_whole:
                self._unkept = whole

    def __repr__(self) -> str:
        return f"RequestBody(count={self.count}, ended={self.ended})"

    def outgoing(self) -> bytes | AsyncIterator[bytes]:
        """The body as it is to be sent: in one piece if it is known already, else as it comes."""
        return b"".join(self._kept) if self.ended and self.kept_whole else self.stream()

    @property
    def whole(self) -> bytes:
        """All of it, if it has come; else nothing."""
        if not self.ended:
            return b""
        return b"".join(self._kept) if self.kept_whole else self._unkept

    async def arrive(self) -> None:
        """Wait until all of it has come, or it is too large to be kept. Raises `ClientGone`."""
        while not self.ended and self.kept_whole:
            await self._fetch()

    async def stream(self) -> AsyncIterator[bytes]:
        """What is kept, then what still comes. Raises `ClientGone`."""
        for chunk in list(self._kept):
            yield chunk
        if self._unkept:
            chunk, self._unkept = self._unkept, b""
            yield chunk
        while not self.ended:
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
        self.ended = not message.get("more_body", False)
        self._note(chunk)
        return chunk

    def _note(self, chunk: bytes) -> None:
        self.count += len(chunk)
        if self.count > self._limit:
            self.kept_whole = False
            self._kept.clear()
        elif chunk:
            self._kept.append(chunk)
