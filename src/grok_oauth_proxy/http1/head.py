"""What a request's head may say, beyond what the parser checks. Pure, on bytes."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote

from grok_oauth_proxy.asgi import Scope
from grok_oauth_proxy.proxy.headers import Headers, first_values, is_chunked

MAX_HEAD: Final = 64 * 1024
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")


def check_head(target: bytes, headers: Headers, version: str, *, received: int) -> dict[bytes, bytes]:
    """The first value of each header, in a head that came among `received` bytes.

    Raises OverflowError for a head that is too large, ValueError for what has no one meaning here.
    """
    if received > MAX_HEAD and len(target) + sum(len(n) + len(v) + 4 for n, v in headers) > MAX_HEAD:
        raise OverflowError
    first = first_values(headers)
    repeated = [name for name, _ in headers] if len(first) < len(headers) else []
    if (b"host" not in first and version == "1.1") or repeated.count(b"host") > 1:
        raise ValueError("RFC 9112 §3.2")
    if version not in ("1.0", "1.1"):
        raise ValueError("RFC 9112 §2.3")
    if b"transfer-encoding" in first and (version == "1.0" or not is_chunked(headers)):
        raise ValueError("RFC 9112 §6.1")
    return first


def scope_of(
    method: str, version: str, target: bytes, headers: Headers, *, scheme: str, addresses: tuple[Any, Any]
) -> Scope:
    """A request as ASGI has it; `addresses`: that of the server and that of the client."""
    raw_path, _, query = target.partition(b"?")
    path = raw_path.decode("ascii")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": version,
        "server": addresses[0],
        "client": addresses[1],
        "scheme": scheme,
        "root_path": "",
        "method": method,
        "path": unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": query,
        "headers": headers,
    }


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
