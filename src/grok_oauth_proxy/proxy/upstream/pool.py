"""The connections to the API that are open, and which of them takes the next request."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, Protocol
from urllib.parse import urlsplit

from grok_oauth_proxy.clock import Clock
from grok_oauth_proxy.proxy.upstream.answer import Answer
from grok_oauth_proxy.proxy.upstream.connection import Connection
from grok_oauth_proxy.proxy.upstream.dial import Dialer
from grok_oauth_proxy.proxy.upstream.message import Request, UpstreamFailure

_MAX_IDLE: Final = 1024
_MAX_IDLE_SECONDS: Final = 55.0
_RENEWED_BEFORE: Final = 10.0
"""Seconds before the end of an idle connection from which on another one is wanted in its place."""
_SWEEP_EVERY: Final = 5.0


class Api(Protocol):
    """Who asks the API: `Upstream`, or something around it."""

    host: bytes
    base_path: bytes
    context: bool

    async def send(self, request: Request, /) -> Answer: ...


class Upstream:
    """Keep-alive connections to one origin, the one used last first. `base_url` has no trailing slash.
    `context`: it gets the clients' trace context.

    No upper bound on busy ones: a stream may last an hour, and the next request must not wait for it.
    """

    def __init__(
        self,
        base_url: str,
        *,
        proxy: str | None,
        tls: ssl.SSLContext,
        connect_timeout: float,
        read_timeout: float,
        clock: Clock,
        context: bool = False,
    ) -> None:
        self.context = context
        parts = urlsplit(base_url)
        self.host = parts.netloc.encode("ascii")
        self.base_path = parts.path.encode("ascii")
        self._dialer = Dialer(base_url, proxy=proxy, tls=tls, timeout=connect_timeout)
        self._read_timeout = read_timeout
        self._clock = clock
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"Upstream({self.host.decode()}, open={len(self._open)}, idle={len(self._idle)})"

    async def send(self, request: Request) -> Answer:
        """Send it and wait for the head of the answer; raises `UpstreamFailure`, or what its body raises."""
        head = request.head()
        connection = self._take_idle() or await self._dial()
        is_first = connection.served == 0
        answer = connection.ask(request, head)
        try:
            while not answer.status:
                await answer.news()
        except BaseException:
            await answer.aclose()
            raise
        if is_first and (tls := connection.tls) is not None:
            self._dialer.learn(tls)
            tls.trim()
        return answer

    async def warm(self, count: int) -> bool:
        """Dial until `count` connections wait for a request; False if that can't be had now."""
        while not self._closed and sum(map(self._is_young, self._idle)) < count:
            try:
                connection = await self._dial()
            except UpstreamFailure:
                return False
            self._put_back(connection)
        return True

    async def aclose(self) -> None:
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._open):
            connection.abort()

    async def _dial(self) -> Connection:
        connection = await self._dialer.dial(self._new_connection)
        if not connection.usable:
            raise UpstreamFailure("broken_off", sent=False, stale=True)
        self._open.add(connection)
        return connection

    def _new_connection(self) -> Connection:
        return Connection(self._put_back, self._forget, patience=self._read_timeout)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and self._is_fresh(connection):
                return connection
            connection.close()
        return None

    def _is_fresh(self, connection: Connection) -> bool:
        return self._age(connection) < _MAX_IDLE_SECONDS

    def _is_young(self, connection: Connection) -> bool:
        return connection.usable and self._age(connection) < _MAX_IDLE_SECONDS - _RENEWED_BEFORE

    def _age(self, connection: Connection) -> float:
        """By the wall clock: while the machine sleeps, the monotonic one may stand still."""
        return abs(self._clock.wall() - connection.idle_since)

    def _put_back(self, connection: Connection) -> None:
        if self._closed or len(self._idle) >= _MAX_IDLE:
            connection.close()
            return
        connection.idle_since = self._clock.wall()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_EVERY, self._sweep)

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """Close what has been idle for so long that the API may be about to."""
        for connection in [connection for connection in self._idle if not self._is_fresh(connection)]:
            self._idle.remove(connection)
            if connection.served == 0 and (tls := connection.tls) is not None:
                self._dialer.learn(tls)
            connection.close()
        again = asyncio.get_running_loop().call_later(_SWEEP_EVERY, self._sweep) if self._idle else None
        self._sweeper = again
