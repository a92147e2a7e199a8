"""What an endpoint answers, before it meets a socket."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

Header = tuple[bytes, bytes]


def encode(value: object) -> bytes:
    """Compact JSON; text beyond ASCII stays UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Reply:
    """Either `body`, sent with content-length, or `chunks`, sent chunked; paced means with delays between."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[Header, ...] = ()
    chunks: Iterable[bytes] | None = None
    paced: bool = False

    @classmethod
    def json(cls, value: object, status: int = 200, headers: tuple[Header, ...] = ()) -> Reply:
        """A JSON answer."""
        return cls(status, encode(value), headers=headers)

    @classmethod
    def events(cls, chunks: Iterable[bytes], headers: tuple[Header, ...] = ()) -> Reply:
        """Server-sent events, one item of `chunks` a frame."""
        return cls(200, b"", "text/event-stream", headers, chunks, paced=True)
