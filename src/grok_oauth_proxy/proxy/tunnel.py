"""Two connections that carry each other's bytes, once both sides have switched protocols.

Law: nothing of what one side sent is looked at, held back or left out; what one side does not take, the other
is not asked for; when one ends, what it sent still goes out on the other, and that ends too.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Side(Protocol):
    """One of the connections: see `http1.connection` and `proxy.upstream.connection`."""

    def write(self, data: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...


class Tunnel:
    """`count_in` and `count_out`: bytes from the client and to it. Each side calls what is named after it."""

    def __init__(self, client: Side, api: Side) -> None:
        self.count_in = self.count_out = 0
        self._client = client
        self._api = api
        self._over = asyncio.Event()

    def __repr__(self) -> str:
        return f"Tunnel(in={self.count_in}, out={self.count_out}, over={self._over.is_set()})"

    async def carry(self) -> None:
        """Return when either side has ended; cancelled, end both."""
        self._client.resume_reading()
        self._api.resume_reading()
        try:
            await self._over.wait()
        finally:
            self.ended()

    def ended(self) -> None:
        """Either side is gone."""
        self._client.close()
        self._api.close()
        self._over.set()

    def from_client(self, data: bytes) -> None:
        self.count_in += len(data)
        self._api.write(data)

    def from_api(self, data: bytes) -> None:
        self.count_out += len(data)
        self._client.write(data)

    def client_full(self, full: bool) -> None:
        """The client takes no more, or takes more again."""
        _let(self._api, read=not full)

    def api_full(self, full: bool) -> None:
        """The API takes no more, or takes more again."""
        _let(self._client, read=not full)


def _let(side: Side, *, read: bool) -> None:
    if read:
        side.resume_reading()
    else:
        side.pause_reading()
