"""The server: when it is ready, and how it ends. uvicorn runs it; `http1/` reads the requests."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

import uvicorn

from grok_oauth_proxy.asgi import Application
from grok_oauth_proxy.events import DrainStarted, Observer
from grok_oauth_proxy.http1.connection import Connection
from grok_oauth_proxy.http1.crowd import Crowd, Limits

_LOOK_EVERY: Final = 0.05
_ON_THE_WAY: Final = 1.0
"""Seconds in which a request may still come over a connection that was open when the end began."""


class Server(uvicorn.Server):
    """Ends with exit code 0 on SIGTERM, SIGINT and SIGHUP; open answers get `drain` seconds, or none once it
    is told again.

    `tls`: what is spoken on all sockets but Unix ones, None for plain HTTP.
    """

    def __init__(
        self,
        app: Application,
        observer: Observer,
        *,
        limits: Limits,
        tls: ssl.SSLContext | None,
        drain: float,
        on_ready: Callable[[], object],
        on_end: Callable[[], object],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                interface="asgi3",  # told, because the application need not be a coroutine function
                http=partial(Connection, observer, Crowd(limits), tls),  # type: ignore[arg-type]  # called like a class
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
            )
        )
        self._observer = observer
        self._drain = drain
        self._on_ready = on_ready
        self._on_end = on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Never removed: a second signal must not kill a refresh that is waited for on the way out.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._end)
        yield

    def _end(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and let what was accepted be answered.

        A connection that is open may ask once more, for a moment and for as long as another is answered.
        """
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()
        self._on_end()
        state = self.server_state
        self._observer(DrainStarted(len(state.tasks), self._drain))
        for connection in list(state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain):
                closing_time = asyncio.get_running_loop().time() + _ON_THE_WAY
                await self._until(
                    lambda: (
                        not state.connections
                        or (not state.tasks and asyncio.get_running_loop().time() > closing_time)
                    )
                )
                for connection in list(state.connections):
                    connection.close()  # type: ignore[union-attr]  # ours, not uvicorn's
                await self._until(lambda: not state.connections)  # what was answered has left
        if open_answers := list(state.tasks):
            for task in open_answers:
                task.cancel()
            await asyncio.wait(open_answers)

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Or until there is no time any more. uvicorn's sets of what is open tell nobody when they change."""
        while not (self.force_exit or holds()):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY)
