"""One request of a client and its answer, framed as HTTP/1.1 wants it.

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
from grok_oauth_proxy.errors import ProxyError
from grok_oauth_proxy.proxy.headers import Headers, header
from grok_oauth_proxy.proxy.tunnel import End

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
    full: bool
    draining: bool

    def is_kept_waiting_by(self, exchange: Exchange) -> bool: ...
    def write(self, data: bytes) -> None: ...
    def resume_reading(self) -> None: ...
    def ask_for_body(self, invitation: bytes) -> None: ...
    async def drained(self) -> None: ...
    def answered(self, exchange: Exchange, *, whole: bool) -> None: ...
    def cut(self, *, reset: bool = False) -> None: ...
    def switch(self, head: bytes) -> End: ...


class Exchange:
    """One request and its answer.

    Any application can `receive` and `send` as ASGI has it. The proxy, which finds it in `scope["state"]` as
    `client`, writes and ends the body itself, without a message for each piece.
    """

    answered = False
    """The answer has been given whole."""
    started = False
    whole = False
    """All of the request has come."""
    gone = False
    """The client has gone."""
    turned_out: ProxyError | None = None
    """Why it is stopped, though the client is there."""
    task: asyncio.Task[None] | None = None
    """What gives the answer, once it is this request's turn."""
    begun = False
    """It is at work: stopped before, it could not answer."""
    _news = False
    """Something has come since the last `receive`, or the exchange has ended."""
    _waiter: asyncio.Future[None] | None = None
    _head = b""
    _framing: Literal["none", "length", "chunked", "close"] = "none"
    _left = 0

    def __init__(
        self,
        wire: Wire,
        scope: Scope,
        target: bytes,
        *,
        framing: Headers,
        wants_websocket: bool,
        keep_alive: bool,
        expects: bool,
    ) -> None:
        self.scope = scope
        self.target = target
        """What was asked for, byte for byte."""
        self.framing = framing
        """The headers that say how the request's body is framed."""
        self.wants_websocket = wants_websocket
        self.keep_alive = keep_alive
        self._wire = wire
        self._expects = expects
        self._body = bytearray()
        scope["state"] = {"client": self}

    # The request.

    @property
    def awaited(self) -> bool:
        """More of the body is to come, and the client does not wait to be asked for it."""
        return not (self.whole or self._expects)

    def take_body(self) -> bytes | None:
        """All of it, if it has come whole; it is not kept here then."""
        if not self.whole:
            return None
        body, self._body = bytes(self._body), bytearray()
        return body

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
        self.gone = True
        self._wake()
        if self.task is None:
            self.scope.clear()  # it leads back here
        elif not self.answered:
            self.task.cancel()

    def abandon(self) -> None:
        """Somebody else has answered: what works on it is stopped."""
        self.leave()
        self.answered = True

    @property
    def dawdles(self) -> bool:
        """The client has kept this request, which is being answered, waiting for too long."""
        return self._wire.is_kept_waiting_by(self)

    def turn_out(self, error: ProxyError) -> None:
        """It cannot go on: whoever works on it is stopped, and is to answer with this error."""
        self.turned_out = error
        if self.task is not None:
            self.task.cancel()

    def _wake(self) -> None:
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        """As ASGI has it."""
        if self._expects and not (self.whole or self.started):
            self._expects = False
            self._wire.ask_for_body(_CONTINUE)
        if not self._news:
            self._wire.resume_reading()
            self._waiter = self._wire.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.gone or self.answered:
            return {"type": "http.disconnect"}
        self._news = False
        data, self._body = bytes(self._body), bytearray()
        self._wire.resume_reading()
        return {"type": "http.request", "body": data, "more_body": not self.whole}

    # The answer.

    async def send(self, message: Message) -> None:
        """As ASGI has it."""
        if message["type"] == "http.response.start":
            self._begin(message["status"], message["headers"])
            return
        body = message.get("body", b"")
        if not message.get("more_body", False):
            self.end(body)
        elif not self.write(body):
            await self.drained()

    def _begin(self, status: int, headers: Headers) -> None:
        """The head of the answer; it goes out with what follows."""
        if self.gone or self.answered:
            return
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

    def write(self, data: bytes) -> bool:
        """More of the body; False when the client takes no more for now: wait until it is `drained`."""
        if not (self.gone or self.answered):
            self._put(self._framed(data))
            if self._left < 0:
                self._finish()
        return not self._wire.full

    def end(self, data: bytes, trailers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """The last of the body, and what follows a chunked one."""
        if self.gone or self.answered:
            return
        data = self._framed(data)
        if self._framing == "chunked":
            data += b"\r\n".join([b"0", *map(b": ".join, trailers), b"", b""])
        self._put(data)
        self._finish()

    @property
    def full(self) -> bool:
        """The client takes no more for now."""
        return self._wire.full

    async def drained(self) -> None:
        """Wait until the client takes more, or has gone."""
        await self._wire.drained()

    def cut(self) -> None:
        """Break off, so that the client sees that the answer is not whole; nothing if it is.

        Chunked and counted bodies show it by themselves once what was sent is flushed. A body that ends with
        the connection shows it only by a reset (RFC 9112 §6.3).
        """
        if self.answered:
            return
        self._put(b"")
        self.answered = True
        self._wake()
        self._wire.cut(reset=self._framing == "close")

    def switch(self, headers: Headers) -> End:
        """Answer with 101 and give the connection away; it speaks HTTP no more (RFC 9110 §15.2.2)."""
        self.answered = self.started = True
        return self._wire.switch(b"\r\n".join([STATUS_LINES[101], *map(b": ".join, headers), b"", b""]))

    def _framed(self, data: bytes) -> bytes:
        framing = self._framing
        if framing == "length":
            self._left -= len(data)
            return data if self._left >= 0 else data[: self._left]  # more than was announced
        if framing == "chunked":
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return data if framing == "close" else b""

    def _put(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._wire.write(data)

    def _finish(self) -> None:
        self.answered = True
        self._wake()
        self._wire.answered(self, whole=self._left == 0)

    async def run(self, app: Application, running: set[asyncio.Task[None]]) -> None:
        """Have `app` give the answer; its task is in `running` meanwhile."""
        task = self.task
        assert task is not None  # noqa: S101 - it runs in it
        self.begun = True
        running.add(task)
        try:
            if self._wire.full:
                # Small answers to requests sent ahead must not pile up for a client that does not read.
                await self._wire.drained()
            await app(self.scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - the application answers for its own bugs; this one it did not
            log_bug("A request failed.", error)
        finally:
            running.discard(task)
            self.cut()
            self.scope.clear()  # it leads back here
