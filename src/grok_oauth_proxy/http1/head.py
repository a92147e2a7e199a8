"""What a request's head may say, beyond what the parser checks. Pure, on bytes."""

from __future__ import annotations

import re
from typing import Final

from grok_oauth_proxy.proxy.headers import Headers

MAX_HEAD: Final = 64 * 1024
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")


def check_head(target: bytes, headers: Headers, version: str) -> None:
    """Raise OverflowError for a head that is too large, ValueError for what has no one meaning here."""
    size, hosts, codings = len(target), 0, []
    for name, value in headers:
        size += len(name) + len(value) + 4
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            codings.append(value.strip().lower())
    if size > MAX_HEAD:
        raise OverflowError
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise ValueError("RFC 9112 §3.2")
    if version not in ("1.0", "1.1") or codings not in ([], [b"chunked"]) or (codings and version == "1.0"):
        raise ValueError("RFC 9112 §6.1")


def with_known_method(data: bytes) -> tuple[bytes, bytes] | None:
    """The method at the start of `data` if the parser may not know it, and `data` with one that it knows.

    None while the method has not come whole. What is no method is left for the parser to refuse.
    """
    if data.startswith((b"POST ", b"GET ")):
        return b"", data
    data = data.lstrip(b"\r\n")
    method, blank, rest = data.partition(b" ")
    if not _TOKEN.fullmatch(method):
        return b"", data
    if not blank:
        return None
    if method.upper() == b"CONNECT":
        return b"", data
    return method, b"POST " + rest
