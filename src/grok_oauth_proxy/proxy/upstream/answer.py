"""One answer of the API, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Final, Protocol

from grok_oauth_proxy.proxy.headers import Headers
from grok_oauth_proxy.proxy.tunnel import End
from grok_oauth_proxy.proxy.upstream.message import UpstreamFailure

SWITCHING: Final = 101


class Carrier(Protocol):
    """The connection that an answer comes over: see `connection.Connection`."""

    loop: asyncio.AbstractEventLoop
    patience: float

    def resume_reading(self) -> None: ...
    def switch(self) -> End: ...
    def abort(self) -> None: ...


class Sink(Protocol):
    """Where a body goes."""

    @property
    def full(self) -> bool:
        """It takes no more for now."""

    def write(self, data: bytes) -> bool:
        """Take `data`; False when it is full then."""

    async def drained(self) -> None:
        """Return when it takes more."""


class Answer:
    """A response whose head has arrived; `pour` gives the rest. Closing it early drops the connection."""

    def __init__(self, connection: Carrier) -> None:
        self.status = 0
        self.headers: Headers = []
        self.trailers: Headers = []
        """Known at its end."""
        self.connection = connection
        """What it comes over."""
        self._chunks: list[bytes] = []
        self.waiting = 0
        """Bytes of the body that were not fetched yet."""
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._upload: asyncio.Task[None] | None = None
        self.over = False
        """Nothing more will come."""
        self._failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"Answer(status={self.status}, waiting={self.waiting}, over={self.over})"

    @property
    def switched(self) -> bool:
        """The API speaks another protocol from now on, as it was asked to."""
        return self.status == SWITCHING

    @property
    def ready(self) -> bool:
        """`chunk` would not have to wait."""
        return self.over or bool(self._chunks)

    async def chunk(self) -> bytes | None:
        """The next bytes as they came, None at the end; raises `UpstreamFailure` when it broke off."""
        while not self._chunks:
            if self.over and self._failure is None:
                return None
            await self.news()
        return self.take()

    async def pour(self, sink: Sink) -> bytes:
        """Give the body to `sink` as it comes, but for the last of it, which is returned.

        Raises `UpstreamFailure` when it broke off, once `sink` has what came before.
        """
        while not self.over:
            if sink.full:
                await sink.drained()
            elif self._chunks:
                sink.write(self.take())
            else:
                self._sink = sink
                try:
                    await self.news()
                finally:
                    self._sink = None
        rest = self.take()
        if self._failure is not None:
            sink.write(rest)
            raise self._failure
        return rest

    def take(self) -> bytes:
        """What has come and was not fetched yet; more may come then."""
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self.waiting = 0
        if not self.over:
            # Once over, the connection may already carry another exchange.
            self.connection.resume_reading()
        return data

    def switch(self) -> End:
        """After a 101: its connection, as one end of a tunnel; raises `UpstreamFailure` if it is gone."""
        if self.over:
            raise self._failure or UpstreamFailure("truncated", sent=True)
        self.over = True
        return self.connection.switch()

    async def aclose(self) -> None:
        """Take no more of it; nothing reads the request's body any more when this returns."""
        if not self.over:
            # Once over, the connection may already carry another exchange.
            self.connection.abort()
        if self._upload is not None and not self._upload.done():
            self._upload.cancel()
            await asyncio.wait({self._upload})

    def news(self) -> asyncio.Future[None]:
        """To be waited for: something has come, and all of what came with it has been taken in.

        Raises at once when nothing can come any more, because it broke off.
        """
        if self._failure is not None:
            raise self._failure
        self._waiter = self.connection.loop.create_future()
        return self._waiter

    # What the connection calls.

    @property
    def uploading(self) -> bool:
        return self._upload is not None and not self._upload.done()

    def upload(self, sending: Coroutine[None, None, None]) -> None:
        """Send the request's body while its answer is waited for."""
        self._upload = self.connection.loop.create_task(sending, name="upload")

    def begin(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers

    def feed(self, data: bytes) -> None:
        """Take bytes of the body."""
        if data:
            self._chunks.append(data)
            self.waiting += len(data)

    def end(self) -> None:
        self.over = True

    def fail(self, failure: BaseException) -> None:
        if not self.over:
            self._failure = failure
            self.over = True
            self.tell()

    def tell(self) -> None:
        """What was taken in goes to where it is poured; else whoever waits for news is woken."""
        if self._sink is not None and not self.over:
            if not self._chunks or self._sink.write(self.take()):
                return
            self._sink = None  # it is full: what comes now waits
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
