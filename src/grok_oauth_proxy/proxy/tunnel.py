"""Two connections that carry each other's bytes, once both sides have switched protocols.

Law: nothing of what one side sent is looked at, held back or left out; what one side does not take, the other
is not asked for; when one ends, what it sent still goes out on the other, and that ends too.
"""

from __future__ import annotations

import asyncio
import select
from typing import Final

from grok_oauth_proxy.proxy.flow import FlowControl

_LOOK: Final = 0.25
"""Seconds between two looks at a side that is not read."""


class End(asyncio.Protocol):
    """One of the two connections; `before` had it until now, and hears when it is full and when it is lost.

    `early`: what came on it and waits. `broken`: what it means if it ends without order. `full`: it takes no
    more for now. `ended`: its end has come already, in order.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        before: FlowControl,
        early: bytes,
        broken: Exception,
        *,
        full: bool,
        ended: bool = False,
    ) -> None:
        self.count = 0
        """Bytes that came on it."""
        self.full = full
        self._transport = transport
        self._before = before
        self._early = early
        self._broken = broken
        self._ended = ended
        self._looking: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None

    def attach(self, tunnel: Tunnel, other: End) -> None:
        """From now on it is told here what happens on the connection."""
        self._tunnel = tunnel
        self._other = other
        self._transport.set_protocol(self)

    def begin(self) -> None:
        """Send on what came early."""
        early, self._early = self._early, b""
        self.data_received(early)

    def regulate(self) -> None:
        """Read what the other side takes, and no more."""
        if not self._other.full:
            self._transport.resume_reading()
            return
        self._transport.pause_reading()
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self, *, within: float) -> None:
        """End it once it has taken what is left, or after so many seconds."""
        self._transport.close()
        self._closing = asyncio.get_running_loop().call_later(within, self._transport.abort)

    def _look(self) -> None:
        """While nothing is read, a reset is not told: look for it."""
        self._looking = None
        if not self._other.full or self._transport.is_closing():
            return
        if _was_reset(self._transport):
            self._transport.resume_reading()  # the rest is no more than the kernel holds; the reset follows
        else:
            self._looking = asyncio.get_running_loop().call_later(_LOOK, self._look)

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        self.count += len(data)
        self._tunnel.note_life()
        self._other.write(data)

    def pause_writing(self) -> None:
        self.full = True
        self._before.pause_writing()
        self._other.regulate()

    def resume_writing(self) -> None:
        self.full = False
        self._before.resume_writing()
        self._tunnel.note_life()
        self._other.regulate()

    def eof_received(self) -> None:
        self._ended = True
        self._tunnel.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._tunnel.end(None if self._ended and exc is None else self._broken)
        if self._closing is not None:
            self._closing.cancel()
        self._before.connection_lost(exc)


class Tunnel:
    """`patience`: seconds without a byte in either direction after which it is over.

    `linger`: seconds in which a side may then take what is left for it.
    """

    def __init__(self, client: End, api: End, *, patience: float, linger: float = 30.0) -> None:
        self._client = client
        self._api = api
        self._patience = patience
        self._linger = linger
        self._loop = asyncio.get_running_loop()
        self._active_at = self._loop.time()
        self._over: asyncio.Future[None] = self._loop.create_future()

    def __repr__(self) -> str:
        return f"Tunnel(in={self.count_in}, out={self.count_out}, {self._over})"

    @property
    def count_in(self) -> int:
        """Bytes from the client."""
        return self._client.count

    @property
    def count_out(self) -> int:
        """Bytes from the API."""
        return self._api.count

    async def carry(self) -> None:
        """Return when either side has ended; cancelled, end both.

        Raises what it means if a side broke, and `TimeoutError` when both were silent for too long.
        """
        self._client.attach(self, self._api)
        self._api.attach(self, self._client)
        for end in (self._client, self._api):
            end.begin()
        for end in (self._client, self._api):
            end.regulate()
        self._watch()
        try:
            await self._over
        finally:
            self._watchdog.cancel()
            for end in (self._client, self._api):
                end.close(within=self._linger)

    def note_life(self) -> None:
        self._active_at = self._loop.time()

    def end(self, failure: Exception | None = None) -> None:
        """Nothing more comes from one side."""
        if self._over.done():
            return
        if failure is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(failure)

    def _watch(self) -> None:
        left = self._active_at + self._patience - self._loop.time()
        if left <= 0:
            self.end(TimeoutError())
        else:
            self._watchdog = self._loop.call_later(left, self._watch)


def _was_reset(transport: asyncio.Transport) -> bool:
    """Whether the connection is broken; one whose other side has only ended may still hold what it sent."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
