"""Connections to the API. The one seam where network errors become `UpstreamFailure`.

Bytes go through as received: nothing is decoded, followed, retried or added here.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx

from grok_oauth_proxy.proxy.headers import Headers

_KEEPALIVE_SECONDS: Final = 15.0
_LAST_STATUS: Final = 599
"""Beyond it no status has a meaning (RFC 9110 §15), and the server would not send it on."""


class UpstreamFailure(Exception):
    """No (complete) answer. `kind` is from a fixed set; `sent`: a byte of the request may have arrived."""

    def __init__(self, kind: str, *, sent: bool) -> None:
        super().__init__(kind)
        self.kind = kind
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Request:
    """What to send. `target` is the path and query as bytes; `body` is None when there is none."""

    method: str
    target: bytes
    headers: Headers
    body: AsyncIterator[bytes] | None


class Answer:
    """A response whose head has arrived. Closing it before its end drops the connection."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers: Headers = response.headers.raw
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - what the transport returns
        self._chunks = aiter(response.stream)

    def __repr__(self) -> str:
        return f"Answer(status={self.status})"

    async def chunk(self) -> bytes | None:
        """The next bytes as they came, None at the end; raises `UpstreamFailure` when it broke off."""
        with _translated(head_arrived=True):
            chunk = await anext(self._chunks, None)
            if chunk is None:
                await self.aclose()
            return chunk

    async def aclose(self) -> None:
        await self._response.aclose()


class Upstream:
    """A pool of keep-alive connections to one origin. `base_url` has no trailing slash."""

    def __init__(
        self,
        base_url: str,
        *,
        proxy: str | None,
        tls: ssl.SSLContext,
        connect_timeout: float,
        read_timeout: float,
    ) -> None:
        parts = urlsplit(base_url)
        self.host = parts.netloc.encode("ascii")
        self.base_path = parts.path.encode("ascii")
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._timeout = httpx.Timeout(read_timeout, connect=connect_timeout).as_dict()
        self._transport = httpx.AsyncHTTPTransport(
            verify=tls,
            proxy=proxy,
            # No upper bound: a stream may last an hour, and the next request must not wait for it.
            limits=httpx.Limits(max_keepalive_connections=100, keepalive_expiry=_KEEPALIVE_SECONDS),
        )

    async def send(self, request: Request) -> Answer:
        """Send it and wait for the head of the answer; raises `UpstreamFailure`, or what `body` raises."""
        outgoing = httpx.Request(
            request.method,
            self._origin,
            headers=request.headers,
            stream=_Body(request.body),
            extensions={"target": request.target, "timeout": self._timeout},
        )
        with _translated(head_arrived=False):
            response = await self._transport.handle_async_request(outgoing)
        if response.status_code > _LAST_STATUS:
            await response.aclose()
            raise UpstreamFailure("invalid_status", sent=True)
        return Answer(response)

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, chunks: AsyncIterator[bytes] | None) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._chunks is not None:
            async for chunk in self._chunks:
                yield chunk


@contextmanager
def _translated(*, head_arrived: bool) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise _failure(error, head_arrived=head_arrived) from None


def _failure(error: httpx.TransportError, *, head_arrived: bool) -> UpstreamFailure:
    match error:
        case httpx.LocalProtocolError():
            return UpstreamFailure("bad_request", sent=False)
        case httpx.ConnectTimeout():
            return UpstreamFailure("connect_timeout", sent=False)
        case httpx.ConnectError() | httpx.ProxyError() | httpx.PoolTimeout():
            return UpstreamFailure("unreachable", sent=False)
        case httpx.TimeoutException():
            return UpstreamFailure("timeout", sent=True)
        case _:
            return UpstreamFailure("truncated" if head_arrived else "broken_off", sent=True)
