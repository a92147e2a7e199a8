"""One connection to the API, and one answer at a time on it.

Law: httptools alone frames the answers (RFC 9112 §6). What it refuses, what comes after the end of an answer
and what never ends closes the connection; a body cut short is a failure, never an end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import Final

import httptools

from grok_oauth_proxy.proxy.flow import FlowControl
from grok_oauth_proxy.proxy.headers import Headers, first_values, is_chunked
from grok_oauth_proxy.proxy.tls import Tls
from grok_oauth_proxy.proxy.tunnel import End
from grok_oauth_proxy.proxy.upstream.answer import SWITCHING, Answer
from grok_oauth_proxy.proxy.upstream.message import Request, UpstreamFailure

_MAX_OVERHEAD: Final = 64 * 1024
"""Bytes that may come without one of a body among them: heads, interim answers, extensions, trailers."""
_HIGH_WATER: Final = 256 * 1024
_VERSIONS: Final = ("1.0", "1.1")
_LAST_STATUS: Final = 599
"""Beyond it no status has a meaning (RFC 9110 §15), and the server would not send it on."""


def _framed(data: bytes, *, chunked: bool, last: bool = False) -> bytes:
    """A piece of a request's body as it goes on the wire (RFC 9112 §7.1)."""
    if not chunked:
        return data
    return (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"0\r\n\r\n" if last else b"")


