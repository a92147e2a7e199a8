"""One connection of a client: HTTP/1.1 read by httptools, its requests answered by an ASGI application.

Law: a request is understood in one way or refused with 400 (431 when its head is too large); its target
reaches the application byte for byte, as `Exchange.target`. One request is answered at a time; what a client
sends ahead waits.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import Any, Final
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.server import ServerState

from grok_oauth_proxy.asgi import Application, Scope
from grok_oauth_proxy.errors import ClientError
from grok_oauth_proxy.events import Observer, RequestFinished, RequestStarted
from grok_oauth_proxy.http1.ends import has_hung_up, reset_connection
from grok_oauth_proxy.http1.exchange import STATUS_LINES, Exchange
from grok_oauth_proxy.http1.head import MAX_HEAD, check_head, with_known_method
from grok_oauth_proxy.proxy.body import ClientGone
from grok_oauth_proxy.proxy.flow import FlowControl
from grok_oauth_proxy.proxy.headers import Headers, body_framing
from grok_oauth_proxy.proxy.replies import error_body, error_headers, new_request_id
from grok_oauth_proxy.proxy.tunnel import End
from grok_oauth_proxy.proxy.websocket import wants_websocket

_KEEP_ALIVE: Final = 75.0
_LINGER: Final = 1.0
_LONGEST_LINGER: Final = 30.0
_LOOK: Final = 0.25
"""Seconds between two looks at a connection that is not read, because the upload it carries has stalled."""
_NOT_HTTP: Final = "This is not a valid HTTP/1.1 request."
_TOO_LARGE: Final = (431, f"The head of the request is larger than {MAX_HEAD} bytes.")
_BAD_TARGET: Final = "The path or query holds a byte that must be percent-encoded (RFC 3986 §2.1)."


class Connection(FlowControl):
    """Made by uvicorn for each connection; `observer` hears of what is not HTTP."""

    def __init__(
        self,
        observer: Observer,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # noqa: ARG002 - uvicorn names its arguments
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self.draining = False
        self._observer = observer
        self._app: Application = config.loaded_app
        self._server = server_state
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._addresses: tuple[Any, Any] = (None, None)
        self._exchange: Exchange | None = None
        self._incoming: Exchange | None = None
        self._ahead: list[Exchange] = []
        self._deaf = self._paused = self._repeating = False
        self._switching = False
        self._body_after_upgrade = b""
        self._thrown_away = 0
        self._at_start = True
        self._unparsed = b""
        self._method = b""
        self._target = b""
        self._headers: Headers = []
        self._overhead = 0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_until = math.inf
        self._looking: asyncio.TimerHandle | None = None

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream transport, by how it was made
        self._server.connections.add(self)  # type: ignore[arg-type]  # uvicorn only calls shutdown()
        self._addresses = (
            _address(transport.get_extra_info("sockname")),
            _address(transport.get_extra_info("peername")),
        )
        self._wait_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)
        for exchange in {self._exchange, self._incoming, *self._ahead}:
            if exchange is not None:
                exchange.leave()
        # They all know this connection: most circles are broken here, and do not wait for the collector.
        self._transport = self._exchange = self._incoming = None
        self._ahead.clear()
        del self._parser

    def shutdown(self) -> None:
        """The server ends: an answer that begins from now on tells that it is the connection's last."""
        self.draining = True

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def cut(self, *, reset: bool = False) -> None:
        """End the connection because an answer is not whole; by a reset where its end would look like one."""
        self._deaf = True
        if reset and self._transport is not None:
            reset_connection(self._transport)
        else:
            self.close()

    def switch(self, head: bytes) -> End:
        """Write the head of a 101, and give the connection away with what has come behind the request."""
        assert self._transport is not None  # noqa: S101 - for the type checker
        self.write(head)
        self._paused = False
        early, self._unparsed = self._unparsed, b""
        return End(self._transport, self, early, ClientGone(), full=self.full)

    def resume_reading(self) -> None:
        if self._paused and self._transport is not None and not self._ahead:
            self._paused = False
            with suppress(RuntimeError):
                self._transport.resume_reading()

    def pause_reading(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
            if self._looking is None:
                self._looking = self.loop.call_later(_LOOK, self._look)

    def _look(self) -> None:
        """While nothing is read, the client's going is not told: look for it."""
        self._looking = None
        if self._paused and self._transport is not None and not self._transport.is_closing():
            if has_hung_up(self._transport):
                self._transport.abort()
            else:
                self._looking = self.loop.call_later(_LOOK, self._look)

    def _wait_idle(self) -> None:
        """From now on the connection is idle, or a head takes its time."""
        self._idle_until = self.loop.time() + _KEEP_ALIVE
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(_KEEP_ALIVE, self._idled)

    def _idled(self) -> None:
        """Close, unless there was a request meanwhile: one timer lasts for many."""
        self._idle_timer = None
        left = self._idle_until - self.loop.time()
        if left <= 0:
            self.close()
        elif left < math.inf:
            self._idle_timer = self.loop.call_later(left, self._idled)

    # Reading.

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._thrown_away += len(data)
        elif self._switching:
            self._unparsed += data
            self.pause_reading()
        elif self._at_start:
            self._parse(self._begun(self._unparsed + data))
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        while data:
            self._overhead += len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._declined_upgrade(data[upgrade.args[0] :])
                continue
            except httptools.HttpParserCallbackError as error:
                self._refuse(*(_TOO_LARGE if isinstance(error.__context__, OverflowError) else (400,)))
            except httptools.HttpParserInvalidURLError:
                self._refuse(400, _BAD_TARGET)
            except httptools.HttpParserError:
                self._refuse(400)
            else:
                if self._overhead > MAX_HEAD:
                    self._refuse(
                        *((400,) if self._incoming is not None and not self._incoming.whole else _TOO_LARGE)
                    )
            return

    def _begun(self, data: bytes) -> bytes:
        """The beginning of a request as the parser is to see it; nothing until its method is known."""
        known = with_known_method(data)
        self._unparsed = data if known is None else b""
        self._method, data = known or (b"", b"")
        return data

    def _declined_upgrade(self, rest: bytes) -> bytes:
        """The parser stops after a head that wants an upgrade; here it is a request like any other.

        A new parser goes on behind the head. If a body follows, it is told how that is framed.
        """
        self._parser = httptools.HttpRequestParser(self)
        if self._switching:
            self._unparsed = rest
            self.pause_reading()
            return b""
        framing, self._body_after_upgrade = self._body_after_upgrade, b""
        if framing:
            self._repeating = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
            self._repeating = False
            return rest
        return self._begun(rest) if rest else b""

    def on_message_begin(self) -> None:
        self._at_start = False
        self._headers = []  # trailers are nobody's
        if not self._repeating:
            self._target = b""

    def on_url(self, url: bytes) -> None:
        if not self._repeating:
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._repeating:
            return
        headers, self._headers = self._headers, []
        received, self._overhead = self._overhead, 0
        self._idle_until = math.inf
        parser = self._parser
        version = parser.get_http_version()
        first = check_head(self._target, headers, version, received=received)
        known = parser.get_method()
        if known == b"CONNECT":
            raise ValueError("no tunnels here")
        method = (self._method or known).decode("ascii")
        framing = body_framing(first)
        self._switching = b"upgrade" in first and wants_websocket(method, version, headers)
        if parser.should_upgrade() and not self._switching:
            self._body_after_upgrade = b"".join(b"%b: %b\r\n" % item for item in framing)
        raw_path, _, query = self._target.partition(b"?")
        path = raw_path.decode("ascii")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self._addresses[0],
            "client": self._addresses[1],
            "scheme": "http",
            "root_path": "",
            "method": method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
        }
        self._method = b""
        expects = version == "1.1" and first.get(b"expect", b"").lower() == b"100-continue"
        # A client that wants a WebSocket and gets an answer dials anew.
        keep_alive = parser.should_keep_alive() and not self._switching
        exchange = Exchange(
            self,
            scope,
            self._target,
            framing=framing,
            wants_websocket=self._switching,
            keep_alive=keep_alive,
            expects=expects,
        )
        self._incoming = exchange
        if self._exchange is None:
            self._start(exchange)
        else:
            self._ahead.append(exchange)
            self.pause_reading()

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        if self._incoming is not None and self._incoming.feed(body):
            self.pause_reading()

    def on_message_complete(self) -> None:
        self._overhead = 0
        if self._incoming is not None and not self._body_after_upgrade:
            self._at_start = True
            self._incoming.end_body()

    # Answering.

    def _start(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._server.total_requests += 1
        # The server, when it ends, waits for what is in its set.
        exchange.task = self.loop.create_task(exchange.run(self._app, self._server.tasks), name="request")

    def answered(self, exchange: Exchange, *, whole: bool) -> None:
        """The answer was given; what comes next on this connection?"""
        if not whole:
            self.cut()
        elif not exchange.keep_alive:
            self._exchange = None
            self._linger(wait=self._deaf or self._paused or not exchange.whole)
        elif self._ahead:
            self._start(self._ahead.pop(0))
            self.resume_reading()
        else:
            self._exchange = None
            self.resume_reading()
            self._wait_idle()

    def _refuse(self, status: int, why: str = _NOT_HTTP) -> None:
        """Answer what is not HTTP, if nothing else is being answered, and end the connection."""
        self._deaf = True
        busy, last = self._exchange, self._incoming
        if self._ahead and not self._ahead[-1].whole:
            self._ahead.pop()
            last = self._ahead[-1] if self._ahead else busy
        if busy is not None and last is not None and last.whole:
            # It came behind a whole request, and RFC 9112 §9.6 lets it be ignored.
            last.keep_alive = False
            return
        if busy is not None:
            if busy.started:
                # What comes in can only be answered by the end of the connection.
                busy.leave()
                busy.cut()
                return
            busy.abandon()
        error = ClientError(why, code="bad_request", status=status)
        body, request_id = error_body(error), new_request_id()
        headers = [*error_headers(error, body, request_id), (b"connection", b"close")]
        self.write(b"\r\n".join([STATUS_LINES[status], *map(b": ".join, headers), b"", body]))
        self._observer(RequestStarted())
        self._observer(RequestFinished("-", "-", status, 0.0, 0.0, 0, len(body), request_id, "refused"))
        self._linger(wait=True)

    def _linger(self, *, wait: bool) -> None:
        """Close. What is still sent is thrown away for a moment first, if `wait`.

        Closing while the client sends would reset the connection before the answer is read (RFC 9112 §9.6).
        """
        self._deaf = True
        if not wait or self._transport is None or self._transport.is_closing():
            self.close()
            return
        self._transport.write_eof()
        self._ahead.clear()
        self.resume_reading()
        self.loop.call_later(_LINGER, self._linger_on, self.loop.time() + _LONGEST_LINGER, 0)

    def _linger_on(self, until: float, before: int) -> None:
        """Close once nothing more comes, as it does for a client that sends all before it reads."""
        if self._thrown_away == before or self.loop.time() > until:
            self.close()
        else:
            self.loop.call_later(_LINGER, self._linger_on, until, self._thrown_away)


def _address(name: Any) -> tuple[str, int | None] | None:
    """As ASGI has it: host and port, or the path of a Unix socket; None for the other end of one."""
    if isinstance(name, tuple):
        return name[0], name[1]
    return (name, None) if name else None
