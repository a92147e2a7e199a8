"""A client's connection apart from what is said on it: how it begins, what it waits for, and how it ends.

Law: it is read only while somebody takes what comes. What is refused is told why before the connection ends,
unless an answer has begun: then the end tells that this is not whole.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from contextlib import suppress
from functools import partial
from typing import Any, Final

from uvicorn.server import ServerState

from grok_oauth_proxy.errors import ClientError, ProxyError
from grok_oauth_proxy.events import Observer, RequestFinished, RequestRefused, RequestStarted
from grok_oauth_proxy.http1.crowd import Crowd, Line, Party
from grok_oauth_proxy.http1.ends import has_hung_up, has_unread, reset_connection, unsent
from grok_oauth_proxy.http1.exchange import STATUS_LINES, Exchange
from grok_oauth_proxy.http1.tls import ServerTls
from grok_oauth_proxy.proxy.flow import FlowControl
from grok_oauth_proxy.proxy.replies import error_body, error_headers, new_request_id

_LINGER: Final = 1.0
_LONGEST_LINGER: Final = 30.0
_LOOK: Final = 0.25
"""Seconds between two looks at a connection that is not read, because the upload it carries has stalled."""
_PIECE: Final = 1024
"""Bytes of a body that count as progress: with a byte now and then it would last for ever."""
_TOO_SLOW: Final = partial(
    ClientError,
    "The request did not come in time. Send it again; PROXY_HEAD_TIMEOUT and PROXY_BODY_TIMEOUT set how long "
    "to wait.",
    code="request_timeout",
    status=408,
)


class Caller(FlowControl):
    """The part of a `Connection` that knows nothing of HTTP's grammar.

    `tls`: what is spoken on all but Unix sockets, None for plain HTTP. `observer` hears of what is refused.
    """

    # CPython shares the layout of up to 30 attributes among instances, and finds others much more slowly.
    __slots__ = (
        "_addresses",
        "_ahead",
        "_crowd",
        "_deaf",
        "_exchange",
        "_incoming",
        "_looking",
        "_no_room",
        "_observer",
        "_paused",
        "_progress",
        "_ready",
        "_scheme",
        "_server",
        "_thrown_away",
        "_tls",
        "_transport",
        "_unsent",
        "counted",
        "line",
        "loop",
        "party",
    )

    def __init__(
        self,
        observer: Observer,
        crowd: Crowd,
        tls: ssl.SSLContext | None,
        server: ServerState,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.loop = loop
        self.line: Line | None = None
        self.party: Party | None = None
        self.counted = False
        self._observer = observer
        self._crowd = crowd
        self._tls = tls
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._addresses: tuple[Any, Any] = (None, None)
        self._scheme = "http"
        self._no_room: ProxyError | None = None
        self._exchange: Exchange | None = None
        self._incoming: Exchange | None = None
        self._ahead: list[Exchange] = []
        self._ready = self._deaf = self._paused = False
        self._thrown_away = 0
        self._unsent = math.inf
        self._progress = 0
        """Bytes of a body that came since the last piece was complete."""
        self._looking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called once more when TLS is established, with it as the transport."""
        if isinstance(transport, ServerTls):
            self._begin(transport)
            return
        self._transport = transport  # type: ignore[assignment]  # a stream transport, by how it was made
        self._server.connections.add(self)  # type: ignore[arg-type]  # uvicorn only calls shutdown()
        server, client = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self._addresses = _address(server), _address(client)
        over_ip = isinstance(server, tuple)
        self._no_room = self._crowd.enter(self, client[0] if over_ip else None)
        if self._tls is None or not over_ip:
            self._begin(transport)  # type: ignore[arg-type]  # as above
            return
        self._scheme = "https"
        if self._no_room is None:
            self._crowd.stand(self, self._crowd.heads)
        ServerTls(self._tls, self).take_over(transport)  # type: ignore[arg-type]  # as above

    def _begin(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._ready = True
        if self._no_room is None:
            self._crowd.stand(self, self._crowd.idle)
        else:
            self._observer(RequestRefused("connections"))
            self._turn_away(self._no_room)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._crowd.leave(self)
        super().connection_lost(exc)
        for exchange in {self._exchange, self._incoming, *self._ahead}:
            if exchange is not None:
                exchange.leave()
        # They all know this connection: most circles are broken here, and do not wait for the collector.
        self._transport = self._exchange = self._incoming = None
        self._ahead.clear()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._note_wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._note_wait()

    def close(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            self._depart()

    def cut(self, *, reset: bool = False) -> None:
        """End the connection because an answer is not whole; by a reset where its end would look like one."""
        self._deaf = True
        if reset and self._transport is not None:
            reset_connection(self._transport)
        else:
            self.close()

    def resume_reading(self) -> None:
        if self._paused and self._transport is not None and not self._ahead:
            self._paused = False
            with suppress(RuntimeError):
                self._transport.resume_reading()
            self._note_wait()

    def pause_reading(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
            self._note_wait()
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

    # Waiting: what the crowd asks, and is told.

    @property
    def removable(self) -> bool:
        transport = self._transport
        return (
            transport is not None
            and not transport.get_write_buffer_size()
            and (transport.is_closing() or self.line is self._crowd.leaving or not has_unread(transport))
        )

    def remove(self) -> None:
        self._deaf = True
        if self._transport is not None:
            self._transport.close()

    @property
    def dawdles(self) -> bool:
        if self._transport is None or not self._crowd.is_past_grace(self):
            return False
        if self.line is self._crowd.bodies:
            # More has come and was not read: it is this process that stood still.
            return not has_unread(self._transport)
        # Room in the buffers tells of megabytes only; who takes a piece has another time of grace.
        before, self._unsent = self._unsent, unsent(self._transport)
        if before - self._unsent < _PIECE:
            return True
        self._crowd.stand(self, self._crowd.takers)
        return False

    def is_kept_waiting_by(self, exchange: Exchange) -> bool:
        """Whether this is the request that is being answered, and its client dawdles."""
        return exchange is self._exchange and self.dawdles

    def make_way(self, error: ProxyError) -> None:
        self._deaf = True
        self._observer(RequestRefused("connections"))
        if self._exchange is not None:
            self._exchange.turn_out(error)

    def overdue(self, line: Line) -> None:
        if self._transport is None:
            return
        if self._ready and line in (self._crowd.heads, self._crowd.bodies):
            self._refuse(_TOO_SLOW())
        elif line is self._crowd.idle:
            self.close()
        elif (
            line is self._crowd.leaving
            and 0 < (left := self._transport.get_write_buffer_size()) < self._unsent
        ):
            self._unsent = left
            self._crowd.stand(self, line)
        else:
            self._transport.abort()

    def _note_wait(self) -> None:
        """What is waited for, now that something about it has changed, while a request is in flight."""
        if self._deaf or self._exchange is None:
            return
        if self._incoming is not None and self._incoming.awaited and not self._paused:
            if self.line is not self._crowd.bodies or self._progress >= _PIECE:
                self._progress = 0
                self._crowd.stand(self, self._crowd.bodies)
        elif not self.full:
            self._crowd.proceed(self)
        elif self.line is not self._crowd.takers and self._transport is not None:
            self._unsent = unsent(self._transport)
            self._crowd.stand(self, self._crowd.takers)

    def ask_for_body(self, invitation: bytes) -> None:
        """The client waits to be asked."""
        self.write(invitation)
        self._note_wait()

    def _depart(self) -> None:
        """The last answer was given."""
        if self.line is not self._crowd.refused:
            self._crowd.stand(self, self._crowd.leaving)

    # The end.

    def _refuse(self, error: ClientError) -> None:
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
            if busy.begun:
                busy.keep_alive = False
                busy.turn_out(error)
                return
            busy.abandon()
        self._turn_away(error)

    def _turn_away(self, error: ProxyError) -> None:
        """Answer with an error, and end the connection."""
        self._deaf = True
        status = error.status
        body, request_id = error_body(error), new_request_id()
        headers = [*error_headers(error, body, request_id), (b"connection", b"close")]
        self.write(b"\r\n".join([STATUS_LINES[status], *map(b": ".join, headers), b"", body]))
        self._observer(RequestStarted())
        self._observer(
            RequestFinished("-", "-", status, 0.0, 0.0, 0, len(body), request_id, "refused", error=error.code)
        )
        self._linger(wait=True)

    def _linger(self, *, wait: bool) -> None:
        """Close. What is still sent is thrown away for a moment first, if `wait`.

        Closing while the client sends would reset the connection before the answer is read (RFC 9112 §9.6).
        """
        self._deaf = True
        if not wait or self._transport is None or self._transport.is_closing():
            self.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._depart()
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
