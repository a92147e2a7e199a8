"""One connection of a client: HTTP/1.1 read by httptools, its requests answered by an ASGI application.

Law: a request is understood in one way or refused with 400 (431 when its head is too large); its target
reaches the application byte for byte, as `Exchange.target`. One request is answered at a time; what a client
sends ahead waits.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from functools import partial
from typing import Any, Final

import httptools
import uvicorn
from uvicorn.server import ServerState

from grok_oauth_proxy.asgi import Application
from grok_oauth_proxy.errors import ClientError
from grok_oauth_proxy.events import Observer
from grok_oauth_proxy.http1.caller import Caller
from grok_oauth_proxy.http1.crowd import Crowd
from grok_oauth_proxy.http1.exchange import Exchange
from grok_oauth_proxy.http1.head import MAX_HEAD, check_head, scope_of, with_known_method
from grok_oauth_proxy.proxy.body import ClientGone
from grok_oauth_proxy.proxy.headers import Headers, body_framing
from grok_oauth_proxy.proxy.tunnel import End
from grok_oauth_proxy.proxy.websocket import wants_websocket

_STEP: Final = 16 * 1024
"""Bytes that are parsed at once: 256 KB of the shortest requests, as a loop reads them, become 7 MB."""
_NOT_HTTP: Final = partial(ClientError, "This is not a valid HTTP/1.1 request.", code="bad_request")
_BAD_TARGET: Final = partial(
    ClientError,
    "The path or query holds a byte that must be percent-encoded (RFC 3986 §2.1).",
    code="bad_request",
)
_HEAD_TOO_LARGE: Final = partial(
    ClientError,
    f"The head of the request is larger than {MAX_HEAD} bytes.",
    code="bad_request",
    status=431,
)
_BODY_TOO_LARGE: Final = partial(
    ClientError,
    "The body of the request is larger than PROXY_MAX_BODY allows.",
    code="body_too_large",
    status=413,
)


class Connection(Caller):
    """Made by uvicorn for each connection; see `Caller`."""

    def __init__(
        self,
        observer: Observer,
        crowd: Crowd,
        tls: ssl.SSLContext | None,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # noqa: ARG002 - uvicorn names its arguments
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(observer, crowd, tls, server_state, _loop or asyncio.get_running_loop())
        self.draining = False
        self._app: Application = config.loaded_app
        self._parser = httptools.HttpRequestParser(self)
        self._repeating = self._switching = False
        self._body_after_upgrade = b""
        self._at_start = True
        self._unparsed = b""
        self._later = b""
        """What came behind requests that wait for their turn."""
        self._to_come = 0
        """Bytes that are still to come of a body whose length was announced."""
        self._method = b""
        self._target = b""
        self._headers: Headers = []
        self._overhead = 0
        self._body_left = math.inf

    # The connection.

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        del self._parser  # it knows this connection, too

    def shutdown(self) -> None:
        """The server ends: an answer that begins from now on tells that it is the connection's last."""
        self.draining = True

    def switch(self, head: bytes) -> End:
        """Write the head of a 101, and give the connection away with what has come behind the request."""
        assert self._transport is not None  # noqa: S101 - for the type checker
        self.write(head)
        self._paused = False
        early, self._unparsed = self._unparsed, b""
        return End(self._transport, self, early, ClientGone(), full=self.full)

    # Reading.

    def data_received(self, data: bytes) -> None:
        if self._later or len(data) > max(_STEP, self._to_come):
            self._take_in_steps(data)
        elif self._deaf:
            self._thrown_away += len(data)
        elif self._switching:
            self._unparsed += data
            self.pause_reading()
        elif self._at_start:
            self._parse(self._begun(self._unparsed + data))
        else:
            self._parse(data)
        if self._exchange is None:
            if self.line is self._crowd.idle and not self._deaf:
                self._crowd.stand(self, self._crowd.heads)
        elif not (self._incoming and self._incoming.whole):
            self._note_wait()

    def _take_in_steps(self, data: bytes) -> None:
        """As much as makes one request wait for its turn; the rest waits as it came."""
        data, self._later = self._later + data, b""
        start = 0
        while start < len(data):
            if self._ahead and not self._deaf:
                self._later = data[start:]
                return
            end = start + max(_STEP, self._to_come)
            self.data_received(data[start:end])
            start = end

    def _parse(self, data: bytes) -> None:
        while data:
            self._overhead += len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._declined_upgrade(data[upgrade.args[0] :])
                continue
            except httptools.HttpParserCallbackError as error:
                self._refuse(_reason(error))
            except httptools.HttpParserInvalidURLError:
                self._refuse(_BAD_TARGET())
            except httptools.HttpParserError:
                self._refuse(_NOT_HTTP())
            else:
                if self._overhead > MAX_HEAD:
                    in_body = self._incoming is not None and not self._incoming.whole
                    self._refuse(_NOT_HTTP() if in_body else _HEAD_TOO_LARGE())
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
        parser = self._parser
        version = parser.get_http_version()
        first = check_head(self._target, headers, version, received=received)
        known = parser.get_method()
        if known == b"CONNECT":
            raise ValueError("no tunnels here")
        method = (self._method or known).decode("ascii")
        framing = body_framing(first)
        if framing:
            self._limit_body(first)
        self._switching = b"upgrade" in first and wants_websocket(method, version, headers)
        if parser.should_upgrade() and not self._switching:
            self._body_after_upgrade = b"".join(b"%b: %b\r\n" % item for item in framing)
        scope = scope_of(
            method, version, self._target, headers, scheme=self._scheme, addresses=self._addresses
        )
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

    def _limit_body(self, first: dict[bytes, bytes]) -> None:
        """Raise `ClientError` if it is to be larger than it may be."""
        self._body_left = self._crowd.bounds.body_size or math.inf
        self._to_come = int(first.get(b"content-length", 0))
        if self._to_come > self._body_left:
            raise _BODY_TOO_LARGE()  # noqa: RSE102 - it is no class

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        self._body_left -= len(body)
        self._to_come -= len(body)
        self._progress += len(body)
        if self._body_left < 0:
            raise _BODY_TOO_LARGE()  # noqa: RSE102 - it is no class
        if self._incoming is not None and self._incoming.feed(body):
            self.pause_reading()

    def on_message_complete(self) -> None:
        self._overhead = 0
        if self._incoming is not None and not self._body_after_upgrade:
            self._at_start = True
            self._incoming.end_body()
            if self.line is self._crowd.bodies:
                self._note_wait()

    # Answering.

    def _start(self, exchange: Exchange) -> None:
        self._exchange = exchange
        if self.full:  # the answer before is not taken yet
            self._note_wait()
        else:
            self._crowd.proceed(self)
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
            if self._later and not self._ahead:
                self._take_in_steps(b"")
            self.resume_reading()
        else:
            self._exchange = None
            self.resume_reading()
            begun = not self._at_start or self._unparsed
            self._crowd.stand(self, self._crowd.heads if begun else self._crowd.idle)


def _reason(failed: httptools.HttpParserCallbackError) -> ClientError:
    """Why what the parser told of was refused here."""
    cause = failed.__context__
    if isinstance(cause, ClientError):
        return cause
    return _HEAD_TOO_LARGE() if isinstance(cause, OverflowError) else _NOT_HTTP()
