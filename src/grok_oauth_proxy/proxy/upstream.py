"""Connections to the API. The one seam where network errors become `UpstreamFailure`.

Bytes go through as received: nothing is decoded, followed, retried or added here. httpcore, the engine below
httpx, is used directly: httpx would normalise the request target and add headers of its own.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpcore
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

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response
        self._chunks = response.aiter_stream()
        self.status = response.status
        self.headers: Headers = response.headers

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
        self._scheme = parts.scheme.encode("ascii")
        self._address = ((parts.hostname or "").encode("ascii"), parts.port)
        self._timeouts = dict.fromkeys(("read", "write"), read_timeout) | {"connect": connect_timeout}
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            proxy=_egress(proxy),
            # No upper bound: a stream may last an hour, and the next request must not wait for it.
            max_connections=None,
            max_keepalive_connections=100,
            keepalive_expiry=_KEEPALIVE_SECONDS,
        )

    async def send(self, request: Request) -> Answer:
        """Send it and wait for the head of the answer; raises `UpstreamFailure`, or what `body` raises."""
        host, port = self._address
        outgoing = httpcore.Request(
            request.method,
            httpcore.URL(scheme=self._scheme, host=host, port=port, target=request.target),
            headers=request.headers,
            content=request.body,
            extensions={"timeout": self._timeouts},
        )
        with _translated(head_arrived=False):
            response = await self._pool.handle_async_request(outgoing)
        if response.status > _LAST_STATUS:
            await response.aclose()
            raise UpstreamFailure("invalid_status", sent=True)
        return Answer(response)

    async def aclose(self) -> None:
        await self._pool.aclose()


def _egress(url: str | None) -> httpcore.Proxy | None:
    if url is None:
        return None
    proxy = httpx.Proxy(url)
    address = httpcore.URL(
        scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=proxy.url.port, target=b"/"
    )
    return httpcore.Proxy(address, auth=proxy.raw_auth)


@contextmanager
def _translated(*, head_arrived: bool) -> Iterator[None]:
    try:
        yield
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
        raise _failure(error, head_arrived=head_arrived) from None
    except httpcore.ProxyError:
        raise UpstreamFailure("unreachable", sent=False) from None


def _failure(error: Exception, *, head_arrived: bool) -> UpstreamFailure:
    match error:
        case httpcore.LocalProtocolError():
            return UpstreamFailure("bad_request", sent=False)
        case httpcore.ConnectTimeout():
            return UpstreamFailure("connect_timeout", sent=False)
        case httpcore.ConnectError():
            return UpstreamFailure("unreachable", sent=False)
        case httpcore.TimeoutException():
            return UpstreamFailure("timeout", sent=True)
        case _:
            return UpstreamFailure("truncated" if head_arrived else "broken_off", sent=True)
