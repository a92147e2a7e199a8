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
from uvicorn.server import ServerState

from grok_oauth_proxy.asgi import Application
from grok_oauth_proxy.events import DrainStarted, Observer
from grok_oauth_proxy.http1.connection import Connection
from grok_oauth_proxy.http1.crowd import Bounds, Crowd

_LOOK_EVERY: Final = 0.05
_ON_THE_WAY: Final = 1.0
"""Seconds in which a request may still come over a connection whose last answer did not tell of the end."""


class _Quiet:
    """Whether no connection is open, or nothing was answered for as long as a request may be on its way."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._answered = -1
        self._quiet_since = 0.0

    def __call__(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._state.tasks or self._state.total_requests != self._answered:
            self._answered, self._quiet_since = self._state.total_requests, now
        return not self._state.connections or now - self._quiet_since > _ON_THE_WAY


def _next_in(queue: socket.socket) -> socket.socket | None:
    """Who waits there to be accepted, if anybody does who can be."""
    while True:
        try:
            return queue.accept()[0]
        except ConnectionAbortedError:
            continue  # he has given up
        except OSError:
            return None


class Server(uvicorn.Server):
    """Ends with exit code 0 on SIGTERM and SIGINT; open answers get `drain()` seconds, or none once it is
    told again. SIGHUP is answered by `on_hangup`, or ends it too, and is never such a second time: a shell
    whose terminal is closed sends it, and once that has ended, the system does.

    `tls`: what is spoken on all sockets but Unix ones, None for plain HTTP.
    """

    def __init__(
        self,
        app: Application,
        observer: Observer,
        *,
        bounds: Bounds,
        tls: ssl.SSLContext | None,
        drain: Callable[[], float],
        on_ready: Callable[[], object],
        on_end: Callable[[], object],
        on_hangup: Callable[[], object] | None,
    ) -> None:
        self._connection = partial(Connection, observer, Crowd(bounds), tls)
        super().__init__(
            uvicorn.Config(
                app,
                interface="asgi3",  # told, because the application need not be a coroutine function
                http=self._connection,  # type: ignore[arg-type]  # called like a class
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
        self._on_hangup = on_hangup or self._hang_up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Never removed: a second signal must not kill a refresh that is waited for on the way out.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        yield

    def _end(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    def _hang_up(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and let what was accepted be answered.

        A connection that is open may ask once more, for as long as another is answered and a moment longer.
        """
        await self._stop_listening(sockets or [])
        self._on_end()
        state = self.server_state
        drain = self._drain()
        self._observer(DrainStarted(len(state.tasks), drain))
        for connection in list(state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain):
                await self._until(_Quiet(state))
                if not self.force_exit:  # else answers are open, whose cut must not look like their end
                    for connection in list(state.connections):
                        connection.close()  # type: ignore[union-attr]  # ours, not uvicorn's
                await self._until(lambda: not state.connections)  # what was answered has left
        if open_answers := list(state.tasks):
            for task in open_answers:
                task.cancel()
            await asyncio.wait(open_answers)

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Those who wait to be accepted are: closing a socket resets the connections in its queue."""
        queues = [sock.dup() for sock in sockets]
        for server in self.servers:
            server.close()
        for sock in sockets:
            sock.close()
        loop = asyncio.get_running_loop()
        protocol = partial(self._connection, self.config, self.server_state, self.lifespan.state)
        for queue in queues:
            with queue:
                queue.setblocking(False)
                while (waiting := _next_in(queue)) is not None:
                    await loop.connect_accepted_socket(protocol, waiting)

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Or until there is no time any more. uvicorn's sets of what is open tell nobody when they change."""
        while not (self.force_exit or holds()):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_EVERY)
