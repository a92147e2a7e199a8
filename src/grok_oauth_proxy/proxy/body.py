"""The client's request body: read once from the connection, kept while small enough to be sent again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from grok_oauth_proxy.asgi import Receive

_KEPT_OF_ALL: Final = 32
"""Times `limit`: 256 MiB with the default."""


class ClientGone(Exception):
    """The client closed its connection; nobody waits for the answer."""


class Keep:
    """Room for bodies that may have to be sent again: up to `limit` bytes of each, `left` bytes of all."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = _KEPT_OF_ALL * limit

    def __repr__(self) -> str:
        return f"Keep(limit={self.limit}, left={self.left})"


class RequestBody:
    """What the client sends. `count`: bytes so far; `kept_whole`: whether it can be sent again.

    `whole`: all of it, if that had come with the head; else it is received. It is kept while `keep` has room.
    """

    count = 0
    kept_whole = True
    _unkept = b""
    _held = 0
    """Bytes that are kept."""

    def __init__(self, receive: Receive, *, whole: bytes | None, keep: Keep) -> None:
        self._receive = receive
        self._keep = keep
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
        """Nothing will be sent again, so nothing is kept from now on."""
        self.kept_whole = False
        self._kept.clear()
        self._keep.left += self._held
        self._held = 0

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
        if not (self.kept_whole and chunk):
            return
        if self.count > self._keep.limit or len(chunk) > self._keep.left:
            self.abandon()
        else:
            self._kept.append(chunk)
            self._held += len(chunk)
            self._keep.left -= len(chunk)
