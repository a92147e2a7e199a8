"""What is sent to the API, as bytes, and what it means when no whole answer comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from grok_oauth_proxy.proxy.headers import Headers, header

_CR, _LF, _NUL = b"\r\n\0"
"""Numbers: CPython takes bytes for one first, and a failure of that costs more than the search."""


class UpstreamFailure(Exception):
    """No (complete) answer. `kind` is from a fixed set; `sent`: a byte of the request may have arrived.

    `stale`: the connection had been idle, and ended before a byte of the answer; as a rule the API closed it
    while it was idle.
    """

    def __init__(self, kind: str, *, sent: bool, stale: bool = False) -> None:
        super().__init__(kind)
        self.kind = kind
        self.sent = sent
        self.stale = stale


class Request(NamedTuple):
    """What to send. `target` is the path and query as bytes; `body` is None when there is none.

    A body comes whole, or as it is produced; `headers` say how it is framed. `upgrade`: they ask for a switch
    of protocols, so that the answer may be 101.
    """

    method: str
    target: bytes
    headers: Headers
    body: bytes | AsyncIterator[bytes] | None
    upgrade: bool = False

    def __repr__(self) -> str:
        return f"Request({self.method})"  # target, headers and body are secrets of the client's or ours

    @property
    def chunked(self) -> bool:
        return header(self.headers, b"transfer-encoding") is not None

    def head(self) -> bytes:
        """The head on the wire (RFC 9112 §3); raises `UpstreamFailure` when it would not be one head."""
        lines = [b" ".join((self.method.encode(), self.target, b"HTTP/1.1"))]
        lines += map(b": ".join, self.headers)
        text = b"".join(lines)
        if _LF in text or _CR in text or _NUL in text:
            raise UpstreamFailure("bad_request", sent=False)
        return b"\r\n".join(lines) + b"\r\n\r\n"
