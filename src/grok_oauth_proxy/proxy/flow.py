"""Whether a connection takes more, as its transport tells."""

from __future__ import annotations

import asyncio


class FlowControl(asyncio.Protocol):
    """The writing half of a protocol. One task at a time may wait until it is `drained`."""

    full = False
    """Enough waits to be sent; write no more for now."""
    _waiter: asyncio.Future[None] | None = None

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def drained(self) -> None:
        """Return when more may be written, or the connection is lost."""
        while self.full:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.resume_writing()
