"""One request of a client and its answer: the `receive` and `send` of ASGI, framed as HTTP/1.1 wants it.

Law: an answer is framed in one way (RFC 9112 §6): by its length, in chunks, or for HTTP/1.0 by the end of the
connection. What is not given whole ends the connection, never the body.
"""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterable
from typing import Final, Literal, Protocol

from grok_oauth_proxy.asgi import Application, Message, Scope
from grok_oauth_proxy.bugs import log_bug
from grok_oauth_proxy.proxy.headers import Headers, header

HIGH_WATER: Final = 64 * 1024
"""Bytes of a body that wait to be fetched before the client is slowed down."""
STATUS_LINES: Final = {
    number: b"HTTP/1.1 %d %s" % (number, http.client.responses.get(number, "").encode())
    for number in range(101, 600)
}

_NO_CONTENT: Final = 204
_BODILESS: Final = frozenset({_NO_CONTENT, 304})
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Wire(Protocol):
    """What an exchange needs of its connection: see `connection.Connection`."""

    loop: asyncio.AbstractEventLoop
    may_write: asyncio.Event
    draining: bool

    def write(self, data: bytes) -> None: ...
    def resume_reading(self) -> None: ...
    def answered(self, exchange: Exchange, *, whole: bool) -> None: ...
    def cut(self, *, reset: bool = False) -> None: ...


class Exchange:
    """One request and its answer: the `receive` and `send` of ASGI."""

    answered = False
    """The answer has been given whole."""
    started = False
    whole = False
    """All of the request has come."""
    task: asyncio.Task[None] | None = None
    """What gives the answer, once it is this request's turn."""
    _gone = False
    _news = False
    """Something has come since the last `receive`, or the exchange has ended."""
    _waiter: asyncio.Future[None] | None = None
    _head = b""
    _framing: Literal["none", "length", "chunked", "close"] = "none"
    _left = 0

    def __init__(self, wire: Wire, scope: Scope, *, keep_alive: bool, expects: bool) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self._wire = wire
        self._expects = expects
        self._body = bytearray()

    # The request.

    def feed(self, data: bytes) -> bool:
        """More of the body; True when no more should come for now."""
        if not self.answered:
            self._body += data
            self._wake()
        return len(self._body) > HIGH_WATER

    def end_body(self) -> None:
        self.whole = True
        self._wake()

    def leave(self) -> None:
        """The client has gone: whoever works for it is told, and stopped at once."""
        self._gone = True
        self._wake()
        if not self.answered:
            self.scope["state"]["client_gone"] = True
            if self.task is not None:
                self.task.cancel()

    def abandon(self) -> None:
        """Somebody else has answered: what works on it is stopped."""
        self.leave()
        self.answered = True

    def cut(self) -> None:
        """Break off, so that the client sees that the answer is not whole.

        Chunked and counted bodies show it by themselves once what was sent is flushed. A body that ends with
        the connection shows it only by a reset (RFC 9112 §6.3).
        """
        self._flush()
        self.answered = True
        self._wake()
        self._wire.cut(reset=self._framing == "close")

    def switch(self, headers: Headers) -> bytes:
        """The head of the answer with which the connection stops to speak HTTP (RFC 9110 §15.2.2)."""
        self.answered = self.started = True
        return b"\r\n".join([STATUS_LINES[101], *map(b": ".join, headers), b"", b""])

    def _wake(self) -> None:
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        if self._expects and not (self.whole or self.started):
            self._expects = False
            self._wire.write(_CONTINUE)
        if not self._news:
            self._wire.resume_reading()
            self._waiter = self._wire.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._gone or self.answered:
            return {"type": "http.disconnect"}
        self._news = False
        data, self._body = bytes(self._body), bytearray()
        self._wire.resume_reading()
        return {"type": "http.request", "body": data, "more_body": not self.whole}

    # The answer.

    async def send(self, message: Message) -> None:
        if self._gone or self.answered:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message["headers"])
            return
        last = not message.get("more_body", False)
        self._continue(message.get("body", b""), message.get("trailers", ()), last=last)
        if not self._wire.may_write.is_set():
            await self._wire.may_write.wait()

    def _begin(self, status: int, headers: Headers) -> None:
        self.started = True
        length = header(headers, b"content-length")
        if status == _NO_CONTENT:
            headers = [item for item in headers if item[0] != b"content-length"]  # RFC 9110 §8.6
        lines = [STATUS_LINES[status], *map(b": ".join, headers)]
        if self.scope["method"] == "HEAD" or status in _BODILESS:
            self._framing = "none"
        elif length is not None:
            self._framing, self._left = "length", int(length)
        elif self.scope["http_version"] == "1.1":
            self._framing = "chunked"
            lines.append(b"transfer-encoding: chunked")
        else:
            self._framing, self.keep_alive = "close", False
        self.keep_alive = self.keep_alive and self.whole and not self._wire.draining
        if not self.keep_alive:
            lines.append(b"connection: close")
        elif self.scope["http_version"] == "1.0":
            lines.append(b"connection: keep-alive")
        self._head = b"\r\n".join(lines) + b"\r\n\r\n"

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head:
            self._wire.write(head)

    def _continue(self, data: bytes, trailers: Iterable[tuple[bytes, bytes]], *, last: bool) -> None:
        if self._framing == "length":
            self._left -= len(data)
            if self._left < 0:
                data = data[: self._left]  # more than was announced
        elif self._framing == "chunked":
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if last:
                data += b"\r\n".join([b"0", *map(b": ".join, trailers), b"", b""])
        elif self._framing == "none":
            data = b""
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._wire.write(data)
        if last or self._left < 0:
            self.answered = True
            self._wake()
            self._wire.answered(self, whole=self._left == 0)

    async def run(self, app: Application, running: set[asyncio.Task[None]]) -> None:
        """Have `app` give the answer; its task is in `running` meanwhile."""
        task = self.task
        assert task is not None  # noqa: S101 - it runs in it
        running.add(task)
        self.scope["state"]["body"] = bytes(self._body) if self.whole else None
        if not self._wire.may_write.is_set():
            # Small answers to requests that were sent ahead must not pile up for a client that does not read.
            await self._wire.may_write.wait()
        try:
            await app(self.scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - the application answers for its own bugs; this one it did not
            log_bug("A request failed.", error)
        finally:
            running.discard(task)
            if not self.answered:
                self.cut()
