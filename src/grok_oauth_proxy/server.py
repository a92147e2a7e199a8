"""The listening side: which port, and when to stop. uvicorn runs it; `http1/` reads the requests."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import uvicorn

from grok_oauth_proxy.asgi import Application
from grok_oauth_proxy.errors import ConfigurationError, StartRefused
from grok_oauth_proxy.events import Observer
from grok_oauth_proxy.http1.connection import Connection

FURTHER_PORTS: Final = 20
_DRAIN = 30


class Server(uvicorn.Server):
    """Ends with exit code 0 on SIGTERM, SIGINT and SIGHUP, and says when it listens."""

    def __init__(self, app: Application, observer: Observer, *, on_ready: Callable[[], object]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                interface="asgi3",  # told, because the application need not be a coroutine function
                http=partial(Connection, observer),  # type: ignore[arg-type]  # called like a class
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=_DRAIN,
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Never removed: a second signal must not kill a refresh that is waited for on the way out.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on `port` or one of the next 20 that is free (0: any).

    Raises `ConfigurationError` when the host means nothing, `StartRefused` when it cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):  # the second from a label that IDNA can't encode
        raise ConfigurationError(f"PROXY_HOST {host!r} is not an address of this machine.") from None
    last = min(port + FURTHER_PORTS, 65535) if port else 0
    for candidate in range(port, last + 1):
        if (sock := _try_to_listen(family, (address[0], candidate))) is not None:
            return sock
    raise StartRefused(
        f"Ports {port} to {last} on {host} are all in use. End what uses them, or set PROXY_PORT.",
        code="no_free_port",
    )


def _try_to_listen(family: int, address: tuple[Any, int]) -> socket.socket | None:
    # With the protocol named, asyncio turns Nagle's algorithm off; without it each answer may wait 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise StartRefused(
            f"Cannot listen on {address[0]} port {address[1]}: {error.strerror}. "
            "Choose another PROXY_HOST or PROXY_PORT.",
            code="cannot_listen",
        ) from None
    return sock


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
