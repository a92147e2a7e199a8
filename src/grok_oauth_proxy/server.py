"""The listening side: which port, how HTTP is read, when to stop. uvicorn with three things of our own.

h11 reads the requests: it keeps the request target byte for byte, takes any method, and frames answers to
HTTP/1.0 clients by the end of the connection, as RFC 9112 §6.3 wants.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from grok_oauth_proxy.asgi import Application
from grok_oauth_proxy.errors import ClientError, ConfigurationError, StartRefused
from grok_oauth_proxy.events import Observer, RequestFinished, RequestStarted
from grok_oauth_proxy.proxy.replies import error_body, error_headers, new_request_id

FURTHER_PORTS: Final = 20
_MAX_HEAD = 64 * 1024
_KEEP_ALIVE = 75
_DRAIN = 30
_LINGER = 1.0


class _Connection(h11.Connection):
    """Tells of each request's target, and holds a head to its limit however it arrives."""

    def __init__(self, on_target: Callable[[bytes], None]) -> None:
        super().__init__(h11.SERVER, _MAX_HEAD)
        self._on_target = on_target

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            # h11 looks at the limit only while a head is incomplete.
            lines = (len(name) + len(value) + len(b": \r\n") for name, value in event.headers)
            if len(event.target) + sum(lines) > _MAX_HEAD:
                raise h11.RemoteProtocolError("the head is too large", error_status_hint=431)
            self._on_target(event.target)
        return event


class Protocol(H11Protocol):
    """Hands each request its transport and its target as received; answers what is not HTTP like our errors.

    Both stand in `scope["state"]`. The ASGI scope alone would lose a `?` with nothing behind it.
    """

    def __init__(self, observer: Observer, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._observer = observer
        self.app_state = dict(self.app_state)
        self.conn = _Connection(self._remember_target)
        self._refused = False

    def _remember_target(self, target: bytes) -> None:
        self.app_state["target"] = target

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state["transport"] = transport

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # The answer has begun; what comes in can only be answered by the end of the connection.
            self.transport.close()
            return
        reason = sys.exception()
        status = reason.error_status_hint if isinstance(reason, h11.RemoteProtocolError) else 400
        error = ClientError("This is not a valid HTTP/1.1 request.", code="bad_request", status=status)
        body, request_id = error_body(error), new_request_id()
        headers = [*error_headers(error, body, request_id), (b"connection", b"close")]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._observer(RequestStarted())
        self._observer(RequestFinished("-", "-", status, 0.0, 0.0, 0, len(body), request_id, "refused"))
        # Closing while the client still sends would reset the connection before it has read this
        # (RFC 9112 §9.6): what comes is thrown away for a moment first.
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(_LINGER, self.transport.close)


class Server(uvicorn.Server):
    """Ends with exit code 0 on SIGTERM, SIGINT and SIGHUP, and says when it listens."""

    def __init__(self, app: Application, observer: Observer, *, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Protocol, observer),  # type: ignore[arg-type]  # called like a class
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
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
    except OSError:
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