class Connection(FlowControl):
    """Made by `dial`. `on_idle` is called whenever it can take the next request, `on_lost` when it is gone.

    `patience`: seconds without a byte in either direction after which an exchange has failed.
    """

    def __init__(
        self, on_idle: Callable[[Connection], None], on_lost: Callable[[Connection], None], *, patience: float
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.served = 0
        self.idle_since = -math.inf
        """When, by the wall clock, it was last put aside for a request."""
        self._on_idle = on_idle
        self._on_lost = on_lost
        self.patience = patience
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._headers: Headers = []
        self._method = ""
        self._until_close = self._keep_alive = self._surplus = self._reading_paused = False
        self._closed_cleanly = False
        self._overhead = 0
        self._untouched = True
        self._active_at = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._may_switch = False

    def __repr__(self) -> str:
        return f"Connection(served={self.served}, usable={self.usable}, {self._answer})"

    @property
    def usable(self) -> bool:
        """Open, and free for a request."""
        return self._answer is None and self._transport is not None and not self._transport.is_closing()

    @property
    def _was_idle(self) -> bool:
        return self.idle_since > -math.inf

    @property
    def tls(self) -> Tls | None:
        """What it goes through, unless it is plain."""
        return self._transport if isinstance(self._transport, Tls) else None

    def ask(self, request: Request, head: bytes) -> Answer:
        """Send it, `head` first, over a connection that is usable; the answer that will come.

        It may come, and end, while the body is still being sent.
        """
        assert self._transport is not None  # noqa: S101 - for the type checker; it is usable
        answer = self._answer = Answer(self)
        if self._method == "HEAD":
            # The parser still waits for the body of the last answer.
            self._parser = httptools.HttpResponseParser(self)
        self._method, self._overhead, self._untouched = request.method, 0, True
        self._may_switch = request.upgrade
        self._keep_alive = self._until_close = False
        self._active_at = self.loop.time()
        if self._watchdog is None:
            self._watchdog = self.loop.call_later(self.patience, self._watch)
        if request.body is None:
            self._transport.write(head)
        elif isinstance(request.body, bytes):
            self._transport.write(head + _framed(request.body, chunked=request.chunked, last=True))
        else:
            answer.upload(self._send(answer, head, request.body, chunked=request.chunked))
        return answer

    def switch(self) -> End:
        """After 101: give the connection away, with what has come behind it."""
        transport, answer = self._transport, self._answer
        assert transport is not None  # noqa: S101 - for the type checker
        assert answer is not None  # noqa: S101 - it is the answer that calls
        self._transport = self._answer = None
        broken = UpstreamFailure("truncated", sent=True)
        early, ended = answer.take(), self._closed_cleanly
        return End(transport, self, early, broken, full=self.full, ended=ended)

    def abort(self) -> None:
        """Drop the connection, and with it what it was doing."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close a connection that is idle."""
        if self._transport is not None:
            self._transport.close()

    # Sending.

    async def _send(self, answer: Answer, head: bytes, body: AsyncIterator[bytes], *, chunked: bool) -> None:
        transport = self._transport
        assert transport is not None  # noqa: S101 - for the type checker
        unsent = head
        try:
            async for data in body:
                transport.write(unsent + _framed(data, chunked=chunked))
                unsent = b""
                self._active_at = self.loop.time()
                if self.full:
                    await self.drained()
                if transport.is_closing():
                    return
            if rest := unsent + _framed(b"", chunked=chunked, last=True):
                transport.write(rest)
        except Exception as error:  # noqa: BLE001 - whatever it is, the one who waits for the answer is told
            answer.fail(error)
            self.abort()

    def resume_writing(self) -> None:
        self._active_at = self.loop.time()
        super().resume_writing()

    # Receiving.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream transport, by how it was made

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        self._active_at = self.loop.time()
        self._untouched = False
        if answer is None:
            self.close()  # nothing was asked
            return
        if answer.switched:
            answer.feed(data)
            self._hand_on(answer)
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if answer.switched:
                behind = data[upgrade.args[0] :]
                self._overhead -= len(behind)
                answer.feed(behind)
            else:
                self._fail_invalid()
        except httptools.HttpParserError:
            self._fail_invalid()
        if self._overhead > _MAX_OVERHEAD:
            self._fail_invalid()
        self._hand_on(answer)
        if answer.over:
            self._settle()

    def pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._active_at = self.loop.time()
            self._transport.resume_reading()

    def eof_received(self) -> None:
        """The API has said that nothing more comes; it may go on reading, but there is no use in that."""
        self._closed_cleanly = True
        if self._answer is not None and not self._answer.switched:
            self._end_of_stream(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._on_lost(self)
        if self._answer is not None:
            self._end_of_stream(self._answer)
        # Both know this connection, and circles would wait for the garbage collector.
        self._transport = None
        del self._parser

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._headers = []
        if self._answer is None or self._answer.over:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser, answer = self._parser, self._answer
        status = parser.get_status_code()
        headers, self._headers = self._headers, []  # what follows are trailers
        first = first_values(headers)
        chunked = b"transfer-encoding" in first
        if (
            not 100 <= status <= _LAST_STATUS
            or (status == SWITCHING and not self._may_switch)
            or (chunked and not is_chunked(headers))
            or parser.get_http_version() not in _VERSIONS
        ):
            self._fail_invalid()
            return
        if answer is None or answer.over or (status < 200 and status != SWITCHING):
            return
        self._keep_alive = parser.should_keep_alive()
        self._until_close = not chunked and b"content-length" not in first
        answer.begin(status, headers)
        if self._method == "HEAD":
            # The parser does not know what was asked, and would wait for a body.
            answer.end()

    def on_body(self, data: bytes) -> None:
        self._overhead = 0
        if self._answer is None or self._answer.over:
            self._surplus = True
        elif not self._answer.status:
            self._fail_invalid()  # an interim answer has no body
        else:
            self._answer.feed(data)

    def on_message_complete(self) -> None:
        if self._answer is not None and self._answer.status and not self._answer.switched:
            self._answer.trailers = self._headers
            self._answer.end()

    def _hand_on(self, answer: Answer) -> None:
        answer.tell()
        if answer.waiting > _HIGH_WATER:
            self.pause_reading()

    # The end of an exchange.

    def _end_of_stream(self, answer: Answer) -> None:
        if answer.status and self._until_close and self._closed_cleanly:
            answer.end()
            answer.tell()
        else:
            kind = "truncated" if answer.status else "broken_off"
            self._fail(UpstreamFailure(kind, sent=True, stale=self._untouched and self._was_idle))
        self._settle()

    def _settle(self) -> None:
        """The answer is over: keep the connection for the next one, or close it."""
        answer, self._answer = self._answer, None
        sent = answer is not None and not answer.uploading and not self.full
        reusable = sent and self._keep_alive and not self._surplus
        if reusable and self._transport is not None and not self._transport.is_closing():
            self.resume_reading()
            self.served += 1
            self._on_idle(self)
        else:
            self.abort()

    def _fail_invalid(self) -> None:
        self._surplus = True
        self._fail(UpstreamFailure("invalid_answer", sent=True))

    def _fail(self, failure: BaseException) -> None:
        if self._answer is not None:
            self._answer.fail(failure)
            self._keep_alive = False
            self.abort()

    def _watch(self) -> None:
        """Runs when `patience` may be over; a stall that the client causes does not count.

        One timer lasts for many requests.
        """
        self._watchdog = None
        if self._answer is None:
            return
        now = self.loop.time()
        if self._answer.waiting or (self._answer.uploading and not self.full):
            self._active_at = now
        left = self._active_at + self.patience - now
        if left <= 0:
            self._fail(UpstreamFailure("timeout", sent=True))
        else:
            self._watchdog = self.loop.call_later(left, self._watch)
